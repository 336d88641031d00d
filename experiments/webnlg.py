"""WebNLG 2017 (webnlg_data.py): a prefix beside fine-tuning, on categories seen in training and on unseen ones.

    python experiments/webnlg.py --model mini

The learning rates are those of RATES with the lowest validation loss after SEARCH_STEPS steps. Then one epoch of each
mode, beam 5, scored for all, seen and unseen entries. Finished runs are kept, interrupted ones resumed. Writes into
results/webnlg:

    search.csv            validation losses by mode and learning rate
    runs.csv              a row for each run and part of the test set
    outputs/NAME.txt      the generated texts, a line for each test entry
    README.md             its table, between two comments

BLEU, METEOR, ROUGE-L and TER are fractions in runs.csv and times 100 in the table.
"""

import argparse
import json
import re
import sys
from pathlib import Path

if __name__ == "__main__":  # so that this project's modules are found
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import metrics
from evaluate import evaluate_run
from experiments.record import machine_class, number, read_rows, revision, write_rows
from experiments.report import markdown
from harness.datasets import WEBNLG
from harness.door import prepare_process
from harness.files import exit_on_input_error, read_text, write_atomic
from harness.settings import Settings
from train import train

ROOT = Path(__file__).resolve().parents[1]
RATES = {"prefix": (5e-4, 1e-3, 2e-3), "finetune": (1e-3, 2e-3, 4e-3, 8e-3)}
SEARCH_STEPS = 300
SCORES = ("BLEU", "METEOR", "TER", "NIST", "ROUGE_L", "CIDEr")
PARTS = ("all", "seen", "unseen")
SEARCH_COLUMNS = ("mode", "lr", "steps", "valid_loss")
COLUMNS = (
    "run", "part", "entries", "model", "mode", "prefix_len", "seed", "lr", "steps", "batch_size", "beam_size",
    "length_norm", *SCORES, "parameters_stored", "training_examples", "training_seconds", "decoding_seconds",
    "valid_loss", "machine", "dtype", "torch", "signature", "revision",
)  # fmt: skip
# BLEU of GPT-2 medium as the paper reports it, quoted second-hand; it seems to be that of arXiv 2101.00190v1.
PAPER_BLEU = {
    "*GPT-2 medium, prefix 0.1 % (Li & Liang 2021)*": {"all": 55.1, "seen": 62.9, "unseen": 45.6},
    "*GPT-2 medium, fine-tune (Li & Liang 2021)*": {"all": 46.5, "seen": 64.2, "unseen": 27.7},
}


def settings_of(given: argparse.Namespace, mode: str, folder: str, **more) -> Settings:
    """A run of this experiment."""
    return Settings(
        mode=mode, model=given.model, data=given.data, skip_long=True, paper_quirk=given.paper_quirk,
        out=str(given.runs / folder), **more,
    ).resolve()  # fmt: skip


def search(given: argparse.Namespace) -> dict[str, float]:
    """mode -> the learning rate with the lowest validation loss."""
    rows = []
    for mode, rates in RATES.items():
        for lr in rates:
            folder = train(
                settings_of(given, mode, f"search-{mode}-{lr:g}", lr=lr, max_steps=SEARCH_STEPS), resume=True
            )
            loss = json.loads(read_text(folder / "summary.json"))["valid_loss"]
            rows.append({"mode": mode, "lr": f"{lr:g}", "steps": SEARCH_STEPS, "valid_loss": number(loss, 6)})
    write_rows(given.out / "search.csv", SEARCH_COLUMNS, rows)
    return {mode: float(min(of(rows, mode), key=lambda row: float(row["valid_loss"]))["lr"]) for mode in RATES}


def of(rows: list[dict], mode: str) -> list[dict]:
    return [row for row in rows if row["mode"] == mode]


