"""What README states of results/: complete, made from the rows of runs.csv, and those from the outputs beside them."""

import json
import math
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

import metrics
from e2e_data import group_references, load_split
from experiments import grid, report, search
from experiments.record import E2E, checker, read_rows, read_runs
from experiments.slots import shares
from experiments.summary import relative_time, summarise
from metrics import bleu, mteval, ngrams

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT.parent / "shared" / "e2e"
README = (ROOT / "README.md").read_text(encoding="utf-8")
SECTION = README.partition("## The poster's experiment")[2].partition("\n## ")[0]
MODELS = sorted(
    report.readme_blocks(SECTION)
)  # those of which README has a table; a reader may have made results of other models
PARTS = sorted(set(re.findall(r"\]\(results/([^/).]+)/?\)", SECTION)))  # some cells of the grid, with other settings
each_model = pytest.mark.parametrize("results", [ROOT / "results" / model for model in MODELS], ids=MODELS)
each_folder = pytest.mark.parametrize(
    "results", [ROOT / "results" / name for name in MODELS + PARTS], ids=MODELS + PARTS
)


def outputs_of(results: Path, name: str) -> list[str]:
    """What a run said, a text for each table."""
    lines = (results / "outputs" / f"{name}.txt").read_text(encoding="utf-8").split("\n")
    assert lines.pop() == ""
    return lines


def test_readme_shows_results():
    assert MODELS == ["mini"] and PARTS == ["mini-5epochs"]


@each_model
def test_every_cell_of_the_grid_has_been_run(results):
    n_seeds = {cell.name: len(grid.SEEDS) if cell.all_seeds else 1 for cell in grid.grid(0)}
    assert {name: len(cell.rows) for name, cell in summarise(results).items()} == n_seeds


@each_folder
def test_the_runs_are_alike_and_whole(results):
    rows = read_runs(results)
    assert (
        len(
            {
                (row["model"], row["data"], row["weights"], row["machine"], row["dtype"], row["torch"])
                for row in rows.values()
            }
        )
        == 1
    )
    for name, row in rows.items():
        assert len(outputs_of(results, name)) == int(row["tables"])
        curve = read_rows(results / "curves" / f"{name}.csv") if int(row["steps"]) else [{"step": "0"}]
        assert curve[-1]["step"] == row["steps"]


