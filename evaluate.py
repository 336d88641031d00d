"""Evaluation: decode the test tables with beam search, score the sentences, print the scores.

    python evaluate.py --run runs/gpt2-prefix5                    decode and score a run's test set
    python evaluate.py --run runs/gpt2-prefix5 --table "name : Blue Spice | area : riverside"      one sentence
    python evaluate.py --hyp outputs.txt --ref src1_test.txt      score any outputs against any references
    python evaluate.py --hyp baseline.txt --hyp outputs.txt --ref src1_test.txt      compare two outputs
    python evaluate.py --shelf shelves/mine --text "<|e2e|> name : Blue Spice | area : riverside"      call a task

Each distinct table is decoded once and scored against all of its reference sentences. The generated text is unchanged
except for white space: each run becomes one space, and the ends are stripped.
"""

import argparse
import sys
import time
from pathlib import Path

import tiktoken

import metrics
from beam import NextWords, beam_search
from e2e_data import encode_prompt, linearise, load_tokenizer
from gpt2 import GPT2
from harness import ranks
from harness.comparison import add_intervals, check_comparison, check_outputs, compare_files, write_scores
from harness.door import Engine, prepare_process
from harness.files import InputError, exit_on_input_error, write_atomic
from harness.machine import describe_machine
from harness.report import print_table, published_for
from harness.runs import check_context, ending_of, load_run, write_json
from harness.settings import SEARCH, Settings, add_flags
from harness.shelves import describe, load_shelf
from harness.tables import answer_file
from metrics import read
from tasks import Shelf, split_request

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
    max_new_tokens: int | list[int] = 100,
    batch_size: int = 64,
    next_words: type = NextWords,
    show: bool = False,
    shelf: Shelf | None = None,
) -> list[str]:
    """A sentence for each source, in the order of the sources, by beam search in batches of similar length.

    max_new_tokens  as in beam_search, one number or one a source
    batch_size      tables at a time. The more, the faster and the more memory (benchmarks/README.md)
    next_words      as in beam_search
    show            print progress on a terminal
    shelf           attached to the model: a source may begin with a task's token (tasks.py)
    Of several ranks each decodes every N-th batch, and receives all sentences.
    """
    encode = encode_prompt if shelf is None else shelf.encode_prompt
    prompts = [encode(tokenizer, source) for source in sources]
    prompt_len = len if shelf is None else shelf.prompt_len
    banned, end = newline_tokens(tokenizer), tokenizer.eot_token
    limits = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else max_new_tokens
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))  # the largest batch first: it sizes the memory
    texts = [""] * len(prompts)
    began = time.monotonic()
    for start in ranks.shard(range(0, len(order), batch_size)):
        batch = order[start : start + batch_size]
        given, longest = [prompts[i] for i in batch], [limits[i] for i in batch]
        found = beam_search(model, given, end, beam_size, longest, length_norm, banned, next_words, prompt_len)
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


def evaluate_run(folder: str | Path, batch_size: int = 64, split: str = "test", **changes) -> dict:
    """Decode and score a finished run: writes outputs.txt, scores.json and evaluation.json into its folder.

    split    "test", or "valid"
    changes  settings in place of the run's own, e.g. length_norm="none"
    The files of another split, search or data folder are named after it: outputs-valid-length_norm_none.txt.
    Returns the scores on the reference scorer's scale; of several rows (WebNLG's categories), name -> scores.
    """
    folder = Path(folder)
    settings, model = load_run(folder, **changes)
    tokenizer = load_tokenizer(settings.model, settings.weights)
    test_set = settings.dataset.test_set(split)
    limits = settings.prefix_len, settings.beam_size, settings.max_new_tokens, settings.skip_long
    options = settings.search | {"max_new_tokens": check_context(model.config, tokenizer, test_set.sources, *limits)}
    began = time.monotonic()
    outputs = decode_with(
        settings.engine, model, tokenizer, test_set.sources, **options, batch_size=batch_size, show=True
    )
    seconds = time.monotonic() - began
    rows = ranks.on_rank_0(settings.dataset.score, outputs, test_set)  # takes seconds: not worth sharding
    scores = rows if len(rows) > 1 else rows["all"]
    if ranks.rank() > 0:
        return scores

    ending = ending_of(folder, settings, split)
    with write_atomic(folder / f"outputs{ending}.txt") as file:
        file.writelines(text + "\n" for text in outputs)
    write_json(folder / f"scores{ending}.json", scores)
    evaluation = {"tables": len(outputs), "references": test_set.described, **settings.search, "batch_size": batch_size}
    evaluation |= {"decoding_seconds": round(seconds, 1), "machine": describe_machine(settings.device, settings.dtype)}
    signature = settings.dataset.signature(test_set)
    write_json(folder / f"evaluation{ending}.json", evaluation | {"signature": signature})
    print(
        f"{len(outputs)} tables decoded in {seconds:.0f} s"
        f" (beam {settings.beam_size}, length_norm {settings.length_norm})"
    )
    named = {f"this run: {folder.name}" + (f", {name}" if len(rows) > 1 else ""): rows[name] for name in rows}
    print_table(named, test_set.described, published_for(test_set.references), signature)
    for source, targets, output in list(zip(test_set.sources, test_set.references, outputs))[:3]:
        print(f"\n  table      {source}\n  reference  {targets[0]}\n  output     {output}")
    return scores


