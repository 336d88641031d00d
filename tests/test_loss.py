"""SummedLoss (fast/loss.py) equals PyTorch's cross entropy, gradients included."""

import pytest
import torch
import torch.nn.functional as F

from fast.loss import SummedLoss


@pytest.mark.parametrize("V", [9, 7])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("frozen", [False, True])
def test_the_losss_gradient_is_its_derivative(frozen, V, smoothing):
    """Against finite differences, in double precision; rows behind a vocabulary of 7 count for nothing."""
    x, weight = (
        torch.randn(21, 6, dtype=torch.double, requires_grad=True),
        torch.randn(9, 6, dtype=torch.double, requires_grad=not frozen),
    )
    targets = torch.randint(0, V, (21,))
    plain = F.cross_entropy(x @ weight[:V].t(), targets, reduction="sum", label_smoothing=smoothing)
    torch.testing.assert_close(SummedLoss.apply(x, weight, targets, V, smoothing), plain)
    assert torch.autograd.gradcheck(lambda x, weight: SummedLoss.apply(x, weight, targets, V, smoothing), (x, weight))


@pytest.mark.parametrize("V", [57, 64])
def test_the_loss_rounds_a_more_precise_weight_and_gives_it_its_gradient(V):
    """As bf16 arithmetic on rounded rows does, to bf16's 8 bits; the rows of zeros appended to W do not show."""
    x, targets = torch.randn(21, 6).bfloat16().requires_grad_(), torch.randint(0, V, (21,))
    weight = torch.randn(V, 6, requires_grad=True)
    loss = SummedLoss.apply(x, weight, targets, V)
    dx, dW = torch.autograd.grad(loss, (x, weight))
    plain = F.cross_entropy(x.float() @ weight.bfloat16().float().t(), targets, reduction="sum")
    expected = torch.autograd.grad(plain, (x, weight))
    assert (loss.dtype, dx.dtype, dW.dtype) == (
        torch.float32,
        torch.bfloat16,
        torch.float32,
    ) and dW.shape == weight.shape
    torch.testing.assert_close(loss, plain, rtol=5e-3, atol=0)
    for ours, theirs in zip((dx, dW), expected):
        assert (ours - theirs).norm() < 0.01 * theirs.norm()


def test_the_loss_of_an_impossible_token_is_large_and_finite():
    """p = e^-200 is 0 in single precision; its logarithm is not."""
    x = torch.tensor([[200.0, 0.0]], requires_grad=True)
    loss = SummedLoss.apply(x, torch.eye(2), torch.tensor([1]), 2)
    loss.backward()
    assert loss.item() == pytest.approx(200) and x.grad.tolist() == [[1.0, -1.0]]
