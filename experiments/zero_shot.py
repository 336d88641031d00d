"""Zero-shot: the untuned model on the test tables, without training.

The input is that of a tuned model, with or without words in front:

    " " + words + " " + table + " <|endoftext|>"

Words in front are a prefix that was written instead of learned: the model computes their keys and values in each layer,
and every later token attends to them (`Prefix.words_as_rows` returns exactly these activations). To the model the
separator marks the end of a document, so without tuning it rarely continues about the table. Another layout ("table
... In words: ...") would suit it better, but would measure the layout.
"""

import time
from pathlib import Path

import metrics
from e2e_data import group_references, load_split
from evaluate import decode_with
from harness.files import write_atomic
from harness.machine import describe_machine
from harness.runs import check_context, write_json
from harness.settings import Settings
from harness.tokenizers import load_tokenizer
from weights import load_model


def zero_shot(settings: Settings, words: str = "") -> Path:
    """Decode and score the test tables; returns the folder, with the files of a trained and evaluated run.

    settings    resolved: model, data, decoding, device, out. The mode must be "finetune", which has no prefix
    """
    settings = settings.for_decoding()
    folder = Path(settings.out)
    tokenizer = load_tokenizer(settings.model, settings.weights)
    groups = group_references(load_split(settings.data, "test"))
    given = [f"{words} {source}".strip() for source in groups]
    model = load_model(settings.model, settings.weights).requires_grad_(False).eval()
    settings.engine.to_device_and_freeze(model)
    check_context(model.config, tokenizer, given, None, settings.beam_size, settings.max_new_tokens)
    n_weights = sum(p.numel() for p in model.parameters())
    print(f"untuned {settings.model}, {words or 'nothing'!r} in front: {len(given)} tables", flush=True)
    began = time.monotonic()
    outputs = decode_with(settings.engine, model, tokenizer, given, **settings.search, show=True)
    seconds = time.monotonic() - began
    with write_atomic(folder / "outputs.txt") as file:
        file.writelines(text + "\n" for text in outputs)
    write_json(folder / "scores.json", metrics.score(outputs, list(groups.values()), details=True))
    summary = {"parameters": {"model": n_weights, "trained": 0, "stored": 0}}
    summary |= dict.fromkeys(("bytes_on_disk", "steps", "training_examples"), 0)
    summary |= dict.fromkeys(("training_seconds", "validation_seconds"), 0.0)
    machine = describe_machine(settings.device, settings.dtype)
    write_json(folder / "summary.json", summary | {"machine": machine})
    evaluation = {"tables": len(outputs), **settings.search, "decoding_seconds": round(seconds, 1), "machine": machine}
    signature = metrics.signature(references=list(groups.values()))
    write_json(folder / "evaluation.json", evaluation | {"signature": signature})
    return folder
