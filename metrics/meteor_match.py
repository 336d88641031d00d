"""METEOR's matches: which words and phrases of a hypothesis may stand for which of a reference.

Source: Banerjee and Lavie 2005, section 3.1; Denkowski and Lavie 2014, section 2. Four modules, in this order:

    exact       the same word
    stem        two different words with one stem (metrics/stemmer.py)
    synonym     two different words with a synset in common (metrics/meteor_tables.py)
    paraphrase  two stretches of one to seven words that are a pair of the table, in either direction

All modules' matches are kept side by side: two words with one stem and one synset match twice. Which of
them are used is for the alignment to decide (metrics/meteor_align.py), and ties are decided there by the
order the matches stand in, so the order here is the jar's, for each word of the reference:

    exact, stem, synonym: from left to right in the hypothesis;
    paraphrases listed for the reference's stretch: short stretches first, then as in the table,
        then from left to right in the hypothesis;
    paraphrases listed for the hypothesis's stretch: from left to right, short stretches first, then as in
        the table. A pair that the table has in both directions is thus a match twice.

Worked example. Hypothesis "the cat sat", reference "the cats sat": at the reference's first word one
exact match, at "cats" a stem match with "cat" and also a synonym match (the synsets of "cats" are those
of its base form), at "sat" one exact match.

The jar compares words and stems by Java's 32-bit hash of their letters, and so does this file: two words that
share it (hardly any do) are "the same word".

Left out: the probabilities the jar could attach to matches (it gives all the same).
"""

from collections import defaultdict
from typing import NamedTuple

import numpy as np

from metrics.meteor_tables import Tables
from metrics.stemmer import stem

EXACT, STEM, SYNONYM, PARAPHRASE = MODULES = range(4)


class Match(NamedTuple):
    """A stretch of the hypothesis that can stand for a stretch of the reference.

    Where the latter begins is known from the list the match is in. `hyp_words` is the hypothesis's stretch
    as a set of bits. `gain` is what the alignment search takes the match to be worth.
    """

    module: int
    hyp_start: int
    hyp_length: int
    ref_length: int
    hyp_words: int
    gain: int


def match(module: int, hyp_start: int, hyp_length: int, ref_length: int) -> Match:
    # The jar's search weighs exact matches 1 and all others 0.5 a word, and cuts off what is behind the point
    # for each side of each match: only an exact match or a stretch of two words or more is worth anything.
    gain = hyp_length + ref_length if module == EXACT else hyp_length // 2 + ref_length // 2
    return Match(module, hyp_start, hyp_length, ref_length, ((1 << hyp_length) - 1) << hyp_start, gain)


class Text(NamedTuple):
    """A text's words, what the exact module compares of them, and which phrases of the table begin at which word."""

    words: list[str]
    keys: list[int]
    phrases_at: dict[int, tuple[int, ...]]  # position -> the phrases there (node numbers), short ones first


class Lexicon:
    """Whatever is to be known about the words and phrases of some texts, looked up once for all of them."""

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
        behind_hypotheses = sum(len(text) + 1 for text in hypotheses)
        in_hypotheses, in_references = phrases[positions < behind_hypotheses], phrases[positions >= behind_hypotheses]
        # phrase -> {its paraphrase: the rank in its list}, and the other way round {paraphrase: {phrase: rank}}
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
        """(module, other word) for the words that match `word` by EXACT, STEM and SYNONYM."""
        if word not in self._related:
            same = self._with_key[self.key[word]]
            same_stem = self._with_stem[self._stem[word]] - same
            synonyms = set().union(*(self._with_synset[synset] for synset in self._synsets[word])) - same
            by_module = ((EXACT, same), (STEM, same_stem), (SYNONYM, synonyms))
            self._related[word] = [(module, other) for module, others in by_module for other in others]
        return self._related[word]


class Matcher:
    """One hypothesis, ready to be matched with its references, which share most of their words."""

    def __init__(self, hypothesis: Text, lexicon: Lexicon):
        self.hypothesis, self.lexicon = hypothesis, lexicon
        self._positions: dict[str, list[int]] = defaultdict(list)  # word -> where it stands in the hypothesis
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
        """One list for each of the reference's words: the matches whose stretch of the reference begins there."""
        if self.hypothesis.keys == reference.keys:  # identical: the jar looks for exact matches only
            return [[m for m in self._word_matches(word) if m.module == EXACT] for word in reference.words]
        by_word, by_phrases = self._by_word, self._by_phrases
        matches = []
        for word in reference.words:
            found = by_word.get(word)
            matches.append(self._word_matches(word) if found is None else found)
        for start, phrases in reference.phrases_at.items():
            found = by_phrases.get(phrases)
            if found is None:
                hopeless = self._partners.isdisjoint(phrases)  # as most are
                found = by_phrases[phrases] = [] if hopeless else self._paraphrase_matches(phrases)
            if found:
                matches[start] = matches[start] + found
        return matches

    def _word_matches(self, word: str) -> list[Match]:
        if word not in self._by_word:
            related, positions = self.lexicon.related(word), self._positions
            found = sorted((module, p) for module, other in related if other in positions for p in positions[other])
            self._by_word[word] = [match(module, position, 1, 1) for module, position in found]
        return self._by_word[word]

    def _paraphrase_matches(self, phrases: tuple[int, ...]) -> list[Match]:
        """The matches of a place of the reference at which these phrases begin, short ones first."""
        length = self.lexicon.length
        found, backwards = [], []
        for phrase in phrases:
            ranks = self.lexicon.paraphrases.get(phrase, {})  # those of the hypothesis's phrases that it lists
            for _rank, paraphrase in sorted((ranks[other], other) for other in ranks.keys() & self._starts.keys()):
                for start in self._starts[paraphrase]:
                    found.append(match(PARAPHRASE, start, length[paraphrase], length[phrase]))
            ranks = self.lexicon.listed_under.get(phrase, {})  # those that list it
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
