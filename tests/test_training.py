"""Training: the same losses as a plain loop over other libraries, the same bits after a kill, the files it writes."""

import argparse
import csv
import dataclasses
import json
import math
import os
import platform
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import peft
import pytest
import torch
import torch.nn.functional as F
from tiny import write_data

import train as train_module
from e2e_data import collate, encode, epoch_order, load_split, scored_tokens
from evaluate import evaluate_run
from harness.files import InputError, lock_folder
from harness.loop import Run, validation_loss
from harness.machine import autocast
from harness.runs import load_run, start_model
from harness.safetensors import read_safetensors
from harness.settings import Settings, add_flags
from harness.tokenizers import load_tokenizer
from prefix import MODES, keys_values, load_prefix
from train import learning_rate, summed_loss, train, update
from weights import load_gpt2

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"


@pytest.fixture
def settings(world, tmp_path):
    """settings(**changes): a short run in fp32 on the tiny world."""
    base = Settings(
        model=str(world / "model"), data=str(world / "data"), out=str(tmp_path / "run"), device="cpu", dtype="fp32",
        epochs=2,
        mid_dim=32, lr=1e-3, log_every=1, max_new_tokens=20, beam_size=2,
    )  # fmt: skip
    return lambda **changes: dataclasses.replace(base, **changes)


def one_step(s: Settings, model, optimizer, examples, lr: float, pad: int) -> tuple[float, float]:
    """A step as the loop takes it, on the fast path."""
    divisor = len(examples) if s.loss == "sentence" else scored_tokens(examples)
    engine = s.engine
    loss_of, clip = engine.in_precision(engine.choose(summed_loss)), engine.choose(train_module.clip_gradients)
    return update(model, optimizer, [collate(examples, pad)], divisor, lr, s.clip, loss_of, clip)


def learned_bytes(folder: Path) -> bytes:
    (path,) = Path(folder).glob("*.safetensors")
    return path.read_bytes()


def log_of(folder: Path, file: str = "log.csv") -> list[dict]:
    """The log, without what a clock decides."""
    with open(Path(folder) / file, newline="", encoding="utf-8") as f:
        return [{k: v for k, v in row.items() if k not in ("tokens_per_s", "seconds")} for row in csv.DictReader(f)]


# ----------------------------------------------------------------------------- the same losses as other libraries


@pytest.mark.parametrize("mode", ["prefix", "finetune"])
def test_30_steps_give_the_losses_of_a_plain_loop_over_transformers_and_peft(settings, world, reference_gpt2, mode):
    s = settings(mode=mode, dropout=0.0, prefix_len=7 if mode == "prefix" else None, batch_size=10, epochs=3).resolve()
    model, prefix = start_model(s)
    learned = model if prefix is None else prefix
    tokenizer = load_tokenizer(s.model)
    end = tokenizer.eot_token
    encoded = encode(tokenizer, load_split(s.data, "train"), room=150)
    twin = reference_gpt2(world / "model")
    if prefix is not None:
        config = peft.PrefixTuningConfig(
            task_type="CAUSAL_LM", num_virtual_tokens=7, prefix_projection=True, encoder_hidden_size=32
        )
        twin = peft.get_peft_model(twin, config).eval()
        encoder = twin.prompt_encoder["default"]
        encoder.embedding.weight.data.copy_(prefix.rows.p_prime.data)
        encoder.transform.load_state_dict(prefix.rows.mlp.state_dict())

    parameters = [p for p in twin.parameters() if p.requires_grad]
    ours = torch.optim.AdamW(learned.parameters(), lr=s.lr, weight_decay=0.0)
    theirs = torch.optim.AdamW(parameters, lr=s.lr, weight_decay=0.0)
    for step in range(30):
        order = epoch_order(len(encoded), 0, step)[:10]
        batch = [encoded[i] for i in order]
        lr = s.lr * (30 - step) / 30
        our_loss, our_norm = one_step(s, model, ours, batch, lr, end)

        T = max(len(ids) for ids, _ in batch)
        ids = torch.tensor([ids + [end] * (T - len(ids)) for ids, _ in batch])
        mask = torch.tensor([[1] * len(ids) + [0] * (T - len(ids)) for ids, _ in batch])
        logits = twin(input_ids=ids, attention_mask=mask).logits
        logits = logits[:, -T:]
        per_sentence = []
        for row, (tokens, n_prompt) in enumerate(batch):
            positions = range(n_prompt, len(tokens))
            per_sentence.append(sum(F.cross_entropy(logits[row, t - 1], torch.tensor(tokens[t])) for t in positions))
        their_loss = sum(per_sentence)
        divisor = 10 if mode == "prefix" else sum(len(ids) - n for ids, n in batch)
        for group in theirs.param_groups:
            group["lr"] = lr
        theirs.zero_grad()
        (their_loss / divisor).backward()
        their_norm = torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        theirs.step()
        scored = sum(len(ids) - n for ids, n in batch)
        assert our_loss / scored == pytest.approx(their_loss.item() / scored, abs=1e-3), f"step {step}"
        assert our_norm == pytest.approx(their_norm.item(), rel=1e-3)
        if step == 0:
            first = our_loss / scored
    assert our_loss / scored < first - 0.05  # thirty steps that did something


