"""The second data set: facts from DBpedia, and texts that state them (WebNLG 2017, Gardent et al. 2017).

    XML files  ->  entries (source, texts, category)  ->  examples (source, target), as in e2e_data.py

An entry holds one to seven triples and one to eight texts. Its source string is the paper's, the modified triples
(the property names made uniform) as they are written, underscores and capitals included:

    Aarhus_Airport | cityServed | "Aarhus, Denmark"       ->    Aarhus_Airport : cityServed : "Aarhus, Denmark"
    A | p | B   C | q | D   (two triples)                 ->    A : p : B | C : q : D

Training uses the texts marked "good", as the paper does; all texts of a validation or test entry are its references.
A test entry is "seen" if its category occurs in the training set (10 of 15 do), else "unseen".

The unit of scoring is the entry: one output, scored against the entry's own texts. `load_entries` merges none. Grouping
by source (`e2e_data.group_references`) would merge entries that state the same triples under several categories: 33
sources of the training set occur in two to four entries (6,893 sources), one of the validation set in two (871), none
of the test set. The model sees the source only, so entries with the same source get the same output, each scored once.

    official counts        entries    texts
    train                    6,940   18,102   (18,025 good; 5 entries have no good text)
    valid ("dev")              872    2,268
    test                     1,862    4,928   (971 entries seen, 891 unseen)

The paper's code writes " | " in front of the first triple too: always in training, and when it decodes, in all
entries but the first (it tests the entry's index where the triple's was meant). `paper_quirk=True` reproduces this.

Left out: the original triples, the other releases (2.x, 3.0), Russian.
"""

import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import NamedTuple

from e2e_data import Example, LocatedExample, shorten
from harness.download import cache_dir, download_data
from harness.files import InputError
from harness.webnlg_files import ADDRESS, CATEGORIES, SHA256, TEST_FILE
from harness.xml_reader import LINE, parse

SPLIT_FOLDERS = {"train": "train", "valid": "dev", "test": "test"}  # the release's names


class Entry(NamedTuple):
    """A set of triples as one line of text, and all its texts."""

    source: str
    texts: list[str]
    category: str
    seen: bool  # whether the category occurs in the training set
    good: list[bool]  # for each text, whether it is marked good
    path: Path
    line: int


def is_webnlg(folder: Path) -> bool:
    """Whether a folder is laid out as the release: XML files in train/ and dev/, and test/testdata_with_lex.xml."""
    folder = Path(folder)
    return (folder / TEST_FILE).is_file() and all(any((folder / name).rglob("*.xml")) for name in ("train", "dev"))


def load_split(folder: str | None, split: str, paper_quirk: bool = False) -> list[Example]:
    """The examples of "train" (texts marked good), "valid" or "test" (all texts), in file order.

    folder, paper_quirk    as in `load_entries`
    Raises InputError for what is missing or malformed.
    """
    examples = [
        LocatedExample(entry.source, text, f"{entry.path}, line {entry.line}")
        for entry in read_split(folder, split, paper_quirk)
        for text, good in zip(entry.texts, entry.good)
        if good or split != "train"
    ]
    if not examples:
        raise InputError(f'{folder}: no training text is marked comment="good": mark them, or name other data')
    return examples


def load_entries(folder: str | None, split: str, paper_quirk: bool = False) -> list[Entry]:
    """The entries of "train", "valid" or "test", in file order; none are merged.

    folder       None: the official files, downloaded once and verified; else a folder with them
    paper_quirk  write " | " in front of the first triple, where the paper's code does

    With a folder, `seen` is decided by the categories of its training files.
    Raises InputError for what is missing or malformed.
    """
    if folder is None:
        seen = set(CATEGORIES)
    else:  # of a training split, every category is
        seen = {entry.category for entry in read_split(folder, "train")} if split != "train" else set()
    entries = read_split(folder, split, paper_quirk)
    return [entry._replace(seen=split == "train" or entry.category in seen) for entry in entries]


def read_split(folder: str | None, split: str, paper_quirk: bool = False) -> list[Entry]:
    """The entries of a split, `seen` still False."""
    entries = [entry for path in find_files(folder, split) for entry in read_entries(path)]
    if paper_quirk:
        kept = 0 if split == "train" else 1  # the entries at the front that the paper's code leaves as they are
        entries[kept:] = [entry._replace(source=f" | {entry.source}") for entry in entries[kept:]]
    return entries


# ----------------------------------------------------------------------------- files


def find_files(folder: str | None, split: str) -> list[Path]:
    """The XML files of a split, in reading order: by number of triples, then by category."""
    name = SPLIT_FOLDERS[split]
    if folder is None:
        cache, files = cache_dir() / "webnlg", [file for file in SHA256 if file.startswith(f"{name}/")]
        return [download_data(ADDRESS.format(file=file), cache / file, SHA256[file]) for file in files]
    if not Path(folder).is_dir():
        raise InputError(f"{folder} is not a folder: --data names one that holds WebNLG's train, dev and test")
    if split == "test":  # its folder also holds its unseen half, and a copy without texts
        if not (Path(folder) / TEST_FILE).is_file():
            raise InputError(f"{folder} has no {TEST_FILE}: fetch WebNLG 2017 again, or name other data")
        return [Path(folder) / TEST_FILE]
    found = sorted((Path(folder) / name).rglob("*.xml"))
    if not found:
        raise InputError(f"{folder} has no XML file in {name}/: fetch WebNLG 2017 again, or name other data")
    return found


# ----------------------------------------------------------------------------- XML -> entries


def read_entries(path: Path) -> list[Entry]:
    """The entries of one file, `seen` still False. Raises InputError with the line of what is malformed."""
    entries = [read_entry(element, path) for element in parse(path).iter("entry")]
    if not entries:
        raise InputError(f"{path} holds no entry: fetch it again, or name other data")
    return entries


def read_entry(element: ElementTree.Element, path: Path) -> Entry:
    line = int(element.get(LINE))
    where = f"{path}, line {line}, entry {element.get('eid', 'without eid')}"
    category = element.get("category", "").strip()
    if not category:
        raise InputError(f"{where}: it has no category; complete the entry or delete it")
    triples = [read_triple(triple, where) for triple in element.findall("modifiedtripleset/mtriple")]
    if not triples:
        raise InputError(f"{where}: it has no triple in a modifiedtripleset; complete the entry or delete it")
    lexes = element.findall("lex")
    texts = [one_line(lex) for lex in lexes]
    if not texts or not all(texts):
        missing = "an empty text" if texts else "no text (lex)"
        raise InputError(f"{where}: it has {missing}; complete the entry or delete it")
    good = [lex.get("comment") == "good" for lex in lexes]
    return Entry(linearise(triples), texts, category, False, good, path, line)


def read_triple(element: ElementTree.Element, where: str) -> tuple[str, str, str]:
    """`subject | property | object` -> its three parts."""
    parts = tuple(part.strip() for part in one_line(element).split(" | "))
    if len(parts) != 3 or not all(parts):
        raise InputError(f"{where}: {shorten(one_line(element))} is not a triple: write subject | property | object")
    return parts


def linearise(triples: list[tuple[str, str, str]]) -> str:
    """[(subject, property, object), ...] -> `subject : property : object | ...`."""
    return " | ".join(" : ".join(triple) for triple in triples)


def one_line(element: ElementTree.Element) -> str:
    """The text of an element, with single spaces and no line breaks."""
    return " ".join("".join(element.itertext()).split())
