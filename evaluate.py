"""Evaluation: decode the test tables, score the sentences, print the table.

    python evaluate.py --run runs/gpt2-prefix5            decode a run's test set with beam search and score it
    python evaluate.py --hyp outputs.txt --ref src1_test.txt      score any outputs against any references

Each distinct table is decoded once and scored against all of its reference sentences. Before scoring, as in the
paper's evaluation, nothing is done to the text but stripping the spaces at its ends.
"""

import argparse
import sys
import time
from pathlib import Path

import tiktoken

import metrics
from beam import beam_search
from e2e_data import encode_prompt, find_split, group_references, load_split, load_tokenizer
from files import InputError, exit_on_input_error, write_whole
from gpt2 import GPT2
from metrics import read
from runs import check_room, load_run, write_json
from settings import Settings, add_flags, autocast, describe_machine

# What others report on E2E's test set, on the paper's tokenised references. The paper's NIST comes from
# the scorer's Python variant, the poster's from the Perl one (metrics/nist.py).
PUBLISHED = {
    "GPT-2 medium, fine-tune (Li & Liang 2021)": {"BLEU": 68.8, "NIST": 8.71, "METEOR": 46.1, "ROUGE_L": 71.1, "CIDEr": 2.43},
    "GPT-2 medium, prefix 0.1 % (Li & Liang 2021)": {"BLEU": 70.3, "NIST": 8.82, "METEOR": 46.3, "ROUGE_L": 72.1, "CIDEr": 2.46},
    "GPT-2 large, prefix (Li & Liang 2021)": {"BLEU": 70.3, "NIST": 8.85, "METEOR": 46.2, "ROUGE_L": 71.7, "CIDEr": 2.47},
    "best before it (Shen et al. 2019)": {"BLEU": 68.6, "NIST": 8.70, "METEOR": 45.3, "ROUGE_L": 70.8, "CIDEr": 2.37},
    "poster, prefix 0.1 %": {"BLEU": 68.5, "NIST_perl": 8.71, "METEOR": 44.3, "ROUGE_L": 70.4, "CIDEr": 2.34},
    "poster, fine-tune": {"BLEU": 70.3, "NIST_perl": 8.94, "METEOR": 46.2, "ROUGE_L": 72.2, "CIDEr": 2.47},
}
COLUMNS = ("BLEU", "NIST", "NIST_perl", "METEOR", "ROUGE_L", "CIDEr")
PERCENT = ("BLEU", "METEOR", "ROUGE_L")  # papers print these times 100


# ----------------------------------------------------------------------------- decoding


def newline_tokens(tokenizer: tiktoken.Encoding) -> tuple[int, ...]:
    """The ids of "\\n" and "\\n\\n" (198 and 628 in GPT-2), which the paper never lets a text contain."""
    ids = (tokenizer.encode_ordinary(text) for text in ("\n", "\n\n"))
    return tuple(i[0] for i in ids if len(i) == 1)


def decode_ids(tokenizer: tiktoken.Encoding, ids: list[int]) -> str:
    """Generated ids as one line of text. Bytes that are not UTF-8 become U+FFFD."""
    return " ".join(tokenizer.decode(ids).split())


def decode(model: GPT2, tokenizer: tiktoken.Encoding, sources: list[str], settings: Settings, batch_size: int = 32) -> list[str]:
    """A sentence for each source, in the sources' order, by beam search in batches of similar length."""
    prompts = [encode_prompt(tokenizer, source) for source in sources]
    banned, end = newline_tokens(tokenizer), tokenizer.eot_token
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    texts = [""] * len(prompts)
    began = time.monotonic()
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        with autocast(settings):
            found = beam_search(model, [prompts[i] for i in batch], end, settings.beam_size, settings.max_new_tokens,
                                settings.length_norm, banned)  # fmt: skip
        for i, ids in zip(batch, found):
            texts[i] = decode_ids(tokenizer, ids)
        if sys.stderr.isatty():
            done = start + len(batch)
            left = (time.monotonic() - began) / done * (len(order) - done)
            print(f"\rdecoded {done}/{len(order)} tables, {left:.0f} s left ", end="\n" if done == len(order) else "", file=sys.stderr)
    return texts


# ----------------------------------------------------------------------------- scoring


