"""Decoding speed: this project against `transformers.generate`, in batches and one sentence at a time, in the same run.

    python benchmarks/decoding.py                    some of 630 tables with the lengths of E2E's test set, beam 5
    python benchmarks/decoding.py --dtype fp32       in single precision
    python benchmarks/decoding.py --scaling          also how cost grows with beam_size and batch_size
    python benchmarks/decoding.py --long             all 630 tables in each round
    python benchmarks/decoding.py --batch_size 16    in smaller batches
    python benchmarks/decoding.py --peer_batch_size 16    each side in batches that suit it
    python benchmarks/decoding.py --modes finetune lora --alone    what a merged LoRA costs: nothing

Ours is `beam.beam_search` on a finished run, as evaluate.py loads it. The peer is generate(num_beams=5) of
GPT2LMHeadModel (LlamaForCausalLM for smollm2), with a prefix inside peft's PrefixTuningConfig, prompts padded on the
left with an attention mask, the whole model in bf16 (which is faster than autocast).

Equal on both sides: the weights (random: with forced length, speed does not depend on them), the prompts, in batches of
64 as in evaluate.py (or --batch_size), in order of length, beam 5, and exactly 30 new tokens for each (ours bans the
end token, the peer has min_new_tokens), about as many as E2E's sentences have. Hence in fp32 the texts are equal too;
the number of equal texts is printed. Larger batches make ours faster and the peer slower: --peer_batch_size gives each
side the size that suits it.

Different: in bf16 ours computes the logits of the best words in fp32, because beams would tie (fast/prepacked.py); the
peer rounds them all. Ours has the settings of the whole process that evaluate.py has: freed memory is kept in large
pages (fast/memory.py), denormal numbers count as zero (fast/denormals.py). The peer has the defaults.

The paper's code decodes one sentence at a time, in fp32. Both sides are also measured like this, with batches of one.

Each contender is a process of its own, and they decode in turn. Each round decodes the same tables again; decoding one
at a time gets fewer (`--single`), drawn evenly over the lengths. Memory is the peak of the whole process while
decoding, libraries included (on a GPU: of tensors). Best run on an otherwise idle machine. Prints tables and the
ratios, and writes every round to results/decoding.json.
"""

import argparse
import dataclasses
import statistics
import tempfile
from pathlib import Path

import torch

from contenders import (
    NAMED,
    ROOT,
    Contender,
    check_peers,
    describe,
    peft_prefix,
    prompts_like_e2e,
    show_contenders,
    show_growth,
    show_head,
    show_ratios,
    spread,
    transformers_twin,
    weights_of,
)  # the first import of all: it makes the project's own files importable

from beam import NextWords, beam_search
from e2e_data import encode_prompt, group_references, load_split
from harness.door import prepare_process
from harness.files import InputError, exit_on_input_error
from harness.runs import load_run, save_learned, start_model, trained_file, write_json
from harness.settings import Settings
from harness.tokenizers import load_tokenizer
from prefix import load_prefix
from weights import load_config

TABLES = 630  # E2E's test set
BEAM_SIZES, BATCH_SIZES = (1, 2, 3, 5, 10), (1, 4, 16, 32, 64)


