"""The experiment: a grid of tiny runs from end to end, killed and resumed, and the report made from its results."""

import csv
import dataclasses
import functools
import gc
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_llama import TINY, lively, write_hub

import evaluate
import metrics
import train as train_module
from e2e_data import group_references, load_split
from evaluate import decode
from experiments import estimate, grid, length_norm, record, report, reproduce, search, steady, summary
from experiments.record import COLUMNS, data_label, read_rows, read_runs, write_rows
from experiments.slots import SlotChecker
from experiments.zero_shot import zero_shot
from harness.files import InputError, sha256_of
from harness.runs import start_model
from harness.settings import Settings
from harness.tokenizers import load_tokenizer
from llama import Llama
from prefix import Prefix
from weights import load_gpt2

ROOT = Path(__file__).resolve().parent.parent
RATE, STEPS = 3e-3, 2
ALL = set(grid.PUBLISHED_RATES)  # families
CELLS = (
    "zeroshot",
    "prompt",
    "finetune",
    "prefix5",
    "prefix1",
    "infix10",
    "embedding10",
    "prefix5-direct",
    "init-*",
    "low50-*",
    "prefix5-lora4",
    "prefix5-lora4-rates",
    "adapter16",
)


def arguments(world, folder, *more: str, steps: int = 4) -> list[str]:
    """The command line of a small grid with its results in folder / "tiny"."""
    flags = {"model": world / "model", "data": world / "data", "max_steps": steps, "max_new_tokens": 12}
    flags |= {"device": "cpu", "dtype": "fp32", "out": folder / "tiny", "runs": folder / "runs"}
    return [word for name, value in flags.items() for word in (f"--{name}", str(value))] + list(more)


def write_rates(folder: Path, data: str = "data") -> None:
    """Write search.csv as a search on this data would."""
    rows = [{"family": family, "data": data, "lr": RATE, "chosen": "yes"} for family in grid.PUBLISHED_RATES]
    write_rows(folder / "tiny" / "search.csv", search.COLUMNS, rows)


