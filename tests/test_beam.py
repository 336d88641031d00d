"""Beam search: its logic on a mock model, and the same token ids as transformers' on a trained one."""

import math
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from tiny import tables, write_config, write_model, write_vocabulary

import fast
from beam import LENGTH_NORMS, NextWords, beam_search
from e2e_data import collate, encode, encode_prompt, epoch_order, load_split
from evaluate import newline_tokens
from gpt2 import GPT2, GPT2Config
from harness.safetensors import write_safetensors
from harness.tokenizers import load_tokenizer
from prefix import MODES
from weights import load_gpt2

SHARED = Path(__file__).resolve().parents[2] / "shared" / "e2e"


# ----------------------------------------------------------------------------- a mock model


class Table(torch.nn.Module):
    """A "language model" whose next token depends on the last two tokens alone, by a table that the test writes."""

    def __init__(self, vocab_size: int, seed: int = 0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.table = torch.nn.Parameter(2 * torch.randn(vocab_size, vocab_size, vocab_size, generator=generator))

    def forward(self, tokens, cache=None, positions=None, mask=None):
        B, T = tokens.shape
        before = cache.length
        keys = torch.nn.functional.one_hot(tokens, len(self.table)).float()[:, None]  # [B, 1, T, V]: what it remembers
        keys, _ = cache.append(0, keys, keys)
        ids = keys[:, 0].argmax(-1)  # [B, S], prompt padding among them
        if T > 1:
            previous = torch.cat([ids[:, :1], ids[:, :-1]], dim=1)
            return self.table[previous, ids]
        seen = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask[:, 0, 0]
        last_two = torch.stack([row[keep][-2:] for row, keep in zip(ids, seen)])
        assert before and positions.shape == (B, 1)
        assert (positions[:, 0] == seen.sum(1) - 1).all()  # each token stands behind the tokens that it may see
        return self.table[last_two[:, 0], last_two[:, 1]][:, None]


def spelled_out(model, prompt, end, K, max_new, norm, banned=()):
    """Beam search of one prompt in the plainest words, without cache or batch: the definition the code is held to."""
    log_p = model.table.log_softmax(-1).tolist()

    def length(ids_with_last, ended):
        return {"output": len(ids_with_last), "total": len(prompt) + len(ids_with_last) - ended, "none": 1}[norm]

    running, ended = [(0.0, [])], []
    for n in range(1, max_new + 1):
        everything = []
        for score, ids in running:
            context = (prompt + ids)[-2:]
            for token, lp in enumerate(log_p[context[0]][context[1]]):
                if token not in banned:
                    everything.append((score + lp, [*ids, token]))
        everything.sort(key=lambda pair: -pair[0])
        for score, ids in everything[:K]:
            if ids[-1] == end or n == max_new:
                text = ids[:-1] if ids[-1] == end else ids
                ended.append((score / length(ids, ids[-1] == end), text))
        ended = sorted(ended, key=lambda pair: -pair[0])[:K]
        running = [pair for pair in everything if pair[1][-1] != end][:K]
        if len(ended) == K and running[0][0] / length(running[0][1], True) <= ended[-1][0]:
            break
    return ended[0][1]


@pytest.mark.parametrize("norm", ["total", "output", "none"])
@pytest.mark.parametrize("K", [1, 2, 5])
def test_equals_the_definition_spelled_out(norm, K):
    for seed in range(12):
        model = Table(14, seed)
        prompts = [[1, 2, 3], [4, 5], [6, 7, 8, 9, 10], [2, 2], [11, 1, 3, 12]]
        expected = [spelled_out(model, prompt, 0, K, 9, norm, banned=(13,)) for prompt in prompts]
        assert beam_search(model, prompts, 0, K, 9, norm, banned=(13,)) == expected
        assert [beam_search(model, [prompt], 0, K, 9, norm, banned=(13,))[0] for prompt in prompts] == expected


def test_the_beam_finds_what_greedy_search_misses():
    """From (1, 2): token 3 has p = 0.6 but whatever follows it 0.4 at most; 4 has p = 0.4 and is followed by the end.

    Greedy takes 3, then the best of its followers: 0.6 * 0.4 = 0.24. The beam compares with 0.4 * 0.99 = 0.396.
    """
    model = Table(8)
    with torch.no_grad():
        model.table.fill_(-20)
        model.table[1, 2, 3], model.table[1, 2, 4] = math.log(0.6), math.log(0.4)
        model.table[2, 3, 5], model.table[2, 3, 6], model.table[2, 3, 7] = math.log(0.4), math.log(0.35), math.log(0.25)
        model.table[3, 5:, 0] = 0.0
        model.table[2, 4, 0], model.table[2, 4, 5] = math.log(0.99), math.log(0.01)
        model.table[4, 5, 0] = 0.0
    assert beam_search(model, [[1, 2]], end=0, beam_size=1, max_new_tokens=5, length_norm="none") == [[3, 5]]
    assert beam_search(model, [[1, 2]], end=0, beam_size=2, max_new_tokens=5, length_norm="none") == [[4]]
    assert beam_search(model, [], end=0) == []


def test_length_norm_decides_between_short_and_long():
    """Two texts of equal log-probability a token: "none" takes the short one, dividing by the length the long one.

    Short: 1 token and the end, log p = -1.2 - 0.6 = -1.8, or -0.9 a token. Long: 4 tokens and the end, -3.0, or -0.6.
    With a prompt of 20 tokens in the length ("total") the short one wins again: -1.8 / 21 > -3.0 / 24.
    """
    model = Table(12)
    with torch.no_grad():
        model.table.fill_(-30)
        model.table[1, 1, 2], model.table[1, 1, 3] = -0.6, -1.2
        model.table[1, 3, 0], model.table[1, 3, 8] = -0.6, -30
        for context, token in (((1, 2), 4), ((2, 4), 5), ((4, 5), 6), ((5, 6), 0)):
            model.table[*context, token] = -0.6
        # Make the numbers log-probabilities as they stand: the rest of each row goes to a token that leads nowhere.
        for context in ((1, 1), (1, 3), (1, 2), (2, 4), (4, 5), (5, 6)):
            model.table[*context, 9] = math.log(1 - model.table[*context].exp().sum().item())
    run = lambda norm: beam_search(model, [[1] * 20], end=0, beam_size=3, max_new_tokens=8, length_norm=norm)[0]  # noqa: E731
    assert run("none") == [3] and run("total") == [3] and run("output") == [2, 4, 5, 6]


def test_banned_tokens_are_never_produced_and_a_full_length_ends_the_text():
    model = Table(20, seed=4)
    free = beam_search(model, [[1, 2]], end=0, max_new_tokens=6)[0]
    banned = tuple(set(free))
    assert not set(beam_search(model, [[1, 2]], end=0, beam_size=3, max_new_tokens=6, banned=banned)[0]) & set(banned)
    with torch.no_grad():
        model.table[:, :, 0] = -1e9  # it cannot end
    assert len(beam_search(model, [[1, 2]], end=0, max_new_tokens=6)[0]) == 6


@pytest.mark.parametrize(
    "wrong", [{"beam_size": 0}, {"max_new_tokens": 0}, {"length_norm": "average"}, {"prompts": [[1], []]}]
)
def test_nonsense_is_refused(wrong):
    with pytest.raises(ValueError, match="beam search needs"):
        beam_search(Table(12), **({"prompts": [[1, 2]], "end": 0} | wrong))


@pytest.mark.parametrize("limits", [[], [3], [3, 3, 3]])
def test_limits_that_are_not_one_per_prompt_are_refused(limits):
    with pytest.raises(ValueError, match=f"{len(limits)} values of max_new_tokens for 2 prompts"):
        beam_search(Table(12), [[1, 2], [3]], end=0, max_new_tokens=limits)


def test_a_vocabulary_too_small_for_the_beam_is_refused():
    with pytest.raises(ValueError, match="a vocabulary of 8 is too small for 5 beams"):
        beam_search(Table(8), [[1, 2]], end=0, beam_size=5)


# ----------------------------------------------------------------------------- a trained model


def train_briefly(folder, examples, steps: int, batch: int, seed: int = 0) -> GPT2:
    """Fine-tune a folder's model until it ends its sentences; the folder then holds the trained weights.

    In double precision: in single, the order of additions would change the model, and sometimes decide a tie of beams.
    """
    tokenizer = load_tokenizer(str(folder))
    model = load_gpt2(str(folder)).double().train()
    encoded = encode(tokenizer, examples, room=model.config.n_positions)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * (1 - step / steps)
        order = epoch_order(len(encoded), seed, step)[:batch]
        loss = fast.summed_loss(model, collate([encoded[i] for i in order], tokenizer.eot_token)) / batch
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model = model.float().eval()
    write_safetensors(folder / "model.safetensors", model.state_dict(), {})
    return model


@pytest.fixture(
    scope="module", params=[pytest.param(data, marks=pytest.mark.slow) for data in ("our own tables", "E2E")]
)
def trained(request, tmp_path_factory):
    """(folder, model, tokenizer, 200 prompts): trained on our own tables, and where they are at hand on E2E's."""
    folder = tmp_path_factory.mktemp("trained")
    if request.param == "E2E":
        if not SHARED.exists():
            pytest.skip("E2E's files are not at hand (../shared/e2e)")
        examples, sources = load_split(str(SHARED), "train"), [e.source for e in load_split(str(SHARED), "test")]
        examples = [examples[i] for i in epoch_order(len(examples), 0, 0)[:4000]]
        write_vocabulary(folder, [f" {s} {t} " for s, t in examples[:600]], size=700)
        config = GPT2Config(n_layer=2, n_head=4, n_embd=96, n_positions=400, vocab_size=701)
        write_config(folder, config)
        write_safetensors(folder / "model.safetensors", GPT2(config).init_weights(1).state_dict(), {})
        model = train_briefly(folder, examples, steps=250, batch=16)
    else:
        write_model(folder, n_positions=200)
        write_safetensors(
            folder / "model.safetensors", GPT2(load_gpt2(str(folder)).config).init_weights(1).state_dict(), {}
        )
        examples, sources = tables(600, seed=1), [e.source for e in tables(1500, seed=2)]
        model = train_briefly(folder, examples, steps=250, batch=16)
    tokenizer = load_tokenizer(str(folder))
    prompts = [encode_prompt(tokenizer, source) for source in list(dict.fromkeys(sources))[:200]]
    assert len(prompts) == 200
    return folder, model, tokenizer, prompts


def search(trained, batch_size: int, **options) -> list[list[int]]:
    _, model, tokenizer, prompts = trained
    options = {"max_new_tokens": 60, "banned": newline_tokens(tokenizer)} | options
    found = []
    for start in range(0, len(prompts), batch_size):
        found += beam_search(model, prompts[start : start + batch_size], tokenizer.eot_token, **options)
    return found


PATHS = {"plain": NextWords, "fast": fast.NextWords}


@pytest.mark.parametrize("path", PATHS)
def test_same_token_ids_as_transformers_on_200_prompts(trained, reference_gpt2, path):
    folder, _, tokenizer, prompts = trained
    ours = search(trained, 16, length_norm="output", next_words=PATHS[path])
    assert sum(len(ids) < 60 for ids in ours) > 150  # most texts end by themselves, so ending is really compared

    twin, end = reference_gpt2(folder), tokenizer.eot_token
    for start in range(0, len(prompts), 20):
        batch = prompts[start : start + 20]
        S = max(map(len, batch))
        tokens = torch.tensor([[end] * (S - len(p)) + p for p in batch])  # transformers pads on the left
        mask = torch.tensor([[0] * (S - len(p)) + [1] * len(p) for p in batch])
        theirs = twin.generate(
            tokens, attention_mask=mask, num_beams=5, early_stopping=False, length_penalty=1.0, do_sample=False,
            max_new_tokens=60, eos_token_id=end, pad_token_id=end,
            bad_words_ids=[[i] for i in newline_tokens(tokenizer)],
        )  # fmt: skip
        for i, row in enumerate(theirs[:, S:].tolist()):
            assert ours[start + i] == (row[: row.index(end)] if end in row else row), f"prompt {start + i}"


@pytest.mark.slow
@pytest.mark.parametrize("mode", [None, *MODES])
@pytest.mark.parametrize("norm", LENGTH_NORMS)
def test_both_paths_find_the_same_token_ids_on_200_prompts(trained, norm, mode):
    _, model, _, _ = trained
    torch.manual_seed(0)
    prefix = MODES[mode](model.config, 6, mid_dim=16) if mode else None
    with prefix.attached(model) if prefix else nullcontext():
        options = {"length_norm": norm, "max_new_tokens": 40}
        plain, ours = (search(trained, 64, next_words=next_words, **options) for next_words in PATHS.values())
    assert len(plain) == 200 and len(set(map(tuple, plain))) > 20
    assert ours == plain


@pytest.mark.parametrize("mode", [None, *MODES])
def test_batches_of_1_and_16_agree(trained, mode):
    _, model, tokenizer, prompts = trained
    few = (trained[0], model, tokenizer, prompts[:48])
    if mode is None:
        assert search(few, 1) == search(few, 16)
        return
    torch.manual_seed(0)
    prefix = MODES[mode](model.config, 6, mid_dim=16).attach(model)
    try:
        assert search(few, 1) == search(few, 16)
    finally:
        prefix.detach()


@pytest.mark.parametrize("mode", [None, *MODES])
@torch.no_grad()
def test_one_beam_is_greedy_and_the_cache_changes_nothing(trained, mode):
    """Against the plainest loop: read everything anew for each token, take the most probable one."""
    _, model, tokenizer, prompts = trained
    banned = list(newline_tokens(tokenizer))
    torch.manual_seed(0)
    prefix = MODES[mode](model.config, 6, mid_dim=16).attach(model) if mode else None
    try:
        found = search((trained[0], model, tokenizer, prompts[:24]), 8, beam_size=1)
        for prompt, ids in zip(prompts[:24], found):
            text = []
            while len(text) < 60:
                logits = model(torch.tensor([prompt + text]))[0, -1]
                logits[banned] = -torch.inf
                if (token := int(logits.argmax())) == tokenizer.eot_token:
                    break
                text.append(token)
            assert ids == text
    finally:
        if prefix:
            prefix.detach()


@pytest.mark.parametrize("mode", [None, *MODES])
@torch.no_grad()
def test_five_beams_with_and_without_cache_agree(trained, mode):
    """The same search over a model that forgets its cache and reads prompt and text anew each time."""
    _, model, tokenizer, prompts = trained
    torch.manual_seed(0)
    prefix = MODES[mode](model.config, 6, mid_dim=16).attach(model) if mode else None

    class Uncached(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, tokens, cache, positions=None, mask=None):
            ids, _ = cache.append(0, *[tokens[:, None, :, None]] * 2)  # remembers the ids, nothing else
            return model(ids[:, 0, :, 0])[:, -tokens.size(1) :]

    options = dict(max_new_tokens=40, banned=newline_tokens(tokenizer), length_norm="output")
    try:
        for prompt in prompts[:15]:
            anew = beam_search(Uncached(), [prompt], tokenizer.eot_token, **options)
            assert anew == beam_search(model, [prompt], tokenizer.eot_token, **options)
    finally:
        if prefix:
            prefix.detach()
