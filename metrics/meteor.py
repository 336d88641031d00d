"""METEOR 1.5, equal to `java -jar meteor-1.5.jar - - -stdio -l en -norm` as pycocoevalcap drives it.

Sources: Banerjee and Lavie 2005, "METEOR: An automatic metric for MT evaluation with improved correlation
with human judgments"; Denkowski and Lavie 2014, "Meteor Universal", section 2, whose equations these are.

The hypothesis h is aligned with a reference r, word by word or phrase by phrase (metrics/meteor_align.py).
m_i(h_c) and m_i(h_f) are the numbers of content and function words of h covered by matches of module i; |h_c|
and |h_f| are the numbers of all its content and function words. The same for r. Function words come from a list
("the", "of", ...) and weigh a third of content words:

    P = sum_i w_i (delta m_i(h_c) + (1 - delta) m_i(h_f))  /  (delta |h_c| + (1 - delta) |h_f|)
    R = the same with r in place of h
    F = P R / (alpha P + (1 - alpha) R)
    frag  = chunks / (words matched, mean of both sides)
    score = F (1 - gamma frag^beta)

    alpha .85   beta .20   gamma .60   delta .75   w = 1.0 exact, 0.6 stem, 0.8 synonym, 0.6 paraphrase

A chunk is a run of matches that are adjacent and in the same order in both texts. frag is 0 if every word of
both texts is matched in one chunk. With several references a segment has the score of its best one. The corpus
score is not a mean: the counts m, |.| and chunks of each segment's best reference are summed, and the equations
applied to the sums.

Worked example. h = "the cat sat", r = "the cat sat here". All of h is matched exactly, in one chunk; "the" is
the only function word.
P = 1,  R = (.75 * 2 + .25 * 1) / (.75 * 3 + .25 * 1) = 1.75 / 2.5 = .7
F = .7 / (.85 * 1 + .15 * .7) = .732984,  frag = 1 / 3,  score = F * (1 - .6 * (1/3)^.2) = .379946

Behaviour of the jar and of pycocoevalcap that the papers do not describe, reproduced here:
* A text is one string. It is tokenised again (metrics/meteor_normalize.py), so raw text and PTB tokens give
  nearly the same score.
* "|||" separates texts on the jar's input line. It is removed from hypotheses; in a reference it splits the
  reference in two. Double spaces in a hypothesis become single ones.
* Of references that tie, the first is the best one. So the order of references never changes a segment's score,
  but it can change the corpus score if two that tie differ in length.
* A fully matched segment (frag 0) adds no chunk to the corpus.
* Without a match (in an empty text, for example) the score is 0.

Left out: other languages and parameters, and the jar's other input formats. A line break, which would end the
jar's input line, is a space here.
"""

from typing import NamedTuple

from metrics import meteor_tables
from metrics.meteor_align import align
from metrics.meteor_match import MODULES, Lexicon, Matcher, Text
from metrics.meteor_normalize import TRIMMED, tokenize
from metrics.meteor_tables import available

__all__ = ["available", "meteor", "Stats", "statistics"]

ALPHA, BETA, GAMMA, DELTA = 0.85, 0.20, 0.60, 0.75
MODULE_WEIGHTS = (1.0, 0.6, 0.8, 0.6)  # exact, stem, synonym, paraphrase


class Stats(NamedTuple):
    """The counts that a score is computed from: of words, except `chunks`. A corpus's Stats are sums of these."""

    hyp_length: int
    ref_length: int
    hyp_function: int  # function words, included in hyp_length
    ref_function: int
    hyp_content_matches: tuple[int, ...]  # one count per module
    ref_content_matches: tuple[int, ...]
    hyp_function_matches: tuple[int, ...]
    ref_function_matches: tuple[int, ...]
    chunks: int

    @property
    def hyp_matches(self) -> int:
        return sum(self.hyp_content_matches) + sum(self.hyp_function_matches)

    @property
    def ref_matches(self) -> int:
        return sum(self.ref_content_matches) + sum(self.ref_function_matches)

    @property
    def complete(self) -> bool:
        """Every word of both texts is matched, in one chunk."""
        return self.chunks == 1 and self.hyp_matches == self.hyp_length and self.ref_matches == self.ref_length


def meteor(hypotheses: list[str], references: list[list[str]]) -> tuple[float, list[float]]:
    """METEOR in 0..1: (of the corpus, [of each segment]).

    hypotheses: N texts. references: N lists of one or more texts. A text is a string: PTB tokens without
    punctuation (metrics/ptb.py) joined by spaces, which gives the E2E scorer's numbers, or raw text.

    Raises ValueError for no segments, lists of different lengths or a segment without references, and
    files.InputError if the tables are not installed (`available` checks).
    """
    stats = statistics(hypotheses, references)
    return score(total(stats)), [score(segment) for segment in stats]


