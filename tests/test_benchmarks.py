"""The benchmarks: both sides do the same work, and the reports and documents state what was measured."""

import importlib.util
import json
import os
import re
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import contenders  # (found through the line above)
import decoding
import mixed_batch
import scorer
import training
import where_time_goes
from tiny import write_data, write_model
from tiny_llama import TINY, lively, write_hub

from harness.files import InputError
from harness.settings import Settings
from llama import Llama
from weights import load_config


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A folder with data, a tiny model whose context holds E2E's lengths and a prefix of 200, and a tiny Llama."""
    folder = tmp_path_factory.mktemp("small")
    write_model(folder / "model", n_positions=400)
    write_hub(folder / "llama", lively(Llama(TINY)))
    write_data(folder / "data")
    return folder


def run_script(script: str, *flags: str) -> str:
    """Run the command as a user does; returns what it prints."""
    command = [sys.executable, str(ROOT / "benchmarks" / script), "--device", "cpu", *flags]
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=900
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


class Here(contenders.Contender):
    """A contender in this process: the same calls and measurements, without the seconds that a new Python takes."""

    def __init__(self, make, *arguments, device: str):
        self.object, self.device = make(*arguments), device

    def call(self, method: str, *arguments) -> dict:
        return contenders.measure(getattr(self.object, method), arguments, self.device)

    def end(self) -> None:
        pass


def run_here(monkeypatch, module, *flags: str) -> None:
    """Run a benchmark's main in this process."""
    if module is not scorer:
        monkeypatch.setattr(module, "Contender", Here)
        flags = ("--device", "cpu", *flags)
    monkeypatch.setattr(sys, "argv", ["benchmark", *flags])
    module.main()


def check_report(report: dict, key: str, rounds: int, ratios: dict[str, tuple[str, str]]) -> None:
    """Speeds are medians of their rounds, ratios are taken round by round, and the report says how it was measured."""
    assert {"command", "machine", "versions", "model", "data"} <= report.keys()
    assert report["machine"].keys() == {"device", "processor", "dtype", "torch"}
    assert {"python", "torch"} <= report["versions"].keys()
    for one in report["contenders"].values():
        assert len(one["every_round"]) == rounds and min(one["every_round"]) > 0
        assert one[key] == statistics.median(one["every_round"])
        assert 50 < one["megabytes"] < 5000  # Python and PyTorch alone are about 300
    assert report["ratios"].keys() == ratios.keys()
    for name, (above, below) in ratios.items():
        above, below, ratio = report["contenders"][above], report["contenders"][below], report["ratios"][name]
        assert ratio["every_round"] == pytest.approx(
            [a / b for a, b in zip(above["every_round"], below["every_round"])]
        )
        assert ratio["min"] <= ratio["median"] <= ratio["max"]
        every = ratio["every_round"]
        assert (ratio["min"], ratio["median"], ratio["max"]) == (min(every), statistics.median(every), max(every))
        if "memory" in ratio:
            assert ratio["memory"] == pytest.approx(above["megabytes"] / below["megabytes"])


# ----------------------------------------------------------------------------- training


@pytest.mark.slow
def test_training_beside_the_peer_gives_the_same_losses_and_consistent_ratios(small, tmp_path):
    out = tmp_path / "deep" / "training.json"
    flags = (*"--modes finetune --dropout 0 --dtype fp32 --rounds 2 --steps 2 --warm_up 1".split(), "--out", str(out))
    printed = run_script("training.py", "--model", str(small / "model"), *flags)
    report = json.loads(out.read_text())
    check_report(report, "examples_per_s", 2, {"finetune: ours / peer": ("finetune, ours", "finetune, peer")})
    assert report["batch_size"] == 10 and report["steps_a_round"] == 2
    assert {"transformers", "peft"} <= report["versions"].keys()
    assert "--modes finetune" in report["command"] and report["command"].startswith("python benchmarks/training.py ")
    ours, peer = report["contenders"]["finetune, ours"], report["contenders"]["finetune, peer"]
    assert len(ours["losses"]) == 5  # one step to warm up, two rounds of two
    assert ours["losses"] == pytest.approx(peer["losses"], abs=1e-3)
    for loss in (peer["first_loss"], ours["losses"][0]):
        assert ours["first_loss"] == pytest.approx(loss, abs=1e-3)
    assert f"{ours['examples_per_s']:.2f}" in printed
    assert f"{report['ratios']['finetune: ours / peer']['median']:.2f}" in printed
    assert "differ" not in printed


