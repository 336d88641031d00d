"""ROUGE-L: on paper, against the quadratic table, and its properties."""

import doctest

from hypothesis import given, settings
from hypothesis import strategies as st

from metrics import rouge

WORDS = st.lists(st.sampled_from("abcd"), max_size=30)


def lcs_by_table(first, second):
    """The textbook's dynamic programme, one cell at a time."""
    table = [[0] * (len(second) + 1) for _ in range(len(first) + 1)]
    for i, left in enumerate(first):
        for j, right in enumerate(second):
            table[i + 1][j + 1] = table[i][j] + 1 if left == right else max(table[i][j + 1], table[i + 1][j])
    return table[-1][-1]


def test_examples_of_the_docstring():
    assert doctest.testmod(rouge).failed == 0


@given(WORDS, WORDS)
@settings(deadline=None)
def test_bit_parallel_length_equals_the_table(first, second):
    assert rouge.lcs_length(rouge.token_positions(first), len(first), second) == lcs_by_table(first, second)


def test_length_of_a_long_common_subsequence():
    first, second = [str(i * i % 97) for i in range(400)], [str(i * 7 % 97) for i in range(300)]
    assert rouge.lcs_length(rouge.token_positions(first), 400, second) == lcs_by_table(first, second)


def test_empty_text_is_one_empty_token_as_in_the_scorer():
    assert rouge.sentence_rouge_l([], [[]]) == 1.0
    assert rouge.sentence_rouge_l([], [["a"]]) == 0.0
    assert rouge.sentence_rouge_l(["a"], [[]]) == 0.0


@given(WORDS, WORDS)
@settings(deadline=None)
def test_a_reference_repeated_as_hypothesis_wins(reference, other):
    assert rouge.sentence_rouge_l(reference, [reference]) == 1.0
    assert 0.0 <= rouge.sentence_rouge_l(other, [reference]) <= 1.0


@given(WORDS, st.lists(WORDS, min_size=1, max_size=4), st.randoms())
@settings(deadline=None)
def test_order_of_references_does_not_matter(hypothesis, references, rng):
    shuffled = rng.sample(references, len(references))
    assert rouge.sentence_rouge_l(hypothesis, references) == rouge.sentence_rouge_l(hypothesis, shuffled)


def test_corpus_is_the_mean():
    assert rouge.rouge_l([["a"], ["b"]], [[["a"]], [["c"]]]) == (0.5, [1.0, 0.0])
