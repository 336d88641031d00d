"""The loss of a language model, summed over the tokens y_1 .. y_M that follow, and its gradient at once:

    loss  =  - sum_i log p_i[y_i]     with p = softmax(x W^T)

    dx = (p - onehot(y)) W            dW = (p - onehot(y))^T x

x are the M outputs of the last LayerNorm, W the rows of `wte`. PyTorch's own cross entropy keeps logits and probabilities,
[M, V], for the backward pass, four copies in all, where V is 50,257. Here there is one, in which logits become p - onehot(y),
on a CPU a few rows at a time, so that these stay in its cache.

Shapes: M scored places, C width, V vocabulary, V' >= V rows of W.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ops import transposed

# oneDNN, which multiplies matrices for PyTorch on CPUs, compiles a kernel for every shape that is new to it: a millisecond each,
# as long as some products take. Batches of text all have shapes of their own, so lengths are rounded up, and few shapes are left.
STEP = 16


class SummedLoss(torch.autograd.Function):
    """(x [M, C], W [V', C], y [M] ids, V) -> the loss in nats, in fp32 or better. W's rows behind V count for nothing.

    W may be in a higher precision than x: it is rounded to x's, and its gradient too.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, targets: Tensor, V: int) -> Tensor:
        M = len(x)
        x = F.pad(x, (0, 0, 0, -M % STEP))
        n_rows, weight = len(weight), rounded(weight, x.dtype)
        table = x @ weight.t()  # logits [M, V'], and some rows more
        table[M:] = 0
        table[:M, V:] = -torch.inf
        loss = x.new_zeros((), dtype=torch.promote_types(x.dtype, torch.float32))
        for rows, y in zip(*(t.split(16 if x.device.type == "cpu" else M) for t in (table[:M], targets.unsqueeze(1)))):
            p = rows.to(loss.dtype).log_softmax(dim=1)
            loss -= p.gather(1, y).sum()
            p.exp_().scatter_add_(1, y, torch.full_like(y, -1, dtype=p.dtype))  # p - onehot(y)
            rows.copy_(p)
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight, table)
        ctx.M, ctx.n_rows = M, n_rows
        return loss

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, weight, table = ctx.saved_tensors
        dx = grad * (table @ weight)[: ctx.M]
        dW = None if x is None else (transposed(table) @ (grad * x))[: ctx.n_rows]  # (why transposed: ops.py)
        return dx, dW, None, None


def rounded(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """W in another precision, with rows of zeros behind its own, [V', C], where V' is a multiple of 32; in its own precision W itself.

    GPT-2's 50,257 is an awkward number: products with 50,272 rows take less time.
    """
    if weight.dtype == dtype:
        return weight
    V = len(weight)
    table = weight.new_empty(V + -V % 32, weight.size(1), dtype=dtype)
    table[:V] = weight
    table[V:] = 0
    return table