@pytest.mark.parametrize("model", ["model", "llama"])
@pytest.mark.parametrize("mode", ["prefix", "finetune"])
def test_both_sides_train_the_same_step_by_step(small, mode, model):
    """With a learning rate at which every step changes the loss: optimisers, clipping and gradients agree too."""
    equal = {"dropout": 0.0, "lr": 1e-2, "loss": "token", "device": "cpu", "dtype": "fp32", "mid_dim": 32}
    settings = Settings(mode=mode, model=str(small / model), **equal).resolve()
    examples = contenders.examples_like_e2e(10, load_config(settings.model).vocab_size)
    ours, peer = training.Ours(settings), training.Peer(settings)
    assert ours.loss(examples) == pytest.approx(peer.loss(examples), abs=1e-4)
    losses = ours.train([examples] * 6)
    assert losses == pytest.approx(peer.train([examples] * 6), abs=1e-3)
    assert losses[-1] < losses[0] - 0.05


@pytest.mark.parametrize("model", ["model", "llama"])
def test_lora_begins_at_the_peers_loss_and_both_sides_learn(small, model):
    same = {"lr": 1e-2, "loss": "token", "device": "cpu", "dtype": "fp32", "label_smoothing": 0.0, "lora_dropout": 0.0}
    settings = Settings(mode="lora", model=str(small / model), **same).resolve()
    examples = contenders.examples_like_e2e(10, load_config(settings.model).vocab_size)
    ours, peer = training.Ours(settings), training.Peer(settings)
    assert ours.loss(examples) == pytest.approx(peer.loss(examples), abs=1e-4)
    for side in (ours, peer):
        losses = side.train([examples] * 6)
        assert losses[-1] < losses[0] - 0.02


def test_lora_and_its_mixture_are_compared_with_the_peers_lora_and_our_prefix(small, tmp_path, monkeypatch, capsys):
    out = tmp_path / "training.json"
    flags = "--modes prefix lora prefix+lora --dtype fp32 --rounds 1 --steps 1 --warm_up 1 --batch_size 3".split()
    run_here(monkeypatch, training, "--model", str(small / "model"), *flags, "--out", str(out))
    report = json.loads(out.read_text())
    pairs = {
        "prefix: ours / peer": ("prefix, ours", "prefix, peer"),
        "lora: ours / peer": ("lora, ours", "lora, peer"),
        "prefix+lora: ours / the peer's lora": ("prefix+lora, ours", "lora, peer"),
        "ours: lora / prefix": ("lora, ours", "prefix, ours"),
        "ours: prefix+lora / prefix": ("prefix+lora, ours", "prefix, ours"),
    }
    check_report(report, "examples_per_s", 1, pairs)
    assert "differ" not in capsys.readouterr().out


