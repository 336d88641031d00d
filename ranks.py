"""Several processes, one run: `torchrun --nproc_per_node N train.py ...`, on one machine or many; evaluate.py too.

Each of the N processes, the ranks 0 .. N - 1, holds the whole model and computes its share of every batch. The loss is
a sum over examples, hence so is its gradient, and the batch's is the sum of the shares' (n examples in the batch):

    g  =  1/n sum_(i in batch) g_i  =  sum_(r = 0 .. N-1)  1/n sum_(i in share r) g_i

This sum is one all-reduce a step. Then all ranks have the same gradient, clip it and step alike, and remain equal: the
result is that of one process with the same batch, but for the order in which numbers are added. Validation and decoding
are shared out by whole batches, those that one process makes, so that the sentences are the same.

What else N processes need is to agree, or one would wait for ever for another that has gone:

* rank 0 alone prints and writes; the others wait for its success, and take from it what it returns (`first_does`);
* what one rank cannot do ends all, with one message and one exit status (`all_do`, `together`);
* what one rank alone may notice, such as a signal, is made known to all before any acts on it (`any_of`).

All of it is torch.distributed's: gloo carries what lies in a processor's memory, nccl what lies on GPUs. Without torchrun
there is one rank and no process group; each function here then does nothing but what its arguments say. Left out: sharding
the weights or AdamW's moments (every rank has all), and communication that overlaps with the backward pass.
"""

import functools
import os
import signal
import sys
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from datetime import timedelta
from pathlib import Path
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
    """Decorator of a command line's `main`: joins the other processes where torchrun has started it.

    Ranks other than 0 do not print. An error is reported by the first rank that has one: mostly all have the same, or
    theirs is that the first has gone. The others leave with status 2 in silence.
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
            # torchrun sends SIGTERM to the others when the first has gone. They are going too, with a status of their own.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            silent = isinstance(error, Exception) and not is_first_error(store)
            if not torch.cuda.is_available():  # (nccl would wait for ranks that have gone; it ends with the process)
                dist.destroy_process_group()
            if silent:
                sys.exit(2)
            raise
        dist.destroy_process_group()
        return result

    return wrapper


def join() -> dist.Store:
    """Form the group that torchrun's environment variables describe; returns the store through which its members met."""
    try:
        store, number, n = next(dist.rendezvous("env://", timeout=PATIENCE))
        gpus = torch.cuda.is_available() and dist.is_nccl_available()
        backend = "cpu:gloo,cuda:nccl" if gpus else "gloo"
        dist.init_process_group(backend, store=store, rank=number, world_size=n, timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise InputError(f"the processes did not find each other ({first_line(error)}): check torchrun's flags") from None
    if gpus and int(os.environ["LOCAL_RANK"]) < torch.cuda.device_count():  # else `pick_device` will say so
        torch.cuda.set_device(own_gpu())
    return store


def is_first_error(store: dist.Store) -> bool:
    """Has no other rank had an error? To be asked once."""
    try:
        return store.add("errors", 1) == 1
    except RuntimeError:  # torchrun, which keeps the store, has gone too
        return True


@contextmanager
def silence():
    """Nothing is printed in this block. (A traceback is, since it is printed after it.)"""
    with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


@contextmanager
def contact():
    """In this block, or decorated function, the ranks meet: each must come, or the meeting fails with an InputError."""
    try:
        yield
    except RuntimeError as error:  # what all errors of torch.distributed are
        raise InputError(
            f"another process of this run has gone or cannot be reached ({first_line(error)}): look at what it said, and run"
            " the command again (with --resume if it was training)"
        ) from None


def first_line(error: Exception) -> str:
    """What an error says, in one line."""
    return (str(error).splitlines() or [type(error).__name__])[0]


# ----------------------------------------------------------------------------- shares, and sums over them


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
    tensors = [*(parameter.grad for parameter in parameters), loss]
    flat = torch.cat([tensor.flatten() for tensor in tensors])  # one message in place of many small ones
    with contact():
        dist.all_reduce(flat)
    for tensor, summed in zip(tensors, flat.split([tensor.numel() for tensor in tensors])):
        tensor.copy_(summed.view_as(tensor))


@contact()
def total(x: float) -> float:
    """The sum of each rank's number."""
    if size() == 1:
        return x
    sums = torch.tensor(x, dtype=torch.float64)
    dist.all_reduce(sums)
    return sums.item()


@contact()
def merged(part: dict) -> dict:
    """All ranks' parts in one dictionary, at every rank."""
    if size() == 1:
        return part
    parts: list[dict] = [{}] * size()
    dist.all_gather_object(parts, part)
    return {key: value for part in parts for key, value in part.items()}


@contact()
def same_start(learned: nn.Module) -> None:
    """Give every rank the weights of rank 0. They are equal already, unless machines differ in how they round."""
    if size() > 1:
        for parameter in learned.parameters():
            dist.broadcast(parameter.data, src=0)


def seed_noise(seed: int, step: int) -> None:
    """Begin dropout's noise of a step anew at each rank, where there are several.

    Ranks must draw different noise, and a resumed run the same again. As a function of (seed, step, rank) it does both
    without a generator's state for each rank in the checkpoint, which may then be resumed with another number of ranks.
    """
    if size() > 1:
        torch.manual_seed((1_000_003 * seed + step * size() + rank()) % 2**64)


# ----------------------------------------------------------------------------- agreement


@contact()
def any_of(flag: bool) -> bool:
    """Is it so at any rank? All get the same answer."""
    if size() == 1:
        return flag
    highest = torch.tensor(int(flag))
    dist.all_reduce(highest, op=dist.ReduceOp.MAX)
    return bool(highest)


def all_do(do: Callable, *args, **kwargs) -> Any:
    """do(*args, **kwargs) at every rank; if it fails at one, that one raises its error and all the others leave.

    `do` itself must not meet the other ranks: one that fails would not be there.
    """
    try:
        result = do(*args, **kwargs)
    except Exception:
        any_of(True)
        raise
    if any_of(False):
        sys.exit(2)  # why, is said by the one that knows
    return result


def first_does(do: Callable, *args, **kwargs) -> Any:
    """do(*args, **kwargs) at rank 0 alone; all get what it returns, or end if it fails."""
    if size() == 1:
        return do(*args, **kwargs)
    returned = [all_do(do, *args, **kwargs) if rank() == 0 else all_do(lambda: None)]
    with contact():
        dist.broadcast_object_list(returned, src=0)
    return returned[0]


def all_see(path: Path) -> None:
    """End unless each rank finds this file, which rank 0 has written: other machines may have other disks."""

    def look() -> None:
        if not path.exists():
            raise InputError(f"{path.parent} is not there on every machine: name a folder on a disk that they share, with --out")

    all_do(look)
