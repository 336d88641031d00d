"""`metrics.score` beside the reference scorer: recorded numbers, the 20 systems of the shared folder, and live."""

import doctest
import json
import random
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_metrics_meteor import OTHER_TEXTS, shuffled

import metrics
from e2e_data import group_references, read_examples
from metrics import meteor, mteval, ptb, read

TESTS = Path(__file__).resolve().parent
SHARED = TESTS.parents[1] / "shared"
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


# ------------------------------------------------------------------------- the 20 systems


def systems():
    return sorted((SHARED / "scores" / "dev_outputs").glob("*.txt"))


def recorded_system(path):
    scores = json.loads((SHARED / "scores" / "dev_reference_scores.json").read_text())[path.name]
    return {**scores, "NIST": scores["NIST_py"]}


needs_shared = pytest.mark.skipif(not systems(), reason="the 20 systems' outputs are in ../shared, which is not here")


@needs_shared
def test_all_systems_equal_the_reference_save_meteor(without_meteor, monkeypatch):
    # The references are the same for all: tokenise and count them once.
    texts_of = lambda path: read.load(path, SHARED / "e2e" / "devset.csv")  # noqa: E731
    references = texts_of(systems()[0]).references
    tokens = {text: mteval.tokenize(text) for texts in references for text in texts}
    monkeypatch.setattr(mteval, "tokenize", lambda text, slow=mteval.tokenize: tokens.get(text) or slow(text))
    for path in systems():
        scores = metrics.score(texts_of(path).hypotheses, references)
        for key, value in scores.items():
            tolerance = 1e-4 if key == "NIST_perl" else 1e-6
            assert value == pytest.approx(recorded_system(path)[key], abs=tolerance), (path.name, key)
        assert set(scores) == set(metrics.CORPUS_KEYS) - {"METEOR"}


@needs_shared
@pytest.mark.skipif(not WITH_METEOR, reason="METEOR's tables are not here")
def test_a_system_equals_the_reference_in_all_numbers():
    path = systems()[7]
    scores = metrics.score(*read.load(path, SHARED / "e2e" / "devset.csv")[1:])
    for key in metrics.CORPUS_KEYS:
        tolerance = 1e-4 if key == "NIST_perl" else 1e-6
        assert scores[key] == pytest.approx(recorded_system(path)[key], abs=tolerance), key


# ------------------------------------------------------------------------- live, through Java


def live_reason():
    """Why the reference scorer cannot run here, or None."""
    if shutil.which("java") is None:
        return "Java is not here"
    try:
        import pycocoevalcap  # noqa: F401
    except ImportError:
        return "pycocoevalcap is not installed"
    return None


needs_java = pytest.mark.skipif(live_reason() is not None, reason=str(live_reason()))


class Live:
    """pycocoevalcap's three scorers; one Java process for METEOR, which is slow to start."""

    def __init__(self):
        from pycocoevalcap.meteor.meteor import Meteor

        self.meteor = Meteor()

    def segments(self, hypotheses, references):
        from pycocoevalcap.cider.cider import Cider
        from pycocoevalcap.rouge.rouge import Rouge
        from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

        tokenizer = PTBTokenizer()
        truth = tokenizer.tokenize({i: [{"caption": text} for text in texts] for i, texts in enumerate(references)})
        outputs = tokenizer.tokenize({i: [{"caption": text}] for i, text in enumerate(hypotheses)})
        result = {}
        for key, metric in (("METEOR", self.meteor), ("ROUGE_L", Rouge()), ("CIDEr", Cider())):
            corpus, segments = metric.compute_score(truth, outputs)
            result[key] = [corpus, *segments]
        return result


@pytest.fixture(scope="module")
def live():
    return Live()


def assert_equals_live(live, hypotheses, references):
    ours = metrics.score(hypotheses, references, per_segment=True)
    for key, theirs in live.segments(hypotheses, references).items():
        if key in ours["corpus"]:
            mine = [ours["corpus"][key], *(segment[key] for segment in ours["segments"])]
            assert mine == pytest.approx(theirs, abs=1e-6), key


@needs_java
def test_recorded_sentences_equal_live(live):
    assert_equals_live(live, HYPOTHESES, REFERENCES)


@needs_java
def test_sentences_against_each_other_equal_live(live):
    # Every sentence with the references of the next two: far apart, and different numbers of references.
    neighbours = [REFERENCES[i - 1] + REFERENCES[i - 2] for i in range(len(REFERENCES))]
    assert_equals_live(live, HYPOTHESES, neighbours)


@needs_java
@needs_shared
def test_all_systems_equal_live(live):
    for path in systems():
        assert_equals_live(live, *read.load(path, SHARED / "e2e" / "devset.csv")[1:])


@needs_java
@needs_shared
@pytest.mark.parametrize("name", ["src1_test.txt", "testset_w_refs.csv"])
def test_e2es_references_against_each_other_equal_live(live, name):
    """Tokenised and raw: a table's last sentence as the output, the others as its references."""
    groups = [texts for texts in group_references(read_examples(SHARED / "e2e" / name)).values() if len(texts) > 1]
    assert_equals_live(live, [texts[-1] for texts in groups], [texts[:-1] for texts in groups])


@needs_java
def test_texts_of_other_kinds_equal_live(live):
    """News, dialogue, prices, URLs, quotes, unicode, up to 200 words; the references are the text with words moved, dropped, changed."""
    chosen = random.Random(5)
    vocabulary = " ".join(OTHER_TEXTS).split()
    lines = [
        *OTHER_TEXTS,
        *(" ".join(chosen.choices(vocabulary, k=n)) for n in (1, 1, 2, 40, 120, 200) for _ in range(10)),
    ]
    references = [[shuffled(chosen, line, vocabulary) for _ in range(chosen.randint(1, 4))] for line in lines]
    assert_equals_live(live, lines, references)


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
    ],
)
def test_lists_that_do_not_fit_get_a_clear_value_error(hypotheses, references, complaint):
    with pytest.raises(ValueError, match=complaint):
        metrics.score(hypotheses, references)


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
