"""Reads files of system outputs and references, as the reference's measure_scores.py does.

    outputs      text:   one output per line; a blank line is an empty output
                 table:  .csv or .tsv with a column of sources and one of outputs
    references   text:   blocks of lines separated by a blank line: each block holds the references of one output;
                         a file without blank lines holds one reference per output
                 table:  .csv or .tsv with a column of sources and one of references
                 pairs:  `source||reference` lines, the paper's E2E files

References of a table are grouped by source. If the outputs have sources, the groups are in their order;
otherwise a group is a run of consecutive rows with the same source. References of pairs are grouped in the same
way, except that without sources of outputs a group is all lines with the same source, anywhere in the file.

Where the reference scorer stops with a traceback, these functions raise `InputError`: one sentence with file, line
and remedy. They accept three forms that the reference does not, none of which changes a score: a table without a
header line (intended there, but broken), several references for a single output, and blank lines at the end of a
file. A byte-order mark is also dropped from text, where the reference leaves it attached to the first word.

Left out: JSON and SGML.
"""

import csv
import re
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from harness.files import InputError, read_text

# A column is recognised by how its name begins, in any case. A first row of text can be mistaken for a header if it
# begins the same way ("Outside the city ..."); the error message then says to add a header line.
SOURCE_NAME = re.compile(r"mr|src|source|meaning|da|dial(ogue)?[_ .-]act", re.IGNORECASE)
OUTPUT_NAME = re.compile(r"out|ref|sys", re.IGNORECASE)
REFERENCE_NAME = re.compile(r"trg|tgt|target|ref|human", re.IGNORECASE)

# Tables of the E2E challenge passed through programs that read UTF-8 as Latin-1, or "£" as a Polish letter.
# The order matters: the result of the first repair can be changed by the second.
REPAIRS = (("Ł", "£"), ("Â£", "£"), ("Ã©", "é"), ("ã©", "é"))


class Scorable(NamedTuple):
    """The arguments of `metrics.score`, and the sources for printing. All three have one entry per output."""

    sources: list[str]  # "" if the outputs have none
    hypotheses: list[str]
    references: list[list[str]]


def load(hypotheses_path: Path, references_path: Path, sources_path: Path | None = None) -> Scorable:
    """Read outputs and references and check that they belong together.

    sources_path: a text file with one source per line (measure_scores.py's `-s`). The outputs must then be a
    table, whatever the file's name, with exactly these sources in this order.

    Raises InputError for a file that is missing, empty, not UTF-8 or in none of these forms, for a source without
    references or without an output, and for unequal numbers of outputs and references.
    """
    if sources_path is not None or is_table(hypotheses_path):
        sources, hypotheses = read_table(hypotheses_path, OUTPUT_NAME, "output")
    else:
        hypotheses = read_lines(hypotheses_path, may_be_blank=True)
        sources = [""] * len(hypotheses)
    if sources_path is not None:
        check_sources(sources, hypotheses_path, read_lines(sources_path), sources_path)
    references = read_references(references_path, sources)
    if len(references) != len(hypotheses):
        raise InputError(
            f"{hypotheses_path} has {len(hypotheses)} outputs but {references_path} has references for "
            f"{len(references)}: give files of the same data, with one line an output"
        )
    return Scorable(sources, hypotheses, references)


def read_references(path: Path, sources: list[str]) -> list[list[str]]:
    """The references of each output, in the order of the outputs.

    sources: one per output, as in `Scorable`; all "" if the outputs have none.
    """
    if is_table(path):
        pairs = list(zip(*read_table(path, REFERENCE_NAME, "reference")))
        if any(sources):
            return gather(pairs, sources, path)
        return [[text for _, text in rows] for _, rows in groupby(pairs, key=lambda pair: pair[0])]
    lines = read_lines(path)
    if all("||" in line for line in lines if line):
        pairs = [tuple(part.strip() for part in line.split("||", 1)) for line in lines if line]
        return gather(pairs, sources if any(sources) else list(dict.fromkeys(source for source, _ in pairs)), path)
    return split_blocks(lines, len(sources), path)


def read_lines(path: Path, may_be_blank: bool = False) -> list[str]:
    """The lines of a UTF-8 text without surrounding white space. Blank lines stay, as "".

    Lines end where Unicode ends them (U+2028 and U+0085 too), as in the reference: hence `splitlines`.
    """
    return [line.strip() for line in read_text(path, may_be_blank).splitlines()]


