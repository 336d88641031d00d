"""What a generated word attends to: the weights of attention, and their shares on the prefix, the table and the text.

A layer's head weighs the S keys for each query (gpt2.py, llama.py) but does not return the weights, so they are
computed again here from what the layer reads:

    A = softmax(q k^T / sqrt(D) + mask)          [T, S], a row for each query, which sums to 1
    k = [P_k ; k of the tokens]                  the prefix's keys in front, put there by the layer's own hook

A word is predicted by the token before it: the row that belongs to a word of n tokens is the mean of the n rows of the
positions before them. Its share on a source (the prefix, a field of the table, ...) is the sum of the row over that
source's keys. So the shares of a word sum to 1 in every head, and a mean over heads or layers sums to 1 too.

    prefix         its P positions
    a field        its name, colon and value, and the bar after it
    separator      the space after the table, and <|endoftext|>
    earlier words  of the text that is being written

A weight says how much of a value enters a head's output, not how much the value matters to the word: values differ in
size, and what a head adds may be undone by another. Left out: shelves.

Shapes: B batch, T tokens, E entries of the prefix, S keys (E + T), H heads, D head size, L layers, W words, N sources.
"""

import math
from typing import NamedTuple

import tiktoken
import torch
import torch.nn.functional as F
from torch import Tensor

from beam import beam_search
from e2e_data import encode_prompt
from evaluate import Writer, decode_ids, newline_tokens
from gpt2 import GPT2, causal_mask, split_heads
from harness.files import InputError
from llama import Llama, rotate

SEPARATOR, EARLIER = "separator", "earlier words"


class Seen(NamedTuple):
    """What a layer's heads look at in one pass."""

    weights: Tensor  # [B, H, T, S]
    values: Tensor  # [B, H, S, D]


@torch.no_grad()
def attention_weights(model: GPT2 | Llama, tokens: Tensor) -> list[Seen]:
    """The weights and values of each layer when the model reads tokens [B, T], with whatever is attached to it.

    The model is the plain one in evaluation mode: where the fast path takes over, a layer is not called.
    """
    inputs: dict[int, tuple] = {}  # a layer's last call. (Embedding-only reads its embeddings first.)

    def record(attn, args):
        inputs[attn.layer] = args

    handles = [attn.register_forward_pre_hook(record) for attn in model.attentions]
    try:
        model(tokens)
    finally:
        for handle in handles:
            handle.remove()
    weigh = weigh_llama if isinstance(model, Llama) else weigh_gpt2
    return [weigh(attn, *inputs[attn.layer]) for attn in model.attentions]


def weigh_gpt2(attn, x: Tensor, mask: Tensor | None, cache: None) -> Seen:
    """A layer of GPT-2 that reads x [B, T, C]."""
    q, k, v = split_heads(attn.c_attn(x), attn.n_head)  # each [B, H, T, D]; a LoRA of c_attn acts inside
    return weigh(attn, q, k, v, mask)


def weigh_llama(attn, x: Tensor, turn: tuple[Tensor, Tensor], mask: Tensor | None, cache: None) -> Seen:
    """A layer of a Llama that reads x [B, T, C]."""
    q, k, v = (attn.heads(project(x)) for project in (attn.q_proj, attn.k_proj, attn.v_proj))
    return weigh(attn, rotate(q, *turn), rotate(k, *turn), v, mask)  # [B, H, T, D], [B, G, T, D], [B, G, T, D]


def weigh(attn, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Seen:
    """softmax(q k^T / sqrt(D) + mask), with the prefix in front of k and v."""
    if attn.kv_hook is not None:
        k, v = attn.kv_hook(k, v)  # [B, H or G, E + T, D]
    group = q.size(1) // k.size(1)  # 1 in GPT-2
    k, v = (t.repeat_interleave(group, dim=1) for t in (k, v))  # [B, H, S, D]
    if mask is None:
        mask = causal_mask(q.size(2), k.size(2), q.device)  # [T, S]
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))  # [B, H, T, S]
    return Seen(F.softmax(scores.masked_fill(~mask, -torch.inf), dim=-1), v)


# ----------------------------------------------------------------------------- tokens -> words and fields


