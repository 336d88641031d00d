"""METEOR equals the jar, and its parts equal plainer versions of themselves.

Without tables: the worked examples on tables small enough to read, and the search against a search without its
bookkeeping. With tables: unit values and recorded segments. Live, where Java and pycocoevalcap are: texts of many
kinds. (test_metrics_score.py compares every segment of the 20 systems.)

    python tests/test_metrics_meteor.py        records meteor_recorded.json again (needs Java)
"""

import doctest
import gzip
import importlib.util
import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from reference_scorer import JAVA_IS_HERE, SHARED, meteor_program, needs_java, start_all_corpora, their_meteor

from harness import download as downloads
from harness import files
from metrics import meteor as meteor_module
from metrics import meteor_align, meteor_download, meteor_normalize, meteor_tables, ptb
from metrics.meteor import meteor, score, statistics, total
from metrics.meteor_align import BEAM_SIZE, align
from metrics.meteor_match import EXACT, PARAPHRASE, STEM, SYNONYM, Lexicon, Matcher, java_hash, match
from metrics.meteor_normalize import ANY, BEFORE_DIGIT, tokenize
from metrics.meteor_paraphrase import ParaphraseTable

RECORDED = Path(__file__).with_name("meteor_recorded.json")
MISSING = meteor_tables.available()
needs_tables = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))

UNIT_VALUES = [  # reference, hypothesis, what the jar gives
    (
        "There is a place in the city centre, Alimentum, that is not family-friendly.",
        "Alimentum is located in the city centre. It is not family-friendly.",
        0.4248514351273681,
    ),
    (
        "It is a guide to action that ensures that the military will forever heed Party commands",
        "It is a guide to action which ensures that the military always obeys the commands of the party",
        0.44736091739438233,
    ),
    ("the cat sat on the mat", "the cat was sat on the mat", 0.5119556177223324),
]


@pytest.fixture(scope="module", autouse=True)
def start_early(request):
    """METEOR's program needs ten seconds to start, all corpora need minutes: both start while other tests run."""
    if JAVA_IS_HERE:
        meteor_program()
    if any("all_scores" in item.fixturenames for item in request.session.items):
        start_all_corpora()


# ------------------------------------------------------------------------- tables small enough to read


def packed(tmp_path, pairs):
    source = tmp_path / "pairs.gz"
    with gzip.open(source, "wt", encoding="utf-8") as file:
        file.writelines(f"0.5\n{phrase}\n{paraphrase}\n" for phrase, paraphrase in pairs)
    return ParaphraseTable.read(source)


@pytest.fixture
def small_tables(tmp_path, monkeypatch):
    pairs = [("near", "close to"), ("near", "not far from"), ("close to", "near")]
    pairs += [("cat", "kitty"), ("the cat", "kitty")]
    tables = meteor_tables.Tables(
        abbreviations={"Dr": ANY, "No": BEFORE_DIGIT},
        function_words=frozenset(["the", "to", "not"]),
        synset_lines={"cat": "1 2", "city": "3", "town": "3 4", "mouse": "5", "rodent": "5"},
        base_forms={"mice": ["mouse"]},
        paraphrases=packed(tmp_path, pairs),
    )
    monkeypatch.setattr(meteor_tables, "load", lambda: tables)
    return tables


def matches(tables, hypothesis, reference):
    """For each word of the reference: (module, stretch of the hypothesis, length in the reference) of its matches."""
    hypothesis, reference = hypothesis.split(), reference.split()
    lexicon = Lexicon([hypothesis], [reference], tables)
    found = Matcher(lexicon.texts[tuple(hypothesis)], lexicon).matches(lexicon.texts[tuple(reference)])
    return [
        [(m.module, " ".join(hypothesis[m.hyp_start : m.hyp_start + m.hyp_length]), m.ref_length) for m in at_word]
        for at_word in found
    ]


# ------------------------------------------------------------------------- the score


