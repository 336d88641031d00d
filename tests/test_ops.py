"""Each operation of fast/ops.py equals its plain line of PyTorch, gradients included."""

import math

import pytest
import torch
import torch.nn.functional as F

from fast.ops import Product, TokenPacking, dropout, product, tied_embedding, transposed
from fast.training import summed_loss
from gpt2 import GPT2, GPT2Config

REAL = torch.tensor([0, 1, 2, 5, 10, 11, 12, 13])  # of 3 sequences of 5 places, 3, 1 and 4 tokens


@pytest.mark.parametrize("shape", [(64, 6), (33, 5), (1, 3), (7, 1)])
def test_transposed_is_the_transpose_laid_out_by_rows(shape):
    x = torch.randn(shape).bfloat16()
    assert torch.equal(transposed(x), x.t()) and transposed(x).is_contiguous()


def test_the_products_gradients_are_its_derivatives():
    x, W, b = (torch.randn(*shape, dtype=torch.double, requires_grad=True) for shape in ((35, 3), (3, 5), (5,)))
    assert torch.equal(Product.apply(x, W, b), torch.addmm(b, x, W))
    assert torch.autograd.gradcheck(Product.apply, (x, W, b))


@pytest.mark.parametrize("n_in, n_out", [(24, 72), (72, 24)])
def test_under_autocast_product_is_the_plain_product(n_in, n_out):
    """The wide one takes its own way; both give what PyTorch's product gives, and fp32 gradients to fp32 weights."""
    x, W, b, dy = torch.randn(50, n_in), torch.randn(n_in, n_out), torch.randn(n_out), torch.randn(50, n_out)
    found = []
    for function in (product, lambda x, W, b: torch.addmm(b, x, W)):
        leaves = [t.clone().requires_grad_() for t in (x, W, b)]
        with torch.autocast("cpu", torch.bfloat16):
            y = function(*leaves)
        found.append((y, *torch.autograd.grad(y, leaves, dy.bfloat16())))
        if function is product:
            assert (type(y.grad_fn).__name__ == "ProductBackward") == (n_out > n_in)
    for ours, plain in zip(*found):
        assert ours.dtype == plain.dtype
        torch.testing.assert_close(ours, plain, rtol=0.02, atol=0.05)


def test_what_needs_no_gradient_for_its_weight_is_multiplied_plainly():
    x, W, b = torch.randn(40, 4, requires_grad=True), torch.randn(4, 8), torch.randn(8)
    with torch.autocast("cpu", torch.bfloat16):
        assert type(product(x, W, b).grad_fn).__name__ == "AddmmBackward0"  # frozen
        with torch.no_grad():
            assert product(x, W.requires_grad_(), b).dtype == torch.bfloat16
    assert torch.equal(product(x, W, b), torch.addmm(b, x, W))  # in fp32


def test_a_table_used_at_both_ends_has_the_gradient_of_both():
    W = torch.randn(7, 4, dtype=torch.double, requires_grad=True)
    tokens = torch.tensor([[2, 2, 5], [0, 2, 6]])  # one of them three times

    def both(W, tied_embedding=tied_embedding):
        x, again = tied_embedding(W, tokens)
        return torch.tanh(x) @ again.t()

    plain = both(W, lambda W, tokens: (F.embedding(tokens, W), W))
    assert torch.equal(both(W), plain)
    weights = torch.randn_like(plain)
    (expected,) = torch.autograd.grad((plain * weights).sum(), W)
    (found,) = torch.autograd.grad((both(W) * weights).sum(), W)
    torch.testing.assert_close(found, expected)
    assert torch.autograd.gradcheck(both, W)
    for _ in range(2):  # the second adds to what is there
        (both(W) * weights).sum().backward()
    torch.testing.assert_close(W.grad, 2 * expected)


def test_a_table_used_at_one_end_has_the_gradient_of_that():
    W, tokens = torch.randn(5, 3, requires_grad=True), torch.tensor([1, 1, 4])
    (first,) = torch.autograd.grad(tied_embedding(W, tokens)[0].sum(), W)
    assert first.sum(1).tolist() == [0, 6, 0, 0, 3]
    (last,) = torch.autograd.grad((torch.ones(2, 3) @ tied_embedding(W, tokens)[1].t()).sum(), W)
    assert torch.equal(last, torch.full((5, 3), 2.0))
    with torch.no_grad():
        assert tied_embedding(W, tokens)[1] is W


