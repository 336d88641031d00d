"""Two processes, started by torchrun and joined by gloo, give what one gives, and end together whatever ends them."""

import csv
import dataclasses
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
from tiny import write_data

import evaluate
import train
from harness import ranks
from harness.files import InputError
from harness.machine import pick_device
from harness.runs import load_settings
from harness.safetensors import read_safetensors

ROOT = Path(__file__).resolve().parent.parent
ACCIDENT = ROOT / "tests" / "accident.py"


def torchrun(script: Path, *argv, **environment) -> tuple[int, str]:
    """Two processes of a program: torchrun's status and output. They must end by themselves, before ranks.TIMEOUT."""
    front = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "--"]
    environment = {name: str(int(value)) for name, value in environment.items()} | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }
    command = [*front, *map(str, [script, *argv])]
    process = subprocess.Popen(
        command, env=os.environ | environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8"
    )
    try:
        printed = process.communicate(timeout=600)[0]
    finally:
        process.terminate()  # where they have not; it ends its two
    return process.returncode, printed


@pytest.fixture(autouse=True)
def no_meteor(monkeypatch, tmp_path):
    """Its tables take long to load, and what is scored here does not matter."""
    monkeypatch.setenv("METEOR_DATA", str(tmp_path / "none"))


def statuses(printed: str) -> list[int]:
    """The two exit statuses in torchrun's report, in order of size."""
    return sorted(map(int, re.findall(r"^ +exitcode *: (-?\d+)", printed, re.MULTILINE)))


def complaints(printed: str) -> list[str]:
    return [line for line in printed.splitlines() if line.startswith("error: ")]


@pytest.fixture
def data(tmp_path):
    return write_data(tmp_path / "data", train=29, valid=70, test=90)


@pytest.fixture
def flags(world, data, tmp_path):
    """flags(out, ...): a short run's command line. An epoch has four batches of 7 and one of 1: one rank gets none."""

    def make(out: str, *more) -> list[str]:
        line = f"--model {world / 'model'} --data {data} --out {tmp_path / out} --device cpu --dtype fp32"
        line += " --mid_dim 32 --lr 1e-3"
        line += " --batch_size 7 --epochs 4 --log_every 1 --checkpoint_every 4 --max_new_tokens 12 --beam_size 2"
        return [*line.split(), *map(str, more)]

    return make


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def assert_same_run(one: Path, two: Path) -> None:
    """Both have learned the same numbers on the same way, to 1e-5."""
    for file, loss, exact in (
        ("log.csv", "loss", ("step", "epoch", "lr")),
        ("valid.csv", "valid_loss", ("step", "epoch", "sample")),
    ):
        ours, theirs = rows(one / file), rows(two / file)
        assert len(ours) == len(theirs) > 0
        assert [[row[name] for name in exact] for row in ours] == [[row[name] for name in exact] for row in theirs]
        assert [float(row[loss]) for row in ours] == pytest.approx([float(row[loss]) for row in theirs], abs=1e-5)
    norms = [[float(row["grad_norm"]) for row in rows(run / "log.csv")] for run in (one, two)]
    assert norms[0] == pytest.approx(norms[1], abs=2e-4)  # written with four decimals
    ours, theirs = (read_safetensors(next(run.glob("*.safetensors")))[0] for run in (one, two))
    assert ours.keys() == theirs.keys()
    for name in ours:
        if name.endswith(
            "c_attn.bias"
        ):  # softmax cancels the keys' bias: its gradient is rounding noise, which AdamW scales up
            C = len(ours[name]) // 3
            ours[name][C : 2 * C] = theirs[name][C : 2 * C] = 0
        torch.testing.assert_close(ours[name], theirs[name], atol=1e-5, rtol=0)


def assert_same_evaluation(one: Path, two: Path, ending: str = "") -> None:
    for file in (f"outputs{ending}.txt", f"scores{ending}.json"):
        assert (one / file).read_bytes() == (two / file).read_bytes()


# ----------------------------------------------------------------------------- the same as one process


@pytest.mark.slow
def test_two_processes_give_the_losses_the_prefix_and_the_sentences_of_one(flags, tmp_path):
    train.main(flags("one", "--no_eval"))
    status, printed = torchrun(ROOT / "train.py", *flags("two"))
    assert status == 0, printed
    assert_same_run(tmp_path / "one", tmp_path / "two")
    shutil.copytree(
        tmp_path / "two", tmp_path / "copy"
    )  # the very same prefix, so that the sentences must not differ at all
    evaluate.main(["--run", str(tmp_path / "copy"), "--device", "cpu", "--decode_dtype", "fp32"])
    assert_same_evaluation(tmp_path / "two", tmp_path / "copy")
    assert len(set((tmp_path / "two" / "outputs.txt").read_text(encoding="utf-8").splitlines())) > 1
    written = {path.name for path in (tmp_path / "two").iterdir()} - {
        path.name for path in (tmp_path / "one").iterdir()
    }
    assert written == {"outputs.txt", "scores.json", "evaluation.json"}
    lines = printed.splitlines()
    for once in ("step 3/20 ", "trained in ", "this run: two ", "signature: "):  # rank 0 prints, and only rank 0
        assert sum(line.startswith(once) for line in lines) == 1
    summaries = [json.loads((tmp_path / run / "summary.json").read_text()) for run in ("one", "two")]
    assert [summary["machine"].get("processes") for summary in summaries] == [None, "2"]


