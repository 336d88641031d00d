"""Pretraining of GPT-2 mini: a vocabulary, then a model, from text.

    python mini/pretrain.py --corpus FOLDER --out runs/pretrain

FOLDER holds dialogue.txt, books.txt, expository.txt and structured.txt, or some of them (.txt.gz too), each with at
least 8 documents, separated by lines `<|endoftext|>`. A document of structured.txt is a table, optionally with a
heading above it, and below it, on one line, the sentence that states it (a key consists of letters, digits and
spaces):

    restaurants
    city : Porto | restaurant name : Blue Spice
    In Porto there is Blue Spice.

The objective is a language model's, over rows t_1 .. t_T+1 of the mixture in corpus.py:

    min over all weights of   - mean_i log p(t_i+1 | t_1 .. t_i)

Muon (Jordan et al. 2024: a step whose singular values are all alike) updates the matrices inside the layers, AdamW
all other weights. The learning rate rises for 100 steps, stays constant, and falls linearly to 0 over the last part
of the run. Until it begins to fall, the run can be extended (--resume with more --steps).

A run can be killed at any time: --resume continues from the last checkpoint with the rows it would have read, and
refuses flags or text that would change them. After the first checkpoint the folder holds vocab.bpe, encoder.json,
config.json and model.safetensors (fp16), which `--model FOLDER` loads, and log.csv; at the end also held_out.json,
the perplexity on the held-out text.
"""

import argparse
import json
import math
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that this project's modules are found from anywhere

from gpt2 import GPT2, GPT2Config
from harness.checkpoints import CsvLog, read_state, write_state
from harness.files import InputError, exit_on_input_error, sha256_of
from harness.loop import hours
from harness.machine import autocast, pick_device, pick_dtype
from harness.runs import write_json
from harness.safetensors import write_safetensors
from harness.signals import StopSignal
from harness.tokenizers import load_tokenizer
from mini.corpus import FILES, KINDS, Mixture, find_kinds, held_out_rows, make_sources, read_documents
from mini.tokenizer import train_bpe, write_vocabulary

SHAPE = ("n_layer", "n_head", "n_embd", "n_positions", "vocab_size")  # the model's shape, in config.json
FIXED = (*SHAPE, "rows", "shares", "lr", "falling", "weight_decay", "seed")  # must be the same when a run is resumed
ANY = sys.float_info.max
LIMITS = (  # flags, their smallest value, their largest
    ("n_layer n_head n_embd vocab_chars steps rows every", 1, ANY),
    ("n_positions", 2, ANY),  # so that no row scores only an end token
    ("vocab_size", 257, 2**16),  # at least the bytes and the end token; ids are stored in 16 bits
    ("lr weight_decay", 0, ANY),
    ("falling", 0, 1),
    ("seed", 0, 2**64 - 1),
)


