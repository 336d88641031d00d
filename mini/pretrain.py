"""How GPT-2 mini was made: a vocabulary, then a model, from text.

    python mini/pretrain.py --corpus FOLDER --out runs/pretrain

FOLDER holds dialogue.txt, books.txt, expository.txt and structured.txt (or some of them; .txt.gz too), documents divided by
lines `<|endoftext|>`. The objective is a language model's, over rows t_1 .. t_T+1 of the mixture in corpus.py:

    min over all weights of   - mean_i log p(t_i+1 | t_1 .. t_i)

The matrices inside the layers are updated by Muon (Jordan et al. 2024: a step whose singular values are all alike; at
equal steps the loss was lower than AdamW's), everything else by AdamW. The learning rate rises for 100 steps, stays,
and falls linearly to 0 over the last part of the run. So a run can be made longer (--resume with more --steps) until
it has begun to fall.

The run can be killed at any moment: --resume goes on from the last checkpoint with the rows it would have read. From the
start on the folder holds vocab.bpe, encoder.json, config.json and model.safetensors (fp16), which `--model FOLDER` takes,
and log.csv; at the end held_out.json, the perplexity on text that was not trained on.
"""

import argparse
import json
import math
import random
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that this project's modules are found, wherever it is called from

from e2e_data import load_tokenizer
from files import InputError, exit_on_input_error, write_whole
from gpt2 import GPT2, GPT2Config
from mini.corpus import KINDS, Mixture, Prose, Tables, find_documents, read_documents
from mini.tokenizer import train_bpe, write_vocabulary
from runs import CsvLog, write_json
from settings import autocast, pick_device, pick_dtype
from train import StopSignal, hours
from weights import write_safetensors


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line. The defaults made the model beside this file."""
    parser = argparse.ArgumentParser(allow_abbrev=False, description="Pretrain a small GPT-2, vocabulary included.")
    add = parser.add_argument
    add("--corpus", type=Path, required=True, help=f"folder with {', '.join(f'{kind}.txt' for kind in KINDS)} (or .txt.gz)")
    add("--out", type=Path, required=True, help="folder for the model and all that --resume needs")
    add("--resume", action="store_true", help="go on with the run in --out")
    for name, default in (("n_layer", 6), ("n_head", 4), ("n_embd", 256), ("n_positions", 256)):
        add(f"--{name}", type=int, default=default, help=f"of the model (default: {default})")
    add("--vocab_size", type=int, default=4096, help="256 bytes, the merges, and the end token (default: 4096)")
    add("--vocab_chars", type=int, default=10_000_000, help="characters of each kind that the vocabulary is trained on (default: 10 million)")
    add("--shares", type=float, nargs=4, default=(0.25, 0.15, 0.2, 0.4), metavar="S", help=f"of {', '.join(KINDS)} (default: .25 .15 .2 .4)")
    add("--steps", type=int, default=STEPS, help=f"updates (default: {STEPS})")
    add("--rows", type=int, default=16, help="rows of n_positions tokens an update (default: 16)")
    add("--lr", type=float, default=8e-3, help="learning rate of both optimisers (default: 8e-3)")
    add("--falling", type=float, default=0.3, help="the last part of the run, in which the learning rate falls to 0 (default: 0.3)")
    add("--weight_decay", type=float, default=0.05, help="of the layers' matrices (default: 0.05)")
    add("--seed", type=int, default=1)
    add("--device", default="auto", help="cpu, cuda (auto: cuda where there is one)")
    add("--dtype", default="auto", choices=("auto", "bf16", "fp32"))
    add("--compile", action="store_true", help="compile the model: a third faster, needs a C++ compiler")
    add("--every", type=int, default=500, help="steps between checkpoints, with held-out perplexities (default: 500)")
    args = parser.parse_args(argv)
    args.device = pick_device(args.device)
    args.dtype = pick_dtype(args.dtype, args.device)
    return args


STEPS = 12_000


# ----------------------------------------------------------------------------- what it reads


def make_vocabulary(args: argparse.Namespace, training: dict[str, list[str]]) -> None:
    """Train the vocabulary on equally much of each kind of text, unless it stands in the folder already."""
    if (args.out / "encoder.json").exists():
        return
    texts = []
    for documents in training.values():
        n = 0
        for text in random.Random(args.seed).sample(documents, len(documents)):
            texts.append(text)
            n += len(text)
            if n > args.vocab_chars:
                break
    try:
        write_vocabulary(args.out, train_bpe(texts, args.vocab_size - 257))
    except ValueError as error:
        raise InputError(f"--vocab_size {args.vocab_size}: {error}") from None
    print(f"vocabulary of {args.vocab_size} tokens, trained on {sum(map(len, texts)):,} characters", flush=True)


def prepare(args: argparse.Namespace) -> tuple[Mixture, dict[str, tuple[torch.Tensor, int]]]:
    """The mixture to train on, and of each kind the held-out rows [N, T + 1] and the bytes that they stand for."""
    kinds = [kind for kind in KINDS if find_documents(args.corpus, kind)]
    if not kinds:
        raise InputError(f"{args.corpus} holds none of {', '.join(f'{kind}.txt' for kind in KINDS)} (or .txt.gz)")
    documents = {kind: read_documents(args.corpus, kind) for kind in kinds}
    training = {kind: both[0] for kind, both in documents.items()}
    make_vocabulary(args, training)
    tokenizer = load_tokenizer(str(args.out))
    sources, held_out = {}, {}
    for kind in kinds:
        if kind == "structured":
            names = [text for other in ("books", "expository") for text in training.get(other, [])[:1500]]
            sources[kind] = Tables(training[kind], tokenizer, names)
        else:
            sources[kind] = Prose(training[kind], tokenizer, args.seed)
        tokens = Prose(documents[kind][1], tokenizer, args.seed, divide=0).tokens  # told as they stand
        if len(tokens) <= args.n_positions:
            raise InputError(f"{args.corpus}: {kind} has too little text: its held-out hundredth does not fill a row")
        rows = torch.from_numpy(tokens.astype("int64")).unfold(0, args.n_positions + 1, args.n_positions)  # neighbours share a token
        n_bytes = len(tokenizer.decode_bytes(rows[:, 1:].flatten().tolist()))
        held_out[kind] = rows, n_bytes
    shares = {kind: share for kind, share in zip(KINDS, args.shares) if kind in sources}
    return Mixture(sources, shares, args.seed), held_out


# ----------------------------------------------------------------------------- training


def loss_of(model: GPT2, rows: torch.Tensor) -> torch.Tensor:
    """Mean - log p of each token given those before it, in nats; rows [B, T + 1]."""
    logits = model(rows[:, :-1])  # [B, T, V]
    return F.cross_entropy(logits.float().flatten(0, 1), rows[:, 1:].flatten())


def make_optimizers(model: GPT2, args: argparse.Namespace) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices; AdamW for embeddings, biases and LayerNorms, which do not decay."""
    is_matrix = {name: p.dim() == 2 and name.startswith("h.") for name, p in model.named_parameters()}
    matrices, others = ([p for name, p in model.named_parameters() if is_matrix[name] is wanted] for wanted in (True, False))
    return [
        torch.optim.Muon(matrices, lr=args.lr, weight_decay=args.weight_decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=args.lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
    ]


def learning_rate(args: argparse.Namespace, step: int) -> float:
    """Of update `step` (0 is the first): rises over 100 steps, stays, falls linearly to 0."""
    return args.lr * min(1.0, (step + 1) / 100, (args.steps - step) / max(1.0, args.falling * args.steps))


@torch.no_grad()
def held_out_loss(model: GPT2, rows: torch.Tensor, args: argparse.Namespace, most: int | None = None) -> float:
    """Mean - log p a token in nats, on all rows, or on `most` of them taken evenly."""
    if most is not None and len(rows) > most:
        rows = rows[torch.linspace(0, len(rows) - 1, most).long()]
    total = 0.0
    for piece in rows.split(16):
        with autocast(args):
            total += loss_of(model, piece.to(args.device)).item() * len(piece)
    return total / len(rows)


def export(model: GPT2, args: argparse.Namespace) -> None:
    """The files beside the vocabulary that `--model FOLDER` takes; weights in fp16, half the bytes."""
    tensors = {key: tensor.half() for key, tensor in model.state_dict().items()}
    write_safetensors(args.out / "model.safetensors", tensors, {})


def open_folder(args: argparse.Namespace) -> dict | None:
    """Make the run's folder, or read the checkpoint in it (None: begin)."""
    checkpoint = args.out / "checkpoint.pt"
    if checkpoint.exists() and not args.resume:
        raise InputError(f"{args.out} holds a run already: go on with it (--resume), or choose another --out")
    shape = {name: getattr(args, name) for name in ("n_layer", "n_head", "n_embd", "n_positions", "vocab_size")}
    if not checkpoint.exists():
        args.out.mkdir(parents=True, exist_ok=True)
        write_json(args.out / "config.json", {"model_type": "gpt2"} | shape)
        return None
    try:
        state = torch.load(checkpoint, map_location=args.device, weights_only=True)
        if state["shape"] != shape | {"seed": args.seed, "rows": args.rows}:
            raise InputError(f"{args.out} was begun with {state['shape']}: give the same flags to resume it, or choose another --out")
        return state
    except (RuntimeError, KeyError, EOFError, OSError) as error:
        raise InputError(f"{checkpoint} is damaged ({type(error).__name__}): delete it to begin again") from None


@exit_on_input_error
def main(argv: list[str] | None = None) -> None:
    """The command line: read, train, export."""
    args = parse_args(argv)
    state = open_folder(args)
    mixture, held_out = prepare(args)
    model = GPT2(GPT2Config(args.n_layer, args.n_head, args.n_embd, args.n_positions, args.vocab_size))
    model.init_weights(args.seed).to(args.device)
    optimizers = make_optimizers(model, args)
    n, seconds = 0, 0.0  # steps done, and seconds spent on them
    if state is not None:
        model.load_state_dict(state["model"])
        for optimizer, its in zip(optimizers, state["optimizers"]):
            optimizer.load_state_dict(its)
        n, seconds = state["n"], state["seconds"]
        print(f"resuming at step {n} of {args.steps}", flush=True)
    size = sum(p.numel() for p in model.parameters())
    print(f"{size:,} weights, {args.steps:,} steps of {args.rows} x {args.n_positions} tokens, {args.dtype} on {args.device}", flush=True)

    compiled = loss_of
    if args.compile:
        from torch._inductor import config as inductor

        inductor.pattern_matcher = False  # it would replace our attention by a kernel whose backward pass is slow on CPUs
        compiled = torch.compile(loss_of, dynamic=False)
    log = CsvLog(args.out / "log.csv", ("step", "tokens", "seconds", "lr", "loss", *held_out), n)
    total, began = torch.zeros((), device=args.device), time.monotonic()
    with StopSignal() as stop:
        while n < args.steps and not stop.asked:
            lr = learning_rate(args, n)
            with autocast(args):
                loss = compiled(model, mixture.batch(n, args.rows, args.n_positions + 1).to(args.device))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = lr
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            total += loss.detach()
            n += 1
            if n % args.every and n < args.steps and not stop.asked:
                continue
            mean = total.item() / ((n - 1) % args.every + 1)
            if not math.isfinite(mean):
                raise InputError(f"the loss is {mean} before step {n}: lower --lr, and go on from the last checkpoint with --resume")
            seconds += time.monotonic() - began
            losses = {kind: held_out_loss(model, rows, args, most=64) for kind, (rows, _) in held_out.items()}
            log.add(n, n * args.rows * args.n_positions, f"{seconds:.0f}", f"{lr:.2e}", f"{mean:.4f}", *(f"{loss:.4f}" for loss in losses.values()))
            print(f"step {n}/{args.steps}  {hours(seconds)}  loss {mean:.4f}  held out: "
                  + "  ".join(f"{kind} {loss:.3f}" for kind, loss in losses.items()), flush=True)  # fmt: skip
            shape = {name: getattr(args, name) for name in ("n_layer", "n_head", "n_embd", "n_positions", "vocab_size", "seed", "rows")}
            with write_whole(args.out / "checkpoint.pt", "wb") as file:
                torch.save({"model": model.state_dict(), "optimizers": [o.state_dict() for o in optimizers], "n": n,
                            "seconds": seconds, "shape": shape}, file)  # fmt: skip
            export(model, args)
            total, began = torch.zeros_like(total), time.monotonic()
    if n < args.steps:
        print("stopped; the same command with --resume goes on", file=sys.stderr)
        sys.exit(130)
    report = {}
    for kind, (rows, n_bytes) in held_out.items():
        loss = held_out_loss(model, rows, args)  # in nats a token
        bits = loss * rows[:, 1:].numel() / n_bytes / math.log(2)
        report[kind] = {"tokens": rows[:, 1:].numel(), "perplexity": round(math.exp(loss), 2), "bits_per_byte": round(bits, 3)}
    write_json(args.out / "held_out.json", report)
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
