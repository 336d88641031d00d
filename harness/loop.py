"""Everything around train.py's loop: data and model before it; logs, validation and checkpoints after each step.

A run can be killed at any moment. With --resume it continues from the last checkpoint to the same result, bit for bit
on a CPU, because a checkpoint holds everything that the rest depends on: the learned weights, AdamW's moments, the step
and the states of the random generators. The order of the examples is a function of seed and epoch alone.
"""

import hashlib
import itertools
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch

from beam import NextWords
from e2e_data import Batch, Encoded, collate, encode, encode_prompt, epoch_order, scored_tokens
from evaluate import decode
from harness import ranks, shelves
from harness.checkpoints import CsvLog, load_checkpoint, save_checkpoint
from harness.files import InputError, lock_folder, remove_parts
from harness.machine import describe_machine
from harness.parts import ADAPTERS, Parts
from harness.runs import (
    check_context,
    fingerprint,
    open_folder,
    save_learned,
    start_model,
    trained_file,
    write_json,
)
from harness.settings import Settings
from harness.signals import StopSignal
from harness.tokenizers import load_tokenizer

LOG_COLUMNS = ("step", "epoch", "loss", "lr", "grad_norm", "tokens_per_s")
VALID_COLUMNS = ("step", "epoch", "valid_loss", "seconds", "sample")


