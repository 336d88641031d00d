"""Does a run's score depend on how it is decoded? It is decoded again with other batch sizes, on the plain path, with
the instruction sets of older CPUs, and in bf16.

    python experiments/steady.py --run runs/mini-prefix5

Rounding is the only difference between these: sums are taken in another order. In fp32 it is about 1e-6 of a
log-probability, in bf16 about 1e-2, which is more than the distance between many pairs of hypotheses in a beam. The
instruction sets are emulated by environment variables that PyTorch and oneDNN read; what a library chooses by itself,
such as MKL on processors that are not Intel's, stays.

Each row is one process: `evaluate.py` on a copy of the run's folder. Writes results/steady.json.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

if __name__ == "__main__":  # so that this project's modules are found
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from experiments.record import data_label, revision
from harness.files import InputError, exit_on_input_error, read_text
from harness.machine import cpu_has_bf16, describe_machine
from harness.runs import load_settings, trained_file, write_json

ROOT = Path(__file__).resolve().parents[1]
OLDER = {
    "AVX2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "SSE4": {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"},
}
# The first is what the others are compared with: (how, flags of evaluate.py, environment).
WAYS = (
    ("64 tables at a time", ("--batch_size", "64"), {}),
    ("32 tables at a time", ("--batch_size", "32"), {}),
    ("8 tables at a time", ("--batch_size", "8"), {}),
    ("plain, 64 tables at a time", ("--batch_size", "64", "--plain"), {}),
    ("plain, 32 tables at a time", ("--batch_size", "32", "--plain"), {}),
    ("plain, 8 tables at a time", ("--batch_size", "8", "--plain"), {}),
    *((f"instructions up to {name}", ("--batch_size", "64"), variables) for name, variables in OLDER.items()),
)
IN_BF16 = (
    ("bf16, 64 tables at a time", ("--batch_size", "64", "--decode_dtype", "bf16"), {}),
    ("bf16, 8 tables at a time", ("--batch_size", "8", "--decode_dtype", "bf16"), {}),
)


def decode(run: Path, flags: tuple[str, ...], variables: dict[str, str]) -> tuple[list[str], float, float]:
    """Decode a run in a process of its own: (texts, BLEU, seconds of decoding)."""
    own = load_settings(run)
    with tempfile.TemporaryDirectory() as folder:
        for path in (run / "settings.json", run / "summary.json", trained_file(run, own.finetunes, own.adapts)):
            shutil.copy(path, folder)
        command = [sys.executable, str(ROOT / "evaluate.py"), "--run", folder, *flags]
        done = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True)
        if done.returncode:
            raise InputError(f"{' '.join(command)} failed: {done.stderr.strip().splitlines()[-1]}")
        (outputs,) = Path(folder).glob("outputs*.txt")
        ending = outputs.stem.removeprefix("outputs")
        scores, about = (
            json.loads(read_text(Path(folder) / f"{name}{ending}.json")) for name in ("scores", "evaluation")
        )
        return read_text(outputs).splitlines(), scores["BLEU"], about["decoding_seconds"]


@exit_on_input_error
def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(allow_abbrev=False, description="Decode a run again in other ways, and compare.")
    parser.add_argument("--run", type=Path, required=True, help="a folder that train.py wrote")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "steady.json")
    given = parser.parse_args(argv)
    settings = load_settings(given.run)
    rows, first = [], None
    for how, flags, variables in (*WAYS, *(IN_BF16 if cpu_has_bf16() else ())):
        texts, bleu, seconds = decode(given.run, flags, variables)
        first = first or texts
        others = sum(a != b for a, b in zip(texts, first, strict=True))
        rows.append({"how": how, "texts_that_differ": others, "BLEU": round(100 * bleu, 4), "seconds": seconds})
        print(f"{how:<30} BLEU {100 * bleu:.2f}, {others} of {len(texts)} texts differ, {seconds:.0f} s", flush=True)
    steps = json.loads(read_text(given.run / "summary.json"))["steps"]
    about = {
        "model": Path(settings.model).name,
        "mode": settings.mode,
        "prefix_len": settings.prefix_len,
        "steps": steps,
    }
    about |= {"data": data_label(settings.data), "tables": len(first), "machine": describe_machine("cpu", "fp32")}
    write_json(given.out, about | {"revision": revision(), "rows": rows})


if __name__ == "__main__":
    main()
