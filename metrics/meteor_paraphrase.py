"""METEOR's paraphrase table, packed so that it loads in a fraction of a second and needs little memory.

Source: Denkowski and Lavie 2014, "Meteor Universal", section 2: phrases that translators render by
the same foreign phrase are paraphrases of each other. The English table is a gzip file of 5.27
million pairs, three lines per pair:

    0.25                    a probability, which the jar ignores
    not far from            a phrase of one to seven words
    close to                a paraphrase of it

In the packed table a phrase is a number: its node in the trie of all phrases. The root is node 0. An edge leads
from a parent along a word. All edges, level by level and sorted within each level, are numbered from 1: edge n
leads to node n. "close to" is the node reached from the root along "close" and then "to". No two phrases
end at the same node, so the number identifies the phrase. An edge is stored as one integer,

    edge_keys[node - 1] = parent << 24 | word

and since parents of deeper levels have larger numbers these integers are ascending: one binary search
takes a step down the trie. The pairs are three more arrays: sources[s] is a phrase that has paraphrases, and
its paraphrases are targets[starts[s] : starts[s + 1]], in the order of the file, on which METEOR's ties depend.

Worked example. Three pairs, (a b, c), (a b, a) and (c, a b). Words: a = 1, b = 2, c = 3.
Level 1: "a" is node 1, key 0<<24|1; "c" is node 2, key 0<<24|3. Level 2: "a b" is node 3, key 1<<24|2.
sources = [2, 3], starts = [0, 1, 3], targets = [3, 2, 1].

Left out: the probabilities, as in the jar. `pairs_between` relies on the table listing no pair twice.
"""

import gzip
import zipfile
import zlib
from array import array
from itertools import islice
from pathlib import Path

import numpy as np

FORMAT = 2  # of the packed file; increased when the meaning of its contents changes
WORD_BITS = 24
ARRAYS = ("edge_keys", "sources", "starts", "targets")


