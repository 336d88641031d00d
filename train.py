"""Training: learn a prefix (or, for comparison, all of GPT-2) on tables and their sentences.

    python train.py --mode prefix --prefix_len 5

The objective (the paper's equation 2) is the text's log-likelihood given the table, with y the target and its end token:

    max over theta of  sum_i log p(y_i | table, y_<i)         theta: the prefix; in fine-tuning all weights

The prefix's loss sums it over each sentence and averages over the batch; fine-tuning's averages over tokens.
AdamW, gradient norm clipped at 1, learning rate falling linearly to 0: the defaults in settings.py.

The loop can be killed at any moment: with --resume it goes on from the last checkpoint and gives, on a
CPU, the same bits as if it had never stopped, because a checkpoint holds all that the rest depends on: the
learned weights, AdamW's moments, the step and the random generators' states. The order of the examples is
a function of seed and epoch alone. Started by torchrun, several processes share every batch (ranks.py).
"""

import argparse
import hashlib
import math
import signal
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import torch

import ranks
from e2e_data import Batch, Encoded, collate, encode, epoch_order, load_split, load_tokenizer
from evaluate import decode, evaluate_run
from files import InputError, alone_in, exit_on_input_error
from gpt2 import GPT2
from runs import CsvLog, check_room, load_checkpoint, open_folder, save_checkpoint, save_learned, start_model, trained_file, write_json
from settings import Settings, add_flags, autocast, describe_machine, keep_freed_memory


def batch_loss(model: GPT2, batch: Batch) -> torch.Tensor:
    """- sum of log p over the batch's scored tokens, in nats."""
    return model(batch.tokens, at=batch.at, real=batch.real, targets=batch.targets)


def learning_rate(settings: Settings, step: int, steps: int) -> float:
    """Of update `step` (0 is the first): rises over the warm-up, then falls linearly, to reach 0 after the last."""
    warmup = settings.warmup_steps
    return settings.lr * (step / warmup if step < warmup else (steps - step) / max(1, steps - warmup))


