"""A run's folder: the model it begins and ends with, and all that it keeps on the way.

    runs/NAME/settings.json        every flag, so that evaluation and --resume need not be told again
              log.csv              step, epoch, loss, lr, grad_norm, tokens_per_s
              valid.csv            step, epoch, valid_loss, seconds, sample: one generated sentence
              checkpoint.pt        while unfinished: what --resume needs
              prefix.safetensors   what was learned (model.safetensors after fine-tuning)
              summary.json         parameters, seconds, machine
              outputs.txt, scores.json, evaluation.json      from evaluate.py
"""

import csv
import dataclasses
import json
import os
from contextlib import contextmanager
from pathlib import Path

import torch

from e2e_data import encode_prompt, shorten
from files import InputError, explain_os_error, read_text, write_whole
from gpt2 import GPT2, Projection
from loss import rounded
from prefix import MODES, Prefix, load_prefix
from settings import Settings, init_tokens
from weights import load_gpt2, write_safetensors


# ----------------------------------------------------------------------------- models


def start_model(settings: Settings) -> tuple[GPT2, Prefix | None]:
    """GPT-2, and the prefix attached to it (None: fine-tuning), before the first step."""
    model = load_gpt2(settings.model, settings.weights, settings.dropout)
    torch.manual_seed(settings.seed)
    if settings.finetunes:
        return place(model, None, settings), None
    prefix = MODES[settings.mode](model.config, settings.prefix_len, 0 if settings.no_reparam else settings.mid_dim)
    if (words := init_tokens(settings)) is not None:
        error = prefix.init_from_words(model.eval(), torch.tensor(words))
        print(f"prefix begins as the activations of {settings.init_text!r}, {len(words)} tokens (mean squared error {error:.4f})")
    prefix.to(settings.device)
    return place(model, prefix, settings), prefix


def place(model: GPT2, prefix: Prefix | None, settings: Settings) -> GPT2:
    """Bring GPT-2 to its device, and freeze it behind its prefix, if it has one. A frozen model is made ready for bf16."""
    model.to(settings.device)
    if prefix is not None:
        prefix.attach(model.requires_grad_(False))
    if settings.dtype == "bf16" and not model.wte.weight.requires_grad:
        # Autocast would round these to bf16 anew in each step; frozen weights can be rounded once.
        for module in model.modules():
            if isinstance(module, Projection):
                module.to(torch.bfloat16)
        model.head = rounded(model.wte.weight.detach(), torch.bfloat16)  # [V', C]
    return model


def trained_file(folder: Path, settings: Settings) -> Path:
    """Where a run keeps what it learned."""
    return Path(folder) / ("model.safetensors" if settings.finetunes else "prefix.safetensors")


def load_run(folder: str | Path, **changes) -> tuple[Settings, GPT2]:
    """A finished run's settings (with `changes` such as beam_size=1) and its model, to be called inside `autocast(settings)`.

    Everything comes from the files: the frozen GPT-2, and what was learned. Device and dtype are those of the
    machine at hand, which need not be the one that trained.
    """
    folder = Path(folder)
    settings = dataclasses.replace(load_settings(folder), **({"out": str(folder), "device": "auto", "dtype": "auto"} | changes)).resolve()
    path = trained_file(folder, settings)
    if not path.exists() or not (folder / "summary.json").exists():
        raise InputError(f"{folder} has no finished {path.name}: its training has not ended; go on with train.py … --resume")
    if settings.finetunes:
        return settings, place(load_gpt2(settings.model, str(path)).requires_grad_(False), None, settings).eval()
    model = load_gpt2(settings.model, settings.weights)
    prefix = load_prefix(path, model.config)
    if prefix.mode != settings.mode:
        raise InputError(
            f"{path} holds a {prefix.mode}, but the run's settings say {settings.mode}: the folder's files do not belong together"
        )
    return settings, place(model, prefix.to(settings.device).requires_grad_(False), settings).eval()


def save_learned(model, prefix, path: Path, settings: Settings) -> None:
    """Keep what was learned: the prefix without P' and MLP, or all of GPT-2's weights."""
    about = {"mode": settings.mode, "model": settings.model}
    if prefix is None:
        write_safetensors(path, model.state_dict(), about)
    else:
        prefix.drop_mlp().save(path, about)


# ----------------------------------------------------------------------------- the folder


def open_folder(settings: Settings, resume: bool) -> Path:
    """Make the run's folder, or go on in it. Never overwrites: raises InputError where another run is."""
    folder = Path(settings.out)
    path = folder / "settings.json"
    if not path.exists():
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise InputError(f"{folder} is there already and is not a run: choose another --out")
        write_json(path, dataclasses.asdict(settings))
        return folder
    before = load_settings(folder)
    free = ("out", "device", "log_every", "checkpoint_every", "beam_size", "length_norm", "max_new_tokens")  # may change on the way
    others = [name for name in dataclasses.asdict(settings) if name not in free and getattr(before, name) != getattr(settings, name)]
    if others:
        differ = ", ".join(f"--{name} {getattr(before, name)}, not {getattr(settings, name)}" for name in others)
        raise InputError(f"{folder} was begun with {differ}: give the same flags to resume it, or choose another --out")
    if not resume:
        raise InputError(f"{folder} holds this run already: go on with it (--resume), or choose another --out")
    return folder


