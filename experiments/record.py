"""Add a finished run to results/MODEL. The report is made from these files alone:

    runs.csv             one row per run: settings, scores, sizes, times, machine, revision
    outputs/NAME.txt     the generated texts, a line for each distinct test table
    curves/NAME.csv      step, loss (training), valid_loss, both in nats per token
    samples/NAME.csv     the best and the worst texts with their tables and slot errors

The row is written last, so a run that has a row is complete. BLEU, METEOR and ROUGE-L are on the reference scorer's
scale, 0 to 1. A cell is empty if it does not apply to the run or its score could not be computed.
"""

import csv
import io
import json
import subprocess
from functools import lru_cache
from pathlib import Path

import metrics
from e2e_data import SHA256, group_references, load_split
from experiments.grid import Run
from experiments.slots import SlotChecker, shares
from harness.files import InputError, lock_folder, read_text, sha256_of, write_atomic
from harness.settings import SEARCH

ROOT = Path(__file__).resolve().parents[1]
E2E = "E2E, the paper's files"
SAMPLES = 3  # of the best texts, and as many of the worst
# The columns that identify a run: if one of them differs, it is another run.
SETTINGS = (
    "cell", "seed", "model", "weights", "data", "mode", "prefix_len", "mid_dim", "no_reparam", "init_text", "prompt",
    "lora_on", "lora_rank", "lora_alpha", "lora_dropout", "lora_lr", "adapter_dim", "adapter_scale", "train_examples",
    "valid_examples", "lr", "steps", "batch_size", "warmup_steps", "weight_decay", "label_smoothing", "clip", "dropout",
    "loss", "keep", "beam_size", "length_norm", "max_new_tokens",
)  # fmt: skip
SCORES = (*metrics.CORPUS_KEYS, "values_said", "values_invented")  # share of the tables' values; values per table
SIZES = ("parameters_model", "parameters_trained", "parameters_stored", "bytes_on_disk")
COSTS = (
    "training_examples", "training_seconds", "examples_per_s", "validations", "validation_seconds", "tables",
    "decoding_seconds",
)  # fmt: skip
COLUMNS = (
    "run", *SETTINGS, *SCORES, *SIZES, *COSTS, "valid_loss", "best_valid_loss", "machine", "dtype",
    "decode_dtype", "torch", "signature", "revision",
)  # fmt: skip
SAMPLE_COLUMNS = ("which", "score", "value", "table", "output", "reference", "omitted", "invented")


# ----------------------------------------------------------------------------- CSV files


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file with a header; none if the file does not exist."""
    return list(csv.DictReader(io.StringIO(read_text(path)))) if path.exists() else []


def write_rows(path: Path, columns: tuple[str, ...], rows: list[dict]) -> None:
    """Write a CSV file atomically."""
    with write_atomic(path) as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read_runs(results: Path) -> dict[str, dict[str, str]]:
    """runs.csv, by run. Raises InputError if its columns are not those of this program."""
    rows = read_rows(results / "runs.csv")
    if any(list(row) != list(COLUMNS) or None in row.values() for row in rows):
        raise InputError(f"{results / 'runs.csv'} does not have the columns that this program writes: move it away")
    return {row["run"]: row for row in rows}


def number(value: float | None, digits: int) -> str:
    """A number with this many decimals; "" for None."""
    return "" if value is None else f"{value:.{digits}f}"


# ----------------------------------------------------------------------------- what a run is


@lru_cache
def data_label(folder: str | None) -> str:
    """ "E2E, the paper's files" if the checksums are theirs, wherever the folder is; otherwise the folder's name."""
    if folder is None or all(
        (Path(folder) / name).exists() and sha256_of(Path(folder) / name) == sha for name, sha in SHA256.items()
    ):
        return E2E
    return Path(folder).resolve().name


def identity(run: Run) -> dict[str, str]:
    """The columns SETTINGS of a run; a setting that does not apply to it is empty."""
    s, trained = run.settings, run.cell.rate is not None
    row = {name: getattr(s, name, None) for name in SETTINGS}
    row |= {"cell": run.cell.name, "steps": run.steps, "prompt": run.cell.prompt, "no_reparam": s.no_reparam or None}
    row["label_smoothing"] = s.label_smoothing or None
    row |= {"model": Path(s.model).name, "weights": s.weights and Path(s.weights).name, "data": data_label(s.data)}
    if not trained:
        row |= {"mode": "zero-shot", "seed": None}
        optimisation = ("lr", "batch_size", "warmup_steps", "weight_decay", "clip", "dropout", "loss", "keep")
        row |= dict.fromkeys(("valid_examples", *optimisation))
    if not s.has_prefix or s.no_reparam:
        row["mid_dim"] = None
    return {name: cell_text(value) for name, value in row.items()}


def cell_text(value) -> str:
    """A setting as runs.csv writes it."""
    if value is None:
        return ""
    return f"{value:g}" if isinstance(value, float) else "yes" if value is True else str(value)


def is_recorded(results: Path, run: Run) -> bool:
    """Does the run have a row? Raises InputError if that row has other settings."""
    row = read_runs(results).get(run.name)
    if row is None:
        return False
    own = identity(run)
    if differ := [f"{name} {row[name] or 'none'}, not {own[name] or 'none'}" for name in own if row[name] != own[name]]:
        raise InputError(
            f"{results / 'runs.csv'} has {run.name} with {', '.join(differ)}: choose another --out and --runs,"
            " or delete its row and its folder"
        )
    return True


# ----------------------------------------------------------------------------- recording


