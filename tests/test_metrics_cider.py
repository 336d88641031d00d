"""CIDEr: on paper, against the equations written a second time, and its properties."""

import doctest
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metrics import cider

WORDS = st.lists(st.sampled_from("the a cat dog sat on mat".split()), max_size=10)
# Two more segments, so that document frequencies say something.
OTHER_HYPOTHESES = ["the dog ran home".split(), "a bird sang".split()]
OTHER_REFERENCES = [["the dog ran away".split(), "a dog was running".split()], ["some bird was singing".split()]]


def scores(hypothesis, references):
    return cider.cider([hypothesis, *OTHER_HYPOTHESES], [references, *OTHER_REFERENCES])


def slow_cider(hypotheses, references):
    """Equations 1 to 3 of the paper with clipping and gaussian, vector by vector over the whole vocabulary."""

    def grams(tokens, order):
        return [tuple(tokens[start : start + order]) for start in range(len(tokens) - order + 1)]

    def vector(tokens, order, vocabulary):
        present = grams(tokens, order)
        result = []
        for gram in vocabulary:
            frequency = sum(any(gram in grams(text, order) for text in texts) for texts in references)
            result.append(present.count(gram) * (math.log(len(references)) - math.log(max(1, frequency))))
        return result

    segment_scores = []
    for hypothesis, texts in zip(hypotheses, references):
        total = 0.0
        for text in texts:
            for order in range(1, 5):
                vocabulary = sorted(set(grams(hypothesis, order)) | set(grams(text, order)))
                left, right = vector(hypothesis, order, vocabulary), vector(text, order, vocabulary)
                norms = math.hypot(*left) * math.hypot(*right)
                if norms:
                    cosine = sum(min(x, y) * y for x, y in zip(left, right)) / norms
                    difference = len(grams(hypothesis, 2)) - len(grams(text, 2))
                    total += cosine * math.exp(-(difference**2) / 72)
        segment_scores.append(10 * total / 4 / len(texts))
    return segment_scores


def test_examples_of_the_docstring():
    assert doctest.testmod(cider).failed == 0


def test_equals_the_equations_written_a_second_time():
    rng = random.Random(3)
    for _ in range(20):
        references = [
            [rng.choices("abcdefgh", k=rng.randint(0, 9)) for _ in range(rng.randint(1, 3))] for _ in range(6)
        ]
        hypotheses = [rng.choice(texts)[:7] + rng.choices("abz", k=2) for texts in references]
        corpus, segments = cider.cider(hypotheses, references)
        assert segments == pytest.approx(slow_cider(hypotheses, references), abs=1e-12)
        assert corpus == pytest.approx(sum(segments) / 6)


def test_a_single_segment_has_no_document_frequencies_and_scores_zero():
    assert cider.cider([["a", "b"]], [[["a", "b"]]]) == (0.0, [0.0])


def test_empty_texts_score_zero():
    assert scores([], [["cat"]])[1][0] == 0.0
    assert scores(["cat"], [[]])[1][0] == 0.0


def test_a_token_with_a_no_break_space_counts_as_two_as_in_the_scorer():
    assert scores(["1\u00a01/2", "cups"], [["1", "1/2", "cups"]])[1][0] == pytest.approx(7.5)  # n = 1, 2, 3 of 4


@given(WORDS, WORDS)
@settings(deadline=None)
def test_a_reference_repeated_as_hypothesis_wins(reference, other):
    best = scores(reference, [reference])[1][0]
    assert 0.0 <= scores(other, [reference])[1][0] <= best + 1e-9
    assert best <= 10.0 + 1e-9


@given(WORDS, st.lists(WORDS, min_size=1, max_size=4), st.randoms())
@settings(deadline=None)
def test_order_of_references_does_not_matter(hypothesis, references, rng):
    shuffled = rng.sample(references, len(references))
    assert scores(hypothesis, references)[1][0] == pytest.approx(scores(hypothesis, shuffled)[1][0], abs=1e-12)
