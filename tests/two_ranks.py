"""What test_ranks.py runs in two processes: what only a program of several ranks can test of harness/ranks.py.

    torchrun --nproc_per_node 2 two_ranks.py WORLD DATA OUT

Each assertion that fails ends it. It ends with an error at rank 1 alone, which rank 0 cannot know of.
"""

import os
import signal
import sys
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

import train
from evaluate import evaluate_run
from harness import ranks
from harness.files import InputError, exit_on_input_error
from harness.settings import Settings

WORLD, DATA, OUT = map(Path, sys.argv[1:])


def settings(name: str, **changes) -> Settings:
    """A short run of fine-tuning; an epoch ends with a batch of 1, which leaves rank 1 without examples."""
    places = {
        "model": str(WORLD / "model"),
        "data": str(DATA),
        "out": str(OUT / name),
        "device": "cpu",
        "dtype": "fp32",
    }
    short = {
        "batch_size": 7,
        "max_steps": 9,
        "log_every": 1,
        "checkpoint_every": 2,
        "max_new_tokens": 4,
        "beam_size": 2,
    }
    return Settings(mode="finetune", lr=1e-3, **places, **short | changes)


def shards_and_collectives(me: int) -> None:
    assert ranks.size() == 2
    assert ranks.shard([5, 6, 7]) == ([5, 7] if me == 0 else [6])
    assert list(ranks.shard(range(0, 4, 4))) == ([0] if me == 0 else [])
    assert ranks.all_gather({"rank": me}) == [{"rank": 0}, {"rank": 1}]
    assert ranks.on_rank_0(ranks.rank) == 0


def sums_of_gradients(me: int) -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(2, 1)
    if me == 0:  # rank 1 has no examples
        (3 * layer(torch.ones(1, 2))).sum().backward()
    ranks.sum_gradients(torch.optim.SGD(layer.parameters()))
    assert layer.weight.grad.tolist() == [[3, 3]] and layer.bias.grad.tolist() == [3]


def noise(me: int) -> None:
    def drawn(step: int) -> list[float]:
        ranks.seed_noise(101, step)
        return torch.rand(3).tolist()

    at_rank = ranks.all_gather([drawn(step) for step in (0, 1, 2)])
    assert len({tuple(numbers) for steps in at_rank for numbers in steps}) == 6  # others at each rank and step
    assert drawn(1) == at_rank[me][1]


class Killed(Exception):
    pass


@contextmanager
def accident_in(step: int, accident: Callable[[], None]):
    """Training step `step` (0 is the first) begins with an accident."""
    begin_step = ranks.seed_noise

    def begin_step_with_it(seed: int, n: int) -> None:
        if n == step:
            accident()
        begin_step(seed, n)

    ranks.seed_noise = begin_step_with_it
    yield
    ranks.seed_noise = begin_step


def a_killed_and_stopped_run_with_dropout(me: int) -> None:
    """Resumes to the same bits. A signal that rank 1 alone has got stops both, after the same step."""

    def killed() -> None:
        raise Killed

    def signalled() -> None:
        if me == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    whole, parts = (settings(name, dropout=0.1) for name in ("whole", "parts"))
    train.train(whole)
    for step, accident, end, saved in ((5, killed, Killed, 4), (6, signalled, KeyboardInterrupt, 7)):
        with accident_in(step, accident), pytest.raises(end):
            train.train(parts, resume=True)
        assert torch.load(OUT / "parts" / "checkpoint.pt", weights_only=True)["n"] == saved
    train.train(parts, resume=True)
    logs = [(OUT / run / "log.csv").read_text().splitlines() for run in ("whole", "parts")]
    logs = [[line.rsplit(",", 1)[0] for line in log] for log in logs]  # without tokens_per_s
    assert len(logs[0]) == 10 and logs[0] == logs[1]
    assert (OUT / "whole" / "model.safetensors").read_bytes() == (OUT / "parts" / "model.safetensors").read_bytes()


def fail_at_rank_1() -> None:
    if ranks.rank() == 1:
        raise InputError("the disk of the second machine is broken")
    ranks.all_gather(None)
    print("not reached", flush=True)


@exit_on_input_error
@ranks.distributed
def main() -> None:
    me = ranks.rank()
    shards_and_collectives(me)
    sums_of_gradients(me)
    noise(me)
    a_killed_and_stopped_run_with_dropout(me)
    tuned = train.train(
        settings("two", dropout=0.0, grad_accum=2, keep="best", valid_every=4, train_examples=22, beam_size=3)
    )
    evaluate_run(
        tuned, batch_size=3, split="valid", device="cpu", dtype="fp32"
    )  # what these give is compared by test_ranks.py
    if me == 0:
        print("all is well", flush=True)
    fail_at_rank_1()


if __name__ == "__main__":
    main()
