"""The score of tables read out of sentences: on paper, and its properties."""

import doctest

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metrics import fields

PAIRS = st.tuples(st.sampled_from(["name", "Type", "area"]), st.sampled_from(["Blue Spice", "pub", "riverside"]))
TABLES = st.lists(PAIRS, min_size=1, max_size=5).map(lambda pairs: " | ".join(f"{n} : {v}" for n, v in pairs))
ANYTHING = st.one_of(st.text(max_size=40), st.text(alphabet=":| nb\n", max_size=20), TABLES)
CORPORA = st.lists(st.tuples(ANYTHING, st.lists(ANYTHING, min_size=1, max_size=3)), min_size=1, max_size=5)
few = settings(max_examples=100, deadline=None, database=None)


def of(*pairs):
    """The scores of pairs (text, tables)."""
    return fields.score([text for text, _ in pairs], [tables for _, tables in pairs])


def test_example_of_the_docstring():
    assert doctest.testmod(fields).failed == 0


def test_a_text_is_parsed_into_pairs_and_broken_pieces():
    table = fields.parse("name : Blue  Spice| Type :pub | family friendly : yes | near : a : b")
    assert table.fields == {("name", "Blue Spice"), ("Type", "pub"), ("family friendly", "yes"), ("near", "a : b")}
    assert (table.broken, len(table)) == (0, 4)
    assert fields.parse(" | name | name : | : pub | : |") == (frozenset(), 6)
    assert fields.parse(" \n") == (frozenset(), 0)


def test_sums_run_over_the_corpus_before_dividing():
    # right 2 + 0, written 2 + 1, expected 3 + 1; the mean of the two sentences' F1 would be 0.4
    scores = of(("a : 1 | b : 2", ["a : 1 | b : 2 | c : 3"]), ("a : 1", ["a : 2"]))
    assert scores == {"precision": 2 / 3, "recall": 2 / 4, "F1": 4 / 7, "exact": 0.0}


def test_the_acceptable_table_with_the_best_f1_counts():
    # F1 against the tables: 2 * 2 / (2 + 6) = 1/2, 2 * 1 / (2 + 1) = 2/3
    six = "a : 1 | b : 2 | c : 3 | d : 4 | e : 5 | f : 6"
    assert of(("a : 1 | b : 2", [six, "a : 1"])) == {"precision": 1 / 2, "recall": 1.0, "F1": 2 / 3, "exact": 0.0}
    assert of(("a : 1 | b : 2", [six, "a : 1", "b : 2 | a : 1"]))["exact"] == 1.0


def test_names_and_values_count_to_the_letter_and_together():
    assert of(("Name : x | area : pub", ["name : x | Type : pub"]))["F1"] == 0.0


def test_a_broken_piece_never_counts_as_right():
    assert of(("name : x | pub", ["name : x | pub"])) == {"precision": 0.5, "recall": 0.5, "F1": 0.5, "exact": 0.0}


def test_empty_texts():
    assert of(("", ["name : x"])) == {"precision": 0.0, "recall": 0.0, "F1": 0.0, "exact": 0.0}
    assert of(("", [""])) == {"precision": 1.0, "recall": 1.0, "F1": 1.0, "exact": 1.0}


def test_scores_of_segments_are_those_of_a_corpus_of_one():
    pairs = [("a : 1", ["a : 1 | b : 2"]), ("x", ["a : 1"])]
    found = fields.score([text for text, _ in pairs], [tables for _, tables in pairs], per_segment=True)
    assert found["corpus"] == of(*pairs)
    assert found["segments"] == [of(pair) for pair in pairs]


def test_misuse_is_a_value_error():
    for hypotheses, references in (([], []), (["a : 1"], []), (["a : 1"], [[]]), (["a : 1"], ["a : 1"])):
        with pytest.raises(ValueError):
            fields.score(hypotheses, references)


@few
@given(CORPORA)
def test_any_text_can_be_scored_and_f1_is_the_harmonic_mean(corpus):
    scores = of(*corpus)
    assert tuple(scores) == fields.KEYS
    assert all(0 <= value <= 1 for value in scores.values())
    p, r = scores["precision"], scores["recall"]
    assert scores["F1"] == pytest.approx(2 * p * r / (p + r) if p + r else 0.0)


@few
@given(TABLES, st.randoms(use_true_random=False))
def test_the_order_of_the_fields_does_not_matter(table, random):
    pieces = table.split(" | ")
    random.shuffle(pieces)
    assert set(of((" | ".join(pieces), [table])).values()) == {1.0}


@few
@given(ANYTHING, st.lists(ANYTHING, min_size=1, max_size=3), ANYTHING)
def test_one_more_acceptable_table_never_lowers_f1_or_exact(text, tables, more):
    before, after = of((text, tables)), of((text, [*tables, more]))
    assert after["F1"] >= before["F1"] and after["exact"] >= before["exact"]


@few
@given(TABLES, st.sampled_from(["pub", "name :", ": pub", " ", "colour : red"]))
def test_a_wrong_piece_lowers_precision_and_leaves_recall(table, piece):
    scores = of((f"{table} | {piece}", [table]))
    assert scores["precision"] < 1 == scores["recall"]
    assert scores["exact"] == 0
