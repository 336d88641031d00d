"""Evaluation: decode the test tables, score the sentences, print the table.

    python evaluate.py --run runs/gpt2-prefix5            decode a run's test set with beam search and score it
    python evaluate.py --run runs/gpt2-prefix5 --table "name : Blue Spice | area : riverside"         say one table
    python evaluate.py --hyp outputs.txt --ref src1_test.txt      score any outputs against any references

Each distinct table is decoded once and scored against all of its reference sentences. Nothing is done to the text but
to its white space: a run of it becomes one space, and at the ends it goes.
"""

import argparse
import sys
import time
from pathlib import Path

import tiktoken

import metrics
import ranks
from beam import beam_search
from e2e_data import encode_prompt, find_split, group_references, linearise, load_split, load_tokenizer
from files import InputError, exit_on_input_error, write_whole
from gpt2 import GPT2
from metrics import read
from packed import pack
from runs import check_room, load_run, load_settings, to_json, write_json
from settings import Settings, add_flags, autocast, describe_machine, keep_freed_memory

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
SEARCHED = ("beam_size", "length_norm", "max_new_tokens")  # the settings of decoding


# ----------------------------------------------------------------------------- decoding


def newline_tokens(tokenizer: tiktoken.Encoding) -> tuple[int, ...]:
    """The ids of "\\n" and "\\n\\n" (198 and 628 in GPT-2), which the paper never lets a text contain."""
    ids = (tokenizer.encode_ordinary(text) for text in ("\n", "\n\n"))
    return tuple(i[0] for i in ids if len(i) == 1)


def decode_ids(tokenizer: tiktoken.Encoding, ids: list[int]) -> str:
    """Generated ids as one line of text. Bytes that are not UTF-8 become U+FFFD."""
    return " ".join(tokenizer.decode(ids).split())


def decode(
    model: GPT2, tokenizer: tiktoken.Encoding, sources: list[str], settings: Settings, batch_size: int = 64, show: bool = False
) -> list[str]:
    """A sentence for each source, in the sources' order, by beam search in batches of similar length.

    batch_size    tables at a time. On two cores of a CPU, 64 took a tenth less time than 32 and a quarter less than 16; 128 took no less
    show          count the tables done, on a terminal
    Of several ranks each decodes every N-th batch, and gets all sentences.
    """
    prompts = [encode_prompt(tokenizer, source) for source in sources]
    banned, end = newline_tokens(tokenizer), tokenizer.eot_token
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))  # the longest first: the others fit into the memory that it leaves
    texts = [""] * len(prompts)
    began = time.monotonic()
    for start in ranks.share(range(0, len(order), batch_size)):
        batch = order[start : start + batch_size]
        with autocast(settings):
            found = beam_search(model, [prompts[i] for i in batch], end, settings.beam_size, settings.max_new_tokens,
                                settings.length_norm, banned)  # fmt: skip
        for i, ids in zip(batch, found):
            texts[i] = decode_ids(tokenizer, ids)
        if show and sys.stderr.isatty():
            done = min(start + ranks.size() * batch_size, len(order))  # the other ranks are about as far
            left = (time.monotonic() - began) / done * (len(order) - done)
            print(f"\rdecoded {done}/{len(order)} tables, {left:.0f} s left ", end="\n" if done == len(order) else "", file=sys.stderr)
    return ["".join(parts) for parts in zip(*ranks.gathered(texts))]  # a text is at one rank, and empty at the others


# ----------------------------------------------------------------------------- scoring


def evaluate_run(folder: str | Path, batch_size: int = 64, split: str = "test", **changes) -> dict[str, float]:
    """Decode and score a finished run: writes outputs.txt, scores.json and evaluation.json into its folder.

    split    "test", or "valid"
    changes  settings to decode with in place of the run's own, e.g. length_norm="none"
    The files of another split or search have it in their names: outputs-valid-length_norm_none.txt.
    Returns the scores in the reference scorer's scale.
    """
    folder = Path(folder)
    own = load_settings(folder)
    settings, model = load_run(folder, **changes)
    tokenizer = load_tokenizer(settings.model)
    groups = group_references(load_split(settings.data, split))
    check_room(settings, model, list(groups), tokenizer)
    began = time.monotonic()
    outputs = decode(pack(model), tokenizer, list(groups), settings, batch_size, show=True)
    seconds = time.monotonic() - began
    scores = ranks.first_does(metrics.score, outputs, list(groups.values()))  # seconds, which sharing out would not shorten
    if ranks.rank() > 0:
        return scores

    searched = {name: getattr(settings, name) for name in SEARCHED}
    other = [f"{name}_{value}" for name, value in searched.items() if value != getattr(own, name)]
    ending = "-".join(["", *([] if split == "test" else [split]), *other])
    references = {None: "the paper's tokenised files", "mini": "the sample tables' own"}.get(settings.data)
    if references is None:
        references = str(find_split(Path(settings.data), split))
    with write_whole(folder / f"outputs{ending}.txt") as file:
        file.writelines(text + "\n" for text in outputs)
    write_json(folder / f"scores{ending}.json", scores)
    write_json(folder / f"evaluation{ending}.json", {
        "tables": len(outputs), "references": references, **searched, "batch_size": batch_size,
        "decoding_seconds": round(seconds, 1), "machine": describe_machine(settings), "signature": metrics.signature(),
    })  # fmt: skip
    print(f"{len(outputs)} tables decoded in {seconds:.0f} s (beam {settings.beam_size}, length_norm {settings.length_norm})")
    print_table({f"this run: {folder.name}": scores}, references, beside={} if settings.data == "mini" else PUBLISHED)
    for (source, targets), output in list(zip(groups.items(), outputs))[:3]:
        print(f"\n  table      {source}\n  reference  {targets[0]}\n  output     {output}")
    return scores