def contents(folder: Path) -> dict[str, bytes]:
    """The bytes of each file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module", autouse=True)
def quick_runs():
    """Shorten what is not tested here: fitting a prefix to words (see test_prefix.py), and the garbage collection after
    each run, which skips the objects that pytest and transformers have created by now."""
    gc.collect()
    gc.freeze()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Prefix, "init_from_words", functools.partialmethod(Prefix.init_from_words, steps=20))
        yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def made(world, tmp_path_factory):
    """A grid that has run: folder / "tiny" (results) and folder / "runs". Read only."""
    folder = tmp_path_factory.mktemp("experiment")
    write_rates(folder)
    reproduce.main(arguments(world, folder, "--seeds", "1", "2", "--only", *CELLS, steps=STEPS))
    return folder


@pytest.fixture
def no_report(monkeypatch):
    """For tests of the runs only: drawing the figures is slow."""
    monkeypatch.setattr(reproduce, "write_report", lambda results: None)


# ----------------------------------------------------------------------------- the grid


def test_the_grid_is_the_posters_and_the_papers_with_train_pys_defaults(world):
    base = {"model": str(world / "model"), "data": str(world / "data"), "device": "cpu"}
    runs = {run.name: run for run in grid.plan(base, grid.PUBLISHED_RATES, "runs/x")}
    seeds = {run.cell.name: [] for run in runs.values()}
    for run in runs.values():
        seeds[run.cell.name].append(run.settings.seed)
    lengths = [f"prefix{P}" for P in (1, 3, 5, 10, 20, 40)] + [
        f"{mode}{P}" for mode in ("infix", "embedding") for P in (1, 10, 20)
    ]
    low = [f"low{n}-{mode}" for n in (50, 100, 200, 500) for mode in ("prefix", "finetune")]
    assert set(seeds) == {
        "zeroshot",
        "prompt",
        "finetune",
        "prefix5-direct",
        "init-random",
        "init-words",
        *lengths,
        *low,
        *(cell.name for cell in grid.combinations()),
    }
    several = {name for name, s in seeds.items() if s == [101, 102, 103]}
    combined = {"lora4", "prefix5-lora4", "prefix20-lora16-wide"}
    assert several == {"finetune", "prefix5", "infix1", "infix10", "infix20", *low, *combined}
    assert all(s == [101] for name, s in seeds.items() if name not in several | {"zeroshot", "prompt"})
    defaults, tuned = (
        Settings(mode=mode, **base).resolve() for mode in ("prefix", "finetune")
    )  # what train.py does without flags
    where = {"out", "log_every", "valid_every"}
    for name, expected in (("prefix5-seed101", defaults), ("finetune-seed101", tuned)):
        own = dataclasses.asdict(runs[name].settings)
        assert {key for key, value in dataclasses.asdict(expected).items() if own[key] != value} <= where
        assert runs[name].steps == 5 * 12 and own["valid_every"] == 12  # after each epoch of 120 examples
    for steps in (1, 4, 42, 59):  # never more than five validations
        shorter = grid.plan(base | {"max_steps": steps}, grid.PUBLISHED_RATES, "runs/x")
        assert all(estimate.validations(run) <= 5 for run in shorter)
    s = runs["low50-prefix-seed101"].settings
    assert (s.lr, s.max_steps, s.warmup_steps, s.train_examples, s.keep, s.init_text) == (
        5e-5,
        200,
        100,
        50,
        "best",
        "table-to-text:",
    )
    assert {name: runs[f"{name}-seed101"].steps for name in low} == dict(
        zip(low, (200, 100, 200, 100, 200, 200, 400, 400))
    )
    assert runs["low100-finetune-seed101"].settings.warmup_steps == 99  # the rate rises to the last step
    n_words = len(load_tokenizer(str(world / "model")).encode_ordinary(" table-to-text:"))
    assert [runs[f"{name}-seed101"].settings.prefix_len for name in ("init-words", "init-random", "low50-prefix")] == [
        n_words
    ] * 3
    assert runs["prefix5-direct-seed101"].settings.no_reparam and not runs["init-random-seed101"].settings.init_text


VOCABULARY = os.environ.get("TIKTOKEN_CACHE_DIR") or str(ROOT.parent / "shared" / "tiktoken_cache")


@pytest.mark.skipif(
    not Path(VOCABULARY).exists(), reason="needs GPT-2's vocabulary in TIKTOKEN_CACHE_DIR or ../shared/tiktoken_cache"
)
def test_for_gpt2_the_words_are_six_tokens(world, monkeypatch):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", VOCABULARY)
    base = {"data": str(world / "data"), "device": "cpu"}
    runs = {run.name: run for run in grid.plan(base, grid.PUBLISHED_RATES, "runs/x")}
    lengths = {runs[f"{name}-seed101"].settings.prefix_len for name in ("init-words", "init-random", "low500-prefix")}
    assert lengths == {6}
    assert runs["prefix5-seed101"].settings.model == "gpt2"


def test_gpt2_takes_the_papers_rates_and_other_models_those_of_the_search(tmp_path):
    for base in ({}, {"model": "gpt2-medium"}, {"model": "gpt2", "weights": "random"}):
        assert reproduce.rates_for(base, tmp_path, tmp_path, ALL, dry_run=False) == grid.PUBLISHED_RATES
    write_rates(tmp_path, record.E2E)
    with pytest.raises(InputError, match="is a search on E2E, the paper's files, not on data: choose another --out"):
        search.read_rates(tmp_path / "tiny", "data")
    assert set(reproduce.rates_for({}, tmp_path / "tiny", tmp_path, ALL, dry_run=False).values()) == {RATE}
    rows = read_rows(tmp_path / "tiny" / "search.csv")
    write_rows(tmp_path / "tiny" / "search.csv", search.COLUMNS, rows[1:])
    with pytest.raises(InputError, match="has no learning rate for prefix: run python experiments/search.py"):
        reproduce.rates_for({}, tmp_path / "tiny", tmp_path, ALL, dry_run=False)


def test_the_combinations_store_what_their_names_say_and_are_trained_alike(world):
    base = {"model": "mini", "data": str(world / "data"), "device": "cpu"}
    runs = {run.name: run for run in grid.plan(base, grid.PUBLISHED_RATES, "runs/x")}
    own = [runs[f"{cell.name}-seed101"].settings for cell in grid.combinations()]
    alike = ("batch_size", "warmup_steps", "weight_decay", "beam_size", "dropout", "clip", "epochs")
    prefix = runs["prefix5-seed101"].settings
    assert {tuple(getattr(s, name) for name in alike) for s in own} == {tuple(getattr(prefix, name) for name in alike)}
    assert not any(s.label_smoothing for s in own)
    stored = {s.out.removeprefix("runs/x/"): sum(start_model(s)[1].sizes().values()) for s in own}
    assert stored["lora4-seed101"] == 24_576 and stored["prefix5-lora4-seed101"] == 39_936
    assert stored["prefix20-lora16-wide-seed101"] == 405_504
    rates = {"prefix": 1e-3, "lora": 1e-2, "prefix-lora": 3e-3}
    runs = {run.name: run for run in grid.plan(base, grid.PUBLISHED_RATES | rates, "runs/x")}
    for name in ("prefix5-lora4", "prefix20-lora16-wide"):
        one, two = (runs[f"{name}{ending}-seed101"].settings for ending in ("", "-rates"))
        assert (one.lr, one.lora_lr, two.lr, two.lora_lr) == (3e-3, None, 1e-3, 1e-2)
        assert one == dataclasses.replace(two, lr=one.lr, lora_lr=None, out=one.out)
    assert min(stored.values()) > 15_360 and max(stored.values()) < 800_000


def test_a_models_own_grid_is_a_part_of_the_whole(world, tmp_path, monkeypatch):
    """In its order, with its number of seeds; cells outside of it are not reported as not run."""
    cells = {cell.name for cell in grid.grid(6)}
    assert set(grid.PARTIAL["smollm2"]) <= cells
    base = {"model": str(world / "model"), "data": str(world / "data"), "max_steps": 3, "device": "cpu"}
    monkeypatch.setitem(
        grid.PARTIAL, "model", {"prefix5": 2, "finetune": 3, "prefix1": 1, "low200-prefix": 1, "low500-prefix": 1}
    )
    runs = [run.name for run in grid.plan(base, grid.PUBLISHED_RATES, "runs")]
    assert runs == ["prefix5-seed101", "prefix5-seed102", "finetune-seed101", "finetune-seed102", "finetune-seed103",
                    "prefix1-seed101", "low200-prefix-seed101", "low500-prefix-seed101"]  # fmt: skip
    tried = []
    monkeypatch.setattr(search, "try_rate", lambda run, lr: tried.append(run.cell.name) or abs(lr - 1e-3))
    search.search(tmp_path, tmp_path / "runs", base, max_steps=2)
    assert set(tried) == {"prefix5", "finetune", "low200-prefix"}  # in place of low100-prefix
    row = {"model": "model"}
    found = {name: summary.Summary(name, [row]) for name in ("prefix5", "prefix1")}
    assert report.not_run(found, report.MAIN) == " Not run: fine-tune."


def test_every_cell_has_a_place_in_the_report():
    cells = {cell.name for cell in grid.grid(6)}
    assert cells == {name for names in report.SECTIONS.values() for name in names}
    assert cells >= {*report.MAIN, *report.SAMPLED, *grid.BLEU_ELSEWHERE, *search.REPRESENTATIVE.values()}
    assert (
        search.REPRESENTATIVE.keys() == grid.PUBLISHED_RATES.keys() == {cell.rate for cell in grid.grid(6) if cell.rate}
    )


# ----------------------------------------------------------------------------- runs from end to end


def test_a_grid_runs_from_end_to_end(world, made):
    rows = read_runs(made / "tiny")
    cells = (
        "finetune", "prefix5", "prefix1", "infix10", "embedding10", "prefix5-direct", "init-random", "init-words",
        "low50-prefix", "low50-finetune", "adapter16", "prefix5-lora4", "prefix5-lora4-rates",
    )  # fmt: skip
    both = ("finetune", "prefix5", "infix10", "low50-prefix", "low50-finetune", "prefix5-lora4")
    expected = [f"{cell}-seed{seed}" for cell in cells for seed in (1, 2) if seed == 1 or cell in both]
    assert list(rows) == ["zeroshot", "prompt", *expected]  # in the grid's order
    groups = group_references(load_split(str(world / "data"), "test"))
    for name, row in rows.items():
        outputs = (made / "tiny" / "outputs" / f"{name}.txt").read_text().split("\n")[:-1]
        scores = metrics.score(outputs, list(groups.values()))
        for key in metrics.CORPUS_KEYS:
            assert row[key] == (f"{scores[key]:.6f}" if key in scores else "")
        assert row["revision"] and row["machine"] == "CPU, 1 thread" and row["signature"] == metrics.signature()
        assert (row["dtype"], row["model"], row["data"]) == ("fp32", "model", "data")
        trained = name not in ("zeroshot", "prompt")
        assert row["steps"] == (str(STEPS) if trained else "0") and (float(row["training_seconds"] or 0) > 0) == trained
        curve = read_rows(made / "tiny" / "curves" / f"{name}.csv")
        assert [line["step"] for line in curve] == (["1", "2"] if trained else [])
        assert not trained or curve[-1]["valid_loss"] == row["valid_loss"] != ""
    L, C, whole = 2, 64, sum(p.numel() for p in load_gpt2(str(world / "model")).parameters())
    stored = {name: int(row["parameters_stored"]) for name, row in rows.items()}
    assert (
        stored["prefix5-seed1"] == stored["prefix5-direct-seed1"] == 5 * 2 * L * C
        and stored["infix10-seed1"] == 10 * 2 * L * C
    )
    assert (stored["embedding10-seed1"], stored["finetune-seed1"], stored["zeroshot"], stored["prompt"]) == (
        10 * C,
        whole,
        0,
        0,
    )
    assert int(rows["prefix5-direct-seed1"]["parameters_trained"]) == stored["prefix5-direct-seed1"]
    assert (
        int(rows["prefix1-seed1"]["bytes_on_disk"])
        == (made / "runs" / "prefix1-seed1" / "prefix.safetensors").stat().st_size
    )
    low = rows["low50-prefix-seed1"]
    assert (low["training_examples"], low["warmup_steps"], low["keep"], low["init_text"]) == (
        "50",
        str(STEPS - 1),
        "best",
        "table-to-text:",
    )
    assert (low["prompt"], rows["prompt"]["prompt"], rows["zeroshot"]["prompt"]) == ("", "table-to-text:", "")
    assert (
        rows["prefix5-seed1"]["BLEU"] != ""
        and rows["finetune-seed1"]["valid_loss"] != rows["finetune-seed2"]["valid_loss"]
    )
    drawn = {path.stem for path in (made / "tiny" / "figures").iterdir()}
    assert (made / "tiny" / "table.md").exists() and drawn == {"length", "modes", "loss", "time", "stored"}


def test_finished_runs_are_skipped(world, made, monkeypatch, capsys):
    before = contents(made)
    for module, name in ((train_module, "update"), (evaluate, "beam_search")):
        monkeypatch.setattr(module, name, lambda *_, **__: pytest.fail("something was run again"))
    reproduce.main(arguments(world, made, "--seeds", "1", "2", "--only", *CELLS, steps=STEPS))
    assert "21 runs: 21 are done, 0 to go" in capsys.readouterr().out
    assert contents(made) == before


def test_a_run_of_other_settings_is_not_taken_for_the_recorded_one(world, made, no_report, capsys):
    before = contents(made)
    with pytest.raises(SystemExit) as stopped:
        reproduce.main(arguments(world, made, "--seeds", "1", "--only", "prefix1", steps=5))
    assert stopped.value.code == 1 and contents(made) == before
    assert (
        f"runs.csv has prefix1-seed1 with steps {STEPS}, not 5: choose another --out and --runs"
        in capsys.readouterr().err
    )


@pytest.mark.slow
def test_a_grid_stopped_in_a_run_continues_it_and_ends_with_the_same_results(
    world, tmp_path, no_report, monkeypatch, capsys
):
    cells = ("--seeds", "1", "--only", "finetune", "infix1")
    for name in ("whole", "stopped"):
        write_rates(tmp_path / name)
    reproduce.main(arguments(world, tmp_path / "whole", *cells, steps=6))
    update, calls = train_module.update, []

    def shut_down_in_the_second_run(*args):
        calls.append(1)
        if len(calls) == 9:
            os.kill(os.getpid(), signal.SIGTERM)
        return update(*args)

    monkeypatch.setattr(train_module, "update", shut_down_in_the_second_run)
    with pytest.raises(SystemExit) as stopped:
        reproduce.main(arguments(world, tmp_path / "stopped", *cells, steps=6))
    assert stopped.value.code == 130 and list(read_runs(tmp_path / "stopped" / "tiny")) == ["finetune-seed1"]
    assert (tmp_path / "stopped" / "runs" / "infix1-seed1" / "checkpoint.pt").exists()
    monkeypatch.setattr(train_module, "update", update)
    reproduce.main(arguments(world, tmp_path / "stopped", *cells, steps=6))
    assert "resuming at step 3 of 6" in capsys.readouterr().out
    measured = dict.fromkeys(("training_seconds", "examples_per_s", "validation_seconds", "decoding_seconds"))
    one, other = (
        [row | measured for row in read_runs(tmp_path / name / "tiny").values()] for name in ("whole", "stopped")
    )
    assert one == other and len(one) == 2
    for kind in ("outputs", "curves", "samples"):
        assert contents(tmp_path / "whole" / "tiny" / kind) == contents(tmp_path / "stopped" / "tiny" / kind)


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
import torch
import train
from experiments import reproduce

torch.set_num_threads(1)
update, calls = train.update, []

def update_until_the_second_run(*args):
    calls.append(1)
    if len(calls) == 6:
        os.kill(os.getpid(), signal.SIGKILL)
    return update(*args)

train.update = update_until_the_second_run
reproduce.main(sys.argv[2:])
"""


