"""The loss of a batch, AdamW, and clipping, on the fast path (plain: the functions of train.py with the same names).

The forward pass is gpt2.py's, layer by layer, with three savings:

* The product with the 50,257 rows of `wte` is a third of GPT-2 small's arithmetic. It is computed only at the M
  positions whose next token is scored, as is the last layer's MLP, because after the last attention no token sees
  another.
* A quarter of a batch of E2E's sentences is padding. It exists in attention only (`ops.TokenPacking`).
* Under autocast, weights are rounded to bf16 in every step. Frozen ones are rounded once (`round_frozen`).

Shapes as in gpt2.py; N real tokens, M scored ones.
"""

import math
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fast.loss import SHAPE_MULTIPLE, SummedLoss, padded_cast
from fast.ops import TokenPacking, dropout, product, tied_embedding
from gpt2 import GPT2, MLP, Attention, Block, Projection, causal_mask


def summed_loss(model: GPT2, batch, label_smoothing: float = 0.0) -> Tensor:
    """- sum of log p over the batch's labels, in nats.

    batch            (tokens [B, T], labels [B, T]), labels -100 where nothing is scored; padding on the right
    label_smoothing  weight of the uniform distribution in the targets
    """
    tokens, labels = batch
    B, T = tokens.shape
    real, scored, targets = positions_of(labels)  # [N], [M], [M]
    tokens, positions, mask = model.inputs(tokens, None, None, None)
    longer = -T % SHAPE_MULTIPLE if mask is None else 0  # more padding, so that attention's shapes repeat
    packing = TokenPacking(B, T + longer, model.config.n_head, real + real // T * longer)
    rows = torch.searchsorted(real, scored)  # [M], the scored ones among the N
    M = len(rows)
    rows = F.pad(rows, (0, -M % SHAPE_MULTIPLE))  # repeats the first row; see SHAPE_MULTIPLE

    words, wte = tied_embedding(model.wte.weight, tokens.flatten()[real])  # [N, C], [V, C]
    x = words + model.wpe(positions.expand(tokens.shape).flatten()[real])
    x = dropout(x, model.dropout.p, model.training)  # [N, C]
    for block in model.h[:-1]:
        x = run_block(block, x, mask, packing)
    x = run_block(model.h[-1], x, mask, packing, rows)  # [M, C]
    return cross_entropy(model, model.ln_f(x)[:M], targets, wte, label_smoothing)


def positions_of(labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """From labels [B, T]: the tokens that matter [N], the positions whose next token is scored [M], these tokens [M].

    Positions are ascending indices into the B * T. After a row's last label nothing can change the loss, so whatever is
    there counts as padding. N is rounded up to a multiple of SHAPE_MULTIPLE with some of it, as far as there is any.
    """
    is_label = labels != -100
    is_real = (is_label.flip(1).cumsum(1) > 0).flip(1).flatten()  # up to the row's last label
    padding = ~is_real
    fill = padding & (padding.cumsum(0) <= -is_real.sum() % SHAPE_MULTIPLE)
    scored = F.pad(is_label[:, 1:], (0, 1)).flatten()  # the label of t + 1 is predicted at t
    return (is_real | fill).nonzero()[:, 0], scored.nonzero()[:, 0], labels[:, 1:][is_label[:, 1:]]


def run_block(
    block: Block, x: Tensor, mask: Tensor | None, packing: TokenPacking, rows: Tensor | None = None
) -> Tensor:
    """Block.forward on packed tokens, [N, C] -> [N, C]; with `rows` only these tokens come out, [M, C]."""
    p, training = block.attn.dropout.p, block.training
    x = x + dropout(attention(block.attn, block.ln_1(x), mask, packing), p, training)  # [N, C]
    if rows is not None:
        x = x.index_select(0, rows)  # [M, C]
    return x + feed_forward(block.mlp, block.ln_2(x), p, training)


def feed_forward(mlp: MLP, x: Tensor, p: float, training: bool) -> Tensor:
    """MLP.forward: [N, C] -> [N, C]."""
    y = dropout(project(mlp.c_proj, F.gelu(project(mlp.c_fc, x), approximate="tanh")), p, training)
    return y if mlp.output_hook is None else mlp.output_hook(x, y)


def attention(attn: Attention, x: Tensor, mask: Tensor | None, packing: TokenPacking) -> Tensor:
    """Attention.forward on packed tokens, without the last dropout: [N, C] -> [N, C]."""
    q, k, v = packing.heads(project(attn.c_attn, x))  # each [B, H, T, D]
    y = packing.tokens(attend(attn, q, k, v, mask))  # [N, C]
    return project(attn.c_proj, y)


def project(layer: Projection, x: Tensor) -> Tensor:
    """Projection.forward: [N, n_in] -> [N, n_out]."""
    if not isinstance(layer, Projection):
        raise RuntimeError("this model was packed for decoding: no gradient flows through it")
    y = product(x, layer.weight, layer.bias)
    return y if layer.output_hook is None else layer.output_hook(x, y)  # LoRA: two thin products, never W + A B


def attend(attn: Attention, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """The hook and softmax(q k^T / sqrt(D) + mask) v: q, k, v [B, H, T, D] -> [B, H, T, D]."""
    if attn.kv_hook is not None:
        k, v = attn.kv_hook(k, v)  # [B, H, S, D]
    scores = (q / math.sqrt(q.size(-1))) @ k.transpose(-2, -1)  # [B, H, T, S]
    if mask is None:
        mask = causal_mask(q.size(2), k.size(2), q.device)
    # Added, not filled in: then the backward pass has nothing to do for the mask.
    scores = scores + torch.zeros_like(mask, dtype=scores.dtype).masked_fill(~mask, -torch.inf)
    return dropout(F.softmax(scores, dim=-1), attn.dropout.p, attn.training) @ v


def cross_entropy(model: GPT2, x: Tensor, targets: Tensor, wte: Tensor, smoothing: float = 0.0) -> Tensor:
    """The sum of - log p of targets [M], given LayerNorm(x_L) [M, C] and wte [V, C]."""
    if not torch.is_grad_enabled():  # in parts: the logits of a batch are hundreds of megabytes
        parts = zip(x.split(256), targets.split(256))
        how = {"reduction": "sum", "label_smoothing": smoothing}
        return torch.stack([F.cross_entropy(exact_logits(rows, wte), y, **how) for rows, y in parts]).sum()
    if torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))
    weight = wte if wte.requires_grad else rounded_head(model, x.dtype)
    return SummedLoss.apply(x, weight, targets, model.config.vocab_size, smoothing)


def output_matrix(model) -> Tensor:
    """The embedding as the output layer, [V, C], of a GPT-2 or a Llama."""
    return (model.wte if isinstance(model, GPT2) else model.embed_tokens).weight


def exact_logits(x: Tensor, wte: Tensor) -> Tensor:
    """x wte^T in fp32, [.., C] -> [.., V]. Under autocast only the factors are rounded, to bf16 (on a GPU TF32)."""
    precision = torch.get_float32_matmul_precision()
    if torch.is_autocast_enabled(x.device.type):
        torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast(x.device.type, enabled=False):
            return x.float() @ wte.float().t()
    finally:
        torch.set_float32_matmul_precision(precision)


# ----------------------------------------------------------------------------- frozen weights, rounded once


def round_frozen(model: GPT2) -> None:
    """Round the projections of a frozen model to bf16, in place: autocast would do it again in every step.

    Embeddings and norms keep fp32. For a model that is called under bf16 autocast only.
    """
    for module in model.modules():
        if isinstance(module, (Projection, nn.Linear)) and not module.weight.requires_grad:
            module.to(torch.bfloat16)


rounded_heads: WeakKeyDictionary = WeakKeyDictionary()  # model -> (what it was made from, the rounded wte)


def rounded_head(model: GPT2, dtype: torch.dtype) -> Tensor:
    """A frozen wte in another precision for its second use, [V', C] (`padded_cast`), computed once."""
    wte = output_matrix(model).detach()
    if wte.dtype == dtype:
        return wte
    made_from = (dtype, wte.data_ptr(), wte._version)  # changes when the weights do
    if model not in rounded_heads or rounded_heads[model][0] != made_from:
        rounded_heads[model] = (made_from, padded_cast(wte, dtype))
    return rounded_heads[model][1]


# ----------------------------------------------------------------------------- the update


def adamw(parameters, lr: float, weight_decay: float) -> torch.optim.AdamW:
    """train.adamw with PyTorch's fused kernel, which passes over the weights once; on devices that have it."""
    parameters = list(parameters)
    first = parameters[0]["params"][0] if isinstance(parameters[0], dict) else parameters[0]
    fused = first.device.type in ("cpu", "cuda")
    return torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=weight_decay, fused=fused)


def clip_gradients(optimizer: torch.optim.Optimizer, max_norm: float) -> Tensor:
    """Scale the gradients of all parameters to a norm of at most `max_norm`:  g  <-  g / max(1, norm / max_norm).

    Returns the norm before clipping. Fused AdamW divides on its way through the weights: torch.amp's GradScaler asks
    for that by setting `grad_scale`, and so do we. The optimizer must then step before the next call.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    norm = gradient_norm(parameters)
    scale = (norm / max_norm).clamp(min=1)
    if optimizer.defaults.get("fused"):
        optimizer.grad_scale = scale
    else:
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad /= scale
    return norm


def gradient_norm(parameters) -> Tensor:
    """sqrt(sum of g^2) over all gradients. First row by row: on a CPU faster than the norms of whole matrices."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    rows = [torch.linalg.vector_norm(gradient, dim=-1).flatten() for gradient in gradients]
    return torch.linalg.vector_norm(torch.cat(rows))
