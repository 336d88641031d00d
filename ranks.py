"""Several processes, one run: `torchrun --nproc_per_node N train.py ...`, on one machine or many; evaluate.py too.

Each of the N processes, the ranks 0 .. N - 1, holds the whole model and computes its share of every batch. The loss is
a sum over examples, hence so is its gradient, and the batch's is the sum of the shares' (n examples in the batch):

    g  =  1/n sum_(i in batch) g_i  =  sum_(r = 0 .. N-1)  1/n sum_(i in share r) g_i

So the ranks add up their gradients (`sum_gradients`); then all have the same, clip it and step alike, and remain equal.
The result is that of one process with the same batch, but for the order in which numbers are added. Validation and
decoding are shared out by whole batches, those that one process makes, so that the sentences are the same.

Ranks meet where they exchange something, and a meeting lasts until all have come. Hence three rules:

* all come to the same meetings in the same order: what decides on that, such as a signal that one alone may have noticed
  or a file that one alone may see, is settled in a meeting itself (`gathered`);
* rank 0 alone prints and writes; the others wait until it has, and take from it what it returns (`first_does`);
* a rank that has an error leaves, and the others, who miss it at the next meeting, leave as well (`together`).

All of it is torch.distributed's: gloo carries what lies in a processor's memory, nccl what lies on GPUs. Without torchrun
there is one rank, which meets nobody. Left out: sharding the weights or AdamW's moments (every rank has all), and
communication that overlaps with the backward pass.
"""

import functools
import os
import re
import signal
import sys
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from datetime import timedelta
from typing import Any, Callable, Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from files import InputError

# How long to wait for a rank that says nothing. One that dies closes its connections and is missed at once, so this is for a
# machine cut off; and a rank may have to wait for as long as another downloads GPT-2 or writes a large checkpoint.
PATIENCE = timedelta(hours=1)


def size() -> int:
    """N, the number of processes; 1 without torchrun."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this is, 0 .. N - 1."""
    return dist.get_rank() if size() > 1 else 0


def own_gpu() -> str:
    """The GPU that is this rank's: on each machine the ranks are counted from 0 again, and each takes the GPU of its number."""
    return f"cuda:{os.environ['LOCAL_RANK']}" if size() > 1 else "cuda"


# ----------------------------------------------------------------------------- a program's beginning and end


def together(main: Callable) -> Callable:
    """Decorator of a command line's `main`: joins the other processes where torchrun has started several.

    Of the ranks that have an error only the first reports it: mostly all have the same, or the others' is that the first
    has gone. They leave with status 2 in silence.
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
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun sends it when another has gone; there is something to say first
            silent = isinstance(error, Exception) and not is_first_error(store)
            if not torch.cuda.is_available():  # (nccl would wait for ranks that have gone; it ends with the process)
                dist.destroy_process_group()
            if silent:
                sys.exit(2)
            raise
        dist.destroy_process_group()
        return result

    return wrapper


@contextmanager
def meeting():
    """In this block, or decorated function, ranks meet. Raises InputError where one does not come."""
    try:
        yield
    except RuntimeError as error:  # what all errors of torch.distributed are
        reason = re.split(r"\. |\n", re.sub(r"^\[.*?\] ", "", str(error)))[0]  # without gloo's source file in front, and its advice behind
        raise InputError(
            f"another process of this run has gone or cannot be reached ({reason}): look at what it said, and run"
            " the command again (with --resume if it was training)"
        ) from None


@meeting()
def join() -> "dist.Store":
    """Form the group that torchrun's environment variables describe; returns torchrun's store, through which its members met."""
    store, number, n = next(dist.rendezvous("env://", timeout=PATIENCE))
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
    dist.init_process_group(backend, store=store, rank=number, world_size=n, timeout=PATIENCE)
    return store


def is_first_error(store: "dist.Store") -> bool:
    """Has no other rank had an error? To be asked once."""
    try:
        return store.add("errors", 1) == 1
    except RuntimeError:  # torchrun, which keeps the store, has gone too
        return True


@contextmanager
def silence():
    """Nothing is printed in this block. (What an error says is, since it is printed after it.)"""
    with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


# ----------------------------------------------------------------------------- shares, and meetings


def share(items: Sequence) -> Sequence:
    """This rank's part: every N-th, so that shares are equal within one, and even where the items are in order of length.

    It may be empty: a rank without examples adds nothing, but takes part.
    """
    return items[rank() :: size()]


def sum_gradients(parameters: Iterable[nn.Parameter], loss: Tensor) -> None:
    """Replace each gradient, and the loss, by its sum over the ranks."""
    if size() == 1:
        return
    parameters = list(parameters)
    for parameter in parameters:
        if parameter.grad is None:  # no examples here
            parameter.grad = torch.zeros_like(parameter)
    with meeting():
        for tensor in (*(parameter.grad for parameter in parameters), loss):
            dist.all_reduce(tensor)


@meeting()
def gathered(x: Any) -> list:
    """What each rank has brought, in the ranks' order, at every rank. It travels as a pickle: for numbers and texts."""
    if size() == 1:
        return [x]
    all_x = [None] * size()
    dist.all_gather_object(all_x, x)
    return all_x


def first_does(do: Callable, *args, **kwargs) -> Any:
    """do(*args, **kwargs) at rank 0 alone; all wait for it, and get what it returns."""
    return gathered(do(*args, **kwargs) if rank() == 0 else None)[0]


def seed_noise(seed: int, step: int) -> None:
    """Begin dropout's noise of a step anew at each rank, where there are several.

    Ranks must draw different noise, and a resumed run the same again. As a function of (seed, step, rank) it does both
    without a generator's state for each rank in the checkpoint, which may then be resumed with another number of ranks.
    """
    if size() > 1:
        torch.manual_seed((1_000_003 * seed + step * size() + rank()) % 2**64)
