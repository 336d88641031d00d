"""Training speed: this project against `transformers` and `peft`, in the same run.

    python benchmarks/training.py                    prefix and fine-tuning, GPT-2 small with random weights
    python benchmarks/training.py --dtype fp32       in single precision
    python benchmarks/training.py --modes prefix lora prefix+lora
    python benchmarks/training.py --model smollm2 --out results/training-smollm2.json        SmolLM2-135M, a Llama
    python benchmarks/training.py --scaling          also how cost grows with prefix_len, batch_size and model
    python benchmarks/training.py --long             more and longer rounds

Ours is `train.update` on the fast path. The peer is the plain loop that users of these libraries write: GPT2LMHeadModel
(LlamaForCausalLM for smollm2), in prefix mode inside peft's PrefixTuningConfig(prefix_projection=True), padded batches
with an attention mask, labels of -100 on prompt and padding, torch.autocast for bf16, loss.backward(),
clip_grad_norm_, optimizer.step().

Equal on both sides: the initial weights (random: speed does not depend on them), the batches of 10 and their order, the
dtype, the loss (the mean over a batch's target tokens), PyTorch's fused AdamW with the same settings, gradient norm
clipped at 1, GPT-2's dropout (0 with a prefix, 0.1 in fine-tuning), and with a prefix the MLP: Linear(C, 512), tanh,
Linear(512, 2 L C) on embeddings of width C (of a Llama 2 L G D). Hence the losses are equal too; those of the first
batch are printed.

With lora the peer is peft's LoraConfig with the same rank, alpha and dropout. On a Llama it is on q_proj and v_proj. On
GPT-2 it is on c_attn, as its users have it: one pair for q, k and v, where ours has a pair for q and one for v. Both
begin at the frozen model, so the first loss is equal and later ones are not. peft cannot train a prefix and a LoRA
together: prefix+lora is compared with its LoRA.

Different:
* peft runs the MLP once per sentence of a batch, in bf16; ours runs it once per batch, in fp32.
* transformers computes logits for all tokens, ours for the scored ones.
* Under autocast the peer rounds frozen weights to bf16 in each step; ours keeps them rounded.
* Ours has the settings of the whole process that train.py has: freed memory is kept in large pages (fast/memory.py),
  denormal numbers count as zero (fast/denormals.py). The peer has the defaults.

Each contender is a process of its own, and they train in turn: `--warm_up` steps that are not timed (a CPU kernel is
compiled for each new shape, and a real run has met nearly all of its shapes early), then `--rounds` rounds of `--steps`
steps. Memory is the peak of the whole process while training, libraries included (on a GPU: of tensors). Best run on an
otherwise idle machine. Prints tables and the ratios, and writes every round to results/training.json.
"""

import argparse
import dataclasses
import statistics
from pathlib import Path

import torch

from contenders import (
    NAMED,
    ROOT,
    Contender,
    check_peers,
    describe,
    examples_like_e2e,
    peft_lora,
    peft_prefix,
    show_contenders,
    show_growth,
    show_head,
    show_ratios,
    spread,
    transformers_twin,
    weights_of,
)  # the first import of all: it makes the project's own files importable

from e2e_data import Batch, Encoded, collate, encode, epoch_order, load_split, scored_tokens
from gpt2 import CONFIGS
from harness.door import prepare_process
from harness.files import InputError, exit_on_input_error
from harness.machine import autocast
from harness.runs import start_model, write_json
from harness.settings import Settings
from harness.tokenizers import load_tokenizer
from train import adamw, clip_gradients, summed_loss, update
from weights import load_config

MODES = ("prefix", "finetune", "lora", "prefix+lora")
PREFIX_LENS, BATCH_SIZES = (1, 5, 20, 100, 200), (1, 4, 10, 32, 64)
TOLERANCE = {"fp32": 1e-3, "bf16": 5e-2}  # nats a token


