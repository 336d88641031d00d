"""The data sets that --data names: their examples, what is decoded, and how it is scored.

E2E        (e2e_data.py)       a table's outputs against all its sentences; one row of scores
WebNLG     (webnlg_data.py)    an entry's output against its texts; rows for all, seen and unseen categories, and TER
--reverse  of either           the sentence is read and the table written, scored by exact fields (metrics/fields.py)
"""

from pathlib import Path
from typing import NamedTuple

import e2e_data
import metrics
import webnlg_data
from e2e_data import Example, group_references
from harness.files import resolve_path
from metrics import fields, ter

WEBNLG = "webnlg"  # --data webnlg: the official files, downloaded
NAMED = {None: "the paper's tokenised files", "mini": "the sample tables' own", WEBNLG: "WebNLG 2017"}


class TestSet(NamedTuple):
    """What is decoded, and what it is scored against."""

    sources: list[str]
    references: list[list[str]]
    parts: dict[str, list[int]]  # name of a row of scores -> its sources; "all" is first
    described: str  # which references


class DataSet:
    """One of them.

    data     None: E2E, downloaded; "mini"; "webnlg"; or a folder in E2E's or WebNLG's format
    reverse  swap source and target: the model reads a sentence and writes its table
    paper_quirk  of WebNLG's source strings (webnlg_data.py)
    """

    def __init__(self, data: str | None, reverse: bool = False, paper_quirk: bool = False):
        self.data, self.reverse, self.paper_quirk = data, reverse, paper_quirk
        self.is_webnlg = data == WEBNLG or (data is not None and webnlg_data.is_webnlg(resolve_path(data)))

    @property
    def folder(self) -> str | None:
        """WebNLG's; None: downloaded."""
        return None if self.data == WEBNLG else self.data

    def examples(self, split: str) -> list[Example]:
        """ "train", "valid" or "test", in file order. Raises InputError for what is missing or malformed."""
        if self.is_webnlg:
            examples = webnlg_data.load_split(self.folder, split, self.paper_quirk)
        else:
            examples = e2e_data.load_split(self.data, split)
        return [e2e_data.swapped(example) for example in examples] if self.reverse else examples

    def test_set(self, split: str) -> TestSet:
        """What is decoded of a split."""
        if self.is_webnlg and not self.reverse:
            entries = webnlg_data.load_entries(self.folder, split, self.paper_quirk)
            sources, references = [entry.source for entry in entries], [entry.texts for entry in entries]
            rows = {name: [i for i, e in enumerate(entries) if e.seen is seen] for name, seen in SEEN.items()}
            parts = {"all": [*range(len(entries))]} | (rows if all(rows.values()) else {})
            return TestSet(sources, references, parts, "WebNLG 2017, all texts of an entry")
        groups = group_references(self.examples(split))
        if self.data in NAMED or self.is_webnlg:
            described = NAMED.get(self.data, NAMED[WEBNLG])
        else:
            described = str(e2e_data.find_split(Path(self.data), split))
        described += ", the tables" if self.reverse else ""
        return TestSet(list(groups), list(groups.values()), {"all": [*range(len(groups))]}, described)

    def score(self, outputs: list[str], test_set: TestSet) -> dict[str, dict[str, float]]:
        """Name of a row -> its scores, with metrics.DETAILS beside BLEU."""
        rows = {}
        for name, indices in test_set.parts.items():
            hypotheses, references = [outputs[i] for i in indices], [test_set.references[i] for i in indices]
            if self.reverse:
                rows[name] = fields.score(hypotheses, references)
            else:
                rows[name] = metrics.score(hypotheses, references, details=True)
                if self.is_webnlg:
                    rows[name]["TER"] = webnlg_ter(hypotheses, references)
        return rows

    def signature(self, test_set: TestSet) -> str:
        """How `score` computes, and from how many references."""
        scorer = "fields:exact,case-sensitive" if self.reverse else metrics.signature()
        webnlg = "|TER:webnlg,lc,signs-apart" if self.is_webnlg and not self.reverse else ""
        return f"{scorer}{webnlg}|{metrics.nrefs(test_set.references)}"


SEEN = {"seen": True, "unseen": False}


def webnlg_ter(hypotheses: list[str], references: list[list[str]]) -> float:
    """TER of the texts as WebNLG's evaluation prepared them; 0 upwards, lower is better."""
    words = lambda text: ter.tokenize(ter.as_webnlg(text))
    return ter.ter([*map(words, hypotheses)], [[*map(words, texts)] for texts in references])[0]
