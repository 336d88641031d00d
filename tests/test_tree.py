"""BeamTree: beams share the entries that they have in common, and each sees only its own past."""

import pytest
import torch
from tiny import lively

from beam import beam_search
from fast import NextWords
from fast.decoding import hidden_states
from fast.prepacked import largest
from fast.tree import BeamTree
from gpt2 import GPT2, GPT2Config
from prefix import MODES

CONFIG = GPT2Config(n_layer=3, n_head=2, n_embd=32, n_positions=80, vocab_size=23)
END = CONFIG.vocab_size - 1


def make(mode: str | None, seed: int) -> GPT2:
    """A GPT-2 with random weights, behind a random prefix of 4."""
    model = lively(GPT2(CONFIG), seed).eval()
    if mode:
        torch.manual_seed(seed)
        MODES[mode](CONFIG, prefix_len=4, mid_dim=8).attach(model)
    return model


def read(model: GPT2, tokens: torch.Tensor, tree: BeamTree, positions=None, mask=None) -> torch.Tensor:
    """Logits [B, T, V] of tokens that are added to the tree."""
    return model.logits(hidden_states(model, tokens, tree, positions, mask))


def random_prompts(lengths: tuple[int, ...], seed: int) -> list[list[int]]:
    """Prompts as the data have them: the last token is the separator."""
    generator = torch.Generator().manual_seed(seed)
    return [[*torch.randint(0, END, (n - 1,), generator=generator).tolist(), END] for n in lengths]


@pytest.mark.parametrize("mode", [None, *MODES])
@pytest.mark.parametrize("lengths", [(6, 6, 6), (3, 9, 5)], ids=["equal lengths", "padded"])
@torch.no_grad()
def test_beams_that_branch_die_and_leave_go_on_as_if_each_were_read_anew(mode, lengths):
    """Beams drawn at random. Beside each step: the prompt and what this beam has read, without a cache."""
    model, prompts, generator = make(mode, 0), random_prompts(lengths, 1), torch.Generator().manual_seed(2)
    S, tree = max(lengths), BeamTree(room=3 * 12)
    read(model, torch.tensor([prompt + [END] * (S - len(prompt)) for prompt in prompts]), tree)
    real = torch.ones(3, tree.length, dtype=torch.bool)
    for row, n in zip(real, lengths):
        row[tree.length - S + n :] = False
    prompt_of, texts = [0, 1, 2], [[[]]] * 3
    for step in range(12):
        going_on = {4: [0, 2], 8: [1]}.get(step, list(range(len(prompt_of))))
        n_beams = len(texts[0])  # one at first, then three
        beams = torch.randint(0, n_beams, (len(going_on), 3), generator=generator)
        tokens = torch.randint(0, END, beams.shape, generator=generator)
        prompt_of, real = [prompt_of[b] for b in going_on], real[going_on]
        texts = [
            [texts[b][k] + [t] for k, t in zip(*rows)] for b, *rows in zip(going_on, beams.tolist(), tokens.tolist())
        ]
        tree.branch(torch.tensor(going_on), beams)
        R = tokens.numel()
        produced = torch.ones(R, step + 1, dtype=torch.bool)
        mask = torch.cat([real.repeat_interleave(3, 0), produced], dim=1)[:, None, None]
        positions = torch.tensor([[lengths[b] + step] for b in prompt_of]).repeat_interleave(3, 0)
        found = read(model, tokens.view(R, 1), tree, positions, None if real.all() else mask)[:, 0]  # [R, V]
        anew = [
            model(torch.tensor([prompts[b] + text]))[0, -1]
            for b, of_prompt in zip(prompt_of, texts)
            for text in of_prompt
        ]
        torch.testing.assert_close(found, torch.stack(anew), atol=1e-4, rtol=0)


