"""A run's folder, and the model that it starts and ends with.

runs/NAME/settings.json        every flag, so that evaluation and --resume need not be told again
          log.csv              step, epoch, loss, lr, grad_norm, tokens_per_s
          valid.csv            step, epoch, valid_loss, seconds, sample: one generated sentence
          checkpoint.pt        while unfinished: what --resume needs
          prefix.safetensors   what was learned (model.safetensors after fine-tuning, parts.safetensors with lora or
                               adapter)
          summary.json         parameters, seconds, machine
          outputs.txt, scores.json, evaluation.json      from evaluate.py

A PEFT adapter's folder (harness/peft_files.py) is read as the run of a prefix, an embedding or a LoRA, with the default
settings.
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path

import tiktoken
import torch

from adapter import Adapter
from e2e_data import encode_prompt, shorten
from gpt2 import GPT2, GPT2Config
from harness.files import InputError, read_text, write_atomic
from harness.parts import Parts, load_parts
from harness.peft_files import is_adapter, settings_of
from harness.safetensors import read_safetensors, write_safetensors
from harness.settings import SEARCH, Settings, init_tokens
from lora import LoRA
from prefix import MODES, Prefix, load_prefix
from weights import load_model

# ----------------------------------------------------------------------------- models


def start_model(settings: Settings) -> tuple[GPT2, Prefix | Parts | None]:
    """GPT-2 and what is learned, attached to it (None: fine-tuning), before the first step."""
    model = load_model(settings.model, settings.weights, settings.dropout)
    torch.manual_seed(settings.seed)
    if settings.finetunes:
        return settings.engine.to_device_and_freeze(model), None
    parts = {name: start_part(name, settings, model) for name in settings.parts}
    learned = Parts(parts) if settings.adapts else parts[settings.mode]
    return settings.engine.to_device_and_freeze(model, learned), learned


def start_part(name: str, s: Settings, model: GPT2) -> Prefix | LoRA | Adapter:
    """A prefix, a LoRA or an adapter, before the first step."""
    if name == "lora":
        return LoRA(model.config, tuple(s.lora_on.split(",")), s.lora_rank, s.lora_alpha, s.lora_dropout)
    if name == "adapter":
        return Adapter(model.config, s.adapter_dim, s.adapter_scale)
    prefix = MODES[name](model.config, s.prefix_len, 0 if s.no_reparam else s.mid_dim)
    if (words := init_tokens(s)) is not None:
        error = prefix.init_from_words(model.eval(), torch.tensor(words))
        print(f"prefix initialised from {s.init_text!r}, {len(words)} tokens (mean squared error {error:.4f})")
    return prefix


def trained_file(folder: Path, finetunes: bool, adapts: bool = False) -> Path:
    """The file that holds what a run learned; for a PEFT adapter, its folder."""
    if is_adapter(folder):
        return Path(folder)
    return Path(folder) / f"{'model' if finetunes else 'parts' if adapts else 'prefix'}.safetensors"


def ending_of(folder: Path, settings: Settings, split: str) -> str:
    """What the names of an evaluation's files end in: "" for a run's own test set, search and model, else what differs.

    A path is written whole, so that two folders of the same name have files of their own.
    """
    own = load_settings(folder)
    asked = {name: getattr(settings, name) for name in (*SEARCH, "decode_dtype")}
    other = [f"{name}_{value}" for name, value in asked.items() if value != getattr(own, name)]
    for name, default in (("data", "e2e"), ("model", ""), ("weights", "own")):
        value, before = getattr(settings, name), getattr(own, name)
        if value != before and (before or not is_adapter(folder)):  # PEFT's folder names no data, perhaps no model
            label = re.sub(r"[^\w.]+", "_", value or default).strip("_")
            other.append(f"{name}_{label[-80:]}")
    return "-".join(["", *([] if split == "test" else [split]), *other])


def load_run(folder: str | Path, **changes) -> tuple[Settings, GPT2]:
    """A finished run's settings (with `changes` such as beam_size=1) and its model, frozen, in evaluation mode.

    Everything comes from the files: the frozen GPT-2, and what was learned. Device and path are this machine's
    defaults, the dtype is `decode_dtype`, whatever training used. Call the model inside
    `autocast(settings.device, settings.dtype)`.
    """
    folder, own = Path(folder), load_settings(folder)
    here = {"out": str(folder), "device": "auto", "plain": False}
    here["dtype"] = changes.get("decode_dtype", own.decode_dtype)
    settings = dataclasses.replace(own, **here | changes)
    if not settings.model:
        raise InputError(
            f"{folder} does not say which model it is for, or names one that is not known here: name it with --model"
        )
    settings = settings.resolve()
    path = trained_file(folder, settings.finetunes, settings.adapts)
    if not path.exists() or not (path == folder or (folder / "summary.json").exists()):
        raise InputError(f"{folder} has no finished {path.name}: resume its training with train.py … --resume")
    if settings.finetunes:
        if "weights" in changes:
            raise InputError(f"--weights has no effect: {path} holds all weights of this fine-tuned run; leave it out")
        model = load_model(settings.model, str(path)).requires_grad_(False)
        return settings, settings.engine.to_device_and_freeze(model).eval()
    model = load_model(settings.model, settings.weights)
    if path != folder and not changes.keys() & {"model", "weights"}:
        check_frozen(path, model, settings.model)
    if settings.adapts:
        parts = load_parts(path, model.config, settings.mode).requires_grad_(False)
        parts.merge(model)  # before its weights are rounded
        return settings, settings.engine.to_device_and_freeze(model, parts).eval()
    prefix = load_prefix(path, model.config).requires_grad_(False)
    if prefix.mode != settings.mode:
        raise InputError(
            f"{path} holds a {prefix.mode}, but the run's settings say {settings.mode}:"
            " the folder's files do not belong together"
        )
    return settings, settings.engine.to_device_and_freeze(model, prefix).eval()


def save_learned(model: GPT2, prefix: Prefix | Parts | None, path: Path, mode: str, name: str) -> None:
    """Write what was learned: the parts, a prefix without P' and the MLP, or all weights (None). name: the model's."""
    about = {"mode": mode, "model": name}
    if prefix is None:
        write_safetensors(path, model.state_dict(), about)
    else:
        prefix.drop_mlp().save(path, about | {"fingerprint": fingerprint(model)})


def fingerprint(model: GPT2) -> str:
    """A hash of a model's embeddings and norms, which no number format rounds. It tells models of one shape apart, but
    not two that differ in their projections only (before and after a LoRA is merged)."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        if any(part in name for part in ("wte", "wpe", "ln_", "embed", "norm")):
            digest.update(tensor.detach().float().cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


def check_frozen(path: Path, model: GPT2, name: str) -> None:
    """Raise InputError if what this file holds was learned on other weights of the same shape."""
    about = read_safetensors(path)[1]
    if about.get("made_for") != model.config.shape or "fingerprint" not in about:
        return  # loading complains about a shape; earlier versions wrote no fingerprint
    if about["fingerprint"] != fingerprint(model):
        raise InputError(
            f"{path} was learned on other weights than {name} has now: restore them, or name those that are meant"
            " with --model or --weights"
        )


# ----------------------------------------------------------------------------- the folder

# What the commands that answer and score must not overwrite. (Scores may be written again, if they are the same.)
OWN_FILES = ("settings.json", "log.csv", "valid.csv", "checkpoint.pt", "prefix.safetensors", "model.safetensors",
             "parts.safetensors", "summary.json", "outputs.txt", "evaluation.json")  # fmt: skip

# What may change when a run is resumed: it does not change what is learned, and is not needed later.
FREE = ("out", "device", "log_every", "checkpoint_every", "task", "shelf")


def open_folder(settings: Settings, resume: bool) -> Path:
    """Create the run's folder, or resume in it. Raises InputError where another run is: nothing is overwritten."""
    folder = Path(settings.out)
    path = folder / "settings.json"
    if not path.exists():
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise InputError(f"{folder} exists and is not a run: choose another --out")
        write_json(path, dataclasses.asdict(settings))
        return folder
    before, now = dataclasses.asdict(load_settings(folder)), dataclasses.asdict(settings)
    others = [name for name in now if name not in FREE and before[name] != now[name]]
    if others:
        differ = ", ".join(f"--{name} {before[name]}, not {now[name]}" for name in others)
        raise InputError(f"{folder} was begun with {differ}: resume it with the same flags, or choose another --out")
    if not resume:
        raise InputError(f"{folder} holds this run already: resume it with --resume, or choose another --out")
    return folder


def load_settings(folder: Path) -> Settings:
    """The settings that a run was begun with. Of PEFT's folder: the defaults; model is "" where it is not known."""
    path = Path(folder) / "settings.json"
    if is_adapter(folder):
        settings = Settings(**settings_of(folder))
        return dataclasses.replace(settings, beam_size=settings.recipe["beam_size"])
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
        raise InputError(f"{path} is not a run's settings ({error}): restore it as train.py wrote it") from None


def check_outputs(outputs: dict[str, Path | None], inputs: Iterable[Path | None]) -> None:
    """Raise InputError if a file that a flag names would overwrite one that is read, another output, or a run's own.

    outputs   flag -> its path
    """
    taken = [path.resolve() for path in inputs if path is not None]
    for flag, path in outputs.items():
        if path is None:
            continue
        if path.resolve() in taken:
            raise InputError(f"--{flag} {path} would overwrite an input file or another output: choose another file")
        if path.name in OWN_FILES and (path.parent / "settings.json").exists():
            raise InputError(f"--{flag} {path} would overwrite a file of a run: choose another file")
        taken.append(path.resolve())


def to_json(content: dict) -> str:
    """The text of our JSON files."""
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def write_json(path: Path, content: dict) -> None:
    """Write a JSON file atomically."""
    with write_atomic(path) as file:
        file.write(to_json(content))


def check_context(
    config: GPT2Config,
    tokenizer: tiktoken.Encoding,
    sources: list[str],
    prefix_len: int | None,
    beam_size: int,
    max_new_tokens: int,
    cut: bool = False,
) -> list[int]:
    """The tokens that the text of each source may have: max_new_tokens, or with `cut` what fits into the context.

    Raises InputError when the longest table and its text exceed the context, or the beam exceeds the vocabulary.
    """
    lengths = [len(encode_prompt(tokenizer, source)) + (prefix_len or 0) for source in sources]
    limits = [min(max_new_tokens, config.n_positions - length) if cut else max_new_tokens for length in lengths]
    need, source = max((length + max(1, limit), source) for length, limit, source in zip(lengths, limits, sources))
    if need > config.n_positions:
        longest = len(encode_prompt(tokenizer, source))
        text = "1 token" if cut or max_new_tokens == 1 else f"{max_new_tokens} tokens"
        prefix = f", a prefix of {prefix_len}" if prefix_len else ""
        raise InputError(
            f"the table {shorten(source)}, {longest} tokens, a text of {text}{prefix} need {need} positions, but the"
            f" model has {config.n_positions}: lower --max_new_tokens, or shorten the table or the prefix"
        )
    if 2 * beam_size > config.vocab_size - 2:  # two candidates a beam; two newline tokens are banned
        raise InputError(f"--beam_size {beam_size} is too large for {config.vocab_size} tokens: lower it")
    return limits
