"""The figures, as SVG and PNG, from the summaries and loss curves of the results.

The SVG files depend on the results only: their ids come from a fixed salt, and they contain no date. The colours are
Okabe and Ito's palette, which readers with any colour vision can tell apart; markers and line styles differ too.
Error bars show the standard deviation over seeds, if there are several; the bands around loss curves show the range.
"""

from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from experiments.grid import POSTER_LENGTHS, POSTER_MINUTES, combinations
from experiments.record import E2E, read_rows
from experiments.summary import Summary, relative_time
from harness.files import InputError

BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#767676"
PINK, SKY, BLACK = "#CC79A7", "#56B4E9", "#000000"
COLOURS = {"prefix": BLUE, "infix": ORANGE, "embedding": GREEN, "finetune": RED, "zero-shot": GREY}
STYLE = {
    "font.size": 13, "axes.labelsize": 13, "legend.fontsize": 12, "legend.frameon": False, "lines.linewidth": 2,
    "lines.markersize": 7, "axes.spines.top": False, "axes.spines.right": False, "errorbar.capsize": 4,
    "svg.hashsalt": "prefix-tuning", "figure.dpi": 150,
}  # fmt: skip
Cells = dict[str, Summary]


def draw_all(results: Path, cells: Cells) -> list[Path]:
    """Draw each figure that has its runs in the results and delete the others' files; returns the files written."""
    figures = {"length": length, "modes": modes, "loss": loss, "time": time, "low_data": low_data, "stored": stored}
    written = []
    with matplotlib.rc_context({**matplotlib.rcParamsDefault, **STYLE, "backend": "agg"}):
        for name, draw in figures.items():
            figure, path = draw(results, cells), results / "figures" / name
            svg, png = path.with_suffix(".svg"), path.with_suffix(".png")
            if figure is None:
                svg.unlink(missing_ok=True)
                png.unlink(missing_ok=True)
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(svg, metadata={"Date": None, "Creator": None})
            figure.savefig(png, metadata={"Software": None})
            written += [svg, png]
    return written


