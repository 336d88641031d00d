"""CIDEr-D (Vedantam, Zitnick and Parikh 2015, "CIDEr: Consensus-based Image Description Evaluation").

A text is a vector of n-gram counts weighted by tf-idf (equation 1; a "document" is one segment's references).
N-grams that occur in every segment's references weigh nothing, those of a single segment weigh most.

    g(w)    = count of w in the text * (ln N - ln max(1, df(w)))
    df(w)   = number of segments with w in any reference;   N = number of segments
    sim_n   = sum over w of min(g_hyp(w), g_ref(w)) * g_ref(w)  /  (|g_hyp| * |g_ref|)
              * exp(-(l_hyp - l_ref)^2 / (2 * 6^2))
    CIDEr   = 10 * mean over references and over n = 1..4 of sim_n;     corpus: mean over segments

The minimum (clipping) and the Gaussian of the length difference are the "-D": they keep a
hypothesis from scoring higher by repeating good words (section 7). As in the COCO scorer,
a text's length l is its number of *bigrams*, and counts are raw, not divided by the length.

With a single segment ln N = 0 and every score is 0.

Left out: stemming (the paper's, not the scorer's) and document frequencies from another corpus.

Worked example. Two segments, with references "red car" and "blue car", and hypotheses "red car" and
"car". ln N = ln 2; "car" is in both documents, so g = 0; every other n-gram weighs ln 2.
First: n = 1 (only "red" counts) and n = 2 give 1, n = 3, 4 have no n-grams and give 0: 10 * 2/4 = 5.
Second: all its weight is 0, so 0. Corpus: 2.5.

>>> cider([["red", "car"], ["car"]], [[["red", "car"]], [["blue", "car"]]])
(2.5, [5.0, 0.0])
"""

import itertools
import math
from collections import Counter, defaultdict

from metrics.ngrams import Ngram

MAX_ORDER = 4
SIGMA = 6.0


def cider(hypotheses_tokens: list[list[str]], references_tokens: list[list[list[str]]]) -> tuple[float, list[float]]:
    """CIDEr-D in 0..10: (mean over segments, [one score per segment]).

    hypotheses_tokens: N lists of PTB tokens without punctuation (metrics/ptb.py).
    references_tokens: N lists of one or more token lists.
    """
    # N-grams are numbered in order of appearance: small integers are hashed and compared faster than tuples.
    numbers: dict[Ngram, int] = defaultdict(itertools.count().__next__)
    hypotheses = [count_ngrams(tokens, numbers) for tokens in hypotheses_tokens]
    references = [[count_ngrams(tokens, numbers) for tokens in texts] for texts in references_tokens]
    document_frequency: Counter = Counter()
    for texts in references:
        document_frequency.update(set().union(*(counts for text in texts for counts in text)))
    idf = [math.log(len(references)) - math.log(max(1, document_frequency[number])) for number in range(len(numbers))]

    scores = []
    for hypothesis, texts in zip(hypotheses, references):
        vector = [{ngram: count * idf[ngram] for ngram, count in counts.items()} for counts in hypothesis]
        norms = [math.hypot(*weights.values()) for weights in vector]
        bigrams = sum(hypothesis[1].values())
        total = sum(similarity(vector, norms, bigrams, text, idf) for text in texts)
        scores.append(10.0 * total / len(texts))
    return sum(scores) / len(scores), scores


def count_ngrams(tokens: list[str], numbers: dict[Ngram, int]) -> list[Counter]:
    """One Counter per order 1..4: n-gram (as its number) -> occurrences."""
    # Joined and split again as in the scorer: a PTB token with a no-break space ("1 1/2") becomes two.
    tokens = " ".join(tokens).split()
    shifted = [tokens[start:] for start in range(MAX_ORDER)]
    return [Counter(map(numbers.__getitem__, zip(*shifted[:order]))) for order in range(1, MAX_ORDER + 1)]


def similarity(
    vector: list[dict[int, float]], norms: list[float], bigrams: int, reference: list[Counter], idf: list[float]
) -> float:
    """Mean over the orders of the clipped cosine, times the Gaussian of the length difference: 0..1.

    vector, norms: the hypothesis's weights and their norm, one entry per order; bigrams: its number of bigrams.
    """
    cosines = 0.0
    for weights, norm, counts in zip(vector, norms, reference):
        product = 0.0
        for ngram in weights.keys() & counts.keys():
            reference_weight = counts[ngram] * idf[ngram]
            product += min(weights[ngram], reference_weight) * reference_weight
        if product:
            cosines += product / (norm * math.hypot(*[count * idf[ngram] for ngram, count in counts.items()]))
    difference = bigrams - sum(reference[1].values())
    return math.exp(-(difference**2) / (2 * SIGMA**2)) * cosines / MAX_ORDER