@exit_on_input_error
def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description="Compare training speed with transformers and peft."
    )
    parser.add_argument(
        "--model", default="gpt2", help=f"{', '.join(NAMED)}, with random weights, or a folder (default: gpt2)"
    )
    parser.add_argument(
        "--modes", nargs="+", default=["prefix", "finetune"], choices=MODES, help="(default: prefix finetune)"
    )
    parser.add_argument(
        "--dtype", default="auto", choices=("auto", "bf16", "fp32"), help="(default: bf16 if the hardware has it)"
    )
    parser.add_argument("--device", default="auto", help="cpu, cuda (default: cuda if present)")
    parser.add_argument("--rounds", type=int, help="rounds of each contender (default: 5)")
    parser.add_argument("--steps", type=int, help="steps a round (default: 6)")
    parser.add_argument(
        "--warm_up", type=int, default=12, help="steps of each contender before the rounds, not timed (default: 12)"
    )
    parser.add_argument("--long", action="store_true", help="15 rounds of 20 steps")
    parser.add_argument("--batch_size", type=int, default=10, help="examples a step (default: 10)")
    parser.add_argument("--prefix_len", type=int, default=5, help="positions of the prefix (default: 5)")
    parser.add_argument("--dropout", type=float, help="GPT-2's dropout in training (default: 0, in fine-tuning 0.1)")
    parser.add_argument("--data", help="a folder with E2E's files (default: random tokens of the same lengths)")
    parser.add_argument("--alone", action="store_true", help="without the peer")
    parser.add_argument("--scaling", action="store_true", help="also measure how cost grows (ours, prefix mode)")
    parser.add_argument(
        "--sizes", nargs="+", help="models for --scaling (default: gpt2 gpt2-medium; of another --model, that one)"
    )
    parser.add_argument(
        "--out", type=Path, default=ROOT / "results" / "training.json", help="(default: results/training.json)"
    )
    given = parser.parse_args()
    given.rounds = given.rounds if given.rounds is not None else (15 if given.long else 5)
    given.steps = given.steps if given.steps is not None else (20 if given.long else 6)
    if min(given.rounds, given.steps, given.warm_up, given.batch_size) < 1:
        raise InputError("--rounds, --steps, --warm_up and --batch_size must be at least 1")
    if not given.alone:
        check_peers()

    settings = {mode: settings_of(given, mode=mode) for mode in given.modes}
    batches = make_batches(given, settings[given.modes[0]], given.warm_up + given.rounds * given.steps)
    report = describe("training.py", settings[given.modes[0]], given.data)
    report |= {
        "batch_size": given.batch_size,
        "warm_up_steps": given.warm_up,
        "rounds": given.rounds,
        "steps_a_round": given.steps,
    }
    show_head(report, f"batches of {given.batch_size}, {given.rounds} rounds of {given.steps} steps, in turn")
    report["contenders"] = take_turns(settings, batches, given)
    report["ratios"] = ratios(report["contenders"])
    show_contenders(report, "examples/s")
    show_ratios(report)
    show_losses(report, given.modes)
    if given.scaling:
        report["growth"] = growth(given)
        show_growth(report, "examples/s")
    write_json(given.out, report)


def settings_of(given, **changes) -> Settings:
    """train.py's settings, but with the peer's loss. `changes` override the command line."""
    flags = ("model", "device", "dtype", "dropout", "batch_size", "prefix_len")
    own = {"mode": "prefix", "loss": "token"} | {name: getattr(given, name) for name in flags} | changes
    if "prefix" not in own["mode"]:
        own["prefix_len"] = None
    if "lora" in own["mode"]:
        own |= {"label_smoothing": 0.0}  # the peer's loss has none
    return Settings(**own, weights=weights_of(own["model"])).resolve()