def record(results: Path, run: Run, names: list[str]) -> dict[str, str]:
    """Add a finished and evaluated run to the results; returns its row. names: all runs, in the order of the rows."""
    folder = Path(run.settings.out)
    summary, scores, evaluation = (
        json.loads(read_text(folder / f"{name}.json")) for name in ("summary", "scores", "evaluation")
    )
    if others := [name for name in SEARCH if evaluation[name] != getattr(run.settings, name)]:
        raise InputError(
            f"{folder} was decoded with other {', '.join(others)}: delete the folder, or choose another --runs"
        )
    groups = group_references(load_split(run.settings.data, "test"))
    text = (folder / "outputs.txt").read_text(encoding="utf-8")
    outputs = text.split("\n")[:-1]
    if len(outputs) != len(groups):
        counts = f"{len(outputs)} lines for {len(groups)} tables"
        raise InputError(f"{folder / 'outputs.txt'} has {counts}: delete the folder's evaluation.json")
    checked = [checker(run.settings.data).check(source, output) for source, output in zip(groups, outputs)]
    with write_atomic(results / "outputs" / f"{run.name}.txt") as file:
        file.write(text)
    validations = write_curve(results / "curves" / f"{run.name}.csv", folder)
    write_rows(results / "samples" / f"{run.name}.csv", SAMPLE_COLUMNS, pick_samples(groups, outputs, checked))

    said, invented = shares(checked)
    machine = summary["machine"]
    row = {"run": run.name} | identity(run)
    row |= {name: number(summary.get(name), 6) for name in ("valid_loss", "best_valid_loss")}
    row |= {name: number(scores.get(name), 6) for name in metrics.CORPUS_KEYS}
    row |= {"values_said": number(said, 6), "values_invented": number(invented, 6)}
    sizes = {"model": summary["parameters"].get("gpt2")} | summary["parameters"]  # so named before revision 7001dc1
    row |= {f"parameters_{name}": sizes[name] for name in ("model", "trained", "stored")}
    copied = ("bytes_on_disk", "training_examples", "training_seconds", "validation_seconds")
    row |= {name: summary[name] for name in copied}
    row |= {"examples_per_s": summary.get("examples_per_s", ""), "validations": validations}
    row |= {name: evaluation[name] for name in ("tables", "decoding_seconds")}
    row |= {"signature": metrics.without_nrefs(evaluation["signature"])}  # a test set is named by the column data
    row |= {"machine": machine_class(machine), "dtype": machine["dtype"], "torch": machine["torch"]}
    row |= {"decode_dtype": evaluation["machine"]["dtype"]}
    row |= {"revision": revision()}
    row = {name: str(value) for name, value in row.items()}
    add_row(results, row, names)
    return row


def add_row(results: Path, row: dict[str, str], names: list[str]) -> None:
    """Put a run's row into runs.csv, in the order of `names`. Safe while another process does the same."""
    with lock_folder(results):
        rows = read_runs(results) | {row["run"]: row}
        order = [*names, *(name for name in rows if name not in names)]
        write_rows(results / "runs.csv", COLUMNS, [rows[name] for name in order if name in rows])


@lru_cache
def checker(data: str | None) -> SlotChecker:
    """A slot checker with the values of all tables of the data."""
    return SlotChecker({example.source for split in ("train", "valid", "test") for example in load_split(data, split)})


def write_curve(path: Path, folder: Path) -> int:
    """Join log.csv and valid.csv by step; returns the number of validations. A run without training has no curve."""
    logged, validated = read_rows(folder / "log.csv"), read_rows(folder / "valid.csv")
    steps: dict[int, dict] = {}
    for row in logged:
        steps.setdefault(int(row["step"]), {})["loss"] = row["loss"]
    for row in validated:
        steps.setdefault(int(row["step"]), {})["valid_loss"] = row["valid_loss"]
    if steps:
        write_rows(path, ("step", "loss", "valid_loss"), [{"step": step} | steps[step] for step in sorted(steps)])
    return len(validated)


def pick_samples(groups: dict[str, list[str]], outputs: list[str], checked: list) -> list[dict]:
    """The best and the worst outputs by sentence METEOR, or by ROUGE-L if METEOR's tables are missing."""
    segments = metrics.score(outputs, list(groups.values()), per_segment=True)["segments"]
    score = "METEOR" if "METEOR" in segments[0] else "ROUGE_L"
    order = sorted(range(len(outputs)), key=lambda i: -segments[i][score])
    sources, rows = list(groups), []
    best = order[:SAMPLES]
    for which, chosen in (("best", best), ("worst", [i for i in order[::-1] if i not in best][:SAMPLES])):
        rows += [{
            "which": which, "score": score, "value": number(segments[i][score], 4),
            "table": sources[i], "output": outputs[i], "reference": groups[sources[i]][0],
            "omitted": "; ".join(checked[i].omitted), "invented": "; ".join(checked[i].invented),
        } for i in chosen]  # fmt: skip
    return rows


def machine_class(machine: dict[str, str]) -> str:
    """ "NVIDIA H200", or "CPU, 2 threads". Timings are compared within a class only."""
    if machine["device"] != "cpu":
        return machine["processor"]
    threads = machine["processor"].rsplit(", ", 1)[-1]
    return "CPU, 1 thread" if threads == "1 threads" else f"CPU, {threads}"


def revision() -> str:
    """The commit of this code, with "-changed" if a Python file differs from it; "unknown" outside a repository."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "-uno", "--", "*.py")
        return git("rev-parse", "--short=10", "HEAD") + ("-changed" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
