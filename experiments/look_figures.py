"""The pictures of experiments/look.py, in the style of figures.py: narrow, with large letters, labels at the data.

A share of attention is a shade of one colour, from white (none) to dark blue (all). Where there is room, its percentage
is in the cell; there, dark blue is the picture's highest share.
"""

import textwrap
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from torch import Tensor

from experiments.attention import EARLIER, SEPARATOR, Look, ranking
from experiments.figures import BLUE, GREEN, GREY, ORANGE, RED, STYLE
from harness.files import write_atomic

WIDTH = 6.4  # inches: a phone's screen, enlarged two times
BIG = STYLE | {"font.size": 14, "axes.labelsize": 14, "axes.titlesize": 14, "lines.markersize": 6}
BIG |= {"xtick.labelsize": 14, "ytick.labelsize": 14, "text.parse_math": False}  # a $ in a word is no formula
LINES = [(colour, line) for line in ("-", "--", ":") for colour in (BLUE, RED, GREEN, ORANGE, "#56B4E9", "#CC79A7")]
SHADES = LinearSegmentedColormap.from_list("shares", ["#FFFFFF", "#56B4E9", BLUE, "#00304D"])
WORDS = 24  # on one picture
PANELS = {
    "loss": "training loss\nnats a token",
    "valid_loss": "validation loss\nnats a token",
    "lr": "learning rate",
    "grad_norm": "gradient norm",
}
Curves = dict[str, dict[str, tuple[list[int], list[float]]]]  # run -> column of PANELS -> (steps, values)


def save(draw, path: Path, *args) -> list[Path]:
    """Draw a figure in the house's style; write path.svg and path.png, the same bytes for the same numbers."""
    files = [path.with_name(f"{path.name}.{kind}") for kind in ("svg", "png")]
    about = {"Date": None, "Creator": None}, {"Software": None}
    with matplotlib.rc_context({**matplotlib.rcParamsDefault, **BIG, "backend": "agg"}):
        figure = draw(*args)
        for file, metadata in zip(files, about):
            with write_atomic(file, "wb") as out:
                figure.savefig(out, format=file.suffix[1:], metadata=metadata)
    return files


# ----------------------------------------------------------------------------- curves