@pytest.mark.parametrize("changes", [{}, {"mode": "finetune", "dropout": 0.0}, {"score_separator": True},
{"warmup_steps": 3}, {"weight_decay": 0.5},
                                     {"init_text": "Italian food"}])  # fmt: skip
def test_a_whole_run_equals_an_independent_loop(settings, tmp_path, world, changes):
    """Order, batches (an epoch's last is smaller), loss, learning rate, AdamW, clipping, validation, by column."""
    data = write_data(tmp_path / "data", train=23, valid=9)
    s = settings(data=str(data), epochs=2, valid_every=3, **changes)
    folder = train(s)
    s = s.resolve()

    tokenizer = load_tokenizer(s.model)
    model, prefix = start_model(s)  # the same seed, so the same beginning
    parameters = list((model if prefix is None else prefix).parameters())
    optimizer = torch.optim.AdamW(parameters, lr=s.lr, weight_decay=s.weight_decay)
    rise, steps = s.warmup_steps, 6
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda i: i / rise if i < rise else (steps - i) / (steps - rise)
    )

    def nats(example):
        """One sentence, unpadded: - sum log p, and the number of tokens scored."""
        prompt = tokenizer.encode_ordinary(f" {example.source} ")
        ids = [*prompt, tokenizer.eot_token, *tokenizer.encode_ordinary(f" {example.target} "), tokenizer.eot_token]
        first = len(prompt) + (0 if s.score_separator else 1)
        log_p = model(torch.tensor([ids])).log_softmax(-1)[0]
        return -sum(log_p[t - 1, ids[t]] for t in range(first, len(ids))), len(ids) - first

    examples, valid = load_split(s.data, "train"), load_split(s.data, "valid")
    rows, valid_losses = [], []
    for epoch in range(2):
        order = torch.randperm(23, generator=torch.Generator().manual_seed(1_000_003 * 101 + epoch)).tolist()
        for batch in (order[:10], order[10:20], order[20:]):
            losses, counts = zip(*(nats(examples[i]) for i in batch))
            optimizer.zero_grad()
            (sum(losses) / (len(batch) if prefix is not None else sum(counts))).backward()
            norm = torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            rows.append((sum(losses).item() / sum(counts), schedule.get_last_lr()[0], norm.item()))
            optimizer.step()
            schedule.step()
            if len(rows) % 3 == 0:
                with torch.no_grad():
                    losses, counts = zip(*(nats(example) for example in valid))
                valid_losses.append(sum(losses).item() / sum(counts))

    log = log_of(folder)
    assert len(log) == len(rows) == 6
    for row, (loss, lr, norm) in zip(log, rows):
        assert float(row["loss"]) == pytest.approx(loss, abs=1e-4)
        assert float(row["lr"]) == pytest.approx(lr, rel=1e-4)
        assert float(row["grad_norm"]) == pytest.approx(norm, rel=1e-3)
    assert [float(row["valid_loss"]) for row in log_of(folder, "valid.csv")] == pytest.approx(valid_losses, abs=1e-4)


# ----------------------------------------------------------------------------- killing and resuming


class Killed(Exception):
    pass


def kill_after(monkeypatch, step: int) -> None:
    """From now on the process "dies" in the middle of the given step (counted from this call)."""
    calls = 0

    def dying(*args):
        nonlocal calls
        calls += 1
        if calls == step:
            raise Killed
        return update(*args)

    monkeypatch.setattr(train_module, "update", dying)