@exit_on_input_error
def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(allow_abbrev=False, description="Compare beam search with transformers.generate.")
    parser.add_argument(
        "--model", default="gpt2", help=f"{', '.join(NAMED)}, with random weights, or a folder (default: gpt2)"
    )
    parser.add_argument(
        "--modes",
        nargs="+",
        default=["finetune", "prefix"],
        choices=("finetune", "prefix", "lora"),
        help="a model without a prefix, with one of 5, with a LoRA merged into it (default: finetune prefix)",
    )
    parser.add_argument(
        "--dtype", default="auto", choices=("auto", "bf16", "fp32"), help="(default: bf16 if the hardware has it)"
    )
    parser.add_argument("--device", default="auto", help="cpu, cuda (default: cuda if present)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each contender (default: 3)")
    parser.add_argument("--sentences", type=int, help="tables a round (default: a batch, and at least 32)")
    parser.add_argument("--single", type=int, help="tables a round one at a time; 0: skip this (default: 4)")
    parser.add_argument("--long", action="store_true", help=f"all {TABLES} tables a round, 32 of them one at a time")
    parser.add_argument("--beam_size", type=int, default=5, help="(default: 5)")
    parser.add_argument("--batch_size", type=int, default=64, help="tables at a time (default: 64)")
    parser.add_argument("--peer_batch_size", type=int, help="the peer's (default: the same)")
    parser.add_argument("--new_tokens", type=int, default=30, help="tokens of each text (default: 30)")
    parser.add_argument("--data", help="a folder with E2E's files (default: random tokens of the same lengths)")
    parser.add_argument("--alone", action="store_true", help="without the peer")
    parser.add_argument("--scaling", action="store_true", help="also measure how cost grows (ours, with a prefix)")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "results" / "decoding.json", help="(default: results/decoding.json)"
    )
    given = parser.parse_args()
    given.sentences = (
        given.sentences if given.sentences is not None else (TABLES if given.long else max(32, given.batch_size))
    )
    given.single = given.single if given.single is not None else (32 if given.long else 4)
    given.peer_batch_size = given.peer_batch_size if given.peer_batch_size is not None else given.batch_size
    counts = ("rounds", "sentences", "beam_size", "batch_size", "peer_batch_size", "new_tokens")
    if min(getattr(given, name) for name in counts) < 1 or given.single < 0:
        raise InputError(f"{', '.join(f'--{name}' for name in counts)} must be at least 1, --single at least 0")
    if not given.alone:
        check_peers()

    settings = {
        mode: settings_of(given, mode)
        for mode in {**dict.fromkeys(given.modes), **({"prefix": None} if given.scaling else {})}
    }
    first = settings[given.modes[0]]
    prompts = make_prompts(given, first)
    given.sentences = min(given.sentences, len(prompts))
    report = describe("decoding.py", first, given.data)
    report |= {name: getattr(given, name) for name in ("rounds", "sentences", "single", *counts[2:])}
    show_head(
        report,
        f"beam {given.beam_size}, {given.new_tokens} new tokens, {given.rounds} rounds of {given.sentences} tables,"
        " in turn",
    )
    with tempfile.TemporaryDirectory() as folder:
        runs = {mode: make_run(Path(folder) / mode, s) for mode, s in settings.items()}
        report["contenders"], texts = take_turns(runs, first, prompts, given)
        report["ratios"] = ratios(report["contenders"], given.modes[0])
        report["same_texts"] = same_texts(texts)
        show_contenders(report, "sentences/s")
        show_ratios(report)
        for name, (same, n) in report["same_texts"].items():
            print(f"{name}: ours and the peer's texts are equal, token by token, for {same} of {n} tables")
        if given.scaling:
            report["growth"] = growth(runs["prefix"], first, prompts, given)
            show_growth(report, "sentences/s")
    write_json(given.out, report)


def settings_of(given, mode: str) -> Settings:
    """A run's settings."""
    return Settings(
        mode=mode, model=given.model, weights=weights_of(given.model), device=given.device, dtype=given.dtype
    ).resolve()


def make_run(folder: Path, settings: Settings) -> Path:
    """Write a run's folder as train.py leaves it, but with an untrained model. Returns the folder."""
    model, prefix = start_model(dataclasses.replace(settings, device="cpu", dtype="fp32"))
    write_json(folder / "settings.json", dataclasses.asdict(settings))
    write_json(folder / "summary.json", {})
    path = trained_file(folder, settings.finetunes, settings.adapts)
    save_learned(model, prefix, path, settings.mode, settings.model)
    return folder


