"""The fast path gives the plain path's numbers: losses and gradients in every mode, clipping, whole runs.

Beams: tests/test_beam.py. Pieces: tests/test_ops.py, test_loss.py, test_tree.py, test_prepacked.py.
"""

import copy
import csv
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import lively

import fast
import train
from beam import NextWords
from e2e_data import Batch, Encoded, collate
from fast.training import gradient_norm, positions_of, rounded_head
from gpt2 import GPT2, GPT2Config
from harness.door import Engine
from prefix import MODES

ROOT = Path(__file__).resolve().parent.parent
CONFIG = GPT2Config(n_layer=3, n_head=4, n_embd=32, n_positions=128, vocab_size=101)
END = 100


def examples(lengths: list[tuple[int, int]], seed: int = 0) -> list[Encoded]:
    """Random examples of (prompt, text) lengths; the separator and the end token are the vocabulary's last id."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda n: [*torch.randint(0, END, (n - 1,), generator=generator).tolist(), END]
    return [Encoded(draw(prompt) + draw(text), prompt) for prompt, text in lengths]


LENGTHS = {
    "padded": [(30, 25), (5, 9), (17, 2), (12, 40)],
    "equal": [(9, 7)] * 3,
    "one": [(6, 1)],
    "long": [(40, 60), (1, 1)],
}


def start(mode: str, plain: bool, dtype: str = "fp32", no_mlp: bool = False) -> tuple[GPT2, torch.nn.Module]:
    """A model, as a run starts with it, and what is trained."""
    model, prefix = lively(GPT2(CONFIG)), None
    if mode != "finetune":
        torch.manual_seed(1)
        prefix = MODES[mode](CONFIG, prefix_len=5, mid_dim=0 if no_mlp else 16)
    Engine(plain, "cpu", dtype).to_device_and_freeze(model, prefix)
    return model, model if prefix is None else prefix


def loss_and_gradients(mode: str, plain: bool, dtype: str, batch: Batch, **options):
    model, learned = start(mode, plain, dtype, **options)
    engine = Engine(plain, "cpu", dtype)
    loss = engine.in_precision(engine.choose(train.summed_loss))(model, batch)
    loss.backward()
    return loss.item(), {name: p.grad for name, p in learned.named_parameters()}


@pytest.mark.parametrize("mode", [*MODES, "finetune"])
@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("dtype, bound", [("fp32", 1e-5), ("bf16", 0.03)])
def test_losses_and_gradients_are_the_plain_ones(mode, lengths, dtype, bound):
    """fp32: 1e-5 relative. bf16, in which the plain path rounds no logits: 3 % of a gradient's norm."""
    batch = collate(examples(LENGTHS[lengths]), pad=END)
    loss, gradients = loss_and_gradients(mode, True, dtype, batch)
    ours, our_gradients = loss_and_gradients(mode, False, dtype, batch)
    assert ours == pytest.approx(loss, rel=bound)
    assert gradients.keys() == our_gradients.keys()
    whole = math.sqrt(sum(g.norm() ** 2 for g in gradients.values()))
    assert whole > 0.1
    for name, gradient in gradients.items():
        # Relative to the gradient's norm; for tensors whose gradient is rounding noise (the keys' bias), to the whole.
        off = (our_gradients[name] - gradient).norm()
        assert off <= bound * max(gradient.norm(), 0.01 * whole), name


