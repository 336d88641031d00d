"""Beam search: an approximate search for the most probable text (Graves 2012; Freitag & Al-Onaizan 2017).

For each prompt there are K running hypotheses. A step extends each by every token, and of these K * V continuations the
best by

    log p(y_1 .. y_n | prompt) = sum_i log p(y_i | prompt, y_<i)

are kept: the best K that do not end run on. A continuation that ends with the end token is finished if it is among the
K best of all, and dropped otherwise; at the longest length allowed the K best of all are finished. The score is

    sum_i log p(y_i) / length        length: "total"   prompt + text, the paper's code
                                             "output"  text + end token, today's libraries
                                             "none"    1, the poster

The search for a prompt stops when K hypotheses have ended and the best running one, scored as if its newest token were
the end token, is not above the worst of them. (This is a heuristic, early_stopping=False in transformers: with a score
divided by length, a longer text could still win. The paper's code compares the best of all continuations instead, those
that have just ended included.)

Prompts of different lengths are padded on the right. Causality hides the padding from the prompt's own tokens, a mask
hides it from the later ones. Left out: sampling, and any hypothesis but the best.

Shapes: B prompts still searched, K beams, R = B * K rows, V vocabulary, S keys, T longest prompt, W = 2 K words. A word
is a token of the vocabulary, as a candidate for the next one.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2 import KVCache

LENGTH_NORMS = ("total", "output", "none")


class NextWords:
    """What the search asks of a model: the W best next words of each row, and their log-probabilities.

    model   called as GPT2.forward is
    banned  tokens never produced. Their probability is not redistributed, as in the paper's code
    pad     fills short prompts; any id
    """

    def __init__(self, model, n_words: int, banned: tuple[int, ...], pad: int):
        self.model, self.n_words, self.banned, self.pad = model, n_words, list(banned), pad
        self.cache = KVCache()

    def of_prompts(self, prompts: list[list[int]]) -> tuple[Tensor, Tensor]:
        """Read the prompts: log p and ids of the best first words, each [B, W]."""
        device, T = next(self.model.parameters()).device, max(map(len, prompts))
        tokens = torch.tensor([prompt + [self.pad] * (T - len(prompt)) for prompt in prompts], device=device)  # [B, T]
        self.n_prompts = len(prompts)
        self.lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)  # [B], tokens read of each row
        logits = self.model(tokens, self.cache)  # [B, T, V]
        is_token = torch.arange(T, device=device) < self.lengths[:, None]  # [B, T]
        # The keys that later tokens may see: no padding, but all that a prefix has put in front.
        self.visible = F.pad(is_token, (self.cache.length - T, 0), value=True)  # [B, S]
        return self.best(logits[torch.arange(len(prompts), device=device), self.lengths - 1])

    def of_beams(self, prompts: Tensor, beams: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Extend beams by a token each: log p and ids of the best words after it, each [R, W].

        prompts  [B] the prompts still searched, as indices into those before this call
        beams    [B, K] the beams of each that are extended, repeats allowed
        tokens   [B, K] the tokens that extend them
        """
        per_prompt = len(self.lengths) // self.n_prompts
        rows = (prompts[:, None] * per_prompt + beams).flatten()  # [R]
        self.cache.select(rows)
        self.visible = F.pad(self.visible[rows], (0, 1), value=True)  # [R, S]
        positions = self.lengths[rows, None]  # [R, 1]
        self.lengths, self.n_prompts = self.lengths[rows] + 1, len(prompts)
        logits = self.model(tokens.view(-1, 1), self.cache, positions, self.visible[:, None, None])  # [R, 1, V]
        return self.best(logits[:, 0])

    def best(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """log p and ids of the W best words: [rows, V] -> each [rows, W]."""
        if logits.size(1) - len(self.banned) < self.n_words:
            raise ValueError(f"a vocabulary of {logits.size(1)} is too small for {self.n_words // 2} beams")
        log_p = logits.float().log_softmax(-1)
        log_p[:, self.banned] = -torch.inf
        return log_p.topk(self.n_words)


@dataclass
class Search:
    """One prompt's search: the running hypotheses and the ended ones."""

    index: int  # the prompt's place in the caller's list
    prompt_len: int
    running: list[list[int]]  # up to K hypotheses, token ids without the prompt
    ended: list[tuple[float, list[int]]] = field(default_factory=list)  # up to K (score, ids), best first

    def length(self, n: int, norm: str, with_end: bool = True) -> int:
        """The divisor of a sum of n log-probabilities.

        "total" leaves out the end token, as the paper's code does; "output" counts it, as today's libraries do. For a
        running hypothesis both of them take the length that it would have if its newest token were the end token.
        """
        if norm == "total":
            return self.prompt_len + (n - 1 if with_end else n)
        return n if norm == "output" else 1

    def advance(self, candidates, n: int, last: bool, end: int, K: int, norm: str) -> list[tuple[float, int, int]]:
        """One step: which of the 2 K candidates (score, beam, token), best first, survive as the K running hypotheses.

        n     tokens of a candidate, with its new one
        last  no more tokens are allowed: every candidate ends here
        Returns [] when the search is over.
        """
        survivors = []
        for rank, (score, beam, token) in enumerate(candidates):
            if token == end or last:
                if rank < K:  # an ending that is not among the K best is dropped
                    ids = self.running[beam] + ([] if token == end else [token])
                    self.ended.append((score / self.length(n, norm, token == end), ids))
            elif len(survivors) < K:
                survivors.append((score, beam, token))
        self.ended.sort(key=lambda pair: -pair[0])  # stable: of equals, the earlier first
        del self.ended[K:]
        self.running = [self.running[beam] + [token] for _, beam, token in survivors]
        if len(self.ended) == K and survivors and survivors[0][0] / self.length(n, norm) <= self.ended[-1][0]:
            return []
        return survivors


@torch.inference_mode()
def beam_search(
    model,
    prompts: list[list[int]],
    end: int,
    beam_size: int = 5,
    max_new_tokens: int | list[int] = 100,
    length_norm: str = "total",
    banned: tuple[int, ...] = (),
    next_words: type = NextWords,
    prompt_len: Callable[[list[int]], int] = len,
) -> list[list[int]]:
    """The best continuation found for each prompt, as token ids without the end token.

    model           called as GPT2.forward is: (tokens, cache, positions, mask) -> logits
    end             the token that ends a text
    max_new_tokens  the longest text: one limit for all prompts, or one per prompt
    banned          tokens never produced
    next_words      NextWords, or a class with the same two methods
    prompt_len      the length of a prompt for length_norm "total"; tasks.py does not count a task's token
    The longest prompt and its text must fit into the model's context (harness/runs.check_context). Raises ValueError
    for an empty prompt, no beams, a max_new_tokens below 1 or not one per prompt, an unknown length_norm, or fewer than
    2 K words that may be produced.
    """
    K = beam_size
    limits = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else max_new_tokens
    if not all(prompts) or K < 1 or min(limits, default=1) < 1 or length_norm not in LENGTH_NORMS:
        raise ValueError(
            f"beam search needs non-empty prompts, at least one beam and one token, and a length_norm of {LENGTH_NORMS}"
        )
    if len(limits) != len(prompts):
        raise ValueError(f"{len(limits)} values of max_new_tokens for {len(prompts)} prompts")
    if not prompts:
        return []
    results: list[list[int]] = [[] for _ in prompts]
    active = [Search(i, prompt_len(prompt), [[]]) for i, prompt in enumerate(prompts)]
    # 2 K candidates a prompt, since up to K of them may end. The best 2 K are among the best 2 K words of each beam.
    reader = next_words(model, 2 * K, banned, pad=end)
    log_p, words = reader.of_prompts(prompts)  # each [B, 2 K]
    scores = torch.zeros(len(prompts), 1, device=log_p.device)  # [B, beams]: one at first, then K
    for n in range(1, max(limits) + 1):
        totals = (scores.view(-1, 1) + log_p).view(len(active), -1)  # [B, beams * 2 K]
        best, order = totals.topk(2 * K)  # [B, 2 K], best first
        tokens = words.view(len(active), -1).gather(1, order)  # [B, 2 K]
        kept = []  # of each prompt, the K hypotheses that survive
        for search, *row in zip(active, best.tolist(), (order // (2 * K)).tolist(), tokens.tolist()):
            survivors = search.advance(zip(*row), n, n == limits[search.index], end, K, length_norm)
            kept.append(survivors)
            if not survivors:
                results[search.index] = search.ended[0][1]
        unfinished = [b for b, survivors in enumerate(kept) if survivors]
        if not unfinished:
            break
        # Finished prompts leave the batch; the beams of the others change places, die or branch.
        active = [active[b] for b in unfinished]
        columns = zip(*(hypothesis for b in unfinished for hypothesis in kept[b]))
        scores, beams, tokens = (torch.tensor(column, device=log_p.device).view(-1, K) for column in columns)  # [B, K]
        log_p, words = reader.of_beams(torch.tensor(unfinished, device=log_p.device), beams, tokens)  # each [R, 2 K]
    return results
