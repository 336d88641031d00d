"""Operations of the fast path. Each equals a line or two of plain PyTorch and takes less time on a CPU:

    product           torch.addmm(b, x, W)
    dropout           F.dropout(x, p, training)
    tied_embedding    F.embedding(tokens, W), W
    TokenPacking      removes the padding of a batch from everything but attention

tests/test_ops.py holds each to its plain line, gradients included.

Shapes: B sequences of T places, N tokens among the B * T that are not padding, H heads, D head size, C = H * D width.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

# ----------------------------------------------------------------------------- x W + b


def product(x: Tensor, W: Tensor, b: Tensor) -> Tensor:
    """x W + b: x [N, n_in], W [n_in, n_out], b [n_out] -> [N, n_out], in the precision that autocast sets."""
    widens = W.size(1) > W.size(0)  # copying x takes time with n_in, what it saves grows with n_in n_out
    if not (
        widens
        and W.requires_grad
        and torch.is_grad_enabled()
        and x.device.type == "cpu"
        and torch.is_autocast_enabled("cpu")
    ):
        return torch.addmm(b, x, W)
    x, W, b = (t.to(torch.get_autocast_dtype("cpu")) for t in (x, W, b))
    return Product.apply(x, W, b)


class Product(torch.autograd.Function):
    """y = x W + b, whose backward pass transposes x in memory before the product for dW.

        dx = dy W^T          dW = x^T dy          db = the sum of dy's rows

    oneDNN reads the left factor of a bf16 product by rows. If it is stored by columns the product takes nearly twice as
    long, and that costs more than copying it into rows first.
    """

    @staticmethod
    def forward(ctx, x: Tensor, W: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(x, W)
        return torch.addmm(b, x, W)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy: Tensor):
        x, W = ctx.saved_tensors
        return dy @ W.t(), transposed(x) @ dy, dy.sum(0)


def transposed(x: Tensor) -> Tensor:
    """x^T stored by rows, [N, C] -> [C, N]. In strips that stay in the cache, faster than `x.t().contiguous()`."""
    if x.device.type != "cpu" or x.dtype != torch.bfloat16:
        return x.t()  # other libraries do these products; they accept either layout
    return torch.cat([strip.t() for strip in x.split(32)], dim=1)


# ----------------------------------------------------------------------------- dropout


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """F.dropout: 0 with probability p (in steps of 2^-16 on a CPU), else x / (1 - p).

    On a CPU, PyTorch draws 53 random bits for each element in a single thread. 16 are enough, and the generator SFC64
    gives them at twice the speed. Its seed is drawn from PyTorch's generator, so `torch.manual_seed` decides here too.
    """
    if not training or p == 0 or x.device.type != "cpu":
        return F.dropout(x, p, training)
    seed = int(torch.randint(2**63 - 1, ()))
    bits = np.random.SFC64(seed).random_raw(x.numel() // 4 + 1)  # 64 random bits each
    uniform = torch.from_numpy(bits.view(np.int16))[: x.numel()].view(x.shape)  # -2^15 .. 2^15 - 1
    # 0 or 1 as integers, in place: booleans would be slower.
    kept = uniform.ge_(min(round(p * 2**16), 2**16 - 1) - 2**15)
    return x * kept.to(x.dtype).div_(1 - p)


# ----------------------------------------------------------------------------- the tied embedding


def tied_embedding(W: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """(the rows of W [V, C] for these ids, [.., C]; W for its second use, as the output layer)."""
    if W.requires_grad and torch.is_grad_enabled():
        return TiedEmbedding.apply(W, tokens)
    return F.embedding(tokens, W), W


class TiedEmbedding(torch.autograd.Function):
    """`wte` is GPT-2's first layer and its last. Its gradient is the sum of both uses:

        dW = dW_output + sum_i onehot(token_i) dx_i^T

    PyTorch would fill a second table of V rows with dx, nearly all zeros, and add the two. Here the few rows are added
    in place to the first. That is safe for one product as the second use: it has just computed dW, and nothing else
    holds it.
    """

    @staticmethod
    def forward(ctx, W: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(tokens)
        return F.embedding(tokens, W), W.view_as(W)

    @staticmethod
    @once_differentiable
    def backward(ctx, dx: Tensor, dW: Tensor):
        (tokens,) = ctx.saved_tensors
        if 0 in dW.stride():  # an expanded gradient (of a sum, say): its elements share memory
            dW = dW.contiguous()
        return dW.index_add_(0, tokens.flatten(), dx.flatten(0, -2).to(dW.dtype)), None


# ----------------------------------------------------------------------------- padding


@dataclass
class TokenPacking:
    """Removes the padding of a batch: everything but attention is computed for the N real tokens only.

    Attention needs whole sequences, head by head. Rows of D numbers are moved, so that padding, splitting into heads
    and transposing are one copy.
    """

    B: int
    T: int
    H: int
    real: Tensor  # [N] indices into the B * T places, ascending

    def __post_init__(self):
        B, T, H, N, device = self.B, self.T, self.H, len(self.real), self.real.device
        token = (
            torch.full((B * T,), -1, device=device)
            .index_copy_(0, self.real, torch.arange(N, device=device))
            .view(B, 1, T)
        )
        heads = torch.arange(H, device=device)
        b, t = self.real.div(T, rounding_mode="floor"), self.real % T  # each [N]
        # in an array [B, H, T] of rows, the index of each token's heads: [N, H]
        place = (b[:, None] * H + heads) * T + t[:, None]
        # in an array [N, H], the index of each row of [B, H, T]; N * H, one past the end, where there is no token
        origin = torch.where(token < 0, N * H, token * H + heads[:, None])
        # The same for q, k and v: in [N, 3, H] the index of each row of [3, B, H, T] (any for padding), and the
        # inverse.
        three = torch.arange(3, device=device)
        self.split = (
            (token.clamp(min=0) * 3 + three.view(3, 1, 1, 1)) * H + heads[:, None]
        ).flatten()  # [3 * B * H * T]
        self.unsplit = (three[:, None] * (B * H * T) + place[:, None]).flatten()  # [N * 3 * H]
        self.join, self.unjoin = place.flatten(), origin.flatten()  # [N * H], [B * H * T]

    def heads(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[N, 3 C] -> q, k, v, each [B, H, T, D]. Padding holds some token's numbers: no real query attends to it."""
        D = qkv.size(1) // (3 * self.H)
        rows = Rearranged.apply(qkv.view(-1, D), self.split, self.unsplit, False)  # [3 * B * H * T, D]
        return rows.view(3, self.B, self.H, self.T, D).unbind()

    def tokens(self, y: Tensor) -> Tensor:
        """[B, H, T, D] -> [N, C]: the tokens' heads concatenated."""
        rows = Rearranged.apply(y.reshape(-1, y.size(-1)), self.join, self.unjoin, True)  # [N * H, D]
        return rows.view(len(self.real), -1)


class Rearranged(torch.autograd.Function):
    """rows[there], whose gradient is a rearrangement too, by the inverse `back`, with nothing to add up.

    back     for each input row, its index among the output rows. A row that came out several times gets the gradient of
             one of them: the others must have none, as padding has none
    absent   some input rows did not come out: their index is one past the end, and their gradient zero
    """

    @staticmethod
    def forward(ctx, rows: Tensor, there: Tensor, back: Tensor, absent: bool) -> Tensor:
        ctx.save_for_backward(back)
        ctx.absent = absent
        return rows.index_select(0, there)

    @staticmethod
    @once_differentiable
    def backward(ctx, d: Tensor):
        (back,) = ctx.saved_tensors
        if ctx.absent:
            d = torch.cat([d, d.new_zeros(1, d.size(1))])
        return d.index_select(0, back), None, None, None
