"""The loss of a batch, and the best next words, of a Llama (plain: train.summed_loss, beam.NextWords).

llama.py's forward pass with the savings that training.py and decoding.py have for GPT-2: no padding outside attention,
logits and the last layer's MLP at the scored tokens only; beams that share keys and values. Besides, attention reads
grouped keys as they are: the H / G query heads of a group are stacked into one matrix, where llama.py repeats the keys.

Shapes as in llama.py; N real tokens, M scored ones, r = H / G.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from fast import decoding
from fast.loss import SHAPE_MULTIPLE
from fast.ops import Rearranged, tied_embedding
from fast.training import cross_entropy, positions_of
from fast.tree import BeamTree
from gpt2 import causal_mask, join_heads
from llama import Attention, Block, Llama, rotate, rotation

# ----------------------------------------------------------------------------- the loss


def summed_loss(model: Llama, batch, label_smoothing: float = 0.0) -> Tensor:
    """- sum of log p over the batch's labels, in nats.

    batch            (tokens [B, T], labels [B, T]), labels -100 where nothing is scored; padding on the right
    label_smoothing  weight of the uniform distribution in the targets
    """
    tokens, labels = batch
    real, scored, targets = positions_of(labels)  # [N], [M], [M]
    tokens, positions, mask = model.inputs(tokens, None, None, None)
    rows = torch.searchsorted(real, scored)  # [M], the scored ones among the N
    M = len(rows)
    rows = F.pad(rows, (0, -M % SHAPE_MULTIPLE))  # repeats the first row; see SHAPE_MULTIPLE
    packing = Packing(tokens.shape, real, mask)
    turn = rotation(positions.expand(tokens.shape).flatten()[real], model.config)  # each [1, N, D/2]
    turn = tuple(t.transpose(0, 1) for t in turn)  # [N, 1, D/2]

    x, head = tied_embedding(model.embed_tokens.weight, tokens.flatten()[real])  # [N, C], [V, C]
    for block in model.layers[:-1]:
        x = run_block(block, x, turn, packing)
    x = run_block(model.layers[-1], x, turn, packing, rows)  # [M, C]
    return cross_entropy(model, model.norm(x)[:M], targets, head, label_smoothing)


def run_block(block: Block, x: Tensor, turn: tuple[Tensor, Tensor], packing: "Packing", rows=None) -> Tensor:
    """Block.forward on packed tokens, [N, C] -> [N, C]; with `rows` only these tokens come out, [M, C]."""
    x = x + attention(block.self_attn, block.input_layernorm(x), turn, packing)
    if rows is not None:
        x = x.index_select(0, rows)
    return x + block.mlp(block.post_attention_layernorm(x))


def attention(attn: Attention, x: Tensor, turn: tuple[Tensor, Tensor], packing: "Packing") -> Tensor:
    """Attention.forward on packed tokens: [N, C] -> [N, C]."""
    q, k, v = (project(x).unflatten(-1, (-1, attn.head_size)) for project in (attn.q_proj, attn.k_proj, attn.v_proj))
    n_head, n_kv_head = q.size(1), k.size(1)
    q, k = rotate(q, *turn), rotate(k, *turn)  # [N, H, D], [N, G, D]
    heads = packing.unpack(torch.cat([q, k, v], dim=1))  # [B, H + 2 G, T, D]
    q, k, v = heads.split([n_head, n_kv_head, n_kv_head], dim=1)
    if attn.kv_hook is not None:
        k, v = attn.kv_hook(k, v)  # [B, G, S, D]
    y = grouped(q, k, v, packing.bias(k.size(2), q.dtype))
    return attn.o_proj(packing.pack(join_heads(y)))


def grouped(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(D) + bias) v: q [B, H, T, D], k, v [B, G, S, D], bias [B or 1, 1, T, S] -> [B, H, T, D]."""
    (B, H, T, D), G = q.shape, k.size(1)
    q = q.reshape(B, G, -1, D)  # [B, G, r T, D], a group's heads one after the other
    bias = bias.repeat(1, 1, H // G, 1)  # [B or 1, 1, r T, S]
    # written out: on a CPU the backward pass of scaled_dot_product_attention is slow at these sizes
    scores = (q / math.sqrt(D)) @ k.transpose(-2, -1) + bias  # [B, G, r T, S]
    return (F.softmax(scores, dim=-1) @ v).reshape(B, H, T, D)


class Packing:
    """Removes the padding of a batch [B, T]: everything but attention is computed for the N real tokens only.

    real  [N] indices into the B * T places, ascending
    mask  as for Llama.forward; None: the causal mask
    """

    def __init__(self, shape: tuple[int, int], real: Tensor, mask: Tensor | None):
        self.shape, self.mask, N = shape, mask, len(real)
        self.real, self.biases = real, {}
        self.token = torch.full((shape[0] * shape[1],), N, device=real.device)  # N, one past the end: no token
        self.token[real] = torch.arange(N, device=real.device)

    def unpack(self, heads: Tensor) -> Tensor:
        """[N, n, D] -> [B, n, T, D]. Padding holds some token's numbers: no real query attends to it."""
        rows = Rearranged.apply(heads.flatten(1), self.token.clamp(max=len(self.real) - 1), self.real, False)
        return rows.view(*self.shape, *heads.shape[1:]).transpose(1, 2)

    def pack(self, y: Tensor) -> Tensor:
        """[B, T, C] -> [N, C]."""
        return Rearranged.apply(y.flatten(0, 1), self.real, self.token, True)

    def bias(self, S: int, dtype: torch.dtype) -> Tensor:
        """The mask as what is added to the scores, [B or 1, 1, T, S]; the same in all layers."""
        if (S, dtype) not in self.biases:
            T, mask = self.shape[1], self.mask
            mask = causal_mask(T, S, self.real.device)[None, None] if mask is None else mask
            self.biases[S, dtype] = torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, -torch.inf)
        return self.biases[S, dtype]


