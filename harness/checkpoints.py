"""Logs and checkpoints: on a CPU a killed run resumes to the same bits."""

import csv
import os
import zipfile
from contextlib import contextmanager
from pathlib import Path

import torch

from harness.files import InputError, explain_os_error, write_atomic

# What PyTorch, zipfile and the modules raise for a file that is damaged or another run's.
DAMAGED = (RuntimeError, KeyError, ValueError, TypeError, AttributeError, EOFError, OSError, zipfile.BadZipFile)


class CsvLog:
    """A CSV file that grows one line at a time. Lines of steps after `after` are dropped, since those run again."""

    def __init__(self, path: Path, columns: tuple[str, ...], after: int):
        rows = []
        if path.exists():
            # A crash may have left half a line, or half a character.
            with open(path, newline="", encoding="utf-8", errors="replace") as file:
                complete = (row for row in csv.reader(file) if len(row) == len(columns) and row[0].isdecimal())
                rows = [row for row in complete if int(row[0]) <= after]
        with write_atomic(path) as file:
            csv.writer(file, lineterminator="\n").writerows([columns, *rows])
        self.path = path

    def add(self, *row) -> None:
        """Append a line and flush it to the disk."""
        try:
            with open(self.path, "a", newline="", encoding="utf-8") as file:
                csv.writer(file, lineterminator="\n").writerow(row)
                file.flush()
                os.fsync(file.fileno())  # a checkpoint must never be newer than its log
        except OSError as error:
            raise InputError(f"{self.path} was not written: {explain_os_error(error)}") from None


def write_state(path: Path, state: dict) -> None:
    """Write tensors, numbers and strings atomically: the old file stays until the new one is complete.

    Raises InputError when the disk is full.
    """
    try:
        with write_atomic(path, "wb") as file:
            torch.save(state, file)
    except RuntimeError as error:  # torch.save's own error when a write fails
        reason = str(error).splitlines()[0]
        raise InputError(
            f"{path} was not written ({reason}): is the disk full? The previous checkpoint is kept"
        ) from None


@contextmanager
def read_state(path: Path):
    """`with read_state(path) as state:` what `write_state` wrote. Only tensors, numbers and strings are unpickled.

    Raises InputError when the file is damaged, or when the block finds that something is missing or does not fit.
    """
    try:
        with zipfile.ZipFile(path) as archive:  # PyTorch writes checksums and does not read them
            if (damaged := archive.testzip()) is not None:
                raise ValueError(f"the checksum of {damaged} is wrong")
        yield torch.load(path, map_location="cpu", weights_only=True)
    except InputError:  # the block's own
        raise
    except DAMAGED as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise InputError(f"{path} does not fit this run or is damaged ({reason}): delete it to start over") from None
    except Exception as error:  # the unpickler has an error type of its own
        raise InputError(
            f"{path} is not a checkpoint of this program ({type(error).__name__}): delete it to start over"
        ) from None


def save_checkpoint(path: Path, learned, optimizer, made_from: dict[str, str], **state) -> None:
    """Write everything that `--resume` needs.

    made_from  fingerprints: "data" and "validation", of their examples; "model", of its weights before the first step
    state      numbers: n (steps done), counts (see loop.Run), best (validation loss)
    """
    state |= {"learned": learned.state_dict(), "optimizer": optimizer.state_dict()} | made_from
    state["rng"] = torch.get_rng_state()
    if torch.cuda.is_available():
        state["cuda_rng"] = torch.cuda.get_rng_state()
    write_state(path, state)


def load_checkpoint(path: Path, learned, optimizer, made_from: dict[str, str]) -> dict:
    """Restore a checkpoint's state; returns its numbers.

    Raises InputError when it is damaged, does not fit, or was made with other examples or another model.
    """
    with read_state(path) as state:
        learned.load_state_dict(state["learned"])
        optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["rng"])
        if "cuda_rng" in state and torch.cuda.is_available():
            torch.cuda.set_rng_state(state["cuda_rng"])
        counts = {key: float(value) for key, value in state["counts"].items()}
        numbers = {"n": int(state["n"]), "best": float(state["best"]), "counts": counts}
        names = {"data": "training examples", "validation": "validation examples", "model": "model's weights"}
        for key, what in names.items():
            if state.get(key, made_from[key]) != made_from[key]:  # earlier versions wrote only that of the data
                raise InputError(
                    f"{path}: the {what} have changed since it was written: restore them, or choose another --out"
                )
        return numbers
