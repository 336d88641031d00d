"""Where the time of a training step goes, and how fast its matrix products are.

    python benchmarks/where_time_goes.py                       prefix and fine-tuning, GPT-2 small with random weights
    python benchmarks/where_time_goes.py --modes prefix --dtype fp32

Nearly all arithmetic of a step is in its matrix products, so their speed is the limit; all other operators add to the
time. The steps are `train.update` on batches as in training.py. PyTorch's profiler gives each operator's own time, and
the floating-point operations of products. The rest is Python's own time between the operators.

The profiler slows a step down, by a quarter with a prefix and by half in fine-tuning, whose large copies suffer most.
Read the shares as estimates. The time of a step without the profiler is given too, from steps taken just before.

Prints a table and writes it to results/where_time_goes.json. Only for the CPU.
"""

import argparse
import time
from pathlib import Path

from torch.profiler import ProfilerActivity, profile

from contenders import ROOT, describe, show_head
from harness.files import InputError, exit_on_input_error
from harness.runs import write_json
from training import Ours, make_batches, settings_of

# Operators by their purpose. All that are not listed are "other operators".
KINDS = {
    "products with weights": ("mm", "addmm"),
    "attention's products": ("bmm", "baddbmm"),
    "gelu": ("gelu", "gelu_backward"),
    "softmax, of attention and over the vocabulary": (
        "_softmax",
        "_softmax_backward_data",
        "_log_softmax",
        "exp_",
        "scatter_add_",
    ),
    "copies: casts, padding, heads": (
        "copy_",
        "cat",
        "index_select",
        "index_copy_",
        "clone",
        "fill_",
        "index_add_",
        "index",
    ),
    "sums, residuals, scaling": ("add", "add_", "mul", "mul_", "div", "div_", "sum", "ge_"),
    "layer norm": ("native_layer_norm", "native_layer_norm_backward"),
    "norm of the gradient, AdamW": ("linalg_vector_norm", "_fused_adamw_"),
}


@exit_on_input_error
def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(allow_abbrev=False, description="Measure where the time of a training step goes.")
    parser.add_argument(
        "--model", default="gpt2", help="gpt2 .. gpt2-xl, with random weights, or a folder (default: gpt2)"
    )
    parser.add_argument(
        "--modes", nargs="+", default=["prefix", "finetune"], choices=("prefix", "finetune"), help="(default: both)"
    )
    parser.add_argument(
        "--dtype", default="auto", choices=("auto", "bf16", "fp32"), help="(default: bf16 if the hardware has it)"
    )
    parser.add_argument("--steps", type=int, default=20, help="steps that are profiled (default: 20)")
    parser.add_argument("--warm_up", type=int, default=12, help="steps before them (default: 12)")
    parser.add_argument(
        "--out",
        type=Path,
        default=ROOT / "results" / "where_time_goes.json",
        help="(default: results/where_time_goes.json)",
    )
    given = parser.parse_args()
    if min(given.steps, given.warm_up) < 1:
        raise InputError("--steps and --warm_up must be at least 1")
    given.device, given.dropout, given.batch_size, given.prefix_len, given.data = "cpu", None, 10, 5, None
    settings = {mode: settings_of(given, mode=mode) for mode in given.modes}
    report = describe("where_time_goes.py", settings[given.modes[0]], None) | {
        "batch_size": given.batch_size,
        "steps": given.steps,
    }
    show_head(report, f"batches of {given.batch_size}, {given.steps} steps")
    batches = make_batches(given, settings[given.modes[0]], given.warm_up + 2 * given.steps)
    report["modes"] = {mode: look_at(Ours(s), batches, given.steps) for mode, s in settings.items()}
    for mode, found in report["modes"].items():
        show(mode, found)
    write_json(given.out, report)


def look_at(ours: Ours, batches: list, steps: int) -> dict:
    """Milliseconds of a step without the profiler and under it, by kind of operator, and the speed of its products."""
    ours.train(batches[: -2 * steps])
    began = time.perf_counter()
    ours.train(batches[-2 * steps : -steps])
    plain = (time.perf_counter() - began) / steps
    with profile(activities=[ProfilerActivity.CPU], with_flops=True) as seen:
        began = time.perf_counter()
        ours.train(batches[-steps:])
        whole = (time.perf_counter() - began) / steps
    events = seen.key_averages()
    kind_of = {f"aten::{name}": kind for kind, names in KINDS.items() for name in names}
    spent = dict.fromkeys([*KINDS, "other operators"], 0.0)
    for event in events:
        spent[kind_of.get(event.key, "other operators")] += event.self_cpu_time_total / 1e3 / steps
    spent["Python, and what the profiler does not see"] = whole * 1e3 - sum(spent.values())
    products = [kind for kind in KINDS if "products" in kind]
    flop = sum(event.flops for event in events if kind_of.get(event.key) in products) / steps
    return {
        "ms_a_step": plain * 1e3,
        "ms_a_step_profiled": whole * 1e3,
        "ms": spent,
        "gflop_a_step": flop / 1e9,
        "tflop_per_s_of_products": flop / 1e9 / sum(spent[kind] for kind in products),
        "tflop_per_s": flop / 1e12 / plain,
    }


def show(mode: str, found: dict) -> None:
    """Print a mode's table."""
    print(
        f"\n{mode}: a step takes {found['ms_a_step']:.0f} ms ({found['ms_a_step_profiled']:.0f} ms under the profiler)"
    )
    for kind, ms in sorted(found["ms"].items(), key=lambda pair: -pair[1]):
        print(f"{kind:48}{ms:8.1f} ms{100 * ms / found['ms_a_step_profiled']:6.1f} %")
    print(
        f"{found['gflop_a_step']:.0f} GFLOP a step: {found['tflop_per_s_of_products']:.2f} TFLOP/s in products,"
        f" {found['tflop_per_s']:.2f} in all"
    )


if __name__ == "__main__":
    main()
