"""Scoring speed: the five metrics against the reference scorer, on the same texts in the same run.

    python benchmarks/scorer.py                                    invented restaurants, as many as E2E's test set
    python benchmarks/scorer.py --hyp outputs.txt --ref src1_test.txt

Ours is `metrics.score` in one process. The reference is pycocoevalcap (Stanford's tokenizer and METEOR in Java, ROUGE-L
and CIDEr in Python) with sacrebleu for BLEU and nltk for NIST, since its own Perl and Python scripts are not on PyPI.
Without these two packages it is timed without them; without Java it is not timed at all.

Each side runs as a process of its own, from start to exit, `--repeat` times in turn, and the medians are compared. Best
run on an otherwise idle machine: Java spreads over all cores and loses more than ours if others use them (then compare
cpu_seconds). METEOR's table is packed beforehand, as it is from any user's second run on. Memory is the peak of the
Python process plus the largest of its Java processes. Prints a table and the ratio, and writes both to
results/scorer.json.

nltk's NIST differs from ours on several references (see tests/test_metrics_nist.py), so its value is left out.
"""

import argparse
import json
import os
import platform
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from harness.files import InputError, exit_on_input_error, write_atomic  # found through the line above

OUTPUTS, REFERENCES = 630, 4693  # E2E's test set


@exit_on_input_error
def main() -> None:
    """The command line."""
    arguments = argparse.ArgumentParser(
        allow_abbrev=False, description="Compare the five metrics with the reference scorer."
    )
    arguments.add_argument("--hyp", type=Path, help="outputs (default: references with some words changed)")
    arguments.add_argument("--ref", type=Path, help="references, any form of metrics/read.py (default: invented)")
    arguments.add_argument("--repeat", type=int, default=3, help="runs of each (default: 3)")
    arguments.add_argument("--out", type=Path, default=ROOT / "results" / "scorer.json")
    arguments.add_argument("--worker", choices=WORKERS, help=argparse.SUPPRESS)
    arguments.add_argument("--input", type=Path, help=argparse.SUPPRESS)
    arguments = arguments.parse_args()
    if arguments.worker:
        work(arguments.worker, arguments.input)
        return
    if arguments.hyp and not arguments.ref:
        raise InputError("--hyp needs --ref: give the references of the same data")
    if arguments.repeat < 1:
        raise InputError(f"--repeat {arguments.repeat}: must be at least 1")
    hypotheses, references = load_or_make(arguments.hyp, arguments.ref)
    report = compare(hypotheses, references, arguments.repeat)
    show(report)
    with write_atomic(arguments.out) as file:
        file.write(json.dumps(report, indent=1) + "\n")


