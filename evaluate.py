"""Evaluation: decode the test tables with beam search, score the sentences, print the scores.

    python evaluate.py --run runs/gpt2-prefix5                    decode and score a run's test set
    python evaluate.py --run runs/gpt2-prefix5 --table "name : Blue Spice | area : riverside"      one sentence
    python evaluate.py --hyp outputs.txt --ref src1_test.txt      score any outputs against any references
    python evaluate.py --hyp baseline.txt --hyp outputs.txt --ref src1_test.txt      compare two outputs
    python evaluate.py --shelf shelves/mine --text "<|e2e|> name : Blue Spice | area : riverside"      call a task

Each distinct table is decoded once and scored against all of its reference sentences (of WebNLG: each entry). The
generated text is unchanged except for white space: each run becomes one space, and the ends are stripped.

The search is in beam.py, the scores are in metrics/. Left out: sampling, and scores that are trained models themselves
(BERTScore, BLEURT).
"""

import time
from pathlib import Path

import tiktoken

import metrics
from beam import NextWords, beam_search
from e2e_data import encode_prompt, linearise
from gpt2 import GPT2
from harness import ranks
from harness.comparison import add_intervals, compare_files, write_scores, write_segments
from harness.door import Engine, prepare_process
from harness.evaluation_flags import TABLE_HINT, parse_flags
from harness.files import InputError, exit_on_input_error, write_atomic
from harness.machine import describe_machine
from harness.progress import Progress
from harness.report import print_table, published_for
from harness.runs import check_context, check_outputs, ending_of, load_run, write_json
from harness.settings import Settings
from harness.shelves import describe, load_shelf
from harness.tables import answer_file
from harness.tokenizers import load_tokenizer
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

    max_new_tokens  as in beam_search, one limit for all or one per source
    batch_size      tables at a time. Larger batches are faster and need more memory (benchmarks/README.md)
    next_words      as in beam_search
    show            print progress on a terminal
    shelf           attached to the model: a source may begin with a task's token (tasks.py)
    With N ranks (harness/ranks.py) each decodes every N-th batch, and all receive all sentences.
    """
    encode = encode_prompt if shelf is None else shelf.encode_prompt
    prompts = [encode(tokenizer, source) for source in sources]
    prompt_len = len if shelf is None else shelf.prompt_len
    banned, end = newline_tokens(tokenizer), tokenizer.eot_token
    limits = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else max_new_tokens
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))  # the longest first: memory peaks at once
    texts = [""] * len(prompts)
    progress = Progress("decoded", len(order), "tables", show)
    for start in ranks.shard(range(0, len(order), batch_size)):
        batch = order[start : start + batch_size]
        these, their_limits = [prompts[i] for i in batch], [limits[i] for i in batch]
        found = beam_search(model, these, end, beam_size, their_limits, length_norm, banned, next_words, prompt_len)
        for i, ids in zip(batch, found):
            texts[i] = decode_ids(tokenizer, ids)
        progress(start + ranks.size() * batch_size)  # the other ranks are about as far
    return ["".join(parts) for parts in zip(*ranks.all_gather(texts))]  # a text is empty on all ranks but one


def decode_with(engine: Engine, model: GPT2, tokenizer: tiktoken.Encoding, sources: list[str], **options) -> list[str]:
    """`decode` as the engine says: plain or fast, fp32 or bf16. Afterwards the model can only decode."""
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
    s, model = load_run(folder, **changes)
    tokenizer = load_tokenizer(s.model, s.weights)
    test_set, ending = s.dataset.test_set(split), ending_of(folder, s, split)
    max_new_tokens = check_context(
        model.config, tokenizer, test_set.sources, s.prefix_len, s.beam_size, s.max_new_tokens, s.skip_long
    )
    options = s.search | {"max_new_tokens": max_new_tokens}
    began = time.monotonic()
    outputs = decode_with(s.engine, model, tokenizer, test_set.sources, **options, batch_size=batch_size, show=True)
    seconds = time.monotonic() - began
    rows = ranks.on_rank_0(s.dataset.score, outputs, test_set)  # takes seconds: not worth sharding
    scores = rows if len(rows) > 1 else rows["all"]
    if ranks.rank() > 0:
        return scores

    with write_atomic(folder / f"outputs{ending}.txt") as file:
        file.writelines(text + "\n" for text in outputs)
    write_json(folder / f"scores{ending}.json", scores)
    evaluation = {"model": s.model, "weights": s.weights, "tables": len(outputs), "references": test_set.described}
    evaluation |= {**s.search, "batch_size": batch_size}
    evaluation |= {"decoding_seconds": round(seconds, 1), "machine": describe_machine(s.device, s.dtype)}
    signature = s.dataset.signature(test_set)
    write_json(folder / f"evaluation{ending}.json", evaluation | {"signature": signature})
    print(f"{len(outputs)} tables decoded in {seconds:.0f} s (beam {s.beam_size}, length_norm {s.length_norm})")
    named = {f"this run: {folder.name}" + (f", {name}" if len(rows) > 1 else ""): rows[name] for name in rows}
    print_table(named, test_set.described, published_for(test_set.references), signature)
    for source, targets, output in list(zip(test_set.sources, test_set.references, outputs))[:3]:
        print(f"\n  table      {source}\n  reference  {targets[0]}\n  output     {output}")
    return scores


# ----------------------------------------------------------------------------- requests


class Writer:
    """Answers requests with a run's model, or with GPT-2 and a shelf of tasks: `writer([writer.prepare(request)])`."""

    def __init__(self, settings: Settings, model: GPT2, shelf: Shelf | None = None):
        self.settings, self.model, self.shelf = settings, model, shelf
        self.tokenizer = load_tokenizer(settings.model, settings.weights)

    def prepare(self, request: str) -> str:
        """The request as the model reads it: `name[Blue Spice], area[riverside]` is linearised.

        Raises InputError for a request that the model cannot read.
        """
        task, source = (None, request) if self.shelf is None else split_request(request)
        if not source.strip():
            raise InputError(f"the table is empty: {TABLE_HINT}")
        is_text = self.settings.reverse if self.shelf is None else task is None or task in self.shelf.reverse
        before, bracket, _ = source.partition("[")
        if bracket and " : " not in before and not is_text:  # not a table as the model reads it, nor a sentence
            try:
                source = linearise(source)
            except ValueError as error:
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
        options |= {"shelf": self.shelf, "batch_size": max(1, len(requests))}
        return decode_with(self.settings.engine, self.model, self.tokenizer, requests, **options)


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

    segments    a file to write: a table with a line for each output
    scores      the file for the scores (default: scores.json in the folder of the outputs)
    bootstrap   resamples for confidence intervals (metrics/bootstrap.py); None: no intervals
    Raises InputError for files that do not fit together, and if `scores` holds other scores.
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
        write_segments(segments, result["segments"], data)
    return result["corpus"]


# ----------------------------------------------------------------------------- the command line


@exit_on_input_error
@ranks.distributed
def main(argv: list[str] | None = None) -> None:
    """The command line."""
    asked, given = parse_flags(argv)
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
