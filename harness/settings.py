"""The settings of a run, which are the flags of the command line.

The defaults are the paper's settings for E2E: what `python train.py` does without flags. Where the paper's
prefix-tuning and fine-tuning differ, or the machine decides, the default is None or "auto", and `Settings.resolve`
fills it in.
"""

import argparse
import dataclasses
import os
import re
from dataclasses import dataclass
from pathlib import Path

import llama
from beam import LENGTH_NORMS
from gpt2 import CONFIGS, GPT2Config
from harness.datasets import WEBNLG, DataSet
from harness.door import Engine
from harness.files import InputError
from harness.machine import pick_device, pick_dtype
from harness.parts import ADAPTERS, PARTS, parts_of
from harness.tokenizers import load_tokenizer
from lora import MATRICES
from prefix import MODES
from weights import load_config

NAMES = (*CONFIGS, *llama.CONFIGS, "mini")  # the models that are not a folder of the user's
SEARCH = ("beam_size", "length_norm", "max_new_tokens")  # the settings of decoding
AT_LEAST_1 = ("epochs", "max_steps", "batch_size", "grad_accum", "train_examples", "valid_examples", "prefix_len",
              "mid_dim", "lora_rank", "adapter_dim", "beam_size", "max_new_tokens", "log_every",
              "checkpoint_every")  # fmt: skip
AT_LEAST_0 = ("lr", "lora_lr", "clip", "dropout", "lora_dropout", "weight_decay", "label_smoothing", "warmup_steps",
              "valid_every", "seed")  # fmt: skip


def flag(default, help: str, choices: tuple = (), kind: type | None = None):
    """A field of Settings that is also a command-line flag. kind: its type if the default is None."""
    return dataclasses.field(
        default=default, metadata={"help": help, "choices": choices or None, "type": kind or type(default)}
    )


