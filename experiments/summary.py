"""The runs of results/MODEL/runs.csv, gathered by cell: means and spreads over the seeds.

mean = sum_i x_i / n        spread = sqrt(sum_i (x_i - mean)^2 / (n - 1)), the sample standard deviation, for n > 1
"""

import statistics
from dataclasses import dataclass
from pathlib import Path

from experiments.grid import grid
from experiments.record import SETTINGS, read_runs
from harness.files import InputError


@dataclass
class Summary:
    """A cell's runs in one: means, spreads (sample standard deviations; none of a single run), the first run's row."""

    label: str
    rows: list[dict[str, str]]

    @property
    def first(self) -> dict[str, str]:
        """The first seed's row."""
        return self.rows[0]

    def values(self, column: str) -> list[float]:
        """A column's numbers; [] where a run has none."""
        cells = [row[column] for row in self.rows]
        return [float(cell) for cell in cells] if all(cells) else []

    def mean(self, column: str) -> float | None:
        """Over the seeds."""
        return statistics.fmean(self.values(column)) if self.values(column) else None

    def spread(self, column: str) -> float | None:
        """Over the seeds, if there are several."""
        return statistics.stdev(self.values(column)) if len(self.values(column)) > 1 else None


def summarise(results: Path) -> dict[str, Summary]:
    """cell -> its runs, in the grid's order. Raises InputError if a cell's runs differ in more than the seed."""
    rows = read_runs(results)
    if not rows:
        raise InputError(f"{results / 'runs.csv'} holds no run: run python experiments/reproduce.py first")
    labels = {cell.name: cell.label for cell in grid(0)}  # (the number of words is in the rows)
    cells = {name: [row for row in rows.values() if row["cell"] == name] for name in labels}
    for own in cells.values():
        for row in own[1:]:
            if differ := [name for name in SETTINGS if name != "seed" and row[name] != own[0][name]]:
                raise InputError(
                    f"{results / 'runs.csv'}: {row['run']} and {own[0]['run']} differ in"
                    f" {', '.join(differ)}: run one again"
                )
    return {name: Summary(labels[name], own) for name, own in cells.items() if own}


def relative_time(cell: Summary, cells: dict[str, Summary]) -> float | None:
    """Seconds per step over fine-tuning's; None if machine class or batch size differ."""
    tuned = cells.get("finetune")
    if tuned is None or not int(cell.first["steps"]):
        return None
    if (
        len(
            {
                tuple(row[name] for name in ("machine", "dtype", "torch", "batch_size"))
                for row in (*cell.rows, *tuned.rows)
            }
        )
        > 1
    ):
        return None
    per_step = [c.mean("training_seconds") / int(c.first["steps"]) for c in (cell, tuned)]
    return per_step[0] / per_step[1] if per_step[1] else None
