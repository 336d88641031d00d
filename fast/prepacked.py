"""Decoding on a CPU in bf16: weights packed once, the vocabulary searched in two rounds.

Decoding multiplies few rows (5 beams of 64 tables: 320) by all of GPT-2's weights, once for every token.

Packing. A CPU's matrix unit reads a weight matrix in tiles. oneDNN, which multiplies matrices for PyTorch, rearranges
it into tiles for every product, which for few rows takes as long as the product itself. Constant weights can be
rearranged once (`PrepackedLinear`). Also, gelu is applied to a product before it leaves the CPU's registers.

Two rounds. Close candidates must be told apart in fp32, but packed bf16 products come out rounded to bf16, 8 bits. So a
first round computes rough logits of all V words, and a second those of the best few in fp32 (`TwoRounds`):

    rough_v = bf16(x . (W_v - w))        W_v the row of `wte` for word v, w the mean of these rows
    exact_v =      x . (W_v - w)         where rough_v is among the largest

    log p_v = exact_v - log z            z = sum over all words of exp(exact_v), or of exp(rough_v) if that is all

x . w is the same for all words, so subtracting it does not change p; and where all logits are far from zero, the
remainder is smaller, so rounding loses less. Words with only rough logits enter through z, where their errors average
out.

Shapes: R rows, C width, V vocabulary, V' >= V a multiple of WIDTH, n words wanted, n' > n in the second round, G
groups.
"""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH = 64  # words in a group: `largest` searches the groups first


@cache
def can_pack() -> bool:
    """Does this PyTorch have working packed products? (They exist for torch.compile and are not a public interface.)"""
    x, W, b = (torch.linspace(-1, 1, n).bfloat16() for n in (4 * 32, 64 * 32, 64))
    x, W = x.view(4, 32), W.view(64, 32)
    try:
        y = packed_product(x, packed(W), b)
    except (AttributeError, RuntimeError):  # no such operator, not on this machine, other arguments
        return False
    return torch.allclose(y.float(), F.linear(x.float(), W.float(), b.float()), atol=0.1)


def packed(W: Tensor) -> Tensor:
    """W [n_out, n_in] in bf16 and oneDNN's layout. Only `packed_product` can read it."""
    return torch.ops.mkldnn._reorder_linear_weight(W.detach().to(torch.bfloat16).contiguous(), None)


def packed_product(x: Tensor, W: Tensor, b: Tensor | None, activation: str = "none") -> Tensor:
    """x W^T + b, or with activation "gelu" its gelu (tanh). No gradients.

    x [R, n_in], W packed, b [n_out], all bf16 -> [R, n_out]
    """
    return torch.ops.mkldnn._linear_pointwise(x, W, b, activation, [], "tanh")


class PrepackedLinear(nn.Module):
    """A frozen `gpt2.Projection`, y = x W + b, or with `gelu` its gelu. Raises RuntimeError if a gradient is needed."""

    def __init__(self, projection, gelu: bool = False):
        super().__init__()
        self.weight, self.bias = packed(projection.weight.t()), projection.bias.detach()
        self.activation = "gelu" if gelu else "none"

    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad and torch.is_grad_enabled():
            raise RuntimeError("this model was packed for decoding: no gradient flows through it")
        x_2d = x.flatten(0, -2).to(torch.bfloat16)  # [B * T, n_in]
        y = packed_product(x_2d, self.weight, self.bias, self.activation)  # [B * T, n_out]
        return y.view(*x.shape[:-1], -1)  # [B, T, n_out]

    @property
    def output_hook(self):
        """Raises RuntimeError: a packed product has no hook. (Without this, one could be set, and never be called.)"""
        raise RuntimeError("this model was packed for decoding: load it again to attach something")


