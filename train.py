"""Training: learn a prefix (or, for comparison, all of GPT-2) on tables and their sentences.

    python train.py --mode prefix --prefix_len 5

The objective (section 4.1) is the text's log-likelihood given the table, with y the target and its end token:

    max over theta of  sum_i log p(y_i | table, y_<i)         theta: the prefix; in fine-tuning all weights

The prefix' loss sums it over each sentence and averages over the batch; fine-tuning's averages over tokens.
AdamW, gradient norm clipped at 1, learning rate falling linearly to 0: the settings of runs.py.

The loop can be killed at any moment: with --resume it goes on from the last checkpoint and gives, on a
CPU, the same bits as if it had never stopped, because a checkpoint holds all that the rest depends on: the
learned weights, AdamW's moments, the step and the random generators' states. The order of the examples is
a function of seed and epoch alone.
"""

import argparse
import csv
import hashlib
import math
import os
import signal
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from beam import beam_search
from e2e_data import Batch, Encoded, collate, encode, encode_prompt, epoch_order, load_split, load_tokenizer
from evaluate import decode_ids, evaluate_run, newline_tokens
from files import InputError, exit_on_input_error, explain_os_error, write_whole
from gpt2 import GPT2
from runs import Settings, add_flags, autocast, check_room, describe_machine, open_folder, start_model, trained_file, write_json
from weights import write_safetensors


def batch_loss(model: GPT2, batch: Batch) -> torch.Tensor:
    """- sum of log p over the batch's scored tokens, in nats."""
    logits = model(batch.tokens, at=batch.at)  # [N, V]
    return F.cross_entropy(logits.float(), batch.targets, reduction="sum")


def learning_rate(settings: Settings, step: int, steps: int) -> float:
    """Of update `step` (0 is the first): rises over the warm-up, then falls linearly, to reach 0 after the last."""
    warmup = settings.warmup_steps
    return settings.lr * (step / warmup if step < warmup else (steps - step) / max(1, steps - warmup))


def update(model, learned, optimizer, examples: list[Encoded], lr: float, settings: Settings, pad: int) -> tuple[float, float]:
    """One step of AdamW on a batch; returns (the batch's summed loss in nats, the gradient's norm before clipping)."""
    scored = sum(len(ids) - n_prompt for ids, n_prompt in examples)
    divisor = len(examples) if settings.loss == "sentence" else scored
    total = torch.zeros((), device=settings.device)
    piece = math.ceil(len(examples) / settings.grad_accum)
    for start in range(0, len(examples), piece):
        batch = collate(examples[start : start + piece], pad).to(settings.device)
        with autocast(settings):
            loss = batch_loss(model, batch)
        (loss / divisor).backward()  # pieces add up to the gradient of the whole batch
        total += loss.detach()
    norm = torch.nn.utils.clip_grad_norm_(learned.parameters(), settings.clip or math.inf)
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return total.item(), norm.item()


@torch.inference_mode()
def validate(model: GPT2, examples: list[Encoded], settings: Settings, pad: int, batch_size: int = 32) -> float:
    """Mean loss over the scored tokens of all examples, in nats a token."""
    training = model.training
    model.eval()
    by_length = sorted(examples, key=lambda example: len(example.ids))  # little padding
    total = 0.0
    for start in range(0, len(by_length), batch_size):
        with autocast(settings):
            total += batch_loss(model, collate(by_length[start : start + batch_size], pad).to(settings.device)).item()
    model.train(training)
    return total / sum(len(ids) - n_prompt for ids, n_prompt in examples)


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
        except OSError as error:
            raise InputError(f"{self.path} was not written: {explain_os_error(error)}") from None


class StopSignal:
    """Ctrl-C or a shutdown asks for an end: the step under way is finished and a checkpoint is written first."""

    def __init__(self):
        self.asked = False
        self.old = {}

    def __enter__(self):
        for number in (signal.SIGINT, signal.SIGTERM):
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


def save_checkpoint(path: Path, **state) -> None:
    """Write all that `--resume` needs; the checkpoint before stays until this one is whole."""
    state["rng"] = torch.get_rng_state()
    if torch.cuda.is_available():
        state["cuda_rng"] = torch.cuda.get_rng_state_all()
    try:
        with write_whole(path, "wb") as file:
            torch.save(state, file)
    except RuntimeError as error:  # how torch.save reports that the file did not take its bytes
        raise InputError(f"{path} was not written ({str(error).splitlines()[0]}): is the disk full? The checkpoint before is kept") from None