# ----------------------------------------------------------------------------- the command line


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line. The defaults are those of the model in this folder."""
    parser = argparse.ArgumentParser(allow_abbrev=False, description="Pretrain a small GPT-2, vocabulary included.")
    add = parser.add_argument
    add("--corpus", type=Path, help=f"folder with {FILES}")
    add("--out", type=Path, help="folder for the model and everything that --resume needs")
    add("--resume", action="store_true", help="continue the run in --out")
    for name, default in (("n_layer", 6), ("n_head", 4), ("n_embd", 256), ("n_positions", 256)):
        add(f"--{name}", type=int, default=default, help=f"of the model (default: {default})")
    add("--vocab_size", type=int, default=4096, help="256 bytes, the merges, and the end token (default: 4096)")
    chars_help = "characters of each kind to train the vocabulary on (default: 10 million)"
    add("--vocab_chars", type=int, default=10_000_000, help=chars_help)
    shares = [0.25, 0.15, 0.2, 0.4]
    shares_help = f"of {', '.join(KINDS)} (default: {' '.join(map(str, shares))})"
    add("--shares", type=float, nargs=4, default=shares, metavar="S", help=shares_help)
    add("--steps", type=int, default=12_000, help="steps (default: 12,000)")
    add("--rows", type=int, default=16, help="rows of n_positions tokens in a step (default: 16)")
    add("--lr", type=float, default=8e-3, help="learning rate of both optimisers (default: 8e-3)")
    falling_help = "last part of the run, in which the learning rate falls to 0 (default: 0.3)"
    add("--falling", type=float, default=0.3, help=falling_help)
    add("--weight_decay", type=float, default=0.05, help="of the layers' matrices (default: 0.05)")
    add("--seed", type=int, default=1)
    add("--device", default="auto", help="cpu, cuda (auto: cuda if there is one)")
    add("--dtype", default="auto", choices=("auto", "bf16", "fp32"))
    add("--compile", action="store_true", help="compile the model; needs a C++ compiler")
    every_help = "steps between checkpoints, each with the held-out losses, in nats (default: 500)"
    add("--every", type=int, default=500, help=every_help)
    args = parser.parse_args(argv)
    check_flags(args)
    args.device = pick_device(args.device)
    args.dtype = pick_dtype(args.dtype, args.device)
    return args


def check_flags(args: argparse.Namespace) -> None:
    """Raise InputError for missing or impossible flags."""
    if args.corpus is None or args.out is None:
        raise InputError(
            "name a folder for the model with --out, and with --corpus one of text, which is not in this repository:"
            f" {FILES}"
        )
    for names, least, most in LIMITS:
        for name in names.split():
            if not least <= (value := getattr(args, name)) <= most:  # refuses nan too
                limits = f"at least {least}" + (f" and at most {most}" if most != ANY else "")
                raise InputError(f"--{name} {value}: must be {limits}")
    if args.n_embd % args.n_head:
        raise InputError(f"--n_embd {args.n_embd}: must be a multiple of --n_head {args.n_head}")
    if not all(0 <= share <= ANY for share in args.shares):
        raise InputError(f"--shares {' '.join(map(str, args.shares))}: must be 0 or more")


# ----------------------------------------------------------------------------- the vocabulary


def make_vocabulary(args: argparse.Namespace, training: dict[str, list[str]]) -> None:
    """Train the vocabulary on equal amounts of each kind of text, and write it into the run's folder."""
    texts = []
    for documents in training.values():
        n = 0
        for text in random.Random(args.seed).sample(documents, len(documents)):
            texts.append(text)
            n += len(text)
            if n > args.vocab_chars:
                break
    try:
        write_vocabulary(args.out, train_bpe(texts, args.vocab_size - 257))
    except ValueError as error:
        raise InputError(f"--vocab_size {args.vocab_size}: {error}") from None
    print(f"vocabulary of {args.vocab_size} tokens, trained on {sum(map(len, texts)):,} characters", flush=True)


# ----------------------------------------------------------------------------- training


def loss_of(model: GPT2, rows: torch.Tensor) -> torch.Tensor:
    """Mean - log p of each token given those before it, in nats; rows [B, T + 1]."""
    logits = model(rows[:, :-1])  # [B, T, V]
    return F.cross_entropy(logits.float().flatten(0, 1), rows[:, 1:].flatten())


