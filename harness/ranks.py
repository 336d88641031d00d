"""Several processes, one run: `torchrun --nproc_per_node N train.py ...`, on one machine or several; evaluate.py too.

Each of the N processes, the ranks 0 .. N - 1, holds the whole model and computes its shard of every batch. The loss is
a sum over examples, so its gradient is too, and a batch's gradient is the sum of the shards' (n examples in the batch):

    g  =  1/n sum_(i in batch) g_i  =  sum_(r = 0 .. N-1)  1/n sum_(i in shard r) g_i

So the ranks sum their gradients (`sum_gradients`); then all have the same, clip it, take the same step, and stay equal.
The result is that of one process with the same batch, up to the order of additions. Validation and decoding are sharded
by whole batches, the same batches that one process makes, so the sentences are the same.

A collective blocks until every rank joins; if one dies, the others exit there. Hence three rules:

* All ranks call the same collectives in the same order. What decides about that, such as a signal that one rank
  received or a file that only one may see, is itself exchanged first (`all_gather`).
* Only rank 0 prints and writes; the others wait for it and receive what it returns (`on_rank_0`).
* A rank with an error exits, and the others exit at the next collective (`distributed`).

torch.distributed does the work: gloo for tensors on CPUs, nccl for those on GPUs. Without torchrun there is one rank
and no collective. Left out: sharding the weights or AdamW's moments (every rank has all), and communication that
overlaps with the backward pass.

Under torchrun, `--batch_size` counts all processes together, and dropout draws other noise than one process does. A run
stops and resumes as usual, also with another number of processes. Several machines need `--out` on a shared disk. On
CPUs, set OMP_NUM_THREADS to the cores per process (torchrun's default is 1). evaluate.py needs a `--` before its name,
because torchrun has a flag like `--run`:

    torchrun --nproc_per_node 4 -- evaluate.py --run runs/gpt2-prefix5

The tests run two processes on one machine; several GPUs or machines have not been tested.
"""

import functools
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from harness.files import InputError

# How long a collective waits for a silent rank. One that dies closes its connections and is noticed at once, so this is
# for a machine that loses its network; and a rank may wait while another downloads GPT-2 or writes a large checkpoint.
TIMEOUT = timedelta(hours=1)


def size() -> int:
    """N, the number of processes; 1 without torchrun."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's rank, 0 .. N - 1."""
    return dist.get_rank() if size() > 1 else 0


def own_gpu() -> str:
    """This rank's GPU: on each machine the ranks are counted from 0, and each takes the GPU of its number."""
    return f"cuda:{os.environ['LOCAL_RANK']}" if size() > 1 else "cuda"


# ----------------------------------------------------------------------------- start and end of a program


def distributed(main: Callable) -> Callable:
    """Decorator of a command line's `main`: joins the other processes if torchrun started several.

    Only the first rank with an error reports it: usually all have the same error, or the others' is that the first is
    gone. They exit with status 2 in silence.
    """

    @functools.wraps(main)
    def wrapper(*args, **kwargs):
        if not (dist.is_available() and dist.is_torchelastic_launched() and int(os.environ["WORLD_SIZE"]) > 1):
            return main(*args, **kwargs)
        store = join()
        try:
            with silence() if rank() else nullcontext():
                result = main(*args, **kwargs)
        except BaseException as error:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun sends it when another rank is gone; report first
            silent = isinstance(error, Exception) and not is_first_error(store)
            if not torch.cuda.is_available():  # nccl would wait for ranks that are gone; it ends with the process
                dist.destroy_process_group()
            if silent:
                sys.exit(2)
            raise
        dist.destroy_process_group()
        return result

    return wrapper


@contextmanager
def collective():
    """A block, or decorated function, that all ranks join. Raises InputError if one does not."""
    try:
        yield
    except RuntimeError as error:  # every error of torch.distributed is one
        reason = re.split(r"\. |\n", re.sub(r"^\[.*?\] ", "", str(error)))[0]  # without gloo's source file and advice
        raise InputError(
            f"another process of this run is gone or cannot be reached ({reason}): read its message, and run the"
            " command again (with --resume if it was training)"
        ) from None


@collective()
def join() -> "dist.Store":
    """Form the group that torchrun's environment variables describe; returns torchrun's key-value store."""
    store, number, n = next(dist.rendezvous("env://", timeout=TIMEOUT))
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
    dist.init_process_group(backend, store=store, rank=number, world_size=n, timeout=TIMEOUT)
    return store


def is_first_error(store: "dist.Store") -> bool:
    """Is this the first rank with an error? Call it once."""
    try:
        return store.add("errors", 1) == 1
    except RuntimeError:  # torchrun, which holds the store, is gone too
        return True


@contextmanager
def silence():
    """Nothing is printed in this block. (An error's message is, because it is printed after the block.)"""
    with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


# ----------------------------------------------------------------------------- shards and collectives


def shard(items: Sequence) -> Sequence:
    """This rank's part: every N-th item, so shards are balanced even if the items are sorted by length.

    It may be empty: a rank without examples contributes zero, but joins the collectives.
    """
    return items[rank() :: size()]


def sum_gradients(optimizer: torch.optim.Optimizer) -> None:
    """Replace the gradient of each parameter by its sum over the ranks."""
    if size() == 1:
        return
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for parameter in parameters:
        if parameter.grad is None:  # this rank had no examples
            parameter.grad = torch.zeros_like(parameter)
    with collective():
        for parameter in parameters:
            dist.all_reduce(parameter.grad)


def summing_gradients(clip_gradients: Callable) -> Callable:
    """`clip_gradients(optimizer, max_norm)`, of the gradients summed over the ranks: the norm is the whole batch's."""

    def sum_and_clip(optimizer: torch.optim.Optimizer, max_norm: float) -> Tensor:
        sum_gradients(optimizer)
        return clip_gradients(optimizer, max_norm)

    return sum_and_clip


@collective()
def all_gather(x: Any) -> list:
    """The objects of all ranks in rank order, at every rank. They are pickled: for numbers and texts."""
    if size() == 1:
        return [x]
    all_x = [None] * size()
    dist.all_gather_object(all_x, x)
    return all_x


def on_rank_0(do: Callable, *args, **kwargs) -> Any:
    """do(*args, **kwargs) on rank 0 only; all ranks wait for it and receive its result."""
    return all_gather(do(*args, **kwargs) if rank() == 0 else None)[0]


def seed_noise(seed: int, step: int) -> None:
    """Seed dropout's noise for a step, if there are several ranks.

    Ranks must draw different noise, and a resumed run the same noise again. A function of (seed, step, rank) gives both
    without storing each rank's generator, so a run may be resumed with another number of ranks.
    """
    if size() > 1:
        torch.manual_seed((1_000_003 * seed + step * size() + rank()) % 2**64)
