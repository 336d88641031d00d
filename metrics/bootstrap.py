"""Bootstrap: how far a score would move on another test set, and whether one output is better than another by chance.

Source: Koehn 2004, "Statistical Significance Tests for Machine Translation Evaluation". The rules for the interval and
for p are sacrebleu's.

Interval. Draw N of the N segments with replacement, R times, and score each resample r:

    mean +- half width,   half width = (high - low) / 2
    low, high = the sorted scores without the lowest and the highest R // 40         (95 % lie between them)

Paired test. Score the baseline a and the system b on the same resamples, and compare the differences with the one that
was observed, d. Centred, they show what differences chance produces if the two are equally good:

    d_r = |b_r - a_r|,   d = |b - a|
    p   = (1 + number of r with d_r - mean(d_r) > d)  /  (1 + R)

A resample is never scored from its texts. Each score is a formula of sums over segments, and the sums of all
resamples are one matrix product:

    sums = W S        W[r, s] = how often resample r holds segment s;   S[s] = the statistics of segment s

    BLEU                    matches and n-grams of each order, both lengths
    NIST, NIST_perl         information of the matches and n-grams of each order, lengths
    METEOR                  matches of each module, lengths, chunks
    ROUGE_L, CIDEr          the segment's score, and 1

NIST's information weights and CIDEr's document frequencies are computed on the full test set's references, so that a
resample changes only which segments count, not what an n-gram is worth.

With R = 1000 and the seed 12345 the resamples are sacrebleu's, and so are BLEU's intervals and p. One p differs: for
outputs that count the same in every segment it is 1 here, while the rule above would give its least value.

Left out: approximate randomisation, TER, and a correction for several comparisons: with six scores, or several
systems against one baseline, some p below 0.05 is to be expected by chance.

Worked example. Two segments with the scores 0 and 1, whose mean is the score. A resample holds the second 0, 1 or 2
times, so that its score is 0, 1/2 or 1; of 40 sorted scores the first and the last are dropped.

>>> interval([0.0] * 10 + [0.5] * 20 + [1.0] * 10)
Interval(mean=0.5, half_width=0.5)
>>> p_value([0.0, 0.1, 0.2, 0.1], [0.3, 0.4, 0.5, 0.4], 0.3)  # 0.3 better in every resample: the least p, 1 / (1 + 4)
0.2
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

import metrics
from metrics import bleu, cider, meteor, nist, rouge

RESAMPLES, SEED = 1000, 12345  # sacrebleu's


class Counted(NamedTuple):
    """A score of one output, as a formula of sums over segments."""

    rows: np.ndarray  # [N, K], K statistics of each segment
    formula: Callable[[Sequence[float]], float]  # K sums -> the score

    @property
    def score(self) -> float:
        """Of the test set as it is."""
        return self.formula(self.rows.sum(0).tolist())

    def resampled(self, times: np.ndarray) -> list[float]:
        """The score of each resample. times: from `draw`."""
        return [self.formula(sums) for sums in (times @ self.rows).tolist()]  # [R, N] @ [N, K] -> [R, K]


class Interval(NamedTuple):
    """95 % of the resamples' scores lie within mean +- half_width, if they lie evenly around it."""

    mean: float
    half_width: float


class Estimate(NamedTuple):
    """The score of an output, and its interval."""

    score: float
    interval: Interval


class Comparison(NamedTuple):
    """One score of two outputs."""

    baseline: Estimate
    system: Estimate
    difference: float  # system - baseline
    p_value: float


# ------------------------------------------------------------------------- statistics of the segments


