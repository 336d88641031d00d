"""GPT-2 made ready for decoding on a CPU in bf16: its weights packed once, its vocabulary gone through in two rounds.

Decoding multiplies few rows (5 beams of 32 tables: 160) by all of GPT-2's weights, and does so again for each token.

Packing. A processor's matrix unit reads a weight matrix in tiles. oneDNN, which multiplies matrices for PyTorch, lays it out in tiles
for every product anew, which for few rows may take as long as the product itself. Weights that stay as they are can be laid
out once (`Packed`); and gelu is applied to a product before it leaves the processor.

Two rounds. Close candidates have to be told apart in fp32 (`GPT2.logits`), but packed products of bf16 numbers come out rounded to bf16,
to 8 binary digits. So a first round finds rough logits of all V words (`TwoRounds`), and a second those of the best few in fp32:

    rough_v = bf16(x . (W_v - w))        W_v the row of `wte` for word v, w the mean of these rows
    exact_v =      x . (W_v - w)         where rough_v is among the largest

    log p_v = exact_v - log z            z = the sum over all words of exp(exact_v), or exp(rough_v) where that is all there is

The mean's share x . w is the same for all words, so that p does not change without it; and where all logits lie far from zero, what is
left of them is smaller, and rounding loses less of it. The many words that have but rough logits matter only together, in z, where
their errors cancel.

Shapes: R rows, C width, V vocabulary, V' >= V a multiple of WIDTH, n words wanted, n' > n of the second round, G groups of words.
"""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2 import GPT2

WIDTH = 64  # words of a group: the best words are looked for among the groups first (`largest`)


def pack(model: GPT2) -> GPT2:
    """Make a model on a CPU, whose layers are in bf16 (`runs.place`), ready for decoding, and for that alone; returns it.

    Any other model is left as it is, one that is packed already too, and every one where PyTorch cannot pack.
    """
    packable = model.two_rounds is None and model.wte.weight.device.type == "cpu" and model.h[0].mlp.c_fc.weight.dtype == torch.bfloat16
    if not packable or not can_pack():
        return model
    for block in model.h:
        block.attn.c_attn, block.attn.c_proj = Packed(block.attn.c_attn), Packed(block.attn.c_proj)
        block.mlp = nn.Sequential(Packed(block.mlp.c_fc, gelu=True), Packed(block.mlp.c_proj))
    model.head, model.two_rounds = None, TwoRounds(model.wte.weight)
    return model


@cache
def can_pack() -> bool:
    """Does this PyTorch have oneDNN's packed products? (They are there for torch.compile, without a promise.)"""
    x, W, b = (torch.linspace(-1, 1, n).bfloat16() for n in (4 * 32, 64 * 32, 64))
    x, W = x.view(4, 32), W.view(64, 32)
    try:
        y = packed_product(x, packed(W), b)
    except (AttributeError, RuntimeError):  # no such operator, none for this machine, other arguments
        return False
    return torch.allclose(y.float(), F.linear(x.float(), W.float(), b.float()), atol=0.1)


def packed(W: Tensor) -> Tensor:
    """W [n_out, n_in] in bf16 as oneDNN wants it. Only `packed_product` can read it."""
    return torch.ops.mkldnn._reorder_linear_weight(W.detach().to(torch.bfloat16).contiguous(), None)


def packed_product(x: Tensor, W: Tensor, b: Tensor | None, activation: str = "none") -> Tensor:
    """x W^T + b, or with activation "gelu" its gelu (tanh): x [R, n_in], W packed, b [n_out], all bf16 -> [R, n_out]. No gradients."""
    return torch.ops.mkldnn._linear_pointwise(x, W, b, activation, [], "tanh")