def test_training_alone_reports_how_cost_grows(small, tmp_path, monkeypatch, capsys):
    out = tmp_path / "training.json"
    flags = "--dtype fp32 --rounds 1 --steps 1 --batch_size 3 --alone --scaling".split()
    own = ("--model", str(small / "model"), "--data", str(small / "data"))
    run_here(monkeypatch, training, *own, *flags, "--out", str(out))
    report = json.loads(out.read_text())
    check_report(report, "examples_per_s", 1, {"ours: prefix / finetune": ("prefix, ours", "finetune, ours")})
    growth = report["growth"]
    assert [line["prefix_len"] for line in growth["prefix_len"]] == [1, 5, 20, 100, 200]
    assert [line["batch_size"] for line in growth["batch_size"]] == [1, 4, 10, 32, 64]
    assert [line["model"] for line in growth["model"]] == ["model"] and report["data"] == "data"
    assert all(line["examples_per_s"] > 0 and line["megabytes"] > 0 for lines in growth.values() for line in lines)
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("prefix_len", "batch_size", "model"))


@pytest.mark.slow
def test_where_the_time_of_a_step_goes_adds_up(small, tmp_path, monkeypatch, capsys):
    out = tmp_path / "where.json"
    flags = ("--model", str(small / "model"), "--dtype", "fp32", "--steps", "3", "--warm_up", "2", "--out", str(out))
    monkeypatch.setattr(sys, "argv", ["benchmark", *flags])
    where_time_goes.main()
    modes = json.loads(out.read_text())["modes"]
    assert list(modes) == ["prefix", "finetune"]
    for found in modes.values():
        assert sum(found["ms"].values()) == pytest.approx(found["ms_a_step_profiled"])
        assert min(found["ms"].values()) >= 0
        assert all(found["ms"][kind] > 0 for kind in where_time_goes.KINDS), "no operator has a name of this kind"
        assert found["tflop_per_s"] == pytest.approx(found["gflop_a_step"] / found["ms_a_step"])  # GFLOP/ms
    # At least the layers' products, forward and for two gradients: 6 operations a weight and token,
    # for ten examples of 57 tokens each.
    config = load_config(str(small / "model"))
    layers = 6 * 12 * config.n_layer * config.n_embd**2 * 570 / 1e9
    assert 0.8 < modes["finetune"]["gflop_a_step"] / layers < 4
    assert "TFLOP/s in products" in capsys.readouterr().out


# ----------------------------------------------------------------------------- decoding


@pytest.mark.slow
def test_decoding_beside_the_peer_gives_the_same_texts_and_consistent_ratios(small, tmp_path):
    out = tmp_path / "decoding.json"
    flags = "--modes prefix --dtype fp32 --rounds 2 --sentences 7 --batch_size 3 --new_tokens 9".split()
    printed = run_script("decoding.py", "--model", str(small / "model"), *flags, "--single", "0", "--out", str(out))
    report = json.loads(out.read_text())
    check_report(report, "sentences_per_s", 2, {"prefix: ours / peer": ("prefix, ours", "prefix, peer")})
    sizes = {"sentences": 7, "single": 0, "beam_size": 5, "batch_size": 3, "new_tokens": 9}
    assert {name: report[name] for name in sizes} == sizes
    assert report["same_texts"] == {"prefix": [7, 7]}
    assert f"{report['contenders']['prefix, ours']['sentences_per_s']:.2f}" in printed
    assert "for 7 of 7 tables" in printed


def test_one_at_a_time_is_compared_with_batches(small, tmp_path, monkeypatch):
    out = tmp_path / "decoding.json"
    flags = (*"--modes finetune --rounds 2 --sentences 6 --new_tokens 12 --single 2".split(), "--out", str(out))
    own = ("--model", str(small / "model"), "--data", str(small / "data"), "--dtype", "fp32")
    run_here(monkeypatch, decoding, *own, *flags)
    report = json.loads(out.read_text())
    ratios = {
        "finetune: ours / peer": ("finetune, ours", "finetune, peer"),
        "finetune: ours / peer one at a time in fp32": ("finetune, ours", "finetune, peer, one at a time in fp32"),
        "finetune: ours / ours one at a time in fp32": ("finetune, ours", "finetune, ours, one at a time in fp32"),
    }
    check_report(report, "sentences_per_s", 2, ratios)
    assert report["same_texts"] == {"finetune": [6, 6], "finetune, one at a time in fp32": [2, 2]}


