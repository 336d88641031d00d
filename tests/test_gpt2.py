"""The model equals transformers' GPT-2, and its own shortcuts change nothing."""

import copy
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from tiny import lively, write_config

from gpt2 import CONFIGS, GPT2, GPT2Config, KVCache, SummedLoss, dropout
from harness.safetensors import write_safetensors
from harness.tensorflow import read_tensorflow
from weights import load_gpt2

# Each published architecture with its own number of layers, heads and head size in proportion, shrunk.
SHRUNK = {
    "gpt2": GPT2Config(n_layer=12, n_head=12, n_embd=96, n_positions=64, vocab_size=211),
    "gpt2-medium": GPT2Config(n_layer=24, n_head=16, n_embd=128, n_positions=64, vocab_size=211),
    "gpt2-large": GPT2Config(n_layer=36, n_head=20, n_embd=160, n_positions=64, vocab_size=211),
    "gpt2-xl": GPT2Config(n_layer=48, n_head=25, n_embd=200, n_positions=64, vocab_size=211),
}


def save(model: GPT2, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    write_config(folder, model.config)
    write_safetensors(folder / "model.safetensors", model.state_dict(), {})
    return folder


@pytest.fixture(scope="module")
def model():
    return lively(GPT2(GPT2Config(n_layer=3, n_head=4, n_embd=32, n_positions=64, vocab_size=101))).eval()


@pytest.mark.parametrize("name", SHRUNK)
def test_logits_equal_transformers_for_every_published_architecture(name, tmp_path, reference_gpt2):
    shape, full = SHRUNK[name], CONFIGS[name]
    assert (shape.n_layer, shape.n_head) == (full.n_layer, full.n_head)
    folder = save(lively(GPT2(shape), seed=3), tmp_path / name)
    tokens = torch.randint(0, 211, (3, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours, theirs = load_gpt2(str(folder))(tokens), reference_gpt2(folder)(tokens).logits
    assert theirs.abs().max() > 1  # logits that the model's parts have really moved
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_logits_equal_transformers_at_124_million_parameters(tmp_path, reference_gpt2):
    folder = save(GPT2(CONFIGS["gpt2"]).init_weights(5), tmp_path / "gpt2")
    tokens = torch.randint(0, 50257, (2, 50), generator=torch.Generator().manual_seed(0))
    ours = load_gpt2("gpt2", str(folder / "model.safetensors"))
    assert sum(p.numel() for p in ours.parameters()) == 124_439_808
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens), reference_gpt2(folder)(tokens).logits, atol=1e-4, rtol=0)


def test_a_checkpoint_written_by_tensorflow_gives_the_same_logits(tmp_path):
    fixture = Path(__file__).parent / "fixtures" / "tensorflow"
    config = GPT2Config(n_layer=2, n_head=2, n_embd=8, n_positions=16, vocab_size=31)
    write_config(tmp_path, config)
    ours = load_gpt2(str(tmp_path), str(fixture))

    # The reference gets its weights from TensorFlow's own reading of the file, by names spelled out here.
    arrays = np.load(fixture / "as_tensorflow_reads_it.npz")
    theirs = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(**json.loads((tmp_path / "config.json").read_text()))
    ).eval()
    state = {"wte.weight": arrays["model/wte"], "wpe.weight": arrays["model/wpe"]}
    state |= {"ln_f.weight": arrays["model/ln_f/g"], "ln_f.bias": arrays["model/ln_f/b"]}
    for layer in range(2):
        for part in ("ln_1", "ln_2"):
            state[f"h.{layer}.{part}.weight"] = arrays[f"model/h{layer}/{part}/g"]
            state[f"h.{layer}.{part}.bias"] = arrays[f"model/h{layer}/{part}/b"]
        for part in ("attn/c_attn", "attn/c_proj", "mlp/c_fc", "mlp/c_proj"):
            state[f"h.{layer}.{part.replace('/', '.')}.weight"] = arrays[f"model/h{layer}/{part}/w"][0]
            state[f"h.{layer}.{part.replace('/', '.')}.bias"] = arrays[f"model/h{layer}/{part}/b"]
    theirs.transformer.load_state_dict({key: torch.from_numpy(value) for key, value in state.items()})
    assert len(list(read_tensorflow(fixture / "model.ckpt.index"))) == len(state)

    tokens = torch.arange(12).view(1, 12) * 2
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens), theirs(tokens).logits, atol=1e-4, rtol=0)


@torch.no_grad()
def test_reading_piece_by_piece_with_a_cache_equals_reading_at_once(model):
    tokens = torch.randint(0, 101, (2, 20))
    cache = KVCache(room=15)
    pieces = [model(tokens[:, a:b], cache=cache) for a, b in ((0, 5), (5, 6), (6, 11), (11, 20))]
    torch.testing.assert_close(torch.cat(pieces, dim=1), model(tokens), atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="room for 20 entries, not for 21"):
        model(tokens[:, :1], cache=cache)