@pytest.mark.parametrize("mode", MODES)
def test_without_an_mlp_too(mode):
    batch = collate(examples(LENGTHS["padded"]), pad=END)
    loss, gradients = loss_and_gradients(mode, True, "fp32", batch, no_mlp=True)
    ours, our_gradients = loss_and_gradients(mode, False, "fp32", batch, no_mlp=True)
    assert ours == pytest.approx(loss, rel=1e-5)
    torch.testing.assert_close(our_gradients["rows.direct"], gradients["rows.direct"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", [*MODES, "finetune"])
@torch.no_grad()
def test_the_loss_without_gradients_is_the_plain_one(mode):
    """As validation computes it; more scored tokens than are worked on at a time."""
    batch = collate(examples([(8, 60)] * 6), pad=END)
    losses = [
        Engine(plain, "cpu", "fp32").choose(train.summed_loss)(start(mode, plain)[0].eval(), batch)
        for plain in (True, False)
    ]
    assert losses[1].item() == pytest.approx(losses[0].item(), rel=1e-5)


def test_positions_are_derived_from_labels_alone():
    """Rows of 9: a prompt of 2 and a text of 3; a prompt of 1 and a text of 1. After a last label nothing matters."""
    labels = torch.full((2, 9), -100)
    labels[0, 2:5], labels[1, 1] = torch.tensor([7, 8, 9]), 6
    real, scored, targets = positions_of(labels)
    assert scored.tolist() == [1, 2, 3, 9] and targets.tolist() == [7, 8, 9, 6]
    assert len(real) == 16 and real.tolist()[:9] == list(range(9))  # 7 tokens, filled up to 16 with padding
    assert set(range(5)) | {9, 10} <= set(real.tolist()) and real.tolist() == sorted(real.tolist())


def test_a_model_that_is_unfrozen_again_has_wtes_whole_gradient():
    """After preparation for bf16 with a frozen wte: as the output layer, it has a gradient for every word."""
    model, prefix = start("prefix", plain=False, dtype="bf16")
    engine, batch = Engine(False, "cpu", "bf16"), collate(examples(LENGTHS["padded"]), pad=END)
    loss_of = engine.in_precision(fast.summed_loss)
    loss_of(model, batch).backward()  # with the rounded head
    model.requires_grad_(True)
    loss_of(model, batch).backward()
    gradient = model.wte.weight.grad
    plain, _ = start("prefix", plain=True, dtype="bf16")
    train.summed_loss(plain.requires_grad_(True), batch).backward()
    expected = plain.wte.weight.grad
    unused = [word for word in range(101) if word not in batch.tokens]
    assert len(unused) > 10 and (gradient[unused].norm(dim=1) > 0).all()
    assert (gradient - expected).norm() < 0.05 * expected.norm()


def test_the_rounded_head_follows_the_weights():
    model, _ = start("prefix", plain=False, dtype="bf16")
    first = rounded_head(model, torch.bfloat16)
    assert rounded_head(model, torch.bfloat16) is first and len(first) == 128
    with torch.no_grad():
        model.wte.weight.mul_(2)
    assert torch.equal(rounded_head(model, torch.bfloat16)[:101], model.wte.weight.bfloat16())


def test_dropout_is_drawn_in_training_mode_only():
    model, batch = lively(GPT2(CONFIG, dropout=0.3)), collate(examples(LENGTHS["padded"]), pad=END)
    torch.manual_seed(0)
    losses = [fast.summed_loss(model.train(), batch).item() for _ in range(2)]
    torch.manual_seed(0)
    assert losses[0] != losses[1] and fast.summed_loss(model, batch).item() == losses[0]
    assert fast.summed_loss(model.eval(), batch).item() == pytest.approx(
        train.summed_loss(model, batch).item(), rel=1e-5
    )


# ----------------------------------------------------------------------------- clipping


def test_adamw_takes_the_plain_ones_steps():
    """Of parameters and of groups of them."""
    torch.manual_seed(0)
    gradients = [torch.randn(2, 5, 7) for _ in range(3)]
    found = {}
    for adamw in (train.adamw, fast.adamw):
        parameters = [torch.nn.Parameter(torch.ones(5, 7)) for _ in range(2)]
        given = ((p for p in parameters), [{"params": parameters[:1]}, {"params": parameters[1:], "relative": 2.0}])
        for optimizer in (adamw(those, 0.1, 0.1) for those in given):
            for both in gradients:
                for parameter, gradient in zip(parameters, both):
                    parameter.grad = gradient.clone()
                optimizer.step()
        found[adamw] = torch.stack(list(parameters))
        assert optimizer.param_groups[1]["relative"] == 2.0 and len(optimizer.param_groups) == 2
    torch.testing.assert_close(*found.values(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("share", [1 / 3, 3, math.inf], ids=["clipped", "not reached", "no limit"])
def test_a_clipped_step_is_the_plain_one(fused, share):
    """Norm, weights and AdamW's moments after a step."""
    torch.manual_seed(0)
    shapes = [(5, 7), (7,), (2, 3, 4), ()]
    gradients = [torch.randn(shape) for shape in shapes]
    norm = torch.cat([g.flatten() for g in gradients]).norm().item()
    found = []
    for clip in (train.clip_gradients, fast.clip_gradients):
        parameters = [torch.nn.Parameter(torch.ones(shape)) for shape in shapes]
        for parameter, gradient in zip(parameters, gradients):
            parameter.grad = gradient.clone()
        idle = torch.nn.Parameter(torch.ones(3))  # one without a gradient
        optimizer = torch.optim.AdamW([*parameters, idle], lr=0.1, weight_decay=0.1, fused=fused)
        assert clip(optimizer, share * norm).item() == pytest.approx(norm, rel=1e-5)
        optimizer.step()
        found.append(
            [*parameters, *(optimizer.state[p][name] for p in parameters for name in ("exp_avg", "exp_avg_sq"))]
        )
    for plain, ours in zip(*found):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-7)
    assert gradient_norm([idle, *parameters]).isfinite()


# ----------------------------------------------------------------------------- whole runs


def column(path: Path, name: str) -> list[float]:
    with open(path, newline="", encoding="utf-8") as file:
        return [float(row[name]) for row in csv.DictReader(file)]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["prefix", "finetune"])
def test_the_plain_path_trains_and_decodes_mini_from_the_command_line_to_the_same_losses(tmp_path, mode):
    """fp32, without dropout, which draws other noise on each path. No module of fast/ is loaded with --plain."""
    for path in ("plain", "fast"):
        line = f"--mode {mode} --model mini --data mini --max_steps 8 --log_every 2 --dropout 0 --beam_size 2"
        line += f" --max_new_tokens 12 --train_examples 200 --dtype fp32 --device cpu --out {tmp_path / path}"
        flags = [*line.split(), *(["--plain"] if path == "plain" else [])]
        program = (
            "import sys, train; train.main(sys.argv[1:]); print('loaded', [m for m in sys.modules if m[:4] == 'fast'])"
        )
        environment = {
            "METEOR_DATA": str(tmp_path / "none"),
            "PATH": "",
            "OMP_NUM_THREADS": "1",
        }  # no METEOR: it is slow
        done = subprocess.run(
            [sys.executable, "-c", program, *flags],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        loaded = done.stdout.splitlines()[-1]
        assert (loaded == "loaded []") == (path == "plain"), loaded
    plain, ours = tmp_path / "plain", tmp_path / "fast"
    for file, name, bound in (
        ("log.csv", "loss", 1e-4),
        ("log.csv", "grad_norm", 1e-3),
        ("valid.csv", "valid_loss", 1e-4),
    ):
        assert column(ours / file, name) == pytest.approx(column(plain / file, name), rel=bound)
    texts = [(run / "outputs.txt").read_text(encoding="utf-8").splitlines() for run in (plain, ours)]
    assert (
        len(texts[0]) == 81 and sum(a == b for a, b in zip(*texts)) >= 79
    )  # weights differ by rounding, beams may too
    evaluated = subprocess.run(
        [sys.executable, "evaluate.py", "--run", plain, "--plain", "--table", "name : Lotus | food : Thai"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert re.search(r"\w", evaluated.stdout)


def test_the_door_gives_a_counterpart_for_each_plain_function():
    fast_engine, plain_engine = (Engine(plain, "cpu", "fp32") for plain in (False, True))
    for function in (train.summed_loss, train.adamw, train.clip_gradients, NextWords):
        assert plain_engine.choose(function) is function
        assert fast_engine.choose(function) is getattr(fast, function.__name__) is not function


def test_a_plain_engine_leaves_the_model_as_it_is():
    model = lively(GPT2(CONFIG)).requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    engine = Engine(True, "cpu", "bf16")
    assert engine.ready_to_decode(engine.to_device_and_freeze(model)) is model
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == torch.float32 and torch.equal(tensor, before[name])
    assert not hasattr(model, "two_rounds")