@dataclass
class Settings:
    """Everything that determines a run's result, and where it goes. `resolve` fills in what depends on the mode."""

    # what is learned
    mode: str = flag("prefix", f"what is learned: {', '.join(PARTS)}, a sum such as prefix+lora, or finetune")
    prefix_len: int | None = flag(
        None, "P, positions of the prefix (default: 5, or the tokens of --init_text)", kind=int
    )
    mid_dim: int = flag(512, "width of the MLP that computes the prefix during training")
    no_reparam: bool = flag(False, "learn the activations directly, without the MLP")
    init_text: str | None = flag(
        None, "start from the activations of these words, e.g. 'table-to-text:' (low data)", kind=str
    )
    lora_on: str | None = flag(
        None, f"matrices that LoRA adapts: {','.join(MATRICES)}, in a Llama also gate (default: q,v)", kind=str
    )
    lora_rank: int | None = flag(None, "r, rank of LoRA's change (default: 4)", kind=int)
    lora_alpha: float | None = flag(None, "LoRA's change is scaled by alpha / r (default: 32)", kind=float)
    lora_dropout: float | None = flag(None, "dropout of the input of LoRA's change (default: 0.1)", kind=float)
    adapter_dim: int | None = flag(None, "width of the adapter (default: 64)", kind=int)
    adapter_scale: float | None = flag(None, "s, the adapter's output is scaled by it (default: 4)", kind=float)
    # the frozen model, and the data
    model: str = flag("gpt2", f"{', '.join(NAMES)} (in this repository), or a folder with config.json or a .gguf file")
    weights: str | None = flag(
        None,
        "a local .safetensors, .gguf or TensorFlow checkpoint; 'random': untrained (default: the model's own)",
        kind=str,
    )
    data: str | None = flag(None, "folder with the data, text or CSV; mini: the sample tables in this repository;"
                            " webnlg: WebNLG 2017, downloaded (default: E2E, the paper's files, downloaded)",
                            kind=str)  # fmt: skip
    reverse: bool = flag(False, "read the sentence and write the table")
    paper_quirk: bool = flag(False, "WebNLG: ' | ' in front of the first triple too, as in the paper's code")
    skip_long: bool = flag(
        False, "leave out examples longer than the context; in decoding, a text ends where the context ends"
    )
    train_examples: int | None = flag(None, "train on this many examples only, drawn by --seed (low data)", kind=int)
    valid_examples: int | None = flag(None, "validate on this many examples, evenly spaced (default: all)", kind=int)
    # optimisation: AdamW, linear decay to 0
    lr: float | None = flag(
        None,
        "learning rate (default: 8e-5, fine-tuning 5e-5, with lora or adapter 2e-4; mini and smollm2 have higher ones)",
        kind=float,
    )
    lora_lr: float | None = flag(None, "learning rate of lora and adapter, if another (default: as --lr)", kind=float)
    epochs: int = flag(5, "passes over the training data")
    max_steps: int | None = flag(None, "steps; overrides --epochs", kind=int)
    batch_size: int | None = flag(None, "examples per step, over all processes (default: 10, lora alone 8)", kind=int)
    grad_accum: int = flag(1, "compute a batch in this many pieces: the same step with less memory")
    warmup_steps: int | None = flag(
        None, "steps over which the learning rate rises from 0 (default: 0, lora alone 500)", kind=int
    )
    weight_decay: float | None = flag(None, "AdamW's weight decay (default: 0, lora alone 0.01)", kind=float)
    label_smoothing: float | None = flag(
        None, "weight of the uniform distribution in the targets of training (default: 0, lora alone 0.1)", kind=float
    )
    clip: float = flag(1.0, "maximum gradient norm; 0: no clipping")
    dropout: float | None = flag(None, "GPT-2's dropout during training (default: 0, fine-tuning 0.1)", kind=float)
    loss: str | None = flag(
        None,
        "sum over a sentence's tokens then mean, or mean over tokens (default: sentence with a prefix, else token)",
        ("sentence", "token"),
        kind=str,
    )
    score_separator: bool = flag(False, "count the separator in the loss too (the poster)")
    seed: int = flag(101, "of initialisation, order and dropout")
    keep: str = flag("last", "keep the last weights, or those with the best validation loss", ("last", "best"))
    # decoding
    beam_size: int | None = flag(None, "hypotheses kept; 1 is greedy (default: 5, lora alone 10)", kind=int)
    length_norm: str = flag(
        "total", "a text's log-probability is divided by: prompt + text (the paper), text (libraries), 1", LENGTH_NORMS
    )
    max_new_tokens: int = flag(100, "longest text generated")
    decode_dtype: str = flag(
        "fp32",
        "fp32: the same texts at any batch size; bf16: faster; auto: bf16 if the hardware has it",
        ("fp32", "bf16", "auto"),
    )
    # where and how
    out: str | None = flag(None, "the run's folder (default: runs/MODEL-MODE and so on)", kind=str)
    task: str | None = flag(None, "put what is learned on a shelf as this task, called by the token <|NAME|>", kind=str)
    shelf: str | None = flag(None, "the shelf's folder (default: shelves/mine)", kind=str)
    device: str = flag("auto", "cpu, cuda, mps (auto: cuda if there is one)")
    dtype: str = flag(
        "auto", "bf16 or fp32 products in training (auto: bf16 if the hardware has it)", ("auto", "bf16", "fp32")
    )
    plain: bool = flag(
        False, "use only the plain files, without fast/: slower, equal up to rounding and the noise of dropout"
    )
    log_every: int = flag(50, "steps between lines of log.csv")
    valid_every: int = flag(0, "steps between validations (0: after each epoch)")
    checkpoint_every: int = flag(500, "steps between checkpoints")

    @property
    def finetunes(self) -> bool:
        """Are all of GPT-2's weights trained?"""
        return self.mode == "finetune"

    @property
    def parts(self) -> tuple[str, ...]:
        """What is learned beside the frozen model, in the order of PARTS; () in fine-tuning."""
        return parts_of(self.mode)

    @property
    def has_prefix(self) -> bool:
        """Is a prefix, an infix or an embedding learned?"""
        return any(name in MODES for name in self.parts)

    @property
    def adapts(self) -> bool:
        """Is a LoRA or an adapter learned, alone or with a prefix?"""
        return any(name in ADAPTERS for name in self.parts)

    @property
    def recipe(self) -> dict:
        """The defaults that differ from paper to paper, by name."""
        return LORA_RECIPE if self.mode == "lora" else RECIPE

    @property
    def engine(self) -> Engine:
        """How to compute; for resolved settings."""
        return Engine(self.plain, self.device, self.dtype)

    @property
    def dataset(self) -> DataSet:
        """The data, for resolved settings."""
        return DataSet(self.data, self.reverse, self.paper_quirk)

    @property
    def search(self) -> dict:
        """The settings of decoding, by name."""
        return {name: getattr(self, name) for name in SEARCH}

    def for_decoding(self) -> "Settings":
        """These settings, resolved, computing in decode_dtype whatever training used."""
        return dataclasses.replace(self, dtype=self.decode_dtype).resolve()

    def resolve(self) -> "Settings":
        """Check the numbers and fill in the defaults that depend on the mode. Raises InputError."""
        new = dataclasses.replace(self, mode="+".join(parts_of(self.mode)) or "finetune")
        for name in AT_LEAST_1:
            value = getattr(new, name)
            if value is not None and not 1 <= value < 2**40:
                raise InputError(f"--{name} {value}: must be at least 1, and below 2**40")
        for name in AT_LEAST_0:
            value = getattr(new, name)
            if value is not None and not 0 <= value < float("inf"):
                raise InputError(f"--{name} {value}: must be 0 or more, and finite")
        if new.seed >= 2**64:
            raise InputError(f"--seed {new.seed}: must be below 2**64")
        for name in ("dropout", "lora_dropout", "label_smoothing"):
            if (getattr(new, name) or 0) >= 1:
                raise InputError(f"--{name} {getattr(new, name)}: must be below 1")
        which = "fine-tuning" if new.finetunes else new.mode
        if new.init_text is not None and not new.has_prefix:
            raise InputError(f"--init_text needs a mode with a prefix: {which} has none")
        if not new.has_prefix and (new.prefix_len is not None or new.no_reparam):
            raise InputError(f"--prefix_len and --no_reparam need a mode with a prefix: {which} has none")
        if new.paper_quirk and not new.dataset.is_webnlg:
            raise InputError("--paper_quirk is about WebNLG's source strings: leave it out")
        if new.paper_quirk and (new.reverse or new.task is not None):
            raise InputError("--paper_quirk goes with neither --reverse nor --task: leave it out")
        if new.init_text is not None and not new.init_text.strip():
            raise InputError("--init_text is empty: name some words, e.g. 'table-to-text:'")
        new.prefix_len = resolve_prefix_len(new)
        resolve_adapters(new)
        if new.lr is None:
            new.lr = RATES.get(new.model, PAPER_RATES)[2 if new.adapts else int(new.finetunes)]
        new.dropout = new.dropout if new.dropout is not None else default_dropout(new)
        new.loss = new.loss or ("sentence" if new.has_prefix else "token")
        for name, value in new.recipe.items():
            if getattr(new, name) is None:
                setattr(new, name, value)
        new.device = pick_device(new.device)
        new.dtype = pick_dtype(new.dtype, new.device)
        if new.shelf is not None and new.task is None:
            raise InputError("--shelf needs --task NAME: the task that is put on the shelf")
        if new.task is not None:
            if new.finetunes:
                raise InputError("--task needs a mode with a prefix: a fine-tuned model cannot be called by a token")
            if new.adapts:
                raise InputError(f"--task with --mode {new.mode}: {ONE_MODEL}")
            new.shelf = os.path.abspath(new.shelf or "shelves/mine")
        new.out = new.out or default_folder(dataclasses.replace(self, mode=new.mode), new.prefix_len)
        for name in ("model", "weights", "data"):  # a run must find them from any working directory
            path = getattr(new, name)
            if path not in (None, WEBNLG, *NAMES) and os.path.exists(path):
                setattr(new, name, os.path.abspath(path))
        return new