@pytest.mark.slow
def test_a_grid_that_was_killed_keeps_its_finished_runs_and_continues(world, tmp_path, no_report):
    write_rates(tmp_path)
    own = arguments(world, tmp_path, "--seeds", "1", "--only", "prefix1", "infix1")
    process = subprocess.run([sys.executable, "-c", KILLED, str(ROOT), *own], capture_output=True, text=True)
    assert process.returncode == -signal.SIGKILL and "== 2 of 2: infix1-seed1" in process.stdout
    rows = read_runs(tmp_path / "tiny")
    assert list(rows) == ["prefix1-seed1"]
    reproduce.main(own)
    assert (
        read_runs(tmp_path / "tiny")["prefix1-seed1"] == rows["prefix1-seed1"]
        and len(read_runs(tmp_path / "tiny")) == 2
    )


def test_a_failing_run_is_reported_and_the_others_continue(world, tmp_path, monkeypatch, capsys):
    write_rates(tmp_path)

    def broken(*_):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(reproduce, "zero_shot", broken)
    with pytest.raises(SystemExit) as ended:
        reproduce.main(
            arguments(world, tmp_path, "--seeds", "1", "--only", "zeroshot", "low200-finetune", "low50-finetune")
        )
    assert ended.value.code == 1 and list(read_runs(tmp_path / "tiny")) == ["low50-finetune-seed1"]
    err = capsys.readouterr().err
    assert "failed: low200-finetune-seed1: --train_examples 200: there are only 120" in err
    assert "failed: zeroshot: ZeroDivisionError: a bug" in err
    assert "fine-tune, 50 examples" in (tmp_path / "tiny" / "table.md").read_text()
    write_rates(tmp_path / "none")
    with pytest.raises(SystemExit) as ended:  # if all fail, there is nothing to report
        reproduce.main(arguments(world, tmp_path / "none", "--seeds", "1", "--only", "zeroshot"))
    assert ended.value.code == 1 and "failed: zeroshot: ZeroDivisionError: a bug" in capsys.readouterr().err


