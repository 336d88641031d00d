"""results/: complete; reports made from the rows of runs.csv, rows made from the outputs, documents made from both.

The documents are the README.md of results/mini and results/smollm2 (the experiment) and the front page's table of
scores. Tables and numbers are compared with the results; the wording is free.
"""

import json
import math
import re
from itertools import product
from pathlib import Path
from statistics import fmean, stdev
from xml.etree import ElementTree

import pytest

import metrics
from e2e_data import group_references, load_split
from experiments import grid, report, search, steady
from experiments.record import E2E, checker, read_rows, read_runs
from experiments.slots import shares
from experiments.summary import Summary, relative_time, summarise
from harness.settings import RATES
from metrics import bleu, mteval, ngrams

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT.parent / "shared" / "e2e"
README = (ROOT / "README.md").read_text(encoding="utf-8")
MODELS = ["mini", "smollm2"]  # a reader may have made results of other models
FINDINGS, SMOLLM2 = ((ROOT / "results" / model / "README.md").read_text(encoding="utf-8") for model in MODELS)
PARTS = sorted({*re.findall(r"\]\(\.\./([^/).]+)/?\)", FINDINGS)} - {*MODELS})  # some cells, with other settings
FOLDERS = MODELS + PARTS
each_model = pytest.mark.parametrize("results", [ROOT / "results" / model for model in MODELS], ids=MODELS)
of_mini = pytest.mark.parametrize("results", [ROOT / "results" / "mini"], ids=["mini"])
each_folder = pytest.mark.parametrize("results", [ROOT / "results" / name for name in FOLDERS], ids=FOLDERS)


def outputs_of(results: Path, name: str) -> list[str]:
    """A run's outputs, one text for each table."""
    lines = (results / "outputs" / f"{name}.txt").read_text(encoding="utf-8").split("\n")
    assert lines.pop() == ""
    return lines


def table_under(title: str, text: str = FINDINGS) -> dict[str, list[str]]:
    """The table below a heading, or below the heading of its first column: first cell of a row -> the other cells."""
    lines = text.splitlines()
    (start,) = (
        i for i, line in enumerate(lines) if line.lstrip("#").strip() == title or line.startswith(f"| {title} |")
    )
    (rows,) = re.findall(r"(?:^\|.*\n)+", "\n".join(lines[start:]) + "\n", re.M)[:1]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in rows.splitlines()]
    del cells[1]  # the line of dashes
    assert len({name for name, *_ in cells}) == len(cells)
    return {name: rest for name, *rest in cells}


def test_the_documents_show_results():
    assert PARTS == ["mini-5epochs"] and "](../smollm2)" in FINDINGS


def test_the_generated_tables_are_those_of_the_results():
    for text, name in ((README, report.FRONT), (FINDINGS, "mini"), (SMOLLM2, "smollm2")):
        assert list(report.readme_blocks(text)) == [name]
        assert report.readme_problems(text, ROOT / "results") == []


def test_the_front_pages_scores_are_those_of_the_runs_and_of_the_published_ones():
    columns = {"BLEU": (100, 1), "NIST": (1, 2), "METEOR": (100, 1), "ROUGE_L": (100, 1), "CIDEr": (1, 2)}
    expected = []
    for model, cell in product(("smollm2", "mini"), ("prefix5", "lora4", "prefix20-lora16-wide", "finetune")):
        rows = [row for row in read_runs(ROOT / "results" / model).values() if row["cell"] == cell]
        scores = {name: [scale * float(row[name]) for row in rows] for name, (scale, _) in columns.items()}
        if len(rows) > 1:
            expected.append(
                [
                    f"{fmean(own):.{columns[name][1]}f} ± {stdev(own):.{columns[name][1]}f}"
                    for name, own in scores.items()
                ]
            )
        elif rows:
            expected.append([f"{own[0]:.{columns[name][1]}f}" for name, own in scores.items()])
    for start in ("GPT-2 medium, prefix", "GPT-2 medium, fine-tune", "poster, prefix", "poster, fine-tune"):
        (scores,) = (scores for name, scores in report.PUBLISHED.items() if name.startswith(start))
        nist = "NIST_perl" if start.startswith("poster") else "NIST"
        values = (scores[nist if name == "NIST" else name] for name in columns)
        expected.append([f"{value:.{digits}f}" for value, (_, digits) in zip(values, columns.values())])
    header, *stated = table_under("E2E test set", report.front_table(ROOT / "results")).values()
    assert header == ["BLEU", "NIST", "METEOR", "ROUGE-L", "CIDEr"] and stated == expected


@of_mini
def test_every_cell_of_the_grid_has_been_run(results):
    n_seeds = {cell.name: len(grid.SEEDS) if cell.all_seeds else 1 for cell in grid.grid(0)}
    assert {name: len(cell.rows) for name, cell in summarise(results).items()} == n_seeds


def test_each_cell_of_smollm2s_grid_has_been_run_or_is_said_to_be_missing():
    results = ROOT / "results" / "smollm2"
    cells = summarise(results)
    planned = {cell.name: (cell.label, grid.seeds_of(cell, "smollm2")) for cell in grid.grid(0, "smollm2")}
    for name, cell in cells.items():
        assert {int(row["seed"]) for row in cell.rows} <= set(planned[name][1])
    assert all(len(cells[name].rows) >= 2 for name in ("prefix5", "finetune"))
    (said,) = re.findall(r"Not run: (.*)\.\n", (results / "table.md").read_text(encoding="utf-8"))[-1:] or [""]
    assert set(said.split("; ")) - {""} == {label for name, (label, _) in planned.items() if name not in cells}