def test_each_side_decodes_in_batches_of_its_own_size(small, tmp_path, monkeypatch):
    out, sizes = tmp_path / "decoding.json", {}

    def noting_sizes(name, decode):
        def noting(self, batches, *how):
            sizes[name] = [len(prompts) for prompts in batches]
            return decode(self, batches, *how)

        return noting

    for side in (decoding.Ours, decoding.Peer):
        monkeypatch.setattr(side, "decode", noting_sizes(side.__name__, side.decode))
    flags = "--modes finetune --rounds 1 --sentences 7 --batch_size 5 --peer_batch_size 3 --single 0".split()
    own = ("--model", str(small / "model"), "--dtype", "fp32", "--new_tokens", "6")
    run_here(monkeypatch, decoding, *own, *flags, "--out", str(out))
    report = json.loads(out.read_text())
    assert sizes == {"Ours": [5, 2], "Peer": [3, 3, 1]} and (report["batch_size"], report["peer_batch_size"]) == (5, 3)
    assert report["same_texts"] == {"finetune": [7, 7]}


def test_decoding_alone_reports_how_cost_grows(small, tmp_path, monkeypatch, capsys):
    out = tmp_path / "decoding.json"
    flags = "--modes finetune --rounds 1 --sentences 2 --new_tokens 2 --single 0 --alone --scaling".split()
    run_here(monkeypatch, decoding, "--model", str(small / "model"), "--dtype", "fp32", *flags, "--out", str(out))
    report = json.loads(out.read_text())
    assert report["contenders"].keys() == {"finetune, ours"} and report["ratios"] == {} == report["same_texts"]
    assert [line["beam_size"] for line in report["growth"]["beam_size"]] == [1, 2, 3, 5, 10]
    assert [line["batch_size"] for line in report["growth"]["batch_size"]] == [1, 4, 16, 32, 64]
    assert "beam_size" in capsys.readouterr().out


@pytest.mark.parametrize("model", ["model", "llama"])
def test_both_sides_write_the_same_texts_of_the_forced_length(small, tmp_path, model):
    settings = Settings(mode="prefix", model=str(small / model), device="cpu", dtype="fp32").resolve()
    config = load_config(settings.model)
    run = decoding.make_run(tmp_path / "run", settings)
    batches = decoding.in_batches(sorted(contenders.prompts_like_e2e(50, config.vocab_size), key=len), 6, 4)
    assert [len(prompts) for prompts in batches] == [4, 2]
    ours, theirs = (side(run, "cpu", "fp32").decode(batches, 5, 25) for side in (decoding.Ours, decoding.Peer))
    assert ours == theirs and [len(ids) for ids in ours] == [25] * 6
    assert all(config.end_token not in ids for ids in ours)


# ----------------------------------------------------------------------------- what both share


def test_made_up_examples_have_e2e_lengths():
    examples = contenders.examples_like_e2e(3000, 50257)
    prompts, targets = [n for _, n in examples], [len(ids) - n for ids, n in examples]
    assert statistics.mean(prompts) == pytest.approx(29.5, abs=0.5) and (min(prompts), max(prompts)) == (14, 45)
    assert statistics.mean(targets) == pytest.approx(27, abs=0.7) and min(targets) >= 4 and max(targets) <= 79
    longest = [max(len(ids) for ids, _ in examples[i : i + 10]) for i in range(0, 3000, 10)]
    assert statistics.mean(longest) == pytest.approx(77.4, abs=1.5)
    assert all(ids[n - 1] == ids[-1] == 50256 and ids.count(50256) == 2 for ids, n in examples)
    assert examples == contenders.examples_like_e2e(3000, 50257)
    lengths = [len(prompt) for prompt in contenders.prompts_like_e2e(630, 50257)]
    assert statistics.mean(lengths) == pytest.approx(37.4, abs=0.7) and 15 <= min(lengths) <= max(lengths) <= 48