def make_optimizers(model: GPT2, args: argparse.Namespace) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices; AdamW for embeddings, biases and LayerNorms, which do not decay."""
    is_matrix = {name: p.dim() == 2 and name.startswith("h.") for name, p in model.named_parameters()}
    matrices, others = (
        [p for name, p in model.named_parameters() if is_matrix[name] is wanted] for wanted in (True, False)
    )
    return [
        torch.optim.Muon(matrices, lr=args.lr, weight_decay=args.weight_decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=args.lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
    ]


def learning_rate(args: argparse.Namespace, step: int, steps: int) -> float:
    """Of update `step` (0 is the first) of `steps`: rises over 100 steps, stays, falls linearly to 0."""
    return args.lr * min(1.0, (step + 1) / 100, (steps - step) / max(1.0, args.falling * steps))


@torch.no_grad()
def held_out_loss(model: GPT2, rows: torch.Tensor, args: argparse.Namespace, most: int | None = None) -> float:
    """Mean - log p in nats per token, on all rows, or on `most` evenly spaced ones."""
    if most is not None and len(rows) > most:
        rows = rows[torch.linspace(0, len(rows) - 1, most).long()]
    total = 0.0
    for piece in rows.split(16):
        with autocast(args.device, args.dtype):
            total += loss_of(model, piece.to(args.device)).item() * len(piece)
    return total / len(rows)


def report(model: GPT2, held_out: dict[str, tuple[torch.Tensor, int]], args: argparse.Namespace) -> dict[str, dict]:
    """For each kind, on all its held-out text: perplexity, and bits per byte, which do not depend on the vocabulary."""
    result = {}
    for kind, (rows, n_bytes) in held_out.items():
        loss, tokens = held_out_loss(model, rows, args), rows[:, 1:].numel()  # nats per token
        bits = loss * tokens / n_bytes / math.log(2)
        result[kind] = {"tokens": tokens, "perplexity": round(math.exp(loss), 2), "bits_per_byte": round(bits, 3)}
    return result


def compiled(args: argparse.Namespace) -> Callable:
    """`loss_of`, compiled with --compile."""
    if not args.compile:
        return loss_of
    if args.device == "cpu":
        from torch._inductor import config as inductor

        inductor.pattern_matcher = False  # or it replaces our attention by a kernel with a slow backward pass on CPUs
    return torch.compile(loss_of, dynamic=False)


# ----------------------------------------------------------------------------- a run


class Pretraining:
    """One run: model, optimisers, data and progress. `n` counts finished steps."""

    def __init__(self, args: argparse.Namespace):
        """Raises InputError. Flags, folder and files are checked before anything is written."""
        self.args, self.checkpoint = args, args.out / "checkpoint.pt"
        self.flags = {f"--{name}": getattr(args, name) for name in FIXED}
        kinds = find_kinds(args.corpus)
        shares = {kind: share for kind, share in zip(KINDS, args.shares) if kind in kinds}
        if not any(shares.values()):
            raise InputError(
                f"--shares leave nothing to {', '.join(kinds)}, all that {args.corpus} holds: give a share above 0"
            )
        resuming = self.check_folder()
        documents = {kind: read_documents(args.corpus, kind) for kind in kinds}
        training, held_out = ({kind: both[i] for kind, both in documents.items()} for i in (0, 1))
        if not resuming:
            write_json(args.out / "config.json", {"model_type": "gpt2"} | {name: getattr(args, name) for name in SHAPE})
            make_vocabulary(args, training)
        tokenizer = load_tokenizer(str(args.out))
        sources = make_sources(training, tokenizer, args.n_positions + 1, args.seed)
        self.mixture = Mixture(sources, shares, args.seed)
        self.held_out = held_out_rows(held_out, tokenizer, args.n_positions + 1)
        # Fingerprints of what determines the rows besides the flags
        self.text = {"vocab.bpe": sha256_of(args.out / "vocab.bpe")[:16]}
        self.text |= {kind: source.fingerprint() for kind, source in sources.items()}

        self.model = GPT2(GPT2Config(*(getattr(args, name) for name in SHAPE)))
        self.model.init_weights(args.seed).to(args.device)
        self.optimizers = make_optimizers(self.model, args)
        self.n, self.seconds = 0, 0.0
        if resuming:
            self.resume()
        self.log = CsvLog(args.out / "log.csv", ("step", "tokens", "seconds", "lr", "loss", *kinds), self.n)

    def check_folder(self) -> bool:
        """Is there a run to continue? Raises InputError if it is another run or a file would be overwritten."""
        args = self.args
        if (args.out / "settings.json").exists():
            raise InputError(f"{args.out} holds a run of train.py: choose another --out")
        if not self.checkpoint.exists():
            if (args.out / "model.safetensors").exists():
                raise InputError(
                    f"{args.out} holds a model.safetensors but no checkpoint.pt: choose another --out, or delete it"
                )
            return False
        if not args.resume:
            raise InputError(f"{args.out} holds a run already: continue it (--resume), or choose another --out")
        with read_state(self.checkpoint) as state:
            self.refuse_change(state["flags"], self.flags)
            n, steps = int(state["n"]), int(state["steps"])
            if args.steps < n:
                raise InputError(f"--steps {args.steps}: {n} are done already")
            if learning_rate(args, n - 1, steps) != learning_rate(args, n - 1, args.steps):
                raise InputError(
                    f"--steps {args.steps}: the {n} steps that are done had the learning rates of --steps {steps},"
                    " with which it has begun to fall: give that number"
                )
        return True

    def refuse_change(self, before: dict, now: dict) -> None:
        """Raise InputError, naming the differences, unless `now` is what the run was begun with."""
        others = [name for name in {**before, **now} if before.get(name) != now.get(name)]
        if others:
            differ = ", ".join(f"{name} {before.get(name)}, not {now.get(name)}" for name in others)
            raise InputError(
                f"{self.args.out} was begun with {differ}:"
                " resume it with the same flags and text, or choose another --out"
            )

    def resume(self) -> None:
        """Restore the checkpoint's state."""
        with read_state(self.checkpoint) as state:
            self.refuse_change(state["text"], self.text)
            self.model.load_state_dict(state["model"])
            for optimizer, its in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(its)
            self.n, self.seconds = int(state["n"]), float(state["seconds"])
        self.export()  # the run may have been killed between checkpoint and export
        print(f"resuming at step {self.n} of {self.args.steps}", flush=True)

    def train(self, stop: StopSignal) -> None:
        """The loop: updates, and every --every steps the mean loss since then, the held-out losses, a checkpoint."""
        args, loss_of_rows = self.args, compiled(self.args)
        size, where = sum(p.numel() for p in self.model.parameters()), f"{args.dtype} on {args.device}"
        print(f"{size:,} weights, {args.steps:,} steps of {args.rows} x {args.n_positions} tokens, {where}", flush=True)
        total, since, began = torch.zeros((), device=args.device), self.n, time.monotonic()
        stopping = False
        while self.n < args.steps and not stopping:
            total += self.update(loss_of_rows)
            self.n += 1
            stopping = stop.asked
            if self.n % args.every == 0 or self.n == args.steps or stopping:
                mean = total.item() / (self.n - since)
                self.seconds += time.monotonic() - began
                self.save(mean)
                total, since, began = torch.zeros_like(total), self.n, time.monotonic()
        if stop.asked:
            raise KeyboardInterrupt

    def update(self, loss_of_rows: Callable) -> torch.Tensor:
        """One step of both optimisers on the next batch; returns the loss before the step, in nats per token."""
        args, lr = self.args, learning_rate(self.args, self.n, self.args.steps)
        with autocast(args.device, args.dtype):
            loss = loss_of_rows(self.model, self.mixture.batch(self.n, args.rows, args.n_positions + 1).to(args.device))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def save(self, loss: float) -> None:
        """Log to log.csv and the screen, write checkpoint and model. A run that has diverged writes nothing."""
        args, n = self.args, self.n
        losses = {kind: held_out_loss(self.model, rows, args, most=64) for kind, (rows, _) in self.held_out.items()}
        for what, value in {"training": loss, **losses}.items():
            if not math.isfinite(value):
                cure = f"lower --lr (it is {args.lr:g}), with another --out"
                raise InputError(f"the loss ({what}) is {value} at step {n}: {cure}")
        lr = learning_rate(args, n - 1, args.steps)
        figures = (f"{value:.4f}" for value in (loss, *losses.values()))
        self.log.add(n, n * args.rows * args.n_positions, f"{self.seconds:.0f}", f"{lr:.2e}", *figures)
        held_out = "  ".join(f"{kind} {value:.3f}" for kind, value in losses.items())
        print(f"step {n}/{args.steps}  {hours(self.seconds)}  loss {loss:.4f}  held out: {held_out}", flush=True)
        write_state(self.checkpoint, {
            "model": self.model.state_dict(), "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "n": n, "steps": args.steps, "seconds": self.seconds, "flags": self.flags, "text": self.text,
        })  # fmt: skip
        self.export()

    def export(self) -> None:
        """Write model.safetensors, which `--model FOLDER` loads: the weights in fp16, half the bytes."""
        tensors = {key: tensor.half() for key, tensor in self.model.state_dict().items()}
        write_safetensors(self.args.out / "model.safetensors", tensors, {})

    def finish(self) -> None:
        """Write held_out.json."""
        result = report(self.model, self.held_out, self.args)
        write_json(self.args.out / "held_out.json", result)
        print(json.dumps(result, indent=2))


@exit_on_input_error
def main(argv: list[str] | None = None) -> None:
    """The command line: read, train, export."""
    try:
        run = Pretraining(parse_args(argv))
        with StopSignal() as stop:
            run.train(stop)
        run.finish()
    except KeyboardInterrupt:
        print("\nstopped; the same command with --resume continues", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
