"""The settings of a run, which are the flags of the command line, and what they become on the machine at hand.

The defaults are the paper's settings for E2E: what `python train.py` does without flags. Where the paper's
prefix and fine-tuning differ, or the machine decides, the default is None or "auto" and `Settings.resolve` fills it in.
"""

import argparse
import ctypes
import dataclasses
import os
import platform
import re
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

import ranks
from beam import LENGTH_NORMS
from e2e_data import load_tokenizer
from files import InputError
from gpt2 import CONFIGS
from prefix import MODES


def flag(default, help: str, choices: tuple = (), kind: type | None = None):
    """A field of Settings that is also a flag of the command line. kind: its type where the default is None."""
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices or None, "type": kind or type(default)})


@dataclass
class Settings:
    """All that decides a run's result, and where it goes. `resolve` fills in what depends on the mode."""

    # what is learned
    mode: str = flag("prefix", "what is learned", (*MODES, "finetune"))
    prefix_len: int | None = flag(None, "P, positions of the prefix (default: 5, or the words of --init_text)", kind=int)
    mid_dim: int = flag(512, "width of the MLP that computes the prefix while it is trained")
    no_reparam: bool = flag(False, "learn the activations directly, without the MLP")
    init_text: str | None = flag(None, "begin with the activations of these words, e.g. 'table-to-text:' (low data)", kind=str)
    # the frozen model, and the data
    model: str = flag("gpt2", f"{', '.join(CONFIGS)}, mini (comes with the code), or a folder with config.json")
    weights: str | None = flag(None, "a local .safetensors or TensorFlow checkpoint; 'random': untrained (default: download)", kind=str)
    data: str | None = flag(None, "folder with the data, text or CSV; mini: sample tables that come with the code"
                            " (default: the paper's E2E files, downloaded)", kind=str)  # fmt: skip
    train_examples: int | None = flag(None, "use only so many training examples, drawn by --seed (low data)", kind=int)
    # optimisation: AdamW, linear decay to 0
    lr: float | None = flag(None, "learning rate (default: 8e-5, fine-tuning 5e-5; for mini 1e-3)", kind=float)
    epochs: int = flag(5, "passes over the training data")
    max_steps: int | None = flag(None, "updates; overrides --epochs", kind=int)
    batch_size: int = flag(10, "examples an update, of all processes together")
    grad_accum: int = flag(1, "compute a batch in so many pieces: the same update with less memory")
    warmup_steps: int = flag(0, "updates over which the learning rate rises from 0")
    weight_decay: float = flag(0.0, "AdamW's weight decay")
    clip: float = flag(1.0, "largest gradient norm; 0: no clipping")
    dropout: float | None = flag(None, "GPT-2's dropout while training (default: 0, fine-tuning 0.1)", kind=float)
    loss: str | None = flag(None, "sum over a sentence's tokens then mean, or mean over tokens (default: sentence, fine-tuning token)",
                            ("sentence", "token"), kind=str)  # fmt: skip
    score_separator: bool = flag(False, "count the separator in the loss too (the poster)")
    seed: int = flag(101, "of initialisation, order and dropout")
    keep: str = flag("last", "keep the last weights, or those with the best validation loss", ("last", "best"))
    # decoding
    beam_size: int = flag(5, "hypotheses kept; 1 is greedy")
    length_norm: str = flag("total", "a text's log-probability is divided by: prompt + text (the paper), text (libraries), 1", LENGTH_NORMS)
    max_new_tokens: int = flag(100, "longest text generated")
    # where and how
    out: str | None = flag(None, "the run's folder (default: runs/MODEL-MODE and so on)", kind=str)
    device: str = flag("auto", "cpu, cuda, mps (auto: cuda where there is one)")
    dtype: str = flag("auto", "bf16 or fp32 products (auto: bf16 where the hardware has it)", ("auto", "bf16", "fp32"))
    log_every: int = flag(50, "steps between lines of log.csv")
    valid_every: int = flag(0, "steps between validations (0: after each epoch)")
    checkpoint_every: int = flag(500, "steps between checkpoints")

    @property
    def finetunes(self) -> bool:
        """Are all of GPT-2's weights learned?"""
        return self.mode == "finetune"

    def resolve(self) -> "Settings":
        """Check the numbers and fill in the defaults that depend on the mode. Raises InputError."""
        new = dataclasses.replace(self)
        for name in ("epochs", "batch_size", "grad_accum", "log_every", "checkpoint_every", "beam_size", "max_new_tokens",
                     "prefix_len", "max_steps", "train_examples", "mid_dim"):  # fmt: skip
            value = getattr(new, name)
            if value is not None and value < 1:
                raise InputError(f"--{name} {value}: must be at least 1")
        for name in ("lr", "clip", "dropout", "weight_decay", "warmup_steps", "valid_every", "seed"):
            value = getattr(new, name)
            if value is not None and not 0 <= value < float("inf"):
                raise InputError(f"--{name} {value}: must be 0 or more")
        if new.seed >= 2**64:
            raise InputError(f"--seed {new.seed}: must be below 2**64")
        if new.dropout is not None and new.dropout >= 1:
            raise InputError(f"--dropout {new.dropout}: must be below 1")
        if new.init_text is not None and new.finetunes:
            raise InputError("--init_text needs a mode with a prefix: fine-tuning has none")
        if new.finetunes and (new.prefix_len is not None or new.no_reparam):
            raise InputError("--prefix_len and --no_reparam need a mode with a prefix: fine-tuning has none")
        if new.init_text is not None and not new.init_text.strip():
            raise InputError("--init_text is empty: name some words, e.g. 'table-to-text:'")
        new.prefix_len = resolve_prefix_len(new)
        new.lr = new.lr if new.lr is not None else RATES.get(new.model, PAPER_RATES)[new.finetunes]
        new.dropout = new.dropout if new.dropout is not None else (0.1 if new.finetunes else 0.0)
        new.loss = new.loss or ("token" if new.finetunes else "sentence")
        new.device = pick_device(new.device)
        new.dtype = pick_dtype(new.dtype, new.device)
        new.out = new.out or default_folder(self, new.prefix_len)
        for name in ("model", "weights", "data"):  # a run must find them again from another working directory
            path = getattr(new, name)
            if path not in (None, "mini", *CONFIGS) and os.path.exists(path):
                setattr(new, name, os.path.abspath(path))
        return new


