"""Evaluation: decode the test tables with beam search, score the sentences, print the table.

    python evaluate.py --run runs/gpt2-prefix5                    decode and score a run's test set
    python evaluate.py --run runs/gpt2-prefix5 --table "name : Blue Spice | area : riverside"      one sentence
    python evaluate.py --hyp outputs.txt --ref src1_test.txt      score any outputs against any references

Each distinct table is decoded once and scored against all of its reference sentences. The generated text is unchanged
except for white space: each run becomes one space, and the ends are stripped.
"""

import argparse
import hashlib
import sys
import time
from pathlib import Path

import tiktoken

import metrics
from beam import NextWords, beam_search
from e2e_data import encode_prompt, find_split, group_references, linearise, load_split, load_tokenizer
from gpt2 import GPT2
from harness import ranks
from harness.door import Engine, set_allocator
from harness.files import InputError, exit_on_input_error, write_atomic
from harness.machine import describe_machine
from harness.runs import check_context, load_run, load_settings, to_json, write_json
from harness.settings import SEARCH, add_flags
from metrics import read

# Scores that others report on E2E's test set, with the paper's tokenised references. The paper's NIST is that of the
# scorer's Python variant, the poster's that of the Perl one (metrics/nist.py).
PAPER = ("BLEU", "NIST", "METEOR", "ROUGE_L", "CIDEr")
POSTER = ("BLEU", "NIST_perl", "METEOR", "ROUGE_L", "CIDEr")
PUBLISHED = {
    "GPT-2 medium, fine-tune (Li & Liang 2021)": dict(zip(PAPER, (68.8, 8.71, 46.1, 71.1, 2.43))),
    "GPT-2 medium, prefix 0.1 % (Li & Liang 2021)": dict(zip(PAPER, (70.3, 8.82, 46.3, 72.1, 2.46))),
    "GPT-2 large, prefix (Li & Liang 2021)": dict(zip(PAPER, (70.3, 8.85, 46.2, 71.7, 2.47))),
    "previous best (Shen et al. 2019)": dict(zip(PAPER, (68.6, 8.70, 45.3, 70.8, 2.37))),
    "poster, prefix 0.1 %": dict(zip(POSTER, (68.5, 8.71, 44.3, 70.4, 2.34))),
    "poster, fine-tune": dict(zip(POSTER, (70.3, 8.94, 46.2, 72.2, 2.47))),
}
E2E_REFERENCES = "ec54a9ebca59cd3403c7dddb170771920ff3e93dce66922c761726677c2871a1"  # fingerprint of these references
COLUMNS = ("BLEU", "NIST", "NIST_perl", "METEOR", "ROUGE_L", "CIDEr")
PERCENT = ("BLEU", "METEOR", "ROUGE_L")  # papers print these times 100


# ----------------------------------------------------------------------------- decoding


def newline_tokens(tokenizer: tiktoken.Encoding) -> tuple[int, ...]:
    """The ids of "\\n" and "\\n\\n" (198 and 628 in GPT-2), which the paper never generates."""
    ids = (tokenizer.encode_ordinary(text) for text in ("\n", "\n\n"))
    return tuple(i[0] for i in ids if len(i) == 1)


def decode_ids(tokenizer: tiktoken.Encoding, ids: list[int]) -> str:
    """Generated ids as one line of text. Bytes that are not UTF-8 become U+FFFD."""
    return " ".join(tokenizer.decode(ids).split())


def decode(
    model: GPT2,
    tokenizer: tiktoken.Encoding,
    sources: list[str],
    beam_size: int = 5,
    length_norm: str = "total",
    max_new_tokens: int = 100,
    batch_size: int = 64,
    next_words: type = NextWords,
    show: bool = False,
) -> list[str]:
    """A sentence for each source, in the order of the sources, by beam search in batches of similar length.

    batch_size    tables at a time. On two CPU cores, 64 took a tenth less time than 32 and a quarter less than 16
    next_words    as in beam_search
    show          print progress on a terminal
    Of several ranks each decodes every N-th batch, and receives all sentences.
    """
    prompts = [encode_prompt(tokenizer, source) for source in sources]
    banned, end = newline_tokens(tokenizer), tokenizer.eot_token
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))  # the largest batch first: it sizes the memory
    texts = [""] * len(prompts)
    began = time.monotonic()
    for start in ranks.shard(range(0, len(order), batch_size)):
        batch = order[start : start + batch_size]
        found = beam_search(
            model, [prompts[i] for i in batch], end, beam_size, max_new_tokens, length_norm, banned, next_words
        )
        for i, ids in zip(batch, found):
            texts[i] = decode_ids(tokenizer, ids)
        if show and sys.stderr.isatty():
            done = min(start + ranks.size() * batch_size, len(order))  # the other ranks are about as far
            left = (time.monotonic() - began) / done * (len(order) - done)
            line = f"\rdecoded {done}/{len(order)} tables, {left:.0f} s left "
            print(line, end="\n" if done == len(order) else "", file=sys.stderr)
    return ["".join(parts) for parts in zip(*ranks.all_gather(texts))]  # a text is empty on all ranks but one


