"""The loss, summed over the scored tokens y_1 .. y_M, with its gradient computed in the forward pass:

    loss  =  - sum_i log p_i[y_i]     with p = softmax(x W^T)

    dx = (p - onehot(y)) W            dW = (p - onehot(y))^T x

With label smoothing s, (1 - s) onehot(y) + s / V takes the place of onehot(y).

x are the M outputs of the last LayerNorm, W the rows of `wte`. PyTorch's cross entropy keeps logits and probabilities,
[M, V], for the backward pass, four copies in all, and V is 50,257. Here there is one, in which logits become
p - onehot(y); on a CPU a few rows at a time, so that they stay in its cache.

Shapes: M scored tokens, C width, V vocabulary, V' >= V rows of W.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from fast.ops import transposed

# oneDNN, which multiplies matrices for PyTorch on CPUs, compiles a kernel for every new shape, about a millisecond
# each, as long as some products take. Every batch of text has a shape of its own, so lengths are rounded up to a few
# shapes.
SHAPE_MULTIPLE = 16


class SummedLoss(torch.autograd.Function):
    """(x [M, C], W [V', C], y [M] ids, V, s) -> the loss in nats, in fp32 or better. Rows of W beyond V do not count.

    W may have a higher precision than x: it is rounded to x's, and its gradient too.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, targets: Tensor, V: int, smoothing: float = 0.0) -> Tensor:
        M = len(x)
        x = F.pad(x, (0, 0, 0, -M % SHAPE_MULTIPLE))
        n_rows, weight = len(weight), padded_cast(weight, x.dtype)
        table = x @ weight.t()  # logits [M, V'], and a few more rows
        table[M:] = 0
        table[:M, V:] = -torch.inf
        loss = x.new_zeros((), dtype=torch.promote_types(x.dtype, torch.float32))
        for rows, y in zip(*(t.split(16 if x.device.type == "cpu" else M) for t in (table[:M], targets.unsqueeze(1)))):
            p = rows.to(loss.dtype).log_softmax(dim=1)
            loss -= (1 - smoothing) * p.gather(1, y).sum()
            if smoothing:
                loss -= smoothing / V * p[:, :V].sum()
            p.exp_().scatter_add_(1, y, torch.full_like(y, smoothing - 1, dtype=p.dtype))  # p - onehot(y)
            if smoothing:
                p[:, :V] -= smoothing / V
            rows.copy_(p)
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight, table)
        ctx.M, ctx.n_rows = M, n_rows
        return loss

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, weight, table = ctx.saved_tensors
        dx = grad * (table @ weight)[: ctx.M]
        dW = None if x is None else (transposed(table) @ (grad * x))[: ctx.n_rows]  # (ops.Product says why transposed)
        return dx, dW, None, None, None


def padded_cast(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """W in another precision, [V', C], with rows of zeros appended to make V' a multiple of 32; W itself if it has it.

    GPT-2's 50,257 is an awkward size: products with 50,272 rows are faster.
    """
    if weight.dtype == dtype:
        return weight
    V = len(weight)
    table = weight.new_empty(V + -V % 32, weight.size(1), dtype=dtype)
    table[:V] = weight
    table[V:] = 0
    return table