@each_folder
def test_the_report_is_made_of_the_rows(results):
    cells = summarise(results)
    assert (results / "table.md").read_text(encoding="utf-8") == report.full_report(cells)
    assert (results / "samples.md").read_text(encoding="utf-8") == report.samples_report(results, cells)
    for name in ("length", "modes", "loss", "time", "low_data") if results.name in MODELS else ("loss",):
        assert ElementTree.parse(results / "figures" / f"{name}.svg").getroot().tag.endswith("svg")
        assert (results / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


@each_folder
def test_every_run_has_the_rate_that_the_search_chose(results):
    tried = read_rows(results / "search.csv")
    for family in grid.PUBLISHED_RATES:
        losses = {float(row["lr"]): float(row["valid_loss"]) for row in tried if row["family"] == family}
        chosen = min(losses, key=losses.get)
        assert [float(row["lr"]) for row in tried if row["family"] == family and row["chosen"]] == [chosen]
        neighbours = {search.LADDER.index(chosen) + step for step in (-1, 1)} & set(range(len(search.LADDER)))
        assert {search.LADDER[i] for i in neighbours} <= losses.keys()  # the best is not at an end of what was tried
        own = {cell.name for cell in grid.grid(0) if cell.rate == family}
        assert {float(row["lr"]) for row in read_runs(results).values() if row["cell"] in own} <= {chosen}


@pytest.mark.skipif(not DATA.exists(), reason="E2E's files are not at hand (../shared/e2e)")
@each_model
@pytest.mark.parametrize("cell", ["prefix5", "finetune"])
def test_the_outputs_scored_again_give_the_rows(results, cell):
    row = summarise(results)[cell].first
    assert row["data"] == E2E
    groups = group_references(load_split(str(DATA), "test"))
    outputs = outputs_of(results, row["run"])
    words = [len(target.split()) for targets in groups.values() for target in targets]
    assert f"{sum(words) / len(words):.1f}" == "27.2"  # as README says
    scores = metrics.score(outputs, list(groups.values()))
    said, invented = shares([checker(str(DATA)).check(source, output) for source, output in zip(groups, outputs)])
    for name, value in (scores | {"values_said": said, "values_invented": invented}).items():
        if name in row and value is not None:
            assert math.isclose(float(row[name]), value, abs_tol=1e-6), name


ELSEWHERE = {  # numbers of README's findings that no run here has given: where they are from
    "60.5": "mini/README.md", "27.2": "words of a test reference, see above", "0.57": "the poster's 10 minutes over 17.5", "17.5": "the poster",
}  # fmt: skip


def known_numbers(folder: Path) -> set[str]:
    """What is in a results folder, as README writes it."""
    known = set(re.findall(r"\d+\.\d+", (folder / "table.md").read_text(encoding="utf-8")))
    known |= {f"{float(row['valid_loss']):.2f}" for row in read_runs(folder).values() if row["valid_loss"]}
    for row in read_rows(folder / "length_norm.csv"):
        known |= {f"{100 * float(row['BLEU']):.1f}", row["words_a_text"]}
    return known


def measured_training() -> dict[str, dict]:
    """What benchmarks/training.py found of ours, with GPT-2 small."""
    contenders = json.loads((ROOT / "results" / "training.json").read_text(encoding="utf-8"))["contenders"]
    return {name: one for name, one in contenders.items() if name.endswith("ours")}


def hours_of_a_run(one: dict) -> str:
    """Five epochs of batches of 10 at the measured speed."""
    return f"{21_035 * 10 / one['examples_per_s'] / 3600:.1f}"


def test_the_numbers_in_readmes_findings_are_those_of_the_results():
    assert "](results/mini/figures/length.png)" in SECTION
    findings = re.sub(r"<!-- results:(\S+) -->.*?<!-- /results:\1 -->", "", SECTION, flags=re.S)
    known = ELSEWHERE.keys() | set().union(*(known_numbers(ROOT / "results" / name) for name in MODELS + PARTS))
    for one in measured_training().values():
        known |= {f"{one['megabytes'] / 1000:.1f}", hours_of_a_run(one)}
    stated = re.findall(r"(?<![\w.])\d+\.\d+(?![\w.])", findings)
    assert len(stated) > 10 and [number for number in stated if number not in known] == []
    assert "| prefix, P = 20 | 60.5 |" in (ROOT / "mini" / "README.md").read_text(encoding="utf-8")


@each_model
def test_the_findings_state_each_number_of_its_own_cell(results):
    """The test before would not notice a number that belongs to another cell."""
    cells, text = summarise(results), " ".join(SECTION.split())
    mean = lambda name, column="BLEU": f"{100 * cells[name].mean(column):.1f}"  # noqa: E731
    both = lambda names: ", ".join(report.score_text(cells[name], "BLEU") for name in names)  # noqa: E731
    means = lambda names: ", ".join(map(mean, names))  # noqa: E731
    low = {mode: [f"low{n}-{mode}" for n in (50, 100, 200, 500)] for mode in ("prefix", "finetune")}
    norms = {
        (row["run"], row["length_norm"]): f"{100 * float(row['BLEU']):.1f}"
        for row in read_rows(results / "length_norm.csv")
    }
    longer = results.with_name(f"{results.name}-5epochs")
    (five,) = (
        f"{100 * float(row['BLEU']):.1f}"
        for row in read_rows(longer / "length_norm.csv")
        if row["length_norm"] == "output"
    )
    for statement in (
        f"{means(f'prefix{P}' for P in (1, 3, 5, 10, 20, 40))} for P = 1, 3, 5, 10, 20, 40.",
        f"{mean('prefix5')} against {mean('finetune')}, where",
        f"({mean('prefix5', 'values_said')} % against {mean('finetune', 'values_said')} %)",
        f"with all five epochs P = 5 reaches {100 * summarise(longer)['prefix5'].mean('BLEU'):.1f} (",
        f"give {norms['prefix5-seed101', 'output']} for P = 5, {norms['prefix20-seed101', 'output']} for P = 20 and"
        f" {norms['prefix40-seed101', 'output']} for P = 40, the one of five epochs {five}; fine-tuning gives"
        f" {norms['finetune-seed101', 'output']} instead of {norms['finetune-seed101', 'total']} (",
        f"{means(f'embedding{P}' for P in (1, 10, 20))} for P = 1, 10, 20, as",
        f"{both(f'infix{P}' for P in (1, 10, 20))} against {means(f'prefix{P}' for P in (1, 10, 20))} for P = 1, 10, 20",
        f"**Without the MLP** {mean('prefix5-direct')} instead of {mean('prefix5')},",
        f"{mean('init-random')} at random, {mean('init-words')} from words",
        f"give {both(low['finetune'])} with fine-tuning and {both(low['prefix'])} with a prefix",
        f"a prefix step takes {relative_time(cells['prefix5'], cells):.2f} of a fine-tuning step",
    ):
        assert statement in text, statement


@each_model
def test_few_data_favour_fine_tuning_and_a_prefixs_loss_behaves_as_stated(results):
    rows = read_runs(results)
    for n in (50, 100, 200, 500):
        for seed in grid.SEEDS:
            assert float(rows[f"low{n}-finetune-seed{seed}"]["BLEU"]) > float(rows[f"low{n}-prefix-seed{seed}"]["BLEU"])
            curve = read_rows(results / "curves" / f"low{n}-prefix-seed{seed}.csv")
            *_, before, last = (float(line["valid_loss"]) for line in curve if line["valid_loss"])
            assert (before - last > 0.01) == (n >= 200)  # nats a token, in the last fifth of the steps


def test_the_hours_stated_for_gpt2_follow_from_the_measured_speeds():
    hours = {name: hours_of_a_run(one) for name, one in measured_training().items()}
    assert (
        f"take {hours['prefix, ours']} hours for a prefix run and {hours['finetune, ours']} for fine-tuning;"
        in " ".join(SECTION.split())
    )


def bleu_of(outputs: list[str]) -> float:
    """On E2E's test set."""
    groups = group_references(load_split(str(DATA), "test")).values()
    segments = [
        ngrams.segment(mteval.tokenize(out), [mteval.tokenize(text) for text in group])
        for out, group in zip(outputs, groups)
    ]
    return bleu.bleu(segments)


@each_folder
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