def say_table(folder: str | Path, table: str, **changes) -> str:
    """One sentence for one table, `name : Blue Spice | area : riverside` or `name[Blue Spice], area[riverside]`."""
    settings, model = load_run(folder, **changes)
    tokenizer = load_tokenizer(settings.model)
    if "[" in table:
        try:
            table = linearise(table)
        except ValueError as error:
            raise InputError(f"--table: {error}") from None
    check_room(settings, model, [table], tokenizer)
    return decode(pack(model), tokenizer, [table], settings)[0]


def score_files(
    hyp: Path, ref: Path, src: Path | None = None, segments: Path | None = None, scores: Path | None = None
) -> dict[str, float]:  # fmt: skip
    """Score outputs against references, in any of the forms of metrics/read.py.

    Writes the scores to `scores` (scores.json beside the outputs), unless other scores stand there, and when asked a
    table with a line for each output to `segments`.
    """
    scores = scores or hyp.parent / "scores.json"
    for flag, path in (("segments", segments), ("scores", scores)):
        if path is not None and path.resolve() in [p.resolve() for p in (hyp, ref, src) if p is not None]:
            raise InputError(f"--{flag} {path} would overwrite what is read: choose another file")
    data = read.load(hyp, ref, src)
    result = metrics.score(data.hypotheses, data.references, per_segment=True)
    print_table({hyp.name: result["corpus"]}, str(ref))
    if scores.exists() and scores.read_text(encoding="utf-8") != to_json(result["corpus"]):
        raise InputError(f"{scores} holds other scores and is left as it is: name another file with --scores")
    write_json(scores, result["corpus"])
    if segments is not None:
        columns = list(result["segments"][0])
        with write_whole(segments) as file:
            file.write("\t".join(["segment", *columns, "source", "output"]) + "\n")
            for number, (row, source, output) in enumerate(zip(result["segments"], data.sources, data.hypotheses), start=1):
                texts = (" ".join(text.split()) for text in (source, output))  # no tab or line end inside a cell
                file.write("\t".join([str(number), *(repr(float(row[column])) for column in columns), *texts]) + "\n")
    return result["corpus"]


def print_table(rows: dict[str, dict[str, float]], references: str, beside: dict[str, dict[str, float]] = PUBLISHED) -> None:
    """Our rows above those `beside`; a score that could not be computed is a dash, with the reason below."""
    width = max(len(name) for name in (*rows, *beside))
    print("\n" + " " * width + "".join(f"{column:>11}" for column in COLUMNS))
    for name, scores in rows.items():
        scaled = {key: 100 * value if key in PERCENT else value for key, value in scores.items()}
        print(format_row(name, scaled, width, digits=2))
    for name, scores in beside.items():
        print(format_row(name, scores, width, digits=None))
    print(f"\nreferences: {references}" + ("; the published rows: E2E's test set, the paper's tokenised references" if beside else ""))
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
@ranks.together
def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(allow_abbrev=False, description="Decode and score a run, or score outputs against references.")
    run = parser.add_argument_group("decode a run and score it")
    run.add_argument("--run", help="a folder that train.py wrote")
    run.add_argument("--table", help="say this table instead: 'name : Blue Spice | area : riverside'")
    run.add_argument("--split", default="test", choices=("test", "valid"), help="what to decode (default: test)")
    run.add_argument("--batch_size", type=int, default=64, help="tables decoded at a time (default: 64)")
    own, here = ("beam_size", "length_norm", "max_new_tokens", "model", "weights", "data"), ("device", "dtype")
    add_flags(run, own, default="the run's own")
    add_flags(run, here)
    score = parser.add_argument_group("score outputs")
    score.add_argument("--hyp", type=Path, help="outputs: one a line, or CSV or TSV")
    score.add_argument("--ref", type=Path, help="references: blocks between blank lines, one a line, source||target, CSV or TSV")
    score.add_argument("--src", type=Path, help="the sources, one a line, to check that outputs and references belong together")
    score.add_argument("--segments", type=Path, help="write each output's own scores to this TSV file")
    score.add_argument("--scores", type=Path, help="where the scores go (default: scores.json beside the outputs)")
    given = parser.parse_args(argv)
    keep_freed_memory()
    changes = {name: value for name, value in vars(given).items() if name in own + here}
    if given.batch_size < 1:
        raise InputError(f"--batch_size {given.batch_size}: must be at least 1")
    if given.run and not (given.hyp or given.ref):
        if given.table:
            print(say_table(given.run, given.table, **changes))
        else:
            evaluate_run(given.run, given.batch_size, given.split, **changes)
    elif given.hyp and given.ref and not (given.run or changes or given.table):
        ranks.first_does(score_files, given.hyp, given.ref, given.src, given.segments, given.scores)
    else:
        raise InputError("give either --run FOLDER and how to decode it, or --hyp FILE and --ref FILE")


if __name__ == "__main__":
    main()
