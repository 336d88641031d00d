"""The benchmarks: both sides do the same work, and what is written follows from what was measured."""

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

import contenders  # noqa: E402 (found through the line above)
import decoding  # noqa: E402
import scorer  # noqa: E402
import training  # noqa: E402
import where_time_goes  # noqa: E402
from tiny import write_data, write_model  # noqa: E402

from harness.files import InputError  # noqa: E402
from harness.settings import Settings  # noqa: E402
from weights import load_config  # noqa: E402


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A folder with a tiny model that has room for E2E's lengths and a prefix of 200, and data."""
    folder = tmp_path_factory.mktemp("small")
    write_model(folder / "model", n_positions=400)
    write_data(folder / "data")
    return folder


def run_script(script: str, *flags: str) -> str:
    """The command itself, as a user starts it; what it prints."""
    command = [sys.executable, str(ROOT / "benchmarks" / script), "--device", "cpu", *flags]
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=900
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


class Here(contenders.Contender):
    """A contender in this very process: the same calls and measurements, without the seconds that a new Python takes."""

    def __init__(self, make, *arguments, device: str):
        self.object, self.device = make(*arguments), device

    def call(self, method: str, *arguments) -> dict:
        return contenders.measure(getattr(self.object, method), arguments, self.device)

    def end(self) -> None:
        pass


def run_here(monkeypatch, module, *flags: str) -> None:
    if module is not scorer:
        monkeypatch.setattr(module, "Contender", Here)
        flags = ("--device", "cpu", *flags)
    monkeypatch.setattr(sys, "argv", ["benchmark", *flags])
    module.main()


def check_report(report: dict, key: str, rounds: int, ratios: dict[str, tuple[str, str]]) -> None:
    """Speeds are medians of their rounds, ratios are taken round by round, and all that explains them is there."""
    assert {"command", "machine", "versions", "model", "data"} <= report.keys()
    assert (
        report["machine"].keys() == {"device", "processor", "dtype", "torch"}
        and {"python", "torch"} <= report["versions"].keys()
    )
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
        assert (ratio["min"], ratio["median"], ratio["max"]) == (
            min(ratio["every_round"]), statistics.median(ratio["every_round"]), max(ratio["every_round"])
        )  # fmt: skip
        if "memory" in ratio:
            assert ratio["memory"] == pytest.approx(above["megabytes"] / below["megabytes"])


# ----------------------------------------------------------------------------- training


def test_training_beside_the_peer_gives_the_same_losses_and_consistent_ratios(small, tmp_path):
    out = tmp_path / "deep" / "training.json"
    flags = (
        "--modes",
        "finetune",
        "--dropout",
        "0",
        "--dtype",
        "fp32",
        "--rounds",
        "2",
        "--steps",
        "2",
        "--warm_up",
        "1",
        "--out",
        str(out),
    )
    printed = run_script("training.py", "--model", str(small / "model"), *flags)
    report = json.loads(out.read_text())
    check_report(report, "examples_per_s", 2, {"finetune: ours / peer": ("finetune, ours", "finetune, peer")})
    assert (
        report["batch_size"] == 10
        and report["steps_a_round"] == 2
        and {"transformers", "peft"} <= report["versions"].keys()
    )
    assert "--modes finetune" in report["command"] and report["command"].startswith("python benchmarks/training.py ")
    ours, peer = report["contenders"]["finetune, ours"], report["contenders"]["finetune, peer"]
    assert len(ours["losses"]) == 5  # one step to warm up, two rounds of two
    assert ours["losses"] == pytest.approx(peer["losses"], abs=1e-3)
    assert (
        ours["first_loss"] == pytest.approx(peer["first_loss"], abs=1e-3) == pytest.approx(ours["losses"][0], abs=1e-3)
    )
    assert (
        f"{ours['examples_per_s']:.2f}" in printed
        and f"{report['ratios']['finetune: ours / peer']['median']:.2f}" in printed
    )
    assert "differ" not in printed