# ----------------------------------------------------------------------------- the best next words


class NextWords(decoding.NextWords):
    """As beam.NextWords, for a Llama. The tree's H is G here."""

    def hidden_states(
        self, tokens: Tensor, positions: Tensor | None, mask: Tensor | None, last: Tensor | None = None
    ) -> Tensor:
        """RMSNorm(x_L) of tokens [B, T], added to the tree: [B, T, C]; at `last`, indices into B * T, [M, C]."""
        model, tree = self.model, self.tree
        tokens, positions, mask = model.inputs(tokens, tree, positions, mask)
        begins, turn = tree.length == 0, rotation(positions, model.config)
        x = model.embed_tokens(tokens)  # [B, T, C]
        for block in model.layers:
            x = x + attention_in_tree(block.self_attn, block.input_layernorm(x), turn, tree, mask, begins)
            if last is not None and block is model.layers[-1]:
                x = x.flatten(0, 1).index_select(0, F.pad(last, (0, -len(last) % SHAPE_MULTIPLE)))
            x = x + block.mlp(block.post_attention_layernorm(x))
        x = model.norm(x)
        return x if last is None else x[: len(last)]


def attention_in_tree(
    attn: Attention, x: Tensor, turn: tuple[Tensor, Tensor], tree: BeamTree, mask: Tensor | None, begins: bool
) -> Tensor:
    """Attention.forward with a tree, [B, T, C] -> [B, T, C]. As a function it frees q, k and v before the MLP."""
    q, k, v = (attn.heads(project(x)) for project in (attn.q_proj, attn.k_proj, attn.v_proj))
    q, k = rotate(q, *turn), rotate(k, *turn)  # [B, H, T, D], [B, G, T, D]
    if begins and attn.kv_hook is not None:
        k, v = attn.kv_hook(k, v)  # [B, G, E + T, D]
    return attn.o_proj(join_heads(tree.attend(attn.layer, q, k, v, mask)))