def rows_of(settings: Settings, folder: Path) -> list[dict]:
    """The rows of a finished and evaluated run."""
    summary, scores, evaluation = (
        json.loads(read_text(folder / f"{name}.json")) for name in ("summary", "scores", "evaluation")
    )
    entries = {part: len(indices) for part, indices in settings.dataset.test_set("test").parts.items()}
    machine = summary["machine"]
    same = {name: getattr(settings, name) for name in ("mode", "prefix_len", "seed", "batch_size", "beam_size")}
    same |= {"run": folder.name, "model": Path(settings.model).name, "lr": f"{settings.lr:g}"}
    same |= {name: summary[name] for name in ("steps", "training_examples", "training_seconds")}
    same |= {"parameters_stored": summary["parameters"]["stored"], "valid_loss": number(summary["valid_loss"], 6)}
    same |= {name: evaluation[name] for name in ("decoding_seconds", "length_norm")}
    same |= {"signature": metrics.without_nrefs(evaluation["signature"])}
    same |= {"machine": machine_class(machine), "dtype": machine["dtype"], "torch": machine["torch"]}
    same["revision"] = revision()
    own = [{"part": part, "entries": entries[part]} for part in PARTS]
    return [same | row | {name: number(scores[row["part"]].get(name), 6) for name in SCORES} for row in own]


def table(rows: list[dict[str, str]]) -> str:
    """The table of README.md, made from runs.csv: a row for each run, BLEU, METEOR and TER of each part."""
    columns = [(name, part) for name in ("BLEU", "METEOR", "TER") for part in PARTS]
    header = ["WebNLG 2017, test", "stored", *(f"{name}, {part}" for name, part in columns)]
    lines = []
    for run in dict.fromkeys(row["run"] for row in rows):
        own = {row["part"]: row for row in rows if row["run"] == run}
        first = own["all"]
        what = "fine-tune" if first["mode"] == "finetune" else f"prefix, P = {first['prefix_len']}"
        cells = [f"{100 * float(own[part][name]):.1f}" if own[part][name] else "–" for name, part in columns]
        lines.append(
            [f"{first['model']}: {what}, seed {first['seed']}", f"{int(first['parameters_stored']):,}", *cells]
        )
    for name, bleu in PAPER_BLEU.items():
        lines.append([name, "–", *(f"{bleu[part]:.1f}" if score == "BLEU" else "–" for score, part in columns)])
    return markdown(header, lines)


def write_table(results: Path) -> None:
    """Put the table into README.md, between its comments."""
    path = results / "README.md"
    block = f"<!-- results:webnlg -->\n{table(read_rows(results / 'runs.csv'))}<!-- /results:webnlg -->"
    text = read_text(path) if path.exists() else f"# WebNLG 2017\n\n{block}\n"
    with write_atomic(path) as file:
        file.write(re.sub(r"<!-- results:webnlg -->.*<!-- /results:webnlg -->", lambda _: block, text, flags=re.S))


@exit_on_input_error
def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(allow_abbrev=False, description="A prefix and fine-tuning on WebNLG 2017.")
    parser.add_argument("--model", default="mini", help="as for train.py (default: mini)")
    parser.add_argument("--data", default=WEBNLG, help="webnlg: downloaded (the default); or a folder with it")
    parser.add_argument("--seeds", type=int, nargs="+", default=[101], help="(default: 101)")
    parser.add_argument("--paper_quirk", action="store_true", help="source strings as in the paper's code")
    parser.add_argument("--runs", type=Path, default=Path("runs/webnlg"), help="(default: runs/webnlg)")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "webnlg", help="(default: results/webnlg)")
    given = parser.parse_args(argv)
    prepare_process(plain=False)
    rates, rows = search(given), []
    for seed in given.seeds:
        for mode in RATES:
            length = {"prefix_len": 5} if mode == "prefix" else {}
            name = f"{mode}{length.get('prefix_len', '')}-seed{seed}"
            settings = settings_of(given, mode, name, lr=rates[mode], epochs=1, seed=seed, **length)
            folder = train(settings, resume=True)
            if not (folder / "evaluation.json").exists():
                evaluate_run(folder)
            rows += rows_of(settings, folder)
            with write_atomic(given.out / "outputs" / f"{name}.txt") as file:
                file.write((folder / "outputs.txt").read_text(encoding="utf-8"))  # a text may be empty
            write_rows(given.out / "runs.csv", COLUMNS, rows)
    write_table(given.out)
    print(table(read_rows(given.out / "runs.csv")))


if __name__ == "__main__":
    main()