@pytest.mark.parametrize("mode", ["prefix", "finetune"])
def test_both_sides_train_the_same_step_by_step(small, mode):
    """Also with a learning rate at which every step changes the loss: the optimisers, clipping and gradients agree too."""
    settings = Settings(
        mode=mode, model=str(small / "model"), dropout=0.0, lr=1e-2, loss="token", device="cpu", dtype="fp32", mid_dim=32,
    ).resolve()  # fmt: skip
    examples = contenders.examples_like_e2e(10, 401)
    ours, peer = training.Ours(settings), training.Peer(settings)
    assert ours.loss(examples) == pytest.approx(peer.loss(examples), abs=1e-4)
    losses = ours.train([examples] * 6)
    assert losses == pytest.approx(peer.train([examples] * 6), abs=1e-3)
    assert losses[-1] < losses[0] - 0.05


def test_training_alone_reports_how_cost_grows(small, tmp_path, monkeypatch, capsys):
    out = tmp_path / "training.json"
    flags = (
        "--data",
        str(small / "data"),
        "--rounds",
        "1",
        "--steps",
        "1",
        "--batch_size",
        "3",
        "--alone",
        "--scaling",
        "--out",
        str(out),
    )
    run_here(monkeypatch, training, "--model", str(small / "model"), "--dtype", "fp32", *flags)
    report = json.loads(out.read_text())
    check_report(report, "examples_per_s", 1, {"ours: prefix / finetune": ("prefix, ours", "finetune, ours")})
    growth = report["growth"]
    assert [line["prefix_len"] for line in growth["prefix_len"]] == [1, 5, 20, 100, 200]
    assert [line["batch_size"] for line in growth["batch_size"]] == [1, 4, 10, 32, 64]
    assert [line["model"] for line in growth["model"]] == ["model"] and report["data"] == "data"
    assert all(line["examples_per_s"] > 0 and line["megabytes"] > 0 for lines in growth.values() for line in lines)
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("prefix_len", "batch_size", "model"))


def test_where_the_time_of_a_step_goes_adds_up(small, tmp_path, monkeypatch, capsys):
    out = tmp_path / "where.json"
    flags = ("--model", str(small / "model"), "--dtype", "fp32", "--steps", "3", "--warm_up", "2", "--out", str(out))
    monkeypatch.setattr(sys, "argv", ["benchmark", *flags])
    where_time_goes.main()
    modes = json.loads(out.read_text())["modes"]
    assert list(modes) == ["prefix", "finetune"]
    for found in modes.values():
        assert (
            sum(found["ms"].values()) == pytest.approx(found["ms_a_step_profiled"]) and min(found["ms"].values()) >= 0
        )
        assert all(found["ms"][kind] > 0 for kind in where_time_goes.KINDS), "each kind's operators go by these names"
        assert found["tflop_per_s"] == pytest.approx(found["gflop_a_step"] / found["ms_a_step"])  # GFLOP/ms
    # At least the layers' products, forward and for two gradients: 6 operations a weight and token, of ten examples with 57 tokens each.
    config = load_config(str(small / "model"))
    layers = 6 * 12 * config.n_layer * config.n_embd**2 * 570 / 1e9
    assert 0.8 < modes["finetune"]["gflop_a_step"] / layers < 4
    assert "TFLOP/s in products" in capsys.readouterr().out


# ----------------------------------------------------------------------------- decoding


def test_decoding_beside_the_peer_gives_the_same_texts_and_consistent_ratios(small, tmp_path):
    out = tmp_path / "decoding.json"
    flags = (
        "--modes",
        "prefix",
        "--dtype",
        "fp32",
        "--rounds",
        "2",
        "--sentences",
        "7",
        "--batch_size",
        "3",
        "--new_tokens",
        "9",
    )
    printed = run_script("decoding.py", "--model", str(small / "model"), *flags, "--single", "0", "--out", str(out))
    report = json.loads(out.read_text())
    check_report(report, "sentences_per_s", 2, {"prefix: ours / peer": ("prefix, ours", "prefix, peer")})
    assert [report[name] for name in ("sentences", "single", "beam_size", "batch_size", "new_tokens")] == [
        7,
        0,
        5,
        3,
        9,
    ]
    assert report["same_texts"] == {"prefix": [7, 7]}
    assert (
        f"{report['contenders']['prefix, ours']['sentences_per_s']:.2f}" in printed and "for 7 of 7 tables" in printed
    )


