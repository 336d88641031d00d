"""Compatibility with revision 98e891b, before the plain and the fast path were separated.

tests/fixtures/revision_98e891b was written by that revision, in the tests' own small world (tests/tiny.py):

    losses.json      14 steps and two validations of each mode, in fp32 and bf16
    finished/        a run's folder: a prefix of 3 after 6 steps
    killed/          one that was killed after the checkpoint of step 5 of 12
    killed_then_resumed.safetensors    what that revision made of killed/
"""

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch

from evaluate import evaluate_run, generate
from harness.runs import load_run
from harness.safetensors import read_safetensors
from harness.settings import Settings
from prefix import load_prefix
from train import train
from weights import load_config

FIXTURE = Path(__file__).parent / "fixtures" / "revision_98e891b"
LOSSES = json.loads((FIXTURE / "losses.json").read_text())
FLAGS = {
    "prefix": {}, "prefix-direct": {"no_reparam": True}, "infix": {"mode": "infix"}, "embedding": {"mode": "embedding"},
    "finetune": {"mode": "finetune"}, "finetune-nodrop": {"mode": "finetune", "dropout": 0.0},
    "words": {"init_text": "Italian food"},
}  # fmt: skip
# Every run on both paths, but for the one with dropout: the plain path draws other noise.
RUNS = [(run, plain) for run in LOSSES for plain in (False, True) if not (plain and run.startswith("finetune, "))]


@pytest.fixture(autouse=True)
def no_meteor(monkeypatch, tmp_path):
    """Its tables take long to load, and what is scored here does not matter."""
    monkeypatch.setenv("METEOR_DATA", str(tmp_path / "none"))


def take_over(name: str, world: Path, folder: Path) -> Settings:
    """A copy of a fixture's folder in this world; the settings with which it was begun."""
    shutil.copytree(FIXTURE / name, folder)
    settings = json.loads((folder / "settings.json").read_text())
    settings |= {"model": str(world / "model"), "data": str(world / "data"), "out": str(folder)}
    (folder / "settings.json").write_text(json.dumps(settings))
    return Settings(**settings)


def column(path: Path, name: str) -> list[float]:
    with open(path, newline="", encoding="utf-8") as file:
        return [float(row[name]) for row in csv.DictReader(file)]


@pytest.mark.slow
@pytest.mark.parametrize("run, plain", RUNS)
def test_losses_and_gradient_norms_are_those_of_the_revision(world, tmp_path, run, plain):
    """fp32: 1e-5 on the fast path. In bf16 another CPU orders sums otherwise, and the plain path rounds no logits."""
    name, dtype = run.split(", ")
    bound = {("fp32", False): 1e-5, ("fp32", True): 1e-4, ("bf16", False): 0.01, ("bf16", True): 0.02}[dtype, plain]
    settings = Settings(
        model=str(world / "model"), data=str(world / "data"), out=str(tmp_path / "run"), device="cpu", dtype=dtype,
        plain=plain, max_steps=14, valid_every=7, log_every=1, mid_dim=32, lr=1e-3, max_new_tokens=2, beam_size=1,
        **FLAGS[name],
    )  # fmt: skip
    folder, recorded = train(settings), LOSSES[run]
    assert column(folder / "log.csv", "loss") == pytest.approx(recorded["loss"], rel=bound)
    assert column(folder / "log.csv", "grad_norm") == pytest.approx(recorded["grad_norm"], rel=10 * bound)
    assert column(folder / "valid.csv", "valid_loss") == pytest.approx(recorded["valid_loss"], rel=bound)


def test_its_run_folder_is_evaluated(world, tmp_path):
    settings = take_over("finished", world, tmp_path / "run")
    assert train(settings, resume=True) == tmp_path / "run"  # trained already
    assert len((tmp_path / "run" / "log.csv").read_text().splitlines()) == 4
    assert evaluate_run(tmp_path / "run", device="cpu", dtype="fp32")["ROUGE_L"] >= 0
    assert isinstance(generate(tmp_path / "run", "name : Lotus | food : Indian", device="cpu", dtype="fp32"), str)
    assert load_run(tmp_path / "run")[0].plain is False


def test_its_prefix_file_is_read(world):
    path = FIXTURE / "finished" / "prefix.safetensors"
    prefix = load_prefix(path, load_config(str(world / "model")))
    assert prefix.prefix_len == 3 and torch.equal(prefix.rows(), read_safetensors(path)[0]["prefix"])


def test_its_checkpoint_is_resumed_to_its_result(world, tmp_path, capsys):
    train(take_over("killed", world, tmp_path / "run"), resume=True)
    assert "resuming at step 5 of 12" in capsys.readouterr().out
    assert len((tmp_path / "run" / "log.csv").read_text().splitlines()) == 13
    ours, theirs = (
        read_safetensors(path)[0]["prefix"]
        for path in (tmp_path / "run" / "prefix.safetensors", FIXTURE / "killed_then_resumed.safetensors")
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