def test_a_dry_run_prints_runs_and_estimate_and_writes_nothing(world, tmp_path, capsys):
    reproduce.main(arguments(world, tmp_path, "--dry_run", "--only", "prefix*", "low50-*"))
    out = capsys.readouterr().out
    assert re.search(r"^prefix5-seed103 +4 steps  lr 8e-05 ", out, re.M) and not re.search(
        "^finetune|^infix", out, re.M
    )
    assert "to be searched first" in out and re.search(r"^27 runs to go, estimated time: \d+:\d\d:\d\d$", out, re.M)
    assert contents(tmp_path) == {}
    with pytest.raises(SystemExit) as stopped:
        reproduce.main(arguments(world, tmp_path, "--dry_run", "--only", "prefx*"))
    assert (
        stopped.value.code == 2
        and "--only prefx* matches no run: the cells are zeroshot, prompt," in capsys.readouterr().err
    )


def test_the_estimate_adds_up_what_finished_runs_took(world, made):
    rows = read_runs(made / "tiny")
    took = {"validation_seconds": "6", "decoding_seconds": "5", "validations": "2"}
    per_step = {name: 5 if row["mode"] == "finetune" else 2 for name, row in rows.items()}
    rows = {name: row | took | {"training_seconds": str(STEPS * per_step[name])} for name, row in rows.items()}
    base = {
        "model": str(world / "model"),
        "data": str(world / "data"),
        "device": "cpu",
        "dtype": "fp32",
        "max_steps": 10,
    }
    runs = {run.name: run for run in grid.plan(base, grid.PUBLISHED_RATES, "runs/x")}
    costs = estimate.costs_of(list(runs.values()), rows)
    assert costs == {"prefix": (2, 3, 5), "finetune": (5, 3, 5)}
    seconds = {
        name: estimate.seconds(runs[name], costs) for name in ("prefix5-seed101", "finetune-seed101", "zeroshot")
    }
    assert seconds == {"prefix5-seed101": 10 * 2 + 5 * 3 + 5, "finetune-seed101": 10 * 5 + 5 * 3 + 5, "zeroshot": 5}
    elsewhere = {name: row | {"machine": "another"} for name, row in rows.items()}
    assert estimate.from_rows(elsewhere, runs["prefix5-seed101"].settings) == {}


def test_a_llamas_cost_can_be_timed_too(world, tmp_path, monkeypatch):
    write_hub(tmp_path, lively(Llama(TINY)))
    given = {"model": str(tmp_path), "data": str(world / "data"), "max_new_tokens": 2, "device": "cpu", "dtype": "fp32"}
    settings = Settings(**given).resolve()
    assert min(estimate.measure(settings)) > 0
    timed = []
    monkeypatch.setattr(estimate, "validation_loss", lambda model, part, *rest: timed.append(len(part)))
    estimate.measure(dataclasses.replace(settings, valid_examples=3))
    assert timed == [3]


# ----------------------------------------------------------------------------- nothing trained


