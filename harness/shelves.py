"""A shelf of tasks in a folder (tasks.py): one file a task, so that a new task leaves the others as they are.

shelves/mine/e2e.safetensors    what load_prefix reads. Its metadata say which task and which model, and its scores
"""

import json
import os
from pathlib import Path

import torch

import metrics
from gpt2 import GPT2
from harness.files import InputError, lock_folder, read_text
from harness.report import scaled
from harness.runs import fingerprint, load_run, trained_file
from harness.safetensors import read_safetensors, write_safetensors
from harness.settings import Settings
from prefix import MODES, load_prefix
from tasks import Shelf, check_name
from weights import load_model


def files_of(folder: Path) -> dict[str, Path]:
    """Name -> file of each task of a shelf, in the order of the names; {} where there is no folder yet."""
    return {path.stem: path for path in sorted(Path(folder).glob("*.safetensors"))}


# ----------------------------------------------------------------------------- putting a task on a shelf


def check_free(settings: Settings, model: GPT2) -> None:
    """Before training: raise InputError unless the task that it is for can be put on the shelf afterwards."""
    check_name(settings.task)
    folder = Path(settings.shelf)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--shelf {folder} is a file: name a folder")
    of_model = fingerprint(model)
    for path in files_of(folder).values():
        check_model(path, read_safetensors(path)[1], of_model)
    path = folder / f"{settings.task}.safetensors"
    if path.exists() and not holds(path, trained_file(settings.out, finetunes=False)):
        raise InputError(f"{path} exists: choose another --task, or another --shelf")


def holds(path: Path, learned: Path) -> bool:
    """Is what a run has learned in this file of a shelf?"""
    if not learned.exists():
        return False
    ours, its = (read_safetensors(file)[0] for file in (path, learned))
    return ours.keys() == its.keys() and all(torch.equal(ours[name], its[name]) for name in ours)


def put(run: str | Path, task: str, shelf: str | None = None) -> Path:
    """Put what a finished run has learned on a shelf, with its scores if it has any; returns the file.

    shelf  None: shelves/mine
    If it is there already, only its scores are brought up to date. Raises InputError where another run has the name.
    Nothing else is overwritten, and the other tasks' files are not touched.
    """
    run = Path(run)
    changes = {"task": task} | ({"shelf": shelf} if shelf else {})
    settings, model = load_run(run, device="cpu", dtype="fp32", plain=True, **changes)
    folder, learned, scores = Path(settings.shelf), trained_file(run, finetunes=False), run / "scores.json"
    folder.mkdir(parents=True, exist_ok=True)
    with lock_folder(folder):  # of two runs that end at the same time, one finds the other's file
        check_free(settings, model)
        path = folder / f"{task}.safetensors"
        tensors, about = read_safetensors(learned)
        about |= {"task": task, "model": settings.model, "fingerprint": fingerprint(model)}
        if settings.weights is not None:
            about["weights"] = settings.weights
        if settings.reverse:
            about["reads"] = "a sentence"
        if scores.exists():
            about["scores"] = json.dumps(json.loads(read_text(scores)))
        if path.exists() and read_safetensors(path)[1] == about:
            print(f"<|{task}|> is on the shelf {folder} already")
            return path
        write_safetensors(path, {name: tensor.clone() for name, tensor in tensors.items()}, about)
    print(f"<|{task}|> is on the shelf {folder}: {path.stat().st_size:,} bytes")
    return path


# ----------------------------------------------------------------------------- using a shelf


def load_shelf(folder: str | Path, **changes) -> tuple[Settings, GPT2, Shelf]:
    """The settings of a shelf's model, the model, frozen and in evaluation mode, and the shelf, attached to it.

    changes  settings in place of the defaults: device, plain, decoding; model and weights: where the model is
    Raises InputError when the folder is no shelf, or its files were made for another model.
    """
    folder, files = Path(folder), files_of(Path(folder))
    if not files:
        raise InputError(
            f"{folder} is not a shelf: it holds no task; train one with train.py --task NAME --shelf FOLDER"
        )
    about = {name: read_safetensors(path)[1] for name, path in files.items()}
    for name, path in files.items():
        check_task(path, about[name])
    first = next(iter(about.values()))
    where = {name: first[name] for name in ("model", "weights") if name in first and "model" not in changes}
    try:
        settings = Settings(**where | {"dtype": changes.get("decode_dtype", Settings.decode_dtype)} | changes).resolve()
        model = load_model(settings.model, settings.weights)
    except InputError as error:
        if "model" in changes or os.path.exists(first.get("model", "")) or not os.path.isabs(first.get("model", "")):
            raise
        raise InputError(f"{error}; the shelf was made elsewhere: name your copy of the model with --model") from None
    shelf, of_model = Shelf(model.config), fingerprint(model)
    for name, path in files.items():
        check_model(path, about[name], of_model)
        shelf.add(name, load_prefix(path, model.config))
        if about[name].get("reads") == "a sentence":
            shelf.reverse.add(name)
    return settings, settings.engine.to_device_and_freeze(model, shelf.requires_grad_(False)).eval(), shelf


def check_model(path: Path, about: dict[str, str], of_model: str) -> None:
    """Raise InputError unless a file of a shelf was made for the model with this fingerprint."""
    check_task(path, about)
    if about.get("fingerprint") != of_model:
        raise InputError(
            f"{path} was made for another model ({about.get('model')}): use that model, or another --shelf"
        )


def check_task(path: Path, about: dict[str, str]) -> None:
    """Raise InputError unless a file is a task's, by the metadata that `put` writes."""
    if about.get("task") != path.stem:
        raise InputError(f"{path} is not the file of a task on a shelf: take it out of the folder")


def describe(folder: str | Path) -> str:
    """A line for each task: its token, what was learned, its size, its scores."""
    lines = []
    for name, path in files_of(Path(folder)).items():
        tensors, about = read_safetensors(path)
        check_task(path, about)
        if about.get("mode") not in MODES or len(tensors) != 1:
            raise InputError(f"{path} is not the file of a prefix: take it out of the folder")
        (values,) = tensors.values()
        try:
            scores = spelled(json.loads(about.get("scores", "{}")))
        except (ValueError, AttributeError, TypeError, RecursionError):
            raise InputError(f"{path}: the scores in its metadata are damaged: put the task there again") from None
        what = (
            f"{about.get('mode')} of {len(values)} positions, {values.numel():,} numbers, {path.stat().st_size:,} bytes"
        )
        lines.append(f"<|{name}|>  {what}  {scores}")
    if not lines:
        raise InputError(
            f"{folder} is not a shelf: it holds no task; train one with train.py --task NAME --shelf FOLDER"
        )
    return "\n".join(lines)


def spelled(scores: dict) -> str:
    """`BLEU 52.00  NIST 3.84 ...`, on the scale of the printed table; of several rows, the first."""
    if not scores:
        return "not scored"
    if isinstance(first := next(iter(scores.values())), dict):
        scores = first
    numbers = {name: value for name, value in scores.items() if name != metrics.DETAILS}
    return "  ".join(f"{name} {scaled(name, value):.2f}" for name, value in numbers.items())