@pytest.mark.parametrize("module", [training, decoding])
def test_missing_peers_are_named_with_the_file_that_installs_them(module, monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "peft" else find(name, *rest))
    with pytest.raises(SystemExit, match="2"):
        run_here(monkeypatch, module)
    said = capsys.readouterr().err
    assert "peft" in said and "transformers" not in said and "requirements-dev.txt" in said and "--alone" in said


@pytest.mark.parametrize(
    "module, flags, message",
    [
        (training, ["--rounds", "0"], "at least 1"),
        (training, ["--steps", "0"], "at least 1"),
        (training, ["--warm_up", "0"], "at least 1"),
        (training, ["--prefix_len", "350"], "too few"),
        (decoding, ["--sentences", "0"], "at least 1"),
        (decoding, ["--single", "-1"], "at least 0"),
        (decoding, ["--new_tokens", "380"], "too few"),
        (scorer, ["--repeat", "0"], "at least 1"),
    ],
)
def test_values_that_cannot_be_measured_are_input_errors(small, tmp_path, module, flags, message, monkeypatch, capsys):
    with pytest.raises(SystemExit, match="2"):
        model = () if module is scorer else ("--model", str(small / "model"))
        run_here(monkeypatch, module, *model, "--out", str(tmp_path / "out.json"), *flags)
    assert not (tmp_path / "out.json").exists()
    assert message in capsys.readouterr().err


def test_the_recorded_command_names_no_path_of_this_machine():
    words = ["--out", "/somewhere/a.json", "--data", "/somewhere/e2e", "--out=b.json", "--long", "--modes", "prefix"]
    assert contenders.without_local_paths(words) == ["--data", "e2e", "--long", "--modes", "prefix"]
    for path in (ROOT / "results").rglob("*.json"):
        assert not re.search(r"[ \"]/\w", path.read_text(encoding="utf-8")), path


@pytest.mark.parametrize("side", [training, decoding])
def test_the_peer_runs_with_the_defaults_of_a_process(side, small, tmp_path, monkeypatch):
    """Ours has the C library keep freed memory; in the peer's process that would count as the peer's memory."""
    settings = Settings(mode="prefix", model=str(small / "model"), device="cpu", dtype="fp32").resolve()
    own = (settings,) if side is training else (decoding.make_run(tmp_path / "run", settings), "cpu", "fp32")
    called = []
    for name, place in (("keep_freed_memory", "memory"), ("flush_denormals", "denormals")):
        monkeypatch.setattr(f"fast.{name}", lambda name=name: called.append(name))
        monkeypatch.setattr(f"fast.{place}.{name}", lambda: called.append("by another way"))
    side.Peer(*own)
    assert called == []
    side.Ours(*own)
    assert called == ["keep_freed_memory", "flush_denormals"]


@pytest.mark.slow
def test_a_contender_in_its_own_process_returns_raises_and_ends():
    made = contenders.Contender(bytearray, 100_000_000, device="cpu")
    first = made.call("count", b"x")
    assert first["result"] == 0 and first["seconds"] > 0 and first["megabytes"] > 100
    with pytest.raises(AttributeError):
        made.call("no_such_method")
    made.end()
    assert made.process.exitcode == 0
    with pytest.raises(InputError, match="is not a run"):  # an error of the constructor is raised by the first call
        contenders.Contender(decoding.load_run, Path("nowhere"), device="cpu").call("decode")


# ----------------------------------------------------------------------------- the tables in the documents

STUDY = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")


def load_report(name: str) -> dict:
    return json.loads((ROOT / "results" / f"{name}.json").read_text(encoding="utf-8"))


def table_rows(text: str) -> list[list[str]]:
    """The cells of the first table in a text, without its header."""
    (table,) = re.findall(r"(?:^\|.*\n)+", text, re.M)[:1]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def section(title: str) -> str:
    """The text of a section of benchmarks/README.md."""
    return STUDY.split(f"\n## {title}\n")[1].split("\n## ")[0]


