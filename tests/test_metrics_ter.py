"""TER: on paper, recorded from sacrebleu, against sacrebleu live, and its properties."""

import doctest
import json
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import metrics
from metrics import ter

RECORDED = json.loads((Path(__file__).resolve().parent / "ter_recorded.json").read_text(encoding="utf-8"))
few = settings(max_examples=150, deadline=None, database=None)
WORDS = st.lists(st.sampled_from("the a cat dog sat on mat".split()), max_size=12)
ALPHABET = "aB1 -.,'&<>\"!(){}~`|\n;é\u00a0"
TEXTS = st.one_of(st.text(alphabet=ALPHABET, max_size=25), st.text(max_size=25))
TEXTS |= st.lists(st.sampled_from("it's &quot; U.S. 3,000-year 5-6 <skipped> -\n x. 's &amp;lt;".split(" "))).map(
    " ".join
)


def edits(hypothesis, reference):
    return ter.edits(hypothesis.split(), reference.split())


# ------------------------------------------------------------------------- on paper


def test_example_of_the_docstring():
    assert doctest.testmod(ter).failed == 0


def test_the_four_kinds_of_edits_cost_one_each():
    assert edits("a b c d", "a b c d") == 0
    assert edits("a b d", "a b c d") == 1  # insertion
    assert edits("a b c x d", "a b c d") == 1  # deletion
    assert edits("a b x d", "a b c d") == 1  # substitution
    assert edits("c d e a b", "a b c d e") == 1  # shift of a block of any length


def test_a_shift_moves_at_most_ten_words():
    # Two blocks trade places, and the shorter is shifted; of two blocks of 11, only parts can be.
    ten, eleven = " ".join("abcdefghij"), " ".join("abcdefghijk")
    others = " ".join("ABCDEFGHIJKL")
    assert edits(f"{others} {ten}", f"{ten} {others}") == 1
    assert edits(f"{others} {eleven}", f"{eleven} {others}") == 2


def test_a_shift_spans_at_most_fifty_words():
    for words, expected in ((50, 1), (51, 4)):  # without the shift: two deletions, two insertions
        others = " ".join(f"w{number}" for number in range(words))
        assert edits(f"{others} x y", f"x y {others}") == expected


def test_the_reference_with_the_fewest_edits_counts_and_the_average_length():
    # edits 1 and 2, lengths 3 and 6
    assert ter.segment("a b c".split(), ["a b d".split(), "a x c d e f".split()]) == (1, 4.5)


def test_the_corpus_score_sums_before_dividing():
    corpus, segments = ter.ter(["a b".split(), "x".split()], [["a b c d".split()], ["y".split()]])
    assert (corpus, segments) == (3 / 5, [2 / 4, 1.0])


def test_empty_texts():
    assert ter.ter([[], [], ["a"]], [[["a", "b"]], [[]], [[]]]) == (3 / 2, [1.0, 0.0, 1.0])


def test_the_options_are_tercoms():
    text = 'It\'s "U.S." news, 3,000-5'
    assert ter.tokenize(text) == ["it's", '"u.s."', "news,", "3,000-5"]
    assert ter.tokenize(text, case_sensitive=True)[0] == "It's"
    assert ter.tokenize(text, no_punct=True) == ["it's", "us", "news", "3000-5"]
    assert ter.tokenize(text, normalized=True) == 'it \'s " u . s . " news , 3,000 - 5'.split()


def test_webnlgs_preparation_separates_every_sign():
    assert ter.as_webnlg("Aaron_S. Daggett's  (born 3,5)") == "aaron_s . daggett ' s ( born 3 , 5 )"


# ------------------------------------------------------------------------- equal to sacrebleu