def evaluate_run(folder: str | Path, batch_size: int = 32, split: str = "test", **changes) -> dict[str, float]:
    """Decode and score a finished run: writes outputs.txt, scores.json and evaluation.json into its folder.

    split    "test", or "valid" (the files are then called outputs-valid.txt and so on)
    changes  settings to decode with in place of the run's own, e.g. length_norm="none"
    Returns the scores in the reference scorer's scale.
    """
    folder = Path(folder)
    settings, model = load_run(folder, **changes)
    tokenizer = load_tokenizer(settings.model)
    groups = group_references(load_split(settings.data, split))
    check_room(settings, model, list(groups), tokenizer)
    began = time.monotonic()
    outputs = decode(model, tokenizer, list(groups), settings, batch_size)
    seconds = time.monotonic() - began
    ending = "" if split == "test" else f"-{split}"
    with write_whole(folder / f"outputs{ending}.txt") as file:
        file.writelines(text + "\n" for text in outputs)
    scores = metrics.score(outputs, list(groups.values()))
    references = "the paper's tokenised files" if settings.data is None else str(find_split(Path(settings.data), split))
    write_json(folder / f"scores{ending}.json", scores)
    write_json(folder / f"evaluation{ending}.json", {
        "tables": len(outputs), "references": references, "beam_size": settings.beam_size, "length_norm": settings.length_norm,
        "max_new_tokens": settings.max_new_tokens, "batch_size": batch_size, "decoding_seconds": round(seconds, 1),
        "machine": describe_machine(settings), "signature": metrics.signature(),
    })  # fmt: skip
    print(f"{len(outputs)} tables decoded in {seconds:.0f} s (beam {settings.beam_size}, length_norm {settings.length_norm})")
    print_table({f"this run: {folder.name}": scores}, references)
    for (source, targets), output in list(zip(groups.items(), outputs))[:3]:
        print(f"\n  table      {source}\n  reference  {targets[0]}\n  output     {output}")
    return scores


def score_files(hyp: Path, ref: Path, src: Path | None = None, segments: Path | None = None) -> dict[str, float]:
    """Score outputs against references, in any of the forms of metrics/read.py.

    Writes scores.json beside the outputs and, when asked, a table with a line for each output to `segments`.
    """
    if segments is not None and segments.resolve() in [path.resolve() for path in (hyp, ref, src) if path is not None]:
        raise InputError(f"--segments {segments} would overwrite what is read: choose another file")
    data = read.load(hyp, ref, src)
    result = metrics.score(data.hypotheses, data.references, per_segment=True)
    write_json(Path(hyp).parent / "scores.json", result["corpus"])
    if segments is not None:
        columns = list(result["segments"][0])
        with write_whole(segments) as file:
            file.write("\t".join(["segment", *columns, "source", "output"]) + "\n")
            for number, (row, source, output) in enumerate(zip(result["segments"], data.sources, data.hypotheses), start=1):
                texts = (" ".join(text.split()) for text in (source, output))  # no tab or line end inside a cell
                file.write("\t".join([str(number), *(repr(float(row[column])) for column in columns), *texts]) + "\n")
    print_table({Path(hyp).name: result["corpus"]}, str(ref))
    return result["corpus"]


def print_table(rows: dict[str, dict[str, float]], references: str) -> None:
    """Our rows above the published ones; a score that could not be computed is a dash, with the reason below."""
    width = max(len(name) for name in (*rows, *PUBLISHED))
    print("\n" + " " * width + "".join(f"{column:>11}" for column in COLUMNS))
    for name, scores in rows.items():
        scaled = {key: 100 * value if key in PERCENT else value for key, value in scores.items()}
        print(format_row(name, scaled, width, digits=2))
    for name, scores in PUBLISHED.items():
        print(format_row(name, scores, width, digits=None))
    print(f"\nreferences: {references}; the published rows: E2E's test set, the paper's tokenised references")
    print(f"signature: {metrics.signature()}")
    for name, reason in metrics.unavailable().items():
        print(f"{name} is not available: {reason}")


def format_row(name: str, scores: dict[str, float], width: int, digits: int | None) -> str:
    """One line of the table; published numbers are printed with the digits they have."""
    cells = []
    for column in COLUMNS:
        value = scores.get(column)
        places = digits if digits is not None else (1 if column in PERCENT else 2)
        cells.append(f"{'-':>11}" if value is None else f"{value:>11.{places}f}")
    return f"{name:<{width}}" + "".join(cells)


@exit_on_input_error
def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Decode and score a run, or score outputs against references.")
    parser.add_argument("--run", help="a folder that train.py wrote: decode its test set and score it")
    parser.add_argument("--split", default="test", choices=("test", "valid"), help="with --run: what to decode (default: test)")
    parser.add_argument("--batch_size", type=int, default=32, help="with --run: tables decoded at a time (default: 32)")
    parser.add_argument("--hyp", help="outputs to score: one a line, or CSV or TSV")
    parser.add_argument("--ref", help="their references: blocks between blank lines, one a line, source||target, or CSV or TSV")
    parser.add_argument("--src", help="with --hyp: the sources, one a line, to check that outputs and references belong together")
    parser.add_argument("--segments", help="with --hyp: write each output's own scores to this TSV file")
    add_flags(parser, ("beam_size", "length_norm", "max_new_tokens", "device", "dtype", "data"))
    flags = vars(parser.parse_args(argv))
    run, split, batch_size, hyp, ref, src, segments = (
        flags.pop(name) for name in ("run", "split", "batch_size", "hyp", "ref", "src", "segments")
    )
    if batch_size < 1:
        raise InputError(f"--batch_size {batch_size}: must be at least 1")
    if run and not (hyp or ref):
        evaluate_run(run, batch_size, split, **flags)
    elif hyp and ref and not run:
        score_files(Path(hyp), Path(ref), src and Path(src), segments and Path(segments))
    else:
        raise InputError("give either --run FOLDER, or --hyp FILE and --ref FILE")


if __name__ == "__main__":
    main()