class PrepackedMLP(nn.Module):
    """A frozen `gpt2.MLP` in evaluation mode, with its hook."""

    def __init__(self, mlp):
        super().__init__()
        self.c_fc, self.c_proj = PrepackedLinear(mlp.c_fc, gelu=True), PrepackedLinear(mlp.c_proj)
        self.output_hook = mlp.output_hook

    def forward(self, x: Tensor) -> Tensor:
        y = self.c_proj(self.c_fc(x))  # [B, T, C]
        return y if self.output_hook is None else self.output_hook(x, y)


class TwoRounds:
    """From hidden states to the best words: log p and ids, from rough logits of all words and exact ones of a few."""

    def __init__(self, weight: Tensor):
        self.weight = weight.detach().float()  # W [V, C]
        self.mean = self.weight.mean(0)  # w [C]
        up = -len(weight) % WIDTH  # words that do not exist, with logits of -inf
        self.packed = packed(F.pad(self.weight - self.mean, (0, 0, 0, up)))  # [V', C]
        self.bias = F.pad(torch.zeros(len(weight)), (0, up), value=-torch.inf).bfloat16()  # [V']

    def __call__(self, x: Tensor, n: int, banned: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """LayerNorm(x_L) [R, C] -> log p and ids of the n best words that are not banned, each [R, n], best first."""
        with torch.autocast("cpu", enabled=False):
            x = x.float()
            rough = packed_product(x.to(torch.bfloat16), self.packed, self.bias)  # [R, V']
            # A few rows at a time, so that they stay in the CPU's cache.
            maxima, top, z = map(torch.cat, zip(*map(first_round, rough.split(8))))  # [R, G], [R, 1], [R, 1]
            coarse, words = largest(rough, min(2 * n + len(banned), len(self.weight)), maxima)  # [R, n']
            exact = (x[:, None] @ F.embedding(words, self.weight).mT).squeeze(1) - x @ self.mean[:, None]  # [R, n']
            coarse, exact = coarse.float() - top, exact - top  # none is far above 0, so exp does not overflow
            # The part of z from words with rough logits only, [R, 1].
            others = (z - coarse.exp().sum(1, keepdim=True)).clamp(min=0)
            log_z = torch.cat([exact, others.log()], dim=1).logsumexp(1, keepdim=True)  # [R, 1]
            # Banned words are removed only now, because z counts them.
            exact.masked_fill_(torch.isin(words, words.new_tensor(banned)), -torch.inf)
            best, order = exact.topk(n)  # [R, n]
        return best - log_z, words.gather(1, order)


def first_round(rough: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rough logits [R, V'] -> group maxima [R, G], the maximum of all, top [R, 1], sum of exp(logit - top) [R, 1]."""
    logits = rough.float()
    maxima = group_maxima(logits)
    top = maxima.amax(1, keepdim=True)
    return maxima, top, logits.sub_(top).exp_().sum(1, keepdim=True)


def group_maxima(x: Tensor) -> Tensor:
    """x [R, V] -> the largest of each complete group of neighbours, [R, V // WIDTH]."""
    R, V = x.shape
    G = V // WIDTH
    return x[:, : G * WIDTH].view(R, G, WIDTH).amax(2)


def largest(x: Tensor, n: int, maxima: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(values, indices) of the n largest numbers of each row of x [R, V], each [R, n]: topk, faster on a CPU.

    The n largest are in the n groups with the largest maxima, and maxima are fast. (Of equal numbers it may return
    others than topk.)

    maxima  [R, V // WIDTH], if they are known already
    """
    R, V = x.shape
    G = V // WIDTH
    if x.device.type != "cpu" or G < n:
        return x.topk(n)
    groups = (group_maxima(x) if maxima is None else maxima).topk(n).indices  # [R, n]
    inside = x[:, : G * WIDTH].view(R, G, WIDTH)[torch.arange(R)[:, None], groups]  # [R, n, WIDTH]
    rest = x[:, G * WIDTH :]  # after the last complete group; it counts as one more
    values, order = torch.cat([inside.flatten(1), rest], dim=1).topk(n)  # each [R, n]
    groups = F.pad(groups, (0, 1), value=G)
    return values, groups.gather(1, order // WIDTH) * WIDTH + order % WIDTH
