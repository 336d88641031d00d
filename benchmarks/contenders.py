"""What training.py and decoding.py share: each side of a comparison in a process of its own, the peer's model, E2E's lengths.

The contenders live from the first round to the last and work in turn, one at a time: whatever slows the machine down for
a while falls on all of them, and each one's peak memory is its own. A ratio is taken within each round; its median is
stated, and from where to where it went.
"""

import importlib.metadata
import importlib.util
import multiprocessing
import platform
import random
import resource
import shlex
import statistics
import sys
import time
import traceback
import warnings
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402 (the imports below are found through the line above)

from e2e_data import Encoded  # noqa: E402
from harness.files import InputError  # noqa: E402
from gpt2 import CONFIGS, GPT2  # noqa: E402
from prefix import Prefix  # noqa: E402
from harness.settings import Settings  # noqa: E402
from harness.machine import describe_machine  # noqa: E402

PACKAGES = ("transformers", "peft")


# ----------------------------------------------------------------------------- a contender and its rounds


class Contender:
    """An object that lives in another process; `call` runs one of its methods there and measures it."""

    def __init__(self, make, *arguments, device: str):
        """Starts building make(*arguments) over there and does not wait for it: the first call does, and raises what went wrong."""
        context = multiprocessing.get_context("spawn")  # a new Python: nothing of this process' memory is in its peak
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, device, make, arguments), daemon=True)
        self.process.start()
        theirs.close()

    def call(self, method: str, *arguments) -> dict:
        """{"result", "seconds", "megabytes"}: what the method returned, the time it took, and the peak of memory meanwhile."""
        try:
            with suppress(BrokenPipeError):  # it has ended: its last word, the reason, can still be read
                self.pipe.send((method, arguments))
            answer = self.pipe.recv()
        except (EOFError, OSError):
            raise InputError(
                "a contender was ended from outside, most likely for want of memory: choose fewer --modes"
            ) from None
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def end(self) -> None:
        """Give its memory back."""
        self.pipe.close()
        self.process.join()


def serve(pipe, device: str, make, arguments: tuple) -> None:
    """The other process: make the object, then do as told until nobody is there any more."""
    with suppress(EOFError, BrokenPipeError, KeyboardInterrupt):
        try:
            contender = make(*arguments)
            while True:
                method, arguments = pipe.recv()
                pipe.send(measure(getattr(contender, method), arguments, device))
        except (EOFError, BrokenPipeError):
            raise
        except InputError as error:
            pipe.send(error)
        except Exception as error:
            error.add_note("in the contender's process:\n" + traceback.format_exc())
            pipe.send(error)


def measure(method, arguments: tuple, device: str) -> dict:
    """Call the method; its result, seconds (a GPU has finished what it was given) and peak memory."""
    wait, forget_peak, peak = (
        gpu_clock(device) if device.startswith("cuda") else (lambda: None, forget_process_peak, process_peak)
    )
    forget_peak()
    wait()
    began = time.perf_counter()
    result = method(*arguments)
    wait()
    return {"result": result, "seconds": time.perf_counter() - began, "megabytes": peak()}


def gpu_clock(device: str):
    """(wait until all is done, begin a new peak, megabytes that tensors had at the peak) of a CUDA device."""

    def megabytes() -> float:
        return torch.cuda.max_memory_allocated(device) / 1e6

    return (lambda: torch.cuda.synchronize(device)), (lambda: torch.cuda.reset_peak_memory_stats(device)), megabytes


def forget_process_peak() -> None:
    """Let the peak begin anew, where the system can: on Linux (proc(5): clear_refs). Else it is that of the process' whole life."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def process_peak() -> float:
    """The most memory that this process has held, in megabytes: all of it, Python and the libraries too."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


def spread(above: list[float], below: list[float]) -> dict:
    """above / below, round by round: the median and the extremes."""
    every = [a / b for a, b in zip(above, below)]
    return {"median": statistics.median(every), "min": min(every), "max": max(every), "every_round": every}


# ----------------------------------------------------------------------------- the peer


def check_peers() -> None:
    """Raise InputError where the packages that we are compared with are missing."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f"{' and '.join(missing)} cannot be imported: pip install -r requirements-dev.txt, or measure this project alone (--alone)"
        )


def transformers_gpt2(model: GPT2, dropout: float = 0.0):
    """transformers' GPT-2 with our weights: the very tensors, in fp32. Everything else is as it comes from the library."""
    import transformers

    transformers.logging.set_verbosity_error()
    c = model.config
    config = transformers.GPT2Config(
        n_layer=c.n_layer, n_head=c.n_head, n_embd=c.n_embd, n_positions=c.n_positions, vocab_size=c.vocab_size,
        bos_token_id=c.vocab_size - 1, eos_token_id=c.vocab_size - 1, resid_pdrop=dropout, embd_pdrop=dropout, attn_pdrop=dropout,
    )  # fmt: skip
    with torch.device("meta"):
        twin = transformers.GPT2LMHeadModel(config)
    twin.transformer.load_state_dict(model.state_dict(), assign=True)
    twin.tie_weights()  # the output layer is wte
    return twin


