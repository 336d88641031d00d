"""A packed model finds what the unpacked one does, up to bf16's rounding, and is closer to fp32.

Packed products exist on CPUs with bf16 arithmetic. On others, `packed` and `packed_product` are replaced by the same
product in plain PyTorch, so that everything around them is tested there too.
"""

import pytest
import torch
import torch.nn.functional as F
from tiny import lively

import fast.decoding
import fast.prepacked
from beam import beam_search
from fast import NextWords, pack, summed_loss
from fast.decoding import hidden_states
from fast.prepacked import TwoRounds, can_pack
from fast.tree import BeamTree
from gpt2 import GPT2, GPT2Config
from harness.door import Engine
from prefix import MODES

CONFIG = GPT2Config(n_layer=3, n_head=4, n_embd=64, n_positions=128, vocab_size=1001)
bf16, fp32 = (Engine(False, "cpu", dtype) for dtype in ("bf16", "fp32"))
PACKS = can_pack()


def product_in_plain_pytorch(x, W, b, activation="none"):
    """What oneDNN's packed product computes: bf16 factors, sums in fp32, the result rounded to bf16."""
    y = F.linear(x.float(), W.float(), None if b is None else b.float())
    return (F.gelu(y, approximate="tanh") if activation == "gelu" else y).bfloat16()


@pytest.fixture(autouse=True)
def packing(monkeypatch):
    if not PACKS:
        monkeypatch.setattr(fast.prepacked, "packed", lambda W: W.detach().bfloat16().contiguous())
        monkeypatch.setattr(fast.prepacked, "packed_product", product_in_plain_pytorch)
        monkeypatch.setattr(fast.decoding, "can_pack", lambda: True)


def make(engine: Engine, mode: str | None = None) -> GPT2:
    model, prefix = lively(GPT2(CONFIG)), None
    if mode is not None:
        torch.manual_seed(1)
        prefix = MODES[mode](CONFIG, 4, mid_dim=0).requires_grad_(False)
    return engine.to_device_and_freeze(model.requires_grad_(False), prefix).eval()


def prompts(n: int, seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(
        3, 20, (n,), generator=generator
    ).tolist()  # the last token of all: the separator, which an infix needs
    return [torch.randint(0, 1000, (length,), generator=generator).tolist() + [1000] for length in lengths]


@pytest.mark.parametrize("mode", [None, *MODES])
def test_texts_and_hidden_states_are_those_of_the_unpacked_model(mode):
    plain, ready, exact = make(bf16, mode), pack(make(bf16, mode)), make(fp32, mode)
    assert hasattr(ready, "two_rounds") and not hasattr(plain, "two_rounds")
    tokens = torch.tensor([p[:3] + [1000, 5] for p in prompts(6)])
    with torch.inference_mode():
        read = bf16.in_precision(hidden_states)
        states = [read(model, tokens, BeamTree(room=0)).float() for model in (plain, ready)]
        truth = hidden_states(exact, tokens, BeamTree(room=0))
    assert truth.std() > 0.5
    off = [(x - truth).norm() / truth.norm() for x in states]
    assert off[1] < 0.02 and off[1] < 1.2 * off[0]  # no further from fp32 than the rounding of the unpacked model
    found = {}
    for name, model, engine in (("plain", plain, bf16), ("ready", ready, bf16), ("exact", exact, fp32)):
        search = engine.in_precision(beam_search)
        found[name] = search(model, prompts(40), 1000, 5, 12, "output", (7, 8, 1000), NextWords)
    same = {name: sum(a == b for a, b in zip(found[name], found["exact"])) for name in ("plain", "ready")}
    assert same["ready"] >= 25 and same["ready"] >= same["plain"] - 4, same  # candidates are close


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


def test_a_banned_word_however_likely_does_not_overflow():
    weight = torch.zeros(64, 8)
    weight[5], weight[6] = 100.0, 1.0
    found, words = TwoRounds(weight)(torch.ones(1, 8), 2, (5,))
    assert words[0, 0] == 6 and found[0, 0].item() == pytest.approx(
        -792, rel=1e-3
    )  # far behind the banned one, and finite
    assert torch.isfinite(found).all()


def test_few_words_and_many_beams():
    weight = torch.randn(23, 32, generator=torch.Generator().manual_seed(0))
    x = torch.randn(3, 32, generator=torch.Generator().manual_seed(1))
    found, words = TwoRounds(weight)(x, 20, (0, 1, 2))  # all that are left
    assert [sorted(row) for row in words.tolist()] == [list(range(3, 23))] * 3
    torch.testing.assert_close(found, (x @ weight.t()).log_softmax(1).gather(1, words), atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match="a vocabulary of 1001 is too small for 501 beams"):
        bf16.in_precision(beam_search)(pack(make(bf16)), prompts(1), 1000, beam_size=501, next_words=NextWords)


def test_what_cannot_be_packed_is_left_as_it_is(monkeypatch):
    model = make(fp32)
    before = model.h[0].mlp
    assert pack(model) is model and not hasattr(model, "two_rounds") and model.h[0].mlp is before
    monkeypatch.setattr(fast.decoding, "can_pack", lambda: False)
    model = make(bf16)
    assert pack(model) is model and not hasattr(model, "two_rounds")


def test_packing_twice_is_packing_once():
    model = pack(make(bf16))
    rounds = model.two_rounds
    assert pack(model).two_rounds is rounds


def test_a_packed_model_does_not_train():
    model = pack(make(bf16))
    MODES["prefix"](CONFIG, 4, mid_dim=0).attach(model)
    batch = torch.tensor([[1, 2, 1000, 5]]), torch.tensor([[-100, -100, -100, 5]])
    with pytest.raises(RuntimeError, match="packed for decoding"):
        bf16.in_precision(summed_loss)(model, batch)
    x = torch.randn(2, CONFIG.n_embd, requires_grad=True)
    with pytest.raises(RuntimeError, match="packed for decoding"):
        model.h[0].attn.c_proj(x)


@pytest.mark.parametrize("error", [AttributeError("no such operator"), RuntimeError("no bf16 on this CPU")])
def test_a_pytorch_without_packed_products_is_recognised(monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(fast.prepacked, "packed", fail)
    assert not can_pack.__wrapped__()


def test_a_pytorch_whose_packed_products_are_wrong_is_recognised(monkeypatch):
    monkeypatch.setattr(fast.prepacked, "packed", lambda W: W)
    monkeypatch.setattr(fast.prepacked, "packed_product", lambda x, W, b: x.new_zeros(len(x), len(W)))
    assert not can_pack.__wrapped__()
    monkeypatch.setattr(fast.prepacked, "packed_product", product_in_plain_pytorch)
    assert can_pack.__wrapped__()


def test_the_best_words_are_the_unpacked_models():
    texts = [p[:3] for p in prompts(30)]
    with torch.inference_mode():
        (a, i), (b, j) = (
            bf16.in_precision(NextWords(model, 10, (3,), pad=1000).of_prompts)(texts)
            for model in (make(bf16), pack(make(bf16)))
        )
    assert (i[:, 0] == j[:, 0]).float().mean() > 0.9 and 3 not in j
    torch.testing.assert_close(a, b, atol=0.1, rtol=0)
