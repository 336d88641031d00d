"""BLEU (Papineni et al. 2002, "BLEU: a Method for Automatic Evaluation of Machine Translation").

    BLEU = BP * (p1 * p2 * p3 * p4) ** (1/4)

    p_n  = clipped n-gram matches / n-grams in the hypotheses, each summed over the whole
           corpus before dividing (section 2.2)
    BP   = 1 if c > r, else exp(1 - r/c)                            (section 2.3)
    c    = hypothesis tokens;  r = sum over segments of the length of the reference
           closest in length to the hypothesis, the shorter of two equally close

This is corpus BLEU, which differs from the mean of sentence scores.

Nothing is smoothed, but as in the reference scorer (pymteval) the logarithm never sees a zero:
zero matches count as 1e-15 matches, zero n-grams as 1e-9 n-grams. So a segment without a
4-gram match scores about 1e-4 instead of 0, which is visible at four decimals.
`smoothing=1.0` adds one to the numerator and the denominator of every p_n: the "sentBLEU" column of the
reference's per-segment table (BLEU+1; Lin and Och 2004 do not smooth p_1, the reference does).

Where pymteval and mteval-v13a.pl differ we follow mteval, as sacrebleu does:
pymteval counts -1 and -2 n-grams for a hypothesis shorter than n-1 tokens, so that a
corpus of short answers can score above 1, and treats an empty hypothesis as one empty token.
On corpora whose hypotheses all have three tokens or more the two are equal. Lower-casing is the exception:
we use the Python port's tokens, in which "É" becomes "é"; the Perl script leaves it.

Left out: other tokenisers, mteval's own smoothing and its "shortest reference" length.

Worked example. Hypothesis "the cat sat on the mat today" (7 tokens), reference
"the cat sat on the mat" (6): matches 6, 5, 4, 3 of 7, 6, 5, 4 n-grams, BP = 1, so
BLEU = (6/7 * 5/6 * 4/5 * 3/4) ** (1/4) = (3/7) ** (1/4) = 0.8091.

>>> hypothesis, reference = "the cat sat on the mat today".split(), "the cat sat on the mat".split()
>>> round(bleu([segment(hypothesis, [reference])]), 4)
0.8091
"""

import math
from collections.abc import Sequence

from metrics.ngrams import Segment, segment  # noqa: F401 (segment: for the example above)

MAX_ORDER = 4
NO_MATCHES, NO_NGRAMS = 1e-15, 1e-9  # replace a zero numerator and a zero denominator, as in the reference


def bleu(segments: list[Segment], smoothing: float = 0.0) -> float:
    """Corpus BLEU-4 in 0..1; pass a list of one segment for sentence BLEU.

    segments: from `metrics.ngrams.segment`, counted up to order 4 or more.
    smoothing: added to matches and n-grams of every order (1.0 gives sentBLEU).
    """
    return score(total(segments), smoothing)


def statistics(segments: list[Segment]) -> list[list[int]]:
    """What BLEU sums over a corpus, a row for each segment: [c, r, 4 numbers of matches, 4 numbers of n-grams]."""
    rows = []
    for seg in segments:
        matches = [0] * (MAX_ORDER + 1)  # index = order
        for ngram, count in seg.matches.items():
            if len(ngram) <= MAX_ORDER:
                matches[len(ngram)] += count
        c = seg.hypothesis_length
        ngrams = [max(0, c - order + 1) for order in range(1, MAX_ORDER + 1)]
        rows.append([c, closest_length(c, seg.reference_lengths), *matches[1:], *ngrams])
    return rows


def total(segments: list[Segment]) -> list[int]:
    """The sums of a corpus, in the order of `statistics`."""
    return [sum(column) for column in zip(*statistics(segments))]


def score(sums: Sequence[float], smoothing: float = 0.0) -> float:
    """BLEU in 0..1 of the sums of a corpus."""
    c, r, *counts = sums
    log_precisions = 0.0
    for matches, ngrams in zip(counts[:MAX_ORDER], counts[MAX_ORDER:]):
        log_precisions += math.log(max(matches + smoothing, NO_MATCHES) / max(ngrams + smoothing, NO_NGRAMS))
    return brevity_penalty(c, r) * math.exp(log_precisions / MAX_ORDER)


def brevity_penalty(c: float, r: float) -> float:
    """BP in 0..1: 1 if the hypotheses have at least as many tokens as their closest references."""
    if c >= r:
        return 1.0
    return math.exp(1.0 - r / c) if c else 0.0


def closest_length(length: int, reference_lengths: list[int]) -> int:
    """The reference length nearest to `length`; of two equally near, the shorter."""
    return min(reference_lengths, key=lambda reference: (abs(reference - length), reference))


def details(segments: list[Segment]) -> dict[str, float]:
    """What to look at beside BLEU: its brevity penalty, c, r, and the fewest and most references of a segment."""
    c, r = total(segments)[:2]
    references = [len(seg.reference_lengths) for seg in segments]
    return {
        "brevity_penalty": brevity_penalty(c, r),
        "hypothesis_length": c,
        "reference_length": r,
        "fewest_references": min(references),
        "most_references": max(references),
    }
