"""A file of requests in, a file of texts out: one a line, in the same order.

    name : Blue Spice | area : riverside              a table as the model reads it
    name[Blue Spice], area[riverside]                 E2E's notation, also as the column mr of a CSV file
    name : Blue Spice || Blue Spice is a pub ...      the paper's files; what follows || is left out
    <|e2e|> name : Blue Spice | area : riverside      a shelf's task (tasks.py)

"-" is standard input and output. From a file, all requests are checked before the first is answered; from a pipe, they
are answered as they come, a batch at a time.
"""

import csv
import io
import itertools
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

from harness.files import InputError, is_terminal, read_text, write_atomic
from harness.progress import Progress
from harness.runs import check_outputs


class Request(NamedTuple):
    """A request, and its file and line for error messages."""

    text: str
    where: str


def answer_file(
    tables: str, out: str, prepare: Callable[[str], str], answer: Callable[[list[str]], list[str]], batch_size: int
) -> int:
    """Answer the requests of a file; returns their number.

    tables, out  paths, or "-"
    prepare      a request as the model reads it; raises InputError for one that cannot be answered
    answer       a text for each of at most batch_size requests
    A file at `out` is written when all are answered; standard output gets each batch at once. Raises InputError, with
    the line, for a request that cannot be answered.
    """
    check_outputs({"out": None if out == "-" else Path(out)}, inputs=[None if tables == "-" else Path(tables)])
    if out != "-" and Path(out).is_dir():
        raise InputError(f"--out {out} is a folder: name a file")
    if (tables == "-" and sys.stdin is None) or (out == "-" and sys.stdout is None):
        raise InputError("- is a standard stream, but it is closed: name a file")
    requests = prepared(read_requests(tables), prepare)
    total = None
    if tables != "-":
        requests = list(requests)
        total = len(requests)
        if not total:
            raise InputError(f"{tables} holds no request: write one a line")
    done, among_texts = 0, out == "-" and is_terminal(sys.stdout)  # both on one terminal: no line between the texts
    progress = Progress("answered", total or 0, shown=total is not None and not among_texts)
    requests = iter(requests)
    with nullcontext(sys.stdout) if out == "-" else write_atomic(Path(out)) as file:
        while batch := list(itertools.islice(requests, batch_size)):
            file.writelines(text + "\n" for text in answer(batch))
            file.flush()
            done += len(batch)
            progress(done)
    return done


def prepared(requests: Iterator[Request], prepare: Callable[[str], str]) -> Iterator[str]:
    """Each request as the model reads it."""
    for request in requests:
        try:
            yield prepare(request.text)
        except InputError as error:
            raise InputError(f"{request.where}: {error}") from None


def read_requests(tables: str) -> Iterator[Request]:
    """The requests of a file, or of standard input, in order. Raises InputError for an empty line or damaged CSV."""
    if tables == "-":
        return of_lines(standard_input(), "standard input")
    path = Path(tables)
    if path.suffix.lower() == ".csv":
        return of_csv(path)
    return of_lines(read_text(path).removesuffix("\n").split("\n"), str(path))  # splitlines() splits at U+2028 too


def standard_input() -> Iterator[str]:
    """Its lines, as they come. Raises InputError for bytes that are not UTF-8."""
    for number, line in enumerate(sys.stdin.buffer, start=1):
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"standard input, line {number}: not UTF-8 ({error.reason}): convert it") from None


def of_lines(lines, name: str) -> Iterator[Request]:
    for number, line in enumerate(lines, start=1):
        text = re.match(r"\s*(<\|.*?\|>)?((?!\|\|).)*", line.rstrip("\r\n"))[0]
        if not text.strip():
            raise InputError(f"{name}, line {number}: no request; write one on each line")
        yield Request(text.strip(), f"{name}, line {number}")


def of_csv(path: Path) -> Iterator[Request]:
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""), strict=True)
    try:
        if (reader.fieldnames or []).count("mr") != 1:
            raise InputError(f"{path}, line 1: there must be one column mr; name the column of the tables so")
        for row in reader:
            if not (row["mr"] or "").strip():
                raise InputError(f"{path}, line {reader.line_num}: the column mr is empty")
            yield Request(row["mr"].strip(), f"{path}, line {reader.line_num}")
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: not CSV ({error}): close each quote") from None