def make_prompts(given, settings: Settings) -> list[list[int]]:
    """The prompts of all tables, the shortest first."""
    config = load_config(settings.model)
    if given.data:
        tokenizer = load_tokenizer(settings.model)
        prompts = [encode_prompt(tokenizer, source) for source in group_references(load_split(given.data, "test"))]
    else:
        prompts = prompts_like_e2e(TABLES, config.vocab_size)
    if max(map(len, prompts)) + given.new_tokens + 5 > config.n_positions:
        raise InputError(
            f"{settings.model} has {config.n_positions} positions, too few for prompt, text and prefix:"
            " lower --new_tokens"
        )
    return sorted(prompts, key=len)


def in_batches(prompts: list[list[int]], n: int, batch_size: int) -> list[list[list[int]]]:
    """n of the prompts, drawn evenly over the lengths, in batches."""
    n = min(n, len(prompts))
    few = [prompts[i * len(prompts) // n] for i in range(n)]
    return [few[start : start + batch_size] for start in range(0, n, batch_size)]


# ----------------------------------------------------------------------------- the contenders


class Ours:
    """Decoding as evaluate.py does it."""

    def __init__(self, run: Path, device: str, dtype: str):
        prepare_process(plain=False)
        self.settings, model = load_run(run, device=device, dtype=dtype)
        self.engine = self.settings.engine
        self.model = self.engine.ready_to_decode(model)
        self.search = self.engine.in_precision(beam_search)

    def decode(self, batches: list[list[list[int]]], beam_size: int, new_tokens: int) -> list[list[int]]:
        """A text for each prompt, as ids."""
        end = self.model.config.end_token
        found = []
        next_words = self.engine.choose(NextWords, self.model)
        for prompts in batches:
            found += self.search(self.model, prompts, end, beam_size, new_tokens, "output", (end,), next_words)
        return found


class Peer:
    """Decoding as a user of transformers and peft does it."""

    def __init__(self, run: Path, device: str, dtype: str):
        settings, model = load_run(run, device="cpu", dtype="fp32")  # for its weights
        self.model, self.device, self.end = transformers_twin(model), device, model.config.end_token
        if dtype == "bf16":
            self.model.to(torch.bfloat16)
        if settings.mode == "prefix":  # load_run has merged a LoRA
            self.model = peft_prefix(
                self.model, load_prefix(trained_file(run, settings.finetunes), model.config), mid_dim=0
            )
        # peft freezes the model. For the first logits PyTorch 2.13 then copies a frozen bf16 wte once per row of the
        # batch, which takes several times as long as all the rest. requires_grad_ avoids that: it is not decoding.
        self.model.to(device).eval().requires_grad_(True)

    def decode(self, batches: list[list[list[int]]], beam_size: int, new_tokens: int) -> list[list[int]]:
        """A text for each prompt, as ids."""
        found = []
        for prompts in batches:
            S = max(map(len, prompts))
            ids = torch.tensor([[self.end] * (S - len(prompt)) + prompt for prompt in prompts])  # [B, S]
            mask = torch.tensor([[0] * (S - len(prompt)) + [1] * len(prompt) for prompt in prompts])  # [B, S]
            rows = self.model.generate(
                input_ids=ids.to(self.device),
                attention_mask=mask.to(self.device),
                num_beams=beam_size,
                do_sample=False,
                min_new_tokens=new_tokens,
                max_new_tokens=new_tokens,
                eos_token_id=self.end,
                pad_token_id=self.end,
            )
            found += rows[:, S:].tolist()
        return found


# ----------------------------------------------------------------------------- the comparison


def take_turns(runs: dict[str, Path], settings: Settings, prompts: list[list[int]], given) -> tuple[dict, dict]:
    """Warm up on the first batch, then run the rounds. Returns (name -> figures, name -> texts)."""
    sides = {"ours": Ours} if given.alone else {"ours": Ours, "peer": Peer}
    device, dtype = settings.device, settings.dtype
    size = {"ours": given.batch_size, "peer": given.peer_batch_size}
    contenders, batches = {}, {}
    for mode in given.modes:
        for side, make in sides.items():
            name = f"{mode}, {side}"
            contenders[name] = Contender(make, runs[mode], device, dtype, device=device)
            batches[name] = in_batches(prompts, given.sentences, size[side])
    for side, make in sides.items() if given.single else ():
        name = f"{given.modes[0]}, {side}, one at a time in fp32"
        contenders[name] = Contender(make, runs[given.modes[0]], device, "fp32", device=device)
        batches[name] = in_batches(prompts, given.single, 1)

    figures = {name: {"sentences_per_s": 0.0, "every_round": [], "megabytes": 0.0} for name in contenders}
    texts = {}
    for name, contender in contenders.items():
        contender.call("decode", batches[name][:1], given.beam_size, min(2, given.new_tokens))
    for _ in range(given.rounds):
        for name, contender in contenders.items():
            measured, one = contender.call("decode", batches[name], given.beam_size, given.new_tokens), figures[name]
            texts[name] = measured["result"]
            one["every_round"].append(len(texts[name]) / measured["seconds"])
            one["megabytes"] = max(one["megabytes"], measured["megabytes"])
    for name, contender in contenders.items():
        contender.end()
        figures[name]["sentences_per_s"] = statistics.median(figures[name]["every_round"])
    return figures, texts


def ratios(figures: dict[str, dict], single: str) -> dict[str, dict]:
    """The ratios of those pairs that were measured. single: the mode that was also decoded one at a time."""
    pairs = {f"{mode}: ours / peer": (f"{mode}, ours", f"{mode}, peer") for mode in ("finetune", "prefix", "lora")}
    pairs["ours: lora, merged / finetune"] = ("lora, ours", "finetune, ours")
    for side in ("peer", "ours"):
        name = f"{side} one at a time in fp32"
        pairs[f"{single}: ours / {name}"] = (f"{single}, ours", f"{single}, {side}, one at a time in fp32")
    found = {}
    for name, (above, below) in pairs.items():
        if above in figures and below in figures:
            found[name] = spread(figures[above]["every_round"], figures[below]["every_round"])
            if "one at a time" not in name:
                found[name]["memory"] = figures[above]["megabytes"] / figures[below]["megabytes"]
    return found


def same_texts(texts: dict[str, list]) -> dict[str, tuple[int, int]]:
    """For each pair: (texts that are equal token by token, all texts)."""
    pairs = {name: name.replace("ours", "peer") for name in texts if "ours" in name}
    return {
        name.replace(", ours", ""): (sum(a == b for a, b in zip(texts[name], texts[peer])), len(texts[name]))
        for name, peer in pairs.items()
        if peer in texts
    }


# ----------------------------------------------------------------------------- growth


def growth(run: Path, settings: Settings, prompts: list[list[int]], given) -> dict[str, list[dict]]:
    """Ours with a prefix, one quantity varied at a time: quantity -> its lines, each from a process of its own."""
    values = {"beam_size": BEAM_SIZES, "batch_size": BATCH_SIZES}
    return {
        name: [{name: value, **alone(run, settings, prompts, given, **{name: value})} for value in these]
        for name, these in values.items()
    }


def alone(run: Path, settings: Settings, prompts: list[list[int]], given, **changes) -> dict:
    """Speed and memory of ours with one changed setting, on the tables of a round, or one batch of the largest size."""
    how = {"beam_size": given.beam_size, "batch_size": given.batch_size} | changes
    batches = in_batches(
        prompts, max(given.sentences, *BATCH_SIZES) if "batch_size" in changes else given.sentences, how["batch_size"]
    )
    contender = Contender(Ours, run, settings.device, settings.dtype, device=settings.device)
    contender.call("decode", batches[:1], how["beam_size"], min(2, given.new_tokens))
    measured = contender.call("decode", batches, how["beam_size"], given.new_tokens)
    contender.end()
    return {"sentences_per_s": len(measured["result"]) / measured["seconds"], "megabytes": measured["megabytes"]}


if __name__ == "__main__":
    main()
