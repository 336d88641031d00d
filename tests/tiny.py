"""A small world for the tests: tables and sentences, a vocabulary, a model folder. It needs no network.

The vocabulary is trained here by byte-pair encoding (Sennrich et al. 2016) and written as GPT-2's two files, so it is
read by the same code as GPT-2's.
"""

import itertools
import json
import random
from collections import Counter
from functools import lru_cache
from pathlib import Path

import regex
import torch

from e2e_data import Example
from gpt2 import GPT2, GPT2Config
from harness.gpt2_bpe import tiktoken_pattern
from harness.safetensors import write_safetensors
from harness.vocabulary import END

NAMES = (
    "The Old Mill",
    "Café Ruby",
    "Harbour House",
    "The Green Door",
    "Lotus",
    "Bella's",
    "The Anchor",
    "Nine Stones",
)
FOODS = ("Italian", "Indian", "French", "Chinese", "Japanese")
AREAS = ("riverside", "city centre")
PRICES = ("cheap", "moderate", "high", "£ 20 - 25")
PLACES = ("the Clock Tower", "Plum Tree", "Station Road")


def tables(n: int, seed: int = 0) -> list[Example]:
    """n examples, about three sentences a table."""
    rng = random.Random(seed)
    examples = []
    while len(examples) < n:
        name, food, area, price, near = (rng.choice(x) for x in (NAMES, FOODS, AREAS, PRICES, PLACES))
        fields = {"name": name, "food": food}
        optional = (("price", price), ("area", area), ("near", near))
        fields |= {key: value for key, value in optional if rng.random() < 0.6}
        source = " | ".join(f"{key} : {value}" for key, value in fields.items())
        where = f" in the {area}" if "area" in fields else ""
        nearby = f" near {near}" if "near" in fields else ""
        cost = f" Prices are {price} ." if "price" in fields else ""
        targets = (
            f"{name} serves {food} food{where}{nearby} .{cost} ",
            f"There is a place called {name}{where} that serves {food} food{nearby} .{cost} ",
            f"{name} is a {food} restaurant{nearby}{where} .{cost} ",
        )
        examples += [Example(source, target) for target in rng.sample(targets, 3)]
    return examples[:n]


@lru_cache
def byte_letters() -> dict[int, str]:
    """GPT-2's letter for each byte: printable Latin-1 keeps its letter; the others get letters from U+0100 on."""
    plain = [b for b in range(256) if chr(b).isprintable() and chr(b) != " "]
    others = [b for b in range(256) if b not in plain]
    return {b: chr(b) for b in plain} | {b: chr(256 + i) for i, b in enumerate(others)}


def write_vocabulary(folder: Path, texts: list[str], size: int = 400) -> None:
    """Train a byte-level BPE of `size` tokens and the end token; write vocab.bpe and encoder.json."""
    letters = byte_letters()
    pieces = Counter(piece for text in texts for piece in regex.findall(tiktoken_pattern(), text))
    words = {tuple(letters[b] for b in piece.encode()): count for piece, count in pieces.items()}
    tokens, merges = list(letters.values()), []  # in dictionary order: ids 0 .. 255 as in GPT-2
    while len(tokens) < size:
        pairs = Counter()
        for word, count in words.items():
            for pair in itertools.pairwise(word):
                pairs[pair] += count
        (a, b), _ = max(pairs.items(), key=lambda item: (item[1], item[0]))
        merges.append((a, b))
        tokens.append(a + b)
        words = {merge(word, a, b): count for word, count in words.items()}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.bpe").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges), encoding="utf-8")
    encoder = {token: i for i, token in enumerate([*tokens, END])}
    (folder / "encoder.json").write_text(json.dumps(encoder), encoding="utf-8")


def merge(word: tuple[str, ...], a: str, b: str) -> tuple[str, ...]:
    """The word with each adjacent pair a, b merged."""
    merged, i = [], 0
    while i < len(word):
        if word[i : i + 2] == (a, b):
            merged.append(a + b)
            i += 2
        else:
            merged.append(word[i])
            i += 1
    return tuple(merged)


def write_config(folder: Path, config: GPT2Config) -> None:
    """config.json in the form of the published models."""
    stated = {"n_layer": config.n_layer, "n_head": config.n_head, "n_embd": config.n_embd}
    stated |= {"n_positions": config.n_positions, "vocab_size": config.vocab_size, "model_type": "gpt2"}
    (folder / "config.json").write_text(json.dumps(stated))


def write_model(folder: Path, seed: int = 0, vocabulary: int = 400, **config) -> GPT2:
    """A model folder: vocabulary, config.json, model.safetensors with random weights."""
    write_vocabulary(folder, [f" {s} {END} {t} " for s, t in tables(300)], vocabulary)
    shape = {"n_layer": 2, "n_head": 4, "n_embd": 64, "n_positions": 160, "vocab_size": vocabulary + 1} | config
    model = lively(GPT2(GPT2Config(**shape)), seed)
    write_config(folder, model.config)
    write_safetensors(folder / "model.safetensors", model.state_dict(), {})
    return model.eval()


@torch.no_grad()
def lively(model: GPT2, seed: int = 0) -> GPT2:
    """Random weights large enough that every part of the model affects the logits; GPT-2's own 0.02 is too small."""
    model.init_weights(seed)
    generator = torch.Generator().manual_seed(seed + 1)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
        elif "wpe" not in name:
            parameter.mul_(5)
    return model


def write_data(folder: Path, train: int = 120, valid: int = 24, test: int = 30) -> Path:
    """A data folder in the paper's format; each split has its own seed."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, n in (("train", train), ("valid", valid), ("test", test)):
        lines = [f"{source}||{target}\n" for source, target in tables(n, seed=len(split) * 7)]
        (folder / f"src1_{split}.txt").write_text("".join(lines), encoding="utf-8")
    return folder
