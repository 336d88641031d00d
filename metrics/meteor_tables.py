"""Finds and reads METEOR's tables: synonyms, function words, abbreviations, and the packed paraphrases.

METEOR 1.5 is two files: a jar, which is a zip file with the small tables, and the paraphrase table.

    meteor-1.5.jar       nonbreaking/english.prefixes   abbreviations          -> meteor_normalize.py
                         function/english.words         words like "the", "of"
                         synonym/english.synsets        word -> its synsets in WordNet 3.0
                         synonym/english.exceptions     word -> its irregular forms ("mouse": "mice")
    paraphrase-en.gz     5.27 million pairs             -> meteor_paraphrase.py

They are looked for in the folder $METEOR_DATA, if that is set; otherwise in an installed `pycocoevalcap` and
in this project's cache folder, where

    python -m metrics.meteor_download

puts them. Only files with the known SHA-256 are accepted: METEOR with another synonym list or without
paraphrases is another score, and is never reported under that name. The paraphrase table is packed once (20
seconds) into a file in the cache folder. Its name contains the table's SHA-256 and the format of the packed
file, so a new table or format never reads an old file.

Synonyms (Banerjee and Lavie 2005, section 3.1): two words are synonyms if they share a synset. A word's
synsets are its own and those of its base form. If the word is irregular, its base form is listed; otherwise the
first of WordNet's endings ("-ies" -> "-y", ...) that gives a word in WordNet is replaced.

Worked example: "cities" is not listed itself. The first ending "s" gives "citie", which is not a word; none of
"ses xes zes ches shes men" fit; "ies" gives "city", whose synsets are the synsets of "cities".

Left out: synonym/english.relations (hypernyms), which the jar holds but never reads.
"""

import functools
import hashlib
import importlib.util
import io
import os
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from harness.download import cache_dir
from harness.files import InputError, sha256_of, write_atomic
from metrics.meteor_normalize import ANY, BEFORE_DIGIT
from metrics.meteor_paraphrase import FORMAT, ParaphraseTable

JAR, PARAPHRASES = "meteor-1.5.jar", "paraphrase-en.gz"
SIZE = {JAR: 6_318_693, PARAPHRASES: 61_813_011}  # bytes
SHA256 = {
    JAR: "1e57b4c72c0830ebe68558f1c799a624e96cbc1b6045c9f6330e26dcff6eafc2",
    PARAPHRASES: "c147ac7d2c91f2fbb3ad31e4b352235061eb83145e0434daf217ee9ca5975f48",
}
HOW_TO_GET = "run `pip install pycocoevalcap` or `python -m metrics.meteor_download` (68 MB)"

# WordNet's endings in the order they are tried: nouns, verbs, adjectives. Ending -> replacement.
ENDINGS = [
    ("s", ""), ("ses", "s"), ("xes", "x"), ("zes", "z"), ("ches", "ch"), ("shes", "sh"), ("men", "man"), ("ies", "y"),
    ("s", ""), ("ies", "y"), ("es", "e"), ("es", ""), ("ed", "e"), ("ed", ""), ("ing", "e"), ("ing", ""),
    ("er", ""), ("est", ""), ("er", "e"), ("est", "e"),
]  # fmt: skip


@dataclass
class Tables:
    """All tables of METEOR.

    abbreviations: word -> meteor_normalize.ANY or BEFORE_DIGIT.    synset_lines: word -> "00012345 00067890 ..."
    base_forms: irregular form -> its bases.
    """

    abbreviations: dict[str, str]
    function_words: frozenset[str]
    synset_lines: dict[str, str]
    base_forms: dict[str, list[str]]
    paraphrases: ParaphraseTable

    def synsets(self, word: str) -> set[int]:
        """WordNet's synsets of a lower-case word and of its base form; empty for an unknown word."""
        bases = self.base_forms.get(word) or [self.base_form(word)]
        lines = [self.synset_lines.get(form, "") for form in [word, *bases]]
        return {int(number) for line in lines for number in line.split()}

    def base_form(self, word: str) -> str:
        if word.endswith("ss") or len(word) <= 2:
            return word
        for ending, replacement in ENDINGS:
            if word.endswith(ending):
                base = word.removesuffix(ending) + replacement
                if base in self.synset_lines:
                    return base
        return ""


def available() -> str | None:
    """None if the tables are installed and of the right size; otherwise one line that says how to get them."""
    return locate()[1]