# ----------------------------------------------------------------------------- requests


class Writer:
    """Answers single requests: a run's model, or GPT-2 with a shelf of tasks.

    Raises InputError, when it is asked, for a request that the model cannot read.
    """

    def __init__(self, settings: Settings, model: GPT2, shelf: Shelf | None = None):
        self.settings, self.model, self.shelf = settings, model, shelf
        self.tokenizer = load_tokenizer(settings.model, settings.weights)

    def prepare(self, request: str) -> str:
        """The request as the model reads it, checked: `name[Blue Spice], area[riverside]` is linearised."""
        task, source = (None, request) if self.shelf is None else split_request(request)
        if not source.strip():
            raise InputError(f"the table is empty: {EMPTY}")
        try:
            source = linearise(source) if "[" in source else source
        except ValueError as error:
            if self.shelf is None and not self.settings.reverse:
                raise InputError(f"the table: {error}") from None
        self.limit(source, task)
        return source if task is None else f"<|{task}|> {source}"

    def limit(self, source: str, task: str | None) -> int:
        """The tokens that the text may have."""
        s, P = self.settings, self.settings.prefix_len
        if self.shelf is not None:
            P = self.shelf.prefix(task).prefix_len if task is not None else 0
        return check_context(
            self.model.config, self.tokenizer, [source], P, s.beam_size, s.max_new_tokens, s.skip_long
        )[0]

    def __call__(self, requests: list[str]) -> list[str]:
        """The texts for requests that are prepared."""
        tasks = [(None, request) if self.shelf is None else split_request(request) for request in requests]
        options = self.settings.search | {"max_new_tokens": [self.limit(source, task) for task, source in tasks]}
        return decode_with(self.settings.engine, self.model, self.tokenizer, requests, shelf=self.shelf, **options)


def writer_of(run: str | None = None, shelf: str | None = None, **changes) -> Writer:
    """The writer of a run's folder, or of a shelf's."""
    return Writer(*(load_run(run, **changes) if run is not None else load_shelf(shelf, **changes)))


def generate(folder: str | Path, table: str, **changes) -> str:
    """A run's sentence for one table: `name : Blue Spice | area : riverside` or `name[Blue Spice], area[riverside]`."""
    writer = writer_of(run=folder, **changes)
    return writer([writer.prepare(table)])[0]


# ----------------------------------------------------------------------------- scoring


def score_files(
    hyp: Path,
    ref: Path,
    src: Path | None = None,
    segments: Path | None = None,
    scores: Path | None = None,
    bootstrap: int | None = None,
) -> dict:
    """Score outputs against references, in any of the formats of metrics/read.py.

    Writes the scores to `scores` (default: scores.json beside the outputs) unless that file holds others, and, if
    asked, a table with a line for each output to `segments`.
    bootstrap   resamples for confidence intervals (metrics/bootstrap.py); None: no intervals
    """
    scores = scores or hyp.parent / "scores.json"
    check_outputs({"segments": segments, "scores": scores}, inputs=(hyp, ref, src))
    data = read.load(hyp, ref, src)
    result = metrics.score(data.hypotheses, data.references, per_segment=True, details=True)
    signature = metrics.signature(references=data.references)
    print_table({hyp.name: result["corpus"]}, str(ref), published_for(data.references), signature)
    if bootstrap is not None:
        add_intervals(result["corpus"], data, bootstrap)
    write_scores(scores, result["corpus"])
    if segments is not None:
        columns = list(result["segments"][0])
        with write_atomic(segments) as file:
            file.write("\t".join(["segment", *columns, "source", "output"]) + "\n")
            for number, (row, *texts) in enumerate(zip(result["segments"], data.sources, data.hypotheses), start=1):
                cells = [repr(float(row[column])) for column in columns]
                cells += [" ".join(text.split()) for text in texts]  # no tab or line break inside a cell
                file.write("\t".join([str(number), *cells]) + "\n")
    return result["corpus"]


# ----------------------------------------------------------------------------- the command line

