"""The report, from results/MODEL alone (runs.csv, curves, samples). It needs no model, no data and no run.

    python experiments/report.py --results results/mini                        tables, samples, figures
    python experiments/report.py --results results/mini --readme results/mini/README.md README.md   and documents

Writes table.md (the poster's table, then every cell), samples.md (sentences with their tables and slot errors) and
figures/*.svg and *.png. The same results give the same bytes. --readme updates the generated tables of documents:

    <!-- results:MODEL --> ... <!-- /results:MODEL -->    the main table of results/MODEL
    <!-- results:front --> ... <!-- /results:front -->    the front page's rows: two models (their results side by side
                                                          in one folder), the paper, the poster

Tests compare these tables with runs.csv (`readme_problems`).
"""

import argparse
import re
import sys
from collections.abc import Iterable
from pathlib import Path

if __name__ == "__main__":  # so that this project's modules are found
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from experiments.grid import BLEU_ELSEWHERE, PARTIAL, WORDS, combinations, grid, posters
from experiments.record import E2E, read_rows
from experiments.summary import Summary, relative_time, summarise
from harness.files import InputError, exit_on_input_error, read_text, write_atomic
from harness.report import PERCENT, PUBLISHED

MAIN = ("zeroshot", "prompt", "embedding10", "infix10", "prefix5", "prefix20", "finetune", "lora4",
        "prefix5-lora4", "prefix5-lora4-rates", "prefix20-lora16-wide")  # fmt: skip
SECTIONS = {
    "Prefix length": ("prefix1", "prefix3", "prefix5", "prefix10", "prefix20", "prefix40", "finetune"),
    "Where the learned activations stand, and what computes them": (
        "infix1", "infix10", "infix20", "embedding1", "embedding10", "embedding20", "prefix5", "prefix5-direct"),
    "Initialisation, all data": ("init-random", "init-words"),
    "Low data": tuple(f"low{n}-{mode}" for n in (50, 100, 200, 500) for mode in ("prefix", "finetune")),
    "Nothing trained": ("zeroshot", "prompt"),
    "LoRA and adapters, alone and with a prefix": tuple(cell.name for cell in combinations()),
}  # fmt: skip
FRONT = "front"  # the front page's table
FRONT_MODELS = {"smollm2": "SmolLM2-135M", "mini": "mini"}  # the results that its first rows come from, and their names
FRONT_OURS = ("prefix5", "lora4", "prefix20-lora16-wide", "finetune")
FRONT_PUBLISHED = (
    "GPT-2 medium, prefix 0.1 % (Li & Liang 2021)",
    "GPT-2 medium, fine-tune (Li & Liang 2021)",
    "poster, prefix 0.1 %",
    "poster, fine-tune",
)
SAMPLED = ("prefix5", "prefix20", "infix10", "embedding10", "finetune", "prompt")
HEADINGS = {
    "BLEU": "BLEU",
    "NIST": "NIST",
    "NIST_perl": "NIST (Perl)",
    "METEOR": "METEOR",
    "ROUGE_L": "ROUGE-L",
    "CIDEr": "CIDEr",
    "values_said": "values said",
    "values_invented": "invented",
}


# ----------------------------------------------------------------------------- tables


def score_text(cell: Summary, column: str) -> str:
    """ "65.2 ± 0.4", in the papers' scale and digits; "–" if there is no score."""
    percent = column in PERCENT or column == "values_said"
    scale, digits = (100, 1) if percent else (1, 2)
    mean, spread = cell.mean(column), cell.spread(column)
    if mean is None:
        return "–"
    text = f"{scale * mean:.{digits}f}" + ("" if spread is None else f" ± {scale * spread:.{digits}f}")
    return text + (" %" if column == "values_said" else "")


def count_text(cell: Summary, column: str) -> str:
    """ "92,160 (0.07 %)": a number of parameters and its share of the model's."""
    n, whole = int(cell.first[column]), int(cell.first["parameters_model"])
    share = 100 * n / whole
    digits = 0 if share >= 10 else 2 if share >= 0.01 else 3
    return f"{n:,} ({share:.{digits}f} %)" if n else "none"


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """A table."""
    return "".join(f"| {' | '.join(row)} |\n" for row in (header, ["---"] * len(header), *rows))


def main_table(cells: dict[str, Summary]) -> str:
    """The poster's table: our rows, then the published ones."""
    columns = ("BLEU", "NIST", "NIST_perl", "METEOR", "ROUGE_L", "CIDEr", "values_said")
    ours = [cells[name] for name in MAIN if name in cells]
    rows = [[c.label, count_text(c, "parameters_stored"), *(score_text(c, column) for column in columns)] for c in ours]
    model = next(iter(cells.values())).first
    for name, scores in PUBLISHED.items() if model["data"] == E2E else ():
        numbers = ["–" if c not in scores else f"{scores[c]:.{1 if c in PERCENT else 2}f}" for c in columns]
        rows.append([f"*{name}*", "–", *numbers])
    head = f"{model['model']}, {model['data']}" + (f", weights {model['weights']}" if model["weights"] else "")
    return markdown([head, "stored", *(HEADINGS[c] for c in columns)], rows) + "\n" + notes(cells)