@pytest.mark.slow
def test_two_processes_train_a_mixture_as_one_does(flags, tmp_path):
    mixture = ("--mode", "prefix+lora+adapter", "--lora_dropout", 0, "--lora_lr", 5e-3, "--no_eval")
    train.main(flags("one", *mixture))
    status, printed = torchrun(ROOT / "train.py", *flags("two", *mixture))
    assert status == 0, printed
    assert_same_run(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
def test_shards_collectives_noise_and_fine_tuning_of_two_ranks(world, data, tmp_path):
    """And an error at one rank ends both."""
    _, printed = torchrun(ROOT / "tests" / "two_ranks.py", world, data, tmp_path)
    assert "all is well" in printed and "not reached" not in printed, printed
    assert complaints(printed) == ["error: the disk of the second machine is broken"] and statuses(printed) == [2, 2], (
        printed
    )

    two, one = tmp_path / "two", tmp_path / "one"
    settings = load_settings(two)
    train.train(dataclasses.replace(settings, out=str(one)))
    assert_same_run(one, two)
    shutil.copytree(two, tmp_path / "copy")
    evaluate.evaluate_run(tmp_path / "copy", batch_size=3, split="valid", device="cpu", dtype="fp32")
    assert_same_evaluation(two, tmp_path / "copy", "-valid")


# ----------------------------------------------------------------------------- ending, and going on


class Killed(Exception):
    pass


def kill_in_step(patch, step: int) -> None:
    update, calls = train.update, []

    def until_killed(*args):
        calls.append(1)
        if len(calls) == step:
            raise Killed
        return update(*args)

    patch.setattr(train, "update", until_killed)


@pytest.mark.slow
def test_a_run_killed_as_one_process_killed_as_two_and_ended_by_one_is_the_same_run(flags, tmp_path):
    train.main(flags("whole", "--no_eval"))
    with pytest.MonkeyPatch.context() as patch:
        kill_in_step(patch, 6)
        with pytest.raises(Killed):
            train.main(flags("parts", "--no_eval"))
    parts, resumed = tmp_path / "parts", flags("parts", "--no_eval", "--resume")

    _, printed = torchrun(ACCIDENT, ROOT / "train.py", *resumed, KILL_IN=9)
    assert "resuming at step 4 of 20" in printed and "step 9/" in printed and "step 10/" not in printed
    assert statuses(printed) == [-signal.SIGKILL, 2], printed  # the other is not left waiting
    assert len(complaints(printed)) == 1 and "another process of this run is gone" in complaints(printed)[0]
    assert not (parts / "prefix.safetensors").exists()

    train.main(resumed)
    assert_same_run(tmp_path / "whole", parts)


@pytest.mark.slow
def test_bad_input_is_said_once_and_both_processes_leave_with_its_status(flags, tmp_path):
    with open(tmp_path / "data" / "src1_train.txt", "a", encoding="utf-8") as file:
        file.write("no bars\n")
    _, printed = torchrun(ROOT / "train.py", *flags("run"))
    assert statuses(printed) == [2, 2], printed
    assert len(complaints(printed)) == 1 and "src1_train.txt, line 30: no '||'" in complaints(printed)[0]
    assert 'train.py", line' not in printed  # no traceback of ours
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_full_disk_at_the_rank_that_writes_ends_both(flags, tmp_path):
    _, printed = torchrun(ACCIDENT, ROOT / "train.py", *flags("run"), LIMIT=20000)
    assert statuses(printed) == [2, 2], printed
    assert (
        len(complaints(printed)) == 1
        and f"{tmp_path / 'run' / 'checkpoint.pt'} was not written" in complaints(printed)[0]
    )
    assert [row["step"] for row in rows(tmp_path / "run" / "log.csv")] == ["1", "2", "3", "4"]


# ----------------------------------------------------------------------------- one process, one GPU


def test_without_torchrun_or_with_one_process_there_is_no_group(monkeypatch):
    monkeypatch.setattr(ranks, "join", lambda: pytest.fail("a group was formed"))
    assert ranks.distributed(ranks.size)() == 1
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert ranks.distributed(ranks.size)() == 1 and not torch.distributed.is_initialized()


def test_each_process_takes_the_gpu_of_its_number_on_its_machine(monkeypatch):
    assert ranks.own_gpu() == "cuda"
    monkeypatch.setattr(ranks, "size", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "999")
    with pytest.raises(InputError, match="--device cuda:999 cannot be used here"):
        pick_device("cuda")