def test_worked_example_of_the_score(small_tables):
    # P = 1, R = 1.75 / 2.5, one chunk of three words
    corpus, segments = meteor(["the cat sat"], [["the cat sat here"]])
    assert segments == [pytest.approx(0.732984 * (1 - 0.6 * (1 / 3) ** 0.2), abs=1e-6)]
    assert corpus == segments[0] == pytest.approx(0.379946, abs=1e-6)


def test_corpus_score_is_of_the_summed_counts_and_no_mean(small_tables):
    hypotheses, references = ["the cat sat", "a dog"], [["the cat sat here"], ["a dog ran to the cat"]]
    stats = statistics(hypotheses, references)
    assert total(stats).hyp_length == 5 and total(stats).ref_matches == 5 and total(stats).chunks == 2
    corpus, segments = meteor(hypotheses, references)
    # P = 1, R = (.25 + .75 * 2 + .75 * 2) / (2.5 + 4 * .75 + 2 * .25), two chunks of five words
    recall = 3.25 / 6
    assert corpus == pytest.approx(recall / (0.85 + 0.15 * recall) * (1 - 0.6 * (2 / 5) ** 0.2))
    assert corpus != pytest.approx(sum(segments) / 2)


def test_a_segment_matched_whole_in_one_chunk_scores_one_and_adds_no_chunk(small_tables):
    stats = statistics(["the cat sat", "a dog"], [["the cat sat"], ["dog a"]])
    assert score(stats[0]) == pytest.approx(1.0) and stats[0].chunks == 1
    assert total(stats).chunks == 2


def test_the_best_reference_counts_and_the_first_of_equals(small_tables):
    (stats,) = statistics(["the cat"], [["a dog", "the cat sat", "the cat ran off"]])
    assert stats.ref_length == 3
    (stats,) = statistics(["mice"], [["mice dogs", "dogs mice"]])
    assert stats.ref_length == 2


@pytest.mark.parametrize("texts", [("", ""), ("", "the cat"), ("the cat", ""), ("x", "y"), (". ,", "\u3000")])
def test_no_match_is_zero(small_tables, texts):
    hypothesis, reference = texts
    assert meteor([hypothesis], [[reference]]) == (0.0, [0.0])


def test_texts_as_the_input_line_of_the_jar_delivers_them():
    assert meteor_module.as_sent(" a ||| b  c\n", ["d ||| e", " f\t", "||||"]) == ("a b c", ["d", "e", "f", "", "|"])


@pytest.mark.parametrize("hypotheses, references", [([], []), (["a"], []), (["a"], [[]]), (["a"], [["a"], ["b"]])])
def test_wrong_shapes_are_a_clear_error(hypotheses, references):
    with pytest.raises(ValueError, match="one or more references"):
        meteor(hypotheses, references)


# ------------------------------------------------------------------------- the normaliser


def test_worked_example_of_the_normaliser():
    assert doctest.testmod(meteor_normalize).failed == 0


ABBREVIATIONS = {"Dr": ANY, "Mr": ANY, "i.e": ANY, "No": BEFORE_DIGIT, "pp": BEFORE_DIGIT}


def test_normalised_lines_equal_the_recorded_ones():
    for line, tokens in json.loads(RECORDED.read_text(encoding="utf-8"))["normalised"]:
        assert tokenize(line, ABBREVIATIONS) == tokens, line


def test_plain_text_takes_a_short_cut_to_the_same_words():
    for line in ("the cat sat on 3 mats", "", "  a  b ", "7"):
        assert meteor_normalize.normalize(line, {}).split() == tokenize(line, {})


# ------------------------------------------------------------------------- the matches


def test_worked_example_of_the_matches(small_tables):
    assert matches(small_tables, "the cat sat", "the cats sat") == [
        [(EXACT, "the", 1)],
        [(STEM, "cat", 1), (SYNONYM, "cat", 1)],
        [(EXACT, "sat", 1)],
    ]