def front_table(root: Path) -> str:
    """The front page's table: a prefix, LoRA, both, and fine-tuning of our models; the paper's and the poster's rows.

    root   the parent of the models' results
    NIST is the scorer's Python variant, in the poster's rows the Perl one: the poster reports no other.
    """
    columns, rows = ("BLEU", "NIST", "METEOR", "ROUGE_L", "CIDEr"), []
    for model, title in FRONT_MODELS.items():
        cells = summarise(root / model)
        for cell in (cells[name] for name in FRONT_OURS if name in cells):
            rows.append([f"{title}: {cell.label}", *(score_text(cell, column) for column in columns)])
    for name in FRONT_PUBLISHED:
        scores = {"NIST": PUBLISHED[name].get("NIST_perl")} | PUBLISHED[name]
        rows.append([f"*{name}*", *(f"{scores[c]:.{1 if c in PERCENT else 2}f}" for c in columns)])
    return markdown(["E2E test set", *(HEADINGS[column] for column in columns)], rows)


def notes(cells: dict[str, Summary]) -> str:
    """How the main table's numbers were obtained."""
    shown = [cells[name] for name in MAIN if name in cells]
    row = shown[-1].first if shown else next(iter(cells.values())).first
    several = [f"{cell.label}: {len(cell.rows)}" for cell in shown if len(cell.rows) > 1]
    spread = (
        f"± is the standard deviation over seeds ({'; '.join(several)}); the other rows are single runs"
        if several
        else "single runs"
    )
    trained = [cell.first for cell in shown if int(cell.first["steps"])]
    budget = (
        "; ".join(dict.fromkeys(f"{int(r['steps']):,} steps of {r['batch_size']}" for r in trained))
        or "nothing trained"
    )
    in_fp32 = [cell.label for cell in shown if int(cell.first["steps"]) and cell.first["dtype"] == "fp32"]
    mixed = f" Trained in fp32: {'; '.join(in_fp32)}; the others in bf16." if 0 < len(in_fp32) < len(trained) else ""
    others = " Rows in italics are others' numbers, on the paper's tokenised references." if row["data"] == E2E else ""
    return (
        f"{row['tables']} test tables, beam {row['beam_size']} (length_norm {row['length_norm']}); {budget}; {spread}."
        f"{mixed}{others}{not_run(cells, MAIN)} Values said: the share of the tables' values that the texts state"
        f" (experiments/slots.py). Scores: `{row['signature']}`.\n"
    )


def not_run(cells: dict[str, Summary], names: Iterable[str]) -> str:
    """A sentence that names the missing cells, "" if none is missing.

    A model with a grid of its own misses what that has; another, what the experiments have of which some cell was run.
    """
    model = next(iter(cells.values())).first["model"]
    experiments = [grid(0, model)] if model in PARTIAL else [posters(0), combinations()]
    begun = [cells_of_it for cells_of_it in experiments if any(cell.name in cells for cell in cells_of_it)]
    labels = {cell.name: cell.label for experiment in begun for cell in experiment}
    missing = [labels[name] for name in names if name in labels and name not in cells]
    return f" Not run: {'; '.join(missing)}." if missing else ""


def section_table(cells: dict[str, Summary]) -> str:
    """Every score of some cells, with the BLEU that others report for the same configuration."""
    columns = ("BLEU", "NIST", "NIST_perl", "METEOR", "ROUGE_L", "CIDEr", "values_said", "values_invented")
    header = ["", "P", "lr", "steps", "seeds", *(HEADINGS[c] for c in columns), "BLEU elsewhere"]
    rows = []
    for name, c in cells.items():
        first = c.first
        elsewhere = BLEU_ELSEWHERE.get(name, "–") if first["data"] == E2E else "–"
        how = [first["prefix_len"] or "–", first["lr"] or "–", f"{int(first['steps']):,}", str(len(c.rows))]
        rows.append([c.label, *how, *(score_text(c, column) for column in columns), elsewhere])
    return markdown(header, rows)


def cost_table(cells: dict[str, Summary]) -> str:
    """The parameters, bytes and time of each cell that is trained on all data."""
    header = [
        "",
        "trained",
        "stored",
        "bytes on disk",
        "training, minutes",
        "examples/s",
        "time a step, fine-tuning = 1",
        "machine",
    ]
    rows = []
    for cell in cells.values():
        row, ratio = cell.first, relative_time(cell, cells)
        if int(row["steps"]) and not row["train_examples"]:
            rows.append(
                [
                    cell.label,
                    f"{int(row['parameters_trained']):,}",
                    count_text(cell, "parameters_stored"),
                    f"{int(row['bytes_on_disk']):,}",
                    f"{cell.mean('training_seconds') / 60:.1f}",
                    f"{cell.mean('examples_per_s'):.1f}",
                    "–" if ratio is None else f"{ratio:.2f}",
                    f"{row['machine']}, {row['dtype']}",
                ]
            )
    return markdown(header, rows)


