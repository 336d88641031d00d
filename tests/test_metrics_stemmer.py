"""Snowball's English stemmer against the edition in meteor-1.5.jar.

Recorded: words that between them go through every rule, with the stems the jar gives. Live: the jar run with
Java on WordNet's whole vocabulary and on made-up words.

    python tests/test_metrics_stemmer.py        records stemmer_recorded.json again (needs Java)
"""

import doctest
import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from metrics import meteor_tables, stemmer
from metrics.stemmer import stem

RECORDED = Path(__file__).with_name("stemmer_recorded.json")


def jar_path():
    found, _problem = meteor_tables.locate()
    return found.get(meteor_tables.JAR)


def jar_stems(words):
    """The jar's own command line, which stems every word of its input but leaves numbers alone."""
    command = ["java", "-Dfile.encoding=UTF-8", "-Dstdout.encoding=UTF-8", "-Dstdin.encoding=UTF-8"]
    command += ["-cp", str(jar_path()), "Stemmer", "en"]
    done = subprocess.run(command, input="\n".join(words).encode(), capture_output=True, check=True)
    return done.stdout.decode().splitlines()


def test_examples_in_the_docstring():
    assert doctest.testmod(stemmer).failed == 0


def test_stems_equal_the_recorded_ones():
    recorded = json.loads(RECORDED.read_text(encoding="utf-8"))
    assert {word: stem(word) for word in recorded} == recorded


def test_regions_of_the_textbook_word():
    assert stemmer.regions("beautiful") == (5, 7)


def test_longest_suffix_alone_is_tried():
    # "ational" is found, its condition (in R1) fails, and "tional" does not get a turn.
    assert stemmer.step_2("xational", r1=2) == "xational"


@given(st.text())
@example("'")
@example("\ud800s")
def test_any_text_has_a_stem_no_longer_than_itself_plus_an_e(text):
    assert len(stem(text)) <= len(text) + 1


@pytest.mark.skipif(not shutil.which("java"), reason="no Java to run the jar's stemmer with")
@pytest.mark.skipif(jar_path() is None, reason=str(meteor_tables.available()))
@pytest.mark.parametrize("every", [pytest.param(1, marks=pytest.mark.slow), 20])
def test_live_every_stem_equals_the_jars(every):
    """All of WordNet's words and 100,000 made-up ones, or one in twenty of them."""
    tables = meteor_tables.read_jar(jar_path())
    chosen = random.Random(1)
    suffixes = [*stemmer.STEP_2, *stemmer.STEP_3, *stemmer.STEP_4, "eed", "eedly", "ed", "edly", "ing", "ingly"]
    suffixes += ["s", "es", "ies", "ied", "sses", "us", "'s", "s'", "'", "y", "e", "l", ""]
    beginnings = ["", "", "'", "y", *stemmer.R1_AFTER]
    made_up = [
        chosen.choice(beginnings)
        + "".join(chosen.choices("aeiouybcdlmnrstwxyk'", k=chosen.randint(0, 5)))
        + "".join(chosen.choices(suffixes, k=chosen.randint(1, 3)))
        for _ in range(100_000)
    ]
    words = {*tables["synset_lines"], *tables["base_forms"], *made_up}
    words = sorted(word for word in words if word.strip("0123456789.,-"))  # the command leaves numbers as they are
    assert len(words) > 200_000
    words = words[::every]
    different = [(word, theirs) for word, theirs in zip(words, jar_stems(words), strict=True) if stem(word) != theirs]
    assert not different, different[:10]


if __name__ == "__main__":
    words = sorted(json.loads(RECORDED.read_text(encoding="utf-8")))
    stems = dict(zip(words, jar_stems(words), strict=True))
    RECORDED.write_text(json.dumps(stems, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")