def read_table(path: Path, text_name: re.Pattern, what: str) -> tuple[list[str], list[str]]:
    """The sources and the texts of a CSV or TSV file, with or without a header line.

    text_name: how the name of the column of texts begins; what: "output" or "reference", for error messages.
    """
    numbered = [(number, line) for number, line in enumerate(read_lines(path), start=1) if line]
    for broken, right in REPAIRS:
        numbered = [(number, line.replace(broken, right)) for number, line in numbered]
    numbers = [number for number, _ in numbered]
    lines = [line for _, line in numbered]
    rows = parse_rows(path, lines, numbers)

    header = rows[0][1]
    source_columns = [index for index, name in enumerate(header) if SOURCE_NAME.match(name)]
    text_columns = [index for index, name in enumerate(header) if text_name.match(name)]
    if len(source_columns) == len(text_columns) == 1:
        source_column, text_column = source_columns[0], text_columns[0]
        rows = rows[1:]
    elif not source_columns and not text_columns and len(header) == 2:
        source_column, text_column = 0, 1  # no header
    else:
        raise InputError(
            f"{path}, line {rows[0][0]}: {len(source_columns)} columns look like sources and {len(text_columns)} like "
            f"{what}s, one of each is needed: write a header line, say mr,{what}"
        )
    if not rows:
        raise InputError(f"{path} has a header line and nothing below it: add a line for each {what}")
    for number, row in rows:
        if len(row) != len(header):
            raise InputError(
                f"{path}, line {number}: {len(row)} columns where the first line has {len(header)}: "
                f"put quotes round a field that holds the separator, and close every quote"
            )
    return [row[source_column] for _, row in rows], [row[text_column] for _, row in rows]


def is_table(path: Path) -> bool:
    return Path(path).suffix.lower() in (".csv", ".tsv")


def parse_rows(path: Path, lines: list[str], numbers: list[int]) -> list[tuple[int, list[str]]]:
    """(line number in the file, fields) of each row; a quoted field may span lines."""
    # strict: a quote that is still open at the end is an error, not the end of a file that was cut short
    reader = csv.reader(lines, delimiter="\t" if "\t" in lines[0] else ",", strict=True)
    rows = []
    try:
        while True:
            start = reader.line_num  # lines read so far
            row = next(reader, None)
            if row is None:
                return rows
            rows.append((numbers[start], row))
    except csv.Error as error:
        raise InputError(f"{path}, line {numbers[start]}: not a table ({error}): check its quotes") from None


def gather(pairs: list[tuple[str, str]], sources: list[str], path: Path) -> list[list[str]]:
    """For each source, the texts of all pairs with that source, in file order."""
    by_source: dict[str, list[str]] = {}
    for source, text in pairs:
        by_source.setdefault(source, []).append(text)
    for source in sources:
        if source not in by_source:
            raise InputError(f'{path} has no reference for the source "{source}": give the references of the same data')
    if without := by_source.keys() - sources:
        raise InputError(
            f"{len(without)} of the {len(by_source)} sources in {path} have no output, one is"
            f' "{min(without)}": give the outputs of the same data'
        )
    return [by_source[source] for source in sources]


def split_blocks(lines: list[str], outputs: int, path: Path) -> list[list[str]]:
    """Blocks of lines with one blank line between them."""
    last = max(number for number, line in enumerate(lines, start=1) if line)
    blocks: list[list[str]] = [[]]
    for number, line in enumerate(lines[:last], start=1):
        if line:
            blocks[-1].append(line)
        elif blocks[-1]:
            blocks.append([])
        else:
            raise InputError(
                f"{path}, line {number}: a blank line without a reference before it: write the missing references, "
                f"or leave one blank line between blocks"
            )
    if len(blocks) == 1 and outputs != 1:
        return [[line] for line in blocks[0]]
    return blocks


def check_sources(sources: list[str], path: Path, expected: list[str], expected_path: Path) -> None:
    if len(sources) != len(expected):
        raise InputError(
            f"{path} has {len(sources)} outputs but {expected_path} has {len(expected)} sources: give equal numbers"
        )
    for number, (source, wanted) in enumerate(zip(sources, expected), start=1):
        if source != wanted:
            raise InputError(
                f'{path}, output {number}: its source is "{source}", but line {number} of {expected_path} '
                f'is "{wanted}": put the outputs in the order of the sources'
            )