def load_checkpoint(path: Path, learned, optimizer) -> dict:
    """Put a checkpoint's state back, and return the rest of it. Nothing is unpickled but tensors and numbers."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        learned.load_state_dict(state["learned"])
        optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["rng"])
        if "cuda_rng" in state and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(state["cuda_rng"])
        _, _, _ = state["since_log"]
        return state | {"step": int(state["step"]), "seconds": float(state["seconds"]), "best": float(state["best"])}
    except (RuntimeError, KeyError, ValueError, TypeError, EOFError, OSError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise InputError(f"{path} does not fit this run or is damaged ({reason}): delete it to begin again") from None
    except Exception as error:  # the unpickler's refusal has a type of its own
        raise InputError(f"{path} is not a checkpoint of this program ({type(error).__name__}): delete it to begin again") from None


def train(settings: Settings, resume: bool = False, evaluates: bool = False) -> Path:
    """Run the training that the settings describe; returns the run's folder.

    evaluates   a look at the test data comes first: what is wrong with them is better known now than after hours
    A run that has ended already is left as it is. Raises InputError for what the user can put right, and
    KeyboardInterrupt after Ctrl-C, when the checkpoint has been written.
    """
    settings = settings.resolve()
    tokenizer = load_tokenizer(settings.model)
    pad = tokenizer.eot_token
    train_set, valid_set = (load_split(settings.data, split) for split in ("train", "valid"))
    if evaluates:
        load_split(settings.data, "test")
    if settings.train_examples is not None:
        train_set = [train_set[i] for i in epoch_order(len(train_set), settings.seed, -1)[: settings.train_examples]]
    model, prefix = start_model(settings)
    learned = model if prefix is None else prefix
    model.train(settings.dropout > 0)
    prefix_len = prefix.prefix_len if prefix is not None else 0
    room = model.config.n_positions - prefix_len
    sources = list(dict.fromkeys(example.source for example in valid_set))
    train_set = encode(tokenizer, train_set, room, settings.score_separator)
    valid_set = encode(tokenizer, valid_set, room, settings.score_separator)
    check_room(settings, model, sources, tokenizer)
    data = hashlib.sha256(repr(train_set).encode()).hexdigest()

    folder = open_folder(settings, resume)  # only now: bad input leaves no folder behind
    done = trained_file(folder, settings)
    checkpoint = folder / "checkpoint.pt"
    if done.exists() and (folder / "summary.json").exists():
        print(f"{folder} has been trained already")
        return folder

    steps_per_epoch = math.ceil(len(train_set) / settings.batch_size)
    steps = settings.max_steps or settings.epochs * steps_per_epoch
    valid_every = settings.valid_every or steps_per_epoch
    optimizer = torch.optim.AdamW(
        learned.parameters(), lr=settings.lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=settings.weight_decay,
        fused=settings.device.split(":")[0] in ("cpu", "cuda"),
    )  # fmt: skip
    state = {"step": 0, "seconds": 0.0, "best": math.inf, "since_log": [0.0, 0, 0]}
    if checkpoint.exists():
        state |= load_checkpoint(checkpoint, learned, optimizer)
        if state.get("data") != data:
            raise InputError(f"{folder}: the training examples have changed since it was begun: put them back, or choose another --out")
        print(f"resuming at step {state['step']} of {steps}")
    first, best, since_log = state["step"], state["best"], state["since_log"]
    log = CsvLog(folder / "log.csv", ("step", "epoch", "loss", "lr", "grad_norm", "tokens_per_s"), first)
    valid_log = CsvLog(folder / "valid.csv", ("step", "epoch", "valid_loss", "seconds", "sample"), first)
    report_sizes(model, prefix, settings, len(train_set), steps)

    def checkpoint_now(step: int) -> None:
        save_checkpoint(
            checkpoint, step=step, learned=learned.state_dict(), optimizer=optimizer.state_dict(),
            seconds=state["seconds"] + time.monotonic() - began, best=best, since_log=since_log, data=data,
        )  # fmt: skip

    began = logged = time.monotonic()
    with StopSignal() as stop:
        for step in range(first, steps):
            epoch, place = divmod(step, steps_per_epoch)
            if place == 0 or step == first:
                order = epoch_order(len(train_set), settings.seed, epoch)
            examples = [train_set[i] for i in order[place * settings.batch_size : (place + 1) * settings.batch_size]]
            lr = learning_rate(settings, step, steps)
            loss, norm = update(model, learned, optimizer, examples, lr, settings, pad)
            if not math.isfinite(loss):
                raise InputError(f"the loss is {loss} at step {step + 1}: lower --lr (it is {settings.lr:g}), with another --out")
            # The log states the loss in nats a scored token in every mode, so that curves can be compared.
            scored, read = sum(len(ids) - n for ids, n in examples), sum(len(ids) for ids, _ in examples)
            since_log = [a + b for a, b in zip(since_log, (loss, scored, read))]
            n, now = step + 1, time.monotonic()
            if n % settings.log_every == 0 or n == steps:
                mean, speed = since_log[0] / since_log[1], since_log[2] / (now - logged)
                log.add(n, f"{n / steps_per_epoch:.4f}", f"{mean:.6f}", f"{lr:.4e}", f"{norm:.4f}", f"{speed:.0f}")
                left = (steps - n) * (now - began) / (n - first)
                progress(f"step {n}/{steps}  epoch {n / steps_per_epoch:.2f}  loss {mean:.4f}  lr {lr:.2e}"
                         f"  norm {norm:.2f}  {speed:,.0f} tok/s  {hours(left)} left")  # fmt: skip
                since_log, logged = [0.0, 0, 0], now
            if n % valid_every == 0 or n == steps:
                valid_loss = validate(model, valid_set, settings, pad)
                if not math.isfinite(valid_loss):
                    raise InputError(f"the validation loss is {valid_loss} at step {n}: lower --lr (it is {settings.lr:g}), with another --out")
                with autocast(settings):
                    ids = beam_search(model.eval(), [encode_prompt(tokenizer, sources[0])], pad, settings.beam_size,
                                      settings.max_new_tokens, settings.length_norm, newline_tokens(tokenizer))[0]  # fmt: skip
                model.train(settings.dropout > 0)
                sample = decode_ids(tokenizer, ids)
                seconds = state["seconds"] + time.monotonic() - began
                valid_log.add(n, f"{n / steps_per_epoch:.4f}", f"{valid_loss:.6f}", f"{seconds:.1f}", sample)
                print(f"validation loss {valid_loss:.4f} (perplexity {math.exp(min(valid_loss, 700)):.2f})\n  {sources[0]}\n  -> {sample}", flush=True)
                if settings.keep == "best" and valid_loss < best:
                    save_learned(model, prefix, done, settings)
                best = min(best, valid_loss)
                logged = time.monotonic()
            if n % settings.checkpoint_every == 0 and n < steps:
                checkpoint_now(n)
            if stop.asked and n < steps:
                checkpoint_now(n)
                print(f"checkpoint written at step {n} of {steps}", file=sys.stderr)
                raise KeyboardInterrupt
    seconds = state["seconds"] + time.monotonic() - began
    if settings.keep == "last":
        save_learned(model, prefix, done, settings)
    write_json(folder / "summary.json", summarise(model, prefix, settings, done, steps, len(train_set), seconds, valid_loss, best))
    checkpoint.unlink(missing_ok=True)
    print(f"trained in {hours(seconds)}; learned weights in {done} ({done.stat().st_size:,} bytes)")
    return folder


def save_learned(model, prefix, path: Path, settings: Settings) -> None:
    """Keep what was learned: the prefix without P' and MLP, or all of GPT-2's weights."""
    about = {"mode": settings.mode, "model": settings.model}
    if prefix is None:
        write_safetensors(path, model.state_dict(), about)
    else:
        prefix.drop_mlp().save(path, about)


def summarise(model, prefix, settings, path: Path, steps, n_examples, seconds, valid_loss, best) -> dict:
    """The run in numbers. `stored` is what has to be kept for this task beside the shared GPT-2."""
    gpt2 = sum(p.numel() for p in model.parameters())
    trained = gpt2 if prefix is None else sum(p.numel() for p in prefix.parameters())
    stored = gpt2 if prefix is None else sum(p.numel() for p in prefix.drop_mlp().parameters())
    return {
        "parameters": {"gpt2": gpt2, "trained": trained, "stored": stored, "stored_percent": round(100 * stored / gpt2, 4)},
        "bytes_on_disk": path.stat().st_size, "steps": steps, "training_examples": n_examples, "seconds": round(seconds, 1),
        "examples_per_s": round(steps * settings.batch_size / seconds, 2), "valid_loss": valid_loss, "best_valid_loss": best,
        "machine": describe_machine(settings),
    }  # fmt: skip


def report_sizes(model, prefix, settings: Settings, n_examples: int, steps: int) -> None:
    """Say what is about to happen. The paper's "0.1 %" is what is stored, not what is trained with the MLP attached."""
    gpt2 = sum(p.numel() for p in model.parameters())
    what = f"all {gpt2:,} weights of {settings.model}"
    if prefix is not None:
        trained, stored = (sum(p.numel() for p in x.parameters()) for x in (prefix, prefix.drop_mlp()))
        what = (f"{prefix.mode} of {prefix.prefix_len} positions: {stored:,} numbers to keep ({100 * stored / gpt2:.2f} % of"
                f" {settings.model}'s {gpt2:,}), {trained:,} to train")  # fmt: skip
    print(f"{what}\n{n_examples:,} examples, {steps:,} steps of {settings.batch_size}, {settings.dtype} on {settings.device}, into {settings.out}",
          flush=True)  # fmt: skip


def progress(text: str) -> None:
    """A line of its own in a file; on a terminal cut to its width."""
    if sys.stdout.isatty():
        text = text[: os.get_terminal_size().columns]
    print(text, flush=True)


def hours(seconds: float) -> str:
    """0:05:07"""
    return f"{int(seconds) // 3600}:{int(seconds) // 60 % 60:02d}:{int(seconds) % 60:02d}"


@exit_on_input_error
def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Prefix-tune (or fine-tune) GPT-2 on E2E. The defaults are the paper's.")
    add_flags(parser)
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out where it stopped")
    parser.add_argument("--no_eval", action="store_true", help="leave out decoding and scoring the test set at the end")
    flags = vars(parser.parse_args(argv))
    resume, no_eval = flags.pop("resume"), flags.pop("no_eval")
    try:
        folder = train(Settings(**flags), resume, evaluates=not no_eval)
        if not no_eval:
            evaluate_run(folder)
    except KeyboardInterrupt:
        print("\nstopped; the same command with --resume goes on", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