def test_synonyms_share_a_synset_by_themselves_or_by_their_base_form(small_tables):
    assert small_tables.synsets("cities") == small_tables.synsets("city") == {3}
    assert small_tables.synsets("mice") == {5}
    assert small_tables.synsets("class") == small_tables.synsets("xyz") == set()
    assert matches(small_tables, "rodent town", "mice cities") == [[(SYNONYM, "rodent", 1)], [(SYNONYM, "town", 1)]]


def test_paraphrases_in_either_direction_in_the_jars_order(small_tables):
    # "near" lists "close to" and "not far from"; "close to" lists "near", so that pair is a match twice.
    assert matches(small_tables, "not far from close to", "near") == [
        [(PARAPHRASE, "close to", 1), (PARAPHRASE, "not far from", 1), (PARAPHRASE, "close to", 1)]
    ]
    # Short stretches of the reference first.
    assert matches(small_tables, "kitty", "the cat") == [[(PARAPHRASE, "kitty", 2)], [(PARAPHRASE, "kitty", 1)]]
    # Listed for the hypothesis's stretch only.
    assert matches(small_tables, "the cat", "kitty") == [[(PARAPHRASE, "the cat", 1), (PARAPHRASE, "cat", 1)]]


def test_identical_texts_are_matched_exactly_only(small_tables):
    assert matches(small_tables, "cat cats", "cat cats") == [[(EXACT, "cat", 1)], [(EXACT, "cats", 1)]]


def test_words_are_compared_by_javas_hash():
    assert java_hash("") == 0 and java_hash("ab") == 97 * 31 + 98
    assert java_hash("Aa") == java_hash("BB")
    assert java_hash("\U0001f600") == 0xD83D * 31 + 0xDE00  # two 16-bit units


# ------------------------------------------------------------------------- the packed paraphrases


def test_worked_example_of_the_packing(tmp_path):
    table = packed(tmp_path, [("a b", "c"), ("a b", "a"), ("c", "a b")])
    assert table.words == {"a": 1, "b": 2, "c": 3}
    assert table.edge_keys.tolist() == [0 << 24 | 1, 0 << 24 | 3, 1 << 24 | 2]
    assert (table.sources.tolist(), table.starts.tolist(), table.targets.tolist()) == ([2, 3], [0, 1, 3], [3, 2, 1])
    positions, lengths, nodes = table.find_phrases([["c", "a"], ["a", "b", "x"]])
    assert list(zip(positions, lengths, nodes)) == [(0, 1, 2), (1, 1, 1), (3, 1, 1), (3, 2, 3)]
    assert table.pairs_between(np.array([3]), np.array([1])) == {3: {1: 1}}
    assert table.pairs_between(np.array([2]), np.array([3])) == {2: {3: 0}, 3: {2: 0}}


def test_packed_table_is_the_list_it_was_made_from(tmp_path):
    chosen = random.Random(1)
    phrases = [" ".join(chosen.choices("abcdé", k=chosen.randint(1, 4))) for _ in range(60)]
    pairs = list(dict.fromkeys((chosen.choice(phrases), chosen.choice(phrases)) for _ in range(400)))
    table = packed(tmp_path, pairs)  # not grouped by phrase, which the real file is
    texts = [phrase.split() for phrase in phrases]
    positions, lengths, nodes = table.find_phrases(texts)
    words = [word for text in texts for word in [*text, ""]]
    phrase_of = {node: " ".join(words[p : p + n]) for p, n, node in zip(positions, lengths, nodes)}
    pairs_between = table.pairs_between(nodes, nodes)
    unpacked = {phrase_of[node]: [phrase_of[other] for other in ranks] for node, ranks in pairs_between.items()}
    expected = {}
    for phrase, paraphrase in pairs:
        expected.setdefault(phrase, []).append(paraphrase)
    assert unpacked == expected