def stated_row(name: str, ratio_name: str) -> list[str]:
    """[ours, theirs, ratio, lowest – highest, memory, command], as the tables write a ratio of results/NAME.json."""
    report = load_report(name)
    mode, ratio = ratio_name.split(":")[0], report["ratios"][ratio_name]
    if mode == "ours":
        pair = tuple(f"{side.split(',')[0]}, ours" for side in ratio_name.removeprefix("ours: ").split(" / "))
    elif ratio_name.endswith("the peer's lora"):
        pair = (f"{mode}, ours", "lora, peer")
    else:
        pair = (f"{mode}, ours", f"{mode}, peer{', one at a time in fp32' * ('fp32' in ratio_name)}")
    unit = "examples_per_s" if "training" in name else "sentences_per_s"
    digits = 0 if ratio["median"] > 10 else 2 if "lora" in name and mode == "ours" else 1
    out = f" --out results/{name}.json" if name not in ("training", "decoding") else ""  # else it is the default
    return [
        *(f"{report['contenders'][contender][unit]:.1f}" for contender in pair),
        f"{ratio['median']:.{digits}f}",
        f"{ratio['min']:.{digits}f} – {ratio['max']:.{digits}f}",
        f"{ratio['memory']:.2f}" if "memory" in ratio else "",
        f"`{report['command']}{out}`",
    ]


def stated_scorer_row(name: str) -> list[str]:
    """The same of a report of scorer.py: seconds, so ours over theirs is below 1."""
    report = load_report(name)
    ours, theirs = report["ours"], report["reference"]
    every = [a / b for a, b in zip(ours["every_run"], theirs["every_run"])]
    out = f" --out results/{name}.json" if name != "scorer" else ""
    return [
        f"{ours['seconds']:.1f}",
        f"{theirs['seconds']:.1f}",
        f"{ours['seconds'] / theirs['seconds']:.2f}",
        f"{min(every):.2f} – {max(every):.2f}",
        f"{ours['megabytes'] / theirs['megabytes']:.2f}",
        f"`python benchmarks/scorer.py{out}`",
    ]


PREFIX, FINETUNE, LORA = (f"{mode}: ours / peer" for mode in ("prefix", "finetune", "lora"))
WITH_AMX = [
    ("training", PREFIX),
    ("training", FINETUNE),
    ("training", "ours: prefix / finetune"),
    ("decoding", FINETUNE),
    ("decoding", PREFIX),
    ("decoding", "finetune: ours / peer one at a time in fp32"),
    ("decoding-32", FINETUNE),
    ("decoding-16", FINETUNE),
    ("decoding-best", FINETUNE),
    ("decoding-fp32", FINETUNE),
    ("decoding-fp32-32", FINETUNE),
    ("decoding-fp32-16", FINETUNE),
]
WITHOUT_AMX = [
    ("no-amx/training", PREFIX),
    ("no-amx/training", FINETUNE),
    ("no-amx/training", "ours: prefix / finetune"),
    ("no-amx/decoding", FINETUNE),
    ("no-amx/decoding", "finetune: ours / peer one at a time in fp32"),
    ("no-amx/decoding-fp32", FINETUNE),
]


@pytest.mark.parametrize(
    "title, measured, scores",
    [("With AMX", WITH_AMX, "scorer"), ("Without AMX", WITHOUT_AMX, "no-amx/scorer")],
    ids=["amx", "no-amx"],
)
def test_the_studys_tables_are_what_was_measured(title, measured, scores):
    """Every row is a report in results/, rounded."""
    stated = [row[1:] for row in table_rows(section(title))]
    assert stated == [*(stated_row(*one) for one in measured), stated_scorer_row(scores)]
    reports = [load_report(name) for name in dict.fromkeys(name for name, _ in measured)]
    assert all(report["model"].startswith("gpt2,") for report in reports)
    assert len({report["machine"]["processor"] for report in reports}) == 1