def make_batches(given, settings: Settings, n: int) -> list[list[Encoded]]:
    """n batches: of --data, in the order of a first epoch, or of random tokens."""
    config, size = load_config(settings.model), settings.batch_size
    room = config.n_positions - (settings.prefix_len or given.prefix_len)
    if given.data:
        examples = load_split(given.data, "train")
        order = [
            i
            for epoch in range(1 + n * size // len(examples))
            for i in epoch_order(len(examples), settings.seed, epoch)
        ]
        encoded = encode(load_tokenizer(settings.model), [examples[i] for i in order[: n * size]], room)
    else:
        encoded = examples_like_e2e(n * size, config.vocab_size)
        if max(len(ids) for ids, _ in encoded) > room:
            raise InputError(
                f"{settings.model} has {config.n_positions} positions, too few for the prefix and E2E's texts:"
                " choose another model"
            )
    return [encoded[i * size : (i + 1) * size] for i in range(n)]


# ----------------------------------------------------------------------------- the contenders


class Ours:
    """Training as train.py does it."""

    def __init__(self, settings: Settings):
        prepare_process(plain=False)
        self.settings, engine = settings, settings.engine
        self.model, prefix = start_model(settings)
        self.loss_of = engine.in_precision(engine.choose(summed_loss, self.model))
        self.clip = engine.choose(clip_gradients)
        self.learned = self.model if prefix is None else prefix
        self.optimizer = engine.choose(adamw)(self.learned.parameters(), settings.lr, settings.weight_decay)
        self.pad = self.model.config.end_token

    def loss(self, examples: list[Encoded]) -> float:
        """Nats a target token, without dropout."""
        self.model.eval()
        return self.loss_of(self.model, self.collated(examples)).item() / scored_tokens(examples)

    def train(self, batches: list[list[Encoded]]) -> list[float]:
        """A step on each; the loss of each, in nats a target token."""
        s = self.settings
        self.model.train(s.dropout > 0)
        losses = []
        for examples in batches:
            n, batch = scored_tokens(examples), self.collated(examples)
            loss, _ = update(self.model, self.optimizer, [batch], n, s.lr, s.clip, self.loss_of, self.clip)
            losses.append(loss / n)
        return losses

    def collated(self, examples: list[Encoded]) -> Batch:
        return collate(examples, self.pad).to(self.settings.device)


class Peer:
    """Training as a user of transformers and peft does it."""

    def __init__(self, settings: Settings):
        self.settings = settings
        model, prefix = start_model(dataclasses.replace(settings, device="cpu", dtype="fp32"))  # for its weights
        self.pad = model.config.end_token
        self.model = transformers_twin(model, settings.dropout)
        self.options = {"use_cache": False}  # as its Trainer sets it; a prefix enters through the cache
        if settings.adapts:
            self.model = peft_lora(self.model, settings)
        elif prefix is not None:
            self.model, self.options = peft_prefix(self.model, prefix, settings.mid_dim), {}
        self.model.to(settings.device)
        self.parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        adam = settings.engine.choose(adamw)  # the fused one, as ours
        self.optimizer = adam(self.parameters, settings.lr, settings.weight_decay)

    def forward(self, examples: list[Encoded]) -> torch.Tensor:
        """The mean loss over the batch's target tokens."""
        T = max(len(ids) for ids, _ in examples)
        ids = torch.tensor([ids + [self.pad] * (T - len(ids)) for ids, _ in examples])  # [B, T]
        mask = torch.tensor([[1] * len(ids) + [0] * (T - len(ids)) for ids, _ in examples])  # [B, T]
        labels = torch.tensor([[-100] * n + ids[n:] + [-100] * (T - len(ids)) for ids, n in examples])  # [B, T]
        ids, mask, labels = (tensor.to(self.settings.device) for tensor in (ids, mask, labels))
        with autocast(self.settings.device, self.settings.dtype):
            return self.model(input_ids=ids, attention_mask=mask, labels=labels, **self.options).loss

    def loss(self, examples: list[Encoded]) -> float:
        """Nats a target token, without dropout."""
        self.model.eval()
        return self.forward(examples).item()

    def train(self, batches: list[list[Encoded]]) -> list[float]:
        """A step on each; the loss of each, in nats a target token."""
        self.model.train()
        losses = []
        for examples in batches:
            loss = self.forward(examples)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.parameters, self.settings.clip)
            self.optimizer.step()
            self.optimizer.zero_grad()
            losses.append(loss.detach())
        return [loss.item() for loss in losses]  # not before: each .item() would wait for the GPU


# ----------------------------------------------------------------------------- the comparison