class Run:
    """One run: its data and model, and how far it has come. `n` counts finished steps.

    check_test_data  read the test data too, so that an error in it is reported before training
    Raises InputError for whatever is wrong with the input, before anything is written.
    """

    def __init__(self, settings: Settings, check_test_data: bool = False):
        self.settings = s = settings
        self.engine = s.engine
        self.tokenizer = load_tokenizer(s.model, s.weights)
        self.pad = self.tokenizer.eot_token
        train_set, valid_set = (s.dataset.examples(split) for split in ("train", "valid"))
        test_set = s.dataset.examples("test") if check_test_data else []
        if s.train_examples is not None:
            if s.train_examples > len(train_set):
                raise InputError(f"--train_examples {s.train_examples}: there are only {len(train_set)}")
            train_set = [train_set[i] for i in epoch_order(len(train_set), s.seed, -1)[: s.train_examples]]
        if s.valid_examples is not None:
            if s.valid_examples > len(valid_set):
                raise InputError(f"--valid_examples {s.valid_examples}: there are only {len(valid_set)}")
            valid_set = [valid_set[i * len(valid_set) // s.valid_examples] for i in range(s.valid_examples)]
        self.sources = list(dict.fromkeys(example.source for example in valid_set))

        self.model, self.prefix = start_model(s)
        self.learned = self.model if self.prefix is None else self.prefix  # a Prefix, or the Parts of a sum
        model_fingerprint = fingerprint(self.model)  # now: fine-tuning changes the weights
        if s.task is not None:
            ranks.on_rank_0(shelves.check_free, s, self.model)
        room = self.model.config.n_positions - (s.prefix_len or 0)
        self.train_set, self.valid_set = (
            encode(self.tokenizer, examples, room, s.score_separator, s.skip_long)
            for examples in (train_set, valid_set)
        )
        if skipped := len(train_set) - len(self.train_set):
            print(f"{skipped} of {len(train_set):,} training examples are longer than the context and left out")
        if s.skip_long:  # validation shows the first table that fits, and decodes no other
            fit = (x for x in self.sources if len(encode_prompt(self.tokenizer, x)) < room)
            self.sources = list(itertools.islice(fit, 1))
        sources = [*self.sources, *(example.source for example in test_set)]
        self.limits = check_context(
            self.model.config, self.tokenizer, sources, s.prefix_len, s.beam_size, s.max_new_tokens, s.skip_long
        )

        # A resumed run must find the same. With --keep best the validation set decides what is kept.
        data, validation = (hashlib.sha256(repr(x).encode()).hexdigest() for x in (self.train_set, self.valid_set))
        self.made_from = {"data": data, "validation": validation, "model": model_fingerprint}

        self.steps_per_epoch = math.ceil(len(self.train_set) / s.batch_size)
        self.steps = s.max_steps or s.epochs * self.steps_per_epoch
        if s.warmup_steps >= self.steps:
            raise InputError(f"--warmup_steps {s.warmup_steps}: the run has only {self.steps} steps: lower it")
        self.n = 0
        self.valid_loss = self.best = math.inf
        # Sums over the run: examples trained on, seconds of training and of validation. Sums since the last line of the
        # log: loss in nats, scored tokens, tokens read, seconds. Checkpoints hold them, for runs that are
        # resumed.
        self.counts = dict.fromkeys(("examples", "training_s", "validation_s", "loss", "scored", "read", "log_s"), 0.0)

    def choose(self, plain_function: Callable) -> Callable:
        """A function of the plain path or its fast counterpart, called in the run's number format."""
        return self.engine.in_precision(self.engine.choose(plain_function, self.model))

    def choose_clip(self, clip_gradients: Callable) -> Callable:
        """Likewise for clipping, before which several processes add up their gradients."""
        return ranks.summing_gradients(self.engine.choose(clip_gradients))

    def parameters(self) -> list:
        """What AdamW trains. With --lora_lr in groups: LoRA's and the adapter's learning rate is relative to --lr."""
        s = self.settings
        if s.lora_lr is None:
            return list(self.learned.parameters())
        groups = [
            {"params": list(part.parameters()), **({"relative": s.lora_lr / s.lr} if name in ADAPTERS else {})}
            for name, part in self.learned.items()
        ]
        return groups

    def set_training(self, on: bool) -> None:
        """Turn dropout on or off: LoRA's, and the model's if there is --dropout."""
        self.learned.train(on)
        self.model.train(on and self.settings.dropout > 0)

    # ------------------------------------------------------------------- around the loop

    @contextmanager
    def session(self, optimizer: torch.optim.Optimizer, loss_of: Callable, resume: bool):
        """The block is the loop: before it, the folder, its lock and the checkpoint; after it, what was learned.

        Raises KeyboardInterrupt after Ctrl-C, once the checkpoint is written.
        """
        self.optimizer, self.loss_of = optimizer, loss_of
        self.folder = ranks.on_rank_0(open_folder, self.settings, resume)
        if not (self.folder / "settings.json").exists():  # rank 0 has made it, but machines may have separate disks
            raise InputError(
                f"{self.folder} does not exist on every machine: name a folder on a shared disk with --out"
            )
        self.result = trained_file(self.folder, self.settings.finetunes, self.settings.adapts)
        self.checkpoint = self.folder / "checkpoint.pt"
        with ExitStack() as inside:
            ranks.on_rank_0(inside.enter_context, lock_folder(self.folder, waits=False))
            summary = self.folder / "summary.json"
            finished = ranks.on_rank_0(lambda: self.result.exists() and summary.exists())
            if finished:
                print(f"{self.folder} has been trained already")
                self.n = self.steps
                yield
                return
            self.restore()
            self.stop = inside.enter_context(StopSignal())
            print(self.describe(), flush=True)
            self.set_training(True)
            yield
            ranks.on_rank_0(self.finish)
            if any(ranks.all_gather(self.stop.asked)):  # during the last step: training is done, evaluation can wait
                raise KeyboardInterrupt

    def steps_left(self) -> Iterator[int]:
        """The numbers of the steps still to run, counted from 0. `after_step` counts those that are done."""
        while self.n < self.steps:
            self.step_began = time.monotonic()
            ranks.seed_noise(self.settings.seed, self.n)
            yield self.n

    def batches(self, examples: list[Encoded]) -> list[Batch]:
        """A step's examples as --grad_accum batches on the device; of several ranks each takes its shard."""
        mine = ranks.shard(examples)
        size = max(1, math.ceil(len(mine) / self.settings.grad_accum))
        pieces = [mine[start : start + size] for start in range(0, len(mine), size)]
        return [collate(piece, self.pad).to(self.settings.device) for piece in pieces]

    def after_step(self, examples: list[Encoded], loss: float, lr: float, norm: float) -> None:
        """Count the step; log, validate and write a checkpoint when they are due.

        loss  summed over this rank's batches, in nats
        """
        s = self.settings
        loss = sum(ranks.all_gather(loss))
        self.check_finite("loss", loss)
        self.check_finite("gradient norm", norm)
        self.n += 1
        self.count(examples, loss, time.monotonic() - self.step_began)
        last = self.n == self.steps
        if self.n % s.log_every == 0 or last:
            ranks.on_rank_0(self.write_log, lr, norm)
        if self.n % (s.valid_every or self.steps_per_epoch) == 0 or last:
            self.validate()
        stopping = any(ranks.all_gather(self.stop.asked))
        if (self.n % s.checkpoint_every == 0 or stopping) and not last:
            state = {"n": self.n, "best": self.best, "counts": self.counts}
            where = (self.checkpoint, self.learned, self.optimizer, self.made_from)
            ranks.on_rank_0(lambda: save_checkpoint(*where, **state))
        if stopping and not last:
            print(f"checkpoint written at step {self.n} of {self.steps}", file=sys.stderr)
            raise KeyboardInterrupt

    # ------------------------------------------------------------------- its parts

    def restore(self) -> None:
        """Continue from a checkpoint, if there is one, and open the logs."""
        ranks.on_rank_0(remove_parts, self.folder)
        if ranks.on_rank_0(self.checkpoint.exists):
            state = load_checkpoint(self.checkpoint, self.learned, self.optimizer, self.made_from)
            self.n, self.best, self.counts = state["n"], state["best"], state["counts"]
            if not 0 < self.n < self.steps:
                raise InputError(f"{self.checkpoint} is of step {self.n} of {self.steps}: delete it to start over")
            print(f"resuming at step {self.n} of {self.steps}")
        self.log = ranks.on_rank_0(CsvLog, self.folder / "log.csv", LOG_COLUMNS, self.n)
        self.valid_log = ranks.on_rank_0(CsvLog, self.folder / "valid.csv", VALID_COLUMNS, self.n)

    def count(self, examples: list[Encoded], loss: float, seconds: float) -> None:
        read = sum(len(ids) for ids, _ in examples)
        step = {"examples": len(examples), "training_s": seconds, "loss": loss, "scored": scored_tokens(examples)}
        for name, value in (step | {"read": read, "log_s": seconds}).items():
            self.counts[name] += value

    def check_finite(self, what: str, value: float) -> None:
        """End a run that has diverged, before a bad checkpoint replaces the last good one."""
        if not math.isfinite(value):
            s = self.settings
            decay = f" or --weight_decay (it is {s.weight_decay:g})" if s.weight_decay else ""
            raise InputError(
                f"the {what} is {value} after {self.n} steps: lower --lr (it is {s.lr:g}){decay}, with another --out"
            )

    def write_log(self, lr: float, norm: float) -> None:
        """A line in log.csv and on the screen. The loss is training's, in nats a scored token in every mode, so curves
        compare; but with label smoothing it is higher than -log p, which valid.csv has."""
        counts, epoch = self.counts, self.n / self.steps_per_epoch
        loss, speed = counts["loss"] / counts["scored"], counts["read"] / counts["log_s"]
        left = (self.steps - self.n) * (counts["training_s"] + counts["validation_s"]) / self.n
        self.log.add(self.n, f"{epoch:.4f}", f"{loss:.6f}", f"{lr:.4e}", f"{norm:.4f}", f"{speed:.0f}")
        where = f"step {self.n}/{self.steps}  epoch {epoch:.2f}  loss {loss:.4f}  lr {lr:.2e}  norm {norm:.2f}"
        print(f"{where}  {speed:,.0f} tok/s  {hours(left)} left", flush=True)
        counts |= dict.fromkeys(("loss", "scored", "read", "log_s"), 0.0)

    def validate(self) -> None:
        """The loss on the validation set, and a generated sentence with its table: in valid.csv and on the screen."""
        s, began = self.settings, time.monotonic()
        self.set_training(False)
        self.valid_loss = validation_loss(self.model, self.valid_set, self.loss_of, self.pad, s.device)
        self.check_finite("validation loss", self.valid_loss)
        next_words = self.engine.choose(NextWords, self.model)
        search = self.engine.in_precision(decode)
        options = s.search | {"max_new_tokens": self.limits[:1], "next_words": next_words}
        sample = search(self.model, self.tokenizer, self.sources[:1], **options)[0]
        self.set_training(True)
        if s.keep == "best" and self.valid_loss < self.best:
            ranks.on_rank_0(save_learned, self.model, self.prefix, self.result, s.mode, s.model)
        self.best = min(self.best, self.valid_loss)
        self.counts["validation_s"] += time.monotonic() - began
        seconds = self.counts["training_s"] + self.counts["validation_s"]
        epoch = f"{self.n / self.steps_per_epoch:.4f}"
        ranks.on_rank_0(self.valid_log.add, self.n, epoch, f"{self.valid_loss:.6f}", f"{seconds:.1f}", sample)
        print(f"validation loss {self.valid_loss:.4f}\n  {self.sources[0]}\n  -> {sample}", flush=True)

    def finish(self) -> None:
        """Write what was learned, and the run in numbers."""
        s = self.settings
        if s.keep == "last":
            save_learned(self.model, self.prefix, self.result, s.mode, s.model)
        n_bytes, seconds = self.result.stat().st_size, self.counts["training_s"]
        summary = {
            "parameters": self.sizes(),
            "bytes_on_disk": n_bytes,
            "steps": self.steps,
            "training_examples": len(self.train_set),
            "training_seconds": round(seconds, 3),
            "validation_seconds": round(self.counts["validation_s"], 3),
            "examples_per_s": round(self.counts["examples"] / seconds, 2),
            "valid_loss": self.valid_loss,
            "best_valid_loss": self.best,
            "machine": describe_machine(s.device, s.dtype),
        }
        write_json(self.folder / "summary.json", summary)
        self.checkpoint.unlink(missing_ok=True)
        print(f"trained in {hours(seconds)}; learned weights in {self.result} ({n_bytes:,} bytes)")

    def sizes(self) -> dict[str, int]:
        """Numbers in the model, numbers trained, and numbers stored for this task in addition to the shared model."""
        stored = self.model if self.prefix is None else self.prefix.drop_mlp()
        modules = {"model": self.model, "trained": self.learned, "stored": stored}
        sizes = {name: sum(p.numel() for p in module.parameters()) for name, module in modules.items()}
        return sizes | (self.prefix.sizes() if isinstance(self.prefix, Parts) else {})

    def describe(self) -> str:
        """What is about to happen. The paper's "0.1 %" is what is stored, not what is trained with the MLP."""
        s, size = self.settings, self.sizes()
        what = f"all {size['model']:,} weights of {s.model}"
        if self.prefix is not None:
            share = f"{100 * size['stored'] / size['model']:.2f} % of {s.model}'s {size['model']:,}"
            head = self.prefix.describe() if s.adapts else f"{s.mode} of {s.prefix_len} positions"
            what = f"{head}: {size['stored']:,} numbers stored ({share}), "
            what += f"{size['trained']:,} trained"
        where = s.device if ranks.size() == 1 else f"{s.device}, {ranks.size()} processes"
        how = f"{s.dtype} on {where}{', plain path' if s.plain else ''}"
        return f"{what}\n{len(self.train_set):,} examples, {self.steps:,} steps of {s.batch_size}, {how}, into {s.out}"


@torch.inference_mode()
def validation_loss(
    model, examples: list[Encoded], loss_of: Callable, pad: int, device: str, batch_size: int = 32
) -> float:
    """Mean loss over the scored tokens of all examples, in nats a token, of a model in evaluation mode."""
    by_length = sorted(examples, key=lambda example: -len(example.ids))  # little padding; the largest batch comes first
    total = 0.0
    for start in ranks.shard(range(0, len(by_length), batch_size)):
        total += loss_of(model, collate(by_length[start : start + batch_size], pad).to(device)).item()
    return sum(ranks.all_gather(total)) / scored_tokens(examples)


def hours(seconds: float) -> str:
    """0:05:07"""
    return f"{int(seconds) // 3600}:{int(seconds) // 60 % 60:02d}:{int(seconds) % 60:02d}"