def peft_prefix(twin, prefix: Prefix, mid_dim: int):
    """peft's PrefixTuningConfig around transformers' GPT-2, beginning as our prefix does.

    mid_dim > 0: while it is trained, P' and the same MLP; 0: after training, the numbers that are kept.
    """
    import peft

    how = {"prefix_projection": True, "encoder_hidden_size": mid_dim} if mid_dim else {"inference_mode": True}
    config = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=prefix.prefix_len, **how)
    with warnings.catch_warnings(action="ignore", category=FutureWarning):  # what one library says of the other
        twin = peft.get_peft_model(twin, config)
    encoder, rows = twin.prompt_encoder["default"], prefix.rows
    with torch.no_grad():
        encoder.embedding.weight.copy_(rows.p_prime if mid_dim else rows())
        if mid_dim:
            encoder.transform.load_state_dict(rows.mlp.state_dict())
    return twin


# ----------------------------------------------------------------------------- texts of E2E's lengths


def examples_like_e2e(n: int, vocab_size: int, seed: int = 0) -> list[Encoded]:
    """n examples of random tokens, as long as E2E's training set has them.

    There prompts have 14 to 45 tokens, 29.5 on average, and sentences with their end token 4 to 79, on average 27; a longer table has
    a longer sentence (correlation 0.69), and the longest of ten examples has 77 tokens.
    """
    rng = random.Random(seed)
    examples = []
    for _ in range(n):
        prompt = within(14, rng.gauss(29.5, 6.65), 45)
        target = within(4, 3 + 0.82 * prompt + rng.gauss(0, 5.9), 79)
        ids = [*random_tokens(rng, prompt, vocab_size), *random_tokens(rng, target, vocab_size)]
        examples.append(Encoded(ids, prompt))
    return examples


def prompts_like_e2e(n: int, vocab_size: int, seed: int = 0) -> list[list[int]]:
    """n prompts of random tokens, as long as those of E2E's 630 test tables: 15 to 48, on average 37.4."""
    rng = random.Random(seed)
    shares, lengths = (0, 0.05, 0.25, 0.5, 0.75, 0.95, 1), (15, 21, 36, 40, 43, 44, 48)  # so large a share is shorter
    prompts = []
    for _ in range(n):
        u = rng.random()
        i = max(i for i in range(len(shares) - 1) if shares[i] <= u)
        length = lengths[i] + (lengths[i + 1] - lengths[i]) * (u - shares[i]) / (shares[i + 1] - shares[i])
        prompts.append(random_tokens(rng, round(length), vocab_size))
    return prompts


def within(low: int, value: float, high: int) -> int:
    return min(high, max(low, round(value)))


def random_tokens(rng: random.Random, n: int, vocab_size: int) -> list[int]:
    """n tokens, the last of them the separator (which also ends a text)."""
    return [rng.randrange(vocab_size - 1) for _ in range(n - 1)] + [vocab_size - 1]


# ----------------------------------------------------------------------------- what is printed and written


def weights_of(model: str) -> str | None:
    """Speed does not depend on the weights: the published sizes get random ones, a folder has its own."""
    return "random" if model in CONFIGS else None


def describe(script: str, settings: Settings, data: str | None) -> dict:
    """What the figures were measured with, and the command that measures them again."""
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    for name in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {
        "command": shlex.join(["python", f"benchmarks/{script}", *told(sys.argv[1:])]),
        "machine": describe_machine(settings.device, settings.dtype),
        "versions": versions,
        "model": Path(settings.model).name + (", random weights" if weights_of(settings.model) else ""),
        "data": Path(data).name if data else "random tokens, as long as E2E's texts",
    }


def told(words: list[str]) -> list[str]:
    """The command line without what is one machine's own: where the report goes, and where folders lie."""
    kept, words = [], iter(words)
    for word in words:
        if word == "--out":
            next(words, None)
        elif not word.startswith("--out="):
            kept.append(Path(word).name if "/" in word else word)
    return kept


def show_head(report: dict, what: str) -> None:
    machine = report["machine"]
    print(f"{report['model']}; {what}; {machine['dtype']} on {machine['device']}: {machine['processor']}")
    print(", ".join(f"{name} {version}" for name, version in report["versions"].items()) + f"; data: {report['data']}")


def show_contenders(report: dict, unit: str) -> None:
    """A line for each contender: the median speed, its extremes, the peak of memory."""
    print(f"\n{'':40}{unit:>14}{'(min - max)':>20}{'MB':>8}")
    for name, one in report["contenders"].items():
        every = one["every_round"]
        print(
            f"{name:40}{one[key_of(unit)]:14.2f}{f'({min(every):.2f} - {max(every):.2f})':>20}{one['megabytes']:8.0f}"
        )


def show_ratios(report: dict) -> None:
    """A line for each ratio of speeds, with that of the memory where two do the same work."""
    if report["ratios"]:
        print(f"\n{'':46}{'ratio':>8}{'(min - max)':>18}{'memory':>8}")
    for name, one in report["ratios"].items():
        memory = f"{one['memory']:.2f}" if "memory" in one else ""
        extremes = f"({one['min']:.2f} - {one['max']:.2f})"
        print(f"{name:46}{one['median']:8.2f}{extremes:>18}{memory:>8}")


def show_growth(report: dict, unit: str) -> None:
    """A table for each quantity that was varied, against its first line."""
    for name, lines in report.get("growth", {}).items():
        print(f"\n{name:16}{unit:>14}{'of the first':>14}{'MB':>8}")
        for line in lines:
            speed = line[key_of(unit)]
            print(f"{line[name]!s:16}{speed:14.2f}{speed / lines[0][key_of(unit)]:14.2f}{line['megabytes']:8.0f}")


def key_of(unit: str) -> str:
    """examples/s -> examples_per_s"""
    return unit.replace("/", "_per_")