def curves(runs: Curves) -> Figure:
    """A panel for each quantity that a run has logged, over the steps, with the runs' names beside the lines' ends.

    More than six names would not fit there and go below the panels.
    """
    columns = [column for column in PANELS if any(run[column][0] for run in runs.values())]
    figure = Figure(figsize=(WIDTH, 0.6 + 2.1 * len(columns)), layout="constrained")
    panels = figure.subplots(len(columns), 1, sharex=True, squeeze=False)[:, 0]
    for axes, column in zip(panels, columns):
        ends = []
        for (name, run), (colour, line) in zip(runs.items(), LINES * (1 + len(runs) // len(LINES))):
            steps, values = run[column]
            if not steps:
                continue
            few = "o" if len(steps) < 12 else None
            axes.plot(steps, values, line, color=colour, marker=few, clip_on=False, label=name)
            ends.append((values[-1], name, colour))
        axes.set_ylabel(PANELS[column])
        axes.grid(alpha=0.3)
        axes.set_ylim(bottom=0 if column in ("lr", "grad_norm") else None)
        if column == "lr":
            axes.ticklabel_format(axis="y", scilimits=(0, 0))
        if 1 < len(runs) <= 6:
            label_ends(axes, ends)
    panels[-1].set_xlabel("steps")
    if len(runs) == 1:
        figure.suptitle(next(iter(runs)), fontsize=14)
    if len(runs) > 6:
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center")
    figure.align_ylabels()
    return figure


def label_ends(axes, ends: list[tuple[float, str, str]]) -> None:
    """The names to the right of the lines' last values, moved apart where they would overlap."""
    low, high = axes.get_ylim()
    gap = 0.13  # of the panel's height: a line of text
    ends = sorted(ends)
    heights = [(value - low) / (high - low) for value, _, _ in ends]
    rows = [1 + wrapped(name).count("\n") for _, name, _ in ends]
    for i in range(1, len(heights)):
        heights[i] = max(heights[i], heights[i - 1] + gap * (rows[i] + rows[i - 1]) / 2)
    over = max(0.0, heights[-1] - 1)
    for height, (_, name, colour) in zip(heights, ends):
        place = axes.get_yaxis_transform()  # x in widths of the panel, y in its units
        axes.text(1.04, low + (height - over) * (high - low), wrapped(name), color=colour, va="center", transform=place)


def wrapped(name: str, width: int = 15) -> str:
    """A run's name in lines of about `width` letters, broken at hyphens and underscores."""
    lines = [""]
    for piece in name.replace("_", "_\0").replace("-", "-\0").split("\0"):
        if lines[-1] and len(lines[-1] + piece) > width:
            lines.append("")
        lines[-1] += piece
    return "\n".join(lines)


# ----------------------------------------------------------------------------- attention


def attention(found: Look, first: int, last: int, has_prefix: bool) -> Figure:
    """Words (from first to last) by sources, mean over layers and heads."""
    start = 0 if has_prefix else 1
    shares = found.shares.mean((0, 1))[first:last, start:]  # [W, N]
    names = found.sources[start:]
    table = textwrap.wrap(" | ".join(part.replace(" ", "\xa0") for part in found.source.split(" | ")), 58)
    figure = Figure(figsize=(WIDTH, 2.1 + 0.2 * len(table) + 0.29 * len(shares)), layout="constrained")
    axes = figure.subplots()
    heat_map(axes, shares, found.words[first:last], numbers=True)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="left", rotation_mode="anchor")
    for label, name in zip(axes.get_xticklabels(), names):
        label.set_color({names[0]: RED if has_prefix else BLUE, SEPARATOR: GREY, EARLIER: GREEN}.get(name, BLUE))
    between = [0.5] if has_prefix else []  # between the prefix, the table and the text
    for x in (*between, len(names) - 2.5):
        axes.axvline(x, color="white", linewidth=6)
    axes.set_xlabel("% of the word's attention, mean over layers and heads")
    figure.suptitle("\n".join(table), fontsize=12, x=0.01, ha="left")
    return figure


def layers(found: Look, first: int, last: int, has_prefix: bool) -> Figure:
    """Words by layers, a panel each for the prefix, the table, the separator and the text; mean over heads."""
    shares = found.shares.mean(1)[:, first:last]  # [L, W, N]
    panels = {found.sources[0]: shares[..., 0]} if has_prefix else {}
    panels |= {"table": shares[..., 1:-2].sum(-1), SEPARATOR: shares[..., -2], "earlier\nwords": shares[..., -1]}
    figure = Figure(figsize=(WIDTH, 1.9 + 0.3 * shares.size(1)), layout="constrained")
    columns = figure.subplots(1, len(panels), sharey=True)
    for axes, (name, share) in zip(columns, panels.items()):  # [L, W]
        image = heat_map(axes, share.T, found.words[first:last], numbers=False)
        L = len(share)
        ticks = range(L) if L <= 6 else [0, L // 2 - 1, L - 1]
        axes.set_xticks(ticks, [str(1 + layer) for layer in ticks])
        axes.set_title(name, pad=10)
    above = {"xytext": (-10, 12), "textcoords": "offset points", "ha": "right", "va": "center"}
    columns[0].annotate("layer", (-0.5, -0.5), **above)
    bar = figure.colorbar(image, ax=columns, location="bottom", aspect=40, pad=0.03, ticks=[0, 0.25, 0.5, 0.75, 1])
    bar.ax.set_xticklabels(["0", "25", "50", "75", "100 %"])
    bar.outline.set_visible(False)
    return figure


def heads(found: Look) -> Figure:
    """Layers by heads: the mean share on the prefix; and the eight heads with the highest."""
    by_head = found.prefix_by_head  # [L, H]
    L, H = by_head.shape
    best = ranking(found)[:8]
    heights = 0.3 * L + 0.9, 0.3 * len(best) + 0.7
    figure = Figure(figsize=(WIDTH, 0.6 + sum(heights)), layout="constrained")
    upper, lower = figure.subplots(2, 1, height_ratios=heights)
    heat_map(upper, by_head, [str(1 + layer) for layer in range(L)], numbers=True)
    upper.set_xticks(range(H), [str(1 + head) for head in range(H)])
    upper.set_ylabel("layer")
    upper.set_xlabel("head")
    upper.xaxis.set_label_position("top")
    for place, (*_, share) in enumerate(best):
        lower.barh(-place, 100 * share, color=BLUE, height=0.7)
        lower.text(100 * share + 1, -place, f"{100 * share:.0f}", va="center")
    lower.set_yticks([-place for place in range(len(best))], [f"layer {layer}, head {head}" for layer, head, _ in best])
    lower.set_xlim(0, 114)
    lower.set_xticks(range(0, 101, 20))
    lower.tick_params(axis="y", length=0)
    lower.set_xlabel(f"% of attention on the {found.sources[0]}, mean over words")
    return figure


def heat_map(axes, shares: Tensor, rows: list[str], numbers: bool):
    """A matrix of shares [rows, columns] as shades, with the rows' names; the columns' ticks are on top."""
    n_rows, n_columns = shares.shape
    highest = max(0.01, shares.max().item()) if numbers else 1
    edges = [x - 0.5 for x in range(n_columns + 1)], [y - 0.5 for y in range(n_rows + 1)]
    style = {"edgecolors": "white", "linewidth": 1.5 if numbers else 0.5}
    image = axes.pcolormesh(*edges, shares.numpy(), cmap=SHADES, vmin=0, vmax=highest, **style)
    for (y, x), share in ((place, shares[place].item()) for place in np.ndindex(n_rows, n_columns)):
        if numbers:
            colour = "white" if share > 0.52 * highest else "black"
            axes.text(x, y, f"{100 * share:.0f}", color=colour, fontsize=12, ha="center", va="center")
    axes.set_ylim(n_rows - 0.5, -0.5)  # the first row is the upper one
    axes.set_yticks(range(n_rows), ["".join(c if c.isprintable() else "\ufffd" for c in name) for name in rows])
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    return image
