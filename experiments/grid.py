"""The grid: the runs that make up the poster's experiment and the paper's ablations, as a declaration.

A cell is a configuration; a cell with a seed is a run, `prefix5-seed101` (a cell without training has no seed).
Settings that a cell does not name are the paper's, train.py's defaults: batches of 10, 5 epochs, AdamW with linear
decay, beam 5. Two settings depend on the model:

* the learning rates, one per family of cells: PUBLISHED_RATES, or those that search.py has found for the model;
* P of the initialisation from words, which is the number of tokens of WORDS in the model's vocabulary (6 in GPT-2's).
  The cell with random initialisation has the same P.

With few training examples (the paper's section 6.3, low-data settings) the prefix starts from the words' activations,
the learning rate rises over the first 100 steps, and the weights with the best validation loss are kept. A run of 100
steps is all warm-up.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from e2e_data import load_split
from harness.files import InputError
from harness.settings import RECIPE, Settings, init_tokens

WORDS = "table-to-text:"  # initialises the prefix in low-data settings (the paper), and prompts the untuned model
SEEDS = (101, 102, 103)
LOW_DATA_STEPS = {
    "prefix": {50: 200, 100: 200, 200: 200, 500: 400},
    "finetune": {50: 100, 100: 100, 200: 200, 500: 400},
}
LOW_DATA = {"warmup_steps": 100, "keep": "best"}

# The paper's code has rates for the prefix and for fine-tuning, with full data and low data. The other modes use the
# prefix's; those with a LoRA or an adapter take LoRA's paper's.
PUBLISHED_RATES = {
    "prefix": 8e-5, "infix": 8e-5, "embedding": 8e-5, "direct": 8e-5, "finetune": 5e-5, "low-prefix": 5e-5,
    "low-finetune": 5e-5, "lora": 2e-4, "adapter": 2e-4, "prefix-lora": 2e-4, "prefix-adapter": 2e-4,
}  # fmt: skip

# All cells are trained and decoded alike, so LoRA alone does without its own paper's batch, warm-up and smoothing.
ALIKE = {"batch_size": 10, "warmup_steps": 0, "weight_decay": 0.0, "label_smoothing": 0.0, "beam_size": 5}

WIDE = {"lora_on": "q,v,fc,mlp"}

# On a CPU a step of a model of GPT-2 small's size takes seconds, so SmolLM2 runs only these cells, each with this
# number of seeds, in this order.
PARTIAL = {
    "smollm2": {
        "finetune": 2, "prefix5": 2, "lora4": 1, "prefix10": 1, "prefix1": 1, "embedding10": 1, "infix10": 1,
        "prefix5-lora4-rates": 1, "prefix20": 1, "prefix3": 1, "low500-prefix": 3, "low500-finetune": 3,
    },
}  # fmt: skip

# Published BLEU of a cell: the poster's (the size is not stated; GPT-2 small by inference), the paper's (GPT-2 medium).
BLEU_ELSEWHERE = {
    "prefix1": "59.5 (poster)", "prefix3": "65.6 (poster)", "prefix5": "68.5 (poster), 70.3 (paper, medium)",
    "prefix10": "68.9 (poster)", "prefix20": "69.0 (poster)", "finetune": "70.3 (poster), 68.8 (paper, medium)",
    "embedding1": "48.1 (paper, medium)", "embedding10": "62.2 (paper, medium)", "embedding20": "61.9 (paper, medium)",
    "infix1": "67.9 (paper, medium)", "infix10": "67.2 (paper, medium)", "infix20": "66.7 (paper, medium)",
}  # fmt: skip
POSTER_LENGTHS = {1: 59.5, 3: 65.6, 5: 68.5, 10: 68.9, 20: 69.0}
POSTER_MINUTES = {"prefix5": 10.0, "finetune": 17.5}


@dataclass(frozen=True)
class Cell:
    """A configuration of the grid."""

    name: str
    label: str  # in tables and figures
    flags: dict = field(default_factory=dict)  # train.py's flags that differ from its defaults
    rate: str | None = None  # the family whose learning rate it takes; None: no training
    prompt: str = ""  # words in front of each table
    all_seeds: bool = False  # one run per seed; otherwise the first seed only
    lora_rate: str | None = None  # the family whose rate its LoRA takes; None: as the rest of the run

    @property
    def families(self) -> set[str]:
        """The families whose learning rates it needs."""
        return {family for family in (self.rate, self.lora_rate) if family}


def grid(n_words: int, model: str = "") -> list[Cell]:
    """All cells, or those of a model with a grid of its own. n_words: the number of tokens in WORDS."""
    cells = {cell.name: cell for cell in posters(n_words) + combinations()}
    return [cells[name] for name in PARTIAL.get(model, cells)]


def seeds_of(cell: Cell, model: str, seeds: tuple[int, ...] = SEEDS) -> tuple[int, ...]:
    """A cell's seeds: as many as the model's own grid says, else all of a repeated cell and the first of the others."""
    return seeds[: PARTIAL.get(model, {}).get(cell.name, len(seeds) if cell.all_seeds else 1)]


def posters(n_words: int) -> list[Cell]:
    """The poster's experiment and the paper's ablations, the cells of the poster's table first."""
    cells = [
        Cell("zeroshot", "untuned"),
        Cell("prompt", f"untuned, “{WORDS}” in front", prompt=WORDS),
        Cell("finetune", "fine-tune", {"mode": "finetune"}, "finetune", all_seeds=True),
    ]
    cells += [
        Cell(f"prefix{P}", f"prefix, P = {P}", {"mode": "prefix", "prefix_len": P}, "prefix", all_seeds=P == 5)
        for P in (5, 1, 3, 10, 20, 40)
    ]
    for mode, name in (("infix", "infix"), ("embedding", "embedding-only")):
        # infix runs with all seeds: its scores are close to the prefix's
        cells += [
            Cell(f"{mode}{P}", f"{name}, P = {P}", {"mode": mode, "prefix_len": P}, mode, all_seeds=mode == "infix")
            for P in (1, 10, 20)
        ]
    cells += [
        Cell(
            "prefix5-direct",
            "prefix, P = 5, without the MLP",
            {"mode": "prefix", "prefix_len": 5, "no_reparam": True},
            "direct",
        ),
        Cell("init-random", "begins at random", {"mode": "prefix", "prefix_len": n_words}, "prefix"),
        Cell("init-words", f"begins as “{WORDS}”", {"mode": "prefix", "init_text": WORDS}, "prefix"),
    ]
    for n in (50, 100, 200, 500):  # the seed also draws the examples, which strongly affect the result
        for mode, own in (("prefix", {"init_text": WORDS}), ("finetune", {})):
            flags = {"mode": mode, "train_examples": n, "max_steps": LOW_DATA_STEPS[mode][n]} | own | LOW_DATA
            name = "fine-tune" if mode == "finetune" else mode
            cells.append(Cell(f"low{n}-{mode}", f"{name}, {n} examples", flags, f"low-{mode}", all_seeds=True))
    return cells