def test_a_table_whose_second_gradient_is_expanded():
    """As that of a sum is: its elements share memory, so nothing can be added in place."""
    W, tokens = torch.randn(5, 3, requires_grad=True), torch.tensor([1, 1, 4])
    rows, table = tied_embedding(W, tokens)
    (rows.sum() + table.sum()).backward()
    assert W.grad.tolist() == [[1.0] * 3, [3.0] * 3, [1.0] * 3, [1.0] * 3, [2.0] * 3]


def test_the_models_own_table_gets_no_second_one_for_the_sum():
    """Its gradient reaches it through one node, for backward() and for autograd.grad alike."""
    model = GPT2(GPT2Config(2, 2, 8, 16, 11)).init_weights()
    loss = summed_loss(model, (torch.tensor([[1, 2, 4]]), torch.tensor([[-100, -100, 4]])))
    (whole,) = torch.autograd.grad(loss, model.wte.weight, retain_graph=True)
    loss.backward()
    assert torch.equal(whole, model.wte.weight.grad)
    seen, into = set(), []
    nodes = [loss.grad_fn]
    while nodes:
        node = nodes.pop()
        if node in seen:
            continue
        seen.add(node)
        for following, _ in node.next_functions:
            if following is not None:
                if getattr(following, "variable", None) is model.wte.weight:
                    into.append(type(node).__name__)
                nodes.append(following)
    assert into == ["TiedEmbeddingBackward"]


def test_padded_carries_every_tokens_heads_to_their_places_and_back():
    B, T, H, D = 3, 5, 2, 4
    padded = TokenPacking(B, T, H, REAL)
    qkv = torch.randn(len(REAL), 3 * H * D)
    for part, laid_out in zip(qkv.chunk(3, dim=1), padded.heads(qkv)):
        assert laid_out.shape == (B, H, T, D)
        for n, place in enumerate(REAL.tolist()):
            for h in range(H):
                assert torch.equal(laid_out[place // T, h, place % T], part[n, h * D : (h + 1) * D])
        assert torch.equal(padded.tokens(laid_out), part)
        assert torch.equal(padded.tokens(laid_out.transpose(1, 2).contiguous().transpose(1, 2)), part), "of any layout"


def test_paddeds_gradients_are_those_of_the_places_that_count():
    B, T, H, D = 3, 5, 2, 4
    padded = TokenPacking(B, T, H, REAL)
    y = torch.randn(B, H, T, D, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(padded.tokens, y)  # zero where the padding is
    qkv = torch.randn(len(REAL), 3 * H * D, dtype=torch.double, requires_grad=True)
    weights = torch.randn(3, len(REAL), H * D, dtype=torch.double)  # padding is not looked at
    assert torch.autograd.gradcheck(
        lambda qkv: sum((padded.tokens(t) * w).sum() for t, w in zip(padded.heads(qkv), weights)), qkv
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_drops_the_stated_share_and_scales_up_what_is_left(dtype):
    x = torch.full((301, 101, 7), 0.75, dtype=dtype, requires_grad=True)  # 212,807 numbers, not a multiple of four
    for p in (0.1, 0.5, 1e-9):
        torch.manual_seed(1)
        y = dropout(x, p, training=True)
        kept = torch.tensor(0.75, dtype=dtype) * torch.tensor(1 / (1 - p), dtype=dtype)
        assert y.dtype == dtype and torch.equal(
            y.unique(), torch.unique(torch.stack([kept, *([0 * kept] if p > 1e-5 else [])]))
        )
        n = x.numel()
        assert abs((y == 0).sum().item() - n * p) < 5 * math.sqrt(n * p * (1 - p)) + 1
        for part in (
            y.flatten().unfold(0, 8, 8).T
        ):  # no place of a random number's 64 bits has another share than the others
            assert abs((part == 0).float().mean().item() - p) < 5 * math.sqrt(p * (1 - p) / len(part)) + 1e-9
        torch.manual_seed(1)
        assert torch.equal(dropout(x, p, training=True), y), "the same seed, the same noise"
        (gradient,) = torch.autograd.grad(y.sum(), x)
        assert torch.equal(gradient == 0, y == 0)
    assert (dropout(x, 1 - 1e-6, training=True) == 0).float().mean() > 0.999
    assert dropout(x, 0.0, training=True) is not None and torch.equal(dropout(x, 0.3, training=False), x)