@torch.no_grad()
def test_selected_rows_of_a_cache_go_on_by_themselves(model):
    tokens = torch.randint(0, 101, (3, 8))
    for rows in ([2, 0], [1, 1, 0]):  # fewer rows, and as many
        cache = KVCache(room=3)
        model(tokens[:, :6], cache=cache)
        cache.select(torch.tensor(rows))
        torch.testing.assert_close(model(tokens[rows, 6:], cache=cache), model(tokens[rows])[:, 6:], atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_cache_takes_whole_rows_alone(model):
    with pytest.raises(ValueError, match="a cache holds whole rows"):
        model(torch.zeros(2, 4, dtype=torch.long), cache=KVCache(room=1), real=torch.arange(6), at=torch.tensor([3]))


@torch.no_grad()
def test_logits_only_where_asked_equal_the_same_places_of_all_logits(model):
    tokens = torch.randint(0, 101, (3, 7))
    at = torch.tensor([0, 6, 9, 20])
    torch.testing.assert_close(model(tokens, at=at), model(tokens).flatten(0, 1)[at], atol=1e-5, rtol=0)


@torch.no_grad()
def test_padding_on_the_right_changes_nothing_before_it(model):
    tokens = torch.randint(0, 101, (2, 9))
    padded = torch.cat([tokens, torch.full((2, 4), 100)], dim=1)
    torch.testing.assert_close(model(padded)[:, :9], model(tokens), atol=1e-5, rtol=0)


def ragged(lengths: tuple[int, ...], vocab_size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random tokens [B, T] padded on the right with the last id, the places that are no padding, and some of those."""
    T = max(lengths)
    tokens = torch.randint(0, vocab_size - 1, (len(lengths), T))
    real = torch.tensor([row * T + t for row, n in enumerate(lengths) for t in range(n)])
    for row, n in enumerate(lengths):
        tokens[row, n:] = vocab_size - 1
    return tokens, real, real[1::3].clone()


@torch.no_grad()
@pytest.mark.parametrize("lengths", [(7, 3, 9), (4, 4), (1, 8)])
def test_leaving_padding_out_of_the_layers_changes_no_logits(model, lengths):
    tokens, real, at = ragged(lengths, 101)
    torch.testing.assert_close(model(tokens, at=at, real=real), model(tokens, at=at), atol=1e-5, rtol=0)


@pytest.mark.parametrize("padding", ["left out", "computed too"])
def test_the_loss_and_its_gradients_are_those_of_the_plain_cross_entropy(model, padding):
    """For all weights; more scored places than are worked on at a time."""
    model = lively(GPT2(model.config))
    tokens, real, at = ragged((40, 9, 33), 101)
    targets = torch.randint(0, 101, (len(at),))
    plain = F.cross_entropy(model(tokens, at=at), targets, reduction="sum")
    expected = torch.autograd.grad(plain, list(model.parameters()))
    loss = model(tokens, at=at, real=real if padding == "left out" else None, targets=targets)
    torch.testing.assert_close(loss, plain, atol=1e-4, rtol=1e-6)
    for gradient, its in zip(torch.autograd.grad(loss, list(model.parameters())), expected):
        torch.testing.assert_close(gradient, its, atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(model(tokens, at=at, real=real, targets=targets), plain, atol=1e-4, rtol=1e-6)


@pytest.mark.parametrize("V", [9, 7])
@pytest.mark.parametrize("frozen", [False, True])
def test_the_losss_gradient_is_its_derivative(frozen, V):
    """Against finite differences, in double precision; rows behind a vocabulary of 7 count for nothing."""
    x, weight = (
        torch.randn(21, 6, dtype=torch.double, requires_grad=True),
        torch.randn(9, 6, dtype=torch.double, requires_grad=not frozen),
    )
    targets = torch.randint(0, V, (21,))
    plain = F.cross_entropy(x @ weight[:V].t(), targets, reduction="sum")
    torch.testing.assert_close(SummedLoss.apply(x, weight, targets, V), plain)
    assert torch.autograd.gradcheck(lambda x, weight: SummedLoss.apply(x, weight, targets, V), (x, weight))


@pytest.mark.parametrize("V", [57, 64])
def test_the_loss_rounds_a_more_precise_weight_and_gives_it_its_gradient(V):
    """As bf16 arithmetic on rounded rows does, to bf16's 8 significant bits; rows added for a round number of them are nowhere to be seen."""
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


def test_the_embeddings_gradient_is_that_of_both_of_its_uses(model):
    tokens, targets = torch.tensor([[3, 5, 3, 3, 9]]), torch.tensor([5, 3, 3, 9])
    model = copy.deepcopy(model)
    for _ in range(2):  # the second adds to what is there
        model(tokens, at=torch.arange(4), targets=targets).backward()
    lookup, head = (model.wte.weight.detach().double().requires_grad_() for _ in range(2))
    double = copy.deepcopy(model).double()
    x = double.run(lookup[tokens] + double.wpe.weight[:5])
    F.cross_entropy(x[0, :4] @ head.t(), targets, reduction="sum").backward()
    assert torch.allclose(model.wte.weight.grad.double(), 2 * (lookup.grad + head.grad), atol=1e-5)
    assert lookup.grad[3].abs().max() > 1e-3  # of a word that is there three times


def test_dropout_acts_in_training_mode_only():
    model = lively(GPT2(GPT2Config(2, 2, 16, 16, 50), dropout=0.5))
    tokens = torch.arange(8).view(1, 8)
    assert not torch.equal(model.train()(tokens), model(tokens))
    assert torch.equal(model.eval()(tokens), model(tokens))


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


def test_more_tokens_than_positions_are_refused(model):
    with pytest.raises(ValueError, match="65 tokens do not fit into GPT-2's context of 64"):
        model(torch.zeros(1, 65, dtype=torch.long))


def test_logits_are_fp32_where_no_gradient_is_wanted_even_under_autocast(model):
    tokens = torch.randint(0, 101, (1, 8))
    with torch.autocast("cpu", torch.bfloat16):
        assert model(tokens).dtype == torch.bfloat16
        with torch.no_grad():
            assert model(tokens).dtype == torch.float32
