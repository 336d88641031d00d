"""BLEU: on paper, against sacrebleu live, and its properties."""

import doctest
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metrics import bleu, mteval, ngrams

WORDS = st.lists(st.sampled_from("the a cat dog sat on mat".split()), min_size=1, max_size=12)
LONGER = st.lists(st.sampled_from("the a cat dog sat on mat".split()), min_size=4, max_size=12)


def sentence_bleu(hypothesis, *references, **options):
    return bleu.bleu([ngrams.segment(hypothesis, list(references))], **options)


def test_examples_of_the_docstrings():
    assert doctest.testmod(ngrams).failed == 0
    assert doctest.testmod(bleu).failed == 0


def test_corpus_sums_before_dividing():
    # Matches 4+0, 3+0, 2+0, 1+0 of 4+4, 3+3, 2+2, 1+1 n-grams: every p_n is 1/2, lengths are equal.
    segments = [ngrams.segment(hypothesis.split(), ["a b c d".split()]) for hypothesis in ("a b c d", "w x y z")]
    assert bleu.bleu(segments) == pytest.approx(0.5, abs=1e-12)


def test_brevity_penalty_takes_the_closest_reference_and_the_shorter_of_two_as_close():
    assert bleu.closest_length(7, [11, 8, 6]) == 6
    assert bleu.closest_length(7, [6, 8, 11]) == 6
    assert bleu.closest_length(7, [6, 7, 8]) == 7
    # 4 words against 5: exp(1 - 5/4); all n-grams match.
    assert sentence_bleu("a b c d".split(), "a b c d e".split()) == pytest.approx(math.exp(-0.25))


def test_matches_are_clipped_by_the_single_best_reference_not_by_their_sum():
    assert ngrams.segment(["a"] * 5, [["a", "a"], ["a", "a", "a"]], max_order=1).matches == {("a",): 3}


def test_no_match_is_floored_as_in_the_reference():
    # p1 = 2/4, p2..p4 = 1e-15 / 3, 2, 1
    expected = (0.5 * 1e-15 / 3 * 1e-15 / 2 * 1e-15 / 1) ** 0.25
    assert sentence_bleu("a x b y".split(), "a z b w".split()) == pytest.approx(expected, rel=1e-9)


def test_smoothed_sentence_bleu_adds_one_everywhere():
    # matches 2, 0, 0, 0 of 4, 3, 2, 1
    expected = (3 / 5 * 1 / 4 * 1 / 3 * 1 / 2) ** 0.25
    assert sentence_bleu("a x b y".split(), "a z b w".split(), smoothing=1.0) == pytest.approx(expected)


def test_short_hypotheses_do_not_count_negative_ngrams():
    # pymteval would count 5 + 4 + 2 + 0 n-grams here and score above 1.
    segments = [ngrams.segment(text.split(), [text.split()]) for text in ("a", "b", "c", "v w x y z")]
    assert bleu.bleu(segments) == pytest.approx(1.0)


def test_empty_hypothesis_scores_zero():
    assert sentence_bleu([], "a b".split()) == 0.0


def test_segment_without_references_is_a_value_error():
    with pytest.raises(ValueError, match="at least one reference"):
        ngrams.segment(["a"], [])


@given(LONGER, st.lists(WORDS, max_size=3))
@settings(deadline=None)
def test_a_reference_repeated_as_hypothesis_wins(reference, others):
    best = sentence_bleu(reference, reference)
    assert best == pytest.approx(1.0)
    assert all(sentence_bleu(other, reference) <= best + 1e-12 for other in others)


@given(WORDS, WORDS)
@settings(deadline=None)
def test_even_a_short_reference_repeated_as_hypothesis_wins(reference, other):
    assert sentence_bleu(other, reference) <= sentence_bleu(reference, reference) + 1e-12


@given(WORDS, st.lists(WORDS, min_size=1, max_size=4), st.randoms())
@settings(deadline=None)
def test_order_of_references_does_not_matter(hypothesis, references, rng):
    shuffled = rng.sample(references, len(references))
    assert sentence_bleu(hypothesis, *references) == sentence_bleu(hypothesis, *shuffled)


PAIRS = st.lists(st.tuples(st.lists(st.sampled_from(["a", "cat"]), max_size=6), WORDS), min_size=1, max_size=5)


@given(PAIRS, st.sampled_from([0.0, 1.0]))
@settings(deadline=None)
def test_stays_in_range(pairs, smoothing):
    segments = [ngrams.segment(hypothesis, [reference]) for hypothesis, reference in pairs]
    assert 0.0 <= bleu.bleu(segments, smoothing) <= 1.0 + 1e-12


def test_equals_sacrebleu_on_random_corpora():
    sacrebleu = pytest.importorskip("sacrebleu")
    rng = random.Random(0)
    vocabulary = "The the cat, sat on a mat. It's £20-25 (cheap) $3.50 1,000 user-friendly &amp; É café!".split()
    metric = sacrebleu.BLEU(lowercase=True, tokenize="13a", smooth_method="none")
    for _ in range(30):
        count = rng.randint(1, 4)
        references = [[rng.choices(vocabulary, k=rng.randint(1, 15)) for _ in range(count)] for _ in range(12)]
        hypotheses = []
        for texts in references:  # a reference with some words replaced and a random length
            words = list(rng.choice(texts))[: rng.randint(0, 15)]
            hypotheses.append([rng.choice(vocabulary) if rng.random() < 0.1 else word for word in words])
        hypotheses = [" ".join(words) for words in hypotheses]
        references = [[" ".join(words) for words in texts] for texts in references]
        theirs = metric.corpus_score(hypotheses, [list(column) for column in zip(*references)]).score / 100
        segments = [
            ngrams.segment(mteval.tokenize(hypothesis), [mteval.tokenize(text) for text in texts])
            for hypothesis, texts in zip(hypotheses, references)
        ]
        assert bleu.bleu(segments) == pytest.approx(theirs, abs=1e-9)