EMPTY = "name some fields, e.g. 'name : Blue Spice | area : riverside'"
ONE, HERE = (*SEARCH, "decode_dtype", "model", "weights"), ("device", "plain")
OWN = (*ONE, "data")
# What can be asked for, and the flags that have an effect on it.
USES = {
    ("run",): ("split", "batch_size", *OWN, *HERE),
    ("run", "table"): (*ONE, *HERE),
    ("run", "tables"): ("out", "batch_size", *ONE, *HERE),
    ("shelf",): (),
    ("shelf", "text"): (*ONE, *HERE),
    ("shelf", "tables"): ("out", "batch_size", *ONE, *HERE),
    ("hyp", "ref"): ("src", "segments", "scores", "bootstrap"),
}


def check_flags(given: dict) -> tuple[str, ...]:
    """Which of USES is asked for. Raises InputError when it is none, or for a flag without effect on it."""
    asked = tuple(name for name in ("run", "shelf", "table", "text", "tables", "hyp", "ref") if name in given)
    if asked not in USES:
        raise InputError(
            "give --run FOLDER and how to decode it, --shelf FOLDER and what to ask, or --hyp FILE and --ref FILE"
        )
    if "tables" in given and "out" not in given:
        raise InputError("--tables needs --out FILE, or --out - for standard output")
    for name in given:
        if name not in (*asked, *USES[asked]):
            raise InputError(f"--{name} has no effect with {' and '.join(f'--{a}' for a in asked)}: leave it out")
    for name in ("table", "text"):
        if not given.get(name, name).strip():
            raise InputError(f"--{name} is empty: {EMPTY}")
    if given.get("batch_size", 1) < 1:
        raise InputError(f"--batch_size {given['batch_size']}: must be at least 1")
    check_comparison(given)
    return asked


@exit_on_input_error
@ranks.distributed
def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        description="Decode and score a run, ask a run or a shelf of tasks, or score outputs against references.",
    )
    run = parser.add_argument_group("decode a run and score it")
    run.add_argument("--run", help="a folder that train.py wrote, or an adapter of PEFT's")
    run.add_argument("--table", help="answer this request only: 'name : Blue Spice | area : riverside'")
    run.add_argument("--split", choices=("test", "valid"), help="what to decode (default: test)")
    run.add_argument("--batch_size", type=int, help="requests decoded at a time (default: 64)")
    add_flags(run, OWN, default="the run's own; with --shelf its model, and train.py's defaults")
    add_flags(run, HERE)
    shelf = parser.add_argument_group("ask a shelf of tasks (or a run)")
    shelf.add_argument("--shelf", help="a folder that train.py --task wrote; alone: list its tasks")
    shelf.add_argument("--text", help="one request: '<|e2e|> name : Blue Spice | area : riverside'")
    shelf.add_argument("--tables", help="a file of requests, one a line, or CSV with a column mr; -: standard input")
    shelf.add_argument("--out", help="where the texts go, one a line; -: standard output")
    score = parser.add_argument_group("score outputs")
    score.add_argument("--hyp", type=Path, action="append", help="outputs: one a line, or CSV or TSV; twice: compare")
    score.add_argument("--ref", type=Path, help="references: blocks between blank lines, source||target, CSV or TSV")
    score.add_argument("--src", type=Path, help="the sources, one a line: checks that outputs and references match")
    score.add_argument("--segments", type=Path, help="write each output's own scores to this TSV file")
    score.add_argument("--scores", type=Path, help="where the scores go (default: scores.json beside the outputs)")
    score.add_argument("--bootstrap", type=int, help="resamples for intervals (default: none; of a comparison: 1000)")
    given = vars(parser.parse_args(argv))
    asked = check_flags(given)
    prepare_process(given.get("plain", False))
    if asked == ("run",):
        evaluate_run(given.pop("run"), **given)
    elif asked == ("shelf",):
        print(describe(given["shelf"]))
    elif "tables" in asked:
        tables, out, batch_size = given.pop("tables"), given.pop("out"), given.pop("batch_size", 64)
        if ranks.size() > 1:
            raise InputError("--tables runs in one process: start it without torchrun")
        writer = writer_of(**given)
        answer_file(tables, out, writer.prepare, writer, batch_size)
    elif asked in (("run", "table"), ("shelf", "text")):
        request = given.pop("table" if "table" in asked else "text")
        writer = writer_of(**given)
        print(writer([writer.prepare(request)])[0])
    else:
        hyps = given.pop("hyp")
        ranks.on_rank_0(lambda: compare_files(*hyps, **given) if len(hyps) == 2 else score_files(*hyps, **given))


if __name__ == "__main__":
    main()