def count(hypotheses: list[str], references: list[list[str]]) -> dict[str, Counted]:
    """The statistics of each score, by its name in metrics.CORPUS_KEYS.

    Arguments and errors as in `metrics.score`, and the scores are its scores. METEOR is absent without its tables.
    """
    metrics.check(hypotheses, references)
    with metrics.without_garbage_collector():
        segments = metrics.word_segments(hypotheses, references)
        perl_segments = metrics.as_perl(segments, hypotheses, references)
        hypotheses_tokens, references_tokens = metrics.ptb_tokens(hypotheses, references)
        counted = {
            "BLEU": Counted(table(bleu.statistics(segments)), bleu.score),
            "NIST": count_nist(segments, "python"),
            "NIST_perl": count_nist(perl_segments, "perl"),
        }
        if not metrics.unavailable():
            stats = meteor.statistics(
                [" ".join(tokens) for tokens in hypotheses_tokens],
                [[" ".join(tokens) for tokens in texts] for texts in references_tokens],
            )
            counted["METEOR"] = Counted(table([meteor.as_row(segment) for segment in stats]), meteor.score_of_sums)
        counted["ROUGE_L"] = count_mean(rouge.rouge_l(hypotheses_tokens, references_tokens)[1])
        counted["CIDEr"] = count_mean(cider.cider(hypotheses_tokens, references_tokens)[1])
    return counted


def table(rows: list[Sequence[float]]) -> np.ndarray:
    return np.array(rows, dtype=np.float64)  # [N, K]


def count_nist(segments: list, variant: str) -> Counted:
    rows = nist.statistics(segments, variant, nist.reference_counts(segments))
    return Counted(table(rows), lambda sums: nist.score_of_sums(sums, variant))


def count_mean(scores: list[float]) -> Counted:
    """Of a score that is the mean of the segments' scores."""
    return Counted(table([(score, 1) for score in scores]), lambda sums: sums[0] / sums[1])


# ------------------------------------------------------------------------- resamples


def draw(segments: int, resamples: int = RESAMPLES, seed: int = SEED) -> np.ndarray:
    """How often each resample holds each segment, [R, N]; each row sums to N. Raises ValueError for no resample."""
    if resamples < 1:
        raise ValueError(f"{resamples} resamples: at least 1 is needed")
    chosen = np.random.default_rng(seed).choice(segments, size=(resamples, segments), replace=True)  # [R, N]
    return np.stack([np.bincount(row, minlength=segments) for row in chosen]).astype(np.float64)


def interval(scores: Sequence[float]) -> Interval:
    """Of the scores of the resamples."""
    ordered = np.sort(scores)
    dropped = len(ordered) // 40  # at each end
    low, high = ordered[dropped], ordered[len(ordered) - 1 - dropped]
    return Interval(float(np.mean(ordered)), float(high - low) / 2)


def p_value(baseline: Sequence[float], system: Sequence[float], difference: float) -> float:
    """How probable a difference as large as the observed one is if the two are equally good.

    baseline, system  the scores of the same resamples
    difference        observed on the test set itself; its sign does not matter
    """
    differences = np.abs(np.array(system) - np.array(baseline))  # [R]
    larger = np.sum(differences - differences.mean() > abs(difference))
    return (1 + int(larger)) / (1 + len(differences))


# ------------------------------------------------------------------------- what to call


def intervals(
    hypotheses: list[str], references: list[list[str]], resamples: int = RESAMPLES, seed: int = SEED
) -> dict[str, Estimate]:
    """Each score of an output with its interval. Arguments and errors as in `metrics.score`; resamples: 1 or more."""
    times = draw(len(hypotheses), resamples, seed)
    return {
        key: Estimate(counted.score, interval(counted.resampled(times)))
        for key, counted in count(hypotheses, references).items()
    }


def compare(
    baseline: list[str],
    system: list[str],
    references: list[list[str]],
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> dict[str, Comparison]:
    """Each score of two outputs for the same references, and whether they differ. Errors as in `metrics.score`."""
    ours, others = count(system, references), count(baseline, references)
    times = draw(len(references), resamples, seed)
    return {key: compare_counted(others[key], ours[key], times) for key in ours}


def compare_counted(baseline: Counted, system: Counted, times: np.ndarray) -> Comparison:
    """Both on the same resamples. times: from `draw`."""
    scores = [counted.resampled(times) for counted in (baseline, system)]
    estimates = [Estimate(counted.score, interval(row)) for counted, row in zip((baseline, system), scores)]
    difference = estimates[1].score - estimates[0].score
    same = np.array_equal(baseline.rows, system.rows)
    return Comparison(*estimates, difference, 1.0 if same else p_value(*scores, difference))