@pytest.mark.parametrize("changes", [
    {"mode": "prefix"}, {"mode": "embedding"}, {"mode": "infix"}, {"mode": "finetune"}, {"init_text": "Italian food"},
    {"grad_accum": 3, "keep": "best", "valid_every": 4}, {"dtype": "bf16"}, {"dropout": 0.1}, {"no_reparam": True,
    "train_examples": 117},
    {"mode": "prefix+lora", "warmup_steps": 2}, {"mode": "infix+lora+adapter", "adapter_dim": 4, "lora_lr": 5e-3},
])  # fmt: skip
def test_killed_at_arbitrary_steps_and_resumed_gives_the_same_bits(settings, tmp_path, monkeypatch, changes):
    s = settings(checkpoint_every=5, log_every=3, out=str(tmp_path / "whole"), **changes)
    train(s)
    s = dataclasses.replace(s, out=str(tmp_path / "killed"))
    for step in (3, 8, 7, 1, 9):  # before the first checkpoint, across an epoch's end, at once, ...
        kill_after(monkeypatch, step)
        with pytest.raises(Killed):
            train(s, resume=True)
    monkeypatch.setattr(train_module, "update", update)
    train(s, resume=True)
    assert learned_bytes(tmp_path / "killed") == learned_bytes(tmp_path / "whole")
    for file in ("log.csv", "valid.csv"):
        assert log_of(tmp_path / "killed", file) == log_of(tmp_path / "whole", file)
    assert [int(row["step"]) for row in log_of(tmp_path / "whole")] == [*range(3, 25, 3)]
    assert not (tmp_path / "killed" / "checkpoint.pt").exists()


@pytest.fixture(scope="module")
def never_stopped(world, tmp_path_factory):
    """(a command without --out, the folder of the run that it made in a process of its own)."""
    command = [
        sys.executable, str(ROOT / "train.py"), "--model", str(world / "model"), "--data", str(world / "data"),
        "--epochs", "4", "--device", "cpu", "--dtype", "fp32", "--mid_dim", "32", "--checkpoint_every", "20",
        "--log_every", "1", "--max_new_tokens", "5", "--no_eval",
    ]  # fmt: skip
    whole = tmp_path_factory.mktemp("never stopped") / "whole"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([*command, "--out", whole], check=True, env=environment, capture_output=True)
    return command, whole


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_process_stopped_by_a_signal_resumes_to_the_same_bits(never_stopped, tmp_path, number):
    (command, whole), environment = never_stopped, os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*command, "--out", tmp_path / "stopped"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    for line in process.stdout:  # it says each step; stop it in the middle of the work
        if line.startswith("step 33/"):
            process.send_signal(number)
            break
    rest = process.stdout.read()
    assert process.wait(60) == (-signal.SIGKILL if number == signal.SIGKILL else 130)
    if number != signal.SIGKILL:
        assert "checkpoint written at step" in rest and "the same command with --resume continues" in rest
    assert "Traceback" not in rest
    assert (tmp_path / "stopped" / "checkpoint.pt").exists() and not (
        tmp_path / "stopped" / "prefix.safetensors"
    ).exists()
    subprocess.run(
        [*command, "--out", tmp_path / "stopped", "--resume"], check=True, env=environment, capture_output=True
    )
    assert learned_bytes(tmp_path / "stopped") == learned_bytes(whole)
    assert log_of(tmp_path / "stopped") == log_of(whole)


def test_resuming_a_finished_run_changes_nothing(settings):
    folder = train(settings(max_steps=4))
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir()}
    train(settings(max_steps=4), resume=True)
    assert before == {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir()}


# ----------------------------------------------------------------------------- what settings do