def example(kind, draw):
    """(hypothesis, references) of one of eight kinds."""
    if kind == "signs":
        text = lambda: " ".join(
            draw.choices("It's it's a-b U.S. £5 (x) Café café CAFÉ , . İ".split(), k=draw.randint(1, 9))
        )
        return text(), [text() for _ in range(draw.randint(1, 3))]
    if kind == "short":
        text = lambda: " ".join(draw.choices("abc", k=draw.randint(0, 3)))
        return text(), [text() for _ in range(draw.randint(1, 3))]
    length = {"long": 60, "unequal": 60, "repetitive": 20}.get(kind, 14)
    vocabulary = [f"w{number}" for number in range({"few words": 4, "repetitive": 2}.get(kind, 40))]
    reference = draw.choices(vocabulary, k=draw.randint(length // 2, length))
    if kind == "few words":
        return " ".join(draw.choices(vocabulary, k=draw.randint(1, length))), [" ".join(reference)]
    if kind == "unequal":
        return " ".join(reference[: draw.randint(1, 15)]), [" ".join(reference)]
    words = list(reference)
    for _ in range(draw.randint(1, 3)):
        start = draw.randrange(len(words))
        block = words[start : start + draw.randint(1, 6)]
        del words[start : start + len(block)]
        place = draw.randint(0, len(words))
        words[place:place] = block
        words[draw.randrange(len(words))] = draw.choice(vocabulary)
    references = [reference]
    if kind == "references":
        references += [draw.sample(reference, k=len(reference)), reference[::-1][: draw.randint(1, length)]]
    return " ".join(words), [" ".join(each) for each in references]


KINDS = ("shifted", "few words", "references", "signs", "short", "repetitive", "long", "unequal")


def examples(n, seed):
    """n pairs; one in sixteen is long, which takes sacrebleu most of the time."""
    draw = random.Random(seed)
    weights = [2, 3, 3, 2, 2, 2, 1, 1]
    return [example(kind, draw) for kind in draw.choices(KINDS, weights, k=n)]


def sacrebleu_scores(pairs):
    """([(edits, reference length)], corpus TER) by sacrebleu with its defaults."""
    from sacrebleu.metrics import TER

    width = max(len(references) for _, references in pairs)
    columns = [[texts[n] if n < len(texts) else None for _, texts in pairs] for n in range(width)]
    metric = TER()
    segments = [metric.sentence_score(hypothesis, references) for hypothesis, references in pairs]
    corpus = metric.corpus_score([hypothesis for hypothesis, _ in pairs], columns).score / 100
    return [(segment.num_edits, segment.ref_length) for segment in segments], corpus


def our_scores(pairs):
    found = [
        ter.segment(ter.tokenize(hypothesis), [ter.tokenize(text) for text in references])
        for hypothesis, references in pairs
    ]
    scores = metrics.score([h for h, _ in pairs], [r for _, r in pairs], per_segment=True, names=("TER",))
    assert [segment["TER"] for segment in scores["segments"]] == [ter.rate(count) for count in found]
    return [(count.edits, count.reference_length) for count in found], scores["corpus"]["TER"]


def record(n=160, seed=5):
    """What tests/ter_recorded.json holds: run with sacrebleu 2.6.0."""
    pairs = examples(n, seed)
    counts, corpus = sacrebleu_scores(pairs)
    return {
        "about": "sacrebleu 2.6.0, TER(), on test_metrics_ter.examples",
        "pairs": pairs,
        "counts": counts,
        "corpus": corpus,
    }


def test_equals_the_recorded_scores_of_sacrebleu():
    counts, corpus = our_scores(RECORDED["pairs"])
    different = [n for n, pair in enumerate(zip(counts, RECORDED["counts"], strict=True)) if pair[0] != tuple(pair[1])]
    assert not different
    assert corpus == pytest.approx(RECORDED["corpus"], abs=1e-12)


@pytest.mark.slow
def test_equals_sacrebleu_on_1000_pairs_of_eight_kinds():
    pytest.importorskip("sacrebleu")
    pairs = examples(1000, seed=1)
    ours, theirs = our_scores(pairs), sacrebleu_scores(pairs)
    different = [
        (pair, *counts) for pair, *counts in zip(pairs, ours[0], theirs[0], strict=True) if counts[0] != counts[1]
    ]
    assert not different[:3]
    assert ours[1] == pytest.approx(theirs[1], abs=1e-12)


def test_equals_sacrebleu_where_more_than_1000_shifts_are_tried(monkeypatch):
    pytest.importorskip("sacrebleu")
    draw = random.Random(3)
    reference, other = ([" ".join(draw.choices("ab", k=45))] for _ in range(2))
    pairs = [(other[0], reference)]
    assert our_scores(pairs) == sacrebleu_scores(pairs)
    before = our_scores(pairs)
    monkeypatch.setattr(ter, "MAX_CANDIDATES", 10**6)
    assert our_scores(pairs) != before  # the limit was reached


def test_the_edit_distance_equals_sacrebleus_where_the_beam_hides_the_cheapest_path():
    beam_edit_distance = pytest.importorskip("sacrebleu.metrics.lib_ter").BeamEditDistance
    for n in (20, 24, 25, 30):  # words before the common part in one text, after it in the other
        common, own, other = (
            [f"{letter}{number}" for number in range(size)] for letter, size in zip("cxy", (70, n, n))
        )
        hypothesis, reference = common + own, other + common
        distance = ter.distance_table(hypothesis, reference).distance
        assert distance == beam_edit_distance(reference)(hypothesis)[0]
        assert ter.BitTable(hypothesis, reference).distance == 2 * n
        assert distance == (2 * n if n < 25 else 70 + n)


@pytest.mark.parametrize("options", [{}, {"normalized": True}, {"no_punct": True}, {"case_sensitive": True}])
@few
@given(TEXTS)
def test_words_equal_sacrebleus(options, text):
    tokenizer = pytest.importorskip("sacrebleu.tokenizers.tokenizer_ter").TercomTokenizer
    assert ter.tokenize(text, **options) == tokenizer(**options)(text).split()


# ------------------------------------------------------------------------- properties


@few
@given(WORDS, WORDS.filter(bool))
def test_the_fast_table_is_the_plain_one(words, reference):
    plain, fast = ter.BeamTable(words, reference), ter.BitTable(words, reference)
    for i in range(len(words) + 1):
        assert [fast.cell(i, j) for j in range(len(reference) + 1)] == plain.rows[i]
    assert fast.distance == plain.distance


@few
@given(WORDS, WORDS)
def test_edits_lie_between_the_bound_and_the_edit_distance(words, reference):
    found = ter.edits(words, reference)
    assert ter.fewest_possible(words, reference) <= found <= ter.BeamTable(words, reference).distance
    assert (found == 0) == (words == reference)


@few
@given(WORDS, st.lists(WORDS, min_size=1, max_size=4))
def test_the_order_of_the_references_does_not_matter(words, references):
    assert ter.segment(words, references) == ter.segment(words, references[::-1])
    assert ter.segment(words, references).edits == min(ter.edits(words, reference) for reference in references)


# ------------------------------------------------------------------------- in metrics.score


def test_score_computes_ter_only_on_request():
    texts = ["a cat sat", "on a mat"], [["a cat sat"], ["on the mat"]]
    assert "TER" not in metrics.score(*texts)
    assert "TER" not in metrics.signature() and metrics.signature(metrics.ALL_KEYS).endswith(
        "|TER:tercom,lc,nonorm,punct"
    )
    assert metrics.score(*texts, names=("TER", "BLEU")) == {"BLEU": metrics.score(*texts)["BLEU"], "TER": 1 / 6}
    everything = metrics.score(*texts, per_segment=True, names=metrics.ALL_KEYS)
    assert everything["corpus"] == metrics.score(*texts) | {"TER": 1 / 6}
    assert [segment.pop("TER") for segment in everything["segments"]] == [0.0, 1 / 3]
    assert everything["segments"] == metrics.score(*texts, per_segment=True)["segments"]


def test_an_unknown_score_is_refused():
    with pytest.raises(ValueError, match="no score is called ter; there are BLEU, "):
        metrics.score(["a"], [["a"]], names=("ter",))
