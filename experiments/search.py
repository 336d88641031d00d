"""The learning rates, one per family of cells, chosen on the validation set.

    python experiments/search.py --model mini --data FOLDER

The paper's rates are for GPT-2 small and larger; a smaller model needs higher rates. One cell represents each family.
It is trained for part of its steps with neighbouring rates of a ladder, each about 3 times the one below. The search
begins with the rate nearest to train.py's default for the model and its two neighbours, and moves on while the best
rate is the lowest or the highest tried. The best rate has the lowest validation loss (nats per token; that of the best
weights if the run keeps those). The test set is not used.

Writes results/MODEL/search.csv, a row for each rate tried; a family's rows are added when its search is done. Fewer
steps favour higher rates slightly: the choice holds for the number of steps that the file states.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path

if __name__ == "__main__":  # so that this project's modules are found
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from experiments.grid import PUBLISHED_RATES, Run, plan
from experiments.record import data_label, number, read_rows, write_rows
from harness.door import prepare_process
from harness.files import InputError, exit_on_input_error, lock_folder, read_text
from harness.settings import add_flags
from train import train

ROOT = Path(__file__).resolve().parents[1]
LADDER = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
REPRESENTATIVE = {
    "prefix": "prefix5", "infix": "infix10", "embedding": "embedding10", "direct": "prefix5-direct",
    "finetune": "finetune", "low-prefix": "low100-prefix", "low-finetune": "low100-finetune", "lora": "lora4",
    "adapter": "adapter64", "prefix-lora": "prefix20-lora16-wide", "prefix-adapter": "prefix20-adapter64",
}  # fmt: skip
STEPS = 1000
COLUMNS = ("family", "cell", "data", "lr", "steps", "batch_size", "valid_loss", "chosen")
BASE_FLAGS = (
    "model", "weights", "data", "valid_examples", "epochs", "max_steps", "max_new_tokens", "decode_dtype", "device",
    "dtype",
)  # fmt: skip


def search(
    results: Path, folder: Path, base: dict, max_steps: int = STEPS, families: Iterable[str] = PUBLISHED_RATES
) -> dict[str, float]:
    """Find the rate of each of these families that is not in search.csv yet; returns all rates that are.

    results    folder of search.csv
    folder     parent of the runs' folders
    base       as in grid.plan
    A stopped search continues.
    """
    full = max(run.steps for run in plan(base, PUBLISHED_RATES, str(folder)) if run.settings.train_examples is None)
    steps, data = min(max_steps, full), data_label(base.get("data"))
    results.mkdir(parents=True, exist_ok=True)  # before training: it may not be possible
    planned = plan(base | {"max_steps": steps}, PUBLISHED_RATES, str(folder))
    runs = {}
    for run in planned:
        runs.setdefault(run.cell.name, run)  # the first seed's
    for family in families:
        own = [run for run in runs.values() if run.cell.rate == family]  # empty if the model's grid has no such cell
        if own and family not in read_rates(results, data):
            run = next((run for run in own if run.cell.name == REPRESENTATIVE[family]), own[0])
            losses = climb(partial(try_rate, run), nearest(default_rate(run)))
            best = min(losses, key=losses.get)
            rows = [{
                "family": family, "cell": run.cell.name, "data": data, "lr": f"{lr:g}", "steps": run.steps,
                "batch_size": run.settings.batch_size, "valid_loss": number(losses[lr], 6),
                "chosen": "yes" if lr == best else "",
            } for lr in sorted(losses)]  # fmt: skip
            with lock_folder(results):
                write_rows(results / "search.csv", COLUMNS, read_rows(results / "search.csv") + rows)
            print(f"{family}: lr {best:g}, of {', '.join(row['lr'] for row in rows)}", flush=True)
    return read_rates(results, data)


def default_rate(run: Run) -> float:
    """train.py's default for the run's model and mode."""
    return replace(run.settings, lr=None).resolve().lr


def nearest(lr: float) -> int:
    """The index of the ladder's rate nearest to lr by ratio. Not an end: a start needs two neighbours."""
    return min(range(1, len(LADDER) - 1), key=lambda i: abs(math.log(LADDER[i] / lr)))


def climb(loss_of: Callable[[float], float], start: int) -> dict[float, float]:
    """Try a rate and its neighbours, then beyond the end that has the best: rate -> loss (inf: diverged)."""
    low, high = start - 1, start + 1
    losses = {LADDER[i]: loss_of(LADDER[i]) for i in range(low, high + 1)}
    while True:
        best = LADDER.index(min(losses, key=losses.get))
        if best == low and low > 0:
            low -= 1
            losses[LADDER[low]] = loss_of(LADDER[low])
        elif best == high and high < len(LADDER) - 1:
            high += 1
            losses[LADDER[high]] = loss_of(LADDER[high])
        else:
            return losses


def try_rate(run: Run, lr: float) -> float:
    """The validation loss at the end of a run with this learning rate; infinite if it diverges."""
    print(f"\n== search: {run.cell.name}, lr {lr:g}, {run.steps} steps", flush=True)
    folder = Path(f"{run.settings.out}-{run.steps}steps-lr{lr:g}")
    try:
        # Without --keep best the last loss counts, and no other is needed.
        valid_every = run.settings.valid_every if run.settings.keep == "best" else run.steps
        train(replace(run.settings, lr=lr, out=str(folder), valid_every=valid_every), resume=True)
    except InputError as error:
        if "lower --lr" not in str(error):
            raise
        print(error)
        return float("inf")
    summary = json.loads(read_text(folder / "summary.json"))
    return summary["best_valid_loss" if run.settings.keep == "best" else "valid_loss"]


def read_rates(results: Path, data: str) -> dict[str, float]:
    """The rates that a search has chosen: family -> rate. Raises InputError if the search was on other data."""
    rows = read_rows(results / "search.csv")
    if others := {row.get("data") for row in rows} - {data}:
        raise InputError(f"{results / 'search.csv'} is a search on {others.pop()}, not on {data}: choose another --out")
    return {row["family"]: float(row["lr"]) for row in rows if row["chosen"]}


# ----------------------------------------------------------------------------- the command line


def add_common_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that the search and the grid share."""
    add_flags(parser, BASE_FLAGS)
    parser.add_argument(
        "--search_steps", type=int, default=STEPS, help=f"most steps of a run of the search (default: {STEPS})"
    )
    parser.add_argument("--out", type=Path, help="folder for the results (default: results/MODEL)")
    parser.add_argument("--runs", type=Path, help="parent of the runs' folders (default: runs/MODEL-grid)")


def read_common_flags(given: argparse.Namespace) -> tuple[dict, Path, Path]:
    """(train.py's flags, folder of the results, parent of the runs' folders). Raises InputError for no step."""
    if given.search_steps < 1:
        raise InputError(f"--search_steps {given.search_steps}: must be at least 1")
    base = {name: value for name, value in vars(given).items() if name in BASE_FLAGS}
    name = Path(base.get("model", "gpt2")).resolve().name
    if base.get("weights") == "random":
        name += "-random"  # keeps its results apart from those of the pretrained weights
    return base, given.out or ROOT / "results" / name, given.runs or ROOT / "runs" / f"{name}-grid"


@exit_on_input_error
def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description="Choose the grid's learning rates on the validation set."
    )
    add_common_flags(parser)
    given = parser.parse_args(argv)
    base, results, folder = read_common_flags(given)
    prepare_process(plain=False)
    try:
        search(results, folder / "search", base, given.search_steps)
    except KeyboardInterrupt:
        print("\nstopped; the same command continues", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
