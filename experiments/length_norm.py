"""How much of a score is due to the length of the texts: decode finished runs again with each length_norm.

    python experiments/length_norm.py --results results/mini --only prefix5-seed101 finetune-seed101

Beam search ranks a hypothesis by its summed log-probability, divided by a length or not (beam.py). Every token lowers
the sum. The smaller the divisor, the more a short text is favoured, and the effect grows with the model's uncertainty
about its tokens. BLEU penalises short texts.

Needs the runs' folders that reproduce.py has written. Writes length_norm.csv, a line for each run and length_norm,
with the scores on the reference scorer's scale and the average number of words of a text; the texts go to
outputs/RUN-length_norm_NORM.txt. Finished decodings are reused, and other runs' lines are kept.
"""

import argparse
import json
import sys
from fnmatch import fnmatchcase
from itertools import product
from pathlib import Path

if __name__ == "__main__":  # so that this project's modules are found
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import metrics
from beam import LENGTH_NORMS
from evaluate import evaluate_run
from experiments.record import number, read_rows, read_runs, write_rows
from harness.door import prepare_process
from harness.files import InputError, exit_on_input_error, read_text, write_atomic

ROOT = Path(__file__).resolve().parents[1]
COLUMNS = ("run", "length_norm", *metrics.CORPUS_KEYS, "words_a_text")


def decoded(folder: Path, norm: str, row: dict[str, str], device: str) -> tuple[dict[str, float], str]:
    """Decode the run in `folder`, whose row in runs.csv is `row`, with length_norm `norm`: (scores, texts as lines)."""
    ending = "" if norm == row["length_norm"] else f"-length_norm_{norm}"
    if not (folder / f"evaluation{ending}.json").exists():  # the file that evaluation writes last
        evaluate_run(folder, length_norm=norm, device=device, dtype=row["decode_dtype"])
    return json.loads(read_text(folder / f"scores{ending}.json")), read_text(folder / f"outputs{ending}.txt")


def words_a_text(texts: str) -> float:
    """The average number of white-space separated words in a line."""
    return len(texts.split()) / texts.count("\n")


@exit_on_input_error
def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description="Decode finished runs again with each length_norm."
    )
    parser.add_argument(
        "--results", type=Path, required=True, help="a folder that reproduce.py wrote, e.g. results/mini"
    )
    parser.add_argument("--runs", type=Path, help="parent of the runs' folders (default: runs/MODEL-grid)")
    only_help = "names of runs, wildcards * and ? (default: all trained runs)"
    parser.add_argument("--only", nargs="+", metavar="PATTERN", default=["*"], help=only_help)
    parser.add_argument("--device", default="auto", help="cpu, cuda (default: cuda if there is one)")
    given = parser.parse_args(argv)
    results = given.results.resolve()
    folder = given.runs or ROOT / "runs" / f"{results.name}-grid"
    trained = {name: row for name, row in read_runs(results).items() if int(row["steps"])}
    names = [name for name in trained if any(fnmatchcase(name, pattern) for pattern in given.only)]
    if not names:
        missing = f"{results / 'runs.csv'} has no run {' '.join(given.only)} that was trained"
        raise InputError(f"{missing}: run python experiments/reproduce.py first")
    prepare_process(plain=False)
    path = results / "length_norm.csv"
    rows = {(row["run"], row["length_norm"]): row for row in read_rows(path)}
    for name in names:
        for norm in LENGTH_NORMS:
            scores, texts = decoded(folder / name, norm, trained[name], given.device)
            if norm != trained[name]["length_norm"]:
                with write_atomic(results / "outputs" / f"{name}-length_norm_{norm}.txt") as file:
                    file.write(texts)
            rows[name, norm] = {"run": name, "length_norm": norm, "words_a_text": number(words_a_text(texts), 1)}
            rows[name, norm] |= {key: number(scores.get(key), 6) for key in metrics.CORPUS_KEYS}
        write_rows(path, COLUMNS, [rows[key] for key in product(trained, LENGTH_NORMS) if key in rows])
    for row in read_rows(path):
        bleu = f"{100 * float(row['BLEU']):.1f}"
        print(f"{row['run']:<24}{row['length_norm']:<8}BLEU {bleu:<6}{row['words_a_text']} words a text")


if __name__ == "__main__":
    main()
