"""Look at runs: their curves beside each other, or what the words of a run's text attend to.

    python experiments/look.py --run runs/gpt2-prefix5 --run runs/gpt2-finetune
    python experiments/look.py --run runs/gpt2-prefix5 --table "name : Blue Spice | area : riverside"

The first writes curves.svg and curves.png: training loss, validation loss, learning rate and gradient norm over the
steps. A run that is not finished is drawn as far as it is.

The second lets the run write its text, as evaluate.py --table --plain does in fp32, and draws the shares of
attention that attention.py defines:

    attention           each word by source: prefix, fields, separator, earlier words
    attention-layers    each word by layer
    attention-heads     the heads' shares on the prefix, and a ranking; of a run that has a prefix

each as .svg and .png; of a long text, attention-2 and so on go on with its words. attention.json holds the numbers.
The pictures go to --out, by default to the (first) run's folder.
"""

import argparse
import csv
import io
import json
import math
import sys
from pathlib import Path

if __name__ == "__main__":  # so that this project's modules are found
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from evaluate import writer_of
from experiments.attention import Look, look, ranking
from experiments.record import data_label
from harness.evaluation_flags import TABLE_HINT
from harness.files import InputError, exit_on_input_error, read_text, write_atomic
from harness.machine import describe_machine
from harness.runs import load_settings
from harness.settings import Settings

# the file of a run that has a column
FILES = {"loss": "log.csv", "lr": "log.csv", "grad_norm": "log.csv", "valid_loss": "valid.csv"}


def read_curve(path: Path, column: str) -> tuple[list[int], list[float]]:
    """(steps, values) of a column of a run's log; none if the file is missing. Values that are not finite are left out.

    The last line may be half written. Raises InputError for a line in the middle that is no number.
    """
    if not path.exists():
        return [], []
    rows = list(csv.DictReader(io.StringIO(read_text(path), newline="")))
    steps, values = [], []
    for number, row in enumerate(rows, start=2):
        try:
            if None in row.values():  # fewer cells than columns
                raise ValueError
            step, value = int(row["step"]), float(row[column])
        except (ValueError, KeyError):
            if number == len(rows) + 1 and column in row:
                break
            raise InputError(
                f"{path}, line {number}: no step or no {column}: restore the file as train.py wrote it"
            ) from None
        if math.isfinite(value):
            steps.append(step)
            values.append(value)
    return steps, values


def read_run(folder: Path) -> dict[str, tuple[list[int], list[float]]]:
    """The curves of a run's folder, by column. Raises InputError where there is no run, or it has logged nothing."""
    load_settings(folder)
    curves = {column: read_curve(folder / file, column) for column, file in FILES.items()}
    if not curves["loss"][0]:
        raise InputError(f"{folder} has no line in log.csv yet: train the run for --log_every steps, then look again")
    return curves


def names_of(folders: list[Path]) -> list[str]:
    """A name for each run: its folder's, with parents where two are alike. Raises InputError for a run given twice."""
    paths = [folder.resolve() for folder in folders]
    if len(set(paths)) < len(paths):
        raise InputError("a --run is given twice: name each run once")
    for depth in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(names)) == len(names):
            break
    return names


def numbers(found: Look, settings: Settings) -> dict:
    """What attention.json holds: the run, the text, and shares rounded to four decimals."""
    by_layer = [[[round(x, 4) for x in row] for row in layer] for layer in found.shares.mean(1).tolist()]
    by_head = [[round(x, 4) for x in row] for row in found.prefix_by_head.tolist()]
    return {
        "mode": settings.mode,
        "prefix_len": settings.prefix_len,
        "model": Path(settings.model).name,
        "data": data_label(settings.data),
        "machine": describe_machine(settings.device, settings.dtype),
        "table": found.source,
        "text": found.text,
        "words": found.words,
        "sources": found.sources,
        "shares": "[layer][word][source], mean over heads",
        "by_layer": by_layer,
        "prefix_by_head": by_head,
    }


def write_numbers(path: Path, found: Look, settings: Settings) -> None:
    """attention.json, a row of numbers a line."""
    content = numbers(found, settings)
    long = {key: content.pop(key) for key in ("by_layer", "prefix_by_head")}
    rows = ",\n".join(
        "  [\n" + ",\n".join(f"   {json.dumps(row)}" for row in layer) + "\n  ]" for layer in long["by_layer"]
    )
    heads = ",\n".join(f"  {json.dumps(row)}" for row in long["prefix_by_head"])
    start = json.dumps(content, indent=1, ensure_ascii=False).removesuffix("\n}")
    with write_atomic(path) as file:
        file.write(f'{start},\n "by_layer": [\n{rows}\n ],\n "prefix_by_head": [\n{heads}\n ]\n}}\n')


def figures():
    """The module that draws. Raises InputError without matplotlib."""
    try:
        from experiments import look_figures
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("matplotlib"):
            raise
        raise InputError(
            "matplotlib is not installed, and the pictures need it: pip install -r requirements-dev.txt"
        ) from None
    return look_figures


def draw_curves(folders: list[Path], out: Path) -> list[Path]:
    """curves.svg and curves.png of these runs."""
    names = names_of(folders)
    runs = {name: read_run(folder) for name, folder in zip(names, folders)}
    draw = figures()
    return draw.save(draw.curves, out / "curves", runs)


def draw_attention(folder: Path, table: str, out: Path) -> list[Path]:
    """The pictures of one text, and attention.json; prints the text and the ranking of the heads."""
    draw = figures()
    writer = writer_of(run=folder, plain=True, decode_dtype="fp32")
    found, has_prefix = look(writer, table), writer.settings.has_prefix
    print(found.text)
    pages = math.ceil(len(found.words) / draw.WORDS)
    size = math.ceil(len(found.words) / pages)
    written = []
    for page in range(pages):
        ending = f"-{page + 1}" if page else ""
        part = page * size, min((page + 1) * size, len(found.words))
        written += draw.save(draw.attention, out / f"attention{ending}", found, *part, has_prefix)
        written += draw.save(draw.layers, out / f"attention-layers{ending}", found, *part, has_prefix)
    if has_prefix:
        written += draw.save(draw.heads, out / "attention-heads", found)
        print(f"the heads that look at the {found.sources[0]} most, % of their attention, mean over words:")
        for layer, head, share in ranking(found)[:8]:
            print(f"  layer {layer:>2}, head {head:>2}  {100 * share:5.1f}")
    write_numbers(out / "attention.json", found, writer.settings)
    return [*written, out / "attention.json"]


@exit_on_input_error
def main(argv: list[str] | None = None) -> None:
    """The command line."""
    about = "Draw runs' curves, or what the words of a run's text attend to."
    parser = argparse.ArgumentParser(allow_abbrev=False, description=about)
    parser.add_argument(
        "--run", type=Path, action="append", required=True, help="a run's folder; give it several times"
    )
    parser.add_argument("--table", help="draw attention for this request: 'name : Blue Spice | area : riverside'")
    parser.add_argument("--out", type=Path, help="where the pictures go (default: the first run's folder)")
    given = parser.parse_args(argv)
    out = given.out or given.run[0]
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is a file: name a folder")
    if given.table is None:
        written = draw_curves(given.run, out)
    elif len(given.run) > 1:
        raise InputError("--table looks at one run's text: give a single --run")
    elif not given.table.strip():
        raise InputError(f"--table is empty: {TABLE_HINT}")
    else:
        written = draw_attention(given.run[0], given.table, out)
    print(f"written: {', '.join(str(path) for path in written)}")


if __name__ == "__main__":
    main()