class ParaphraseTable:
    """The packed table.

    words: word -> number from 1.   edge_keys: int64 [nodes], ascending.
    sources: int32 [S], ascending.   starts: int64 [S + 1].   targets: int32 [pairs].
    """

    def __init__(self, words: dict[str, int], arrays: dict[str, np.ndarray]):
        self.words = words
        self.edge_keys, self.sources, self.starts, self.targets = (arrays[name] for name in ARRAYS)

    @classmethod
    def read(cls, source: Path) -> "ParaphraseTable":
        """Read the gzip file (about 20 seconds, 500 MB at the peak). Raises ValueError if it is damaged."""
        words = _Numbering()
        # All phrases in one array; each is followed by its paraphrases.
        numbers, lengths, has_list = array("I"), array("I"), array("B")

        def append(line: bytes, flag: bool) -> None:
            before = len(numbers)
            numbers.extend(map(words.__getitem__, line.split()))
            lengths.append(len(numbers) - before)
            has_list.append(flag)

        try:
            with gzip.open(source, "rb") as lines:
                phrase = None
                for _probability in lines:
                    line, paraphrase = islice(lines, 2)
                    if line != phrase:  # the file is grouped by phrase
                        phrase = line
                        append(phrase, True)
                    append(paraphrase, False)
        except (EOFError, ValueError, OSError, zlib.error) as error:  # a truncated file, a truncated pair, not gzip
            raise ValueError(f"{source} is damaged ({error})") from error

        edge_keys, nodes = trie(np.frombuffer(numbers, np.uint32), np.frombuffer(lengths, np.uint32))
        has_list = np.frombuffer(has_list, bool)
        pair_sources = nodes[has_list][np.cumsum(has_list)[~has_list] - 1]
        targets = nodes[~has_list]
        by_source = np.argsort(pair_sources, kind="stable")
        sources, counts = np.unique(pair_sources, return_counts=True)
        starts = np.concatenate([[0], np.cumsum(counts)])
        arrays = dict(zip(ARRAYS, (edge_keys, sources, starts, targets[by_source])))
        return cls({word.decode(): number for word, number in words.items()}, arrays)

    def save(self, file) -> None:
        """Write to an open binary file: a zip of arrays. `load` relies on the zip's checksums."""
        words = np.frombuffer("\n".join(self.words).encode(), np.uint8)  # in the order of their numbers
        np.savez(file, format=FORMAT, words=words, **{name: getattr(self, name) for name in ARRAYS})

    @classmethod
    def load(cls, path: Path) -> "ParaphraseTable | None":
        """The table that `save` wrote, or None if it is missing, damaged or of another format."""
        try:
            with np.load(path) as packed:
                if packed["format"] != FORMAT:
                    return None
                words = bytes(packed["words"]).decode().split("\n")
                arrays = {name: packed[name] for name in ARRAYS}
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
            return None
        return cls({word: number for number, word in enumerate(words, start=1)}, arrays)

    def find_phrases(self, texts: list[list[str]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Every span of words that is a node of the trie, in the concatenation of all texts.

        Returns (positions, lengths, nodes), int64 [spans] each, sorted by position and then length;
        positions count words, and one separator after each text.
        """
        number = self.words.get
        words = np.array([number(word, 0) for text in texts for word in [*text, ""]], np.int64)  # 0 is on no edge
        positions, nodes, found = np.arange(len(words)), np.zeros(len(words), np.int64), []
        for length in range(1, len(words) + 1):
            inside = positions + length <= len(words)
            positions, nodes = positions[inside], nodes[inside]
            nodes = self.step(nodes, words[positions + length - 1])
            positions, nodes = positions[nodes > 0], nodes[nodes > 0]
            if not len(nodes):
                break
            found.append((positions, np.full(len(nodes), length), nodes))
        if not found:
            return tuple(np.zeros((3, 0), np.int64))
        positions, lengths, nodes = (np.concatenate(column) for column in zip(*found))
        order = np.lexsort((lengths, positions))
        return positions[order], lengths[order], nodes[order]

    def step(self, nodes: np.ndarray, words: np.ndarray) -> np.ndarray:
        """The nodes reached from `nodes` along `words`, 0 if there is no edge. All int64 [n]."""
        keys = nodes << WORD_BITS | words
        index = np.minimum(np.searchsorted(self.edge_keys, keys), len(self.edge_keys) - 1)
        return np.where(self.edge_keys[index] == keys, index + 1, 0)

    def pairs_between(self, some: np.ndarray, others: np.ndarray) -> dict[int, dict[int, int]]:
        """phrase -> {its paraphrase: the rank in its list}, for pairs with one phrase in `some` and one in `others`."""
        in_some, in_others = np.zeros((2, len(self.edge_keys) + 1), bool)
        in_some[some] = in_others[others] = True
        pairs: dict[int, dict[int, int]] = {}
        for row in np.flatnonzero((in_some | in_others)[self.sources]).tolist():
            source = int(self.sources[row])
            targets = self.targets[self.starts[row] : self.starts[row + 1]]
            ranks = np.flatnonzero(in_some[source] & in_others[targets] | in_others[source] & in_some[targets])
            if len(ranks):
                pairs[source] = dict(zip(targets[ranks].tolist(), ranks.tolist()))
        return pairs


class _Numbering(dict):
    """Assigns each new key the next number, from 1."""

    def __missing__(self, key):
        self[key] = number = len(self) + 1
        return number


def trie(numbers: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The trie of n phrases: (edge_keys int64 [nodes], the node of each phrase int32 [n]).

    numbers: the words of all phrases, concatenated; lengths: the number of words of each, uint32 [n].
    """
    begins = (np.cumsum(lengths) - lengths).astype(np.int32)
    nodes = np.zeros(len(lengths), np.int32)
    edge_keys = [np.zeros(0, np.int64)]
    for level in range(int(lengths.max(initial=0))):
        longer = np.flatnonzero(lengths > level).astype(np.int32)
        keys = nodes[longer].astype(np.int64) << WORD_BITS | numbers[begins[longer] + level]
        level_keys, ranks = np.unique(keys, return_inverse=True)
        nodes[longer] = 1 + sum(map(len, edge_keys)) + ranks
        edge_keys.append(level_keys)
    return np.concatenate(edge_keys), nodes