def new_figure(width: float, height: float, columns: int = 1, **options) -> tuple[Figure, list]:
    """An empty figure and its axes. Sizes are in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, list(figure.subplots(1, columns, squeeze=False, **options)[0])


def of_test_set(cells: Cells) -> str:
    """The label of an axis: "BLEU, test set (mini)"."""
    return f"BLEU, test set ({next(iter(cells.values())).first['model']})"


def bleu(cell: Summary) -> tuple[float, float]:
    """(mean, spread or 0), both times 100."""
    return 100 * cell.mean("BLEU"), 100 * (cell.spread("BLEU") or 0)


def length(results: Path, cells: Cells) -> Figure | None:
    """BLEU by prefix length: prefix, infix, embedding-only, fine-tuning as a line, and the poster's curve.

    None if there are fewer than two lengths.
    """
    figure, (axes,) = new_figure(7.5, 5.6)
    lengths = set()
    for mode, label, marker in (
        ("prefix", "prefix", "o"),
        ("infix", "infix", "s"),
        ("embedding", "embedding-only", "^"),
    ):
        points = [(P, *bleu(cells[f"{mode}{P}"])) for P in (1, 3, 5, 10, 20, 40) if f"{mode}{P}" in cells]
        if points:
            x, y, spread = zip(*points)
            lengths |= set(x)
            axes.errorbar(x, y, yerr=spread if any(spread) else None, marker=marker, color=COLOURS[mode], label=label)
    if len(lengths) < 2:
        return None
    if "finetune" in cells:
        y, spread = bleu(cells["finetune"])
        axes.axhline(y, color=COLOURS["finetune"], linestyle="--", label="fine-tune")
        axes.axhspan(y - spread, y + spread, color=COLOURS["finetune"], alpha=0.15, linewidth=0)
    if next(iter(cells.values())).first["data"] == E2E:
        x, y = zip(*POSTER_LENGTHS.items())
        lengths |= set(x)
        axes.plot(x, y, color=GREY, linestyle=":", marker="x", label="prefix, GPT-2 small (the poster)")
    ticks = sorted(lengths)
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [str(P) for P in ticks])
    axes.minorticks_off()
    axes.set_xlabel("P, positions of the prefix")
    axes.set_ylabel(of_test_set(cells))
    axes.grid(axis="y", alpha=0.3)
    figure.legend(loc="outside lower center", ncols=3)
    return figure


def stored(results: Path, cells: Cells) -> Figure | None:
    """BLEU and validation loss by the numbers that are stored, a curve for each method, fine-tuning as a line.

    None with fewer than three cells that have a LoRA or an adapter.
    """
    if sum(cell.name in cells for cell in combinations()) < 3:
        return None
    figure, panels = new_figure(10, 5.4, 2, sharex=True)
    lengths = (1, 3, 5, 10, 20, 40)
    methods = {
        "prefix": (BLUE, "o", [f"prefix{P}" for P in lengths]),
        "LoRA on q, v": (PINK, "s", ["lora4", "lora16", "lora64"]),
        "LoRA on q, v, MLP": (PINK, "D", ["lora4-wide", "lora16-wide"]),
        "adapter": (GREEN, "^", ["adapter16", "adapter64"]),
        "prefix + LoRA": (ORANGE, "s", ["prefix5-lora4", "prefix20-lora4"]),
        "prefix + LoRA, MLP too": (ORANGE, "D", ["prefix5-lora4-wide", "prefix20-lora16-wide"]),
        "prefix + LoRA, two rates": (BLACK, "*", ["prefix5-lora4-rates", "prefix20-lora16-wide-rates"]),
        "prefix + adapter": (SKY, "^", ["prefix5-adapter16", "prefix20-adapter64"]),
    }
    for axes, column, scale in ((panels[0], "BLEU", 100), (panels[1], "valid_loss", 1)):
        for label, (colour, marker, names) in methods.items():
            if own := [cells[name] for name in names if name in cells]:
                x = [int(cell.first["parameters_stored"]) for cell in own]
                y = [scale * cell.mean(column) for cell in own]
                spread = [scale * (cell.spread(column) or 0) for cell in own]
                line = {"D": "--", "*": ""}.get(marker, "-")  # the mixtures with two rates are no curve
                axes.errorbar(
                    x, y, yerr=spread if any(spread) else None, color=colour, marker=marker, linestyle=line, label=label
                )
        if "finetune" in cells:
            axes.axhline(scale * cells["finetune"].mean(column), color=RED, linestyle="--", label="fine-tune")
        axes.set_xscale("log")
        axes.set_xlabel("numbers stored")
        axes.grid(axis="y", alpha=0.3)
    panels[0].set_ylabel(of_test_set(cells))
    panels[1].set_ylabel("validation loss, nats a token")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4)
    return figure


def modes(results: Path, cells: Cells) -> Figure | None:
    """Bars by what is learned: BLEU, and the share of the tables' values that the texts state."""
    shown = ("zeroshot", "prompt", "embedding10", "infix10", "prefix5-direct", "prefix5", "prefix10", "finetune")
    names = [name for name in shown if name in cells]
    if len(names) < 2:
        return None
    figure, panels = new_figure(9, 1.4 + 0.5 * len(names), 2, sharey=True)
    places = range(len(names))[::-1]
    for axes, column, label in zip(panels, ("BLEU", "values_said"), (of_test_set(cells), "table values said, %")):
        for place, name in zip(places, names):
            value, spread = 100 * cells[name].mean(column), cells[name].spread(column)
            add_bar(axes, place, value, spread and 100 * spread, f"{value:.1f}", cells[name])
        axes.set_xlabel(label)
        axes.set_xlim(0, max(axes.get_xlim()[1], 1) * 1.2)
    panels[0].set_yticks(list(places), [cells[name].label for name in names])
    return figure


def add_bar(axes, place: int, value: float, spread: float | None, text: str, cell: Summary) -> None:
    """A horizontal bar in the colour of the cell's mode, with its error bar and a text to the right of it."""
    axes.barh(place, value, color=COLOURS[cell.first["mode"]], height=0.65, xerr=spread)
    axes.annotate(text, (value + (spread or 0), place), xytext=(8, 0), textcoords="offset points", va="center")


