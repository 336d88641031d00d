"""The poster's experiment in one command: the grid's runs, one after another, and the report.

    python experiments/reproduce.py --model mini --data FOLDER
    python experiments/reproduce.py                                         GPT-2 small, the poster's own rows
    python experiments/reproduce.py --dry_run                               list the runs and the estimated time
    python experiments/reproduce.py --only "prefix*" finetune --epochs 1    some of the runs, shortened

A model with a grid of its own (smollm2) runs only that. A run is `train.train` followed by `evaluate.evaluate_run`,
with the settings of grid.py. A run with a row in results/MODEL/runs.csv is skipped. A run that was stopped, in training
or after it, continues where it stopped. A run that fails is reported, and the others continue. GPT-2's published sizes
use the paper's learning rates, or those of results/MODEL/search.csv if that file exists; for any other model the rates
are searched first (search.py).
"""

import argparse
import gc
import sys
import time
import traceback
from fnmatch import fnmatchcase
from pathlib import Path

if __name__ == "__main__":  # so that this project's modules are found
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from evaluate import evaluate_run
from experiments.estimate import costs_of, from_rows, seconds
from experiments.grid import PUBLISHED_RATES, SEEDS, Run, check_families, plan
from experiments.record import data_label, is_recorded, read_runs, record
from experiments.report import write_report
from experiments.search import STEPS, add_common_flags, read_common_flags, read_rates, search
from experiments.zero_shot import zero_shot
from harness.door import prepare_process
from harness.files import InputError, exit_on_input_error
from harness.loop import hours
from train import train
from weights import OPENAI_SIZES


def choose(runs: list[Run], patterns: list[str]) -> list[Run]:
    """The runs whose name or cell matches one of the patterns."""
    chosen = [run for run in runs if any(fnmatchcase(name, p) for p in patterns for name in (run.name, run.cell.name))]
    if not chosen:
        cells = ", ".join(dict.fromkeys(run.cell.name for run in runs))
        raise InputError(f"--only {' '.join(patterns)} matches no run: the cells are {cells}")
    return chosen


def run_one(run: Run, results: Path, names: list[str]) -> None:
    """Train, evaluate and record, skipping what is already done."""
    s, folder = run.settings, Path(run.settings.out)
    if run.cell.rate is not None:
        train(s, resume=True, check_test_data=True)
    if not (folder / "evaluation.json").exists():
        if run.cell.rate is None:
            zero_shot(s, run.cell.prompt)
        else:
            evaluate_run(folder, device=s.device)
    row = record(results, run, names)
    bleu, said = (100 * float(row[name]) for name in ("BLEU", "values_said"))
    print(f"{run.name}: BLEU {bleu:.1f}, {said:.0f} % of the tables' values said", flush=True)


def run_all(runs: list[Run], results: Path, names: list[str]) -> dict[str, str]:
    """Run all that are not recorded yet; returns the failures: run -> reason."""
    failed, waiting, costs = {}, [], {}
    for run in runs:
        try:
            if not is_recorded(results, run):
                waiting.append(run)
        except InputError as error:
            failed[run.name] = str(error)
    print(f"{len(runs)} runs: {len(runs) - len(waiting) - len(failed)} are done, {len(waiting)} to go")
    if waiting:
        results.mkdir(parents=True, exist_ok=True)  # before training: it may not be possible
        costs = costs_of(waiting, read_runs(results))
        print(f"estimated time: {hours(sum(seconds(run, costs) for run in waiting))}", flush=True)
    began = time.monotonic()
    for place, run in enumerate(waiting, start=1):
        print(f"\n== {place} of {len(waiting)}: {run.name}", flush=True)
        try:
            run_one(run, results, names)
        except InputError as error:
            failed[run.name] = str(error)
        except Exception as error:  # whatever it is, the other runs do not depend on this one
            traceback.print_exc()
            failed[run.name] = f"{type(error).__name__}: {error}".splitlines()[0]
        if run.name in failed:
            print(f"{run.name} failed: {failed[run.name]}", file=sys.stderr, flush=True)
        gc.collect()  # free this run's model before the next is loaded
        costs |= from_rows(read_runs(results), run.settings)
        left = sum(seconds(other, costs) for other in waiting[place:])
        print(f"{place} of {len(waiting)} in {hours(time.monotonic() - began)}, about {hours(left)} left", flush=True)
    return failed


def rates_for(
    base: dict, results: Path, folder: Path, families: set[str], dry_run: bool, search_steps: int = STEPS
) -> dict[str, float]:
    """These families' learning rates: an earlier search's, else the papers' for GPT-2's published sizes, else searched.

    The result has the others' too, published or found.
    """
    rates = read_rates(results, data_label(base.get("data")))
    published = base.get("model", "gpt2") in OPENAI_SIZES
    if published and not rates:
        print("learning rates: the papers'")
        return PUBLISHED_RATES
    if dry_run and families - rates.keys():
        print("learning rates: to be searched first; the estimate does not include the search")
        return PUBLISHED_RATES | rates
    if not published:
        needed = [name for name in PUBLISHED_RATES if name in families]
        rates = search(results, folder / "search", base, search_steps, needed)
    check_families(rates, families, str(results / "search.csv"))
    chosen = ", ".join(f"{family} {rate:g}" for family, rate in rates.items())
    print(f"learning rates, chosen on the validation set: {chosen}")
    return PUBLISHED_RATES | rates


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(allow_abbrev=False, description="Run the poster's experiment and report on it.")
    add_common_flags(parser)
    parser.add_argument(
        "--only", nargs="+", metavar="PATTERN", help="names of runs or cells, wildcards * and ?: 'prefix*' finetune"
    )
    seeds_help = f"of the repeated cells; the others use the first (default: {' '.join(map(str, SEEDS))})"
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS), help=seeds_help)
    parser.add_argument("--dry_run", action="store_true", help="list the runs and the estimated time only")
    return parser.parse_args(argv)


@exit_on_input_error
def main(argv: list[str] | None = None) -> None:
    """The command line."""
    given = parse_args(argv)
    base, results, folder = read_common_flags(given)
    prepare_process(plain=False)
    try:
        seeds = tuple(dict.fromkeys(given.seeds))
        everything = plan(base, PUBLISHED_RATES, str(folder), seeds)
        names = [run.name for run in everything]
        chosen = {run.name for run in (choose(everything, given.only) if given.only else everything)}
        families = {family for run in everything if run.name in chosen for family in run.cell.families}
        rates = rates_for(base, results, folder, families, given.dry_run, given.search_steps)
        runs = [run for run in plan(base, rates, str(folder), seeds) if run.name in chosen]
        if given.dry_run:
            show(runs, results)
            return
        failed = run_all(runs, results, names)
        if read_runs(results):
            write_report(results)
    except KeyboardInterrupt:
        print("\nstopped; the same command continues", file=sys.stderr)
        sys.exit(130)
    for name, reason in failed.items():
        print(f"failed: {name}: {reason}", file=sys.stderr)
    if failed:
        sys.exit(1)


def show(runs: list[Run], results: Path) -> None:
    """List the runs and the estimated time."""
    rows = read_runs(results)
    for run in runs:
        rate = f"lr {run.settings.lr:g}" if run.cell.rate else ""
        print(f"{run.name:<26}{run.steps:>7} steps  {rate:<10}{'done' if run.name in rows else '':<6}{run.cell.label}")
    waiting = [run for run in runs if run.name not in rows]
    costs = costs_of(waiting, rows)
    print(f"{len(waiting)} runs to go, estimated time: {hours(sum(seconds(run, costs) for run in waiting))}")


if __name__ == "__main__":
    main()