def init_tokens(s: Settings) -> list[int] | None:
    """The tokens of --init_text, with the space in front that they would have inside a text."""
    return None if s.init_text is None else load_tokenizer(s.model).encode_ordinary(" " + s.init_text.strip())


def resolve_prefix_len(s: Settings) -> int | None:
    """P: as given, or one position for each token of --init_text, or 5. None when there is no prefix."""
    if s.finetunes:
        return None
    words = init_tokens(s)
    if words is None:
        return s.prefix_len if s.prefix_len is not None else 5
    if s.prefix_len not in (None, len(words)):
        raise InputError(f"--prefix_len {s.prefix_len}, but --init_text {s.init_text!r} has {len(words)} tokens: leave --prefix_len out")
    return len(words)


# Learning rates for what is put in front of a frozen model, and for fine-tuning: the paper's, and higher ones for a model that is
# 20 times smaller than GPT-2's smallest (mini/README.md).
PAPER_RATES = (8e-5, 5e-5)
RATES = {"mini": (1e-3, 1e-3)}

# What does not belong into a run's name: it is there already, or changes nothing that is learned.
NOT_IN_NAME = ("mode", "model", "prefix_len", "out", "device", "log_every", "checkpoint_every", "beam_size", "length_norm",
               "max_new_tokens")  # fmt: skip


def default_folder(given: Settings, prefix_len: int | None) -> str:
    """runs/gpt2-prefix5, runs/gpt2-finetune-seed7, ...: every flag that was given and changes the result is in the name."""
    parts = [Path(given.model).resolve().name, given.mode + ("" if prefix_len is None else str(prefix_len))]
    for field in dataclasses.fields(given):
        value = getattr(given, field.name)
        if field.name in NOT_IN_NAME or value == field.default:
            continue
        text = Path(value).resolve().name if field.name in ("data", "weights") else str(value)
        text = "" if value is True else "_" + re.sub(r"[^\w.]+", "_", text).strip("_") if isinstance(value, str) else text
        parts.append(field.name + text)
    return "runs/" + "-".join(parts)