def test_one_at_a_time_is_compared_with_batches(small, tmp_path, monkeypatch):
    out = tmp_path / "decoding.json"
    flags = (
        "--modes",
        "finetune",
        "--rounds",
        "2",
        "--sentences",
        "6",
        "--new_tokens",
        "12",
        "--single",
        "2",
        "--out",
        str(out),
    )
    run_here(
        monkeypatch, decoding, "--model", str(small / "model"), "--data", str(small / "data"), "--dtype", "fp32", *flags
    )
    report = json.loads(out.read_text())
    check_report(report, "sentences_per_s", 2, {
        "finetune: ours / peer": ("finetune, ours", "finetune, peer"),
        "finetune: ours / peer one at a time in fp32": ("finetune, ours", "finetune, peer, one at a time in fp32"),
        "finetune: ours / ours one at a time in fp32": ("finetune, ours", "finetune, ours, one at a time in fp32"),
    })  # fmt: skip
    assert report["same_texts"] == {"finetune": [6, 6], "finetune, one at a time in fp32": [2, 2]}


def test_each_side_decodes_in_batches_of_its_own_size(small, tmp_path, monkeypatch):
    out, sizes = tmp_path / "decoding.json", {}
    for side in (decoding.Ours, decoding.Peer):
        decode = side.decode
        monkeypatch.setattr(side, "decode", lambda self, batches, *how, side=side, decode=decode: (
            sizes.update({side.__name__: [len(prompts) for prompts in batches]}), decode(self, batches, *how))[1])  # fmt: skip
    flags = (
        "--modes",
        "finetune",
        "--rounds",
        "1",
        "--sentences",
        "7",
        "--batch_size",
        "5",
        "--peer_batch_size",
        "3",
        "--single",
        "0",
    )
    run_here(
        monkeypatch,
        decoding,
        "--model",
        str(small / "model"),
        "--dtype",
        "fp32",
        "--new_tokens",
        "6",
        *flags,
        "--out",
        str(out),
    )
    report = json.loads(out.read_text())
    assert sizes == {"Ours": [5, 2], "Peer": [3, 3, 1]} and (report["batch_size"], report["peer_batch_size"]) == (5, 3)
    assert report["same_texts"] == {"finetune": [7, 7]}


def test_decoding_alone_reports_how_cost_grows(small, tmp_path, monkeypatch, capsys):
    out = tmp_path / "decoding.json"
    flags = (
        "--modes",
        "finetune",
        "--rounds",
        "1",
        "--sentences",
        "2",
        "--new_tokens",
        "2",
        "--single",
        "0",
        "--alone",
        "--scaling",
    )
    run_here(monkeypatch, decoding, "--model", str(small / "model"), "--dtype", "fp32", *flags, "--out", str(out))
    report = json.loads(out.read_text())
    assert report["contenders"].keys() == {"finetune, ours"} and report["ratios"] == {} == report["same_texts"]
    assert [line["beam_size"] for line in report["growth"]["beam_size"]] == [1, 2, 3, 5, 10]
    assert [line["batch_size"] for line in report["growth"]["batch_size"]] == [1, 4, 16, 32, 64]
    assert "beam_size" in capsys.readouterr().out


def test_every_text_has_the_forced_length(small, tmp_path):
    settings = Settings(mode="prefix", model=str(small / "model"), device="cpu", dtype="fp32").resolve()
    run = decoding.make_run(tmp_path / "run", settings)
    batches = decoding.in_batches(sorted(contenders.prompts_like_e2e(50, 401), key=len), 6, 4)
    assert [len(prompts) for prompts in batches] == [4, 2]
    for side in (decoding.Ours, decoding.Peer):
        found = side(run, "cpu", "fp32").decode(batches, 5, 25)
        assert [len(ids) for ids in found] == [25] * 6 and all(400 not in ids for ids in found)


# ----------------------------------------------------------------------------- what both stand on


def test_made_up_examples_have_e2e_lengths():
    examples = contenders.examples_like_e2e(3000, 50257)
    prompts, targets = [n for _, n in examples], [len(ids) - n for ids, n in examples]
    assert statistics.mean(prompts) == pytest.approx(29.5, abs=0.5) and (min(prompts), max(prompts)) == (14, 45)
    assert statistics.mean(targets) == pytest.approx(27, abs=0.7) and min(targets) >= 4 and max(targets) <= 79
    assert statistics.mean(
        max(len(ids) for ids, _ in examples[i : i + 10]) for i in range(0, 3000, 10)
    ) == pytest.approx(77.4, abs=1.5)
    assert all(ids[n - 1] == ids[-1] == 50256 and ids.count(50256) == 2 for ids, n in examples)
    assert examples == contenders.examples_like_e2e(3000, 50257)
    tables = contenders.prompts_like_e2e(630, 50257)
    assert (
        statistics.mean(map(len, tables)) == pytest.approx(37.4, abs=0.7)
        and 15 <= min(map(len, tables)) <= max(map(len, tables)) <= 48
    )