def test_words_in_front_are_the_prefix_that_these_words_are(world, tmp_path):
    where = {"model": str(world / "model"), "data": str(world / "data"), "out": str(tmp_path / "prompt")}
    s = Settings(mode="finetune", device="cpu", dtype="fp32", max_new_tokens=12, **where).resolve()
    outputs = (zero_shot(s, "table-to-text:") / "outputs.txt").read_text().splitlines()
    plain = (zero_shot(dataclasses.replace(s, out=str(tmp_path / "plain"))) / "outputs.txt").read_text().splitlines()
    model, tokenizer = load_gpt2(s.model).eval(), load_tokenizer(s.model)
    words = torch.tensor(tokenizer.encode_ordinary(" table-to-text:"))
    prefix = Prefix(model.config, len(words), mid_dim=0)
    prefix.init_from_words(model, words)
    sources = list(group_references(load_split(s.data, "test")))
    assert plain == decode(model, tokenizer, sources, **s.search)
    prefix.attach(model)
    assert outputs == decode(model, tokenizer, sources, **s.search) != plain
    assert json.loads((tmp_path / "prompt" / "summary.json").read_text())["parameters"]["stored"] == 0
    validated = dataclasses.replace(s, valid_examples=3)
    runs = [grid.Run("prompt", grid.Cell("prompt", "prompt"), settings, steps=0) for settings in (s, validated)]
    assert record.identity(runs[0]) == record.identity(runs[1])  # a run without training validates nothing


def test_an_untuned_llama_is_decoded_too(world, tmp_path):
    write_hub(tmp_path / "llama", lively(Llama(TINY)))
    given = {"model": str(tmp_path / "llama"), "data": str(world / "data"), "max_new_tokens": 2, "beam_size": 1}
    s = Settings(mode="finetune", device="cpu", out=str(tmp_path / "run"), **given).resolve()
    assert len((zero_shot(s) / "outputs.txt").read_text().splitlines()) == len(
        group_references(load_split(s.data, "test"))
    )


# ----------------------------------------------------------------------------- learning rates


@pytest.mark.parametrize(
    "best, first, end", [(1e-3, 3, 6), (1e-4, 1, 6), (1e-2, 3, 8), (0.0, 0, 6), (9.0, 3, len(search.LADDER))]
)
def test_the_search_extends_the_end_that_has_the_best_rate(best, first, end):
    assert sorted(search.climb(lambda lr: abs(lr - best), start=4)) == list(search.LADDER[first:end])


@pytest.mark.parametrize(
    "model, mode, rate", [("mini", "prefix", 1e-3), ("mini", "lora", 3e-3), ("smollm2", "finetune", 3e-4)]
)
def test_the_search_begins_at_the_rate_nearest_to_train_pys_default(model, mode, rate):
    settings = Settings(model=model, mode=mode, device="cpu", lr=1.0).resolve()
    run = grid.Run("a run", grid.Cell("a cell", "a cell"), settings, steps=1)
    assert search.LADDER[search.nearest(search.default_rate(run))] == rate


