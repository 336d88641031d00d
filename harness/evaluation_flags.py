"""The flags of evaluate.py, and which of them can be given together."""

import argparse
from pathlib import Path

from harness.comparison import check_comparison
from harness.files import InputError
from harness.settings import SEARCH, add_flags

TABLE_HINT = "name some fields, e.g. 'name : Blue Spice | area : riverside'"

MODEL_AND_SEARCH = (*SEARCH, "decode_dtype", "model", "weights")  # in place of a run's or a shelf's own
WITH_DATA = (*MODEL_AND_SEARCH, "data")  # where a test set is decoded
MACHINE = ("device", "plain")
# What can be asked for, and the flags that have an effect on it.
USES = {
    ("run",): ("split", "batch_size", *WITH_DATA, *MACHINE),
    ("run", "table"): (*MODEL_AND_SEARCH, *MACHINE),
    ("run", "tables"): ("out", "batch_size", *MODEL_AND_SEARCH, *MACHINE),
    ("shelf",): (),
    ("shelf", "text"): (*MODEL_AND_SEARCH, *MACHINE),
    ("shelf", "tables"): ("out", "batch_size", *MODEL_AND_SEARCH, *MACHINE),
    ("hyp", "ref"): ("src", "segments", "scores", "bootstrap"),
}


def parse_flags(argv: list[str] | None = None) -> tuple[tuple[str, ...], dict]:
    """What is asked for, one of USES, and the flags that were given. Raises InputError for flags that do not fit."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        description="Decode and score a run, ask a run or a shelf of tasks, or score outputs against references.",
    )
    run = parser.add_argument_group("decode a run and score it")
    run.add_argument("--run", help="a folder that train.py wrote, or an adapter of PEFT's")
    run.add_argument("--table", help="answer this request only: 'name : Blue Spice | area : riverside'")
    run.add_argument("--split", choices=("test", "valid"), help="what to decode (default: test)")
    run.add_argument("--batch_size", type=int, help="requests decoded at a time (default: 64)")
    add_flags(run, WITH_DATA, default="the run's own; with --shelf its model, and train.py's defaults")
    add_flags(run, MACHINE)
    shelf = parser.add_argument_group("ask a shelf of tasks (or a run)")
    shelf.add_argument("--shelf", help="a folder that train.py --task wrote; alone: list its tasks")
    shelf.add_argument("--text", help="one request: '<|e2e|> name : Blue Spice | area : riverside'")
    shelf.add_argument("--tables", help="a file of requests, one a line, or CSV with a column mr; -: standard input")
    shelf.add_argument("--out", help="where the texts go, one a line; -: standard output")
    score = parser.add_argument_group("score outputs")
    score.add_argument("--hyp", type=Path, action="append", help="outputs: one a line, or CSV or TSV; twice: compare")
    score.add_argument("--ref", type=Path, help="references: blocks between blank lines, source||target, CSV or TSV")
    score.add_argument("--src", type=Path, help="the sources, one a line: checks that outputs and references match")
    score.add_argument("--segments", type=Path, help="write each output's own scores to this TSV file")
    score.add_argument("--scores", type=Path, help="where the scores go (default: scores.json beside the outputs)")
    score.add_argument("--bootstrap", type=int, help="resamples for intervals (default: none; of a comparison: 1000)")
    given = vars(parser.parse_args(argv))
    return check_flags(given), given


def check_flags(given: dict) -> tuple[str, ...]:
    """Which of USES is asked for. Raises InputError when it is none, or for a flag without effect on it."""
    asked = tuple(name for name in ("run", "shelf", "table", "text", "tables", "hyp", "ref") if name in given)
    if asked not in USES:
        raise InputError(
            "give --run FOLDER and how to decode it, --shelf FOLDER and what to ask, or --hyp FILE and --ref FILE"
        )
    if "tables" in given and "out" not in given:
        raise InputError("--tables needs --out FILE, or --out - for standard output")
    for name in given:
        if name not in (*asked, *USES[asked]):
            raise InputError(f"--{name} has no effect with {' and '.join(f'--{a}' for a in asked)}: leave it out")
    for name in ("table", "text"):
        if not given.get(name, name).strip():
            raise InputError(f"--{name} is empty: {TABLE_HINT}")
    if given.get("batch_size", 1) < 1:
        raise InputError(f"--batch_size {given['batch_size']}: must be at least 1")
    check_comparison(given)
    return asked