@pytest.mark.parametrize("module", [training, decoding])
def test_missing_peers_are_named_with_the_file_that_installs_them(module, monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "peft" else find(name, *rest))
    with pytest.raises(SystemExit, match="2"):
        run_here(monkeypatch, module)
    said = capsys.readouterr().err
    assert "peft" in said and "transformers" not in said and "requirements-dev.txt" in said and "--alone" in said


@pytest.mark.parametrize("module, flags, message", [
    (training, ["--rounds", "0"], "at least 1"), (training, ["--steps", "0"], "at least 1"), (training, ["--warm_up", "0"], "at least 1"),
    (decoding, ["--sentences", "0"], "at least 1"), (decoding, ["--single", "-1"], "at least 0"),
    (scorer, ["--repeat", "0"], "at least 1"), (training, ["--prefix_len", "350"], "too few"), (decoding, ["--new_tokens", "380"], "too few"),
])  # fmt: skip
def test_what_cannot_be_measured_is_said_in_a_sentence(small, tmp_path, module, flags, message, monkeypatch, capsys):
    with pytest.raises(SystemExit, match="2"):
        model = () if module is scorer else ("--model", str(small / "model"))
        run_here(monkeypatch, module, *model, "--out", str(tmp_path / "out.json"), *flags)
    assert not (tmp_path / "out.json").exists()
    assert message in capsys.readouterr().err


def test_the_command_that_is_written_down_names_no_place_on_this_machine():
    words = ["--out", "/somewhere/a.json", "--data", "/somewhere/e2e", "--out=b.json", "--long", "--modes", "prefix"]
    assert contenders.told(words) == ["--data", "e2e", "--long", "--modes", "prefix"]
    assert not [
        path for path in (ROOT / "results").rglob("*.json") if re.search(r"[ \"]/\w", path.read_text(encoding="utf-8"))
    ]


@pytest.mark.parametrize("side", [training, decoding])
def test_the_peers_memory_is_managed_as_their_users_have_it(side, small, tmp_path, monkeypatch):
    """Ours has the C library keep freed memory; in the peer's process that would be counted as the peer's."""
    settings = Settings(mode="prefix", model=str(small / "model"), device="cpu", dtype="fp32").resolve()
    own = (settings,) if side is training else (decoding.make_run(tmp_path / "run", settings), "cpu", "fp32")
    called = []
    monkeypatch.setattr(side, "keep_freed_memory", lambda: called.append("ours"))
    monkeypatch.setattr("settings.keep_freed_memory", lambda: called.append("somewhere below"))
    side.Peer(*own)
    assert called == []
    side.Ours(*own)
    assert called == ["ours"]


def test_a_contender_in_its_own_process_returns_raises_and_ends():
    made = contenders.Contender(bytearray, 100_000_000, device="cpu")
    first = made.call("count", b"x")
    assert first["result"] == 0 and first["seconds"] > 0 and first["megabytes"] > 100
    with pytest.raises(AttributeError):
        made.call("no_such_method")
    made.end()
    assert made.process.exitcode == 0
    with pytest.raises(InputError, match="is not a run"):  # what goes wrong while it is built is said by the first call
        contenders.Contender(decoding.load_run, Path("nowhere"), device="cpu").call("decode")


# ----------------------------------------------------------------------------- the README's table


