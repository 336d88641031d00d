"""NIST (Doddington 2002, "Automatic Evaluation of Machine Translation Quality Using N-gram Co-Occurrence Statistics").

BLEU counts every matching n-gram the same; NIST weights it by how surprising its last
word is, given the words before it (equations 2 and 3):

    info(w1..wn) = log2( count(w1..w(n-1)) / count(w1..wn) )       counted over all references;
                                                                   for n = 1 the numerator is their number of words
    NIST = penalty * sum over n = 1..5 of
           (sum of info over matching n-grams) / (n-grams in the hypotheses)

    penalty = exp(-beta * ln(min(1, ratio))**2),    beta such that ratio 2/3 gives 1/2
    ratio   = hypothesis words / average reference words

Matches are clipped as in BLEU. Numerator and denominator are summed over the corpus before dividing. There is
no upper bound, and a hypothesis equal to its reference is not always the best one: if a reference repeats a
common word, leaving one out raises the average information of the rest.

"Average reference words" has two readings when segments have different numbers of references:

    python  (measure_scores.py -p)   sum over segments of the mean length of its references
    perl    (measure_scores.py)      all reference words / (references / segments)

Papers report both. They agree if the hypotheses have at least as many words as either average. The Perl
script also lower-cases A-Z only (metrics/mteval.py), and treats the history "0" as no history
(the string "0" is false in Perl), so that info("0 x") is computed from the total number of words.

A hypothesis shorter than n tokens has no n-grams of order n, as in mteval;
the Python reference counts -1 or less, and divides by zero on a single segment of one to four tokens.

Left out: n-grams longer than 5, and the document and segment averages of mteval's report.

Worked example. Reference "a a b", hypothesis "a b": info(a) = log2(3/2) = 0.585,
info(b) = log2(3/1) = 1.585, info(a b) = log2(count(a) / count(a b)) = log2(2/1) = 1. Sum:
(0.585 + 1.585)/2 + 1/1 = 2.085; ratio 2/3, penalty 1/2: NIST = 1.0425.

>>> round(nist([segment("a b".split(), ["a a b".split()])]), 4)
1.0425
"""

import math
from collections import Counter
from collections.abc import Sequence

from metrics.ngrams import Ngram, Segment, hypothesis_ngrams, segment  # noqa: F401 (segment: for the example above)

MAX_ORDER = 5
BETA = math.log(2) / math.log(3 / 2) ** 2  # penalty 1/2 at ratio 2/3


def nist(segments: list[Segment], variant: str = "python", counts: dict[Ngram, int] | None = None) -> float:
    """Corpus NIST, 0 or more (about 8 on E2E); pass a list of one segment for sentence NIST.

    segments: from `metrics.ngrams.segment`, counted up to order 5 or more.
    variant: "python" or "perl", the two readings of the average reference length.
    counts: `reference_counts(segments)`, if the caller has computed it; it takes most of the time.

    Raises ValueError for any other variant.
    """
    weights = information(segments, variant, reference_counts(segments) if counts is None else counts)
    sums = [0.0] * MAX_ORDER
    for ngram, count in clipped_matches(segments).items():
        sums[len(ngram) - 1] += count * weights[ngram]
    ngrams = [hypothesis_ngrams(segments, order) for order in range(1, MAX_ORDER + 1)]
    return score(sums, ngrams, average_reference_words(segments, variant))


def score(bits: Sequence[float], ngrams: Sequence[float], reference_words: float) -> float:
    """NIST of the sums of a corpus.

    bits: information of the matches; ngrams: how many the hypotheses have; both one number for each order.
    """
    total = 0.0
    for information_of_order, number in zip(bits, ngrams):
        total += information_of_order / number if number else 0.0
    return total * length_penalty(ngrams[0], reference_words)


def information(segments: list[Segment], variant: str, counts: dict[Ngram, int]) -> dict[Ngram, float]:
    """info(w1..wn) in bits of each n-gram that matches somewhere. counts: `reference_counts(segments)`."""
    if variant not in ("python", "perl"):
        raise ValueError(f'variant must be "python" or "perl", not {variant!r}')
    total_words = sum(sum(seg.reference_lengths) for seg in segments)
    weights = {}
    for ngram in (ngram for ngram in counts if len(ngram) <= MAX_ORDER):
        history = ngram[:-1]
        history_is_empty = not history or (variant == "perl" and history == ("0",))
        history_count = total_words if history_is_empty else counts[history]
        weights[ngram] = math.log2(history_count / counts[ngram])
    return weights


def statistics(segments: list[Segment], variant: str, counts: dict[Ngram, int]) -> list[list[float]]:
    """What NIST sums over a corpus, a row for each segment; `score_of_sums` makes the score of the sums.

    [5 sums of information, 5 numbers of n-grams, mean reference words, reference words, references, 1]
    The information weights are those of all the segments given. counts: `reference_counts(segments)`.
    """
    weights = information(segments, variant, counts)
    rows = []
    for seg in segments:
        bits = [0.0] * MAX_ORDER
        for ngram, count in seg.matches.items():
            if len(ngram) <= MAX_ORDER:
                bits[len(ngram) - 1] += count * weights[ngram]
        ngrams = [hypothesis_ngrams([seg], order) for order in range(1, MAX_ORDER + 1)]
        rows.append([*bits, *ngrams, *reference_sizes(seg), 1])
    return rows


def score_of_sums(sums: Sequence[float], variant: str) -> float:
    """NIST of the sums of a corpus, in the order of `statistics`."""
    return score(sums[:MAX_ORDER], sums[MAX_ORDER : 2 * MAX_ORDER], average_words(*sums[2 * MAX_ORDER :], variant))


def clipped_matches(segments: list[Segment]) -> Counter:
    """Clipped matches of each n-gram of up to 5 words, summed over the segments."""
    matches: Counter = Counter()
    for seg in segments:
        for ngram, count in seg.matches.items():
            if len(ngram) <= MAX_ORDER:
                matches[ngram] += count
    return matches


def reference_counts(segments: list[Segment]) -> dict[Ngram, int]:
    """Occurrences in all references of each n-gram that matches somewhere (its history then matches too)."""
    counts = {ngram: 0 for seg in segments for ngram in seg.matches}
    for seg in segments:
        for ngram in seg.reference_counts.keys() & counts.keys():
            counts[ngram] += seg.reference_counts[ngram]
    return counts


def average_reference_words(segments: list[Segment], variant: str) -> float:
    """The number of words in a corpus of hypotheses of average length (see the two readings above)."""
    return average_words(*map(sum, zip(*map(reference_sizes, segments))), len(segments), variant)


def reference_sizes(seg: Segment) -> tuple[float, int, int]:
    """A segment's mean reference length, all its reference words, and the number of its references."""
    words = sum(seg.reference_lengths)
    # mteval pads segments with empty references to equal numbers, so it does not count empty references.
    return words / len(seg.reference_lengths), words, sum(length > 0 for length in seg.reference_lengths)


def average_words(means: float, words: float, references: float, segments: float, variant: str) -> float:
    """The two readings, of sums over a corpus: of mean lengths, of words, of references, and of segments."""
    if variant == "python":
        return means
    return words * segments / references if references else 0.0


def length_penalty(hypothesis_words: float, reference_words: float) -> float:
    """In 0..1: 1 from ratio 1 upwards, 1/2 at ratio 2/3, 0 without words."""
    if hypothesis_words >= reference_words:
        return 1.0
    if hypothesis_words <= 0:
        return 0.0
    return math.exp(-BETA * math.log(hypothesis_words / reference_words) ** 2)