def add_flags(parser: argparse.ArgumentParser, names: tuple[str, ...] | None = None, default: str | None = None) -> None:
    """The fields of Settings (all, or these) as flags; those not given on the command line stay away.

    default    what to say of the default in place of the training's own
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
            options |= {"type": about["type"], "choices": about["choices"], "metavar": None if about["choices"] else field.name.upper()}
        parser.add_argument(f"--{field.name}", default=argparse.SUPPRESS, **options)


# ----------------------------------------------------------------------------- the machine


def pick_device(name: str) -> str:
    """"auto" -> "cuda" where there is one (of several ranks each has its own), else "cpu"; anything else is tried."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        name = ranks.own_gpu()
    try:
        torch.empty(1, device=name).cpu()
        if name.startswith("cuda:"):
            torch.cuda.set_device(name)  # else what names no GPU would be done on the first
    except (RuntimeError, AssertionError, ImportError) as error:  # PyTorch says "not compiled with" in either way
        raise InputError(f"--device {name} cannot be used here: {str(error).splitlines()[0]}") from None
    return name


def pick_dtype(name: str, device: str) -> str:
    """"auto" -> "bf16" where the hardware multiplies in bf16, else "fp32"."""
    if name != "auto":
        return name
    if device.startswith("cuda"):
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if device == "cpu" and cpu_has_bf16() else "fp32"


def cpu_facts() -> dict[str, str]:
    """What Linux says of the first processor, e.g. "model name" and "flags"; elsewhere nothing."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    lines = (line.partition(":") for line in text.split("\n\n")[0].splitlines())
    return {name.strip(): value.strip() for name, _, value in lines}


def cpu_has_bf16() -> bool:
    """Does the processor have AMX or AVX512-BF16? (Without, PyTorch emulates bf16, slower than fp32.)"""
    return not {"amx_bf16", "avx512_bf16"}.isdisjoint(cpu_facts().get("flags", "").split())


def autocast(settings: Settings):
    """The context in which the model is called: matrix products in bf16, or nothing special."""
    kind = settings.device.split(":")[0]
    return torch.autocast(kind, torch.bfloat16) if settings.dtype == "bf16" else nullcontext()


def keep_freed_memory() -> None:
    """Have the C library keep large blocks that are freed, for what is allocated next (glibc; elsewhere nothing happens).

    For a whole process, so a program calls it where it begins. The C library would give each back to the system and get it
    again as zeroed pages: fine-tuning GPT-2's smallest asked for 190,000 pages anew in every step, an eighth of its time.
    """
    try:
        libc = ctypes.CDLL(None)
        mallopt = libc.mallopt
    except (AttributeError, OSError, TypeError):  # another C library, another system
        return
    M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h
    mallopt(M_TRIM_THRESHOLD, -1)  # never trim
    mallopt(M_MMAP_MAX, 0)  # no block of a mapping of its own, which ends when it is freed
    use_large_pages(libc)


def use_large_pages(libc: ctypes.CDLL) -> None:
    """Have Linux give pages of 2 MB instead of 4 kB for what is allocated from now on, if it may.

    The fewer pages there are, the less time it takes to look up where they lie, at every reading and writing. Half of the machine's
    memory is asked for at once and freed, so that the C library takes from there what is asked for next; it is mere addresses until
    something is written to it. Where addresses are limited, or all memory is written to when it is allocated, it is left alone.
    """
    try:
        import resource  # not on Windows

        limits = {resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA)}
        counted = Path("/proc/sys/vm/overcommit_memory").read_text().strip() == "2"  # addresses as if they were memory
        size = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
        malloc, free, madvise = libc.malloc, libc.free, libc.madvise
    except (ImportError, AttributeError, OSError, ValueError):
        return
    if limits != {resource.RLIM_INFINITY} or counted or "MALLOC_PERTURB_" in os.environ:
        return
    malloc.argtypes, malloc.restype, free.argtypes = [ctypes.c_size_t], ctypes.c_void_p, [ctypes.c_void_p]
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    MADV_HUGEPAGE, page = 14, 2**21  # mman.h
    if block := malloc(size):
        begin = -(-block // page) * page  # the next multiple
        madvise(begin, (block + size - begin) // page * page, MADV_HUGEPAGE)
        free(block)


def describe_machine(settings: Settings) -> dict[str, str]:
    """What a figure was measured on."""
    processor = cpu_facts().get("model name") or platform.processor() or platform.machine()
    processor += f", {torch.get_num_threads()} threads"
    if settings.device.startswith("cuda"):
        processor = torch.cuda.get_device_name(settings.device)
    facts = {"device": settings.device, "processor": processor, "dtype": settings.dtype, "torch": torch.__version__}
    return facts | ({"processes": str(ranks.size())} if ranks.size() > 1 else {})