def init_tokens(s: Settings) -> list[int] | None:
    """The tokens of --init_text, with the leading space that they would have inside a text."""
    return (
        None if s.init_text is None else load_tokenizer(s.model, s.weights).encode_ordinary(" " + s.init_text.strip())
    )


def resolve_prefix_len(s: Settings) -> int | None:
    """P: as given, or one position for each token of --init_text, or 5. None without a prefix."""
    if not s.has_prefix:
        return None
    words = init_tokens(s)
    if words is None:
        return s.prefix_len if s.prefix_len is not None else 5
    if s.prefix_len not in (None, len(words)):
        raise InputError(
            f"--prefix_len {s.prefix_len}, but --init_text {s.init_text!r} has {len(words)} tokens:"
            " leave --prefix_len out"
        )
    return len(words)


def resolve_adapters(s: Settings) -> None:
    """Fill in the settings of LoRA and the adapter, which are None without one. Raises InputError."""
    defaults = {"lora_on": "q,v", "lora_rank": 4, "lora_alpha": 32.0, "lora_dropout": 0.1, "adapter_dim": 64}
    for name, value in (defaults | {"adapter_scale": 4.0}).items():
        part = name.split("_")[0]
        if part in s.parts:
            if getattr(s, name) is None:
                setattr(s, name, value)
        elif getattr(s, name) is not None:
            raise InputError(f"--{name} needs a mode with {part}, such as --mode prefix+{part}")
    if s.lora_on is not None:
        s.lora_on = ",".join(name.strip() for name in s.lora_on.split(","))
    if s.lora_lr is not None and not s.adapts:
        raise InputError("--lora_lr needs a mode with lora or adapter, such as --mode prefix+lora")
    if s.lora_lr is not None and s.lr == 0:
        raise InputError("--lora_lr is applied relative to --lr, which must then be above 0")