def test_loras_rows_are_what_was_measured_and_what_was_asked():
    trained = ("prefix: ours / peer", "lora: ours / peer", "prefix+lora: ours / the peer's lora")
    trained += ("ours: lora / prefix", "ours: prefix+lora / prefix")
    measured = [("training-lora", name) for name in trained] + [("decoding-lora", "ours: lora, merged / finetune")]
    assert [row[1:] for row in table_rows(section("LoRA"))] == [stated_row(*one) for one in measured]
    reports = {name: load_report(name) for name, _ in measured}
    machines = [report["machine"] for report in reports.values()]
    assert machines[0] == machines[1] == load_report("training")["machine"]
    ratio = [reports[name]["ratios"][which]["median"] for name, which in measured]
    assert min(ratio[1:3]) >= 3 and min(ratio[3:5]) >= 0.85 and abs(ratio[5] - 1) <= 0.03
    losses = [one["first_loss"] for name, one in reports["training-lora"]["contenders"].items() if name[:4] == "lora"]
    assert abs(losses[0] - losses[1]) < training.TOLERANCE["bf16"]


def test_a_merged_lora_is_decoded_beside_the_plain_model(small, tmp_path, monkeypatch):
    out = tmp_path / "decoding.json"
    flags = "--modes finetune lora --rounds 1 --sentences 3 --new_tokens 6 --single 0 --dtype fp32".split()
    run_here(monkeypatch, decoding, "--model", str(small / "model"), *flags, "--out", str(out))
    report = json.loads(out.read_text())
    pairs = {name: (f"{name.split(':')[0]}, ours", f"{name.split(':')[0]}, peer") for name in (FINETUNE, LORA)}
    pairs["ours: lora, merged / finetune"] = ("lora, ours", "finetune, ours")
    check_report(report, "sentences_per_s", 1, pairs)
    assert report["same_texts"] == {"finetune": [3, 3], "lora": [3, 3]}  # untrained, a LoRA changes nothing


def test_smollm2s_rows_are_what_was_measured():
    names = ("training-smollm2", "no-amx/training-smollm2")
    assert [row[1:] for row in table_rows(section("SmolLM2"))] == [stated_row(name, PREFIX) for name in names]
    for name in names:
        report, gpt2s = load_report(name), load_report(name.removesuffix("-smollm2"))
        assert report["model"] == "smollm2, random weights"
        assert report["machine"]["processor"] == gpt2s["machine"]["processor"]
        losses = [one["first_loss"] for one in report["contenders"].values()]
        assert max(losses) - min(losses) < training.TOLERANCE["bf16"]


def test_the_decoding_rows_are_of_the_batches_and_the_number_format_that_they_name():
    names = [name for name, _ in WITH_AMX + WITHOUT_AMX if "decoding" in name]
    for name, report in ((name, load_report(name)) for name in names):
        ours, theirs = {"32": (32, 32), "16": (16, 16), "best": (64, 16)}.get(name.split("-")[-1], (64, 64))
        assert (report["batch_size"], report["peer_batch_size"]) == (ours, theirs), name
        assert report["machine"]["dtype"] == ("fp32" if "fp32" in name else "bf16"), name
    for name in ("training", "no-amx/training"):
        assert load_report(name)["machine"]["dtype"] == "bf16", name


