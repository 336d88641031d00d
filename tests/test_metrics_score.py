"""`metrics.score` equals the reference scorer: recorded numbers, and live. (test_systems.py: on whole corpora.)"""

import doctest
import json
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_scorer import SYSTEMS, assert_equal, needs_java, needs_systems, our_scores, read_corpus, their_scores
from test_metrics_meteor import OTHER_TEXTS, shuffled

import metrics
from metrics import meteor, ptb

TESTS = Path(__file__).resolve().parent
SENTENCES = json.loads((TESTS / "recorded_sentences.json").read_text(encoding="utf-8"))
RECORDED = json.loads((TESTS / "recorded_scores.json").read_text(encoding="utf-8"))
HYPOTHESES = [segment["hypothesis"] for segment in SENTENCES]
REFERENCES = [segment["references"] for segment in SENTENCES]
WITH_METEOR = not metrics.unavailable()

WORDS = "The cat, a dog. sat on £20 mat isn't family-friendly (café)".split()
TEXTS = st.lists(st.sampled_from(WORDS), max_size=8).map(" ".join)


@pytest.fixture
def without_meteor(monkeypatch):
    """For tests of the rest: METEOR is most of the time, and has tests of its own."""
    monkeypatch.setattr(meteor, "available", lambda: "switched off for this test")


# ------------------------------------------------------------------------- recorded


@pytest.fixture(scope="module")
def recorded_run():
    return metrics.score(HYPOTHESES, REFERENCES, per_segment=True)


@pytest.mark.parametrize("key", ["METEOR", "ROUGE_L", "CIDEr"])
def test_corpus_scores_equal_the_recorded_ones(recorded_run, key):
    if key == "METEOR" and not WITH_METEOR:
        pytest.skip(metrics.unavailable()["METEOR"])
    assert recorded_run["corpus"][key] == pytest.approx(RECORDED["corpus"][key], abs=1e-6)


def test_bleu_and_nist_equal_mtevals_on_all_sentences_empty_and_short_ones_too(recorded_run):
    assert recorded_run["corpus"]["BLEU"] == pytest.approx(RECORDED["perl"]["BLEU"], abs=1e-4)
    assert recorded_run["corpus"]["NIST_perl"] == pytest.approx(RECORDED["perl"]["NIST"], abs=1e-4)


def test_bleu_and_nist_equal_the_python_scorers_where_it_is_defined(without_meteor):
    chosen = RECORDED["python_segments"]
    scores = metrics.score([HYPOTHESES[i] for i in chosen], [REFERENCES[i] for i in chosen])
    assert scores["BLEU"] == pytest.approx(RECORDED["python"]["BLEU"], abs=1e-12)
    assert scores["NIST"] == pytest.approx(RECORDED["python"]["NIST"], abs=1e-12)


@pytest.mark.parametrize("key", metrics.SEGMENT_KEYS)
def test_segment_scores_equal_the_recorded_ones(recorded_run, key):
    if key == "METEOR" and not WITH_METEOR:
        pytest.skip(metrics.unavailable()["METEOR"])
    for ours, theirs, sentence in zip(recorded_run["segments"], RECORDED["segments"], SENTENCES, strict=True):
        if theirs[key] is not None:
            assert ours[key] == pytest.approx(theirs[key], abs=1e-6), sentence


def test_ptb_tokens_equal_the_recorded_ones():
    texts = {"hypothesis": HYPOTHESES, "references": [text for texts in REFERENCES for text in texts]}
    lines = {
        "hypothesis": [segment["ptb"]["hypothesis"] for segment in RECORDED["segments"]],
        "references": [line for segment in RECORDED["segments"] for line in segment["ptb"]["references"]],
    }
    for key in texts:
        assert [" ".join(tokens) for tokens in ptb.tokenize_lines(texts[key])] == lines[key]


# ------------------------------------------------------------------------- live, through Java


def assert_equals_live(hypotheses, references):
    theirs = their_scores(hypotheses, references)
    assert set(theirs) == {"METEOR", "ROUGE_L", "CIDEr"}
    assert_equal(our_scores(hypotheses, references), theirs)


@needs_java
def test_recorded_sentences_equal_live():
    assert_equals_live(HYPOTHESES, REFERENCES)


@needs_java
def test_sentences_against_each_other_equal_live():
    # Every sentence with the references of the next two: far apart, and different numbers of references.
    neighbours = [REFERENCES[i - 1] + REFERENCES[i - 2] for i in range(len(REFERENCES))]
    assert_equals_live(HYPOTHESES, neighbours)


@needs_java
@needs_systems
def test_60_segments_of_a_system_equal_live():
    hypotheses, references = read_corpus(SYSTEMS[3].name)
    assert_equals_live(hypotheses[:60], references[:60])


@pytest.mark.slow
@needs_java
def test_texts_of_other_kinds_equal_live():
    """News, dialogue, prices, URLs, quotes, Unicode, up to 200 words; references have words moved, dropped, changed."""
    chosen = random.Random(5)
    vocabulary = " ".join(OTHER_TEXTS).split()
    lines = [
        *OTHER_TEXTS,
        *(" ".join(chosen.choices(vocabulary, k=n)) for n in (1, 1, 2, 40, 120, 200) for _ in range(10)),
    ]
    references = [[shuffled(chosen, line, vocabulary) for _ in range(chosen.randint(1, 4))] for line in lines]
    assert_equals_live(lines, references)


