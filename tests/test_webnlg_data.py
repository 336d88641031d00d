"""WebNLG's XML to entries and examples: the official counts, the paper's strings, one sentence for each error."""

from pathlib import Path

import pytest
from reference_scorer import assert_equal, needs_java, our_scores, their_meteor, their_tokens

import metrics
import webnlg_data
from e2e_data import encode_prompt
from harness import webnlg_files
from harness.files import InputError, sha256_of
from webnlg_data import is_webnlg, load_entries, load_split

WEBNLG = Path(__file__).resolve().parents[2] / "shared" / "webnlg"
official = pytest.mark.skipif(not WEBNLG.is_dir(), reason="WebNLG's files are not present (../shared/webnlg)")
TRAIN = "train/1triples/1triple_Food.xml"
FEAST = ["Feast | place | Ohio"]


def entry(triples, texts, category="Food", marks=None):
    """An entry in the release's form."""
    lines = [f'<entry category="{category}" eid="Id1" size="{len(triples)}">', "<modifiedtripleset>"]
    lines += [f"<mtriple>{triple}</mtriple>" for triple in triples]
    marks = marks or ["good"] * len(texts)
    lines += ["</modifiedtripleset>", *(f'<lex comment="{mark}">{text}</lex>' for mark, text in zip(marks, texts))]
    return "\n".join([*lines, "</entry>"])


def write(path, *entries):
    path.parent.mkdir(parents=True, exist_ok=True)
    body = "\n".join(entries)
    path.write_text(f"<?xml version='1.0' encoding='UTF-8'?>\n<benchmark><entries>\n{body}\n</entries></benchmark>\n")


@pytest.fixture
def release(tmp_path):
    """A folder in the release's layout."""
    two = entry(["A_b | cityServed | &quot;Aarhus, Denmark&quot;", "C | p | D"], ["Both &amp; all."], "City", ["toFix"])
    write(tmp_path / TRAIN, entry(FEAST, ["A feast in\n Ohio.", "Bad."], marks=["good", "toFix"]))
    write(tmp_path / "train/2triples/2triples_City.xml", two)
    write(tmp_path / "dev/1triples/1triple_Food.xml", entry(FEAST, ["One.", "Two."]), entry(FEAST, ["Three."], "City"))
    write(tmp_path / webnlg_files.TEST_FILE, entry(FEAST, ["One.", "Two."]), entry(["C | p | D"], ["C."], "Artist"))
    write(tmp_path / "test/testdata_no_lex.xml", entry(FEAST, []))
    return tmp_path


# ----------------------------------------------------------------------------- strings


def test_triples_become_the_papers_source_string(release):
    assert [entry.source for entry in load_entries(release, "train")] == [
        "Feast : place : Ohio",
        'A_b : cityServed : "Aarhus, Denmark" | C : p : D',
    ]


def test_training_takes_the_texts_marked_good_and_the_other_splits_all(release):
    assert load_split(release, "train") == [("Feast : place : Ohio", "A feast in Ohio.")]
    assert [target for _, target in load_split(release, "valid")] == ["One.", "Two.", "Three."]
    assert [entry.texts for entry in load_entries(release, "train")] == [["A feast in Ohio.", "Bad."], ["Both & all."]]
    assert [entry.good for entry in load_entries(release, "train")] == [[True, False], [False]]


def test_an_example_knows_its_file_and_line(release):
    assert load_split(release, "test")[-1].where == f"{release / webnlg_files.TEST_FILE}, line 10"


def test_the_quirk_puts_a_bar_in_front_except_in_the_first_entry_to_decode(release):
    assert [entry.source[:3] for entry in load_entries(release, "train", paper_quirk=True)] == [" | ", " | "]
    for split in ("valid", "test"):
        plain = [entry.source for entry in load_entries(release, split)]
        assert [entry.source for entry in load_entries(release, split, paper_quirk=True)] == [
            plain[0],
            f" | {plain[1]}",
        ]


def test_a_quirky_prompt_is_the_papers_to_the_space(release):
    class Letters:
        eot_token = "#"
        encode_ordinary = staticmethod(list)

    source = load_split(release, "train", paper_quirk=True)[0].source
    assert "".join(encode_prompt(Letters, source)) == "  | Feast : place : Ohio #"


