"""Beam search: the most probable text that a model can be found to give (Graves 2012; Freitag & Al-Onaizan 2017).

K hypotheses are kept for each prompt. A step extends each by every token, and of these K * V continuations
the best by

    log p(y_1 .. y_n | prompt) = sum_i log p(y_i | prompt, y_<i)

go on. One that ends (with the end token, among the K best) is put aside with the score

    sum_i log p(y_i) / length        length: "total"   prompt + text, the paper's code
                                             "output"  text + end token, today's libraries
                                             "none"    1, the poster

and the search for a prompt stops when K have ended and the best of those still running, at its present length,
is not above the worst of them. (Longer text may still win under a division by length; this is the heuristic that
today's libraries call early_stopping=False. The paper's code compares the best of all continuations, those that have just
ended included.)

Prompts of different lengths are padded on the right. No query of the prompt sees the padding, by causality;
the later ones are kept from it by a mask. A prompt is read once, and its beams share its keys and values, as they do
those of the text that they have in common (`BeamCache`). Left out: sampling, and everything else but the best hypothesis.

Shapes: B prompts still searched, K beams, R = B * K rows, V vocabulary, S longest prompt.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2 import KVCache
from packed import largest

LENGTH_NORMS = ("total", "output", "none")


@dataclass
class Search:
    """One prompt's search: what is running and what has ended."""

    index: int  # the prompt's place in the caller's list
    prompt_len: int
    running: list[list[int]]  # up to K hypotheses, token ids without the prompt
    ended: list[tuple[float, list[int]]] = field(default_factory=list)  # up to K (score, ids), best first

    def length(self, n: int, norm: str, with_end: bool = True) -> int:
        """What a sum of n log-probabilities is divided by. "total" does not count the end token, as in the
        paper's code; "output" does, as in today's libraries. (One that still runs is measured as if it ended now, as both do.)"""
        if norm == "total":
            return self.prompt_len + (n - 1 if with_end else n)
        return n if norm == "output" else 1

    def end(self, score: float, ids: list[int], beam_size: int) -> None:
        """Put a hypothesis aside, keeping the K best (of equals, the earlier)."""
        self.ended.append((score, ids))
        self.ended.sort(key=lambda pair: -pair[0])
        del self.ended[beam_size:]


@torch.inference_mode()
def beam_search(
    model,
    prompts: list[list[int]],
    end: int,
    beam_size: int = 5,
    max_new_tokens: int = 100,
    length_norm: str = "total",
    banned: tuple[int, ...] = (),
) -> list[list[int]]:
    """The best continuation of each prompt, as token ids without the end token.

    model   callable as GPT2.forward is: (tokens, cache, positions, mask, at) -> logits; packed (packed.py), it is asked for states
    end     the token that ends a text
    banned  tokens never produced. Their probability is not given to the others, as in the paper's code
    Raises ValueError for an empty prompt, no beams, an unknown length_norm.
    """
    if not all(prompts) or beam_size < 1 or max_new_tokens < 1 or length_norm not in LENGTH_NORMS:
        raise ValueError(f"beam search needs non-empty prompts, at least one beam and token, and a length_norm of {LENGTH_NORMS}")
    if not prompts:
        return []
    K, longest = beam_size, max(map(len, prompts))
    device = next(model.parameters()).device
    results: list[list[int]] = [[] for _ in prompts]
    active = [Search(i, len(prompt), [[]]) for i, prompt in enumerate(prompts)]
    cache = BeamCache(room=8 * K)  # for 8 tokens of each beam, and more when they are needed

    log_p, words, visible = read_prompts(model, prompts, cache, end, 2 * K, banned)  # [B, 2 K] twice, [B, S']
    scores = torch.zeros(len(prompts), 1, device=device)  # [B, beams so far: 1, later K]
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)  # [B]
    for n in range(1, max_new_tokens + 1):
        best, beams, tokens = (x.tolist() for x in extend(log_p, words, scores))  # each [B][2 K]
        kept = []  # the K continuations of each prompt that goes on: (score, beam, token)
        going_on = []
        for b, search in enumerate(active):
            chosen = advance(search, list(zip(best[b], beams[b], tokens[b])), n, n == max_new_tokens, end, K, length_norm)
            if chosen:
                kept += chosen
                going_on.append(b)
            else:
                results[search.index] = search.ended[0][1]
        if not going_on:
            break
        # Finished prompts leave the batch; the beams of the others change places, die or branch.
        scores, beams, tokens = (torch.tensor(column, device=device).view(-1, K) for column in zip(*kept))  # each [B, K]
        active = [active[b] for b in going_on]
        going_on = torch.tensor(going_on, device=device)
        cache.branch(going_on, beams)
        lengths, visible = lengths[going_on], visible[going_on]
        mask = None
        if any(search.prompt_len < longest for search in active):  # the prompt without its padding, and all that was produced
            produced = visible.new_ones(len(visible), n)
            mask = torch.cat([visible, produced], dim=1).repeat_interleave(K, 0)[:, None, None, :]  # [R, 1, 1, S' + n]
        positions = (lengths + n - 1).repeat_interleave(K)[:, None]  # [R, 1]
        inputs = {"cache": cache, "positions": positions, "mask": mask}
        log_p, words = next_words(model, tokens.view(-1, 1), 2 * K, banned, **inputs)  # each [R, 2 K]
    return results


