"""Training of a byte-pair encoding (Sennrich et al. 2016; on bytes, as in GPT-2).

The text is split into pieces (a word with the space in front of it, a number, punctuation). Each piece starts as a
sequence of bytes. Then

    repeat:  count the pairs of adjacent tokens in all pieces;  merge the most frequent pair into one new token

until the vocabulary has the desired size. The list of merges, in order, defines the vocabulary. An example on paper,
with the pieces low x 5, lower x 2, newest x 6: "w e" occurs 8 times and becomes "we" first.

The vocabulary is written as GPT-2's two files, so harness/tokenizers.py reads it with tiktoken, like GPT-2's:

    vocab.bpe       a line for each merge, its two tokens
    encoder.json    token -> id: the 256 bytes, the merges, and last the end token

Left out: encoding, which tiktoken does.
"""

import heapq
import itertools
import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

import regex  # installed with tiktoken, whose pattern uses \p{L}

from harness.files import write_atomic
from harness.gpt2_bpe import tiktoken_pattern
from harness.vocabulary import END


def byte_letters() -> list[str]:
    """GPT-2's printable letter for each byte: printable Latin-1 maps to itself, the rest to U+0100 and upwards."""
    plain = [b for b in range(256) if chr(b).isprintable() and chr(b) != " "]
    others = iter(range(256, 512))
    return [chr(b) if b in plain else chr(next(others)) for b in range(256)]


def train_bpe(texts: Iterable[str], n_merges: int) -> list[tuple[bytes, bytes]]:
    """The first n_merges merges. Ties go to the pair that is larger in byte order, whatever the order of the texts.

    Raises ValueError if the texts have too few different pairs.
    """
    pieces = Counter(piece for text in texts for piece in regex.findall(tiktoken_pattern(), text))
    words = [[bytes([b]) for b in piece.encode()] for piece in pieces]
    counts = list(pieces.values())
    pairs: Counter = Counter()  # pair -> number of occurrences
    where: dict[tuple, set[int]] = defaultdict(set)  # pair -> indices of the words that contain it, or did
    for i, word in enumerate(words):
        for pair in itertools.pairwise(word):
            pairs[pair] += counts[i]
            where[pair].add(i)
    # The most frequent pair is at the top of the heap. A changed count is pushed again, and its old entry is skipped.
    heap = [Ranked(count, pair) for pair, count in pairs.items()]
    heapq.heapify(heap)
    merges = []
    while len(merges) < n_merges:
        if not heap:
            counts = f"only {len(merges)} merges, not {n_merges}"
            raise ValueError(f"the texts give {counts}: train on more, or make the vocabulary smaller")
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
    """(count, pair) in reversed order: the heap returns the highest count first, and among equals the larger pair."""

    def __new__(cls, count: int, pair: tuple[bytes, bytes]):
        return super().__new__(cls, (count, pair))

    def __lt__(self, other) -> bool:
        return tuple(self) > tuple(other)


def merge(word: list[bytes], pair: tuple[bytes, bytes]) -> list[bytes]:
    """The word with each occurrence of the pair merged into one token, from the left."""
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
    """Write vocab.bpe and encoder.json: 256 + len(merges) tokens, then the end token, which has the last id."""
    letters = byte_letters()
    spell = lambda token: "".join(letters[b] for b in token)
    single = sorted(letters)  # GPT-2's order of the bytes: printable ones first
    tokens = [*single, *(spell(a + b) for a, b in merges), END]
    with write_atomic(Path(folder) / "vocab.bpe") as file:
        file.write("#version: 0.2\n" + "".join(f"{spell(a)} {spell(b)}\n" for a, b in merges))
    with write_atomic(Path(folder) / "encoder.json") as file:
        json.dump({token: i for i, token in enumerate(tokens)}, file, ensure_ascii=True)