@each_folder
def test_the_runs_are_alike_and_whole(results):
    rows = read_runs(results)
    alike = ["model", "data", "weights", "machine", "torch"]
    alike += ["dtype"] if results.name == "mini" else []  # the others were run on several machines, as their texts say
    assert len({tuple(row[name] for name in alike) for row in rows.values()}) == 1
    for name, row in rows.items():
        assert len(outputs_of(results, name)) == int(row["tables"])
        curve = read_rows(results / "curves" / f"{name}.csv") if int(row["steps"]) else [{"step": "0"}]
        assert curve[-1]["step"] == row["steps"]


@each_folder
def test_the_report_is_made_of_the_rows(results):
    cells = summarise(results)
    assert (results / "table.md").read_text(encoding="utf-8") == report.full_report(cells)
    assert (results / "samples.md").read_text(encoding="utf-8") == report.samples_report(results, cells)
    drawn = {"mini": ("length", "modes", "loss", "time", "low_data", "stored"), "smollm2": ("length", "loss", "time")}
    for name in drawn.get(results.name, ("loss",)):
        assert ElementTree.parse(results / "figures" / f"{name}.svg").getroot().tag.endswith("svg")
        assert (results / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


@each_folder
def test_every_run_has_the_rate_that_the_search_chose(results):
    tried = read_rows(results / "search.csv")
    for family in dict.fromkeys(row["family"] for row in tried):
        losses = {float(row["lr"]): float(row["valid_loss"]) for row in tried if row["family"] == family}
        chosen = min(losses, key=losses.get)
        assert [float(row["lr"]) for row in tried if row["family"] == family and row["chosen"]] == [chosen]
        neighbours = {search.LADDER.index(chosen) + step for step in (-1, 1)} & set(range(len(search.LADDER)))
        assert {search.LADDER[i] for i in neighbours} <= losses.keys()  # the best is not at an end of what was tried
        own = {cell.name for cell in grid.grid(0) if cell.rate == family}
        assert {float(row["lr"]) for row in read_runs(results).values() if row["cell"] in own} <= {chosen}
        own = {cell.name for cell in grid.grid(0) if cell.lora_rate == family}
        assert {float(row["lora_lr"]) for row in read_runs(results).values() if row["cell"] in own} <= {chosen}


def test_smollm2s_default_rates_are_those_of_its_search():
    tried = read_rows(ROOT / "results" / "smollm2" / "search.csv")
    chosen = {row["family"]: float(row["lr"]) for row in tried if row["chosen"]}
    below = search.LADDER[search.LADDER.index(chosen["lora"]) - 1]
    assert (chosen["prefix"], chosen["finetune"], below) == RATES["smollm2"]


@pytest.mark.slow
@pytest.mark.skipif(not DATA.exists(), reason="needs E2E's files (../shared/e2e)")
@each_model
@pytest.mark.parametrize("cell", ["prefix5", "finetune"])
def test_the_outputs_scored_again_give_the_rows(results, cell):
    row = summarise(results)[cell].first
    assert row["data"] == E2E
    groups = group_references(load_split(str(DATA), "test"))
    outputs = outputs_of(results, row["run"])
    words = [len(target.split()) for targets in groups.values() for target in targets]
    assert f"{sum(words) / len(words):.1f}" == "27.2"  # as results/mini/README.md states
    scores = metrics.score(outputs, list(groups.values()))
    said, invented = shares([checker(str(DATA)).check(source, output) for source, output in zip(groups, outputs)])
    for name, value in (scores | {"values_said": said, "values_invented": invented}).items():
        if name in row and value is not None:
            assert math.isclose(float(row[name]), value, abs_tol=1e-6), name


ELSEWHERE = {  # numbers in results/mini/README.md that no run in results/ has given: their source
    "60.5": "mini/README.md",
    "27.2": "words of a test reference, see above",
    "17.5": "the poster, minutes",
    "0.57": "the poster's 10 minutes over 17.5",
    "0.2": "published re-runs",
    "0.8": "published re-runs",
    **dict.fromkeys(("49.2", "48.5", "48.8", "50.3"), "the quick start's prefix, decoded with several batch sizes"),
    **dict.fromkeys(("44.7", "51.0"), "the quick start with other seeds"),
    "1.18": "a line of figures/stored.svg, see below",
    **dict.fromkeys(("46.3", "47.3"), "the quick start in fp32"),
    **dict.fromkeys(("5.4", "18.0", "3.1", "6.7"), "benchmarks/README.md, sentences a second"),
}


def known_numbers(folder: Path) -> set[str]:
    """The numbers in a results folder, as the documents write them."""
    known = set(re.findall(r"\d+\.\d+", (folder / "table.md").read_text(encoding="utf-8")))
    known |= {f"{float(row['valid_loss']):.2f}" for row in read_runs(folder).values() if row["valid_loss"]}
    known |= {f"{loss:.2f}" for cell in summarise(folder).values() if (loss := cell.mean("valid_loss")) is not None}
    for row in read_runs(folder).values():
        scores = (report.score_text(Summary("", [row]), column) for column in report.HEADINGS)
        known |= {score.removesuffix(" %") for score in scores}
    for row in read_rows(folder / "length_norm.csv"):
        known |= {f"{100 * float(row['BLEU']):.1f}", row["words_a_text"]}
    return known


def measured_training(folder: str = "") -> dict[str, dict]:
    """What benchmarks/training.py measured of ours, with GPT-2 small."""
    path = ROOT / "results" / folder / "training.json"
    contenders = json.loads(path.read_text(encoding="utf-8"))["contenders"]
    return {name: one for name, one in contenders.items() if name.endswith("ours")}


def hours_of_a_run(one: dict) -> str:
    """Five epochs of batches of 10 at the measured speed."""
    return f"{21_035 * 10 / one['examples_per_s'] / 3600:.1f}"


def test_the_numbers_in_the_findings_are_those_of_the_results():
    assert "](figures/length.png)" in FINDINGS
    findings = re.sub(r"<!-- results:(\S+) -->.*?<!-- /results:\1 -->|\]\(http\S+\)", "", FINDINGS, flags=re.S)
    known = ELSEWHERE.keys() | set().union(*(known_numbers(ROOT / "results" / name) for name in ["mini", *PARTS]))
    for one in measured_training().values():
        known |= {f"{one['megabytes'] / 1000:.1f}", hours_of_a_run(one)}
    stated = re.findall(r"(?<![\w.])\d+\.\d+(?![\w.])", findings)
    assert len(stated) > 10 and [number for number in stated if number not in known] == []
    assert "| prefix, P = 20 | 60.5 |" in (ROOT / "mini" / "README.md").read_text(encoding="utf-8")


def elsewhere(cell: str, source: str) -> str:
    """The BLEU that the poster or the paper reports for a cell; "–" if none."""
    found = re.search(rf"([\d.]+) \({source}\b", grid.BLEU_ELSEWHERE.get(cell, ""))
    return found[1] if found else "–"


@of_mini
def test_the_findings_tables_state_each_number_of_its_own_cell(results):
    """The test above would not notice a number that belongs to another cell."""
    cells = summarise(results)

    def mean(name: str, column: str = "BLEU") -> str:
        return f"{100 * cells[name].mean(column):.1f}"

    def with_spread(names: list[str]) -> list[str]:
        return [report.score_text(cells[name], "BLEU") for name in names]

    lengths = (1, 3, 5, 10, 20, 40)
    assert table_under("Prefix length") == {
        "BLEU": [f"P = {P}" for P in lengths],
        "mini, prefix": [mean(f"prefix{P}") for P in lengths],
        "poster, prefix": [elsewhere(f"prefix{P}", "poster") for P in lengths],
    }
    assert table_under("Prefix against fine-tuning") == {
        "": ["mini", "paper", "poster"],
        "prefix, P = 5: BLEU": [mean("prefix5"), elsewhere("prefix5", "paper"), elsewhere("prefix5", "poster")],
        "fine-tuning: BLEU": [mean("finetune"), elsewhere("finetune", "paper"), elsewhere("finetune", "poster")],
        "prefix, P = 5: values said": [f"{mean('prefix5', 'values_said')} %", "–", "–"],
        "fine-tuning: values said": [f"{mean('finetune', 'values_said')} %", "–", "–"],
    }
    relatives = {mode: [f"{mode}{P}" for P in (1, 10, 20)] for mode in ("prefix", "infix", "embedding")}
    assert table_under("Embedding-only and infix") == {
        "BLEU": ["P = 1", "P = 10", "P = 20"],
        "mini, prefix": with_spread(relatives["prefix"]),
        "mini, infix": with_spread(relatives["infix"]),
        "mini, embedding-only": with_spread(relatives["embedding"]),
        "paper, infix": [elsewhere(name, "paper") for name in relatives["infix"]],
        "paper, embedding-only": [elsewhere(name, "paper") for name in relatives["embedding"]],
    }
    assert table_under("Without the MLP") == {
        "P = 5": ["BLEU", "validation loss, nats", "learning rate"],
    } | {
        label: [mean(name), f"{cells[name].mean('valid_loss'):.2f}", cells[name].first["lr"]]
        for label, name in (("with the MLP", "prefix5"), ("without the MLP", "prefix5-direct"))
    }
    assert table_under("Initialisation") == {
        "all data": ["BLEU"],
        cells["init-random"].label: [mean("init-random")],
        cells["init-words"].label: [mean("init-words")],
    }
    assert table_under("Few data") == {
        "BLEU": [f"{n} examples" for n in (50, 100, 200, 500)],
        "prefix": with_spread([f"low{n}-prefix" for n in (50, 100, 200, 500)]),
        "fine-tune": with_spread([f"low{n}-finetune" for n in (50, 100, 200, 500)]),
    }
    poster = grid.POSTER_MINUTES["prefix5"] / grid.POSTER_MINUTES["finetune"]
    (ratios,) = list(table_under("Time").values())[1:]
    assert ratios == [f"{relative_time(cells['prefix5'], cells):.2f}", f"{poster:.2f}"]


@of_mini
def test_the_findings_state_the_decoding_with_each_length_norm(results):
    longer = results.with_name(f"{results.name}-5epochs")
    found = {
        (folder, row["run"], row["length_norm"]): row
        for folder in (results, longer)
        for row in read_rows(folder / "length_norm.csv")
    }
    runs = [("prefix, P = 5", results, "prefix5"), ("prefix, P = 20", results, "prefix20")]
    runs += [("prefix, P = 40", results, "prefix40"), ("prefix, P = 5, five epochs", longer, "prefix5")]
    runs += [("LoRA, r = 4 on q, v", results, "lora4"), ("LoRA, r = 4 on q, v, five epochs", longer, "lora4")]
    runs += [("prefix, P = 20, + LoRA, r = 16 on q, v, MLP", results, "prefix20-lora16-wide")]
    runs += [("prefix, P = 20, + LoRA, r = 16 on q, v, MLP, five epochs", longer, "prefix20-lora16-wide")]
    runs += [("fine-tune", results, "finetune")]
    expected = {}
    for label, folder, cell in runs:
        total, output = (found[folder, f"{cell}-seed101", norm] for norm in ("total", "output"))
        expected[label] = [f"{100 * float(row['BLEU']):.1f}" for row in (total, output)]
        expected[label] += [row["words_a_text"] for row in (total, output)]
    header, *stated = table_under("one run each (seed 101)").items()
    columns = [("BLEU" in name, "total" in name) for name in header[1]]
    assert columns == [(True, True), (True, False), (False, True), (False, False)]
    assert dict(stated) == expected
    one_seed = f"{100 * summarise(longer)['prefix5'].mean('BLEU'):.1f}"
    assert expected["prefix, P = 5, five epochs"][0] == one_seed and one_seed in FINDINGS.split("Training time")[1]


@of_mini
def test_the_findings_state_what_a_lora_an_adapter_and_the_mixtures_reach(results):
    cells = summarise(results)
    names = ["prefix5", "prefix20", "prefix40", "finetune", *(cell.name for cell in grid.combinations())]
    shown = sorted((cells[name] for name in names), key=lambda cell: int(cell.first["parameters_stored"]))
    columns = ("BLEU", "values_said")
    assert list(table_under("one epoch").items()) == [
        ("one epoch", ["stored", "validation loss", "BLEU", "values said"])
    ] + [
        (
            cell.label,
            [
                f"{int(cell.first['parameters_stored']):,}",
                f"{cell.mean('valid_loss'):.2f}",
                *(report.score_text(cell, column) for column in columns),
            ],
        )
        for cell in shown
    ]


@of_mini
def test_the_findings_state_what_five_epochs_reach(results):
    once, longer = read_runs(results), read_runs(results.with_name(f"{results.name}-5epochs"))
    shown = [longer[f"{name}-seed101"] for name in ("prefix5", "lora4", "prefix20-lora16-wide")]
    assert len(longer) == len(shown)
    expected, epochs = {}, [(once[row["run"]], row) for row in shown]
    labels = {cell.name: cell.label for cell in grid.grid(0)}
    for pair in epochs:
        assert [row["training_examples"] for row in pair] == ["42061", "42061"]
        assert [int(row["steps"]) for row in pair] == [4207, 5 * 4207]
        assert pair[0]["lr"] == pair[1]["lr"]
        expected[labels[pair[0]["cell"]]] = [f"{100 * float(row['BLEU']):.1f}" for row in pair] + [
            f"{float(row['valid_loss']):.2f}" for row in pair
        ]
    header, *stated = table_under("seed 101, one and five epochs").items()
    assert dict(stated) == expected
    assert header[1] == ["BLEU, one", "BLEU, five", "validation loss, one", "validation loss, five"]

    mixtures, tuned = epochs[-1], once["finetune-seed101"]
    compared = ("the mixture, one epoch", "the mixture, five epochs", "fine-tune, one epoch")
    columns = ("BLEU", "NIST", "METEOR", "ROUGE_L", "CIDEr", "values_said")
    assert list(table_under("seed 101 again").items()) == [
        ("seed 101 again", [report.HEADINGS[column] for column in columns]),
        *(
            (label, [report.score_text(Summary(label, [row]), column) for column in columns])
            for label, row in zip(compared, (*mixtures, tuned))
        ),
    ]
    assert "after five epochs (one run) it has the validation loss of fine-tuning after one" in " ".join(README.split())
    assert f"{float(tuned['valid_loss']):.2f}" == f"{float(mixtures[1]['valid_loss']):.2f}"
    assert all(float(mixtures[1][name]) > float(mixtures[0][name]) for name in columns if name != "BLEU")


@of_mini
def test_the_findings_state_the_mixtures_numbers_in_their_order(results):
    """A paragraph after the other: the decimals and the thousands in it."""
    cells = summarise(results)

    def of(columns: str, *names: str) -> list[str]:
        """s numbers stored, v validation loss, b BLEU of each cell."""
        write = {
            "s": lambda cell: f"{int(cell.first['parameters_stored']):,}",
            "v": lambda cell: f"{cell.mean('valid_loss'):.2f}",
            "b": lambda cell: f"{100 * cell.mean('BLEU'):.1f}",
        }
        return [write[column](cells[name]) for name in names for column in columns]

    large, small = "prefix20-lora16-wide", "prefix5-lora4"
    mixture = cells[large]
    gap = 100 * (cells["finetune"].mean("BLEU") - mixture.mean("BLEU"))
    assert gap <= 2.0 and cells["lora4"].mean("BLEU") >= 0.60
    share = f"{100 * int(mixture.first['parameters_stored']) / int(mixture.first['parameters_model']):.1f}"

    def line_at(storing: str, low: str, high: str) -> float:
        """The loss at a cell's storage on the figure's line between two others; its axis is logarithmic."""
        x, a, b = (math.log(int(cells[name].first["parameters_stored"])) for name in (storing, low, high))
        losses = [cells[name].mean("valid_loss") for name in (low, high)]
        return losses[0] + (x - a) / (b - a) * (losses[1] - losses[0])

    wide, narrow = line_at("prefix5-lora4-wide", "lora4-wide", "lora16-wide"), line_at(small, "lora4", "lora16")
    loss = {name: cell.mean("valid_loss") for name, cell in cells.items()}
    assert loss["prefix5-lora4-wide"] < wide - 0.01 and min(loss[small], loss[f"{small}-rates"]) > narrow + 0.01
    alone = [cell for cell in grid.combinations() if cell.flags["mode"] in ("lora", "adapter")]
    assert max(loss[cell.name] for cell in alone) < min(loss[f"prefix{P}"] for P in (1, 3, 5, 10, 20, 40))
    assert max(cells[cell.name].mean("values_invented") for cell in grid.combinations()) < 0.06  # values a table
    expected = [
        [cells["lora4"].first["lr"], mixture.first["lr"]],
        of("svb", "lora4", "prefix10"),
        [f"{gap:.1f}", *of("s", large), share, *of("sbv", "lora16-wide"), *of("bv", large)],
        [*of("svb", "prefix5-lora4-wide"), *of("vb", "lora4-wide"), f"{wide:.2f}", *of("svb", "lora16")],
        [*of("vs", "prefix20-lora4"), *of("v", "lora4-wide"), *of("vs", small, "lora4"), f"{narrow:.2f}"],
        of("v", "adapter16", "prefix5-adapter16", "adapter64", "prefix20-adapter64"),
        of("v", f"{small}-rates", small, f"{large}-rates", large),
    ]
    text = FINDINGS.split("### LoRA and adapter, alone and with a prefix")[1].split("\n\n### ")[0]
    assert "](figures/stored.png)" in text
    _, told = text.split("The rates were searched")
    numbers = [re.findall(r"\d{1,3}(?:,\d{3})+|\d+\.\d+", one) for one in re.split(r"\n\* \*\*", told)]
    assert numbers[: len(expected)] == expected
    front = " ".join(README.split())
    assert f"{gap:.1f} BLEU below fine-tuning and stores {share} % of its numbers" in front
    assert f"Its LoRA alone has {of('b', 'lora16-wide')[0]} (one run)" in front


@pytest.mark.slow
@pytest.mark.skipif(not DATA.exists(), reason="needs E2E's files (../shared/e2e)")
@of_mini
def test_the_values_that_minis_texts_leave_out_are_those_stated(results):
    header, *stated = table_under("values left out, seed 101").items()
    runs = ["prefix20", "lora4", "adapter64", "prefix20-lora16-wide", "finetune"]
    left = left_out([outputs_of(results, f"{name}-seed101") for name in runs])
    assert dict(stated) == left and len(header[1]) == len(runs)
    most = [sorted(left, key=lambda field: -int(left[field][column].split()[0])) for column in range(len(runs))]
    assert all({*fields[:2]} == {"price", "food"} for fields in most[:-1]) and most[-1][0] == "family friendly"


def test_smollm2s_findings_state_each_number_of_its_own_cell():
    results = ROOT / "results" / "smollm2"
    cells, minis = summarise(results), summarise(ROOT / "results" / "mini")
    both = (cells, minis)
    bleu_of_cell = {name: [f"{100 * own[name].mean('BLEU'):.1f}" for own in both] for name in ("prefix5", "finetune")}
    said = {name: [f"{100 * own[name].mean('values_said'):.1f} %" for own in both] for name in bleu_of_cell}
    others = {name: [elsewhere(name, source) for source in ("paper", "poster")] for name in bleu_of_cell}
    assert table_under("Prefix against fine-tuning", SMOLLM2) == {
        "": ["SmolLM2, 500 steps", "mini, 4,207 steps", "paper", "poster"],
        "prefix, P = 5: BLEU": [*bleu_of_cell["prefix5"], *others["prefix5"]],
        "fine-tuning: BLEU": [*bleu_of_cell["finetune"], *others["finetune"]],
        "prefix, P = 5: values said": [*said["prefix5"], "–", "–"],
        "fine-tuning: values said": [*said["finetune"], "–", "–"],
    }
    assert {own["finetune"].first["steps"] for own in both} == {"500", "4207"}
    said_of = {"SmolLM2": ("The prefix is ", "On SmolLM2 it is "), "mini": ("the difference is ", "on mini it is ")}
    for own, (place, front_place) in zip(both, said_of.values()):
        gap = 100 * (own["finetune"].mean("BLEU") - own["prefix5"].mean("BLEU"))
        assert f"{place}{gap:.1f} " in SMOLLM2.replace("\n", " ")
        assert f"{front_place}{gap:.1f} " in README.replace("\n", " ")
    falls = {}
    for name in ("prefix5", "finetune"):
        for row in cells[name].rows:
            curve = read_rows(results / "curves" / f"{row['run']}.csv")
            *_, before, last = (float(line["valid_loss"]) for line in curve if line["valid_loss"])
            falls.setdefault(name, []).append(f"{before - last:.2f}")
    stated = SMOLLM2.split("**Training time.**")[1].split("* **")[0]
    assert re.findall(r"\d\.\d+", stated) == [*falls["prefix5"], *falls["finetune"]]
    poster = grid.POSTER_MINUTES["prefix5"] / grid.POSTER_MINUTES["finetune"]
    ratios = [f"{relative_time(own['prefix5'], own):.2f}" for own in both]
    assert table_under("Time", SMOLLM2) == {
        "": ["SmolLM2", "mini", "poster"],
        "time of a prefix step, fine-tuning = 1": [*ratios, f"{poster:.2f}"],
    }
    told = " ".join(SMOLLM2.split()).split("Compared with")[1]
    for folder, place in (("no-amx/", "a prefix trains"), ("", "with AMX")):
        measured = json.loads((ROOT / "results" / f"{folder}training-smollm2.json").read_text(encoding="utf-8"))
        ratio = measured["ratios"]["prefix: ours / peer"]
        assert ratio["median"] >= 1.5 and f"{place} {ratio['median']:.2f} times" in told
        assert f"with {ratio['memory']:.2f} of the memory" in told
    decoded = {(row["run"], row["length_norm"]): row for row in read_rows(results / "length_norm.csv")}
    expected = {}
    for label, cell in (("prefix, P = 5", "prefix5"), ("prefix, P = 20", "prefix20"), ("fine-tune", "finetune")):
        run = f"{cell}-seed101"
        rows = [decoded[run, norm] for norm in ("total", "output")]
        expected[label] = [f"{100 * float(row['BLEU']):.1f}" for row in rows] + [row["words_a_text"] for row in rows]
    words = [expected[label][2] for label in ("prefix, P = 5", "fine-tune")]
    assert f"the prefix writes {words[0]} words a text, fine-tuning {words[1]}" in SMOLLM2
    of_norm = {key: 100 * float(row["BLEU"]) for key, row in decoded.items()}
    gaps = [
        of_norm["finetune-seed101", norm] - of_norm[f"{cell}-seed101", norm]
        for cell in ("prefix5", "prefix20")
        for norm in ("total", "output")
    ]
    shrinks = "the gap shrinks from {:.1f} to {:.1f} (seed 101, see Beam search), with P = 20 from {:.1f} to {:.1f}"
    assert shrinks.format(*gaps) in " ".join(SMOLLM2.split())
    header, *stated = table_under("seed 101", SMOLLM2).items()
    assert dict(stated) == expected and [("BLEU" in name, "total" in name) for name in header[1]] == [
        (True, True), (True, False), (False, True), (False, False)
    ]  # fmt: skip


def test_smollm2s_findings_state_the_prefix_lengths_and_lora_and_what_was_trained_in_fp32():
    cells, minis = (summarise(ROOT / "results" / model) for model in ("smollm2", "mini"))
    assert list(table_under("500 steps", SMOLLM2).items()) == [
        ("500 steps", ["stored", "BLEU", "validation loss, nats", "values said", "mini, BLEU", "poster, BLEU"]),
        *(
            (
                cell.label,
                [
                    f"{int(cell.first['parameters_stored']):,}",
                    report.score_text(cell, "BLEU"),
                    f"{cell.mean('valid_loss'):.2f}",
                    report.score_text(cell, "values_said"),
                    report.score_text(minis[name], "BLEU"),
                    elsewhere(name, "poster"),
                ],
            )
            for name, cell in sorted(cells.items(), key=lambda pair: place_in_table(*pair))
            if "low" not in name
        ),
    ]
    in_bf16 = {name for name, cell in cells.items() if {row["dtype"] for row in cell.rows} == {"bf16"}}
    assert in_bf16 == {"prefix5", "finetune"} and "P = 5 and fine-tuning were trained in bf16" in SMOLLM2
    (bf16, fp32) = re.findall(r"reproduce.py .* --only (.*)", SMOLLM2)
    assert {*bf16.split()} == in_bf16 and {*fp32.split()} == cells.keys() - in_bf16
    assert {name: len(cell.rows) for name, cell in cells.items()} == grid.PARTIAL["smollm2"]  # the whole grid
    stored = {cells[name].first["parameters_stored"] for name in ("prefix20", "lora4")}
    assert len(stored) == 1 and "stores as many numbers as P = 20" in " ".join(SMOLLM2.split())
    told = " ".join(SMOLLM2.split())
    paper = [elsewhere(name, "paper") for name in ("embedding10", "prefix5", "infix10")]
    assert "as in the paper ({} at P = 10, prefix {})".format(*paper) in told
    assert f"**Infix** is in between, as in the paper ({paper[2]} at P = 10)" in told
    order = [cells[name].mean("BLEU") for name in ("embedding10", "prefix1", "infix10", "prefix5")]
    assert order == sorted(order) and f"its BLEU is {100 * (order[3] - order[2]):.1f} lower" in told
    losses = [f"{cells[name].mean('valid_loss'):.2f}" for name in ("infix10", "prefix5")]
    assert "Its loss, {}, is close to that of a prefix which stores half as much (P = 5, {})".format(*losses) in told
    assert cells["infix10"].first["parameters_stored"] == str(2 * int(cells["prefix5"].first["parameters_stored"]))
    assert cells["infix10"].mean("valid_loss") - cells["prefix5"].mean("valid_loss") < 0.01
    one, five, twenty = (100 * cells[f"prefix{P}"].mean("BLEU") for P in (1, 5, 20))
    assert f"BLEU rises by {five - one:.1f} from P = 1 to 5" in SMOLLM2
    three, ten = (100 * cells[f"prefix{P}"].mean("BLEU") for P in (3, 10))
    assert one < three < five and "with P = 3 in between" in told
    assert all(0 < longer - five < 100 * cells["prefix5"].spread("BLEU") for longer in (ten, twenty))
    losses = [f"{cells[f'prefix{P}'].mean('valid_loss'):.2f}" for P in (5, 10, 20)]
    assert "falls a little, from {} to {} and {}".format(*losses) in told
    both, alone = cells["prefix5-lora4-rates"], (cells["prefix5"], cells["lora4"])
    assert min(cell.mean("valid_loss") for cell in alone) < both.mean("valid_loss") < alone[0].mean("valid_loss")
    assert both.mean("BLEU") < min(cell.mean("BLEU") for cell in alone)
    its = minis["prefix5-lora4-rates"].mean("BLEU")
    assert its > max(minis[name].mean("BLEU") for name in ("prefix5", "lora4"))
    below = [100 * (cells["finetune"].mean("BLEU") - cells[name].mean("BLEU")) for name in ("lora4", "prefix20")]
    assert "about 5 BLEU below" in SMOLLM2 and all(4.5 < gap < 5.5 for gap in below)
    prefixes = [cell.mean("BLEU") for name, cell in minis.items() if cell.first["mode"] == "prefix"]
    assert minis["lora4"].mean("BLEU") > max(prefixes)


def test_smollm2s_findings_state_what_few_data_give():
    results = ROOT / "results" / "smollm2"
    cells, minis = summarise(results), summarise(ROOT / "results" / "mini")
    few, tuned = cells["low500-prefix"], cells["low500-finetune"]
    section = SMOLLM2.split("### Few data")[1].split("### Time")[0]
    told = " ".join(section.split())
    columns = ("BLEU", "NIST", "METEOR", "CIDEr", "values_said")
    labels = {
        "prefix, 500 examples": few,
        "fine-tune, 500 examples": tuned,
        "prefix, P = 5, 5,000 examples": cells["prefix5"],
        "fine-tune, 5,000 examples": cells["finetune"],
    }
    assert list(table_under("Few data", SMOLLM2).items()) == [
        ("", ["BLEU", "NIST", "METEOR", "CIDEr", "values said", "validation loss, nats"]),
        *(
            (label, [*(report.score_text(cell, name) for name in columns), f"{cell.mean('best_valid_loss'):.2f}"])
            for label, cell in labels.items()
        ),
    ]
    rows, curves = read_runs(results), {}
    seeds = [("BLEU, words a text", [f"seed {seed}" for seed in grid.SEEDS])]
    for label, cell in (("prefix, 500 examples", few), ("fine-tune, 500 examples", tuned)):
        found = []
        assert {(row["steps"], row["keep"], row["lr"]) for row in cell.rows} == {("400", "best", "0.0003")}
        for seed in grid.SEEDS:
            name = f"{cell.first['cell']}-seed{seed}"
            texts = outputs_of(results, name)
            words = sum(len(text.split()) for text in texts) / len(texts)
            found.append(f"{100 * float(rows[name]['BLEU']):.1f}, {words:.1f}")
            curve = read_rows(results / "curves" / f"{name}.csv")
            curves[name] = {int(row["step"]): float(row["valid_loss"]) for row in curve if row["valid_loss"]}
        seeds.append((label, found))
    assert list(table_under("BLEU, words a text", SMOLLM2).items()) == seeds
    gaps = [
        100 * (float(rows[f"low500-prefix-seed{seed}"]["BLEU"]) - float(rows[f"low500-finetune-seed{seed}"]["BLEU"]))
        for seed in grid.SEEDS
    ]
    assert [gap > 0 for gap in gaps] == [True, False, True]
    assert f"ahead in two of three seeds, and behind by {-gaps[1]:.1f} BLEU in the third" in told
    both = "{} against {} BLEU".format(*(report.score_text(cell, "BLEU") for cell in (few, tuned)))
    front = f"its prefix is ahead of fine-tuning, as in the paper: {both} (three seeds, of which fine-tuning wins one"
    assert front in " ".join(README.split())
    assert all(few.mean(name) > tuned.mean(name) for name in metrics.CORPUS_KEYS)
    assert all(few.spread(name) < tuned.spread(name) for name in columns)
    for name, curve in curves.items():
        assert len(curve) == 5 and min(curve, key=curve.get) == (80 if "finetune" in name else 400)
    assert "step 80 in all three seeds; by step 400 its loss has risen to {:.2f} nats".format(
        tuned.mean("valid_loss")
    ) in told  # fmt: skip
    assert few.mean("best_valid_loss") > tuned.mean("best_valid_loss")
    assert 0.45 < float(rows["low500-finetune-seed103"]["values_said"]) < 0.55
    assert {row["warmup_steps"] for row in (*few.rows, *tuned.rows)} == {"100"}
    searched = {row["lr"]: row for row in read_rows(results / "search.csv") if row["family"] == "low-finetune"}
    best = searched["0.0003"]
    assert best["chosen"] == "yes" and best["steps"] == "100"
    assert f"all warm-up, ends with {float(best['valid_loss']):.2f} nats" in told
    assert {(row["prefix_len"], row["init_text"]) for row in few.rows} == {("6", grid.WORDS)}
    assert cells["prefix5"].first["lr"] == "0.001" and "a rate of 1e-3" in told
    for n in (50, 100, 200, 500):
        assert minis[f"low{n}-finetune"].mean("BLEU") > minis[f"low{n}-prefix"].mean("BLEU")


def place_in_table(name: str, cell: Summary) -> tuple[bool, int, bool]:
    """By what they store: prefixes and embeddings, LoRA, fine-tuning."""
    return name == "finetune", int(cell.first["parameters_stored"]), name.startswith("lora")


def test_what_the_front_page_says_of_smollm2s_cost_is_recorded():
    said = README.replace("\n", " ")
    found = read_runs(ROOT / "results" / "smollm2")
    both = [found[f"prefix5-seed{seed}"] for seed in (101, 102)]
    minutes = [sorted(float(run[name]) / 60 for run in both) for name in ("training_seconds", "decoding_seconds")]
    assert "{:.0f} to {:.0f} minutes of training with a prefix".format(*minutes[0]) in said
    assert "and {:.0f} to {:.0f} of decoding on such a core".format(*minutes[1]) in said
    rates = {float(found[f"{cell}-seed101"]["lr"]) for cell in ("prefix5", "finetune")}
    assert rates == {*RATES["smollm2"][:2]}  # train.py's defaults are those of the search
    assert f"equal storage on SmolLM2 (P = 20, {100 * float(found['prefix20-seed101']['BLEU']):.1f} BLEU)" in said
    in_bf16, in_fp32 = (
        [
            21_035 * float(run["training_seconds"]) / int(run["steps"]) / 3600
            for run in found.values()
            if run["dtype"] == dtype and run["cell"] in ("prefix1", "prefix3", "prefix5", "prefix10", "prefix20")
        ]
        for dtype in ("bf16", "fp32")
    )
    assert "half a day on a CPU core with AVX512-BF16, and about a day without" in said
    assert all(11 < hours < 15 for hours in in_bf16) and all(20 < hours < 29 for hours in in_fp32)
    measured = json.loads((ROOT / "results" / "no-amx" / "training-smollm2.json").read_text(encoding="utf-8"))
    assert f"{measured['contenders']['prefix, ours']['megabytes'] / 1000:.1f} GB of memory" in said


def left_out(several: list[list[str]]) -> dict[str, list[str]]:
    """field -> for each of several runs' outputs the share of the tables' values of this field that is left out."""
    groups = group_references(load_split(str(DATA), "test"))
    fields = [field.split(" : ")[0] for source in groups for field in source.split(" | ")]
    lefts = [
        [
            value.split(" : ")[0]
            for source, output in zip(groups, outputs)
            for value in checker(str(DATA)).check(source, output).omitted
        ]
        for outputs in several
    ]
    return {name: [f"{100 * left.count(name) / fields.count(name):.0f} %" for left in lefts] for name in {*fields}}


@pytest.mark.slow
@pytest.mark.skipif(not DATA.exists(), reason="needs E2E's files (../shared/e2e)")
def test_the_values_that_smollm2s_texts_leave_out_are_those_stated():
    header, *stated = table_under("values left out", SMOLLM2).items()
    assert len(header[1]) == 4 and len(stated) == 6
    runs = []
    for label in header[1]:
        cell, seed = label.split(", seed ")
        runs.append(f"{'prefix5' if cell == 'prefix' else cell.replace('-', '')}-seed{seed}")
    assert dict(stated).items() <= left_out([outputs_of(ROOT / "results" / "smollm2", run) for run in runs]).items()


def test_one_run_wrote_the_same_texts_in_every_way():
    found = json.loads((ROOT / "results" / "steady.json").read_text(encoding="utf-8"))
    assert [row["how"] for row in found["rows"]] == [how for how, *_ in steady.WAYS]
    assert all(row["texts_that_differ"] == 0 and row["BLEU"] == found["rows"][0]["BLEU"] for row in found["rows"])
    assert (found["model"], found["steps"], found["tables"], found["machine"]["dtype"]) == ("mini", 600, 630, "fp32")
    stated = FINDINGS.split("steady.py")[1].split("What is left")[0]
    for folder, gpt2 in (("", "with AMX"), ("no-amx/", "with AVX512-BF16")):
        for name in ("decoding", "decoding-fp32"):
            report = json.loads((ROOT / "results" / f"{folder}{name}.json").read_text(encoding="utf-8"))
            assert f"{report['contenders']['finetune, ours']['sentences_per_s']:.1f}" in stated, gpt2


@of_mini
def test_few_data_favour_fine_tuning_and_a_prefixs_loss_behaves_as_stated(results):
    rows = read_runs(results)
    for n in (50, 100, 200, 500):
        for seed in grid.SEEDS:
            assert float(rows[f"low{n}-finetune-seed{seed}"]["BLEU"]) > float(rows[f"low{n}-prefix-seed{seed}"]["BLEU"])
            curve = read_rows(results / "curves" / f"low{n}-prefix-seed{seed}.csv")
            *_, before, last = (float(line["valid_loss"]) for line in curve if line["valid_loss"])
            assert (before - last > 0.01) == (n >= 200)  # nats a token, in the last fifth of the steps


def test_the_cost_stated_for_gpt2_follows_from_the_measured_speeds():
    """benchmarks/README.md, a row each for time and memory; and the grid's size in results/mini/README.md."""
    stated = table_under("A run of GPT-2 small", (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8"))
    expected = {"": ["with AMX", "without AMX", "the poster's GPU"]}
    for label, cell, name in (
        ("prefix, P = 5", "prefix5", "prefix, ours"),
        ("fine-tuning", "finetune", "finetune, ours"),
    ):
        both = [measured_training(folder)[name] for folder in ("", "no-amx")]
        minutes = f"{grid.POSTER_MINUTES[cell]:g} minutes"
        expected[f"{label}: time"] = [*(f"{hours_of_a_run(one)} hours" for one in both), minutes]
        expected[f"{label}: peak memory"] = [*(f"{one['megabytes'] / 1000:.1f} GB" for one in both), ""]
    assert stated == expected
    trained = [cell for cell in grid.posters(0) if cell.rate]
    runs = {few: 0 for few in (False, True)}
    for cell in trained:
        runs["train_examples" in cell.flags] += len(grid.SEEDS) if cell.all_seeds else 1
    more = sum(len(grid.SEEDS) if cell.all_seeds else 1 for cell in grid.combinations())
    section = FINDINGS.split("## Cost for GPT-2 small\n")[1]
    assert {str(runs[False]), str(runs[True]), str(more)} <= set(re.findall(r"(?<![\d,.])\d+(?![\d,.])", section))
    for name, one in measured_training().items():
        assert hours_of_a_run(one) in section and f"{one['megabytes'] / 1000:.1f} GB" in section, name


def bleu_of(outputs: list[str]) -> float:
    """On E2E's test set."""
    groups = group_references(load_split(str(DATA), "test")).values()
    segments = [
        ngrams.segment(mteval.tokenize(out), [mteval.tokenize(text) for text in group])
        for out, group in zip(outputs, groups)
    ]
    return bleu.bleu(segments)


@pytest.mark.slow
@pytest.mark.parametrize(
    "results", [ROOT / "results" / name for name in ("mini", "mini-5epochs")], ids=lambda p: p.name
)
def test_the_decoding_with_each_length_norm_is_that_of_the_outputs(results):
    rows, runs = read_rows(results / "length_norm.csv"), read_runs(results)
    assert rows
    for row in rows:
        own = row["length_norm"] == runs[row["run"]]["length_norm"]
        outputs = outputs_of(results, row["run"] + ("" if own else f"-length_norm_{row['length_norm']}"))
        assert row["words_a_text"] == f"{sum(len(text.split()) for text in outputs) / len(outputs):.1f}"
        if own:
            assert all(row[name] == runs[row["run"]][name] for name in metrics.CORPUS_KEYS)
        elif DATA.exists():
            assert math.isclose(float(row["BLEU"]), bleu_of(outputs), abs_tol=1e-6)
