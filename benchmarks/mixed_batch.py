"""What it costs to decode a batch that mixes tasks (tasks.py), beside the same rows of one task.

    python benchmarks/mixed_batch.py

A shelf holds two prefixes, of 5 and of 20 positions. A batch of the sample tables is decoded as one task (all rows call
the shorter prefix, all call the longer), as plain GPT-2, and mixed: a third of the rows each. All texts have the same
length, because the end token is banned, and the four take turns in each round. The ratio is the mixed batch's time over
the mean of the times of the three batches that are not mixed. Prints a table and writes results/mixed_batch.json.
"""

import argparse
import time
from pathlib import Path
from statistics import fmean, median

import torch
from contenders import ROOT, describe, show_head
from beam import NextWords, beam_search
from e2e_data import group_references, load_split
from harness.files import InputError, exit_on_input_error
from harness.machine import pick_dtype
from harness.runs import write_json
from harness.settings import Settings
from harness.tokenizers import load_tokenizer
from prefix import Prefix
from tasks import Shelf
from weights import load_gpt2

LENGTHS = {"short": 5, "long": 20}
KINDS = {
    "one task, P = 5": ("short",),
    "one task, P = 20": ("long",),
    "no task": (None,),
    "mixed": ("short", "long", None),
}


@exit_on_input_error
def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(allow_abbrev=False, description="Time a batch that mixes tasks.")
    parser.add_argument("--model", default="mini", help="as for train.py (default: mini)")
    parser.add_argument("--weights", help="as for train.py; random: untrained weights")
    parser.add_argument("--rows", type=int, default=63, help="requests in the batch (default: 63)")
    parser.add_argument("--new_tokens", type=int, default=40, help="tokens of each text (default: 40)")
    parser.add_argument("--rounds", type=int, default=7, help="(default: 7)")
    parser.add_argument("--plain", action="store_true", help="on the plain path")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default=pick_dtype("auto", "cpu"))
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "mixed_batch.json")
    given = parser.parse_args()
    if min(given.rows, given.new_tokens, given.rounds) < 1:
        raise InputError("--rows, --new_tokens and --rounds must be at least 1")
    report = measure(given)
    show_head(report, f"{given.rows} rows, {given.new_tokens} tokens each, {report['path']} path")
    for kind, seconds in report["seconds"].items():
        print(f"{kind:<18} {median(seconds):.2f} s")
    low, high = min(report["ratios"]), max(report["ratios"])
    print(f"mixed over one task: {report['ratio']:.3f} (rounds {low:.3f} to {high:.3f})")
    write_json(given.out, report)


def measure(given: argparse.Namespace) -> dict:
    """Decode each kind of batch in each round, after one that is not counted."""
    settings = Settings(
        model=given.model, weights=given.weights, device="cpu", dtype=given.dtype, plain=given.plain
    ).resolve()
    model, tokenizer = load_gpt2(settings.model, settings.weights), load_tokenizer(settings.model)
    torch.manual_seed(0)
    shelf = Shelf(model.config, {name: Prefix(model.config, P, 0) for name, P in LENGTHS.items()})
    engine = settings.engine
    engine.ready_to_decode(engine.to_device_and_freeze(model, shelf.requires_grad_(False)).eval())
    tables = list(group_references(load_split("mini", "test")))[: given.rows]
    if len(tables) < given.rows:
        raise InputError(f"--rows {given.rows}: there are only {len(tables)} tables")
    search = engine.in_precision(beam_search)
    seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for n in range(given.rounds + 1):
        for kind, names in KINDS.items():
            calls = [names[i % len(names)] for i in range(given.rows)]
            requests = [table if name is None else f"<|{name}|> {table}" for name, table in zip(calls, tables)]
            prompts = [shelf.encode_prompt(tokenizer, request) for request in requests]
            began = time.perf_counter()
            search(
                model, prompts, tokenizer.eot_token, 5, given.new_tokens, banned=(tokenizer.eot_token,),
                next_words=engine.choose(NextWords), prompt_len=shelf.prompt_len,
            )  # fmt: skip
            if n:
                seconds[kind].append(time.perf_counter() - began)
    alone = [fmean(times) for times in zip(*(seconds[kind] for kind in KINDS if kind != "mixed"))]
    ratios = [mixed / one for mixed, one in zip(seconds["mixed"], alone)]
    return describe("mixed_batch.py", settings, "mini") | {
        "path": "plain" if given.plain else "fast", "rows": given.rows, "new_tokens": given.new_tokens,
        "seconds": seconds, "ratios": ratios, "ratio": median(ratios),
    }  # fmt: skip


if __name__ == "__main__":
    main()
