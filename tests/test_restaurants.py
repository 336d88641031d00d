"""The sample data of mini/restaurants: the committed files have the properties that generator and README state."""

import csv
import re
import subprocess
import sys
from collections import Counter
from itertools import groupby
from pathlib import Path

import pytest

from e2e_data import FIELDS, group_references, linearise, load_split

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "mini" / "restaurants"
E2E = ROOT.parent / "shared" / "e2e"
SPLITS = ("train", "valid", "test")


def read_rows(path: Path) -> list[tuple[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["mr", "ref"]
    return [tuple(row) for row in rows]


def fields_of(mr: str) -> dict[str, str]:
    """`name[X], food[Thai]` -> {"name": "X", "food": "Thai"}; also parses the paper's format."""
    if "[" in mr:
        return dict(re.findall(r"([^\[\], ][^\[\],]*)\[([^\]]*)\]", mr))
    official = {paper: name for name, paper in FIELDS.items()}
    return {official[name]: value for name, value in (field.strip().split(" : ", 1) for field in mr.split(" | "))}


ROWS = {split: read_rows(FOLDER / f"{split}.csv") for split in SPLITS}
ALL = [(fields_of(mr), text) for rows in ROWS.values() for mr, text in rows]
TABLES = {split: {frozenset(fields_of(mr).items()) for mr, _ in rows} for split, rows in ROWS.items()}
NAMES = {split: {fields_of(mr)["name"] for mr, _ in rows} for split, rows in ROWS.items()}


def words_of(text: str) -> list[str]:
    return re.findall(r"[^\W_]+|£", text.lower())


def without_values(table: dict[str, str], text: str) -> str:
    """The words of a text with <field> for each value and a "." after each sentence, to compare sentence patterns."""
    words = re.findall(r"[^\W_]+|£|[.?!](?= |$)", text.strip().lower())
    line = f" {' '.join(words).replace(' an ', ' a ')} "
    for field, value in sorted(table.items(), key=lambda item: -len(item[1])):
        if field != "familyFriendly":
            line = line.replace(f" {' '.join(words_of(value))} ", f" <{field}> ")
    return re.sub("[?!]", ".", line).strip(" .")


def generate(*flags, script=FOLDER / "generate.py", cwd=None):
    return subprocess.run(
        [sys.executable, str(script), *map(str, flags)], cwd=cwd, capture_output=True, text=True, timeout=120
    )


# ----------------------------------------------------------------------------- the generator


def test_the_generator_reproduces_the_committed_files_byte_for_byte(tmp_path):
    """Both a copy of the generator without flags, in its own folder, and the original with flags, in another folder."""
    (tmp_path / "mini" / "restaurants").mkdir(parents=True)
    (tmp_path / "harness").mkdir()
    for path in (ROOT / "harness" / "__init__.py", ROOT / "harness" / "files.py", *FOLDER.glob("*.py")):
        (tmp_path / path.relative_to(ROOT)).write_bytes(path.read_bytes())
    here = generate(script=tmp_path / "mini" / "restaurants" / "generate.py", cwd=tmp_path)
    there = generate("--out", tmp_path / "new" / "folder", "--seed", 4, cwd=tmp_path)
    assert here.returncode == there.returncode == 0, here.stderr + there.stderr
    for split in SPLITS:
        committed = (FOLDER / f"{split}.csv").read_bytes()
        assert (tmp_path / "mini" / "restaurants" / f"{split}.csv").read_bytes() == committed
        assert (tmp_path / "new" / "folder" / f"{split}.csv").read_bytes() == committed
        assert f"{split}.csv: {len(ROWS[split])} texts for {len(TABLES[split])} tables" in there.stdout


def test_another_seed_gives_other_files_and_a_bad_folder_one_sentence(tmp_path):
    assert generate("--out", tmp_path, "--seed", 12).returncode == 0
    assert not set(read_rows(tmp_path / "test.csv")) & set(ROWS["test"])
    (tmp_path / "file").write_text("x")
    refused = generate("--out", tmp_path / "file")
    assert refused.returncode == 2
    assert re.fullmatch(r"error: .*file.* was not written: .*\n", refused.stderr)


# ----------------------------------------------------------------------------- tables


def test_the_files_have_the_sizes_that_the_readme_states():
    stated = re.findall(r"^\| (\w+) \| (\d+) \| ([\d,]+) \|", (FOLDER / "README.md").read_text(encoding="utf-8"), re.M)
    assert [(s, int(t), int(n.replace(",", ""))) for s, t, n in stated] == [
        (s, len(TABLES[s]), len(ROWS[s])) for s in SPLITS
    ]
    assert len(ROWS["train"]) == 2000 and len(TABLES["train"]) == 600
    assert len(TABLES["valid"]) == 60 and 80 <= len(TABLES["test"]) <= 100
    assert sum((FOLDER / f"{split}.csv").stat().st_size for split in SPLITS) < 550_000


def test_no_table_is_in_two_of_the_files():
    assert sum(map(len, TABLES.values())) == len(set().union(*TABLES.values()))


@pytest.mark.parametrize(("split", "least", "most"), [("train", 3, 4), ("valid", 4, 6), ("test", 5, 8)])
def test_the_texts_of_a_table_differ_and_are_adjacent(split, least, most):
    runs = [[text for _, text in rows] for _, rows in groupby(ROWS[split], key=lambda row: row[0])]
    assert len(runs) == len(TABLES[split])
    assert all(least <= len(texts) == len(set(texts)) <= most for texts in runs)
    assert {len(texts) for texts in runs} == set(range(least, most + 1))


def test_tables_have_a_name_and_two_to_seven_other_fields_in_the_official_order():
    sizes = Counter()
    for rows in ROWS.values():
        for mr in {mr for mr, _ in rows}:
            table = fields_of(mr)
            assert list(table) == [field for field in FIELDS if field in table] and "name" in table
            sizes[len(table)] += 1
    assert set(sizes) == set(range(3, 9))
    assert all(len({table[field] for table, _ in ALL if field in table}) >= 2 for field in FIELDS)


def test_a_third_of_the_validation_and_test_tables_have_names_of_words_that_no_other_file_has():
    for split in ("valid", "test"):
        others = set().union(*(NAMES[other] for other in SPLITS if other != split))
        new = [table for table in TABLES[split] if dict(table)["name"] not in others]
        assert len(new) * 3 == len(TABLES[split])
        assert NAMES[split] & NAMES["train"], "and there are known names"
        known_words = set(re.findall(r"\w{3,}", " ".join(NAMES["train"]))) - {"The", "Chez", "House"}
        assert not known_words & set(re.findall(r"\w{3,}", " ".join(dict(table)["name"] for table in new)))


# ----------------------------------------------------------------------------- texts

VALUES = {field: {table[field] for table, _ in ALL if field in table} for field in FIELDS}
# yes and no are stated in words about families, parents or children; no with one of these negations.
FAMILY = r"\b(famil|child|parents)"
NO = (
    r"hardly family-friendly|not (meant|right|suit|seat|catered|bring)"
    r"|nothing for children|cannot bring|leave the children"
)


def mentions(text: str, value: str) -> int:
    """How often a word starts with a value ("high-priced" and "highly" count for "high")."""
    return len(re.findall(rf"(?<!\w){re.escape(value)}", text, re.I))


def test_every_value_is_stated_literally():
    """All fields except familyFriendly. A text for a table with a high price and a high rating has "high" twice."""
    for table, text in ALL:
        wanted = Counter(value for field, value in table.items() if field != "familyFriendly")
        for value, times in wanted.items():
            assert mentions(text, value) >= times, (value, text)
        assert text.count(table["name"]) == 1


def test_family_friendly_is_stated_in_words():
    for table, text in ALL:
        assert bool(re.search(FAMILY, text, re.I)) == ("familyFriendly" in table), text
        if "familyFriendly" in table:
            assert bool(re.search(NO, text, re.I)) == (table["familyFriendly"] == "no"), text


def test_nothing_is_stated_that_the_table_does_not_have():
    any_value = {
        field: re.compile(rf"\b({'|'.join(VALUES[field])})\b", re.I) for field in ("eatType", "food", "area", "near")
    }
    for table, text in ALL:
        rest = text.replace(table["name"], "")
        for field, pattern in any_value.items():
            assert {found.lower() for found in pattern.findall(rest)} == (
                {table[field].lower()} if field in table else set()
            ), text
        rest = rest.replace(table.get("near", "\0"), "")
        price = re.search(r"£|cheap|moderate|price|\b(bill|pay|costs?)\b", rest, re.I)
        assert bool(price) == ("priceRange" in table), text
        rating = re.search(r"\brated?\b|rating|marks|score|out of|guests|customers|diners", rest)
        assert bool(rating) == ("customer rating" in table), text
        assert len(re.findall(r"£\d+", rest)) == len(re.findall(r"£\d+", table.get("priceRange", "")))


def test_articles_spaces_and_sentence_ends_are_right():
    for _, text in ALL:
        assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", text, re.I), text
        assert not re.search(r"\s\s|\s[.,?]|[{}_|]|,,|^\s|\s$", text), text
        sentences = re.split(r"(?<=[.?]) ", text)
        assert 1 <= len(sentences) <= 4 and len(text.split()) <= 60, text
        assert all(re.fullmatch(r"[A-Z][^.?]*[.?]", sentence) for sentence in sentences), text
        assert text.endswith("."), text
        assert not re.search(r"\b(\w+) \1\b", text), text


def test_most_texts_have_a_sentence_pattern_of_their_own():
    """The README's count of texts with their values removed."""
    patterns = Counter(without_values(table, text) for table, text in ALL)
    readme = " ".join((FOLDER / "README.md").read_text(encoding="utf-8").split())
    stated = re.search(r"the ([\d,]+) texts still make ([\d,]+) different", readme)
    assert [int(number.replace(",", "")) for number in stated.groups()] == [len(ALL), len(patterns)]
    assert patterns.most_common(1)[0][1] < 0.01 * len(ALL)


# ----------------------------------------------------------------------------- read by load_split


def test_load_split_reads_them_in_the_papers_form():
    field = {name: re.escape(paper) + r" : [^|]*[^| ]" for name, paper in FIELDS.items()}
    form = field["name"] + "".join(rf"( \| {field[name]})?" for name in list(FIELDS)[1:])
    for split in SPLITS:
        examples = load_split(str(FOLDER), split)
        assert [(e.source, e.target) for e in examples] == [(linearise(mr), text) for mr, text in ROWS[split]]
        assert len(group_references(examples)) == len(TABLES[split])
        for source, _ in examples:
            assert re.fullmatch(form, source) and not re.search(r"£\d|\d-\d", source), source


# ----------------------------------------------------------------------------- not E2E


@pytest.mark.skipif(not E2E.exists(), reason="needs E2E's files in ../shared/e2e")
def test_no_name_no_sentence_and_no_eight_words_in_a_row_are_e2es():
    """Names and sentences: compared with all of E2E. Eight words: with its development and test references."""
    tokenised = {split: (E2E / f"src1_{split}.txt").read_text(encoding="utf-8").splitlines() for split in SPLITS}
    held_out = [row for file in ("devset.csv", "testset_w_refs.csv") for row in read_rows(E2E / file)]
    held_out += [line.split("||") for split in ("valid", "test") for line in tokenised[split]]
    theirs = [(fields_of(mr), text) for mr, text in (line.split("||") for split in SPLITS for line in tokenised[split])]
    names = {value for table, _ in theirs for field, value in table.items() if field in ("name", "near")}
    assert len(names) > 40 and not names & (VALUES["name"] | VALUES["near"])
    assert not [text for _, text in ALL if any(name in text for name in names)]

    def sentences(rows):
        whole = {without_values(table, text) for table, text in rows}
        return whole | {part for text in whole for part in text.split(" . ")}

    assert not sentences(ALL) & sentences(theirs)

    def runs(texts):
        return {tuple(words[i : i + 8]) for words in map(words_of, texts) for i in range(len(words) - 7)}

    assert not runs(text for _, text in ALL) & runs(text for _, text in held_out)