def decode_with(engine: Engine, model: GPT2, tokenizer: tiktoken.Encoding, sources: list[str], **options) -> list[str]:
    """`decode` on the engine's path, in its number format. The model is prepared for decoding only."""
    search = engine.in_precision(decode)
    next_words = engine.choose(NextWords, model)
    return search(engine.ready_to_decode(model), tokenizer, sources, next_words=next_words, **options)


# ----------------------------------------------------------------------------- a run


def evaluate_run(folder: str | Path, batch_size: int = 64, split: str = "test", **changes) -> dict[str, float]:
    """Decode and score a finished run: writes outputs.txt, scores.json and evaluation.json into its folder.

    split    "test", or "valid"
    changes  settings in place of the run's own, e.g. length_norm="none"
    The files of another split or search are named after it: outputs-valid-length_norm_none.txt.
    Returns the scores on the reference scorer's scale.
    """
    folder = Path(folder)
    own = load_settings(folder)
    settings, model = load_run(folder, **changes)
    tokenizer = load_tokenizer(settings.model, settings.weights)
    groups = group_references(load_split(settings.data, split))
    limits = settings.prefix_len, settings.beam_size, settings.max_new_tokens
    check_context(model.config, tokenizer, list(groups), *limits)
    began = time.monotonic()
    outputs = decode_with(
        settings.engine, model, tokenizer, list(groups), **settings.search, batch_size=batch_size, show=True
    )
    seconds = time.monotonic() - began
    scores = ranks.on_rank_0(metrics.score, outputs, list(groups.values()))  # takes seconds: not worth sharding
    if ranks.rank() > 0:
        return scores

    other = [f"{name}_{value}" for name, value in settings.search.items() if value != getattr(own, name)]
    ending = "-".join(["", *([] if split == "test" else [split]), *other])
    references = {None: "the paper's tokenised files", "mini": "the sample tables' own"}.get(settings.data)
    if references is None:
        references = str(find_split(Path(settings.data), split))
    with write_atomic(folder / f"outputs{ending}.txt") as file:
        file.writelines(text + "\n" for text in outputs)
    write_json(folder / f"scores{ending}.json", scores)
    evaluation = {"tables": len(outputs), "references": references, **settings.search, "batch_size": batch_size}
    evaluation |= {"decoding_seconds": round(seconds, 1), "machine": describe_machine(settings.device, settings.dtype)}
    write_json(folder / f"evaluation{ending}.json", evaluation | {"signature": metrics.signature()})
    print(
        f"{len(outputs)} tables decoded in {seconds:.0f} s"
        f" (beam {settings.beam_size}, length_norm {settings.length_norm})"
    )
    print_table({f"this run: {folder.name}": scores}, references, published_for(list(groups.values())))
    for (source, targets), output in list(zip(groups.items(), outputs))[:3]:
        print(f"\n  table      {source}\n  reference  {targets[0]}\n  output     {output}")
    return scores


def generate(folder: str | Path, table: str, **changes) -> str:
    """A run's sentence for one table: `name : Blue Spice | area : riverside` or `name[Blue Spice], area[riverside]`."""
    if not table.strip():
        raise InputError("--table is empty: name some fields, e.g. 'name : Blue Spice | area : riverside'")
    settings, model = load_run(folder, **changes)
    tokenizer = load_tokenizer(settings.model, settings.weights)
    if "[" in table:
        try:
            table = linearise(table)
        except ValueError as error:
            raise InputError(f"--table: {error}") from None
    limits = settings.prefix_len, settings.beam_size, settings.max_new_tokens
    check_context(model.config, tokenizer, [table], *limits)
    return decode_with(settings.engine, model, tokenizer, [table], **settings.search)[0]


# ----------------------------------------------------------------------------- scoring


def score_files(
    hyp: Path, ref: Path, src: Path | None = None, segments: Path | None = None, scores: Path | None = None
) -> dict[str, float]:
    """Score outputs against references, in any of the formats of metrics/read.py.

    Writes the scores to `scores` (default: scores.json beside the outputs) unless that file holds others, and, if
    asked, a table with a line for each output to `segments`.
    """
    scores = scores or hyp.parent / "scores.json"
    for flag, path in (("segments", segments), ("scores", scores)):
        if path is not None and path.resolve() in [p.resolve() for p in (hyp, ref, src) if p is not None]:
            raise InputError(f"--{flag} {path} would overwrite an input file: choose another file")
    data = read.load(hyp, ref, src)
    result = metrics.score(data.hypotheses, data.references, per_segment=True)
    print_table({hyp.name: result["corpus"]}, str(ref), published_for(data.references))
    if scores.exists() and scores.read_text(encoding="utf-8") != to_json(result["corpus"]):
        raise InputError(f"{scores} holds other scores and is left as it is: name another file with --scores")
    write_json(scores, result["corpus"])
    if segments is not None:
        columns = list(result["segments"][0])
        with write_atomic(segments) as file:
            file.write("\t".join(["segment", *columns, "source", "output"]) + "\n")
            for number, (row, *texts) in enumerate(zip(result["segments"], data.sources, data.hypotheses), start=1):
                cells = [repr(float(row[column])) for column in columns]
                cells += [" ".join(text.split()) for text in texts]  # no tab or line break inside a cell
                file.write("\t".join([str(number), *cells]) + "\n")
    return result["corpus"]