def default_dropout(s: Settings) -> float:
    """The paper's: 0.1 in fine-tuning, where the model has dropout at all."""
    return 0.1 if s.finetunes and isinstance(load_config(s.model), GPT2Config) else 0.0


# Learning rates (of a prefix, of fine-tuning, with LoRA or an adapter): the papers'; higher ones for mini, a model 20
# times smaller; for SmolLM2 the best of a search (results/smollm2/search.csv), with LoRA or an adapter the next lower,
# because a mixture takes the same.
PAPER_RATES = (8e-5, 5e-5, 2e-4)
RATES = {"mini": (1e-3, 1e-3, 2e-3), "smollm2": (1e-3, 3e-4, 3e-3)}

# What Li & Liang do, and what Hu et al. do for GPT-2 on E2E. Hu et al. also decode with a length penalty of 0.9 and
# forbid repeated 4-grams; neither is implemented here.
RECIPE = {"batch_size": 10, "warmup_steps": 0, "weight_decay": 0.0, "beam_size": 5}
LORA_RECIPE = {"batch_size": 8, "warmup_steps": 500, "weight_decay": 0.01, "beam_size": 10, "label_smoothing": 0.1}

ONE_MODEL = "a shelf holds prefixes only, because LoRA and adapters cannot differ from row to row of a batch"

# Not part of a run's name: it is in it already, or does not change what is learned.
NOT_IN_NAME = ("mode", "model", "prefix_len", "out", "device", "log_every", "checkpoint_every", "shelf", "decode_dtype",
               *SEARCH)  # fmt: skip


def default_folder(given: Settings, prefix_len: int | None) -> str:
    """runs/gpt2-prefix5, runs/gpt2-finetune-seed7, ...: the name has every given flag that changes the result."""
    names = [name + str(prefix_len) if name in MODES else name for name in given.mode.split("+")]
    parts = [Path(given.model).resolve().name, *names]
    for field in dataclasses.fields(given):
        value = getattr(given, field.name)
        if field.name in NOT_IN_NAME or value in (field.default, given.recipe.get(field.name)):
            continue
        text = Path(value).resolve().name if field.name in ("data", "weights") else str(value)
        if isinstance(value, str):
            text = "_" + re.sub(r"[^\w.]+", "_", text).strip("_")
        parts.append(field.name + ("" if value is True else text))
    return "runs/" + "-".join(parts)


def add_flags(
    parser: argparse.ArgumentParser, names: tuple[str, ...] | None = None, default: str | None = None
) -> None:
    """The fields of Settings (all, or these) as flags; a flag that is not given is absent from the result.

    default    the help's word for the default, in place of the training's own
    """
    for field in dataclasses.fields(Settings):
        if names is not None and field.name not in names:
            continue
        about, help = field.metadata, field.metadata["help"]
        if default is not None:
            help = re.sub(r" \(default: .*\)$", "", help) + f" (default: {default})"
        elif field.default is not None and field.default is not False and "(default" not in help:
            help += f" (default: {field.default})"
        options = {"help": help.replace("%", "%%")}
        if about["type"] is bool:
            options["action"] = "store_true"
        else:
            options |= {
                "type": about["type"],
                "choices": about["choices"],
                "metavar": None if about["choices"] else field.name.upper(),
            }
        parser.add_argument(f"--{field.name}", default=argparse.SUPPRESS, **options)