# ------------------------------------------------------------------------- the interface


def test_keys_and_shape(recorded_run, without_meteor):
    assert set(recorded_run) == {"corpus", "segments"}
    assert len(recorded_run["segments"]) == len(HYPOTHESES)
    if WITH_METEOR:
        assert tuple(recorded_run["corpus"]) == metrics.CORPUS_KEYS
        assert tuple(recorded_run["segments"][0]) == metrics.SEGMENT_KEYS
    assert set(metrics.score(["a"], [["a"]])) == set(metrics.CORPUS_KEYS) - {"METEOR"}


def test_missing_meteor_is_said_and_not_scored(without_meteor):
    assert metrics.unavailable() == {"METEOR": "switched off for this test"}
    assert "METEOR:unavailable" in metrics.signature()
    scores = metrics.score(["a"], [["a"]], per_segment=True)
    assert "METEOR" not in scores["corpus"] and "METEOR" not in scores["segments"][0]


def test_example_of_the_docstring():
    assert doctest.testmod(metrics).failed == 0


def test_signature_is_one_line_that_names_what_numbers_depend_on():
    signature = metrics.signature()
    assert "\n" not in signature
    for part in ("scorer:", "13a", "python-penalty", "perl-penalty", "METEOR:", "beta1.2", "sigma6"):
        assert part in signature


@pytest.mark.parametrize(
    "hypotheses, references, complaint",
    [
        ([], [], "no hypotheses"),
        (["a"], [], "1 hypotheses but 0 reference lists"),
        (["a", "b"], [["a"], []], r"references\[1\] is empty"),
        (["a"], ["a"], r"references\[0\] is a string"),
        ("a", [["a"]], "the hypotheses are a string"),
        (["a"], [(text for text in "a")], r"references\[0\] is not a list"),
        ([None], [["a"]], "segment 0 holds None"),
        (["a", "b"], [["a"], ["b", b"c"]], "segment 1 holds b'c'"),
    ],
)
def test_lists_that_do_not_fit_get_a_clear_value_error(hypotheses, references, complaint):
    with pytest.raises(ValueError, match=complaint):
        metrics.score(hypotheses, references)


def test_the_name_of_one_score_is_enough():
    assert metrics.score(["a b c d"], [["a b c d"]], names="BLEU") == {"BLEU": 1.0}


def test_a_segment_alone_scores_as_the_corpus_of_it(recorded_run):
    for index in (0, 8, 20):
        alone = metrics.score([HYPOTHESES[index]], [REFERENCES[index]])
        for key in {"BLEU", "NIST", "METEOR", "ROUGE_L"} & set(alone):
            assert alone[key] == pytest.approx(recorded_run["segments"][index][key], abs=1e-12)


def test_perl_nist_is_counted_on_its_own_tokens(without_meteor):
    same = metrics.score(["a café here now"], [["a café here now"]])
    assert same["NIST"] == same["NIST_perl"]
    capital = metrics.score(["a CAFÉ here now"], [["a café here now"]])
    assert capital["NIST"] == same["NIST"]  # É is é to the Python scorer ...
    assert capital["NIST_perl"] < same["NIST_perl"]  # ... and another letter to the Perl script


def test_the_garbage_collector_is_left_as_it_was():
    import gc

    assert gc.isenabled()
    metrics.score(["a"], [["a"]])
    assert gc.isenabled()


@given(st.text(max_size=30), st.lists(st.text(max_size=30), min_size=1, max_size=3))
@settings(deadline=None, max_examples=200)
def test_no_text_of_any_unicode_raises_and_scores_stay_in_range(hypothesis, references):
    scores = metrics.score([hypothesis, "the cat"], [references, ["a cat"]])
    assert all(0 <= scores[key] <= 1 + 1e-9 for key in ("BLEU", "METEOR", "ROUGE_L") if key in scores)
    assert 0 <= scores["CIDEr"] <= 10 + 1e-9
    assert scores["NIST"] >= 0 and scores["NIST_perl"] >= 0


@given(st.text(alphabet=st.characters(), max_size=20))
@settings(deadline=None)
def test_lone_surrogates_do_not_raise(text):
    metrics.score([text + "\ud800"], [["\udfff" + text]])


@pytest.mark.slow
@given(TEXTS, TEXTS)
@settings(deadline=None, max_examples=200)
def test_a_reference_repeated_as_hypothesis_wins(reference, other):
    # The second segment, always the same, is there for CIDEr's document frequencies. For NIST see its own tests.
    best = metrics.score([reference, "a bird"], [[reference], ["some bird"]], per_segment=True)["segments"][0]
    tried = metrics.score([other, "a bird"], [[reference], ["some bird"]], per_segment=True)["segments"][0]
    for key in {"BLEU", "sentBLEU", "METEOR", "ROUGE_L", "CIDEr"} & set(best):
        assert tried[key] <= best[key] + 1e-9, key


@given(TEXTS, st.lists(TEXTS, min_size=1, max_size=4), st.randoms())
@settings(deadline=None)
def test_order_of_references_does_not_matter(hypothesis, references, rng):
    shuffled = rng.sample(references, len(references))
    first = metrics.score([hypothesis, "a bird"], [references, ["some bird"]], per_segment=True)["segments"][0]
    second = metrics.score([hypothesis, "a bird"], [shuffled, ["some bird"]], per_segment=True)["segments"][0]
    assert first == pytest.approx(second, abs=1e-9)
