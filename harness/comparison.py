"""Files of scores: confidence intervals, the scores of each output, a comparison of two files of outputs.

evaluate.py --hyp A --ref REF --segments FILE     a table with a line for each output
evaluate.py --hyp A --ref REF --bootstrap 1000    scores.json gets a key "bootstrap" (metrics/bootstrap.py)
evaluate.py --hyp A --hyp B --ref REF             comparison.json beside B; A is the baseline
"""

import json
from pathlib import Path

import metrics
from harness.files import InputError, read_text, write_atomic
from harness.report import print_table, published_for, scaled
from harness.runs import check_outputs, to_json, write_json
from metrics import read
from metrics.bootstrap import RESAMPLES, SEED, Estimate, compare, intervals

LEGEND = "score (mean ± half width of the 95 % interval)"
MAX_RESAMPLES = 100_000  # memory grows with their number


def check_comparison(given: dict) -> None:
    """Raise InputError for flags of evaluate.py that ask for no possible comparison."""
    outputs, resamples = len(given.get("hyp", ())), given.get("bootstrap", RESAMPLES)
    if not 1 <= resamples <= MAX_RESAMPLES:
        raise InputError(f"--bootstrap {resamples}: must be from 1 to {MAX_RESAMPLES}")
    if outputs > 2:
        raise InputError(f"--hyp is given {outputs} times: give one file, or a baseline and one to compare")
    if outputs == 2 and "segments" in given:
        raise InputError("--segments has no effect with two --hyp: leave it out")


# ----------------------------------------------------------------------------- one output


def add_intervals(scores: dict, data: read.Scorable, resamples: int) -> None:
    """Print each score with its interval, and put the intervals into the scores as "bootstrap"."""
    estimates = intervals(data.hypotheses, data.references, resamples)
    print(f"\n{describe_resamples(data, resamples)}: {LEGEND}")
    for key, estimate in estimates.items():
        print(f"{key:<11}{spelled(key, estimate)}")
    found = {key: estimate.interval._asdict() for key, estimate in estimates.items()}
    scores["bootstrap"] = {"resamples": resamples, "seed": SEED, "confidence": 0.95, **found}


def describe_resamples(data: read.Scorable, resamples: int) -> str:
    return f"bootstrap, {resamples:,} resamples of {len(data.hypotheses):,} outputs, seed {SEED}"


def spelled(key: str, estimate: Estimate) -> str:
    """`52.01 (52.03 ± 1.23)`, on the scale of the printed table."""
    score, mean, half_width = (scaled(key, value) for value in (estimate.score, *estimate.interval))
    return f"{score:.2f} ({mean:.2f} ± {half_width:.2f})"


# ----------------------------------------------------------------------------- two outputs


def compare_files(
    baseline: Path,
    system: Path,
    ref: Path,
    src: Path | None = None,
    scores: Path | None = None,
    bootstrap: int = RESAMPLES,
) -> dict:
    """Score two files of outputs against the same references, and test whether they differ.

    bootstrap   the number of resamples
    Prints both, and writes the numbers to `scores` (default: comparison.json beside the system's outputs) unless that
    file holds others; returns them. Raises InputError for files that do not belong together.
    """
    scores = scores or system.parent / "comparison.json"
    check_outputs({"scores": scores}, inputs=(baseline, system, ref, src))
    data = [read.load(path, ref, src) for path in (baseline, system)]
    if data[0].references != data[1].references:
        raise InputError(
            f"{baseline} and {system} have outputs for other sources, or in another order: give both the same sources"
        )
    numbers = compare_data(*data, bootstrap)
    content = {"baseline": str(baseline), "system": str(system), "references": str(ref)} | numbers
    short = [str(path) if baseline.name == system.name else path.name for path in (baseline, system)]
    print_comparison(content, f"{short[0]} (baseline)", short[1], data[0])
    if scores.exists() and read_text(scores) != to_json(content):
        raise InputError(f"{scores} holds another comparison and is left as it is: name another file with --scores")
    write_json(scores, content)
    return content


def compare_data(baseline: read.Scorable, system: read.Scorable, resamples: int) -> dict:
    """The numbers of a comparison, as they are written."""
    references = baseline.references
    details = [
        metrics.score(each.hypotheses, references, names=("BLEU",), details=True)[metrics.DETAILS]
        for each in (baseline, system)
    ]
    rows = compare(baseline.hypotheses, system.hypotheses, references, resamples)
    return {
        "signature": metrics.signature(references=references),
        "resamples": resamples,
        "seed": SEED,
        "confidence": 0.95,
        metrics.DETAILS: dict(zip(("baseline", "system"), details)),
        "scores": {
            key: {
                "baseline": as_dict(row.baseline),
                "system": as_dict(row.system),
                "difference": row.difference,
                "p_value": row.p_value,
            }
            for key, row in rows.items()
        },
    }


def as_dict(estimate: Estimate) -> dict[str, float]:
    return {"score": estimate.score} | estimate.interval._asdict()


def print_comparison(content: dict, baseline: str, system: str, data: read.Scorable) -> None:
    """The table of both, then a line for each score. baseline, system: their names; data: the baseline's."""
    rows = {}
    for name, which in ((baseline, "baseline"), (system, "system")):
        rows[name] = {key: row[which]["score"] for key, row in content["scores"].items()}
        rows[name][metrics.DETAILS] = content[metrics.DETAILS][which]
    print_table(rows, content["references"], published_for(data.references), content["signature"])
    print(f"\npaired {describe_resamples(data, content['resamples'])}: mean ± half width of the 95 % interval")
    print(f"{'':<11}{'baseline':>16}{'system':>16}{'difference':>12}{'p':>9}")
    for key, row in content["scores"].items():
        cells = [
            f"{scaled(key, row[which]['mean']):.2f} ± {scaled(key, row[which]['half_width']):.2f}"
            for which in ("baseline", "system")
        ]
        print(f"{key:<11}{cells[0]:>16}{cells[1]:>16}{scaled(key, row['difference']):>+12.2f}{row['p_value']:>9.4f}")


# ----------------------------------------------------------------------------- files


def write_scores(path: Path, scores: dict) -> None:
    """Write scores, unless the file holds others. What stands beside them, as "bootstrap", is added or renewed."""
    held = {}
    if path.exists():
        try:
            held = json.loads(read_text(path))
            same = numbers_of(held) == numbers_of(scores)
        except (ValueError, AttributeError, RecursionError):  # no JSON, or no dict
            same = False
        if not same:
            raise InputError(f"{path} holds other scores and is left as it is: name another file with --scores")
    write_json(path, scores | {key: value for key, value in held.items() if key not in scores})


def write_segments(path: Path, rows: list[dict], data: read.Scorable) -> None:
    """Write a TSV file with a line for each output: its scores, source and text."""
    columns = list(rows[0])
    with write_atomic(path) as file:
        file.write("\t".join(["segment", *columns, "source", "output"]) + "\n")
        for number, (row, *texts) in enumerate(zip(rows, data.sources, data.hypotheses), start=1):
            cells = [repr(float(row[column])) for column in columns]
            cells += [" ".join(text.split()) for text in texts]  # no tab or line break inside a cell
            file.write("\t".join([str(number), *cells]) + "\n")


def numbers_of(scores: dict) -> dict[str, float]:
    return {key: value for key, value in scores.items() if not isinstance(value, dict)}