def statistics(hypotheses: list[str], references: list[list[str]]) -> list[Stats]:
    """Each segment's Stats with its best reference. Arguments and errors as in `meteor`."""
    if not hypotheses or len(hypotheses) != len(references) or not all(references):
        raise ValueError(
            f"METEOR needs at least one hypothesis, and one or more references for each: "
            f"there are {len(hypotheses)} hypotheses and {len(references)} lists of references"
        )
    tables = meteor_tables.load()
    tokens: dict[str, list[str]] = {}
    segments = []
    for hypothesis, segment_references in zip(hypotheses, references):
        hypothesis, segment_references = as_sent(hypothesis, segment_references)
        for text in (hypothesis, *segment_references):
            if text not in tokens:
                tokens[text] = tokenize(text, tables.abbreviations)
        segments.append((tokens[hypothesis], [tokens[text] for text in segment_references]))
    all_references = [words for _hypothesis, texts in segments for words in texts]
    lexicon = Lexicon([hypothesis for hypothesis, _texts in segments], all_references, tables)
    return [best(*segment, lexicon, tables.function_words) for segment in segments]


def as_sent(hypothesis: str, references: list[str]) -> tuple[str, list[str]]:
    """The texts as the jar reads them from its input line, which joins them by " ||| "."""
    hypothesis = hypothesis.replace("|||", "").replace("  ", " ")
    _command, *texts = " ||| ".join(["SCORE", *references, hypothesis]).split("|||")
    *references, hypothesis = [text.strip(TRIMMED) for text in texts]
    return hypothesis, references


def best(hypothesis: list[str], references: list[list[str]], lexicon: Lexicon, function_words: frozenset[str]) -> Stats:
    matcher = Matcher(lexicon.texts[tuple(hypothesis)], lexicon)
    texts = [lexicon.texts[tuple(reference)] for reference in references]
    # max() returns the first of those that tie.
    return max((align_and_count(matcher, text, function_words) for text in texts), key=score)


def align_and_count(matcher: Matcher, reference: Text, function_words: frozenset[str]) -> Stats:
    hypothesis = matcher.hypothesis
    hyp_is_function = [word in function_words for word in hypothesis.words]
    ref_is_function = [word in function_words for word in reference.words]
    hyp_content, hyp_function, ref_content, ref_function = ([0] * len(MODULES) for _ in range(4))
    chunks, next_in_hyp, next_in_ref = 0, None, None  # a match that begins at next_in_... continues the chunk
    for ref_start, match in align(matcher.matches(reference)):
        module, hyp_start, hyp_length, ref_length, *_ = match
        if (hyp_start, ref_start) != (next_in_hyp, next_in_ref):
            chunks += 1
        next_in_hyp, next_in_ref = hyp_start + hyp_length, ref_start + ref_length
        functions = sum(hyp_is_function[hyp_start:next_in_hyp])
        hyp_function[module] += functions
        hyp_content[module] += hyp_length - functions
        functions = sum(ref_is_function[ref_start:next_in_ref])
        ref_function[module] += functions
        ref_content[module] += ref_length - functions
    return Stats(
        len(hypothesis.words), len(reference.words), sum(hyp_is_function), sum(ref_is_function),
        tuple(hyp_content), tuple(ref_content), tuple(hyp_function), tuple(ref_function), chunks,
    )  # fmt: skip


def total(segments: list[Stats]) -> Stats:
    """The corpus's Stats."""

    def add(values):
        return tuple(map(sum, zip(*values))) if isinstance(values[0], tuple) else sum(values)

    corpus = Stats(*(add(column) for column in zip(*segments)))
    return corpus._replace(chunks=sum(segment.chunks for segment in segments if not segment.complete))


def as_row(segment: Stats) -> list[int]:
    """A segment's Stats as numbers of which a corpus's are the sums (a complete segment adds no chunk)."""
    counts = [number for field in segment[:-1] for number in (field if isinstance(field, tuple) else (field,))]
    return [*counts, 0 if segment.complete else segment.chunks]


def score_of_sums(sums: list[float]) -> float:
    """The score in 0..1 of the sums of a corpus, in the order of `as_row`."""
    lengths, matches, n = sums[:4], sums[4:-1], len(MODULES)
    return score(Stats(*lengths, *(tuple(matches[start : start + n]) for start in range(0, 4 * n, n)), sums[-1]))


def score(stats: Stats) -> float:
    """The score in 0..1, by the equations in the module docstring."""
    hyp_matches, ref_matches = stats.hyp_matches, stats.ref_matches
    if not hyp_matches:
        return 0.0
    precision = weighted(stats.hyp_content_matches, stats.hyp_function_matches) / weighted_length(
        stats.hyp_length, stats.hyp_function
    )
    recall = weighted(stats.ref_content_matches, stats.ref_function_matches) / weighted_length(
        stats.ref_length, stats.ref_function
    )
    f_mean = 1.0 / ((1.0 - ALPHA) / precision + ALPHA / recall)
    frag = 0.0 if stats.complete else stats.chunks / ((hyp_matches + ref_matches) / 2)
    return f_mean * (1.0 - GAMMA * frag**BETA)


def weighted(content: tuple[int, ...], function: tuple[int, ...]) -> float:
    # Summed in the jar's order: rounding can decide which of two references is the best.
    result = 0.0
    for count, weight in zip(content, MODULE_WEIGHTS):
        result += count * weight * DELTA
    for count, weight in zip(function, MODULE_WEIGHTS):
        result += count * weight * (1.0 - DELTA)
    return result


def weighted_length(length: int, function: int) -> float:
    return DELTA * (length - function) + (1.0 - DELTA) * function