@dataclass
class BeamCache(KVCache):
    """Keys and values of K beams a prompt, each held once however many beams need it.

    The beams of a prompt are a tree: the prompt is its trunk, and each step adds K leaves, a token for each beam. The entries
    of a tree lie side by side, as if it were one sequence, and a table says whose they are:

        path[b, k, s]  =  does entry s lie on the way from the root of prompt b's tree to the leaf of its beam k?

    So no key or value is copied when beams change places or branch: only `path` changes. And a step's K tokens attend as K
    queries of one sequence, with `path` for a mask. A leaf takes the place of an entry that is on no beam's path any more, and
    only where there is none, one behind all others: a tree is hardly larger than what its beams have read, and memory is taken
    as trees grow. So entries stand in any order. Attention does not mind (a token's position is part of what its key was
    computed from); a mask, which speaks of a beam's own entries in the order in which it read them, finds them by

        depth[b, s]  =  how many entries lie before s on the way to it

    Shapes: S entries of a tree, as many as the largest has; the first S' are its trunk, and S <= S' + n K after n steps.
    """

    path: Tensor | None = None  # [B, K, S] booleans; None until the prompts are read
    depth: Tensor | None = None  # [B, S], 0 .. S' + n - 1
    leaves: Tensor | None = None  # [R * H], where this step's keys and values go: rows of D numbers, of the B * H * room of a memory
    hidden: Tensor | None = None  # [B, 1, K, S], what is added to the scores: 0 on the path, -inf elsewhere

    def branch(self, going_on: Tensor, beams: Tensor) -> None:
        """Before a step: keep these prompts [B], and let these beams of each [B, K], repeats allowed, read a token more."""
        B, K = beams.shape
        if self.path is None:
            trunk = torch.arange(self.length, device=beams.device).expand(len(self.layers[0][0]), -1)  # [B, S']
            self.depth, self.path = trunk, torch.ones_like(trunk, dtype=torch.bool).unsqueeze(1)
        if B < len(self.path):
            self.select(going_on)
            self.depth, self.path = self.depth[going_on], self.path[going_on]
        path = self.path.gather(1, beams[:, :, None].expand(-1, -1, self.length))
        path = F.pad(path, (0, K))  # [B, K, S + K], K places more than there were
        dead = ~path.any(1)  # [B, S + K], of each tree at least K
        places = (dead & (dead.cumsum(1) <= K)).nonzero()[:, 1].view(B, K)  # the first K
        S = self.grow(max(self.length, int(places.max()) + 1))
        read = path[:1, :1].sum(2)  # [1, 1], as many entries as are on any beam's path
        self.depth = F.pad(self.depth, (0, K))[:, :S].scatter(1, places, read.expand(B, K))  # [B, S]
        self.path = path[:, :, :S].scatter(2, places[:, :, None], True)  # [B, K, S]
        _, H, room, _ = self.layers[0][0].shape
        trees = torch.arange(B * H, device=beams.device).view(B, 1, H)
        self.leaves = (trees * room + places[:, :, None]).flatten()

    def grow(self, S: int) -> int:
        """Have this many places in use, in all layers; returns their number. Memory that is too small is taken anew, half as large again."""
        for layer, memories in enumerate(self.layers):
            if (room := memories[0].size(2)) < S:
                self.layers[layer] = tuple(F.pad(memory, (0, 0, 0, S + S // 2 - room)) for memory in memories)
        self.used = [S] * len(self.layers)
        return S

    def write(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Put the leaves' k, v [R, H, 1, D] in their places; returns the layer's trees, [B, H, S, D]."""
        for memory, x in zip(self.layers[layer], (k, v)):
            memory.view(-1, x.size(-1)).index_copy_(0, self.leaves, x.reshape(-1, x.size(-1)))
        return tuple(memory[:, :, : self.length] for memory in self.layers[layer])

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """What KVCache.attend gives where each beam has a row of its own: q, k, v [R, H, 1, D], mask [R, 1, 1, S' + n] -> [R, H, 1, D]."""
        if self.path is None:
            return super().attend(layer, q, k, v, mask)
        B, K, S = self.path.shape
        if layer == 0:  # once for all layers
            seen = self.path
            if mask is not None:
                seen = seen & mask.reshape(B, K, -1).gather(2, self.depth[:, None].expand(B, K, S))
            self.hidden = torch.zeros_like(seen, dtype=q.dtype).masked_fill(~seen, -torch.inf).unsqueeze(1)
        k, v = self.write(layer, k, v)  # each [B, H, S, D]
        q = q.unflatten(0, (B, K)).squeeze(3).transpose(1, 2)  # [B, H, K, D]: a prompt's K rows of one token as one row of K
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=self.hidden)  # [B, H, K, D]
        return y.transpose(1, 2).flatten(0, 1).unsqueeze(2)

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """For a model that does not call `attend`: each beam's own keys and values, copied together, [R, H, S' + n, D]."""
        if self.path is None:
            return super().append(layer, k, v)
        B, K, S = self.path.shape
        order = self.depth[:, None].masked_fill(~self.path, S).argsort(2)[:, :, : int(self.path[0, 0].sum())]  # [B, K, S' + n]
        b = torch.arange(B, device=order.device)[:, None, None]
        return tuple(memory[b, :, order].flatten(0, 1).transpose(1, 2) for memory in self.write(layer, k, v))


def read_prompts(model, prompts: list[list[int]], cache: KVCache, pad: int, n: int, banned) -> tuple[Tensor, Tensor, Tensor]:
    """Fill the cache; returns log p of the n best next words and their ids [B, n], and which cache entries are no padding [B, S'].

    S' = S + whatever stands in the cache beside the prompts (a prefix), which every token may see.
    """
    S, device = max(len(prompt) for prompt in prompts), next(model.parameters()).device
    tokens = torch.tensor([prompt + [pad] * (S - len(prompt)) for prompt in prompts], device=device)  # [B, S]
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    last = torch.arange(len(prompts), device=device) * S + lengths - 1  # the prompts' last tokens, among the B * S
    log_p, words = next_words(model, tokens, n, banned, cache=cache, at=last)  # each [B, n]
    visible = torch.ones(len(prompts), cache.length, dtype=torch.bool, device=device)
    visible[:, cache.length - S :] = torch.arange(S, device=device) < lengths[:, None]
    return log_p, words, visible


def next_words(model, tokens: Tensor, n: int, banned: tuple[int, ...], **inputs) -> tuple[Tensor, Tensor]:
    """log p of the n = 2 K best next words of each row that the model gives for these inputs, and their ids: both [R, n], best first."""
    two_rounds = getattr(model, "two_rounds", None)
    found = model(tokens, **inputs, **({} if two_rounds is None else {"states": True})).flatten(0, -2)  # [R, V], or states [R, C]
    V = found.size(1) if two_rounds is None else len(two_rounds.weight)
    if V - len(banned) < n:
        raise ValueError(f"a vocabulary of {V} is too small for {n // 2} beams: 2 for each are compared")
    if two_rounds is not None:
        return two_rounds(found, n, banned)
    logits = found.float()
    # log p = logit - log z with z = sum exp(logits), on a CPU a few rows at a time, so that these stay in its cache.
    few = logits.split(16 if logits.device.type == "cpu" else len(logits))
    log_z = torch.cat([rows.logsumexp(dim=-1, keepdim=True) for rows in few])  # [R, 1]
    logits[:, list(banned)] = -torch.inf  # in place: they are not needed again
    best, words = largest(logits, n)
    return best - log_z, words


def extend(log_p: Tensor, words: Tensor, scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The 2 K best continuations of each prompt: (scores, beams they extend, words), each [B, 2 K], best first.

    log_p, words  the 2 K best next words of each beam, [B * beams, 2 K]: among these are the best 2 K of all, so the long list,
                  K * V, is never made. Twice as many as go on, since up to K of them may end
    scores        of the beams, [B, beams]
    """
    B, n = len(scores), log_p.size(1)
    totals, order = (scores.view(-1, 1) + log_p).view(B, -1).topk(n, dim=-1)  # [B, 2 K], of beams * 2 K
    return totals, order // n, words.view(B, -1).gather(1, order)


def advance(search: Search, candidates, n: int, last: bool, end: int, K: int, norm: str) -> list[tuple[float, int, int]]:
    """Decide a step for one prompt: its K (score, beam, token) that go on, or [] when its search is over."""
    going_on = []
    for rank, (score, beam, token) in enumerate(candidates):
        if token == end or last:
            if rank < K:  # an ending that is not among the K best is dropped
                ids = search.running[beam] + ([] if token == end else [token])
                search.end(score / search.length(n, norm, token == end), ids, K)
        elif len(going_on) < K:
            going_on.append((score, beam, token))
    if not going_on:
        return []
    search.running = [search.running[beam] + [token] for _, beam, token in going_on]
    full = len(search.ended) == K
    return [] if full and going_on[0][0] / search.length(n, norm) <= search.ended[-1][0] else going_on
