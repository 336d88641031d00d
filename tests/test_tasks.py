"""A shelf of tasks: each row of a mixed batch is what it is alone, with its prefix attached by hand."""

import pytest
import torch
from tiny import lively

import fast
import train
from beam import LENGTH_NORMS, NextWords, beam_search
from e2e_data import Encoded, collate
from gpt2 import GPT2, GPT2Config, KVCache
from harness.door import Engine
from harness.files import InputError
from llama import Llama, LlamaConfig
from prefix import Embedding, Infix, Prefix
from tasks import Shelf, split_request

CONFIG = GPT2Config(n_layer=3, n_head=4, n_embd=32, n_positions=128, vocab_size=101)
END = 100
PREFIXES = {"short": (Prefix, 5), "long": (Prefix, 20), "infix": (Infix, 7), "words": (Embedding, 3)}


def prefixes(seed: int = 1) -> dict[str, Prefix]:
    torch.manual_seed(seed)
    return {name: cls(CONFIG, P, mid_dim=16) for name, (cls, P) in PREFIXES.items()}


@pytest.fixture
def model():
    model = lively(GPT2(CONFIG)).eval().requires_grad_(False)
    model.wpe.weight.mul_(20)  # a word out of place must change the text
    return model


@pytest.fixture
def shelf():
    return Shelf(CONFIG, prefixes())


def draw(lengths: list[int], seed: int = 0) -> list[list[int]]:
    """Random prompts of these lengths, each ending with the separator."""
    generator = torch.Generator().manual_seed(seed)
    return [[*torch.randint(0, END, (n - 1,), generator=generator).tolist(), END] for n in lengths]


def called(shelf: Shelf, name: str | None, prompt: list[int]) -> list[int]:
    return ([] if name is None else [shelf.token(name)]) + prompt


def alone(model: GPT2, shelf: Shelf, name: str | None, function):
    """The function's result with one prefix attached by hand, or none."""
    if name is None:
        return function()
    with shelf.prefixes[shelf.names.index(name)].attached(model):
        return function()


MIXED = ["short", None, "long", "infix", "words", "short", None, "infix", "long"]
LENGTHS = [12, 15, 9, 14, 20, 6, 8, 11, 30]


def test_each_row_has_the_logits_that_it_has_alone(model, shelf):
    texts = [prompt + text for prompt, text in zip(draw(LENGTHS), draw([7] * len(LENGTHS), seed=1))]
    rows = [called(shelf, name, text) for name, text in zip(MIXED, texts)]
    T = max(map(len, rows))
    with shelf.attached(model):
        logits = model(torch.tensor([row + [END] * (T - len(row)) for row in rows]))
    assert model.input_hook is None
    for i, (name, text) in enumerate(zip(MIXED, texts)):
        expected = alone(model, shelf, name, lambda text=text: model(torch.tensor([text])))[0]
        start = 0 if name is None else 1
        assert expected.abs().max() > 1
        torch.testing.assert_close(logits[i, start : start + len(text)], expected, rtol=1e-5, atol=1e-5)


def test_the_prefixes_matter(model, shelf):
    (text,) = draw([12])
    last = {name: alone(model, shelf, name, lambda: model(torch.tensor([text])))[0, -1] for name in (None, *PREFIXES)}
    ours = list(last.values())
    assert all((a - b).abs().max() > 0.1 for i, a in enumerate(ours) for b in ours[:i])


