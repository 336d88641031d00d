"""N-gram counts, the step that BLEU and NIST share.

An n-gram is a tuple of n tokens. A segment is one hypothesis with its references. `segment` counts what both
scores need of it:

* how often each hypothesis n-gram *matches*: its count in the hypothesis, clipped
  to the largest count in any single reference (Papineni et al. 2002, section 2.1);
* how often each n-gram occurs in all references together (NIST's information weights);
* the lengths.

Left out: n-grams with gaps, and all weighting (bleu.py and nist.py do that).

Worked example from Papineni et al.: against "the cat is on the mat" the hypothesis
"the the the" has three words, and two of them match, since no reference has "the" three times.

>>> example = segment("the the the".split(), ["the cat is on the mat".split()], max_order=2)
>>> example.matches, example.hypothesis_length, example.reference_lengths
({('the',): 2}, 3, [6])
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

Ngram = tuple[str, ...]


@dataclass
class Segment:
    """What BLEU and NIST keep of one hypothesis and its references."""

    hypothesis_length: int  # tokens
    reference_lengths: list[int]  # tokens of each reference, in the order given
    matches: dict[Ngram, int]  # n-gram -> clipped matches; only n-grams that match
    reference_counts: Counter  # n-gram -> occurrences in all references together


def ngrams(tokens: list[str], max_order: int) -> Iterator[Ngram]:
    """Every n-gram of 1..max_order tokens, each as often as it occurs: first all words, then all pairs, ..."""
    # zip over shifted copies makes the tuples without a Python loop.
    shifted = [tokens[start:] for start in range(max_order)]
    return chain.from_iterable(zip(*shifted[:order]) for order in range(1, max_order + 1))


def segment(hypothesis: list[str], references: list[list[str]], max_order: int = 5) -> Segment:
    """Count one segment.

    hypothesis: tokens; references: tokens of each reference, at least one.
    Raises ValueError when there is no reference.
    """
    if not references:
        raise ValueError("a segment needs at least one reference")
    reference_counts = Counter(chain.from_iterable(ngrams(reference, max_order) for reference in references))
    matches = {}
    for ngram, count in Counter(ngrams(hypothesis, max_order)).items():
        if ngram in reference_counts:
            # Only an n-gram that the hypothesis repeats can need clipping; few do, so those are counted one by one.
            matches[ngram] = count if count == 1 else min(count, largest_count(ngram, references))
    return Segment(len(hypothesis), [len(reference) for reference in references], matches, reference_counts)


def largest_count(ngram: Ngram, references: list[list[str]]) -> int:
    """The n-gram's count in the reference that has it most often."""
    return max(list(zip(*(reference[start:] for start in range(len(ngram))))).count(ngram) for reference in references)


def hypothesis_ngrams(segments: list[Segment], order: int) -> int:
    """The number of n-grams of one order in all hypotheses: the sum of max(0, length - order + 1)."""
    return sum(max(0, seg.hypothesis_length - order + 1) for seg in segments)