def full_report(cells: dict[str, Summary]) -> str:
    """table.md."""
    parts = [main_table(cells)]
    for title, names in SECTIONS.items():
        if own := {name: cells[name] for name in names if name in cells}:
            parts.append(f"## {title}\n\n{section_table(own)}")
    parts.append(f"## Cost\n\n{cost_table(cells)}")
    parts.append(
        f"A prefix that begins as “{WORDS}” has as many positions as these words have tokens in the model's vocabulary."
        " Invented: values that a text states without support in its table, so many a table."
        " Every run is a row of runs.csv."
        f"{not_run(cells, (cell.name for cell in grid(0)))}\n"
    )
    return "\n".join(parts)


def samples_report(results: Path, cells: dict[str, Summary]) -> str:
    """samples.md: the best and the worst sentences of some runs, with their tables."""
    parts = []
    for cell in (cells[name] for name in SAMPLED if name in cells):
        rows = read_rows(results / "samples" / f"{cell.first['run']}.csv")
        if not rows:
            name = cell.first["run"]
            raise InputError(
                f"{results / 'samples'} has no {name}.csv, though runs.csv has the run: put it back, or delete the row"
            )
        parts.append(f"## {cell.label} ({cell.first['run']})\n")
        for row in rows:
            errors = [
                f"{verb} {row[column]}"
                for verb, column in (("omits", "omitted"), ("invents", "invented"))
                if row[column]
            ]
            judged = "; ".join(errors) or "says the whole table, and nothing else"
            parts.append(
                f"**{row['which']}**, {row['score']} {float(row['value']):.3f}: {judged}\n\n"
                f"    table      {row['table']}\n    output     {row['output']}\n    reference  {row['reference']}\n"
            )
    return "\n".join(parts)


# ----------------------------------------------------------------------------- tables in documents


def readme_blocks(text: str) -> dict[str, str]:
    """name -> the text between its two comments; the name is a model's or FRONT."""
    return {m[1]: m[2] for m in re.finditer(r"<!-- results:(\S+) -->\n(.*?)<!-- /results:\1 -->", text, re.S)}


def block_table(name: str, root: Path) -> str:
    """The table that belongs between the comments of this name. root: the parent of `block_models(name)`."""
    return front_table(root) if name == FRONT else main_table(summarise(root / name))


def block_models(name: str) -> list[str]:
    """The models whose results a table is made from."""
    return list(FRONT_MODELS) if name == FRONT else [name]


def put_into_readme(readme: Path, results: Path) -> None:
    """Update the tables in a document that are made from these results. Raises InputError if it has none of them."""
    text, model = read_text(readme), results.name
    names = [name for name in readme_blocks(text) if model in block_models(name)]
    if not names:
        raise InputError(
            f"{readme} has no place for the table: write <!-- results:{model} --> and <!-- /results:{model} --> into it"
        )
    for name in names:
        begin, end = f"<!-- results:{name} -->\n", f"<!-- /results:{name} -->"
        before, _, rest = text.partition(begin)
        text = before + begin + block_table(name, results.parent) + end + rest.partition(end)[2]
    with write_atomic(readme) as file:
        file.write(text)


def readme_problems(readme: str, root: Path) -> list[str]:
    """Which tables of a document differ from the results in root/MODEL/runs.csv; [] if none does."""
    problems = []
    for name, table in readme_blocks(readme).items():
        folders = [root / model for model in block_models(name)]
        if missing := [folder for folder in folders if not (folder / "runs.csv").exists()]:
            problems.append(f"README has a table of {name}, but {missing[0]} has no runs.csv")
        elif table != block_table(name, root):
            command = f"python experiments/report.py --results {folders[0]} --readme FILE"
            problems.append(f"README's table of {name} is not that of {folders[0] / 'runs.csv'}: {command}")
    return problems


# ----------------------------------------------------------------------------- the command line


def write_report(results: Path) -> None:
    """table.md, samples.md and, if matplotlib is installed, the figures."""
    cells = summarise(results)
    for name, text in (("table.md", full_report(cells)), ("samples.md", samples_report(results, cells))):
        with write_atomic(results / name) as file:
            file.write(text)
    print(f"\n{main_table(cells)}\n{results / 'table.md'}, {results / 'samples.md'}")
    try:
        from experiments.figures import draw_all
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("matplotlib"):
            raise
        print("no figures: matplotlib is not installed (pip install -r requirements-dev.txt)")
        return
    print(", ".join(str(path) for path in draw_all(results, cells)))


@exit_on_input_error
def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(allow_abbrev=False, description="Make tables, samples and figures from results.")
    parser.add_argument(
        "--results", type=Path, required=True, help="a folder that reproduce.py wrote, e.g. results/mini"
    )
    parser.add_argument(
        "--readme", type=Path, nargs="+", default=[], help="documents whose tables, between comments, are updated too"
    )
    given = parser.parse_args(argv)
    results = given.results.resolve()
    write_report(results)
    for readme in given.readme:
        put_into_readme(readme, results)


if __name__ == "__main__":
    main()
