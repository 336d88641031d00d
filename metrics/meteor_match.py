"""METEOR's matches: which words and phrases of a hypothesis match which of a reference.

Source: Banerjee and Lavie 2005, section 3.1; Denkowski and Lavie 2014, section 2. Four modules, in this order:

    exact       the same word
    stem        two different words with the same stem (metrics/stemmer.py)
    synonym     two different words with a synset in common (metrics/meteor_tables.py)
    paraphrase  two spans of one to seven words that are a pair of the table, in either direction

The matches of all modules are kept: two words with the same stem and a common synset match twice. The alignment
decides which matches are used (metrics/meteor_align.py). It breaks ties by the order of the matches, so the
order here is the jar's. For each word of the reference:

    exact, stem, synonym: from left to right in the hypothesis;
    paraphrases listed for the reference's span: short spans first, then as in the table,
        then from left to right in the hypothesis;
    paraphrases listed for the hypothesis's span: from left to right, short spans first, then as in
        the table. So a pair that the table has in both directions matches twice.

Worked example. Hypothesis "the cat sat", reference "the cats sat": one exact match at the reference's first
word; at "cats" a stem match with "cat" and also a synonym match (the synsets of "cats" are those of its base
form); one exact match at "sat".

The jar compares words and stems by Java's 32-bit string hash, and so does this file: two words with the same
hash (very few) are "the same word".

Left out: the probabilities of matches (the jar gives every match the same).
"""

from collections import defaultdict
from typing import NamedTuple

import numpy as np

from metrics.meteor_tables import Tables
from metrics.stemmer import stem

EXACT, STEM, SYNONYM, PARAPHRASE = MODULES = range(4)


class Match(NamedTuple):
    """A span of the hypothesis that matches a span of the reference.

    The list that holds the match says where the latter begins. `hyp_words` is the hypothesis's span as a set of
    bits. `gain` is the value of the match in the alignment search.
    """

    module: int
    hyp_start: int
    hyp_length: int
    ref_length: int
    hyp_words: int
    gain: int


def match(module: int, hyp_start: int, hyp_length: int, ref_length: int) -> Match:
    # The jar's search values exact matches at 1 and all others at 0.5 per word, and rounds down for each side of
    # each match: only an exact match or a span of two words or more has a value.
    gain = hyp_length + ref_length if module == EXACT else hyp_length // 2 + ref_length // 2
    return Match(module, hyp_start, hyp_length, ref_length, ((1 << hyp_length) - 1) << hyp_start, gain)


class Text(NamedTuple):
    """A text: its words, their hashes, and the phrases of the paraphrase table that begin at each word."""

    words: list[str]
    keys: list[int]  # java_hash of each word, which the exact module compares
    phrases_at: dict[int, tuple[int, ...]]  # position -> the phrases there (node numbers), short ones first


class Lexicon:
    """Hashes, stems, synsets and paraphrases of all words and phrases of some texts, each looked up once."""

    def __init__(self, hypotheses: list[list[str]], references: list[list[str]], tables: Tables):
        texts = [*hypotheses, *references]
        words = dict.fromkeys(word for text in texts for word in text)
        self.key = {word: java_hash(word) for word in words}
        self._stem = {word: java_hash(stem(word)) for word in words}
        self._synsets = {word: tables.synsets(word) for word in words}
        self._with_key, self._with_stem, self._with_synset = defaultdict(set), defaultdict(set), defaultdict(set)
        for word in words:
            self._with_key[self.key[word]].add(word)
            self._with_stem[self._stem[word]].add(word)
            for synset in self._synsets[word]:
                self._with_synset[synset].add(word)
        self._related: dict[str, list[tuple[int, str]]] = {}

        positions, lengths, phrases = tables.paraphrases.find_phrases(texts)
        references_start = sum(len(text) + 1 for text in hypotheses)
        in_hypotheses, in_references = phrases[positions < references_start], phrases[positions >= references_start]
        # phrase -> {its paraphrase: the rank in its list}, and the inverse: paraphrase -> {phrase: rank}
        self.paraphrases = tables.paraphrases.pairs_between(in_hypotheses, in_references)
        self.listed_under: dict[int, dict[int, int]] = defaultdict(dict)
        for phrase, ranks in self.paraphrases.items():
            for paraphrase, rank in ranks.items():
                self.listed_under[paraphrase][phrase] = rank
        self.partners = {
            phrase: self.paraphrases.get(phrase, {}).keys() | self.listed_under.get(phrase, {}).keys()
            for phrase in [*self.paraphrases, *self.listed_under]
        }
        paired = np.isin(phrases, list(self.partners))
        positions, phrases = positions[paired].tolist(), phrases[paired].tolist()
        self.length = dict(zip(phrases, lengths[paired].tolist()))  # phrase -> its number of words

        self.texts: dict[tuple[str, ...], Text] = {}
        offset = done = 0
        for text in texts:
            phrases_at: dict[int, tuple[int, ...]] = {}
            end = offset + len(text)
            while done < len(positions) and positions[done] < end:
                start = positions[done] - offset
                phrases_at[start] = phrases_at.get(start, ()) + (phrases[done],)
                done += 1
            offset = end + 1
            self.texts[tuple(text)] = Text(text, [self.key[word] for word in text], phrases_at)

    def related(self, word: str) -> list[tuple[int, str]]:
        """(module, other word) for each word that matches `word` by EXACT, STEM or SYNONYM."""
        if word not in self._related:
            same = self._with_key[self.key[word]]
            same_stem = self._with_stem[self._stem[word]] - same
            synonyms = set().union(*(self._with_synset[synset] for synset in self._synsets[word])) - same
            by_module = ((EXACT, same), (STEM, same_stem), (SYNONYM, synonyms))
            self._related[word] = [(module, other) for module, others in by_module for other in others]
        return self._related[word]


