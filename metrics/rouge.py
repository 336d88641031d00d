"""ROUGE-L (Lin 2004, "ROUGE: A Package for Automatic Evaluation of Summaries", section 3).

    P = LCS(hypothesis, reference) / hypothesis tokens
    R = LCS(hypothesis, reference) / reference tokens
    F = (1 + beta^2) * P * R / (R + beta^2 * P),          beta = 1.2, in favour of recall

LCS is the length of the longest common subsequence: tokens in the same order, not
necessarily adjacent. With several references the best P and the best R are taken
*separately*, possibly from different references, as in the COCO scorer. The corpus
score is the mean over segments.

Left out: Lin's summary-level union over sentences, stemming, and stop words.

Worked example. Hypothesis "the cat the mat" (4 tokens). LCS with "the cat sat on the mat" (6) is 4
("the cat the mat"), with "the mat" (2) it is 2. Best P = 4/4, best R = 2/2, from two references: F = 1.
Against the first reference alone: P = 1, R = 4/6, F = 2.44 * 0.6667 / (0.6667 + 1.44) = 0.7722.

>>> hypothesis, first, second = "the cat the mat".split(), "the cat sat on the mat".split(), "the mat".split()
>>> [round(rouge_l([hypothesis], [references])[0], 4) for references in ([first], [first, second])]
[0.7722, 1.0]
"""

BETA = 1.2


def rouge_l(hypotheses_tokens: list[list[str]], references_tokens: list[list[list[str]]]) -> tuple[float, list[float]]:
    """ROUGE-L in 0..1: (mean over segments, [one score per segment]).

    hypotheses_tokens: N lists of PTB tokens without punctuation (metrics/ptb.py).
    references_tokens: N lists of one or more token lists.
    """
    scores = [
        sentence_rouge_l(hypothesis, references) for hypothesis, references in zip(hypotheses_tokens, references_tokens)
    ]
    return sum(scores) / len(scores), scores


def sentence_rouge_l(hypothesis: list[str], references: list[list[str]]) -> float:
    """ROUGE-L of one segment, 0..1."""
    # The COCO scorer splits an empty text into one empty token, so "" equals "" and scores 1.
    hypothesis = hypothesis or [""]
    references = [reference or [""] for reference in references]
    positions = token_positions(hypothesis)
    lengths = [lcs_length(positions, len(hypothesis), reference) for reference in references]
    precision = max(lcs / len(hypothesis) for lcs in lengths)
    recall = max(lcs / len(reference) for lcs, reference in zip(lengths, references))
    if precision == 0 or recall == 0:
        return 0.0
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def token_positions(tokens: list[str]) -> dict[str, int]:
    """Token -> an integer whose bit i is set if tokens[i] is that token."""
    positions: dict[str, int] = {}
    for index, token in enumerate(tokens):
        positions[token] = positions.get(token, 0) | (1 << index)
    return positions


def lcs_length(positions: dict[str, int], length: int, other: list[str]) -> int:
    """Length of the longest common subsequence of `other` and the `length` tokens with these `positions`.

    Bit-parallel after Hyyro (2004): one row of the usual table fits one Python integer,
    since neighbouring cells of a row differ by 0 or 1. Bit i of `row` is 0 if
    the table steps up at column i, so the LCS is the number of zeros at the end.
    A token of `other` costs one addition instead of a loop over the row:
    the carry moves each step to the left-most match before the next step.
    """
    everywhere = (1 << length) - 1
    row = everywhere
    for token in other:
        matches = positions.get(token, 0)
        if matches:
            steps = row & matches
            row = ((row + steps) | (row - steps)) & everywhere
    return length - row.bit_count()
