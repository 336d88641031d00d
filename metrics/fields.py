"""Fields: how much of a table a model has read out of a sentence.

    name : Blue Spice | Type : pub    ->    {("name", "Blue Spice"), ("Type", "pub")}

    precision = right fields / fields written        recall = right fields / fields of the table
    F1        = 2 right / (written + of the table)   exact  = tables with precision and recall 1 / tables

A field is right if the table has the same name with the same value, to the letter. The sums run over the whole corpus
before dividing (micro average). If a sentence has several acceptable tables, the one with the best F1 counts. The
order of the fields does not matter, and neither does repeating one.

Any text can be scored. A piece between two bars that is not `name : value` is a wrong field.

Left out: partly right values, and synonyms.

Worked example. Written: "name : Blue Spice | Type : bar | cheap". Table: "name : Blue Spice | Type : pub". One field of
three is right: precision 1/3, recall 1/2, F1 = 2/5, and the table is not exact.

>>> score(["name : Blue Spice | Type : bar | cheap"], [["name : Blue Spice | Type : pub"]])
{'precision': 0.3333333333333333, 'recall': 0.5, 'F1': 0.4, 'exact': 0.0}
"""

from typing import NamedTuple

from metrics import check

KEYS = ("precision", "recall", "F1", "exact")


class Table(NamedTuple):
    """A table as it was written."""

    fields: frozenset[tuple[str, str]]  # (name, value)
    broken: int  # pieces that are no field

    def __len__(self) -> int:
        return len(self.fields) + self.broken


class Counts(NamedTuple):
    """What is counted for a sentence, and summed over a corpus."""

    right: int
    written: int
    expected: int
    exact: int
    tables: int


def parse(text: str) -> Table:
    """The fields of `name : value | name : value`. Never fails; a blank text is an empty table.

    A name ends at the first colon. Blanks around names and values are dropped, and several in a row are one.
    """
    fields, broken = set(), 0
    for piece in text.split("|") if text.strip() else ():
        name, _colon, value = (" ".join(part.split()) for part in piece.partition(":"))
        if name and value:
            fields.add((name, value))
        else:
            broken += 1
    return Table(frozenset(fields), broken)


def score(hypotheses: list[str], references: list[list[str]], per_segment: bool = False) -> dict:
    """Score the tables that a model wrote.

    hypotheses  N texts, anything a model may write
    references  N lists of one or more acceptable tables as text

    Returns KEYS -> 0..1; with per_segment {"corpus": those, "segments": [N dicts with the same keys]}.
    Raises ValueError for no hypotheses, lists of different lengths, or a sentence without a table.
    """
    check(hypotheses, references)
    counts = [count(parse(text), [parse(table) for table in tables]) for text, tables in zip(hypotheses, references)]
    corpus = rates(Counts(*map(sum, zip(*counts))))
    return {"corpus": corpus, "segments": [rates(each) for each in counts]} if per_segment else corpus


def count(written: Table, tables: list[Table]) -> Counts:
    """The counts against the table with the best F1, the first of equally good ones."""
    candidates = []
    for table in tables:
        right = len(written.fields & table.fields)
        exact = int(right == len(written) == len(table))
        candidates.append(Counts(right, len(written), len(table), exact, 1))
    return max(candidates, key=f1)


def f1(counts: Counts) -> float:
    """0..1; 1 if nothing was expected and nothing written."""
    total = counts.written + counts.expected
    return 2 * counts.right / total if total else 1.0


def rates(counts: Counts) -> dict[str, float]:
    """KEYS -> 0..1. Of no fields written all are right if none were expected, else none; likewise for recall."""
    right, written, expected, exact, tables = counts
    return {
        "precision": right / written if written else float(expected == 0),
        "recall": right / expected if expected else float(written == 0),
        "F1": f1(counts),
        "exact": exact / tables,
    }