def loss(results: Path, cells: Cells) -> Figure | None:
    """Training and validation loss by examples seen; for several seeds the mean, with the range as a band."""
    shown = {
        "finetune": ("-", "D"), "prefix5": ("-", "o"), "prefix5-direct": ("--", "v"), "infix10": ("-", "s"),
        "embedding10": ("-", "^"),
    }  # fmt: skip
    curves = {name: read_curves(results, cells[name]) for name in shown if name in cells}
    if not curves:
        return None
    figure, panels = new_figure(10, 5.4, 2, sharex=True)
    for axes, column, label in ((panels[0], "loss", "training"), (panels[1], "valid_loss", "validation")):
        for name, (thousands, losses) in curves.items():
            line, marker = shown[name]
            colour = COLOURS[cells[name].first["mode"]]
            extra = {"marker": marker, "label": cells[name].label} if column == "valid_loss" else {}
            logged = [i for i, runs in enumerate(losses) if all(run[column] for run in runs)]
            x, values = [thousands[i] for i in logged], [[float(run[column]) for run in losses[i]] for i in logged]
            axes.plot(x, [sum(v) / len(v) for v in values], line, color=colour, **extra)
            axes.fill_between(x, list(map(min, values)), list(map(max, values)), color=colour, alpha=0.2, linewidth=0)
        axes.set_xlabel("examples seen, thousands")
        axes.set_ylabel(f"{label} loss, nats a token")
        axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=3)
    return figure


def read_curves(results: Path, cell: Summary) -> tuple[list[float], list[list[dict]]]:
    """A cell's loss curves at the steps that all its runs have: (thousands of examples, at each the runs' lines)."""
    folder, runs = results / "curves", []
    for row in cell.rows:
        path = folder / f"{row['run']}.csv"
        if not path.exists():
            raise InputError(
                f"{folder} has no {path.name}, though runs.csv has the run: put it back, or delete the row"
            )
        runs.append({int(line["step"]): line for line in read_rows(path)})
    steps = [step for step in runs[0] if all(step in run for run in runs)]
    thousands = [step * int(cell.first["batch_size"]) / 1000 for step in steps]
    return thousands, [[run[step] for run in runs] for step in steps]


def time(results: Path, cells: Cells) -> Figure | None:
    """Training time per step relative to fine-tuning on the same machine, and the poster's ratio."""
    shown = ("finetune", "prefix1", "prefix5", "prefix20", "prefix40", "infix10", "embedding10")
    ratios = {name: relative_time(cells[name], cells) for name in shown if name in cells}
    ratios = {name: ratio for name, ratio in ratios.items() if ratio is not None}
    if len(ratios) < 2:
        return None
    figure, (axes,) = new_figure(8, 1.6 + 0.5 * len(ratios))
    places = range(len(ratios) + 1)[::-1]
    for place, (name, ratio) in zip(places, ratios.items()):
        cell = cells[name]
        unit = cell.mean("training_seconds") / ratio
        spread = cell.spread("training_seconds")
        text = f"{ratio:.2f}   {cell.mean('training_seconds') / 60:.1f} min"
        add_bar(axes, place, ratio, spread and spread / unit, text, cell)
    minutes, of_minutes = POSTER_MINUTES["prefix5"], POSTER_MINUTES["finetune"]
    poster = minutes / of_minutes
    text = f"{poster:.2f}   {minutes:g} of {of_minutes:g} min"
    axes.barh(0, poster, color="white", edgecolor=GREY, hatch="///", height=0.65)
    axes.annotate(text, (poster, 0), xytext=(8, 0), textcoords="offset points", va="center")
    axes.set_yticks(list(places), [*(cells[name].label for name in ratios), "prefix, P = 5 (the poster)"])
    axes.set_xlim(0, 1.45 * max(1, *ratios.values()))
    row = cells["finetune"].first
    axes.set_xlabel(f"training time a step, fine-tuning = 1 ({row['machine']}, {row['dtype']})")
    return figure


def low_data(results: Path, cells: Cells) -> Figure | None:
    """BLEU by the number of training examples, of the prefix and of fine-tuning."""
    sizes = [n for n in (50, 100, 200, 500) if {f"low{n}-prefix", f"low{n}-finetune"} & cells.keys()]
    if len(sizes) < 2:  # a line needs two
        return None
    figure, (axes,) = new_figure(7, 5)
    # slightly shifted, so that the error bars do not overlap
    for mode, label, marker, shift in (
        ("prefix", "prefix, begins as words", "o", 0.98),
        ("finetune", "fine-tune", "D", 1.02),
    ):
        points = [(shift * n, *bleu(cells[f"low{n}-{mode}"])) for n in sizes if f"low{n}-{mode}" in cells]
        if points:
            x, y, spread = zip(*points)
            axes.errorbar(x, y, yerr=spread if any(spread) else None, marker=marker, color=COLOURS[mode], label=label)
    axes.set_xscale("log")
    axes.set_xticks(sizes, [str(n) for n in sizes])
    axes.minorticks_off()
    axes.set_xlabel("training examples")
    axes.set_ylabel(of_test_set(cells))
    axes.grid(axis="y", alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2)
    return figure