@pytest.mark.parametrize("names", [MIXED, [None] * 9, ["long"] * 9, [None, "short"] + [None] * 7])
def test_a_batch_read_token_by_token_equals_one_read_at_once(model, shelf, names):
    """With the cache, on the positions that the model finds itself; rows of equal length."""
    texts = [prompt + text for prompt, text in zip(draw([5] * len(names)), draw([15] * len(names), seed=1))]
    rows = torch.tensor([called(shelf, name, text if name else [*text, 1]) for name, text in zip(names, texts)])
    with shelf.attached(model):
        whole = model(rows)
        cache = KVCache()
        parts = [model(rows[:, :8], cache)]
        cache.select(torch.arange(len(names)))  # as beam search does
        parts += [model(rows[:, 8:11], cache)] + [model(rows[:, t : t + 1], cache) for t in range(11, 21)]
    torch.testing.assert_close(torch.cat(parts, 1)[:, 1:], whole[:, 1:], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("next_words", [NextWords, fast.NextWords], ids=["plain", "fast"])
@pytest.mark.parametrize("norm", LENGTH_NORMS)
def test_the_beams_of_100_mixed_prompts_are_those_of_each_task_alone(model, shelf, next_words, norm):
    generator = torch.Generator().manual_seed(3)
    lengths = torch.randint(2, 40, (100,), generator=generator).tolist()
    names = [MIXED[i % len(MIXED)] for i in range(100)]
    prompts = draw(lengths)
    options = {"max_new_tokens": 12, "length_norm": norm, "banned": (7,)}
    with shelf.attached(model):
        mixed = [called(shelf, name, prompt) for name, prompt in zip(names, prompts)]
        found = beam_search(model, mixed, END, next_words=next_words, prompt_len=shelf.prompt_len, **options)
    for name in (None, *PREFIXES):
        of_task = [i for i in range(100) if names[i] == name]
        search = lambda rows=of_task: beam_search(model, [prompts[i] for i in rows], END, **options)
        assert [found[i] for i in of_task] == alone(model, shelf, name, search)
    assert len({tuple(text) for text in found}) > 30


@pytest.mark.parametrize("plain", [True, False])
def test_the_loss_of_a_mixed_batch_is_the_sum_of_the_tasks_losses(model, shelf, plain):
    texts = [prompt + text for prompt, text in zip(draw(LENGTHS), draw([7] * len(LENGTHS), seed=1))]
    loss_of = Engine(plain, "cpu", "fp32").choose(train.summed_loss)
    mixed = [Encoded(called(shelf, name, text), len(text) - 7 + (name is not None)) for name, text in zip(MIXED, texts)]
    with shelf.attached(model):
        loss = loss_of(model, collate(mixed, END))
        loss.backward()
    gradients = {name: p.grad.clone() for name, p in shelf.named_parameters()}
    shelf.zero_grad()
    total = 0
    for name in (None, *PREFIXES):
        rows = [Encoded(text, len(text) - 7) for other, text in zip(MIXED, texts) if other == name]
        its = alone(model, shelf, name, lambda rows=rows: train.summed_loss(model, collate(rows, END)))
        if name is not None:
            its.backward()
        total += its.item()
    assert loss.item() == pytest.approx(total, rel=1e-5)
    for name, parameter in shelf.named_parameters():
        assert parameter.grad.abs().max() > 1e-3
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("plain", [True, False])
def test_gradients_reach_the_called_tasks_only(model, shelf, plain):
    loss_of = Engine(plain, "cpu", "fp32").choose(train.summed_loss)
    rows = [Encoded(called(shelf, name, text), 5) for name, text in zip(("long", None, "long"), draw([12, 9, 10]))]
    with shelf.attached(model):
        loss_of(model, collate(rows, END)).backward()
    reached = {name.split(".")[1] for name, p in shelf.named_parameters() if p.grad is not None}
    assert reached == {str(shelf.names.index("long"))}
    assert all(p.grad is None for p in model.parameters())


def test_a_batch_that_calls_no_task_is_plain_gpt2_to_the_bit(model, shelf):
    tokens = torch.tensor(draw([12, 12, 12]))
    plain = model(tokens)
    with shelf.attached(model):
        assert torch.equal(model(tokens), plain)


def test_ids_of_task_tokens_lie_beyond_the_vocabulary_and_stay_when_a_task_is_added(shelf):
    ids = [shelf.token(name) for name in PREFIXES]
    assert ids == [101, 102, 103, 104]
    shelf.add("another-1", Prefix(CONFIG, 2, 0))
    assert [shelf.token(name) for name in PREFIXES] == ids and shelf.token("another-1") == 105


@pytest.mark.parametrize(
    "tokens",
    [[[1, 2, 101, 3]], [[101, 102, 1, 2]], [[101, 1, 2, 105], [1, 2, 3, 4]], [[105, 1, 2, 3]]],
    ids=["middle", "twice", "end", "no such task"],
)
def test_a_task_token_elsewhere_is_refused(model, shelf, tokens):
    with shelf.attached(model), pytest.raises(InputError, match="a task token must come first in its row"):
        model(torch.tensor(tokens))


def test_a_task_token_in_the_cached_part_of_a_row_is_refused(model, shelf):
    with shelf.attached(model):
        model(torch.tensor([[101, 1, 2]]), cache := KVCache())
        with pytest.raises(InputError, match="a task token must come first in its row"):
            model(torch.tensor([[101]]), cache)


def test_rows_that_do_not_fit_are_refused(model, shelf):
    fits, too_long = draw([108, 109])
    with shelf.attached(model):
        model(torch.tensor([[shelf.token("long"), *fits]]))
        model(torch.tensor([[shelf.token("short"), *too_long]]))
        with pytest.raises(ValueError, match="do not fit into 128 positions"):
            model(torch.tensor([[shelf.token("long"), *too_long]]))


@pytest.mark.parametrize("next_words", [NextWords, fast.NextWords], ids=["plain", "fast"])
def test_padding_may_lie_beyond_the_context(model, shelf, next_words):
    """A short row with a long prefix beside one of plain GPT-2 that fills the context."""
    short, full = draw([10, 120])
    options = {"end": END, "max_new_tokens": 8, "next_words": next_words}
    with shelf.attached(model):
        found = beam_search(model, [[shelf.token("long"), *short], full], **options)
    assert found[0] == alone(model, shelf, "long", lambda: beam_search(model, [short], **options)[0])
    assert found[1] == beam_search(model, [full], **options)[0]


def test_a_cached_row_that_outgrows_the_context_is_refused(model, shelf):
    (prompt,) = draw([100])
    with shelf.attached(model):
        model(torch.tensor([[shelf.token("long"), *prompt]]), cache := KVCache())
        model(torch.tensor([[1] * 8]), cache)
        with pytest.raises(ValueError, match="do not fit into 128 positions"):
            model(torch.tensor([[1]]), cache)


def test_positions_of_ones_own_are_refused_at_the_start_of_a_row(model, shelf):
    with shelf.attached(model), pytest.raises(ValueError, match="a shelf sets positions and mask itself"):
        model(torch.tensor([[101, 1, 2]]), positions=torch.arange(3))


@pytest.mark.parametrize("name", ["", "a b", "e2e|", "endoftext", "é", "a_b", "<|a|>"])
def test_names_that_cannot_be_tokens_are_refused(name):
    with pytest.raises(InputError, match="cannot be a task's name"):
        Shelf(CONFIG, {name: Prefix(CONFIG, 2, 0)})


def test_a_name_twice_an_unknown_task_and_a_prefix_of_another_model_are_refused(shelf):
    with pytest.raises(InputError, match="the task 'short' is on the shelf already"):
        shelf.add("short", Prefix(CONFIG, 2, 0))
    with pytest.raises(InputError, match="no task 'none' on the shelf: it holds short, long, infix, words"):
        shelf.token("none")
    with pytest.raises(InputError, match="the prefix of 'other' was made for"):
        shelf.add("other", Prefix(GPT2Config(n_layer=3, n_head=4, n_embd=64), 2, 0))


def test_a_shelf_and_a_prefix_are_not_attached_together(model, shelf):
    with shelf.attached(model), pytest.raises(InputError, match="the hooks that this prefix needs are taken"):
        shelf.prefixes[0].attach(model)
    with pytest.raises(InputError, match="this shelf is not attached"):
        shelf.detach()


class Letters:
    """A tokeniser of characters."""

    eot_token = END

    def encode_ordinary(self, text: str) -> list[int]:
        return [ord(letter) % END for letter in text]


def test_a_request_begins_with_its_task_and_its_text_is_ordinary(shelf):
    ordinary = Letters().encode_ordinary
    encode = lambda request: shelf.encode_prompt(Letters(), request)
    assert encode("<|long|> name : <|short|> ") == [102, *ordinary(" name : <|short|> "), END]
    assert encode("name : X | near : <|long|>") == [*ordinary(" name : X | near : <|long|> "), END]
    assert encode("  <|long|>x") == [102, *ordinary(" x "), END]
    for name in ("unknown", "", "a<b"):
        with pytest.raises(InputError, match=f"no task '{name}' on the shelf"):
            encode(f"<|{name}|> name : X")
    assert split_request("< |long|> x") == (None, "< |long|> x")


# ----------------------------------------------------------------------------- a Llama


@pytest.mark.parametrize("next_words", [NextWords, fast.llama.NextWords], ids=["plain", "fast"])
def test_a_llama_has_a_shelf_too(next_words):
    """Its end token is 0, and its keys are grouped: logits and beams of each row are those that it has alone."""
    config = LlamaConfig(
        n_layer=2, n_head=4, n_kv_head=2, n_embd=32, n_inner=48, n_positions=128, vocab_size=101, end_token=0
    )
    model = Llama(config).init_weights(1).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.mul_(8 if parameter.dim() == 2 else 1)
    torch.manual_seed(1)
    shelf = Shelf(config, {name: cls(config, P, mid_dim=16) for name, (cls, P) in PREFIXES.items()})
    prompts = [[1 + token % 99 for token in prompt[:-1]] + [0] for prompt in draw(LENGTHS)]
    rows = [called(shelf, name, prompt) for name, prompt in zip(MIXED, prompts)]
    T = max(map(len, rows))
    options = {"end": 0, "max_new_tokens": 10, "next_words": next_words}
    with shelf.attached(model):
        logits = model(torch.tensor([row + [0] * (T - len(row)) for row in rows]))
        texts = beam_search(model, rows, prompt_len=shelf.prompt_len, **options)
    for i, (name, prompt) in enumerate(zip(MIXED, prompts)):
        expected = alone(model, shelf, name, lambda prompt=prompt: model(torch.tensor([prompt])))[0]
        start = name is not None
        torch.testing.assert_close(logits[i, start : start + len(prompt)], expected, rtol=1e-4, atol=1e-4)
        assert texts[i] == alone(model, shelf, name, lambda prompt=prompt: beam_search(model, [prompt], **options)[0])
    assert len({tuple(text) for text in texts}) > 4