def test_entries_with_the_same_source_stay_apart(release):
    first, second = load_entries(release, "valid")
    assert first.source == second.source
    assert (first.texts, second.texts) == (["One.", "Two."], ["Three."])


def test_a_test_entry_is_seen_if_its_category_is_in_the_training_set(release):
    assert [(entry.category, entry.seen) for entry in load_entries(release, "test")] == [
        ("Food", True),
        ("Artist", False),
    ]
    assert all(entry.seen for split in ("train", "valid") for entry in load_entries(release, split))


def test_a_folder_is_webnlg_if_it_has_all_three_parts(release, tmp_path):
    assert is_webnlg(release) and is_webnlg(str(release))
    (release / TRAIN).rename(release / "dev" / "other.xml")
    assert is_webnlg(release)  # train/ has another file
    (release / webnlg_files.TEST_FILE).unlink()
    assert not is_webnlg(release)
    assert not is_webnlg(release / "absent")


# ----------------------------------------------------------------------------- errors


def problem(folder, split="train"):
    """The message for a damaged folder."""
    with pytest.raises(InputError) as caught:
        load_split(folder, split)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "broken, message",
    [
        (entry(["Feast | Ohio"], ["Text."]), "line 3, entry Id1: 'Feast | Ohio' is not a triple"),
        (entry(["Feast | place | "], ["Text."]), "line 3, entry Id1: 'Feast | place |' is not a triple"),
        (entry(["a | b | c | d"], ["Text."]), "is not a triple: write subject | property | object"),
        (entry([], ["Text."]), "line 3, entry Id1: it has no triple"),
        (entry(FEAST, []), "line 3, entry Id1: it has no text (lex); complete the entry or delete it"),
        (entry(FEAST, ["Text.", " "]), "line 3, entry Id1: it has an empty text"),
        (entry(FEAST, ["Text."], category=" "), "line 3, entry Id1: it has no category"),
        (entry(FEAST, ["Text."]) + "</entry>", "line 8: not XML (mismatched tag)"),
        (entry(FEAST, ["&bomb;"]), "line 7: not XML (undefined entity)"),
        (entry(FEAST, ["\0"]), "line 7: not XML"),
        ("", "holds no entry: fetch it again"),
        (entry(FEAST, ["Text."], marks=["toFix"]), 'no training text is marked comment="good"'),
    ],
)
def test_a_damaged_file_is_one_sentence_with_file_and_line(release, broken, message):
    (release / "train/2triples/2triples_City.xml").unlink()
    write(release / TRAIN, broken)
    found = problem(release)
    assert message in found
    assert str(release) in found


def test_an_entity_bomb_is_refused_before_it_grows(release):
    levels = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 30))
    bomb = f'<!DOCTYPE b [<!ENTITY e0 "ha">{levels}]>\n<benchmark><entry>&e29;</entry></benchmark>'
    (release / TRAIN).write_text(bomb)
    assert (
        problem(release) == f"{release / TRAIN}, line 1: it declares a DOCTYPE, which WebNLG's files do not; delete it"
    )


def test_an_external_entity_is_refused(release):
    (release / TRAIN).write_text('<!DOCTYPE b SYSTEM "file:///etc/passwd">\n<b/>')
    assert "declares a DOCTYPE" in problem(release)


def test_every_truncation_of_a_file_is_one_sentence(release):
    whole = (release / TRAIN).read_bytes()
    for length in range(0, len(whole) - 14, 7):
        (release / TRAIN).write_bytes(whole[:length])
        assert str(release / TRAIN) in problem(release)


def test_missing_files_are_named(release):
    (release / webnlg_files.TEST_FILE).unlink()
    assert problem(release, "test").startswith(f"{release} has no test/testdata_with_lex.xml: ")
    (release / "dev/1triples/1triple_Food.xml").unlink()
    assert problem(release, "valid").startswith(f"{release} has no XML file in dev/: ")
    assert problem(release / "absent").startswith(f"{release / 'absent'} is not a folder: ")


# ----------------------------------------------------------------------------- the official files