@pytest.mark.parametrize("program", [search, reproduce])
def test_a_search_of_no_step_is_refused(program, world, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        program.main(arguments(world, tmp_path, "--search_steps", "0"))
    assert stopped.value.code == 2 and "--search_steps 0: must be at least 1" in capsys.readouterr().err


@pytest.mark.parametrize("program", [search, reproduce])
def test_a_results_folder_that_cannot_be_made_is_found_before_training(program, world, tmp_path, capsys, monkeypatch):
    for module in (search, reproduce):
        monkeypatch.setattr(module, "train", lambda *_, **__: pytest.fail("it was trained first"))
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(SystemExit) as stopped:
        program.main(arguments(world, tmp_path, "--out", str(tmp_path / "taken")))
    assert stopped.value.code == 2 and f"at {tmp_path / 'taken'}: check the path" in capsys.readouterr().err


@pytest.mark.parametrize("rate", [1e-9, 1e-5, 0.3, 9.0])
def test_the_first_rate_of_a_search_has_neighbours(rate):
    assert 0 < search.nearest(rate) < len(search.LADDER) - 1


@pytest.mark.slow
def test_the_search_takes_the_rate_with_the_lowest_validation_loss_and_continues_where_it_stopped(
    world, tmp_path, monkeypatch
):
    monkeypatch.setattr(search, "LADDER", (1e-4, 1e-3, 1e-2, 1e-1))
    base = {
        "model": str(world / "model"),
        "data": str(world / "data"),
        "device": "cpu",
        "dtype": "fp32",
        "max_new_tokens": 4,
    }
    train, given = search.train, []

    def interrupted(settings, **how):
        if settings.mode == "embedding":
            raise KeyboardInterrupt
        given.append(settings)
        return train(settings, **how)

    monkeypatch.setattr(search, "train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        search.search(tmp_path, tmp_path / "runs", base, max_steps=2)
    assert list(search.read_rates(tmp_path, "data")) == ["prefix", "infix"]  # the families that are done
    before = (tmp_path / "search.csv").read_text()
    monkeypatch.setattr(search, "train", lambda settings, **how: (given.append(settings), train(settings, **how))[1])
    first = len(given)
    rates = search.search(tmp_path, tmp_path / "runs", base, max_steps=2)
    assert rates.keys() == grid.PUBLISHED_RATES.keys() and (tmp_path / "search.csv").read_text().startswith(before)
    assert {(s.mode, s.no_reparam, s.train_examples) for s in given[first:]} == {  # only the families that were left
        ("embedding", False, None), ("prefix", True, None), ("finetune", False, None),
        ("prefix", False, 100), ("finetune", False, 100), ("lora", False, None), ("adapter", False, None),
        ("prefix+lora", False, None), ("prefix+adapter", False, None),
    }  # fmt: skip
    for family in rates:
        rows = [row for row in read_rows(tmp_path / "search.csv") if row["family"] == family]
        assert [row["lr"] for row in rows if row["chosen"]] == [
            min(rows, key=lambda row: float(row["valid_loss"] or "inf"))["lr"]
        ]
        assert len(rows) >= 2 and {row["steps"] for row in rows} == {"2"}


def test_the_search_is_never_longer_than_the_grid(world, tmp_path, monkeypatch):
    steps = []
    monkeypatch.setattr(search, "try_rate", lambda run, lr: steps.append(run.steps) or abs(lr - 1e-3))
    search.search(
        tmp_path,
        tmp_path / "runs",
        {"model": str(world / "model"), "data": str(world / "data"), "device": "cpu", "epochs": 2},
    )
    assert max(steps) == 2 * 12  # 120 examples


def test_a_rate_at_which_training_diverges_is_not_chosen(world, tmp_path):
    base = {
        "model": str(world / "model"),
        "data": str(world / "data"),
        "device": "cpu",
        "dtype": "fp32",
        "max_steps": 6,
    }
    run = next(run for run in grid.plan(base, grid.PUBLISHED_RATES, str(tmp_path)) if run.cell.name == "finetune")
    assert search.try_rate(run, 1e30) == float("inf")
    assert search.climb(lambda lr: float("inf") if lr > 5e-4 else 1 / lr, start=4).keys() >= {1e-4, 3e-4, 1e-3}
    with pytest.raises(InputError, match="no train data"):
        (tmp_path / "empty").mkdir()
        search.try_rate(
            dataclasses.replace(run, settings=dataclasses.replace(run.settings, data=str(tmp_path / "empty"))), 1e-3
        )


# ----------------------------------------------------------------------------- the report


def test_the_report_is_made_again_from_the_results_alone_to_the_byte(made, tmp_path):
    shutil.copytree(
        made / "tiny", tmp_path / "tiny", ignore=shutil.ignore_patterns("*.md", "figures", "outputs", "search.csv")
    )
    report.main(["--results", str(tmp_path / "tiny")])
    old, new = contents(made / "tiny"), contents(tmp_path / "tiny")
    assert new == {name: old[name] for name in new}
    assert {name for name in old if not name.startswith("outputs/")} - {"search.csv"} == new.keys()
    assert not any(b"<dc:date>" in text for name, text in new.items() if name.endswith(".svg"))


def test_the_table_states_mean_and_spread_over_seeds(made, tmp_path):
    rows = list(read_runs(made / "tiny").values())
    for row in rows:
        if row["cell"] == "prefix5":
            row["BLEU"] = {"1": "0.60", "2": "0.64"}[row["seed"]]  # mean 62, deviations of 2 points: s = sqrt(8 / 1)
        row["data"] = record.E2E
    write_rows(tmp_path / "runs.csv", COLUMNS, rows)
    table = report.main_table(report.summarise(tmp_path))
    prefix5 = next(line for line in table.splitlines() if line.startswith("| prefix, P = 5 |"))
    assert prefix5.startswith("| prefix, P = 5 | 1,280 (0.94 %) | 62.0 ± 2.8 |")
    assert (
        "± is the standard deviation over seeds (infix, P = 10: 2; prefix, P = 5: 2; fine-tune: 2;"
        " prefix, P = 5, + LoRA, r = 4 on q, v: 2); the other rows are single runs" in table
    )
    assert (
        "| *poster, prefix 0.1 %* | – | 68.5 | – | 8.71 | 44.3 | 70.4 | 2.34 | – |" in table
    )  # the Perl variant's NIST
    assert "| untuned | none |" in table


def test_published_rows_appear_for_e2e_only(made, tmp_path):
    for name, there in (("data", False), (record.E2E, True)):
        write_rows(tmp_path / "runs.csv", COLUMNS, [row | {"data": name} for row in read_runs(made / "tiny").values()])
        whole = report.full_report(report.summarise(tmp_path))
        assert ("poster, prefix" in whole) == ("others' numbers" in whole) == ("70.3 (paper, medium)" in whole) == there


def test_what_is_missing_is_said(made, tmp_path):
    cells = report.summarise(made / "tiny")
    first = "Not run: prefix, P = 20; LoRA, r = 4 on q, v; prefix, P = 20, + LoRA, r = 16 on q, v, MLP."
    assert first in report.main_table(cells)
    assert re.search(
        r"Not run: prefix, P = 3; .*infix, P = 1; infix, P = 20; .*fine-tune, 500 examples; LoRA, .*adapter, width 64;",
        report.full_report(cells),
        re.M,
    )
    posters = {cell.name for cell in grid.posters(0)}
    few = {name: cell for name, cell in cells.items() if name in posters}
    assert "LoRA" not in report.full_report(few) and "Not run: prefix, P = 20." in report.main_table(few)
    shutil.copytree(made / "tiny", tmp_path / "tiny", ignore=shutil.ignore_patterns("curves"))
    with pytest.raises(InputError, match="has no finetune-seed1.csv, though runs.csv has the run"):
        report.write_report(tmp_path / "tiny")


def test_runs_that_differ_in_more_than_the_seed_are_not_averaged(made, tmp_path):
    rows = list(read_runs(made / "tiny").values())
    place = next(i for i, row in enumerate(rows) if row["run"] == "prefix5-seed2")
    rows[place]["machine"] = "another"
    write_rows(tmp_path / "runs.csv", COLUMNS, rows)
    cells = report.summarise(tmp_path)
    assert (
        summary.relative_time(cells["prefix5"], cells) is None
        and summary.relative_time(cells["prefix1"], cells) is not None
    )
    rows[place]["steps"] = "4000"
    write_rows(tmp_path / "runs.csv", COLUMNS, rows)
    with pytest.raises(InputError, match="prefix5-seed2 and prefix5-seed1 differ in steps: run one again"):
        report.summarise(tmp_path)


def test_a_run_decoded_with_other_settings_gets_no_row(world, tmp_path, no_report, capsys):
    write_rates(tmp_path)
    own = arguments(world, tmp_path, "--seeds", "1", "--only", "prefix1", "prompt")
    reproduce.main(own)
    (tmp_path / "tiny" / "runs.csv").unlink()
    own[own.index("--max_new_tokens") + 1] = "13"
    with pytest.raises(SystemExit):
        reproduce.main(own)
    err = capsys.readouterr().err  # which names each failure twice: when it happens, and at the end
    assert err.count("prefix1-seed1 was begun with --max_new_tokens 12, not 13: resume it with the same flags") == 2
    assert err.count("was decoded with other max_new_tokens: delete the folder, or choose another --runs") == 2
    assert read_runs(tmp_path / "tiny") == {}


@pytest.mark.slow
def test_a_run_is_decoded_again_in_other_ways_and_its_texts_are_compared(made, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(steady, "WAYS", (steady.WAYS[0], steady.WAYS[-1]))
    monkeypatch.setattr(steady, "IN_BF16", ())
    run, out = made / "runs" / "prefix5-seed1", tmp_path / "steady.json"
    before = contents(run)
    steady.main(["--run", str(run), "--out", str(out)])
    found = json.loads(out.read_text())
    assert [row["how"] for row in found["rows"]] == ["64 tables at a time", "instructions up to SSE4"]
    bleu = json.loads((run / "scores.json").read_text())["BLEU"]
    assert found["rows"][0] | {"seconds": 0} == {
        "how": "64 tables at a time", "texts_that_differ": 0, "BLEU": round(100 * bleu, 4), "seconds": 0,
    }  # fmt: skip
    assert (found["mode"], found["prefix_len"], found["steps"]) == ("prefix", 5, STEPS)
    assert contents(run) == before and "0 of" in capsys.readouterr().out
    monkeypatch.setattr(steady, "WAYS", (("wrong", ("--beam_size", "0"), {}),))
    with pytest.raises(SystemExit):
        steady.main(["--run", str(run), "--out", str(tmp_path / "none.json")])
    assert "--beam_size 0: must be at least 1" in capsys.readouterr().err and not (tmp_path / "none.json").exists()


RECORD_MANY = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from experiments.record import COLUMNS, add_row
for i in range(40):
    name = f"{sys.argv[3]}{i}"
    add_row(Path(sys.argv[2]), dict.fromkeys(COLUMNS, name) | {"run": name}, [])
"""


@pytest.mark.slow
def test_a_run_that_an_earlier_version_finished_is_recorded(world, made, tmp_path):
    """It called the model's own weights gpt2."""
    base = {"model": str(world / "model"), "data": str(world / "data"), "max_steps": STEPS, "max_new_tokens": 12}
    rates = dict.fromkeys(grid.PUBLISHED_RATES, RATE)
    runs = grid.plan(base | {"device": "cpu", "dtype": "fp32"}, rates, str(tmp_path), (1, 2))
    run = next(run for run in runs if run.name == "prefix5-seed1")
    shutil.copytree(made / "runs" / run.name, tmp_path / run.name)
    path = tmp_path / run.name / "summary.json"
    path.write_text(path.read_text().replace('"model": ', '"gpt2": '))
    row = record.record(tmp_path / "results", run, [run.name])
    assert row | {"revision": ""} == read_runs(made / "tiny")[run.name] | {"revision": ""}


def test_two_processes_that_share_a_folder_lose_no_row(tmp_path):
    command = [sys.executable, "-c", RECORD_MANY, str(ROOT), str(tmp_path)]
    both = [subprocess.Popen([*command, name], stderr=subprocess.PIPE) for name in "ab"]
    assert [process.wait() for process in both] == [0, 0], [process.stderr.read() for process in both]
    assert set(read_runs(tmp_path)) == {f"{name}{i}" for name in "ab" for i in range(40)}


def decode_with_each_norm(folder: Path, *runs: str) -> list[dict[str, str]]:
    """length_norm.csv of a grid in `folder`."""
    length_norm.main(
        ["--results", str(folder / "tiny"), "--runs", str(folder / "runs"), *(["--only", *runs] if runs else [])]
    )
    return read_rows(folder / "tiny" / "length_norm.csv")


def test_finished_runs_are_decoded_again_with_each_length_norm(world, made, tmp_path, monkeypatch):
    shutil.copytree(made, tmp_path / "copy")
    copy, runs = tmp_path / "copy", read_runs(made / "tiny")
    rows = decode_with_each_norm(copy, "finetune-seed1", "prefix5-seed2")
    assert [(row["run"], row["length_norm"]) for row in rows] == [
        (name, norm) for name in ("finetune-seed1", "prefix5-seed2") for norm in ("total", "output", "none")
    ]
    groups = group_references(load_split(str(world / "data"), "test"))
    for row in rows:
        own = row["length_norm"] == "total"
        ending = "" if own else f"-length_norm_{row['length_norm']}"
        outputs = (copy / "tiny" / "outputs" / f"{row['run']}{ending}.txt").read_text(encoding="utf-8").split("\n")[:-1]
        scores = metrics.score(outputs, list(groups.values()))
        assert all(float(row[key]) == pytest.approx(scores[key], abs=1e-6) for key in ("BLEU", "ROUGE_L"))
        assert row["words_a_text"] == f"{sum(len(text.split()) for text in outputs) / len(outputs):.1f}"
        assert not own or all(row[key] == runs[row["run"]][key] for key in metrics.CORPUS_KEYS)
    monkeypatch.setattr(length_norm, "evaluate_run", lambda *args, **kwargs: pytest.fail("decoded once more"))
    assert (
        decode_with_each_norm(copy, "finetune-seed1", "prefix5-seed2")
        == decode_with_each_norm(copy, "prefix5-seed2")
        == rows
    )


def test_a_run_that_was_not_trained_or_is_missing_is_not_decoded_again(made, tmp_path, capsys):
    for name in ("prefix5-seed9", "zeroshot"):
        with pytest.raises(SystemExit):
            decode_with_each_norm(made, name)
        assert (
            f"has no run {name} that was trained: run python experiments/reproduce.py first" in capsys.readouterr().err
        )
    shutil.copytree(made / "tiny", tmp_path / "tiny")
    with pytest.raises(SystemExit):
        decode_with_each_norm(tmp_path, "finetune-seed1")  # its folder is gone
    assert "finetune-seed1 is not a run: it has no settings.json" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        length_norm.main(["--results", str(tmp_path / "nothing")])
    assert "has no run * that was trained" in capsys.readouterr().err


def test_the_samples_are_the_best_and_the_worst_with_their_slot_errors(world, made):
    outputs = (made / "tiny" / "outputs" / "finetune-seed1.txt").read_text().split("\n")[:-1]
    groups = group_references(load_split(str(world / "data"), "test"))
    score = "ROUGE_L" if metrics.unavailable() else "METEOR"
    values = sorted(s[score] for s in metrics.score(outputs, list(groups.values()), per_segment=True)["segments"])
    rows = read_rows(made / "tiny" / "samples" / "finetune-seed1.csv")
    assert [row["which"] for row in rows] == ["best"] * 3 + ["worst"] * 3 and {row["score"] for row in rows} == {score}
    assert [float(row["value"]) for row in rows] == pytest.approx([*values[:-4:-1], *values[:3]], abs=1e-4)
    checker, sheet = SlotChecker(groups), (made / "tiny" / "samples.md").read_text()
    for row in rows:
        assert row["output"] == outputs[list(groups).index(row["table"])]
        assert row["omitted"].split("; ") == checker.check(row["table"], row["output"]).omitted
        assert f"table      {row['table']}\n    output     {row['output']}\n" in sheet


def test_without_meteors_tables_there_is_a_dash_and_the_samples_go_by_rouge(world, made, tmp_path, monkeypatch):
    monkeypatch.setattr(metrics.meteor, "available", lambda: "no tables here")
    groups = group_references(load_split(str(world / "data"), "test"))
    outputs = (made / "tiny" / "outputs" / "finetune-seed1.txt").read_text().split("\n")[:-1]
    checked = [SlotChecker(groups).check(source, output) for source, output in zip(groups, outputs)]
    values = sorted(s["ROUGE_L"] for s in metrics.score(outputs, list(groups.values()), per_segment=True)["segments"])
    samples = record.pick_samples(groups, outputs, checked)
    assert {row["score"] for row in samples} == {"ROUGE_L"} and float(samples[0]["value"]) == pytest.approx(
        values[-1], abs=1e-4
    )
    write_rows(tmp_path / "runs.csv", COLUMNS, [row | {"METEOR": ""} for row in read_runs(made / "tiny").values()])
    row = next(
        line for line in report.main_table(report.summarise(tmp_path)).splitlines() if line.startswith("| fine-tune |")
    )
    assert [cell.strip() for cell in row.split("|")][6] == "–"


def test_few_data_are_drawn_if_there_are_two_numbers_of_examples():
    from experiments import figures  # needs matplotlib

    row = {"BLEU": "0.5", "model": "tiny"}
    cells = {f"low500-{mode}": summary.Summary("", [row]) for mode in ("prefix", "finetune")}
    assert figures.low_data(Path(), cells) is None
    assert figures.low_data(Path(), cells | {"low50-prefix": summary.Summary("", [row])}) is not None


def test_without_matplotlib_there_are_tables_and_no_figures(made, tmp_path, monkeypatch, capsys):
    shutil.copytree(made / "tiny", tmp_path / "tiny", ignore=shutil.ignore_patterns("*.md", "figures"))
    monkeypatch.delitem(sys.modules, "experiments.figures")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    report.main(["--results", str(tmp_path / "tiny")])
    assert "no figures: matplotlib is not installed (pip install -r requirements-dev.txt)" in capsys.readouterr().out
    assert (tmp_path / "tiny" / "table.md").read_bytes() == (made / "tiny" / "table.md").read_bytes()
    assert not (tmp_path / "tiny" / "figures").exists()


def test_readmes_tables_are_those_of_the_results():
    assert report.readme_problems((ROOT / "README.md").read_text(encoding="utf-8"), ROOT / "results") == []


def test_a_readme_that_differs_from_the_results_is_noticed_and_can_be_put_right(made, tmp_path, capsys):
    readme = tmp_path / "README.md"
    readme.write_text("# Title\n\nSome text.\n")
    assert report.readme_problems(readme.read_text(), made) == []  # not all results need be in README
    with pytest.raises(SystemExit):
        report.main(["--results", str(made / "tiny"), "--readme", str(readme)])
    assert "write <!-- results:tiny --> and <!-- /results:tiny --> into it" in capsys.readouterr().err
    readme.write_text("# Title\n\n<!-- results:tiny -->\n<!-- /results:tiny -->\n\nSome text.\n")
    report.put_into_readme(readme, made / "tiny")
    text = readme.read_text()
    assert (
        report.readme_problems(text, made) == []
        and text.startswith("# Title\n\n<!--")
        and text.endswith("-->\n\nSome text.\n")
    )
    bleu = re.search(r"\| fine-tune \| .*?\| ([\d.]+) ± ", text)[1]
    changed = text.replace(f"| {bleu} ± ", f"| {float(bleu) + 0.1:.1f} ± ", 1)
    assert "README's table of tiny is not that of" in report.readme_problems(changed, made)[0]
    nowhere = tmp_path / "nowhere"
    assert report.readme_problems(text, nowhere) == [
        f"README has a table of tiny, but {nowhere / 'tiny'} has no runs.csv"
    ]


def test_results_that_this_program_did_not_write_are_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        report.main(["--results", str(tmp_path)])
    assert "holds no run" in capsys.readouterr().err
    with open(tmp_path / "runs.csv", "w", newline="") as file:
        csv.writer(file).writerows([["run", "BLEU"], ["a", "0.5"]])
    with pytest.raises(InputError, match="does not have the columns that this program writes"):
        read_runs(tmp_path)


def test_the_papers_files_are_known_by_their_checksums_wherever_they_lie(world, tmp_path, monkeypatch):
    (tmp_path / "somewhere").mkdir()
    sums = {}
    for path in (world / "data").iterdir():
        shutil.copy(path, tmp_path / "somewhere")
        sums[path.name] = sha256_of(path)
    assert data_label(str(tmp_path / "somewhere")) == "somewhere" and data_label(None) == "E2E, the paper's files"
    monkeypatch.setattr(record, "SHA256", sums)
    data_label.cache_clear()
    assert data_label(str(tmp_path / "somewhere")) == "E2E, the paper's files"
    (tmp_path / "somewhere" / "src1_test.txt").write_text("name : A||A \n")
    data_label.cache_clear()
    assert data_label(str(tmp_path / "somewhere")) == "somewhere"
    data_label.cache_clear()
