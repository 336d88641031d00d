"""Time, memory and BLEU of the README's quick start.

    python benchmarks/quick_start.py

The command is read from README.md and runs once, in a process of its own and in a temporary folder. Its seconds include
starting Python, reading the model, training, decoding and scoring. METEOR's tables are packed before, because that is
done once on each machine.

Prints a table and writes it to results/quick_start.json.
"""

import argparse
import json
import re
import resource
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from contenders import ROOT, describe, show_head
from harness.files import InputError, exit_on_input_error, read_text
from harness.runs import load_settings, write_json
from metrics import meteor_tables


@exit_on_input_error
def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(allow_abbrev=False, description="Measure the README's quick start.")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "results" / "quick_start.json", help="(default: results/quick_start.json)"
    )
    given = parser.parse_args()
    if meteor_tables.available() is None:
        meteor_tables.load()
    report = measure(quick_start())
    show_head(report, report["quick_start"])
    print(f"\n{report['seconds']:.1f} s in all, {report['training_seconds']:.1f} s in training steps")
    print(f"{report['megabytes']:.0f} MB\nBLEU {100 * report['scores']['BLEU']:.1f}")
    write_json(given.out, report)


def quick_start() -> str:
    """The command, as README.md prints it after the installation."""
    found = re.search(
        r"^(?:.* && )?(python train\.py .*--model mini --data mini)$", read_text(ROOT / "README.md"), re.M
    )
    if found is None:
        raise InputError(f"{ROOT / 'README.md'} prints no command with --model mini --data mini: restore it")
    return found[1]


def measure(command: str) -> dict:
    """Run the command once; what it took, and its scores."""
    _, script, *flags = shlex.split(command)
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        ended = subprocess.run([sys.executable, str(ROOT / script), *flags], cwd=folder, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - began
        if ended.returncode:
            raise InputError(f"{command} ended with status {ended.returncode}: its own message is above")
        (run,) = (Path(folder) / "runs").iterdir()
        settings = load_settings(run)
        summary, scores = (json.loads(read_text(run / f"{name}.json")) for name in ("summary", "scores"))
    unit = 1e6 if sys.platform == "darwin" else 1e3  # macOS counts bytes, Linux kilobytes
    return describe("quick_start.py", settings, settings.data) | {
        "quick_start": command,
        "seconds": seconds,
        "training_seconds": summary["training_seconds"],
        "megabytes": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / unit,
        "scores": scores,
    }


if __name__ == "__main__":
    main()