def adamw(parameters, settings: Settings) -> torch.optim.AdamW:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019), where there is a kernel for it in a single pass over the weights."""
    return torch.optim.AdamW(
        parameters, lr=settings.lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=settings.weight_decay,
        fused=settings.device.split(":")[0] in ("cpu", "cuda"),
    )  # fmt: skip


def gradient_norm(parameters) -> torch.Tensor:
    """sqrt(sum of g^2) over all gradients. Row by row, and then of the rows' norms: on a CPU faster than whole matrices' norms."""
    rows = [torch.linalg.vector_norm(parameter.grad, dim=-1).flatten() for parameter in parameters if parameter.grad is not None]
    return torch.linalg.vector_norm(torch.cat(rows))


def clip(optimizer, norm: torch.Tensor, limit: float) -> None:
    """Make the gradient's norm at most `limit`:  g  <-  g / max(1, norm / limit).

    Fused AdamW can divide on its way through the weights. `grad_scale` is how torch.amp's GradScaler asks for that.
    """
    scale = (norm / limit).clamp(min=1)
    if optimizer.defaults.get("fused"):
        optimizer.grad_scale = scale
    else:
        for parameter in (p for group in optimizer.param_groups for p in group["params"] if p.grad is not None):
            parameter.grad /= scale


def update(model, learned, optimizer, examples: list[Encoded], lr: float, settings: Settings, pad: int) -> tuple[float, float]:
    """One step of AdamW on a batch; returns (the batch's summed loss in nats, the gradient's norm before clipping)."""
    scored = sum(len(ids) - n_prompt for ids, n_prompt in examples)
    divisor = len(examples) if settings.loss == "sentence" else scored
    total = torch.zeros((), device=settings.device)
    mine = ranks.share(examples)
    piece = max(1, math.ceil(len(mine) / settings.grad_accum))
    for start in range(0, len(mine), piece):
        batch = collate(mine[start : start + piece], pad).to(settings.device)
        with autocast(settings):
            loss = batch_loss(model, batch)
        (loss / divisor).backward()  # pieces add up to the gradient of the whole batch
        total += loss.detach()
    ranks.sum_gradients(learned.parameters(), total)
    norm = gradient_norm(learned.parameters())
    clip(optimizer, norm, settings.clip or math.inf)
    for group in optimizer.param_groups:
        group["lr"] = lr
    loss, norm = total.item(), norm.item()
    if math.isfinite(norm):  # else the weights would be lost too; `Training.check_finite` ends the run
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss, norm


@torch.inference_mode()
def validation_loss(model: GPT2, examples: list[Encoded], settings: Settings, pad: int, batch_size: int = 32) -> float:
    """Mean loss over the scored tokens of all examples, in nats a token, of a model in evaluation mode."""
    by_length = sorted(examples, key=lambda example: -len(example.ids))  # little padding, and memory that serves again
    total = 0.0
    for start in ranks.share(range(0, len(by_length), batch_size)):
        with autocast(settings):
            total += batch_loss(model, collate(by_length[start : start + batch_size], pad).to(settings.device)).item()
    return sum(ranks.gathered(total)) / sum(len(ids) - n_prompt for ids, n_prompt in examples)


class StopSignal:
    """Ctrl-C or a shutdown asks for an end: the step under way is finished and a checkpoint is written first."""

    def __init__(self):
        self.asked = False
        self.old = {}

    def __enter__(self):
        names = ("SIGINT", "SIGTERM", "SIGHUP")  # Ctrl-C, shutdown, a closed terminal (which Windows does not have)
        for number in (getattr(signal, name) for name in names if hasattr(signal, name)):
            if signal.getsignal(number) == signal.SIG_IGN:
                continue  # started with nohup: it shall go on
            try:
                self.old[number] = signal.signal(number, self.ask)
            except ValueError:  # not in the main thread: whoever runs us there stops us
                pass
        return self

    def ask(self, *_):
        if self.asked:  # asked twice: at once
            raise KeyboardInterrupt
        self.asked = True

    def __exit__(self, *_):
        for number, handler in self.old.items():
            signal.signal(number, handler)


def train(settings: Settings, resume: bool = False, evaluates: bool = False) -> Path:
    """Run the training that the settings describe; returns the run's folder.

    resume      go on in a folder where this run was begun; a run that has ended is left as it is
    evaluates   look at the test data too before training: what is wrong with them is better known now than after hours
    Raises InputError for what the user can put right, and KeyboardInterrupt after Ctrl-C, when the checkpoint
    has been written.
    """
    training = Training(settings.resolve(), evaluates)
    folder = ranks.first_does(open_folder, training.settings, resume)
    with ExitStack() as inside:
        ranks.first_does(inside.enter_context, alone_in(folder, waits=False))
        if training.open(folder):
            stop = inside.enter_context(StopSignal())
            training.run(stop)
            ranks.first_does(training.finish)
            if any(ranks.gathered(stop.asked)):  # during the last step or validation: nothing is left to train, but evaluation can wait
                raise KeyboardInterrupt
    return folder


class Training:
    """One run: what is trained, on what, and how far it has come. `n` counts finished steps."""

    def __init__(self, settings: Settings, evaluates: bool):
        """Everything that can go wrong with the input goes wrong here, before a folder is made."""
        self.settings = settings
        self.tokenizer = load_tokenizer(settings.model)
        self.pad = self.tokenizer.eot_token
        train_set, valid_set = (load_split(settings.data, split) for split in ("train", "valid"))
        test_set = load_split(settings.data, "test") if evaluates else []
        if settings.train_examples is not None:
            if settings.train_examples > len(train_set):
                raise InputError(f"--train_examples {settings.train_examples}: there are only {len(train_set)}")
            train_set = [train_set[i] for i in epoch_order(len(train_set), settings.seed, -1)[: settings.train_examples]]
        self.sources = list(dict.fromkeys(example.source for example in valid_set))

        self.model, self.prefix = start_model(settings)
        self.learned = self.model if self.prefix is None else self.prefix
        room = self.model.config.n_positions - (settings.prefix_len or 0)
        self.train_set = encode(self.tokenizer, train_set, room, settings.score_separator)
        self.valid_set = encode(self.tokenizer, valid_set, room, settings.score_separator)
        check_room(settings, self.model, [*self.sources, *(example.source for example in test_set)], self.tokenizer)

        self.steps_per_epoch = math.ceil(len(self.train_set) / settings.batch_size)
        self.steps = settings.max_steps or settings.epochs * self.steps_per_epoch
        if settings.warmup_steps >= self.steps:
            raise InputError(f"--warmup_steps {settings.warmup_steps}: the run has only {self.steps} steps")
        self.optimizer = adamw(self.learned.parameters(), settings)
        self.order: list[int] | None = None  # of the examples in this epoch
        self.n = 0
        self.valid_loss = self.best = math.inf
        # Sums over the run: examples trained on, and seconds: of training, and of validation. Sums since the last line of
        # the log: loss in nats, scored tokens, tokens read, seconds. They go into checkpoints: a run may take several sittings.
        self.counts = dict.fromkeys(("examples", "training_s", "validation_s", "loss", "scored", "read", "log_s"), 0.0)

    def open(self, folder: Path) -> bool:
        """Take up what is in the run's folder; False if the run has ended already."""
        self.folder = folder
        if not (self.folder / "settings.json").exists():  # rank 0 has made it, but machines may have disks of their own
            raise InputError(f"{self.folder} is not there on every machine: name a folder on a disk that they share, with --out")
        self.result = trained_file(self.folder, self.settings)
        if ranks.first_does(lambda: self.result.exists() and (self.folder / "summary.json").exists()):
            print(f"{self.folder} has been trained already")
            return False
        self.checkpoint = self.folder / "checkpoint.pt"
        if ranks.first_does(self.checkpoint.exists):
            state = load_checkpoint(self.checkpoint, self.learned, self.optimizer, self.data_mark())
            self.n, self.best, self.counts = state["n"], state["best"], state["counts"]
            print(f"resuming at step {self.n} of {self.steps}")
        self.log = ranks.first_does(CsvLog, self.folder / "log.csv", ("step", "epoch", "loss", "lr", "grad_norm", "tokens_per_s"), self.n)
        self.valid_log = ranks.first_does(CsvLog, self.folder / "valid.csv", ("step", "epoch", "valid_loss", "seconds", "sample"), self.n)
        return True

    def data_mark(self) -> str:
        """Changes when the training examples do."""
        return hashlib.sha256(repr(self.train_set).encode()).hexdigest()

    def run(self, stop: StopSignal) -> None:
        """The loop: an update, and now and then a line in the log, a validation, a checkpoint."""
        s = self.settings
        print(self.describe(), flush=True)
        self.model.train(s.dropout > 0)
        while self.n < self.steps:
            began = time.monotonic()
            examples, lr = self.next_batch(), learning_rate(s, self.n, self.steps)
            ranks.seed_noise(s.seed, self.n)
            loss, norm = update(self.model, self.learned, self.optimizer, examples, lr, s, self.pad)
            self.check_finite("loss", loss)
            self.check_finite("gradient's norm", norm)
            self.n += 1
            self.count(examples, loss, time.monotonic() - began)
            last = self.n == self.steps
            if self.n % s.log_every == 0 or last:
                ranks.first_does(self.write_log, lr, norm)
            if self.n % (s.valid_every or self.steps_per_epoch) == 0 or last:
                self.validate()
            stopping = any(ranks.gathered(stop.asked))
            if (self.n % s.checkpoint_every == 0 or stopping) and not last:
                ranks.first_does(
                    save_checkpoint, self.checkpoint, self.learned, self.optimizer, self.data_mark(), n=self.n, best=self.best,
                    counts=self.counts,
                )  # fmt: skip
            if stopping and not last:
                print(f"checkpoint written at step {self.n} of {self.steps}", file=sys.stderr)
                raise KeyboardInterrupt

    def count(self, examples: list[Encoded], loss: float, seconds: float) -> None:
        """Add a step to the sums."""
        scored, read = sum(len(ids) - n_prompt for ids, n_prompt in examples), sum(len(ids) for ids, _ in examples)
        step = {"examples": len(examples), "training_s": seconds, "loss": loss, "scored": scored, "read": read, "log_s": seconds}
        for name, value in step.items():
            self.counts[name] += value

    def next_batch(self) -> list[Encoded]:
        """The examples of the step to come; the last batch of an epoch may be smaller."""
        epoch, place = divmod(self.n, self.steps_per_epoch)
        if place == 0 or self.order is None:
            self.order = epoch_order(len(self.train_set), self.settings.seed, epoch)
        size = self.settings.batch_size
        return [self.train_set[i] for i in self.order[place * size : (place + 1) * size]]

    def check_finite(self, what: str, loss: float) -> None:
        """Stop a run that has diverged: going on would only replace the last good checkpoint by a bad one."""
        if not math.isfinite(loss):
            raise InputError(f"the {what} is {loss} after {self.n} steps: lower --lr (it is {self.settings.lr:g}), with another --out")

    def write_log(self, lr: float, norm: float) -> None:
        """A line in log.csv and on the screen. The loss is in nats a scored token in every mode, so that curves can be compared."""
        counts, epoch = self.counts, self.n / self.steps_per_epoch
        loss, speed = counts["loss"] / counts["scored"], counts["read"] / counts["log_s"]
        left = (self.steps - self.n) * (counts["training_s"] + counts["validation_s"]) / self.n
        self.log.add(self.n, f"{epoch:.4f}", f"{loss:.6f}", f"{lr:.4e}", f"{norm:.4f}", f"{speed:.0f}")
        print(
            f"step {self.n}/{self.steps}  epoch {epoch:.2f}  loss {loss:.4f}  lr {lr:.2e}  norm {norm:.2f}"
            f"  {speed:,.0f} tok/s  {hours(left)} left", flush=True,
        )  # fmt: skip
        counts |= dict.fromkeys(("loss", "scored", "read", "log_s"), 0.0)

    def validate(self) -> None:
        """The loss on the validation set, and one generated sentence beside its table: in valid.csv and on the screen."""
        s, began = self.settings, time.monotonic()
        self.model.eval()
        self.valid_loss = validation_loss(self.model, self.valid_set, s, self.pad)
        self.check_finite("validation loss", self.valid_loss)
        sample = decode(self.model, self.tokenizer, self.sources[:1], s)[0]
        self.model.train(s.dropout > 0)
        if s.keep == "best" and self.valid_loss < self.best:
            ranks.first_does(save_learned, self.model, self.prefix, self.result, s)
        self.best = min(self.best, self.valid_loss)
        self.counts["validation_s"] += time.monotonic() - began
        seconds = self.counts["training_s"] + self.counts["validation_s"]
        row = (self.n, f"{self.n / self.steps_per_epoch:.4f}", f"{self.valid_loss:.6f}", f"{seconds:.1f}", sample)
        ranks.first_does(self.valid_log.add, *row)
        print(f"validation loss {self.valid_loss:.4f}\n  {self.sources[0]}\n  -> {sample}", flush=True)

    def finish(self) -> None:
        """Write what was learned, and the run in numbers."""
        if self.settings.keep == "last":
            save_learned(self.model, self.prefix, self.result, self.settings)
        n_bytes, seconds = self.result.stat().st_size, self.counts["training_s"]
        write_json(self.folder / "summary.json", {
            "parameters": self.sizes(), "bytes_on_disk": n_bytes, "steps": self.steps, "training_examples": len(self.train_set),
            "training_seconds": round(seconds, 3), "validation_seconds": round(self.counts["validation_s"], 3),
            "examples_per_s": round(self.counts["examples"] / seconds, 2), "valid_loss": self.valid_loss, "best_valid_loss": self.best,
            "machine": describe_machine(self.settings),
        })  # fmt: skip
        self.checkpoint.unlink(missing_ok=True)
        print(f"trained in {hours(seconds)}; learned weights in {self.result} ({n_bytes:,} bytes)")

    def sizes(self) -> dict[str, int]:
        """Numbers in GPT-2, numbers trained, and numbers to be stored for this task beside the shared GPT-2."""
        stored = self.model if self.prefix is None else self.prefix.drop_mlp()
        modules = {"gpt2": self.model, "trained": self.learned, "stored": stored}
        return {name: sum(p.numel() for p in module.parameters()) for name, module in modules.items()}

    def describe(self) -> str:
        """What is about to happen. The paper's "0.1 %" is what is stored, not what is trained with the MLP attached."""
        s, size = self.settings, self.sizes()
        what = f"all {size['gpt2']:,} weights of {s.model}"
        if self.prefix is not None:
            share = 100 * size["stored"] / size["gpt2"]
            what = (f"{s.mode} of {s.prefix_len} positions: {size['stored']:,} numbers to keep ({share:.2f} % of {s.model}'s"
                    f" {size['gpt2']:,}), {size['trained']:,} to train")  # fmt: skip
        where = s.device if ranks.size() == 1 else f"{s.device}, {ranks.size()} processes"
        how = f"{len(self.train_set):,} examples, {self.steps:,} steps of {s.batch_size}, {s.dtype} on {where}, into {s.out}"
        return f"{what}\n{how}"


def hours(seconds: float) -> str:
    """0:05:07"""
    return f"{int(seconds) // 3600}:{int(seconds) // 60 % 60:02d}:{int(seconds) % 60:02d}"


@exit_on_input_error
@ranks.together
def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(allow_abbrev=False, description="Prefix-tune (or fine-tune) GPT-2 on E2E. The defaults are the paper's.")
    add_flags(parser)
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out where it stopped")
    parser.add_argument("--no_eval", action="store_true", help="leave out decoding and scoring the test set at the end")
    flags = vars(parser.parse_args(argv))
    keep_freed_memory()
    resume, no_eval = flags.pop("resume"), flags.pop("no_eval")
    try:
        folder = train(Settings(**flags), resume, evaluates=not no_eval)
        if not no_eval:
            evaluate_run(folder, **{name: flags[name] for name in ("device", "dtype") if name in flags})
    except KeyboardInterrupt:
        print("\nstopped; the same command with --resume goes on", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