def locate() -> tuple[dict[str, Path], str | None]:
    """({JAR: path, PARAPHRASES: path}, None), or ({}, what is wrong and how to fix it)."""
    folder = os.environ.get("METEOR_DATA")
    if folder:  # an explicit choice: no other place is searched
        return files_in(Path(folder).expanduser(), f"$METEOR_DATA ({folder})")
    places = []
    package = importlib.util.find_spec("pycocoevalcap")  # finds the folder without running the package
    if package is not None and package.submodule_search_locations:
        places.append((Path(package.submodule_search_locations[0]) / "meteor", "the installed pycocoevalcap"))
    if download_folder().is_dir():
        places.append((download_folder(), str(download_folder())))
    problem = f"METEOR's tables are not installed: {HOW_TO_GET}"
    for place, called in places:
        found, problem = files_in(place, called)
        if problem is None:
            return found, None
    return {}, problem


def download_folder() -> Path:
    """Where metrics/meteor_download.py puts the two files."""
    return cache_dir() / "meteor-1.5"


def files_in(folder: Path, called: str) -> tuple[dict[str, Path], str | None]:
    found = {}
    for name in (JAR, PARAPHRASES):
        paths = [path for path in (folder / name, folder / "data" / name) if path.is_file()]
        if not paths:
            return {}, f"METEOR's tables: {called} has no {name}; {HOW_TO_GET}"
        size = paths[0].stat().st_size
        if size != SIZE[name]:
            return {}, f"METEOR's tables: {name} in {called} has {size} bytes, not {SIZE[name]}; {HOW_TO_GET}"
        found[name] = paths[0]
    return found, None


def load() -> Tables:
    """The tables, read once per process. Raises InputError if they are missing or damaged."""
    found, problem = locate()
    if problem is not None:
        raise InputError(problem)
    return load_from(found[JAR], found[PARAPHRASES], cache_dir())


@functools.lru_cache(maxsize=1)
def load_from(jar: Path, paraphrases: Path, cache: Path) -> Tables:
    return Tables(**read_jar(jar), paraphrases=packed_paraphrases(paraphrases, cache))


def read_jar(jar: Path) -> dict:
    """The first four fields of Tables. Raises InputError if the jar is not METEOR 1.5's."""
    data = jar.read_bytes()
    check(jar, hashlib.sha256(data).hexdigest())
    with zipfile.ZipFile(io.BytesIO(data)) as members:

        def lines(name: str) -> list[str]:
            return members.read(name).decode("utf-8").splitlines()

        abbreviations = {}
        for line in lines("nonbreaking/english.prefixes"):
            word, *kind = line.split()[:2] or ["#"]
            if not word.startswith("#"):
                abbreviations[word] = BEFORE_DIGIT if kind == ["#NUMERIC_ONLY#"] else ANY
        synsets = lines("synonym/english.synsets")  # a line with the word, a line with its synsets
        exceptions = lines("synonym/english.exceptions")  # a line with the base, a line with its forms
        base_forms: dict[str, list[str]] = {}
        for base, forms in zip(exceptions[::2], exceptions[1::2]):
            for form in forms.split():
                base_forms.setdefault(form, []).append(base)
        return {
            "abbreviations": abbreviations,
            "function_words": frozenset(lines("function/english.words")),
            "synset_lines": dict(zip(synsets[::2], synsets[1::2])),
            "base_forms": base_forms,
        }


def check(path: Path, sha256: str) -> None:
    if sha256 != SHA256[path.name]:
        raise InputError(f"{path} is not METEOR 1.5's (its SHA-256 is {sha256[:12]}…): {HOW_TO_GET}")


def packed_paraphrases(source: Path, cache: Path) -> ParaphraseTable:
    """The packed table from `cache`. If it is missing or damaged, it is packed from `source` first."""
    packed = cache / "meteor-1.5" / f"paraphrase-en-{SHA256[PARAPHRASES][:12]}-format{FORMAT}.npz"
    table = ParaphraseTable.load(packed)
    if table is None:
        check(source, sha256_of(source))
        print("METEOR: packing the paraphrase table, once (about 20 seconds)", file=sys.stderr)
        try:
            table = ParaphraseTable.read(source)
        except ValueError as error:
            raise InputError(str(error)) from error
        try:
            with write_atomic(packed, "wb") as file:
                table.save(file)
        except (InputError, OSError) as error:  # the scores are not affected; the next run packs again
            print(f"METEOR: the packed paraphrase table was not saved ({error})", file=sys.stderr)
    return table