class Matcher:
    """Matches one hypothesis with its references. Results are cached, as the references share most of their words."""

    def __init__(self, hypothesis: Text, lexicon: Lexicon):
        self.hypothesis, self.lexicon = hypothesis, lexicon
        self._positions: dict[str, list[int]] = defaultdict(list)  # word -> its positions in the hypothesis
        for position, word in enumerate(hypothesis.words):
            self._positions[word].append(position)
        self._starts: dict[int, list[int]] = defaultdict(list)  # phrase -> where it begins in the hypothesis
        for start, phrases in hypothesis.phrases_at.items():
            for phrase in phrases:
                self._starts[phrase].append(start)
        self._partners = set().union(*(lexicon.partners[phrase] for phrase in self._starts))
        self._by_word: dict[str, list[Match]] = {}
        self._by_phrases: dict[tuple[int, ...], list[Match]] = {}

    def matches(self, reference: Text) -> list[list[Match]]:
        """One list for each word of the reference: the matches whose span of the reference begins there."""
        if self.hypothesis.keys == reference.keys:  # identical texts: the jar looks for exact matches only
            return [[m for m in self.word_matches(word) if m.module == EXACT] for word in reference.words]
        by_word, by_phrases = self._by_word, self._by_phrases
        matches = []
        for word in reference.words:
            found = by_word.get(word)
            matches.append(self.word_matches(word) if found is None else found)
        for start, phrases in reference.phrases_at.items():
            found = by_phrases.get(phrases)
            if found is None:
                unmatched = self._partners.isdisjoint(phrases)  # most phrases are
                found = by_phrases[phrases] = [] if unmatched else self.paraphrase_matches(phrases)
            if found:
                matches[start] = matches[start] + found
        return matches

    def word_matches(self, word: str) -> list[Match]:
        if word not in self._by_word:
            related, positions = self.lexicon.related(word), self._positions
            found = sorted((module, p) for module, other in related if other in positions for p in positions[other])
            self._by_word[word] = [match(module, position, 1, 1) for module, position in found]
        return self._by_word[word]

    def paraphrase_matches(self, phrases: tuple[int, ...]) -> list[Match]:
        """The paraphrase matches at a word of the reference. phrases: those that begin there, short ones first."""
        length = self.lexicon.length
        found, backwards = [], []
        for phrase in phrases:
            ranks = self.lexicon.paraphrases.get(phrase, {})  # the paraphrases that it lists
            for _rank, paraphrase in sorted((ranks[other], other) for other in ranks.keys() & self._starts.keys()):
                for start in self._starts[paraphrase]:
                    found.append(match(PARAPHRASE, start, length[paraphrase], length[phrase]))
            ranks = self.lexicon.listed_under.get(phrase, {})  # the phrases that list it
            for other in ranks.keys() & self._starts.keys():
                for start in self._starts[other]:
                    backwards.append((start, length[other], ranks[other], length[phrase]))
        for start, hyp_length, _rank, ref_length in sorted(backwards):
            found.append(match(PARAPHRASE, start, hyp_length, ref_length))
        return found


def java_hash(word: str) -> int:
    """Java's String.hashCode, modulo 2^32: sum of unit[i] * 31^(n - 1 - i) over the n 16-bit units."""
    value = 0
    units = word.encode("utf-16-le", "surrogatepass")
    for low, high in zip(units[::2], units[1::2]):
        value = (31 * value + (high << 8 | low)) & 0xFFFFFFFF
    return value