def words_of(tokenizer: tiktoken.Encoding, ids: list[int]) -> list[tuple[str, list[int]]]:
    """The words of a text, between white space, each with the places of its tokens in ids."""
    groups: list[list[int]] = []
    ended = True  # the word before, by white space
    for place, token in enumerate(ids):
        raw = tokenizer.decode_single_token_bytes(token)
        if not raw.strip():
            ended = True  # a token of white space belongs to no word
            continue
        if ended or raw[:1].isspace():
            groups.append([])
        groups[-1].append(place)
        ended = raw[-1:].isspace()
    return [(decode_ids(tokenizer, [ids[place] for place in places]), places) for places in groups]


def fields_of(tokenizer: tiktoken.Encoding, source: str, ids: list[int]) -> tuple[list[str], list[int]]:
    """The names of a table's fields, each once, and the field of each of the prompt's tokens: (names, one a token).

    A part without a name, as in an input that is no table, is "input". The tokens after the table, the separator among
    them, have the number len(names).
    """
    ends, labels = [], []  # of each part, the bar after it included
    for part in source.split(" | "):
        labels.append(part.partition(" : ")[0].strip() if " : " in part else "input")
        ends.append((ends[-1] if ends else 1) + len(f"{part} | ".encode()))  # 1: the space in front of the prompt
    ends[-1] -= len(" | ")
    names = list(dict.fromkeys(labels))
    found, end = [], 0
    for token in ids:
        end += len(tokenizer.decode_single_token_bytes(token))
        inside = [names.index(label) for label, last in zip(labels, ends) if end <= last]
        found.append(inside[0] if inside else len(names))
    return names, found


# ----------------------------------------------------------------------------- shares


class Look(NamedTuple):
    """A generated text, and what its words attend to."""

    source: str
    text: str
    words: list[str]  # W
    sources: list[str]  # N: the prefix's kind, the fields, SEPARATOR, EARLIER
    shares: Tensor  # [L, H, W, N], each row of N sums to 1

    @property
    def prefix_by_head(self) -> Tensor:
        """The share on the prefix, mean over words: [L, H]."""
        return self.shares[..., 0].mean(2)


def look(writer: Writer, table: str) -> Look:
    """Let a run write its text for a table, then see what each word attends to. The writer is plain and in fp32.

    Raises InputError for a table that the run cannot read, and for a text without a word.
    """
    source, s, tokenizer, model = writer.prepare(table), writer.settings, writer.tokenizer, writer.model
    prompt, end = encode_prompt(tokenizer, source), tokenizer.eot_token
    limit, banned = writer.limit(source, None), newline_tokens(tokenizer)
    (ids,) = beam_search(model, [prompt], end, s.beam_size, limit, s.length_norm, banned)
    words = words_of(tokenizer, ids)
    if not words:
        raise InputError("the run's text for this table is empty, so no word attends to anything: try another table")
    tokens = torch.tensor([prompt + ids], device=s.device)  # [1, T]
    weights = torch.cat([seen.weights for seen in attention_weights(model, tokens)])  # [L, H, T, S]
    names, fields = fields_of(tokenizer, source, prompt)
    P = weights.size(3) - weights.size(2)
    of_key = [0] * P + [1 + field for field in fields] + [len(names) + 2] * len(ids)  # the source of each key
    by_source = weights @ F.one_hot(torch.tensor(of_key), len(names) + 3).to(weights)  # [L, H, T, N]
    # The token at place j of the text is predicted at position len(prompt) + j - 1.
    rows = [by_source[:, :, [len(prompt) + j - 1 for j in places]].mean(2) for _, places in words]  # each [L, H, N]
    kind = next((part for part in s.parts if part not in ("lora", "adapter")), "prefix")
    return Look(
        source,
        decode_ids(tokenizer, ids),
        [word for word, _ in words],
        [kind, *names, SEPARATOR, EARLIER],
        torch.stack(rows, dim=2).float().cpu(),
    )


def ranking(found: Look) -> list[tuple[int, int, float]]:
    """(layer, head, mean share on the prefix) of all heads, the highest share first. Layers and heads count from 1."""
    by_head = found.prefix_by_head
    pairs = [(layer, head) for layer in range(by_head.size(0)) for head in range(by_head.size(1))]
    pairs.sort(key=lambda pair: -by_head[pair].item())
    return [(layer + 1, head + 1, by_head[layer, head].item()) for layer, head in pairs]
