"""NIST: on paper, against nltk live, against a slow second writing of the formula, and its properties."""

import doctest
import math
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metrics import ngrams, nist

WORDS = st.lists(st.sampled_from("the a cat dog sat on mat".split()), min_size=1, max_size=12)


def corpus_nist(hypotheses, references, variant="python"):
    return nist.nist([ngrams.segment(*pair) for pair in zip(hypotheses, references)], variant)


def slow_nist(hypotheses, references, variant):
    """Doddington's equations with no sharing of work: every count is computed where it is needed."""
    every_reference = [reference for texts in references for reference in texts]

    def occurrences(ngram, text):
        return sum(tuple(text[start : start + len(ngram)]) == ngram for start in range(len(text) - len(ngram) + 1))

    def total(ngram):
        if not ngram:
            return sum(map(len, every_reference))
        return sum(occurrences(ngram, reference) for reference in every_reference)

    score = 0.0
    for order in range(1, 6):
        information, count = 0.0, 0
        for hypothesis, texts in zip(hypotheses, references):
            grams = [tuple(hypothesis[start : start + order]) for start in range(len(hypothesis) - order + 1)]
            count += len(grams)
            for gram in set(grams):
                matches = min(grams.count(gram), max(occurrences(gram, text) for text in texts))
                if matches:
                    information += matches * math.log(total(gram[:-1]) / total(gram), 2)
        score += information / count if count else 0.0
    if variant == "python":
        average = sum(sum(map(len, texts)) / len(texts) for texts in references)
    else:
        average = sum(map(len, every_reference)) / (len(every_reference) / len(references))
    ratio = min(1.0, sum(map(len, hypotheses)) / average)
    beta = math.log(0.5) / math.log(1.5) ** 2
    return score * math.exp(beta * math.log(ratio) ** 2)


def random_corpus(rng, max_references=4, segments=8):
    vocabulary = list("abcdefgh") + ["the"] * 6 + ["of"] * 3
    references = [
        [rng.choices(vocabulary, k=rng.randint(1, 12)) for _ in range(rng.randint(1, max_references))]
        for _ in range(segments)
    ]
    hypotheses = [
        rng.choice(texts)[: rng.randint(1, 12)] + rng.choices(vocabulary, k=rng.randint(0, 2)) for texts in references
    ]
    return hypotheses, references


def test_examples_of_the_docstring():
    assert doctest.testmod(nist).failed == 0


@pytest.mark.parametrize("variant", ["python", "perl"])
def test_equals_the_formula_written_a_second_time(variant):
    rng = random.Random(1)
    for _ in range(40):
        hypotheses, references = random_corpus(rng)
        expected = slow_nist(hypotheses, references, variant)
        assert corpus_nist(hypotheses, references, variant) == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_equals_nltk_where_segments_have_one_reference():
    # With several, nltk takes each order's best reference instead of clipping by all of them.
    nltk_nist = pytest.importorskip("nltk.translate.nist_score")
    rng = random.Random(2)
    for _ in range(40):
        hypotheses, references = random_corpus(rng, max_references=1)
        hypotheses[0] = hypotheses[0] + list("abcde")  # nltk divides by the number of 5-grams
        expected = nltk_nist.corpus_nist(references, hypotheses)
        assert corpus_nist(hypotheses, references) == pytest.approx(expected, rel=1e-12)


def test_variants_differ_only_where_segments_have_different_numbers_of_references():
    hypotheses = [list("abc"), list("ab")]
    references = [[list("abcdef")], [list("abc"), list("abd")]]
    # python: 6 + (3 + 3)/2 = 9 words;  perl: 12 words / (3 references / 2 segments) = 8
    segments = [ngrams.segment(*pair) for pair in zip(hypotheses, references)]
    assert nist.average_reference_words(segments, "python") == 9
    assert nist.average_reference_words(segments, "perl") == 8
    one_each = [texts[:1] for texts in references]
    assert corpus_nist(hypotheses, one_each, "python") == corpus_nist(hypotheses, one_each, "perl")


def test_length_penalty_is_half_at_two_thirds_and_one_from_equal_length():
    assert nist.length_penalty(2, 3) == pytest.approx(0.5)
    assert nist.length_penalty(3, 3) == nist.length_penalty(4, 3) == 1.0
    assert nist.length_penalty(0, 3) == 0.0


def test_perl_takes_the_history_zero_for_no_history():
    hypotheses, references = [["0", "x"]], [[["0", "x", "0", "y"]]]
    unigrams = (math.log2(4 / 2) + math.log2(4 / 1)) / 2
    assert corpus_nist(hypotheses, references, "python") == pytest.approx(
        (unigrams + math.log2(2 / 1)) * nist.length_penalty(2, 4)
    )
    assert corpus_nist(hypotheses, references, "perl") == pytest.approx(
        (unigrams + math.log2(4 / 1)) * nist.length_penalty(2, 4)
    )


def test_a_lone_segment_of_fewer_than_five_tokens_has_a_score():
    assert corpus_nist([["a"]], [[["a", "b"]]]) > 0
    assert corpus_nist([[]], [[["a", "b"]]]) == 0
    assert corpus_nist([[]], [[[]]]) == 0


def test_unknown_variant_is_a_value_error():
    with pytest.raises(ValueError, match="variant"):
        corpus_nist([["a"]], [[["a"]]], "ruby")


@given(WORDS, WORDS)
@settings(deadline=None)
def test_a_reference_without_repeated_words_wins_as_hypothesis(reference, other):
    reference = list(Counter(reference))
    assert corpus_nist([other], [[reference]]) <= corpus_nist([reference], [[reference]]) + 1e-12


def test_a_reference_with_repeated_words_need_not_win():
    # Not a fault of the program: leaving out one of 20 cheap words raises the average information.
    reference = ["a"] * 20 + ["b"]
    assert corpus_nist([reference[1:]], [[reference]]) > corpus_nist([reference], [[reference]])


@given(WORDS, st.lists(WORDS, min_size=1, max_size=4), st.randoms(), st.sampled_from(["python", "perl"]))
@settings(deadline=None)
def test_order_of_references_does_not_matter_and_scores_are_not_negative(hypothesis, references, rng, variant):
    shuffled = rng.sample(references, len(references))
    score = corpus_nist([hypothesis], [references], variant)
    assert score >= 0
    assert score == pytest.approx(corpus_nist([hypothesis], [shuffled], variant), rel=1e-12)