class Packed(nn.Module):
    """A frozen `gpt2.Projection`, y = x W + b, or with `gelu` the gelu of it. Raises RuntimeError where a gradient is wanted."""

    def __init__(self, projection, gelu: bool = False):
        super().__init__()
        self.weight, self.bias = packed(projection.weight.t()), projection.bias.detach()
        self.activation = "gelu" if gelu else "none"

    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad and torch.is_grad_enabled():
            raise RuntimeError("a packed model is for decoding alone: no gradient flows through it")
        y = packed_product(x.flatten(0, -2).to(torch.bfloat16), self.weight, self.bias, self.activation)  # [B * T, n_out]
        return y.view(*x.shape[:-1], -1)  # [B, T, n_out]


class TwoRounds:
    """From last states to the best words: log p and ids, by rough logits of all words and exact ones of a few."""

    def __init__(self, weight: Tensor):
        self.weight = weight.detach().float()  # W [V, C]
        self.mean = self.weight.mean(0)  # w [C]
        up = -len(weight) % WIDTH  # words that there are not, with logits of -inf
        self.packed = packed(F.pad(self.weight - self.mean, (0, 0, 0, up)))  # [V', C]
        self.bias = F.pad(torch.zeros(len(weight)), (0, up), value=-torch.inf).bfloat16()  # [V']

    def __call__(self, x: Tensor, n: int, banned: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """x [R, C], LayerNorm(x_L) -> log p of the n best words that are not banned, and their ids: both [R, n], best first."""
        with torch.autocast("cpu", enabled=False):
            x = x.float()
            rough = packed_product(x.to(torch.bfloat16), self.packed, self.bias)  # [R, V']
            # A few rows at a time, so that they stay in the processor's cache.
            maxima, top, z = map(torch.cat, zip(*map(first_round, rough.split(8))))  # [R, G], [R, 1], [R, 1]
            coarse, words = largest(rough, min(2 * n + len(banned), len(self.weight)), maxima)  # [R, n']
            exact = (x[:, None] @ F.embedding(words, self.weight).mT).squeeze(1) - x @ self.mean[:, None]  # [R, n']
            coarse, exact = coarse.float() - top, exact - top  # none is far above 0, so exp does not overflow
            others = (z - coarse.exp().sum(1, keepdim=True)).clamp(min=0)  # [R, 1], what z has from words of one round
            log_z = torch.cat([exact, others.log()], dim=1).logsumexp(1, keepdim=True)  # [R, 1]
            exact.masked_fill_(torch.isin(words, words.new_tensor(banned)), -torch.inf)  # only now: z counts them
            best, order = exact.topk(n)  # [R, n]
        return best - log_z, words.gather(1, order)


def first_round(rough: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rough logits [R, V'] -> the largest of each group [R, G], and of all, top [R, 1]; the sum of exp(logit - top) [R, 1]."""
    logits = rough.float()
    maxima = group_maxima(logits)
    top = maxima.amax(1, keepdim=True)
    return maxima, top, logits.sub_(top).exp_().sum(1, keepdim=True)


def group_maxima(x: Tensor) -> Tensor:
    """x [R, V] -> the largest of each whole group of neighbours, [R, V // WIDTH]."""
    R, V = x.shape
    G = V // WIDTH
    return x[:, : G * WIDTH].view(R, G, WIDTH).amax(2)


def largest(x: Tensor, n: int, maxima: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(values, places) of the n largest numbers of each row of x [R, V], both [R, n], largest first: topk, faster on a CPU.

    The n largest lie in the n groups whose maxima are largest, and maxima are found fast. (Of equal numbers it may find others
    than topk.)

    maxima  [R, V // WIDTH], where they are known already
    """
    R, V = x.shape
    G = V // WIDTH
    if x.device.type != "cpu" or G < n:
        return x.topk(n)
    groups = (group_maxima(x) if maxima is None else maxima).topk(n).indices  # [R, n]
    inside = x[:, : G * WIDTH].view(R, G, WIDTH)[torch.arange(R)[:, None], groups]  # [R, n, WIDTH]
    values, order = torch.cat([inside.flatten(1), x[:, G * WIDTH :]], dim=1).topk(n)  # [R, n]; with what is behind the last group
    groups = F.pad(groups, (0, 1), value=G)  # where it counts as one more
    return values, groups.gather(1, order // WIDTH) * WIDTH + order % WIDTH