def combinations() -> list[Cell]:
    """LoRA, the adapter, and each with a prefix, storing 24,576 to 405,504 numbers of mini.

    lora4 has rank 4 on q and v; lora4-wide has it on q, v and both matrices of the MLP. A mixture has one learning
    rate, searched for it; in a cell that ends in -rates each part has the rate that was searched for it alone.
    """
    cells = [
        Cell(f"lora{r}", f"LoRA, r = {r} on q, v", {"mode": "lora", "lora_rank": r} | ALIKE, "lora", all_seeds=r == 4)
        for r in (4, 16, 64)
    ]
    cells += [
        Cell(f"lora{r}-wide", f"LoRA, r = {r} on q, v, MLP", {"mode": "lora", "lora_rank": r} | WIDE | ALIKE, "lora")
        for r in (4, 16)
    ]
    cells += [
        Cell(f"adapter{d}", f"adapter, width {d}", {"mode": "adapter", "adapter_dim": d}, "adapter") for d in (16, 64)
    ]
    for P, r, on, repeated in ((5, 4, {}, True), (20, 4, {}, False), (5, 4, WIDE, False), (20, 16, WIDE, True)):
        name, where = f"prefix{P}-lora{r}" + ("-wide" if on else ""), "q, v, MLP" if on else "q, v"
        flags = {"mode": "prefix+lora", "prefix_len": P, "lora_rank": r} | on
        label = f"prefix, P = {P}, + LoRA, r = {r} on {where}"
        cells.append(Cell(name, label, flags, "prefix-lora", all_seeds=repeated))
        if repeated:
            cells.append(Cell(f"{name}-rates", f"{label}, two rates", flags, "prefix", lora_rate="lora"))
    for P, d in ((5, 16), (20, 64)):
        flags = {"mode": "prefix+adapter", "prefix_len": P, "adapter_dim": d}
        cells.append(Cell(f"prefix{P}-adapter{d}", f"prefix, P = {P}, + adapter, width {d}", flags, "prefix-adapter"))
    return cells


