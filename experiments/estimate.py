"""How long the grid will take, estimated from the runs that have finished on this machine, or from a short timing.

    seconds of a run = steps * s_step + validations * s_validation + s_decoding

Fine-tuning is timed separately; the other modes cost nearly the same and share one estimate. The timing decodes with an
untrained prefix, which rarely generates an end token, so it overestimates decoding.
"""

import math
import statistics
import time
from dataclasses import replace
from typing import NamedTuple

from e2e_data import collate, encode, group_references, load_split
from evaluate import decode_with
from experiments.grid import Run
from experiments.record import machine_class
from harness.loop import validation_loss
from harness.machine import describe_machine
from harness.runs import start_model
from harness.settings import Settings
from harness.tokenizers import load_tokenizer
from train import adamw, clip_gradients, summed_loss, update
from weights import load_config

TIMED_STEPS, TIMED_EXAMPLES, TIMED_TABLES = 4, 64, 8


class Cost(NamedTuple):
    """Seconds."""

    step: float
    validation: float
    decoding: float


def kind(run: Run) -> str:
    """What a run's cost depends on."""
    return "finetune" if run.steps and run.settings.finetunes else "prefix"


def validations(run: Run) -> int:
    """How many times a run computes the validation loss."""
    return math.ceil(run.steps / run.settings.valid_every) if run.steps else 0


def from_rows(rows: dict[str, dict[str, str]], settings: Settings) -> dict[str, Cost]:
    """The median costs of the finished runs, by kind; only runs on the same class of machine count."""
    machine = describe_machine(settings.device, settings.dtype)
    own_class = (machine_class(machine), machine["dtype"])
    here = [row for row in rows.values() if (row["machine"], row["dtype"]) == own_class and int(row["steps"])]
    costs = {}
    for name in ("prefix", "finetune"):
        own = [row for row in here if (row["mode"] == "finetune") == (name == "finetune")]
        if own:
            per_step = [float(row["training_seconds"]) / int(row["steps"]) for row in own]
            per_validation = [float(row["validation_seconds"]) / max(1, int(row["validations"])) for row in own]
            decoding = [float(row["decoding_seconds"]) for row in own]
            costs[name] = Cost(*map(statistics.median, (per_step, per_validation, decoding)))
    return costs


def measure(settings: Settings) -> Cost:
    """Time a few steps, part of a validation and the decoding of a few tables, and scale each up to the whole."""
    tokenizer = load_tokenizer(settings.model, settings.weights)
    pad, room = tokenizer.eot_token, load_config(settings.model).n_positions - (settings.prefix_len or 0)
    model, prefix = start_model(replace(settings, init_text=None))  # fitting the prefix to words would only take time
    learned = model if prefix is None else prefix
    engine, n = settings.engine, settings.batch_size
    optimizer = engine.choose(adamw)(learned.parameters(), settings.lr, settings.weight_decay)
    loss_of, clip = engine.in_precision(engine.choose(summed_loss, model)), engine.choose(clip_gradients)
    examples = encode(tokenizer, load_split(settings.data, "train")[: (TIMED_STEPS + 1) * n], room)
    model.train(settings.dropout > 0)
    for step in range(TIMED_STEPS + 1):
        if step == 1:  # step 0 is the warm-up
            began = time.monotonic()
        batch = collate([examples[i % len(examples)] for i in range(step * n, (step + 1) * n)], pad).to(settings.device)
        update(model, optimizer, [batch], n, 0.0, settings.clip, loss_of, clip)
    per_step = (time.monotonic() - began) / TIMED_STEPS

    model.eval()
    valid = load_split(settings.data, "valid")[: settings.valid_examples]
    part = encode(tokenizer, valid[:TIMED_EXAMPLES], room)
    began = time.monotonic()
    validation_loss(model, part, loss_of, pad, settings.device)
    per_validation = (time.monotonic() - began) * len(valid) / len(part)

    sources = list(group_references(load_split(settings.data, "test")))
    decodes = replace(settings, init_text=None).for_decoding()
    model, engine = start_model(decodes)[0].eval(), decodes.engine
    engine.to_device_and_freeze(model.requires_grad_(False))  # as evaluation loads it
    began = time.monotonic()
    decode_with(engine, model, tokenizer, sources[:TIMED_TABLES], **settings.search)
    return Cost(per_step, per_validation, (time.monotonic() - began) * len(sources) / len(sources[:TIMED_TABLES]))


def costs_of(runs: list[Run], rows: dict[str, dict[str, str]]) -> dict[str, Cost]:
    """The costs of these runs' kinds: from finished runs where there are any, otherwise timed now."""
    costs = from_rows(rows, runs[0].settings) if runs else {}
    for run in sorted(runs, key=lambda run: run.steps == 0):  # time a run with training if there is one
        if kind(run) not in costs:
            print(f"timing {TIMED_STEPS} steps of {run.name} …", flush=True)
            costs[kind(run)] = measure(run.settings)
    return costs


def seconds(run: Run, costs: dict[str, Cost]) -> float:
    """The estimated duration of a run."""
    cost = costs[kind(run)]
    return run.steps * cost.step + validations(run) * cost.validation + cost.decoding