def test_saved_table_comes_back_and_a_damaged_one_does_not(tmp_path):
    table = packed(tmp_path, [("a b", "c"), ("c", "é")])
    path = tmp_path / "packed.npz"
    with open(path, "wb") as file:
        table.save(file)
    again = ParaphraseTable.load(path)
    assert again.words == table.words and again.targets.tolist() == table.targets.tolist()
    raw = path.read_bytes()
    where = raw.index(table.edge_keys.tobytes())
    path.write_bytes(raw[:where] + b"\x55" + raw[where + 1 :])
    assert ParaphraseTable.load(path) is None
    path.write_bytes(raw[: len(raw) // 2])
    assert ParaphraseTable.load(path) is None
    path.write_bytes(b"")
    assert ParaphraseTable.load(path) is None
    assert ParaphraseTable.load(tmp_path / "nothing.npz") is None


def test_damaged_source_is_a_clear_error(tmp_path):
    source = tmp_path / "pairs.gz"
    packed(tmp_path, [("a b", "c")] * 1000)
    raw = source.read_bytes()
    for damaged in (raw[:-20], b"no gzip", gzip.compress(b"0.5\na\n")):
        source.write_bytes(damaged)
        with pytest.raises(ValueError, match="damaged"):
            ParaphraseTable.read(source)


# ------------------------------------------------------------------------- finding the tables


def test_missing_tables_are_explained_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("METEOR_DATA", str(tmp_path))
    assert "has no meteor-1.5.jar" in meteor_tables.available() and "\n" not in meteor_tables.available()
    with pytest.raises(files.InputError, match="metrics.meteor_download"):
        meteor(["a"], [["a"]])
    (tmp_path / meteor_tables.JAR).write_bytes(b"short")
    assert "has 5 bytes, not 6318693" in meteor_tables.available()


def test_downloads_are_used_when_nothing_else_is_there(tmp_path, monkeypatch):
    monkeypatch.delenv("METEOR_DATA", raising=False)
    monkeypatch.setenv("PREFIX_TUNING_CACHE", str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install pycocoevalcap" in meteor_tables.available()
    asked = []
    monkeypatch.setattr(downloads, "download", lambda url, path, size, sha256: asked.append((path, size, sha256)))
    meteor_download.download()
    assert [(path.name, size, len(sha256)) for path, size, sha256 in asked] == [
        ("meteor-1.5.jar", 6_318_693, 64),
        ("paraphrase-en.gz", 61_813_011, 64),
    ]
    monkeypatch.setattr(meteor_tables, "SIZE", {meteor_tables.JAR: 0, meteor_tables.PARAPHRASES: 0})
    for path, *_ in asked:
        path.parent.mkdir(exist_ok=True)
        path.touch()
    assert meteor_tables.available() is None
    with pytest.raises(files.InputError, match="is not METEOR 1.5's"):  # the right size is not enough
        meteor_tables.load()


def test_table_is_packed_once_and_again_when_damaged(tmp_path, monkeypatch, capsys):
    packed(tmp_path, [("a", "b")])
    source = (tmp_path / "pairs.gz").rename(tmp_path / meteor_tables.PARAPHRASES)
    cache = tmp_path / "cache"
    with pytest.raises(files.InputError, match="is not METEOR 1.5's"):
        meteor_tables.packed_paraphrases(source, cache)
    monkeypatch.setitem(meteor_tables.SHA256, meteor_tables.PARAPHRASES, files.sha256_of(source))
    capsys.readouterr()
    for expected in ("packing", ""):
        assert meteor_tables.packed_paraphrases(source, cache).words == {"a": 1, "b": 2}
        assert expected in capsys.readouterr().err
    (kept,) = (cache / "meteor-1.5").iterdir()
    kept.write_bytes(kept.read_bytes()[:-100])
    assert meteor_tables.packed_paraphrases(source, cache).words == {"a": 1, "b": 2}
    assert "packing" in capsys.readouterr().err
    assert ParaphraseTable.load(kept) is not None
    # Where nothing can be kept, the scores are right all the same.
    (tmp_path / "file").touch()
    assert meteor_tables.packed_paraphrases(source, tmp_path / "file").words == {"a": 1, "b": 2}
    assert "was not saved" in capsys.readouterr().err


# ------------------------------------------------------------------------- the alignment


def plain_search(at_words):
    """The jar's search with no bookkeeping: 40 whole partial alignments, word by word."""
    covering_hyp, covering_ref = {}, {}
    for start, choices in enumerate(at_words):
        for m in choices:
            for i in range(m.hyp_start, m.hyp_start + m.hyp_length):
                covering_hyp[i] = covering_hyp.get(i, 0) + 1
            for j in range(start, start + m.ref_length):
                covering_ref[j] = covering_ref.get(j, 0) + 1
    fixed = {}
    for start, choices in enumerate(at_words):
        if len(choices) == 1:
            m = choices[0]
            alone = [covering_hyp[i] == 1 for i in range(m.hyp_start, m.hyp_start + m.hyp_length)]
            alone += [covering_ref[j] == 1 for j in range(start, start + m.ref_length)]
            if all(alone):
                fixed[start] = m
    beam = [dict(gain=0, chunks=0, distance=0, end=None, free=0, used=frozenset(), chosen=[])]

    def order(path):
        return -path["gain"], path["chunks"], path["distance"]

    for start, choices in enumerate(at_words):
        beam.sort(key=order)
        extended = []
        for path in beam[:BEAM_SIZE]:
            if path["free"] > start:
                extended.append(path)
                continue
            for m in [fixed[start]] if start in fixed else choices:
                words = frozenset(range(m.hyp_start, m.hyp_start + m.hyp_length))
                if not words & path["used"]:
                    new = dict(path, gain=path["gain"] + m.gain, used=path["used"] | words)
                    new.update(end=m.hyp_start + m.hyp_length, free=start + m.ref_length)
                    new["chosen"] = [*path["chosen"], (start, m)]
                    new["chunks"] += path["end"] is not None and path["end"] != m.hyp_start
                    extended.append(new)
                    path["distance"] += abs(start - m.hyp_start)
            if start not in fixed:
                path.update(chunks=path["chunks"] + (path["end"] is not None), end=None, free=start + 1)
                extended.append(path)
        beam = extended
    beam = sorted(beam, key=order)[:BEAM_SIZE]
    for path in beam:
        path["chunks"] += path["end"] is not None
    return min(beam, key=order)["chosen"]


def random_matches(chosen, words, size):
    """Matches of random stretches, `size` for each of a reference's words on average."""
    at_words = []
    for start in range(words):
        choices = []
        for _ in range(min(int(chosen.expovariate(1 / size)), 6)):
            module = chosen.choice([EXACT, EXACT, STEM, SYNONYM, PARAPHRASE])
            hyp_length, ref_length = (1, 1) if module != PARAPHRASE else (chosen.randint(1, 3), chosen.randint(1, 3))
            if start + ref_length <= words and hyp_length <= words:
                choices.append(match(module, chosen.randint(0, words - hyp_length), hyp_length, ref_length))
        at_words.append(choices)
    return at_words


@pytest.mark.parametrize(
    "words, size, rounds", [(4, 1.0, 1500), (8, 0.7, 800), (12, 2.0, 200), (25, 0.8, 150), (40, 2.0, 20)]
)
def test_search_equals_a_search_without_its_bookkeeping(words, size, rounds):
    chosen = random.Random(words)
    for _ in range(rounds):
        at_words = random_matches(chosen, words, size)
        assert align(at_words) == plain_search(at_words)


def test_worked_example_of_the_alignment():
    the = [match(EXACT, 0, 1, 1), match(EXACT, 2, 1, 1)]
    cat = [match(EXACT, 1, 1, 1)]
    assert align([the, cat]) == [(0, the[0]), (1, cat[0])]
    assert meteor_align.fix_certain([the, cat])[0] == [None, cat[0]]


def best_of_all(at_words, start=0, used=0, end=None):
    """(gain, -chunks) of the best alignment from the word `start` on: all of them are tried."""
    if start == len(at_words):
        return 0, 0
    certain, _choices = meteor_align.fix_certain(at_words)
    results = [] if certain[start] else [best_of_all(at_words, start + 1, used, None)]
    for m in at_words[start]:
        if not used & m.hyp_words:
            following = start + m.ref_length, used | m.hyp_words, m.hyp_start + m.hyp_length
            gain, chunks = best_of_all(at_words, *following)
            results.append((gain + m.gain, chunks - (end != m.hyp_start)))
    return max(results)


def test_alignment_covers_most_then_has_fewest_chunks():
    for seed in range(300):
        at_words = random_matches(random.Random(seed), 4, 0.8)
        alignment, chunks, chunk_end = align(at_words), 0, None
        for start, m in alignment:
            chunks += (start, m.hyp_start) != chunk_end
            chunk_end = (start + m.ref_length, m.hyp_start + m.hyp_length)
        # With so few words the beam is never full.
        assert (sum(m.gain for _start, m in alignment), -chunks) == best_of_all(at_words)


@needs_tables
def test_a_match_worth_nothing_to_the_search_is_used_only_if_certain_or_for_free():
    # "cat" and "cats" match twice, by stem and by synonym, so neither match is certain, and each would make a chunk.
    assert meteor(["cats"], [["cat"]])[0] == 0.0
    # Here it joins two chunks into one.
    assert statistics(["the cats sat"], [["the cat sat"]])[0].hyp_matches == 3
    # "alimentums" is in no synset: the stem match is the only one.
    assert meteor(["alimentums"], [["alimentum"]])[0] == pytest.approx(0.6)


def test_what_a_match_is_worth_to_the_search():
    assert [match(EXACT, 0, 1, 1).gain, match(STEM, 0, 1, 1).gain, match(SYNONYM, 0, 1, 1).gain] == [2, 0, 0]
    assert [match(PARAPHRASE, 0, 1, 2).gain, match(PARAPHRASE, 0, 3, 2).gain] == [1, 2]
    assert match(PARAPHRASE, 2, 3, 1).hyp_words == 0b11100


# ------------------------------------------------------------------------- with the tables


@needs_tables
@pytest.mark.parametrize("reference, hypothesis, value", UNIT_VALUES)
def test_unit_values(reference, hypothesis, value):
    assert meteor([hypothesis], [[reference]])[1] == [pytest.approx(value, abs=1e-9)]


def flat(stats):
    """Stats in the order of the jar's answer to a SCORE line."""
    *lengths, hyp_content, ref_content, hyp_function, ref_function, chunks = stats
    modules = zip(hyp_content, ref_content, hyp_function, ref_function)
    return [*lengths, *(count for module in modules for count in module), chunks, stats.hyp_matches, stats.ref_matches]


@needs_tables
def test_recorded_segments():
    recorded = json.loads(RECORDED.read_text(encoding="utf-8"))
    hypotheses = [segment["hypothesis"] for segment in recorded["segments"]]
    references = [segment["references"] for segment in recorded["segments"]]
    for stats, segment in zip(statistics(hypotheses, references), recorded["segments"], strict=True):
        assert flat(stats) == segment["statistics"], segment["hypothesis"]
    corpus, scores = meteor(hypotheses, references)
    assert scores == pytest.approx([segment["score"] for segment in recorded["segments"]], abs=1e-9)
    assert corpus == pytest.approx(recorded["corpus"], abs=1e-9)


WORDS = "The cat, cats a dog. sat sitting on near close to not far from £20 isn't U.S. No. 5 'n' -- ... 3,000 é 中 |||"
WORDS = [*WORDS.split(), "1990's", "", "\u00a0"]
LINES = st.lists(st.sampled_from(WORDS), max_size=12).map(" ".join)


@pytest.mark.slow
@needs_tables
@settings(deadline=None, max_examples=150)
@given(st.one_of(st.text(), LINES), st.lists(st.one_of(st.text(), LINES), min_size=1, max_size=3))
@example("", [""])
@example("\ud800", ["\ud800 a", "\x00"])
def test_any_text_has_a_score_from_0_to_1_whatever_the_order_of_references(hypothesis, references):
    corpus, (segment,) = meteor([hypothesis], [references])
    assert 0 <= segment <= 1 + 1e-12 and corpus <= 1 + 1e-12
    assert meteor([hypothesis], [references[::-1]])[1] == [segment]


@needs_tables
@settings(deadline=None, max_examples=100)
@given(LINES, st.lists(LINES, min_size=1, max_size=4))
def test_nothing_scores_higher_than_the_reference_itself(reference, others):
    reference = reference.replace("|||", "")
    _corpus, scores = meteor([reference, *others], [[reference]] * (len(others) + 1))
    assert max(scores) <= scores[0] + 1e-12


@needs_tables
def test_one_word_and_200_words():
    line = " ".join(f"word{number % 50} the" for number in range(100))
    assert meteor(["Okay"], [["okay"]])[0] == 1.0
    assert meteor([line], [[line]])[0] == 1.0
    words = line.split()
    random.Random(1).shuffle(words)
    assert 0 < meteor([" ".join(words)], [[line]])[0] < 1


# ------------------------------------------------------------------------- live


def scoring_text(text):
    return " ".join(ptb.tokenize_for_scoring(text))


OTHER_TEXTS = """
Shares in Acme Corp. rose 3.5% to $12.40 on Tuesday, its biggest one-day gain since Aug. 2008, Mr. Smith said.
The U.S. Senate voted 52-48 on the so-called "clean air" bill; critics (mostly from the mid-west) called it 'a farce'.
"I don't think we've met," she said. "You're Dr. O'Brien's nephew, aren't you?" -- "That's right," he replied...
Prices start at £20-25 per person, i.e. less than €30 or ¥3,000; children under 12 eat for free on Mondays.
The meeting at 10:30 a.m. (GMT+1) was moved to 4 p.m., No. 5, Baker St., 2nd floor; see http://example.org/a?b=c&d=e.
He was born in the 1990's -- 12/05/1994, to be exact -- and moved to São Paulo, then Zürich and Санкт-Петербург.
The naïve café owner’s “crème brûlée” isn’t on the menu – it’s off… until 1½ cups of cream (≈350 ml) arrive.
Whether or not the committees were going to decide, decisions were being made by people deciding things quickly.
The boy gave the girl the book that the teacher had given the boy that the girl liked in the garden of the school.
東京 is the capital of 日本; it's 100 % worth a visit 😀!!! Ελλάδα is not far from Τουρκία.
Ok
.
""".strip().split("\n")  # fmt: skip


def shuffled(chosen, line, vocabulary):
    """The line with stretches moved, dropped, doubled or replaced, and endings changed."""
    words = line.split()
    for _ in range(chosen.randint(0, 4)):
        start = chosen.randrange(len(words) + 1)
        end = start + chosen.randint(1, 6)
        stretch = words[start:end]
        what = chosen.randrange(6)
        if what == 0:
            chosen.shuffle(words)
        elif what == 1:
            words[start:end] = []
        elif what == 2:
            words[start:end] = chosen.choices(vocabulary, k=len(stretch))
        elif what == 3:
            words[start:end] = []
            place = chosen.randrange(len(words) + 1)
            words[place:place] = stretch
        elif what == 4:
            words[start:start] = stretch
        else:
            words[start:end] = [word.rstrip("s") + chosen.choice(["", "s", "ed", "ing", "ly"]) for word in stretch]
    return " ".join(words)


@pytest.mark.slow
@needs_tables
@needs_java
@pytest.mark.parametrize("tokenised", [True, False])
def test_live_texts_of_other_kinds(tokenised):
    chosen = random.Random(tokenised)
    lines = list(OTHER_TEXTS)
    for path in sorted(SHARED.glob("corpus/*.txt.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as file:
            file.seek(chosen.randrange(3_000_000))
            file.readline()
            lines += chosen.sample([line.strip() for line in file.read(300_000).splitlines() if len(line) > 20], 60)
    lines = [" ".join(line.split()[: chosen.choice([8, 20, 50, 200])]) for line in lines for _ in range(2)]
    vocabulary = " ".join(lines).split()
    texts = [[shuffled(chosen, line, vocabulary) for _ in range(chosen.randint(2, 4))] for line in lines]
    few = "the a cat cats of dog sat sitting near close to by not far from city town centre in is".split()
    texts += [[" ".join(chosen.choices(few, k=chosen.randrange(25))) for _ in range(3)] for _ in range(60)]
    texts += [["", "the cat"], ["the cat", "", "a"], ["", ""], ["x", "y"], ["cats", "cat"]]
    if tokenised:
        texts = [[scoring_text(text) for text in segment] for segment in texts]
    hypotheses, references = [segment[0] for segment in texts], [segment[1:] for segment in texts]
    corpus, segments = meteor(hypotheses, references)
    their_corpus, *their_segments = their_meteor(hypotheses, references)
    for ours, jars, text in zip(segments, their_segments, texts, strict=True):
        assert ours == pytest.approx(jars, abs=1e-6), text
    assert corpus == pytest.approx(their_corpus, abs=1e-6)


def jar_tokens(lines):
    """The jar's own command line of its normaliser."""
    java = ["java", "-Dfile.encoding=UTF-8", "-Dstdout.encoding=UTF-8", "-Dstdin.encoding=UTF-8"]
    jar = str(meteor_tables.locate()[0][meteor_tables.JAR])
    command = [*java, "-cp", jar, "edu.cmu.meteor.util.Normalizer", "english", "true"]
    text = "".join(f"{line}\n" for line in lines)
    done = subprocess.run(command, input=text.encode(), capture_output=True, check=True)
    return [line.lower().split() for line in done.stdout.decode().split("\n")[:-1]]


@needs_tables
@needs_java
@pytest.mark.parametrize("count", [pytest.param(20_000, marks=pytest.mark.slow), 3_000])
def test_live_normalised_lines(count):
    chosen = random.Random(3)
    pieces = "a b B é ß ж 1 23 3,000 U.S No Dr. Art e.g. p.m. . .. ... ' '' ` `` , - -- --- – — “ ” ‘ ’ $ £ | % s S"
    pieces = [*pieces.split(), *"()/&_中😀½", *[" "] * 12, "\u00a0", "\u3000", "\t", "\x01"]
    lines = OTHER_TEXTS + ["".join(chosen.choices(pieces, k=chosen.randrange(15))) for _ in range(count)]
    abbreviations = meteor_tables.load().abbreviations
    for line, tokens in zip(lines, jar_tokens(lines), strict=True):
        assert tokenize(line, abbreviations) == tokens, line


# ------------------------------------------------------------------------- recording

if __name__ == "__main__":
    texts = json.loads(RECORDED.read_text(encoding="utf-8"))
    hypotheses, references = [[segment[key] for segment in texts["segments"]] for key in ("hypothesis", "references")]
    texts["corpus"], *scores = their_meteor(hypotheses, references)
    for segment, value in zip(texts["segments"], scores):
        answer = meteor_program()._stat(segment["hypothesis"], segment["references"])
        segment.update(statistics=[int(float(number)) for number in answer.split()], score=value)
    lines = [line for line, _tokens in texts["normalised"]]
    texts["normalised"] = list(zip(lines, jar_tokens(lines), strict=True))
    RECORDED.write_text(json.dumps(texts, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