def take_turns(settings: dict[str, Settings], batches: list[list[Encoded]], given) -> dict[str, dict]:
    """Warm up on the first batches, then run the rounds. Returns name -> figures."""
    sides = {"ours": Ours} if given.alone else {"ours": Ours, "peer": Peer}
    contenders = {
        f"{mode}, {side}": Contender(make, s, device=s.device)
        for mode, s in settings.items()
        for side, make in sides.items()
        if (mode, side) != ("prefix+lora", "peer")
    }
    figures = {}
    for name, contender in contenders.items():
        first_loss = contender.call("loss", batches[0])["result"]
        losses = contender.call("train", batches[: given.warm_up])["result"]
        figures[name] = {
            "examples_per_s": 0.0,
            "every_round": [],
            "megabytes": 0.0,
            "first_loss": first_loss,
            "losses": losses,
        }
    for start in range(given.warm_up, len(batches), given.steps):
        piece = batches[start : start + given.steps]
        for name, contender in contenders.items():
            measured, one = contender.call("train", piece), figures[name]
            one["every_round"].append(sum(map(len, piece)) / measured["seconds"])
            one["megabytes"] = max(one["megabytes"], measured["megabytes"])
            one["losses"] += measured["result"]
    for name, contender in contenders.items():
        contender.end()
        figures[name]["examples_per_s"] = statistics.median(figures[name]["every_round"])
    return figures


def ratios(figures: dict[str, dict]) -> dict[str, dict]:
    """The ratios of those pairs that were measured."""
    pairs = {
        "prefix: ours / peer": ("prefix, ours", "prefix, peer"),
        "finetune: ours / peer": ("finetune, ours", "finetune, peer"),
        "lora: ours / peer": ("lora, ours", "lora, peer"),
        "prefix+lora: ours / the peer's lora": ("prefix+lora, ours", "lora, peer"),
        "ours: prefix / finetune": ("prefix, ours", "finetune, ours"),
        "ours: lora / prefix": ("lora, ours", "prefix, ours"),
        "ours: prefix+lora / prefix": ("prefix+lora, ours", "prefix, ours"),
    }
    found = {}
    for name, (above, below) in pairs.items():
        if above in figures and below in figures:
            found[name] = spread(figures[above]["every_round"], figures[below]["every_round"])
            found[name]["memory"] = figures[above]["megabytes"] / figures[below]["megabytes"]
    return found


def show_losses(report: dict, modes: list[str]) -> None:
    """Print the first batch's loss, before any step and without dropout: both sides must compute the same."""
    for mode in modes:
        losses = [one["first_loss"] for name, one in report["contenders"].items() if name.startswith(f"{mode},")]
        print(f"{mode}: the first batch's loss is " + " and ".join(f"{loss:.4f}" for loss in losses) + " nats a token")
        if max(losses) - min(losses) > TOLERANCE[report["machine"]["dtype"]]:
            print(f"{mode}: these losses differ, so the speeds cannot be compared")


# ----------------------------------------------------------------------------- growth


def growth(given) -> dict[str, list[dict]]:
    """Ours in prefix mode, one quantity varied at a time: quantity -> its lines, each from a process of its own."""
    sizes = given.sizes or (["gpt2", "gpt2-medium"] if given.model in CONFIGS else [given.model])
    values = {"prefix_len": PREFIX_LENS, "batch_size": BATCH_SIZES, "model": sizes}
    return {
        name: [{name: show_value(value), **alone(given, name, value)} for value in these]
        for name, these in values.items()
    }


def alone(given, name: str, value) -> dict:
    """Speed and memory of ours with one changed setting, on about as many examples as a round of the comparison has."""
    s = settings_of(given, **{name: value})
    steps = max(2, given.steps * given.batch_size // s.batch_size)
    warm_up = min(given.warm_up, steps)
    batches = make_batches(given, s, warm_up + steps)
    contender = Contender(Ours, s, device=s.device)
    contender.call("train", batches[:warm_up])
    measured = [contender.call("train", batches[warm_up:]) for _ in range(min(given.rounds, 3))]
    contender.end()
    return {
        "examples_per_s": statistics.median(steps * s.batch_size / one["seconds"] for one in measured),
        "every_round": [steps * s.batch_size / one["seconds"] for one in measured],
        "megabytes": max(one["megabytes"] for one in measured),
    }


def show_value(value):
    """A value as the report names it: a model's folder by its last part."""
    return Path(value).name if isinstance(value, str) else value


if __name__ == "__main__":
    main()
