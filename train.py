"""Training: learn a prefix, a LoRA, an adapter, a sum of them, or all of GPT-2, from tables and their sentences.

    python train.py --mode prefix --prefix_len 5
    python train.py --mode prefix+lora

The objective (the paper's equation 2) is the log-likelihood of the text given the table. With y the target and its end
token,

    max over theta of  sum_i log p(y_i | table, y_<i)         theta: the prefix, ...; in fine-tuning all weights

The loss of a batch of B sentences with M scored tokens (--loss; LoRA alone smooths the labels by default):

    sentence    - 1/B  sum_b sum_i log p(y_bi | table_b, y_b,<i)        the default with a prefix
    token       - 1/M  sum_b sum_i log p(y_bi | table_b, y_b,<i)        the default without

AdamW, gradient norm clipped at 1, learning rate falling linearly to 0, after a linear rise if there is a warm-up;
harness/settings.py has the defaults.

This file is the method: the loss of a batch, one step, the loop. Everything else that a program needs (data, flags,
logs, validation, checkpoints, signals, several processes) is in harness/loop.py. Without --plain, harness/door.py
substitutes faster functions, equal up to rounding and the noise of dropout. Left out: other optimisers and schedules,
and loss scaling, which bf16 does not need.
"""

import argparse
import functools
import math
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
import torch.nn.functional as F

from e2e_data import IGNORED, Batch, Encoded, epoch_order, scored_tokens
from evaluate import evaluate_run
from gpt2 import GPT2
from harness import ranks, shelves
from harness.door import prepare_process
from harness.files import exit_on_input_error
from harness.loop import Run
from harness.settings import Settings, add_flags


def summed_loss(model: GPT2, batch: Batch, label_smoothing: float = 0.0) -> torch.Tensor:
    """- sum of log p over the batch's labels, in nats. The logits at position t predict the token at t + 1.

    label_smoothing  weight of the uniform distribution in the targets (Szegedy et al. 2016)
    """
    logits = model(batch.tokens)[:, :-1]  # [B, T - 1, V]
    labels = batch.labels[:, 1:]  # [B, T - 1]
    how = {"ignore_index": IGNORED, "reduction": "sum", "label_smoothing": label_smoothing}
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), **how)


def learning_rate(peak: float, step: int, steps: int, warmup_steps: int = 0) -> float:
    """The rate of a step, counted from 0: it rises linearly over the warm-up, then falls linearly to 0 at `steps`."""
    if step < warmup_steps:
        return peak * (step / warmup_steps)
    return peak * ((steps - step) / max(1, steps - warmup_steps))


def adamw(parameters: Iterable[torch.nn.Parameter | dict], lr: float, weight_decay: float) -> torch.optim.AdamW:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019), of parameters or of groups of them (`update`)."""
    return torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=weight_decay)


def clip_gradients(optimizer: torch.optim.Optimizer, max_norm: float) -> torch.Tensor:
    """Scale the gradients to a norm of at most `max_norm`; returns the norm before."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return torch.nn.utils.clip_grad_norm_(parameters, max_norm)


def update(
    model: GPT2,
    optimizer: torch.optim.Optimizer,
    batches: list[Batch],
    divisor: int,
    lr: float,
    max_norm: float = 1.0,
    loss_of: Callable = summed_loss,
    clip: Callable = clip_gradients,
) -> tuple[float, float]:
    """One step: (summed loss in nats, gradient norm before clipping).

    batches  the step's examples, in one or more pieces
    divisor  turns the sum into the mean: the number of sentences, or of scored tokens
    lr       the learning rate; a parameter group with "relative" has that many times the rate
    max_norm the gradient norm above which gradients are scaled down; 0: no clipping
    loss_of  (model, batch) -> the summed loss
    clip     (optimizer, max_norm) -> the norm before clipping, as clip_gradients
    """
    total = 0.0
    for batch in batches:
        loss = loss_of(model, batch)
        (loss / divisor).backward()  # the pieces' gradients add up to that of all examples
        total += loss.detach()
    norm = clip(optimizer, max_norm or math.inf).item()
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("relative", 1.0)
    if math.isfinite(norm):  # otherwise Run.after_step ends the run, and its last checkpoint stays
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return float(total), norm


def train(settings: Settings, resume: bool = False, check_test_data: bool = False) -> Path:
    """Run the training that the settings describe; returns the run's folder.

    resume      continue in a folder where this run was begun; a finished run is left as it is
    check_test_data  read the test data too, so that an error in it is reported before training
    Raises InputError for what the user can fix, and KeyboardInterrupt after Ctrl-C, once a checkpoint is written.
    """
    run = Run(settings.resolve(), check_test_data)
    s = run.settings
    optimizer = run.engine.choose(adamw)(run.parameters(), s.lr, s.weight_decay)
    loss_of, clip = run.choose(summed_loss), run.choose_clip(clip_gradients)
    # In training only: validation measures -log p itself.
    smoothed = functools.partial(loss_of, label_smoothing=s.label_smoothing) if s.label_smoothing else loss_of
    with run.session(optimizer, loss_of, resume):
        for step in run.steps_left():
            examples = examples_of_step(run.train_set, step, s.batch_size, s.seed)
            divisor = len(examples) if s.loss == "sentence" else scored_tokens(examples)
            lr = learning_rate(s.lr, step, run.steps, s.warmup_steps)
            loss, norm = update(run.model, optimizer, run.batches(examples), divisor, lr, s.clip, smoothed, clip)
            run.after_step(examples, loss, lr, norm)
    return run.folder


def examples_of_step(examples: list[Encoded], step: int, batch_size: int, seed: int) -> list[Encoded]:
    """The examples of a step. Each epoch is shuffled separately; its last batch may be smaller."""
    epoch, place = divmod(step, math.ceil(len(examples) / batch_size))
    order = epoch_order(len(examples), seed, epoch)
    return [examples[i] for i in order[place * batch_size : (place + 1) * batch_size]]


@exit_on_input_error
@ranks.distributed
def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description="Prefix-tune, adapt or fine-tune GPT-2. The defaults are the papers' for E2E."
    )
    add_flags(parser)
    parser.add_argument("--resume", action="store_true", help="continue the run in --out from its last checkpoint")
    parser.add_argument("--no_eval", action="store_true", help="do not decode and score the test set at the end")
    flags = vars(parser.parse_args(argv))
    resume, no_eval = flags.pop("resume"), flags.pop("no_eval")
    settings = Settings(**flags)
    prepare_process(settings.plain)
    try:
        folder = train(settings, resume, check_test_data=not no_eval)
        if not no_eval:
            evaluate_run(folder, **{name: flags[name] for name in ("device", "plain") if name in flags})
        if settings.task is not None:
            ranks.on_rank_0(shelves.put, folder, settings.task, settings.shelf)
    except KeyboardInterrupt:
        print("\nstopped; the same command with --resume continues", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