def published_for(references: list[list[str]]) -> dict[str, dict[str, float]]:
    """The rows of PUBLISHED if these are the references that they were scored against, else none."""
    text = "\n\n".join("\n".join(sentence.strip() for sentence in group) for group in references)
    return PUBLISHED if hashlib.sha256(text.encode()).hexdigest() == E2E_REFERENCES else {}


def print_table(rows: dict[str, dict[str, float]], references: str, published: dict[str, dict[str, float]]) -> None:
    """Our rows, then the published ones. A score that could not be computed is a dash, with the reason below."""
    width = max(len(name) for name in (*rows, *published))
    print("\n" + " " * width + "".join(f"{column:>11}" for column in COLUMNS))
    for name, scores in rows.items():
        scaled = {key: 100 * value if key in PERCENT else value for key, value in scores.items()}
        print(format_row(name, scaled, width, digits=2))
    for name, scores in published.items():
        print(format_row(name, scores, width, digits=None))
    note = "; the published rows: E2E's test set, the paper's tokenised references" if published else ""
    print(f"\nreferences: {references}{note}")
    print(f"signature: {metrics.signature()}")
    for name, reason in metrics.unavailable().items():
        print(f"{name} is not available: {reason}")


def format_row(name: str, scores: dict[str, float], width: int, digits: int | None) -> str:
    """One line of the table; published numbers keep their digits."""
    cells = []
    for column in COLUMNS:
        value = scores.get(column)
        places = digits if digits is not None else (1 if column in PERCENT else 2)
        cells.append(f"{'-':>11}" if value is None else f"{value:>11.{places}f}")
    return f"{name:<{width}}" + "".join(cells)


# ----------------------------------------------------------------------------- the command line

OWN, HERE = (*SEARCH, "model", "weights", "data"), ("device", "dtype", "plain")
# What can be asked for, and the flags that have an effect on it.
USES = {
    ("run",): ("split", "batch_size", *OWN, *HERE),
    ("run", "table"): (*(name for name in OWN if name != "data"), *HERE),
    ("hyp", "ref"): ("src", "segments", "scores"),
}


def check_flags(given: dict) -> tuple[str, ...]:
    """Which of USES is asked for. Raises InputError when it is none, or for a flag without effect on it."""
    asked = tuple(name for name in ("run", "table", "hyp", "ref") if name in given)
    if asked not in USES:
        raise InputError("give either --run FOLDER and how to decode it, or --hyp FILE and --ref FILE")
    for name in given:
        if name not in (*asked, *USES[asked]):
            raise InputError(f"--{name} has no effect with {' and '.join(f'--{a}' for a in asked)}: leave it out")
    if given.get("batch_size", 1) < 1:
        raise InputError(f"--batch_size {given['batch_size']}: must be at least 1")
    return asked


@exit_on_input_error
@ranks.distributed
def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        description="Decode and score a run, or score outputs against references.",
    )
    run = parser.add_argument_group("decode a run and score it")
    run.add_argument("--run", help="a folder that train.py wrote")
    run.add_argument("--table", help="write a sentence for this table only: 'name : Blue Spice | area : riverside'")
    run.add_argument("--split", choices=("test", "valid"), help="what to decode (default: test)")
    run.add_argument("--batch_size", type=int, help="tables decoded at a time (default: 64)")
    add_flags(run, OWN, default="the run's own")
    add_flags(run, HERE)
    score = parser.add_argument_group("score outputs")
    score.add_argument("--hyp", type=Path, help="outputs: one a line, or CSV or TSV")
    score.add_argument("--ref", type=Path, help="references: blocks between blank lines, source||target, CSV or TSV")
    score.add_argument("--src", type=Path, help="the sources, one a line: checks that outputs and references match")
    score.add_argument("--segments", type=Path, help="write each output's own scores to this TSV file")
    score.add_argument("--scores", type=Path, help="where the scores go (default: scores.json beside the outputs)")
    given = vars(parser.parse_args(argv))
    asked = check_flags(given)
    set_allocator(given.get("plain", False))
    if asked == ("run",):
        evaluate_run(given.pop("run"), **given)
    elif asked == ("run", "table"):
        print(generate(given.pop("run"), given.pop("table"), **given))
    else:
        ranks.on_rank_0(lambda: score_files(**given))


if __name__ == "__main__":
    main()