def test_the_front_pages_rows_are_the_studys():
    """README's short table: training in both modes, decoding and scoring, with AMX."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    header = "\n| | ours | theirs | ratio | memory |\n"
    stated = [row[1:] for row in table_rows(header.lstrip() + text.split(header)[1])]
    rows = [*(stated_row(*one) for one in (*WITH_AMX[:2], WITH_AMX[3])), stated_scorer_row("scorer")]
    assert stated == [[ours, theirs, ratio, memory] for ours, theirs, ratio, _, memory, _ in rows]
    (ours, _, ratio, *_), told = stated_row(*WITH_AMX[9]), " ".join(text.split())
    assert f"Decoding in fp32, the default, writes {ours} sentences a second (ratio {ratio})" in told


def test_the_shares_of_a_step_are_what_was_measured():
    modes = load_report("where_time_goes")["modes"]
    formats = {
        "a step": lambda found: f"{found['ms_a_step']:.0f} ms",
        "a step under the profiler": lambda found: f"{found['ms_a_step_profiled']:.0f} ms",
        "arithmetic in products": lambda found: f"{found['gflop_a_step']:.0f} GFLOP",
        "speed of the products, under the profiler": lambda found: f"{found['tflop_per_s_of_products']:.2f} TFLOP/s",
        "speed of the step": lambda found: f"{found['tflop_per_s']:.2f} TFLOP/s",
        "speed of the step as a share of the products'": lambda found: (
            f"{100 * found['tflop_per_s'] / found['tflop_per_s_of_products']:.0f} %"
        ),
    }
    expected = [[label, *(write(modes[mode]) for mode in ("prefix", "finetune"))] for label, write in formats.items()]
    for kind in modes["prefix"]["ms"]:
        shares = (100 * found["ms"][kind] / found["ms_a_step_profiled"] for found in modes.values())
        expected.append([f"time: {kind}", *(f"{share:.0f} %" for share in shares)])
    text = section("How much of the machine this uses")
    assert table_rows(text) == expected
    prefix, prose = modes["prefix"], re.sub(r"(?m)^\|.*\n", "", text)
    share = prefix["tflop_per_s"] / prefix["tflop_per_s_of_products"]
    alone = prefix["gflop_a_step"] / prefix["tflop_per_s_of_products"]  # ms, if all but the products took no time
    finetune = modes["finetune"]["tflop_per_s"] / modes["finetune"]["tflop_per_s_of_products"]
    derived = [f"{100 * share:.0f}", f"{alone:.0f}", f"{1 / share:.1f}", f"{100 * finetune:.0f}"]
    assert set(derived) <= set(re.findall(r"(?<![\w.])\d+(?:\.\d+)?", prose))


def test_a_mixed_batch_is_timed_beside_batches_of_one_task(tmp_path, monkeypatch, capsys):
    words = f"--rows 3 --new_tokens 2 --rounds 2 --dtype fp32 --out {tmp_path / 'out.json'}".split()
    monkeypatch.setattr(sys, "argv", ["mixed_batch.py", *words])
    mixed_batch.main()
    report = json.loads((tmp_path / "out.json").read_text())
    assert all(len(report["seconds"][kind]) == 2 and min(report["seconds"][kind]) > 0 for kind in mixed_batch.KINDS)
    alone = [report["seconds"][kind][0] for kind in mixed_batch.KINDS if kind != "mixed"]
    assert report["ratios"][0] == pytest.approx(report["seconds"]["mixed"][0] / statistics.fmean(alone))
    assert f"mixed over one task: {statistics.median(report['ratios']):.3f}" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["mixed_batch.py", "--rows", "0"])
    with pytest.raises(SystemExit):
        mixed_batch.main()


def test_the_front_page_states_what_a_mixed_batch_costs():
    report = load_report("mixed_batch")
    assert report["ratio"] <= 1.15
    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert f"A mixed batch took {report['ratio']:.2f} times as long as batches of one task" in text


def test_the_front_page_states_what_the_two_tasks_reached():
    report = load_report("tasks")
    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert f"a BLEU of {100 * report['e2e']['BLEU']:.1f} on" in text
    table = report["table"]
    assert f"an F1 of {100 * table['F1']:.1f} over exact fields, with {100 * table['exact']:.1f} %" in text
    assert all(command in text for command in report["commands"])