def test_the_list_of_official_files_has_each_category_and_one_test_file():
    names = list(webnlg_files.SHA256)
    assert (len(names), len(set(webnlg_files.SHA256.values()))) == (105, 105)
    assert names[0] == "train/1triples/1triple_allSolutions_Airport_train_challenge.xml"
    assert names[-1] == "test/testdata_with_lex.xml"
    train = [name for name in names if name.startswith("train/")]
    assert {name.split("_")[-3] for name in train} == set(webnlg_files.CATEGORIES)
    assert train == sorted(train)  # the order in which a folder's files are read


def test_without_a_folder_the_official_files_are_downloaded_and_checked(monkeypatch, tmp_path):
    asked = []

    def download(url, path, sha256):
        asked.append((url, path, sha256))
        write(path, entry(FEAST, ["Text."]))
        return path

    monkeypatch.setenv("PREFIX_TUNING_CACHE", str(tmp_path))
    monkeypatch.setattr("harness.download.download", download)
    with pytest.raises(InputError, match="has changed since it was downloaded"):
        load_split(None, "test")
    own = tmp_path / "webnlg"
    monkeypatch.setattr("harness.download.sha256_of", lambda path: webnlg_files.SHA256[str(path.relative_to(own))])
    assert load_split(None, "train") == [("Feast : place : Ohio", "Text.")] * 52
    assert asked[0][0].endswith("/cleaned/data/webnlg_challenge_2017/test/testdata_with_lex.xml")
    assert asked[1][2] == webnlg_files.SHA256["train/1triples/1triple_allSolutions_Airport_train_challenge.xml"]
    assert [entry.seen for entry in load_entries(None, "test")] == [True]


@official
def test_the_checksums_are_those_of_the_official_files():
    for name, digest in webnlg_files.SHA256.items():
        assert sha256_of(WEBNLG / name) == digest, name


@official
def test_the_official_counts():
    counts = {}
    for split in ("train", "valid", "test"):
        entries = load_entries(str(WEBNLG), split)
        counts[split] = (len(entries), sum(len(entry.texts) for entry in entries))
        good = sum(sum(entry.good) for entry in entries)
        assert len(load_split(str(WEBNLG), split)) == (good if split == "train" else counts[split][1])
        if split == "train":
            assert good == 18025
            assert {entry.category for entry in entries} == set(webnlg_files.CATEGORIES)
    assert counts == {"train": (6940, 18102), "valid": (872, 2268), "test": (1862, 4928)}
    assert (sum(entry.seen for entry in entries), sum(not entry.seen for entry in entries)) == (971, 891)
    unseen = webnlg_data.read_entries(WEBNLG / "test" / "testdata_unseen_with_lex.xml")
    assert sorted(entry.source for entry in unseen) == sorted(entry.source for entry in entries if not entry.seen)


# ----------------------------------------------------------------------------- the scores on its texts


def corpus(step=1):
    """WebNLG's test texts against each other: an entry's last text as the output, the others as its references."""
    entries = [entry for entry in load_entries(str(WEBNLG), "test") if len(entry.texts) > 1][::step]
    return [entry.texts[-1] for entry in entries], [entry.texts[:-1] for entry in entries]


def sacrebleu_of(hypotheses, references):
    import sacrebleu

    width = max(map(len, references))
    columns = [[texts[n] if n < len(texts) else None for texts in references] for n in range(width)]
    metric = sacrebleu.metrics.BLEU(lowercase=True, tokenize="13a", smooth_method="none")
    return metric.corpus_score(hypotheses, columns).score / 100


@official
def test_bleu_on_webnlgs_texts_equals_sacrebleu():
    pytest.importorskip("sacrebleu")
    hypotheses, references = corpus()
    segments, _columns = metrics.score_words(hypotheses, references, per_segment=False)
    assert segments["BLEU"] == pytest.approx(sacrebleu_of(hypotheses, references), abs=1e-9)


@official
@needs_java
@pytest.mark.slow
def test_meteor_on_webnlgs_texts_equals_the_jars():
    hypotheses, references = corpus(step=4)
    texts, truth = their_tokens([[text] for text in hypotheses]), their_tokens(references)
    ours = our_scores(hypotheses, references)
    assert_equal(ours, {"METEOR": their_meteor([texts[n][0] for n in texts], [truth[n] for n in truth])})