def compare(hypotheses: list[str], references: list[list[str]], repeat: int) -> dict:
    """Run both in turn; returns the scores, seconds and megabytes of each."""
    import metrics  # for its signature and the unavailable scores; the parent scores nothing

    workers = ["ours", "reference"] if shutil.which("java") and installed("pycocoevalcap") else ["ours"]
    with tempfile.TemporaryDirectory() as folder:
        small, whole = Path(folder) / "small.json", Path(folder) / "whole.json"
        small.write_text(json.dumps([hypotheses[:2], references[:2]]))
        whole.write_text(json.dumps([hypotheses, references]))
        run("ours", small)  # packs METEOR's table if it is not packed yet, and compiles the .pyc files
        runs = [{worker: run(worker, whole) for worker in workers} for _ in range(repeat)]

    report = {
        "outputs": len(hypotheses),
        "references": sum(map(len, references)),
        "signature": metrics.signature(),
        "unavailable": metrics.unavailable(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
    }
    for worker in workers:
        report[worker] = {
            "seconds": statistics.median(each[worker]["seconds"] for each in runs),
            "every_run": [each[worker]["seconds"] for each in runs],
            "cpu_seconds": statistics.median(each[worker]["cpu_seconds"] for each in runs),
            "megabytes": max(each[worker]["megabytes"] for each in runs),
            "scores": runs[-1][worker]["scores"],
        }
    if "reference" in report:
        report["ratio"] = report["ours"]["seconds"] / report["reference"]["seconds"]
    return report


def show(report: dict) -> None:
    """Print the table."""
    ours, reference = report["ours"], report.get("reference", {"scores": {}})
    print(f"{report['outputs']} outputs, {report['references']} references; {report['machine']}")
    print(f"{'':10}{'ours':>14}{'reference':>14}{'difference':>14}")
    for key, value in ours["scores"].items():
        other = reference["scores"].get(key)
        print(f"{key:10}{value:14.6f}" + (f"{other:14.6f}{abs(value - other):14.1e}" if other is not None else ""))
    for key in ("seconds", "cpu_seconds", "megabytes"):
        print(f"{key:11}{ours[key]:13.2f}" + (f"{reference[key]:14.2f}" if key in reference else ""))
    for key, reason in report["unavailable"].items():
        print(f"{key} was not computed, so the times cannot be compared: {reason}")
    if "ratio" in report:
        print(f"ratio {report['ratio']:.3f}")
    else:
        print("the reference was not run: it needs Java and the package pycocoevalcap")


# ----------------------------------------------------------------------------- the texts


def load_or_make(hypotheses_path: Path | None, references_path: Path | None) -> tuple[list[str], list[list[str]]]:
    """Outputs and references: from the files, or invented if no file is given."""
    from metrics import read

    if hypotheses_path and references_path:
        texts = read.load(hypotheses_path, references_path)
        return texts.hypotheses, texts.references
    rng = random.Random(0)
    references = read.read_references(references_path, ["", ""]) if references_path else make_references(rng)
    words = sorted({word for texts in references for text in texts for word in text.split()})
    return [change_words(rng.choice(texts), words, rng) for texts in references], references


def change_words(text: str, words: list[str], rng: random.Random) -> str:
    """The text with one word in ten replaced: about as close to the references as a trained model's output."""
    return " ".join(rng.choice(words) if rng.random() < 0.1 else word for word in text.split())


def make_references(rng: random.Random) -> list[list[str]]:
    """As many segments and references as E2E's test set has, of its length: about 27 words, names included."""
    first = (
        "Alder Amber Blue Bright Cedar Copper Crown Dolphin Eagle Falcon Golden Green Iron Maple Midnight Old".split()
    )
    second = (
        "Anchor Barn Bridge Cellar Cottage Garden Gate Heron House Kettle Lantern Mill Oven Table Tavern Vine".split()
    )
    foods = "Italian French Chinese English Indian Japanese Thai Greek Spanish fast".split()
    openings = (
        "{name} is a {kind} which serves {food} food",
        "There is a {kind} that offers {food} food called {name}",
        "{food} food is available at the {kind} {name}",
        "If you want {food} food , try {name} , a {kind}",
    )
    places = ("in the {area} near {other}", "close to {other} in the {area}", "by {other} , in the {area} area")
    details = (
        "It is {yes} family - friendly .",
        "Prices are {price} .",
        "Customers rate it {stars} out of 5 .",
        "Children are {yes} welcome .",
        "It has a price range of {price} .",
        "Its customer rating is {stars} out of 5 .",
    )
    sizes = [1] * OUTPUTS
    for _ in range(REFERENCES - OUTPUTS):
        sizes[rng.randrange(OUTPUTS)] += 1
    segments = []
    for size in sizes:
        facts = {
            "name": f"{rng.choice(first)} {rng.choice(second)}",
            "other": f"{rng.choice(first)} {rng.choice(second)}",
            "kind": rng.choice(("pub", "restaurant", "coffee shop")),
            "food": rng.choice(foods),
            "area": rng.choice(("riverside", "city centre")),
            "price": rng.choice(("less than £ 20", "£ 20 - 25", "more than £ 30", "high", "cheap")),
            "yes": rng.choice(("not", "very")),
            "stars": rng.choice("135"),
        }
        segments.append(
            [
                f"{rng.choice(openings)} {rng.choice(places)} . {rng.choice(details)}".format(**facts)
                for _ in range(size)
            ]
        )
    return segments


# ----------------------------------------------------------------------------- the two workers


def run(worker: str, texts: Path) -> dict:
    """Run one worker as a process of its own. Returns its scores, wall time, CPU time and memory."""
    start = time.perf_counter()
    command = [sys.executable, __file__, "--worker", worker, "--input", str(texts)]
    finished = subprocess.run(command, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if finished.returncode:
        sys.exit(f"the {worker} worker failed:\n{finished.stderr}")
    return {"seconds": seconds, **json.loads(finished.stdout.splitlines()[-1])}


def work(worker: str, texts: Path) -> None:
    """A worker's process: score the texts and print scores, CPU time and memory as JSON."""
    hypotheses, references = json.loads(texts.read_text())
    scores = WORKERS[worker](hypotheses, references)
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    unit = 1e6 if sys.platform == "darwin" else 1e3  # macOS counts bytes, Linux kilobytes
    print(
        json.dumps(
            {
                "scores": scores,
                "cpu_seconds": sum(usage.ru_utime + usage.ru_stime for usage in usages),
                "megabytes": sum(usage.ru_maxrss for usage in usages) / unit,
            }
        )
    )


def score_with_ours(hypotheses: list[str], references: list[list[str]]) -> dict:
    """The five scores by metrics/."""
    import metrics

    return metrics.score(hypotheses, references)


def score_with_reference(hypotheses: list[str], references: list[list[str]]) -> dict:
    """The scores by pycocoevalcap, sacrebleu and nltk (whose NIST is computed and left out)."""
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.meteor.meteor import Meteor
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    tokenizer = PTBTokenizer()
    truth = tokenizer.tokenize({i: [{"caption": text} for text in texts] for i, texts in enumerate(references)})
    outputs = tokenizer.tokenize({i: [{"caption": text}] for i, text in enumerate(hypotheses)})
    scores = {}
    for key, metric in (("METEOR", Meteor()), ("ROUGE_L", Rouge()), ("CIDEr", Cider())):
        scores[key] = float(metric.compute_score(truth, outputs)[0])
    if installed("sacrebleu"):
        import sacrebleu

        width = max(map(len, references))
        columns = [[texts[i] if i < len(texts) else None for texts in references] for i in range(width)]
        metric = sacrebleu.BLEU(lowercase=True, tokenize="13a", smooth_method="none")
        scores["BLEU"] = metric.corpus_score(hypotheses, columns).score / 100
    if installed("nltk"):
        from nltk.translate.nist_score import corpus_nist

        corpus_nist([[text.split() for text in texts] for texts in references], [text.split() for text in hypotheses])
    return scores


def installed(package: str) -> bool:
    """Can the package be imported?"""
    from importlib.util import find_spec

    return find_spec(package) is not None


WORKERS = {"ours": score_with_ours, "reference": score_with_reference}

if __name__ == "__main__":
    main()
