"""Zero-shot: the untuned GPT-2 says the tables, with nothing trained and nothing stored.

The model reads what a tuned one reads, with words in front or without:

    " " + words + " " + table + " <|endoftext|>"

Words in front are a prefix too, one that was written and not learned: their keys and values in each layer are what GPT-2
computes from them, and every token attends to them (`Prefix.words_as_rows` is that prefix, number by number). For GPT-2
the separator ends a document, so that without tuning it has little reason to go on about the table. A layout of
another kind ("table ... In words: ...") would serve it better, and would measure the layout.
"""

import time
from pathlib import Path

import metrics
from e2e_data import group_references, load_split, load_tokenizer
from evaluate import decode_with
from harness.files import write_atomic
from harness.machine import describe_machine
from harness.runs import check_context, write_json
from harness.settings import Settings
from weights import load_gpt2


def zero_shot(settings: Settings, words: str = "") -> Path:
    """Decode and score the test tables; returns the folder, with the files that a trained and evaluated run has.

    settings    resolved: model, data, decoding, device, out. Its mode must be "finetune", which puts nothing in front
    """
    folder = Path(settings.out)
    tokenizer = load_tokenizer(settings.model)
    groups = group_references(load_split(settings.data, "test"))
    given = [f"{words} {source}".strip() for source in groups]
    model = load_gpt2(settings.model, settings.weights).requires_grad_(False).eval()
    settings.engine.to_device_and_freeze(model)
    check_context(settings, model, given, tokenizer)
    n_weights = sum(p.numel() for p in model.parameters())
    print(f"untuned {settings.model}, {words or 'nothing'!r} in front: {len(given)} tables", flush=True)
    began = time.monotonic()
    outputs = decode_with(settings.engine, model, tokenizer, given, **settings.search, show=True)
    seconds = time.monotonic() - began
    with write_atomic(folder / "outputs.txt") as file:
        file.writelines(text + "\n" for text in outputs)
    write_json(folder / "scores.json", metrics.score(outputs, list(groups.values())))
    write_json(folder / "summary.json", {
        "parameters": {"gpt2": n_weights, "trained": 0, "stored": 0}, "bytes_on_disk": 0, "steps": 0,
        "training_examples": 0, "training_seconds": 0.0, "validation_seconds": 0.0, "machine": describe_machine(settings.device, settings.dtype),
    })  # fmt: skip
    write_json(folder / "evaluation.json", {
        "tables": len(outputs), **settings.search, "decoding_seconds": round(seconds, 1),
        "signature": metrics.signature(),
    })  # fmt: skip
    return folder