@torch.no_grad()
def test_a_prompt_takes_no_more_memory_with_more_beams_and_nothing_is_copied_when_beams_change_places():
    model, prompts = make("prefix", 0), random_prompts((30, 30), 1)
    tree = BeamTree(room=8 * 2)
    read(model, torch.tensor(prompts), tree)
    memory = tree.layers[0][0]
    assert memory.shape == (2, CONFIG.n_head, 4 + 30 + 8 * 2, 16)  # the prefix, the prompt, 8 beams of 2 tokens
    for step, beams in enumerate(([0] * 8, [7, 6, 5, 4, 3, 2, 1, 0], [7, 6, 5, 4, 3, 2, 1, 0])):  # none dies
        written = memory[:, :, : tree.length].clone()
        tree.branch(torch.tensor([0, 1]), torch.tensor([beams, beams]))
        read(model, torch.zeros(16, 1, dtype=torch.long), tree, positions=torch.full((16, 1), 30 + step))
        assert tree.length == 4 + 30 + 8 * (step + 1) and (tree.layers[0][0] is memory) == (step < 2)
        assert torch.equal(tree.layers[0][0][:, :, : written.size(2)], written)
    # Reallocated when it was too small, with half as many entries again.
    assert {x.shape[2] for layer in tree.layers for x in layer} == {58 + 58 // 2}


def spelled_out(model: GPT2, prompt: list[int], K: int, max_new: int) -> tuple[list[int], int]:
    """Beam search without cache or batch, length_norm="none": the best text, and the steps that it took to find it."""
    running, ended = [(0.0, [])], []
    for n in range(1, max_new + 1):
        log_p = model(torch.tensor([prompt + ids for _, ids in running]))[:, -1].log_softmax(-1)  # [beams, V]
        everything = [
            (score + p, [*ids, t]) for (score, ids), row in zip(running, log_p.tolist()) for t, p in enumerate(row)
        ]
        everything.sort(key=lambda pair: -pair[0])
        ended += [(score, ids) for score, ids in everything[:K] if ids[-1] == END or n == max_new]
        ended = sorted(ended, key=lambda pair: -pair[0])[:K]
        running = [pair for pair in everything if pair[1][-1] != END][:K]
        if len(ended) == K and running[0][0] <= ended[-1][0]:
            break
    return [t for t in ended[0][1] if t != END], n


@pytest.mark.parametrize("mode", [None, *MODES])
@torch.no_grad()
def test_the_beams_of_random_models_are_those_of_the_search_spelled_out(mode):
    """Prompts of different lengths, whose searches end at different steps; one beam and several; one token and many."""
    steps = set()
    for seed in range(6):
        model = make(mode, seed)
        end = model.wte.weight[END]
        model.ln_f.bias.add_(
            end / end.square().sum()
        )  # the end token's logit + 1, so that most texts end by themselves
        prompts = random_prompts((4, 11, 7, 7, 2), seed)
        for K, max_new in ((5, 12), (3, 12), (1, 12), (4, 1)):
            expected = [spelled_out(model, prompt, K, max_new) for prompt in prompts]
            found = beam_search(model, prompts, END, K, max_new, "none", next_words=NextWords)
            assert found == [ids for ids, _ in expected], (seed, K)
            steps |= {n for _, n in expected if K > 1}
    assert len(steps) > 5  # so they did leave the batch one after the other


@torch.no_grad()
def test_in_bf16_the_shared_cache_is_as_near_to_fp32_as_reading_anew():
    model, prompt, tokens = make("prefix", 3), random_prompts((12,), 3)[0], torch.tensor([[3], [7], [1], [5]])
    exact = model(torch.cat([torch.tensor([prompt] * 4), tokens], dim=1))[:, -1]
    with torch.autocast("cpu", torch.bfloat16):
        anew = model(torch.cat([torch.tensor([prompt] * 4), tokens], dim=1))[:, -1]
        tree = BeamTree(room=4)
        read(model, torch.tensor([prompt]), tree)
        tree.branch(torch.tensor([0]), torch.zeros(1, 4, dtype=torch.long))
        shared = read(model, tokens, tree, positions=torch.full((4, 1), 12))[:, 0]
    assert tree.layers[0][0].dtype == torch.bfloat16 and shared.dtype == torch.float32
    assert (shared - exact).abs().max() < 2 * (anew - exact).abs().max()


@torch.no_grad()
def test_leaves_take_the_places_of_dead_branches_and_what_is_left_says_the_same():
    """All beams of the first prompt descend from its first again and again: of 8 entries a step one stays alive."""
    model, prompts, lengths = make("prefix", 5), random_prompts((5, 9), 4), [5, 9]
    steps, S = 12, 4 + 9  # the prefix and the longer prompt
    # The second prompt's do so too, or all go on. (Its beams to go on with; how large its tree becomes.)
    for of_second, largest_tree in (
        (torch.zeros(8, dtype=torch.long), S + (steps - 1) + 8),
        (torch.arange(8), S + steps * 8),
    ):
        tree, texts = BeamTree(room=8 * steps), [[[]] * 8, [[]] * 8]
        read(model, torch.tensor([prompt + [END] * (9 - len(prompt)) for prompt in prompts]), tree)
        real = torch.ones(2, S, dtype=torch.bool)
        real[0, 4 + 5 :] = False
        for step in range(steps):
            tokens = (torch.arange(8) + torch.tensor([[step], [2 * step + 1]])) % END  # [2, 8]
            beams = torch.stack([torch.zeros(8, dtype=torch.long), of_second if step else 0 * of_second])
            tree.branch(torch.tensor([0, 1]), beams)
            texts = [
                [texts[b][k] + [t] for k, t in zip(*row)] for b, row in enumerate(zip(beams.tolist(), tokens.tolist()))
            ]
            mask = torch.cat([real.repeat_interleave(8, 0), torch.ones(16, step + 1, dtype=torch.bool)], dim=1)[
                :, None, None
            ]
            positions = torch.tensor([[n + step] for n in lengths]).repeat_interleave(8, 0)
            found = read(model, tokens.view(16, 1), tree, positions=positions, mask=mask)[:, 0].unflatten(0, (2, 8))
            for b in range(2):
                anew = [model(torch.tensor([prompts[b] + text]))[0, -1] for text in texts[b]]
                torch.testing.assert_close(found[b], torch.stack(anew), atol=1e-4, rtol=0)
        assert tree.length == largest_tree  # and no entry more


@torch.no_grad()
@pytest.mark.parametrize("room", [0, 3 * 4])
def test_a_tree_that_needs_no_place_sees_nothing_in_it(monkeypatch, room):
    """One tree grows, the other does not: whatever stood in that memory before, NaN too, is not seen."""
    model, prompts = make(None, 5), random_prompts((5, 5), 4)
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda x, *shape: x.new_full(shape, torch.nan))
    tree = BeamTree(room)
    read(model, torch.tensor(prompts), tree)
    for step in range(4):
        tree.branch(torch.tensor([0, 1]), torch.tensor([[0, 0, 0], [0, 1, 2] if step else [0, 0, 0]]))
        assert (
            read(model, torch.ones(6, 1, dtype=torch.long), tree, positions=torch.full((6, 1), 5 + step))
            .isfinite()
            .all()
        )


def test_the_largest_are_those_that_topk_finds():
    generator = torch.Generator().manual_seed(0)
    for R, V, n in ((7, 50257, 10), (3, 1000, 12), (2, 640, 10), (4, 639, 10), (1, 64, 1), (5, 23, 4)):
        x = torch.randn(R, V, generator=generator)
        x[:, ::3] = -torch.inf
        values, places = largest(x, n)
        expected = x.topk(n)
        assert torch.equal(values, expected.values) and torch.equal(places, expected.indices)
    ends = torch.zeros(1, 6500)
    ends[0, [0, 63, 64, 6463, 6464, 6499]] = torch.tensor(
        [1.0, 2, 3, 4, 5, 6]
    )  # where groups begin and end, and behind the last
    assert largest(ends, 6)[1].tolist() == [[6499, 6464, 6463, 64, 63, 0]]
    equal = largest(torch.ones(2, 6500), 5)  # of equals any, but none twice
    assert equal[0].tolist() == [[1] * 5] * 2 and all(len(set(row)) == 5 for row in equal[1].tolist())