def test_the_readmes_table_is_what_was_measured():
    """Every row of "How fast" is results/*.json, rounded."""
    text = (ROOT / "README.md").read_text(encoding="utf-8").split("## How fast\n")[1].split("\n## ")[0]
    stated = [
        [cell.strip() for cell in line.strip("|").split("|")[1:5]]
        for line in text.splitlines()
        if line.startswith("| ")
    ][1:]
    files = ("training", "decoding", "decoding-32", "decoding-16", "decoding-best", "decoding-fp32", "scorer")
    trained, decoded, by_32, by_16, best, in_fp32, scored = (
        json.loads((ROOT / "results" / f"{name}.json").read_text()) for name in files
    )
    sizes = [(report["batch_size"], report["peer_batch_size"]) for report in (decoded, by_32, by_16, best, in_fp32)]
    assert sizes == [(64, 64), (32, 32), (16, 16), (64, 16), (64, 64)]
    assert [report["machine"]["dtype"] for report in (trained, decoded, by_32, by_16, best, in_fp32)] == [
        *["bf16"] * 5,
        "fp32",
    ]
    rows = []
    for report, key, names in (
        (trained, "examples_per_s", ("prefix: ours / peer", "finetune: ours / peer", "ours: prefix / finetune")),
        (
            decoded,
            "sentences_per_s",
            ("finetune: ours / peer", "prefix: ours / peer", "finetune: ours / peer one at a time in fp32"),
        ),
        (by_32, "sentences_per_s", ("finetune: ours / peer",)),
        (by_16, "sentences_per_s", ("finetune: ours / peer",)),
        (best, "sentences_per_s", ("finetune: ours / peer",)),
        (in_fp32, "sentences_per_s", ("finetune: ours / peer",)),
    ):
        for name in names:
            mode, ratio = name.split(":")[0], report["ratios"][name]
            pair = (
                ("prefix, ours", "finetune, ours")
                if mode == "ours"
                else (f"{mode}, ours", f"{mode}, peer{', one at a time in fp32' * ('fp32' in name)}")
            )
            speeds = [f"{report['contenders'][contender][key]:.1f}" for contender in pair]
            rows.append(
                [
                    *speeds,
                    f"{ratio['median']:.{0 if ratio['median'] > 10 else 1}f}",
                    f"{ratio['memory']:.2f}" if "memory" in ratio else "",
                ]
            )
    ours, theirs = scored["ours"], scored["reference"]
    rows.append([f"{ours['seconds']:.1f}", f"{theirs['seconds']:.1f}", f"{ours['seconds'] / theirs['seconds']:.2f}",
                 f"{ours['megabytes'] / theirs['megabytes']:.2f}"])  # fmt: skip
    assert stated == rows
    assert all(report["model"].startswith("gpt2,") for report in (trained, decoded, by_32, by_16, best, in_fp32))
    for words, name in (("in prefix training", "prefix: ours / peer"), ("in fine-tuning", "finetune: ours / peer")):
        ratio = trained["ratios"][name]
        assert f"from {ratio['min']:.1f} to {ratio['max']:.1f} {words}" in " ".join(text.split())
    assert f"ours is {by_16['ratios']['finetune: ours / peer']['median']:.1f} times as fast" in " ".join(text.split())
    fewer = [json.loads((ROOT / "results" / f"decoding-fp32-{n}.json").read_text()) for n in (16, 32)]
    assert [(report["batch_size"], report["machine"]["dtype"]) for report in fewer] == [(16, "fp32"), (32, "fp32")]
    of_16, of_32 = (report["ratios"]["finetune: ours / peer"]["median"] for report in fewer)
    assert f"it is {of_16:.1f} times with 16 tables and {of_32:.1f} with 32" in " ".join(text.split())


def test_the_shares_of_a_step_in_the_readme_are_what_was_measured():
    text = " ".join(
        (ROOT / "README.md")
        .read_text(encoding="utf-8")
        .split("Where a prefix step's time goes")[1]
        .split("\n## ")[0]
        .split()
    )
    found = json.loads((ROOT / "results" / "where_time_goes.json").read_text())["modes"]["prefix"]
    share = {kind: f"{100 * ms / found['ms_a_step_profiled']:.0f} %" for kind, ms in found["ms"].items()}
    own = share["attention's products"]
    for statement in (
        f"{share['products with weights']} into products with weights",
        f"{own} into attention's own products",
        f"{share['copies: casts, padding, heads']} into copies",
        f"{share['gelu']} into gelu",
        f"{share['softmax, of attention and over the vocabulary']} into softmax",
        f"{found['gflop_a_step']:.0f} GFLOP in {found['ms_a_step']:.0f} ms, {found['tflop_per_s']:.2f} TFLOP/s.",
        f"to {found['ms_a_step_profiled']:.0f} ms, and sees the products at {found['tflop_per_s_of_products']:.2f} TFLOP/s.",
    ):
        assert statement in text, statement
