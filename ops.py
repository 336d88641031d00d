"""What the layers of gpt2.py compute with. Each piece equals a line or two of plain PyTorch, and takes less time on a CPU:

    product      torch.addmm(b, x, W)
    dropout      F.dropout(x, p, training)
    look_up      F.embedding(tokens, W), W
    Padded       the places of a batch that are padding are left out of everything but attention

Whoever reads for the method may take the plain lines for them and go on. tests/test_ops.py holds each to its plain line, gradients
included.

Shapes: B sequences, T places each, N tokens among the B * T that are no padding, H heads, D head size, C = H * D width.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

# ----------------------------------------------------------------------------- x W + b


def product(x: Tensor, W: Tensor, b: Tensor) -> Tensor:
    """x W + b: x [N, n_in], W [n_in, n_out], b [n_out] -> [N, n_out], under autocast rounded as it says."""
    widens = W.size(1) > W.size(0)  # (where the transpose pays: see Product)
    if not (widens and W.requires_grad and torch.is_grad_enabled() and x.device.type == "cpu" and torch.is_autocast_enabled("cpu")):
        return torch.addmm(b, x, W)
    x, W, b = (t.to(torch.get_autocast_dtype("cpu")) for t in (x, W, b))
    return Product.apply(x, W, b)


class Product(torch.autograd.Function):
    """y = x W + b, with x transposed in memory before it is multiplied for dW.

        dx = dy W^T          dW = x^T dy          db = the sum of dy's rows

    oneDNN, which multiplies for PyTorch, reads the left factor of a bf16 product by rows. Where they lie as columns, it takes nearly
    twice as long; that is more than it takes to write them down as rows.
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
    """x^T, ready to be a left factor: [N, C] -> [C, N]. By strips of rows that stay in the cache, faster than `x.t().contiguous()`."""
    if x.device.type != "cpu" or x.dtype != torch.bfloat16:
        return x.t()  # other libraries multiply these, which take them as they lie
    return torch.cat([strip.t() for strip in x.split(32)], dim=1)


# ----------------------------------------------------------------------------- dropout


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """F.dropout: zeros in the place of x with probability p (in steps of 2^-16 on a CPU), else x / (1 - p).

    PyTorch draws 53 random bits for each element, on a CPU one after another in a single thread. 16 serve, and the generator
    SFC64 gives them at twice the speed; PyTorch's own generator draws its seed, so `torch.manual_seed` decides here too.
    """
    if not training or p == 0 or x.device.type != "cpu":
        return F.dropout(x, p, training)
    seed = int(torch.randint(2**63 - 1, ()))
    bits = np.random.SFC64(seed).random_raw(x.numel() // 4 + 1)  # 64 in each
    uniform = torch.from_numpy(bits.view(np.int16))[: x.numel()].view(x.shape)  # -2^15 .. 2^15 - 1
    kept = uniform.ge_(min(round(p * 2**16), 2**16 - 1) - 2**15)  # 0 or 1, in place, as integers: slower as booleans
    return x * kept.to(x.dtype).div_(1 - p)


# ----------------------------------------------------------------------------- one table at both ends


def look_up(W: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """The rows of W [V, C] for these ids, [.., C], and W itself, for its second use: as the output layer."""
    if W.requires_grad and torch.is_grad_enabled():
        return BothEnds.apply(W, tokens)
    return F.embedding(tokens, W), W


class BothEnds(torch.autograd.Function):
    """GPT-2's `wte` is its first layer and its last one. Its gradient is the sum of what comes from either end:

        dW = dW_output + sum_i onehot(token_i) dx_i^T

    Left to itself, PyTorch makes a second table of V rows for the sum, nearly all zeros, and adds the two. Here the few rows are
    added where they belong, in the first (which is nobody else's: it has just been computed for us).
    """

    @staticmethod
    def forward(ctx, W: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(tokens)
        return F.embedding(tokens, W), W.view_as(W)

    @staticmethod
    @once_differentiable
    def backward(ctx, dx: Tensor, dW: Tensor):
        (tokens,) = ctx.saved_tensors
        return dW.index_add_(0, tokens.flatten(), dx.flatten(0, -2).to(dW.dtype)), None


# ----------------------------------------------------------------------------- padding


@dataclass
class Padded:
    """Where the tokens of a padded batch stand: everything but attention is computed for these N alone.

    Attention wants whole sequences, head by head. Rows of D numbers are what is carried to and fro, each whole, so that padding,
    the splitting into heads and the change of order are one copy.
    """

    B: int
    T: int
    H: int
    real: Tensor  # [N] indices into the B * T places, rising

    def __post_init__(self):
        B, T, H, N, device = self.B, self.T, self.H, len(self.real), self.real.device
        token = torch.full((B * T,), -1, device=device).index_copy_(0, self.real, torch.arange(N, device=device)).view(B, 1, T)
        heads = torch.arange(H, device=device)
        b, t = self.real.div(T, rounding_mode="floor"), self.real % T  # each [N]
        # of an array [B, H, T] of rows, the place of each token's heads: [N, H]
        place = (b[:, None] * H + heads) * T + t[:, None]
        # and of an array [N, H], the places of [B, H, T]; where there is no token, one behind the last
        origin = torch.where(token < 0, N * H, token * H + heads[:, None])
        # The same for q, k and v: of [N, 3, H] the places of [3, B, H, T] (any in the place of padding), and back.
        three = torch.arange(3, device=device)
        self.split = ((token.clamp(min=0) * 3 + three.view(3, 1, 1, 1)) * H + heads[:, None]).flatten()  # [3 * B * H * T]
        self.unsplit = (three[:, None] * (B * H * T) + place[:, None]).flatten()  # [N * 3 * H]
        self.join, self.unjoin = place.flatten(), origin.flatten()  # [N * H], [B * H * T]

    def heads(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[N, 3 C] -> q, k, v [B, H, T, D]. In the place of padding stands some token's: no query that counts looks there."""
        D = qkv.size(1) // (3 * self.H)
        rows = Rearranged.apply(qkv.view(-1, D), self.split, self.unsplit, False)  # [3 * B * H * T, D]
        return rows.view(3, self.B, self.H, self.T, D).unbind()

    def tokens(self, y: Tensor) -> Tensor:
        """[B, H, T, D] -> [N, C]: the tokens' heads side by side."""
        rows = Rearranged.apply(y.reshape(-1, y.size(-1)), self.join, self.unjoin, True)  # [N * H, D]
        return rows.view(len(self.real), -1)


class Rearranged(torch.autograd.Function):
    """rows[there], where `back` finds each row again: so the gradient is a rearrangement too, and nothing has to be added up.

    back     of each row that went in, its place among those that came out. Rows that came out twice or more get what one of
             them gets: the others must have no gradient, as padding has none
    absent   whether some did not come out: their place is one behind the last, and their gradient zero
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
