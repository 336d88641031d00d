"""Byte-pair encoding, trained (Sennrich et al. 2016; on bytes, as GPT-2 does it).

The text is cut into pieces (a word with the space in front, a number, signs), each piece is at first a row of bytes, and

    repeat:  count each pair of neighbouring tokens in all pieces;  make the most frequent pair one new token

until there are as many tokens as wanted. The merges, in the order in which they were made, are the vocabulary. On paper,
with the pieces low x 5, lower x 2, newest x 6: "w e" occurs 8 times and becomes "we" first.

It is written in the two files of GPT-2's own, so `e2e_data.load_tokenizer` reads it with tiktoken, like GPT-2's:

    vocab.bpe       a line for each merge, its two tokens
    encoder.json    token -> id: the 256 bytes, the merges, and last the end token

Left out: encoding, which is tiktoken's.
"""

import heapq
import itertools
import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

import regex  # comes with tiktoken, whose pattern needs its \p{L}

from e2e_data import END, tiktoken_pattern
from harness.files import write_atomic


def byte_letters() -> list[str]:
    """GPT-2's printable letter for each byte: itself where it is printable Latin-1, else the next from U+0100 on."""
    plain = [b for b in range(256) if chr(b).isprintable() and chr(b) != " "]
    others = iter(range(256, 512))
    return [chr(b) if b in plain else chr(next(others)) for b in range(256)]


def train_bpe(texts: Iterable[str], n_merges: int) -> list[tuple[bytes, bytes]]:
    """The first n_merges merges. Of pairs equally frequent the larger in byte order is taken, so that the order of the texts does not count.

    Raises ValueError when the texts have too few different pairs.
    """
    pieces = Counter(piece for text in texts for piece in regex.findall(tiktoken_pattern(), text))
    words = [[bytes([b]) for b in piece.encode()] for piece in pieces]
    counts = list(pieces.values())
    pairs: Counter = Counter()  # pair -> how often
    where: dict[tuple, set[int]] = defaultdict(set)  # pair -> words that hold it (or held it)
    for i, word in enumerate(words):
        for pair in itertools.pairwise(word):
            pairs[pair] += counts[i]
            where[pair].add(i)
    # The most frequent pair is at the heap's top. A count that has changed since is pushed anew; its old entry is skipped.
    heap = [Ranked(count, pair) for pair, count in pairs.items()]
    heapq.heapify(heap)
    merges = []
    while len(merges) < n_merges:
        if not heap:
            raise ValueError(
                f"the texts give only {len(merges)} merges, not {n_merges}: train on more, or make the vocabulary smaller"
            )
        count, pair = heapq.heappop(heap)
        if count != pairs[pair] or count == 0:
            continue
        merges.append(pair)
        changed = set()
        for i in where.pop(pair):
            old, new = words[i], merge(words[i], pair)
            if len(new) == len(old):
                continue
            for gone in itertools.pairwise(old):
                pairs[gone] -= counts[i]
                changed.add(gone)
            for come in itertools.pairwise(new):
                pairs[come] += counts[i]
                where[come].add(i)
                changed.add(come)
            words[i] = new
        for other in changed:
            heapq.heappush(heap, Ranked(pairs[other], other))
    return merges


class Ranked(tuple):
    """(count, pair), ordered so that the heap gives the highest count first, and of equals the larger pair."""

    def __new__(cls, count: int, pair: tuple[bytes, bytes]):
        return super().__new__(cls, (count, pair))

    def __lt__(self, other) -> bool:
        return tuple(self) > tuple(other)


def merge(word: list[bytes], pair: tuple[bytes, bytes]) -> list[bytes]:
    """The word with each occurrence of the pair made one token, from the left."""
    merged, i = [], 0
    while i < len(word):
        if tuple(word[i : i + 2]) == pair:
            merged.append(word[i] + word[i + 1])
            i += 2
        else:
            merged.append(word[i])
            i += 1
    return merged


def write_vocabulary(folder: Path, merges: list[tuple[bytes, bytes]]) -> None:
    """Write vocab.bpe and encoder.json: 256 + len(merges) tokens, and the end token with the last id."""
    letters = byte_letters()
    spell = lambda token: "".join(letters[b] for b in token)  # noqa: E731
    single = sorted(letters)  # GPT-2's order of the bytes: printable ones first
    tokens = [*single, *(spell(a + b) for a, b in merges), END]
    with write_atomic(Path(folder) / "vocab.bpe") as file:
        file.write("#version: 0.2\n" + "".join(f"{spell(a)} {spell(b)}\n" for a, b in merges))
    with write_atomic(Path(folder) / "encoder.json") as file:
        json.dump({token: i for i, token in enumerate(tokens)}, file, ensure_ascii=True)
