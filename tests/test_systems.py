"""`metrics.score` equals the reference scorer on whole corpora: the 20 systems of the shared folder, E2E's references.

The scores are computed in the background (reference_scorer.py) from test_metrics_meteor.py on, if that runs too.
"""

import json

import pytest
from reference_scorer import (
    ALL_OUTPUTS,
    CORPORA,
    SHARED,
    SYSTEMS,
    assert_equal,
    needs_java,
    needs_systems,
    read_corpus,
    scores_of_all_corpora,
)

import metrics

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def all_scores():
    return scores_of_all_corpora()


def assert_equals_recorded(ours, name):
    """ours: the corpus scores of a system."""
    recorded = json.loads((SHARED / "scores" / "dev_reference_scores.json").read_text())[name]
    recorded["NIST"] = recorded["NIST_py"]
    for key, value in ours.items():
        tolerance = 1e-4 if key == "NIST_perl" else 1e-6
        assert value == pytest.approx(recorded[key], abs=tolerance), key
    assert set(ours) == set(metrics.CORPUS_KEYS) - set(metrics.unavailable())


@needs_systems
def test_a_system_equals_the_recorded_scores():
    name = SYSTEMS[7].name
    assert_equals_recorded(metrics.score(*read_corpus(name)), name)


@needs_systems
def test_all_20_systems_equal_the_recorded_scores(all_scores):
    ours, _theirs = all_scores
    for path in SYSTEMS:
        assert_equals_recorded({key: values[0] for key, values in ours[path.name].items()}, path.name)
    assert len(SYSTEMS) == 20


@needs_java
@pytest.mark.parametrize("name", CORPORA)
def test_every_segment_of_a_corpus_equals_live(all_scores, name):
    """The 20 systems; E2E's test references against each other, tokenised and raw."""
    ours, theirs = (scores[name] for scores in all_scores)
    assert set(theirs) == {"METEOR", "ROUGE_L", "CIDEr"}
    assert len(theirs["METEOR"]) == 1 + len(read_corpus(name)[0])
    assert_equal(ours, theirs)


@needs_java
@needs_systems
def test_meteor_of_all_outputs_as_one_corpus_equals_live(all_scores):
    ours, theirs = (scores[ALL_OUTPUTS] for scores in all_scores)
    assert len(theirs["METEOR"]) > 6000
    assert_equal(ours, theirs)
