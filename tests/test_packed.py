"""A packed model decodes what the plain one does, to bf16's rounding and closer to fp32."""

import packed as packed_module
import pytest
import torch
from tiny import lively

from beam import beam_search, next_words
from fast.prepacked import TwoRounds, can_pack, pack
from gpt2 import GPT2, GPT2Config
from harness.machine import autocast
from harness.runs import place
from harness.settings import Settings
from prefix import MODES

CONFIG = GPT2Config(n_layer=3, n_head=4, n_embd=64, n_positions=128, vocab_size=1001)
bf16, fp32 = (Settings(mode="finetune", device="cpu", dtype=dtype) for dtype in ("bf16", "fp32"))

needs_packing = pytest.mark.skipif(not can_pack(), reason="this processor or this PyTorch has no packed products")


def make(settings: Settings, mode: str | None = None) -> GPT2:
    model, prefix = lively(GPT2(CONFIG)), None
    if mode is not None:
        torch.manual_seed(1)
        prefix = MODES[mode](CONFIG, 4, mid_dim=0).requires_grad_(False)
    return place(model.requires_grad_(False), prefix, settings).eval()


def prompts(n: int, seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(
        3, 20, (n,), generator=generator
    ).tolist()  # the last token of all: the separator, which an infix needs
    return [torch.randint(0, 1000, (length,), generator=generator).tolist() + [1000] for length in lengths]


@needs_packing
@pytest.mark.parametrize("mode", [None, *MODES])
def test_texts_and_states_are_those_of_the_model_that_is_not_packed(mode):
    plain, ready, exact = make(bf16, mode), pack(make(bf16, mode)), make(fp32, mode)
    assert ready.two_rounds is not None and plain.two_rounds is None
    with torch.inference_mode():
        tokens = torch.tensor([p[:3] + [1000, 5] for p in prompts(6)])
        with autocast(bf16):
            states = [model(tokens, states=True).float() for model in (plain, ready)]
        truth = exact(tokens, states=True)
    assert truth.std() > 0.5
    off = [(x - truth).norm() / truth.norm() for x in states]
    assert off[1] < 0.02 and off[1] < 1.2 * off[0]  # no further from fp32 than rounding makes the plain model
    found = {}
    for name, model, settings in (("plain", plain, bf16), ("ready", ready, bf16), ("exact", exact, fp32)):
        with autocast(settings):
            found[name] = beam_search(model, prompts(40), 1000, 5, 12, "output", banned=(7, 8, 1000))
    same = {name: sum(a == b for a, b in zip(found[name], found["exact"])) for name in ("plain", "ready")}
    assert same["ready"] >= 25 and same["ready"] >= same["plain"] - 4, (
        same
    )  # (an untrained model's candidates are close together)


@needs_packing
def test_two_rounds_find_log_p_of_the_best_words_where_bf16_loses_it():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(5003, 64, generator=generator) * 0.3
    x = torch.randn(37, 64, generator=generator)
    weight += 2 * torch.sign(x.mean(0))  # logits far from zero, alike for all words, as GPT-2's are
    x += 0.6 * torch.sign(x.mean(0))
    logits = x.double() @ weight.double().t()
    assert logits.abs().mean() > 40
    banned = (int(logits[0].argmax()), int(logits[1].argmax()), 5002)
    log_p = logits.log_softmax(1)  # banned words keep their share
    log_p[:, list(banned)] = -torch.inf
    expected, ids = log_p.topk(10)
    found, words = TwoRounds(weight)(x, 10, banned)
    assert torch.equal(words, ids)
    torch.testing.assert_close(found.double(), expected, atol=3e-3, rtol=0)
    coarse = logits.bfloat16().double().log_softmax(1).gather(1, ids)
    assert (coarse - expected).abs().max() > 0.1


@needs_packing
def test_a_banned_word_however_likely_does_not_overflow():
    weight = torch.zeros(64, 8)
    weight[5], weight[6] = 100.0, 1.0
    found, words = TwoRounds(weight)(torch.ones(1, 8), 2, (5,))
    assert words[0, 0] == 6 and found[0, 0].item() == pytest.approx(
        -792, rel=1e-3
    )  # far behind the banned one, and finite
    assert torch.isfinite(found).all()


@needs_packing
def test_few_words_and_many_beams():
    weight = torch.randn(23, 32, generator=torch.Generator().manual_seed(0))
    x = torch.randn(3, 32, generator=torch.Generator().manual_seed(1))
    found, words = TwoRounds(weight)(x, 20, (0, 1, 2))  # all that are left
    assert [sorted(row) for row in words.tolist()] == [list(range(3, 23))] * 3
    torch.testing.assert_close(found, (x @ weight.t()).log_softmax(1).gather(1, words), atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match="a vocabulary of 1001 is too small for 501 beams"), autocast(bf16):
        beam_search(pack(make(bf16)), prompts(1), 1000, beam_size=501)


def test_what_cannot_be_packed_is_left_as_it_is(monkeypatch):
    model = make(fp32)
    before = model.h[0].mlp
    assert pack(model) is model and model.two_rounds is None and model.h[0].mlp is before
    monkeypatch.setattr(packed_module, "can_pack", lambda: False)
    model = make(bf16)
    assert pack(model) is model and model.two_rounds is None


@needs_packing
def test_packing_twice_is_packing_once():
    model = pack(make(bf16))
    rounds = model.two_rounds
    assert pack(model).two_rounds is rounds


@needs_packing
def test_a_packed_model_does_not_train():
    model = pack(make(bf16))
    MODES["prefix"](CONFIG, 4, mid_dim=0).attach(model)
    with autocast(bf16), pytest.raises(RuntimeError, match="decoding alone"):
        model(torch.tensor([[1, 2, 1000]]), at=torch.tensor([2]), targets=torch.tensor([5]))


@pytest.mark.parametrize("error", [AttributeError("no such operator"), RuntimeError("bf16 is not for this processor")])
def test_a_pytorch_without_packed_products_is_found_out(monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(packed_module, "packed", fail)
    assert not can_pack.__wrapped__()


def test_a_pytorch_whose_packed_products_are_wrong_is_found_out(monkeypatch):
    monkeypatch.setattr(packed_module, "packed", lambda W: W)
    monkeypatch.setattr(packed_module, "packed_product", lambda x, W, b: x.new_zeros(len(x), len(W)))
    assert not can_pack.__wrapped__()


@needs_packing
def test_the_best_words_are_the_plain_models():
    plain, ready = make(bf16), pack(make(bf16))
    tokens = torch.randint(0, 1001, (30, 9), generator=torch.Generator().manual_seed(3))
    last = torch.arange(30) * 9 + 8
    with torch.inference_mode(), autocast(bf16):
        (a, i), (b, j) = (next_words(model, tokens, 10, (3,), at=last) for model in (plain, ready))
    assert (i[:, 0] == j[:, 0]).float().mean() > 0.9 and 3 not in j
    torch.testing.assert_close(a, b, atol=0.1, rtol=0)