def test_two_processes_do_not_train_in_one_folder(settings):
    s = settings(max_steps=2)
    folder = train(s)
    with lock_folder(folder):
        with pytest.raises(
            InputError, match="another process is working in .*: wait until it ends, or choose another --out"
        ):
            train(s, resume=True)
    assert train(s, resume=True) == folder


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(settings, tmp_path):
    runs = [
        train(settings(max_steps=6, seed=seed, out=str(tmp_path / name)))
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    a, b, c = (learned_bytes(run) for run in runs)
    assert a == b != c


def test_a_batch_in_pieces_gives_the_same_update(settings, tmp_path):
    for loss in ("sentence", "token"):
        whole, pieces = (
            train(settings(max_steps=6, loss=loss, grad_accum=n, out=str(tmp_path / f"{loss}{n}"))) for n in (1, 4)
        )
        a, b = (read_safetensors(run / "prefix.safetensors")[0]["prefix"] for run in (whole, pieces))
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


def test_defaults_are_the_papers_row():
    s = Settings().resolve()
    assert (s.mode, s.model, s.prefix_len, s.mid_dim, s.lr, s.batch_size, s.epochs) == (
        "prefix",
        "gpt2",
        5,
        512,
        8e-5,
        10,
        5,
    )
    assert (s.weight_decay, s.clip, s.dropout, s.warmup_steps, s.loss) == (0.0, 1.0, 0.0, 0, "sentence")
    assert (s.beam_size, s.length_norm, s.max_new_tokens, s.score_separator, s.seed) == (5, "total", 100, False, 101)
    f = Settings(mode="finetune").resolve()
    assert (f.lr, f.dropout, f.loss) == (5e-5, 0.1, "token")
    unused = [value for name, value in vars(f).items() if name.startswith(("lora", "adapter", "label"))]
    assert unused == [None] * 8  # or a run begun before they existed could not be resumed


def test_defaults_of_lora_alone_are_its_papers_recipe_for_e2e():
    s = Settings(mode="lora").resolve()
    assert (s.lora_on, s.lora_rank, s.lora_alpha, s.lora_dropout, s.lr) == ("q,v", 4, 32.0, 0.1, 2e-4)
    assert (s.batch_size, s.weight_decay, s.warmup_steps, s.label_smoothing, s.epochs) == (8, 0.01, 500, 0.1, 5)
    assert (s.loss, s.beam_size, s.dropout, s.prefix_len) == ("token", 10, 0.0, None)
    m = Settings(mode="lora+prefix", model="mini").resolve()
    assert (m.mode, m.prefix_len, m.lr, m.loss, m.batch_size, m.label_smoothing) == (
        "prefix+lora", 5, 2e-3, "sentence", 10, None,
    )  # fmt: skip
    folders = {
        "runs/gpt2-lora": Settings(mode="lora", batch_size=8),
        "runs/gpt2-lora-lora_rank8": Settings(mode="lora", lora_rank=8),
        "runs/gpt2-prefix5-lora-adapter": Settings(mode="adapter+prefix+lora"),
        "runs/gpt2-prefix5": Settings(batch_size=10, weight_decay=0.0),
    }
    assert list(folders) == [s.resolve().out for s in folders.values()]


def test_learning_rate_falls_linearly_to_zero_after_a_warmup():
    assert [learning_rate(8.0, step, 4) for step in range(4)] == [8, 6, 4, 2]
    assert [learning_rate(8.0, step, 6, warmup_steps=2) for step in range(6)] == [0, 4, 8, 6, 4, 2]


def test_small_gradients_are_left_alone_and_large_ones_clipped(settings):
    """With plain gradient descent in AdamW's place the step taken is lr times the clipped gradient."""
    for clip, expected in ((1.0, 1.0), (0.0, None)):
        s = settings(clip=clip, lr=1.0).resolve()
        model, prefix = start_model(s)
        encoded = encode(load_tokenizer(s.model), load_split(s.data, "train")[:4], 150)
        before = [p.detach().clone() for p in prefix.parameters()]
        _, norm = one_step(s, model, torch.optim.SGD(prefix.parameters(), lr=1.0), encoded, 1.0, 400)
        assert norm > 1.5
        moved = math.sqrt(sum((p - b).square().sum().item() for p, b in zip(prefix.parameters(), before)))
        assert moved == pytest.approx(expected if expected else norm, rel=1e-3)


def test_the_frozen_model_stays_frozen_and_fine_tuning_moves_every_weight(settings, world, tmp_path):
    pretrained = load_gpt2(str(world / "model")).state_dict()
    for mode in ("prefix", "infix", "embedding"):
        s = settings(mode=mode).resolve()
        model, prefix = start_model(s)
        encoded = encode(load_tokenizer(s.model), load_split(s.data, "train")[:10], 150)
        one_step(s, model, torch.optim.AdamW(prefix.parameters(), lr=0.1), encoded, 0.1, 400)
        assert all(torch.equal(tensor, pretrained[key]) for key, tensor in model.state_dict().items())
    tuned = read_safetensors(train(settings(mode="finetune", max_steps=3)) / "model.safetensors")[0]
    assert tuned.keys() == pretrained.keys()
    assert all(not torch.equal(tensor, pretrained[key]) for key, tensor in tuned.items())


def test_bf16_learns_what_fp32_learns(settings, tmp_path):
    losses = {}
    for dtype in ("fp32", "bf16"):
        folder = train(settings(dtype=dtype, lr=2e-2, out=str(tmp_path / dtype)))
        losses[dtype] = [float(row["loss"]) for row in log_of(folder)]
        assert read_safetensors(folder / "prefix.safetensors")[0]["prefix"].dtype == torch.float32
    assert losses["fp32"][-1] < losses["fp32"][0] - 0.3
    torch.testing.assert_close(losses["bf16"], losses["fp32"], atol=0.05, rtol=0)


def test_without_the_mlp_the_activations_themselves_are_learned(settings):
    summary = json.loads((train(settings(no_reparam=True, max_steps=3)) / "summary.json").read_text())
    assert summary["parameters"]["trained"] == summary["parameters"]["stored"] == 5 * 2 * 2 * 64


def test_words_set_the_length_of_the_prefix_and_where_it_begins(settings, capsys):
    folder = train(settings(prefix_len=None, init_text="Italian food", no_reparam=True, lr=0.0, max_steps=1))
    words = load_tokenizer(settings().model).encode_ordinary(" Italian food")
    assert f"from 'Italian food', {len(words)} tokens" in capsys.readouterr().out
    model = load_gpt2(settings().model)
    prefix = load_prefix(folder / "prefix.safetensors", model.config)
    tokens = torch.tensor([[7, 8, 9]])
    with torch.no_grad():
        expected = model(torch.tensor([[*words, 7, 8, 9]]))[:, len(words) :]
        torch.testing.assert_close(prefix.attach(model) and model(tokens), expected, atol=1e-4, rtol=0)


def test_keeping_the_best_keeps_the_weights_of_the_lowest_validation_loss(settings, tmp_path, monkeypatch):
    """A run that goes downhill and then uphill again: the best is not the last."""
    s = settings(lr=1e-2, valid_every=2, keep="best", out=str(tmp_path / "best"))
    monkeypatch.setattr(
        train_module, "learning_rate", lambda peak, step, steps, warmup: peak if step < steps // 2 else -peak
    )
    folder = train(s)
    losses = [float(row["valid_loss"]) for row in log_of(folder, "valid.csv")]
    assert min(losses) < losses[-1] - 1e-3
    kept = json.loads((folder / "summary.json").read_text())["best_valid_loss"]
    assert kept == pytest.approx(min(losses), abs=1e-5)
    settings_, model = load_run(folder, device="cpu", dtype="fp32")
    tokenizer = load_tokenizer(settings_.model)
    valid = encode(tokenizer, load_split(settings_.data, "valid"), 150)
    loss = validation_loss(model, valid, summed_loss, tokenizer.eot_token, "cpu")
    assert loss == pytest.approx(kept, abs=1e-5)


def test_fewer_training_examples_are_drawn_by_the_seed(settings):
    drawn = [Run(settings(train_examples=7, seed=seed).resolve(), False).train_set for seed in (1, 1, 2)]
    assert len(drawn[0]) == 7 and drawn[0] == drawn[1] and drawn[0] != drawn[2]
    everything = Run(settings().resolve(), False).train_set
    assert all(example in everything for example in drawn[2]) and drawn[0] != everything[:7] != drawn[2]
    with pytest.raises(InputError, match="--train_examples 121: there are only 120"):
        Run(settings(train_examples=121).resolve(), False)


def test_fewer_validation_examples_are_evenly_spaced_whatever_the_seed(settings):
    everything = Run(settings().resolve(), False).valid_set
    n = len(everything)
    few = [Run(settings(valid_examples=4, seed=seed).resolve(), False).valid_set for seed in (1, 2)]
    assert few[0] == few[1] == [everything[i] for i in (0, n // 4, n // 2, 3 * n // 4)]
    assert Run(settings(valid_examples=n).resolve(), False).valid_set == everything
    with pytest.raises(InputError, match=f"--valid_examples {n + 1}: there are only {n}"):
        Run(settings(valid_examples=n + 1).resolve(), False)


def test_dropout_acts_while_fine_tuning_and_not_on_the_frozen_model(settings, tmp_path, monkeypatch):
    modes = []
    monkeypatch.setattr(
        train_module, "update", lambda model, *rest: modes.append(model.training) or update(model, *rest)
    )
    logs = {}
    for name, changes in {
        "tuned": {"mode": "finetune"},
        "without": {"mode": "finetune", "dropout": 0.0},
        "frozen": {},
        "poster": {"dropout": 0.1},
    }.items():
        logs[name] = log_of(train(settings(max_steps=13, valid_every=12, out=str(tmp_path / name), **changes)))
    # The last step follows a validation, which switches dropout off.
    assert modes == [True] * 13 + [False] * 26 + [True] * 13
    assert logs["tuned"][0]["loss"] != logs["without"][0]["loss"]
    assert logs["frozen"][0]["loss"] != logs["poster"][0]["loss"]


LIMITED = """
import resource, threading
resource.setrlimit(resource.RLIMIT_AS, (8 << 30, resource.RLIM_INFINITY))
threading.Thread(target=print).start()  # with a second thread the C library has more than one place to take memory from
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no mallopt")
@pytest.mark.parametrize("before", ["", LIMITED], ids=["plain", "where addresses are limited"])
def test_freed_memory_is_kept_for_the_next_allocation(before):
    """Without: 16,384 pages each time, where pages have 4 kB."""
    code = """
import resource, torch
from fast.memory import keep_freed_memory
keep_freed_memory()
def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10): torch.ones(16_777_216)
before = faults()
for _ in range(20): torch.ones(16_777_216)
print(faults() - before)
"""
    ended = subprocess.run(
        [sys.executable, "-c", before + code], cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True
    )
    assert int(ended.stdout.split()[-1]) < 3 * 16_384


def large_pages() -> bool:
    """Does this system give pages of 2 MB to who asks for them?"""
    folder = Path("/sys/kernel/mm/transparent_hugepage")
    if platform.libc_ver()[0] != "glibc" or not folder.exists() or "[never]" in (folder / "enabled").read_text():
        return False
    return (folder / "hpage_pmd_size").read_text().strip() == str(2**21)


@pytest.mark.slow
@pytest.mark.skipif(not large_pages(), reason="no large pages here")
def test_what_is_allocated_lies_in_large_pages_and_what_is_not_written_takes_no_memory():
    code = """
import torch
from fast.memory import keep_freed_memory
def kilobytes(name):
    return next(int(line.split()[1]) for line in open("/proc/self/smaps_rollup") if line.startswith(name))
before = kilobytes("Rss:")
keep_freed_memory()
print(kilobytes("Rss:") - before)
x = torch.ones(50_000_000)
print(kilobytes("Rss:") - before, kilobytes("AnonHugePages:"))
"""
    alone = os.environ | {"OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
        env=alone,
    )
    reserved, written, large = map(int, ended.stdout.split())
    assert reserved < 10_000 and 195_000 < written < 215_000 and large > 0  # (the system may be short of large pages)


@pytest.mark.parametrize("path, left", [("plain", 1 << 20), ("fast", 0)])
def test_denormal_numbers_are_zero_in_all_threads_of_the_fast_path(path, left):
    code = f"""
import torch
from harness.door import prepare_process
prepare_process(plain={path == "plain"})
product = torch.full((1 << 20,), 1e-30) * 1e-10
print((product.view(torch.int32) != 0).sum().item(), torch.set_flush_denormal(True))
"""
    two = os.environ | {"OMP_NUM_THREADS": "2"}
    command = [sys.executable, "-c", code]
    ended = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True, env=two)
    counted, possible = ended.stdout.split()
    assert int(counted) == (left if possible == "True" else 1 << 20)


def test_pieces_of_a_batch_are_as_small_as_asked(settings, monkeypatch):
    sizes = []
    monkeypatch.setattr(
        train_module, "summed_loss", lambda model, batch: sizes.append(len(batch.tokens)) or summed_loss(model, batch)
    )
    train(settings(max_steps=1, grad_accum=4, plain=True))
    assert sizes[:4] == [3, 3, 3, 1]


@pytest.mark.parametrize(
    "changes",
    [
        {"mode": "embedding"},
        {"mode": "infix"},
        {"init_text": "Italian food"},
        {"mode": "finetune"},
        {"mode": "lora", "warmup_steps": 1},
        {"mode": "embedding+lora+adapter"},
    ],
)
def test_every_mode_trains_in_bf16_and_is_evaluated_in_either(settings, changes):
    folder = train(settings(dtype="bf16", max_steps=3, **changes))
    for dtype in ("bf16", "fp32"):
        assert evaluate_run(folder, dtype=dtype)["ROUGE_L"] >= 0
        assert json.loads((folder / "evaluation.json").read_text())["machine"]["dtype"] == dtype


def test_a_finished_model_is_rounded_to_bf16_once_with_the_logits_of_one_that_autocast_rounds_each_time(
    world, settings
):
    folder = train(settings(mode="finetune", max_steps=2))
    own, ready = load_run(folder, dtype="bf16", device="cpu")
    assert ready.h[0].mlp.c_fc.weight.dtype == torch.bfloat16 and ready.wte.weight.dtype == torch.float32
    plain, tokens = (
        load_gpt2(str(world / "model"), str(folder / "model.safetensors")).eval(),
        torch.arange(20).view(2, 10),
    )
    with torch.no_grad(), autocast(own.device, own.dtype):
        assert torch.equal(ready(tokens), plain(tokens))


def test_the_final_evaluation_uses_the_commands_dtype(world, tmp_path):
    train_module.main(["--model", str(world / "model"), "--data", str(world / "data"), "--out", str(tmp_path / "run"),
    "--max_steps", "1",
                       "--max_new_tokens", "3", "--dtype", "fp32", "--device", "cpu"])  # fmt: skip
    assert json.loads((tmp_path / "run" / "evaluation.json").read_text())["machine"]["dtype"] == "fp32"


def test_each_command_of_the_readme_has_a_folder_of_its_own(monkeypatch, world):
    if not os.environ.get("TIKTOKEN_CACHE_DIR") and not (SHARED / "tiktoken_cache").exists():
        monkeypatch.setattr(
            "harness.settings.load_tokenizer", lambda name, weights=None: load_tokenizer(str(world / "model"))
        )
    elif not os.environ.get("TIKTOKEN_CACHE_DIR"):
        monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(SHARED / "tiktoken_cache"))
    parser = argparse.ArgumentParser()
    add_flags(parser)
    commands = re.findall(
        r"^(?:pip .*&& )?python train\.py(.*?)(?:#.*)?$", (ROOT / "README.md").read_text(), re.MULTILINE
    )
    runs = [Settings(**vars(parser.parse_args(shlex.split(c)))).resolve() for c in commands if "--help" not in c]
    runs += [Settings(seed=5).resolve(), Settings(loss="token").resolve()]
    assert len(runs) > 6 and runs[0].out in ("runs/gpt2-prefix5", "runs/mini-prefix5-data_mini")
    assert len({run.out for run in runs}) == len(runs)
    assert all(re.fullmatch(r"runs/[\w.-]+", run.out) for run in runs)


def test_settings_that_contradict_each_other_are_refused(settings):
    for wrong, said in (
        ({"mode": "finetune", "prefix_len": 5}, "fine-tuning has none"), ({"mode": "finetune", "no_reparam": True},
        "fine-tuning has none"),
        ({"init_text": " "}, "--init_text is empty"), ({"init_text": "Italian food", "prefix_len": 1},
        "leave --prefix_len out"),
        ({"warmup_steps": 24}, "--warmup_steps 24: the run has only 24 steps"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=said):
            Run(settings(**wrong).resolve(), False)


def test_an_overlong_test_table_is_found_before_training(settings, tmp_path, world):
    data = write_data(tmp_path / "data")
    with open(data / "src1_test.txt", "a", encoding="utf-8") as file:
        file.write("name : " + "x " * 150 + "||Too long .\n")
    with pytest.raises(InputError, match="name : x x x"):
        train(settings(data=str(data)), check_test_data=True)
    assert not Path(settings().out).exists()


def test_a_gradient_that_is_not_finite_ends_the_run_and_leaves_the_weights(settings):
    s = settings().resolve()
    model, prefix = start_model(s)
    prefix.rows.p_prime.register_hook(lambda gradient: gradient * math.inf)  # an overflow that the loss does not show
    before = [p.clone() for p in prefix.parameters()]
    optimizer = torch.optim.AdamW(prefix.parameters(), lr=1.0)
    encoded = encode(load_tokenizer(s.model), load_split(s.data, "train")[:4], 150)
    _, norm = one_step(s, model, optimizer, encoded, 1.0, 400)
    assert not math.isfinite(norm) and all(torch.equal(a, b) for a, b in zip(before, prefix.parameters()))


def test_words_are_fitted_by_the_mlp_before_training(settings, capsys):
    train(settings(init_text="Italian food", max_steps=1))
    left = float(re.search(r"mean squared error ([\d.]+)", capsys.readouterr().out)[1])
    s = settings(init_text="Italian food").resolve()
    model = load_gpt2(s.model)
    torch.manual_seed(s.seed)
    unfitted = MODES["prefix"](model.config, s.prefix_len, s.mid_dim)
    target = keys_values(
        model, model.wte(torch.tensor(load_tokenizer(s.model).encode_ordinary(" Italian food")))
    ).flatten(1)
    assert 0 < left < 0.9 * (unfitted.rows() - target).square().mean().item()


# ----------------------------------------------------------------------------- the files it writes


def test_one_command_trains_decodes_scores_and_writes_everything(world, tmp_path):
    result = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), "--mode", "prefix", "--prefix_len", "5", "--model",
        str(world / "model"), "--data",
         str(world / "data"), "--out", str(tmp_path / "run"), "--epochs", "1", "--log_every", "4", "--max_new_tokens",
         "20"],
        capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    folder = tmp_path / "run"
    written = {path.name for path in folder.iterdir()}
    assert written == {
        "settings.json",
        "log.csv",
        "valid.csv",
        "summary.json",
        "prefix.safetensors",
        "outputs.txt",
        "scores.json",
        "evaluation.json",
    }
    scores = json.loads((folder / "scores.json").read_text())
    assert set(scores) >= {"BLEU", "NIST", "NIST_perl", "ROUGE_L", "CIDEr"} and 0 <= scores["BLEU"] <= 1
    assert (folder / "log.csv").read_text().splitlines()[0] == "step,epoch,loss,lr,grad_norm,tokens_per_s"
    assert [int(row["step"]) for row in log_of(folder)] == [4, 8, 12]
    assert len(log_of(folder, "valid.csv")) == 1 and log_of(folder, "valid.csv")[0]["sample"]
    n_tables = len({e.source for e in load_split(str(world / "data"), "test")})
    assert len((folder / "outputs.txt").read_text().splitlines()) == n_tables
    for expected in ("this run: run", "signature: ", "left"):
        assert expected in result.stdout
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["parameters"]["stored"] == 5 * 2 * 2 * 64 and summary["steps"] == 12


@pytest.mark.parametrize("mode", ["prefix", "infix", "embedding", "finetune"])
def test_what_is_loaded_afresh_decodes_as_the_training_process_did(settings, world, mode):
    """valid.csv holds the sentence that the training process generated last; a fresh load must generate it too."""
    s = settings(mode=mode, lr=3e-3, epochs=4)
    folder = train(s)
    sample = log_of(folder, "valid.csv")[-1]["sample"]
    evaluate_run(folder, split="valid", device="cpu", dtype="fp32")
    assert (folder / "outputs-valid.txt").read_text().splitlines()[0] == sample


@pytest.mark.slow
def test_evaluation_ranks_the_trained_above_the_untrained(settings, tmp_path, world):
    scores = {}
    for steps in (1, 240):
        folder = train(settings(mode="finetune", lr=3e-3, max_steps=steps, out=str(tmp_path / str(steps))))
        scores[steps] = evaluate_run(folder)["BLEU"]
    assert scores[240] > 0.4 > 0.1 > scores[1]


def test_a_diverging_run_says_so_and_keeps_its_last_checkpoint(settings, monkeypatch):
    def diverging(*args):
        loss, norm = update(*args)
        return (loss if args[4] > 7e-4 else math.nan), norm  # the learning rate has fallen below: step 8 of 24

    monkeypatch.setattr(train_module, "update", diverging)
    s = settings(checkpoint_every=3)
    with pytest.raises(
        InputError, match=r"the loss is nan after 8 steps: lower --lr \(it is 0.001\), with another --out"
    ):
        train(s)
    assert torch.load(Path(s.out) / "checkpoint.pt", weights_only=True)["n"] == 6
    assert not (Path(s.out) / "prefix.safetensors").exists()


def test_a_log_line_cut_in_half_by_a_crash_is_mended(settings, monkeypatch):
    s = settings(checkpoint_every=5)
    kill_after(monkeypatch, 9)
    with pytest.raises(Killed):
        train(s)
    monkeypatch.setattr(train_module, "update", update)
    log = Path(s.out) / "log.csv"
    log.write_text(log.read_text()[:-9])
    train(s, resume=True)
    assert [int(row["step"]) for row in log_of(s.out)] == list(range(1, 25))