def load_settings(folder: Path) -> Settings:
    """The settings that a run was begun with."""
    path = Path(folder) / "settings.json"
    if not path.exists():
        raise InputError(f"{folder} is not a run: it has no settings.json")
    try:
        settings = Settings(**json.loads(read_text(path)))
        for field in dataclasses.fields(Settings):
            value, kind, choices = getattr(settings, field.name), field.metadata["type"], field.metadata["choices"]
            kinds = (kind, type(field.default), int if kind is float else kind)  # JSON may write 1.0 as 1
            if not isinstance(value, kinds) or (choices and value not in (None, *choices)):
                raise ValueError(f"{field.name} is {value!r}")
        return settings
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is not a run's settings ({error}): put it back as train.py wrote it") from None


def to_json(content: dict) -> str:
    """The text of our JSON files."""
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def write_json(path: Path, content: dict) -> None:
    """A JSON file that is written whole or not at all."""
    with write_whole(path) as file:
        file.write(to_json(content))


def check_room(settings: Settings, model: GPT2, sources: list[str], tokenizer) -> None:
    """Raise InputError when the longest table and its text cannot fit into the context."""
    longest, source = max((len(encode_prompt(tokenizer, source)), source) for source in sources)
    need = longest + settings.max_new_tokens + (settings.prefix_len or 0)
    if need > model.config.n_positions:
        raise InputError(
            f"the table {shorten(source)}, {longest} tokens, {settings.max_new_tokens} new ones and the prefix need {need} positions,"
            f" but the model has {model.config.n_positions}: lower --max_new_tokens or --prefix_len, or shorten the table"
        )
    if 2 * settings.beam_size > model.config.vocab_size - 2:  # two candidates a beam; two newline tokens are banned
        raise InputError(f"--beam_size {settings.beam_size} is too large for {model.config.vocab_size} tokens: lower it")


# ----------------------------------------------------------------------------- logs and checkpoints


class CsvLog:
    """A CSV file that grows by a line at a time; `after` drops the lines of steps that will be run again."""

    def __init__(self, path: Path, columns: tuple[str, ...], after: int):
        rows = []
        if path.exists():
            with open(path, newline="", encoding="utf-8", errors="replace") as file:  # a crash may have left half a line
                rows = [row for row in csv.reader(file) if len(row) == len(columns) and row[0].isdecimal() and int(row[0]) <= after]
        with write_whole(path) as file:
            csv.writer(file, lineterminator="\n").writerows([columns, *rows])
        self.path = path

    def add(self, *row) -> None:
        """Append a line, and let it reach the file now."""
        try:
            with open(self.path, "a", newline="", encoding="utf-8") as file:
                csv.writer(file, lineterminator="\n").writerow(row)
                file.flush()
                os.fsync(file.fileno())  # a checkpoint must never be newer than its log
        except OSError as error:
            raise InputError(f"{self.path} was not written: {explain_os_error(error)}") from None


def write_state(path: Path, state: dict) -> None:
    """Write tensors, numbers and text; the file before stays until this one is whole. Raises InputError when there is no room."""
    try:
        with write_whole(path, "wb") as file:
            torch.save(state, file)
    except RuntimeError as error:  # how torch.save reports that the file did not take its bytes
        raise InputError(f"{path} was not written ({str(error).splitlines()[0]}): is the disk full? The checkpoint before is kept") from None


@contextmanager
def read_state(path: Path):
    """`with read_state(path) as state:` what `write_state` wrote, for the block to put back. Nothing is unpickled but tensors and numbers.

    Raises InputError when the file is damaged, or when the block finds that something in it is missing or does not fit.
    """
    try:
        yield torch.load(path, map_location="cpu", weights_only=True)
    except InputError:  # the block's own
        raise
    except (RuntimeError, KeyError, ValueError, TypeError, AttributeError, EOFError, OSError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise InputError(f"{path} does not fit this run or is damaged ({reason}): delete it to begin again") from None
    except Exception as error:  # the unpickler's refusal has a type of its own
        raise InputError(f"{path} is not a checkpoint of this program ({type(error).__name__}): delete it to begin again") from None


def save_checkpoint(path: Path, learned, optimizer, data: str, **state) -> None:
    """Write all that `--resume` needs.

    data    a mark of the training examples
    state   numbers: n (steps done), counts (see Training), best (validation loss)
    """
    state |= {"learned": learned.state_dict(), "optimizer": optimizer.state_dict(), "data": data, "rng": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda_rng"] = torch.cuda.get_rng_state()
    write_state(path, state)


def load_checkpoint(path: Path, learned, optimizer, data: str) -> dict:
    """Put a checkpoint's state back, and return its numbers.

    Raises InputError when it is damaged, does not fit, or was made with other training examples than `data` marks.
    """
    with read_state(path) as state:
        learned.load_state_dict(state["learned"])
        optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["rng"])
        if "cuda_rng" in state and torch.cuda.is_available():
            torch.cuda.set_rng_state(state["cuda_rng"])
        numbers = {"n": int(state["n"]), "best": float(state["best"]), "counts": {k: float(v) for k, v in state["counts"].items()}}
        if state["data"] != data:
            raise InputError(f"{path}: the training examples have changed since it was written: put them back, or choose another --out")
        return numbers