@dataclass(frozen=True)
class Run:
    """A cell with a seed, and train.py's settings for it."""

    name: str
    cell: Cell
    settings: Settings
    steps: int


def plan(base: dict, rates: dict[str, float], folder: str, seeds: tuple[int, ...] = SEEDS) -> list[Run]:
    """The grid's runs, in order.

    base    train.py's flags for all runs: model, data, device, ...; max_steps limits every run, the low-data runs too
    rates   family -> learning rate
    folder  parent of the runs' folders
    Raises InputError for invalid settings.
    """
    given = Settings(**base)
    n_train = len(load_split(given.data, "train"))
    n_words = len(init_tokens(replace(given, init_text=WORDS)))
    model, runs = Path(given.model).name, []  # the name that runs.csv has
    for cell in grid(n_words, model):
        for seed in seeds_of(cell, model, seeds):
            name = f"{cell.name}-seed{seed}" if cell.rate else cell.name
            if cell.rate is None:  # only the decoding settings matter; mode "finetune" has no prefix
                settings, steps = replace(given, mode="finetune", seed=seed, out=f"{folder}/{name}").resolve(), 0
            else:
                settings, steps = cell_settings(given, cell, seed, rates, n_train)
                settings = replace(settings, out=f"{folder}/{name}").resolve()
            runs.append(Run(name, cell, settings, steps))
    return runs


def cell_settings(
    given: Settings, cell: Cell, seed: int, rates: dict[str, float], n_train: int
) -> tuple[Settings, int]:
    """The settings of a trained cell, before `resolve`, and its number of steps."""
    low = "train_examples" in cell.flags
    steps = given.max_steps or given.epochs * math.ceil(n_train / (given.batch_size or RECIPE["batch_size"]))
    if low:
        steps = min(cell.flags["max_steps"], given.max_steps or math.inf)
    settings = replace(
        given, **cell.flags | {"max_steps": steps if low else given.max_steps}, seed=seed, lr=rates[cell.rate],
        lora_lr=rates[cell.lora_rate] if cell.lora_rate else None,
        log_every=max(1, steps // 100), valid_every=math.ceil(steps / 5),  # with 5 epochs: after each epoch
    )  # fmt: skip
    return replace(settings, warmup_steps=min(settings.warmup_steps or 0, steps - 1)), steps


def check_families(rates: dict[str, float], families: Iterable[str], where: str) -> None:
    """Raise InputError if one of these families has no learning rate."""
    if missing := ", ".join(sorted(set(families) - rates.keys())):
        command = "python experiments/search.py"
        raise InputError(f"{where} has no learning rate for {missing}: run {command} for this model")
