"""What training.py and decoding.py share: contenders in processes of their own, the peer's model, E2E's lengths.

The contenders live from the first round to the last and work in turn, one at a time. Whatever slows the machine for a
while slows all of them, and each one's peak memory is its own. A ratio is taken within each round; the report gives its
median and its extremes.
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
from contextlib import nullcontext, suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch

import llama  # found through the line above, as are the next ones
from e2e_data import Encoded
from gpt2 import CONFIGS, GPT2
from harness.files import InputError
from harness.hub_files import hub_config
from harness.machine import describe_machine
from harness.settings import Settings
from llama import Llama
from prefix import Prefix

PACKAGES = ("transformers", "peft")
NAMED = (*CONFIGS, *llama.CONFIGS)  # the models that are measured with random weights


# ----------------------------------------------------------------------------- a contender and its rounds


class Contender:
    """An object in another process. `call` runs one of its methods there and measures it."""

    def __init__(self, make, *arguments, device: str):
        """Start building make(*arguments) in the other process. The first call waits for it, and raises its error."""
        context = multiprocessing.get_context("spawn")  # a new Python, so its peak holds no memory of this process
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, device, make, arguments), daemon=True)
        self.process.start()
        theirs.close()

    def call(self, method: str, *arguments) -> dict:
        """{"result", "seconds", "megabytes"}: the method's result, its time, and the peak memory while it ran."""
        try:
            with suppress(BrokenPipeError):  # if it has ended, the error that it sent last can still be read
                self.pipe.send((method, arguments))
            answer = self.pipe.recv()
        except (EOFError, OSError):
            raise InputError(
                "a contender's process was killed, most likely for lack of memory: choose fewer --modes"
            ) from None
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def end(self) -> None:
        """End the process, which releases its memory."""
        self.pipe.close()
        self.process.join()


def serve(pipe, device: str, make, arguments: tuple) -> None:
    """The other process: make the object, then run methods until the pipe is closed."""
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
    """Call the method. Returns its result, its seconds (until the GPU has finished) and the peak memory."""
    on_gpu = device.startswith("cuda")
    wait, reset_peak, peak = gpu_clock(device) if on_gpu else (lambda: None, reset_process_peak, process_peak)
    reset_peak()
    wait()
    began = time.perf_counter()
    result = method(*arguments)
    wait()
    return {"result": result, "seconds": time.perf_counter() - began, "megabytes": peak()}


def gpu_clock(device: str):
    """(wait for the device, reset the peak, megabytes of tensors at the peak), for a CUDA device."""

    def megabytes() -> float:
        return torch.cuda.max_memory_allocated(device) / 1e6

    return (lambda: torch.cuda.synchronize(device)), (lambda: torch.cuda.reset_peak_memory_stats(device)), megabytes


def reset_process_peak() -> None:
    """Reset this process's peak memory on Linux (proc(5): clear_refs). Elsewhere the peak is over its whole life."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def process_peak() -> float:
    """The peak resident memory of this process in megabytes, Python and the libraries included."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


def spread(above: list[float], below: list[float]) -> dict:
    """above / below, round by round: the median, the extremes and every ratio."""
    every = [a / b for a, b in zip(above, below)]
    return {"median": statistics.median(every), "min": min(every), "max": max(every), "every_round": every}


# ----------------------------------------------------------------------------- the peer


def check_peers() -> None:
    """Raise InputError if a package that the benchmark compares with is missing."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f"{' and '.join(missing)} cannot be imported: pip install -r requirements-dev.txt,"
            " or measure this project alone (--alone)"
        )


def transformers_twin(model: GPT2 | Llama, dropout: float = 0.0):
    """transformers' model with our weights: the same tensors, in fp32. All else is the library's default."""
    import transformers

    transformers.logging.set_verbosity_error()
    is_llama, end = isinstance(model, Llama), model.config.end_token
    more = {"bos_token_id": end, "eos_token_id": end, "pad_token_id": None, "tie_word_embeddings": True}
    if not is_llama:
        more |= dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), dropout)
    config = (transformers.LlamaConfig if is_llama else transformers.GPT2Config)(**hub_config(model.config) | more)
    with nullcontext() if is_llama else torch.device("meta"):  # a Llama computes RoPE's frequencies
        twin = (transformers.LlamaForCausalLM if is_llama else transformers.GPT2LMHeadModel)(config)
    twin.base_model.load_state_dict(model.state_dict(), assign=True)
    twin.tie_weights()  # the output layer is the embedding
    return twin


def peft_prefix(twin, prefix: Prefix, mid_dim: int):
    """peft's PrefixTuningConfig around transformers' model, with our prefix's initial numbers.

    mid_dim    > 0: for training, P' and the same MLP; 0: for decoding, the MLP's output
    On a Llama peft gives P' the width of the keys, G D. Here P' and the MLP's first layer get the width C, as ours.
    """
    import peft

    how = {"prefix_projection": True, "encoder_hidden_size": mid_dim} if mid_dim else {"inference_mode": True}
    config = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=prefix.prefix_len, **how)
    with warnings.catch_warnings(action="ignore", category=FutureWarning):  # one library's about the other
        twin = peft.get_peft_model(twin, config)
    encoder, rows = twin.prompt_encoder["default"], prefix.rows
    if mid_dim and encoder.embedding.weight.shape != rows.p_prime.shape:
        encoder.embedding = torch.nn.Embedding(*rows.p_prime.shape)
        encoder.transform[0] = torch.nn.Linear(rows.p_prime.size(1), mid_dim)
    with torch.no_grad():
        encoder.embedding.weight.copy_(rows.p_prime if mid_dim else rows())
        if mid_dim:
            encoder.transform.load_state_dict(rows.mlp.state_dict())
    return twin


def peft_lora(twin, settings: Settings):
    """peft's LoraConfig with its own initial numbers: one pair on GPT-2's c_attn, for q, k and v together; a pair each
    on a Llama's q_proj and v_proj."""
    import peft

    is_llama = twin.config.model_type == "llama"
    config = peft.LoraConfig(
        task_type="CAUSAL_LM", r=settings.lora_rank, lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout, target_modules=["q_proj", "v_proj"] if is_llama else ["c_attn"],
        fan_in_fan_out=not is_llama,
    )  # fmt: skip
    with warnings.catch_warnings(action="ignore"):  # the libraries' about each other
        return peft.get_peft_model(twin, config)


# ----------------------------------------------------------------------------- texts of E2E's lengths


def examples_like_e2e(n: int, vocab_size: int, seed: int = 0) -> list[Encoded]:
    """n examples of random tokens, with the lengths of E2E's training set.

    Its prompts have 14 to 45 tokens, 29.5 on average; its sentences with their end token 4 to 79, 27 on average. Longer
    tables have longer sentences (correlation 0.69), and the longest of ten examples has 77 tokens on average.
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
    """n prompts of random tokens, with the lengths of E2E's 630 test tables: 15 to 48, 37.4 on average."""
    rng = random.Random(seed)
    shares, lengths = (0, 0.05, 0.25, 0.5, 0.75, 0.95, 1), (15, 21, 36, 40, 43, 44, 48)  # quantiles of the lengths
    prompts = []
    for _ in range(n):
        u = rng.random()
        i = max(i for i in range(len(shares) - 1) if shares[i] <= u)
        length = lengths[i] + (lengths[i + 1] - lengths[i]) * (u - shares[i]) / (shares[i + 1] - shares[i])
        prompts.append(random_tokens(rng, round(length), vocab_size))
    return prompts


def within(low: int, value: float, high: int) -> int:
    """value, rounded and limited to [low, high]."""
    return min(high, max(low, round(value)))


def random_tokens(rng: random.Random, n: int, vocab_size: int) -> list[int]:
    """n tokens; the last is the vocabulary's last, which is GPT-2's separator and end token."""
    return [rng.randrange(vocab_size - 1) for _ in range(n - 1)] + [vocab_size - 1]


# ----------------------------------------------------------------------------- what is printed and written


def weights_of(model: str) -> str | None:
    """Settings.weights: random for the models of NAMED, since speed does not depend on them; a folder has its own."""
    return "random" if model in NAMED else None


def describe(script: str, settings: Settings, data: str | None) -> dict:
    """What the figures were measured with, and the command that repeats the measurement."""
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    for name in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {
        "command": shlex.join(["python", f"benchmarks/{script}", *without_local_paths(sys.argv[1:])]),
        "machine": describe_machine(settings.device, settings.dtype),
        "versions": versions,
        "model": Path(settings.model).name + (", random weights" if weights_of(settings.model) else ""),
        "data": Path(data).name if data else "random tokens, as long as E2E's texts",
    }


def without_local_paths(words: list[str]) -> list[str]:
    """The command line without paths of this machine: no --out, and folders by their last part."""
    kept, words = [], iter(words)
    for word in words:
        if word == "--out":
            next(words, None)
        elif not word.startswith("--out="):
            kept.append(Path(word).name if "/" in word else word)
    return kept


def show_head(report: dict, what: str) -> None:
    """Two lines: what is measured, and with what."""
    machine = report["machine"]
    print(f"{report['model']}; {what}; {machine['dtype']} on {machine['device']}: {machine['processor']}")
    print(", ".join(f"{name} {version}" for name, version in report["versions"].items()) + f"; data: {report['data']}")


def show_contenders(report: dict, unit: str) -> None:
    """A line for each contender: the median speed, its extremes, the peak memory."""
    print(f"\n{'':40}{unit:>14}{'(min - max)':>20}{'MB':>8}")
    for name, one in report["contenders"].items():
        every = one["every_round"]
        print(
            f"{name:40}{one[key_of(unit)]:14.2f}{f'({min(every):.2f} - {max(every):.2f})':>20}{one['megabytes']:8.0f}"
        )


def show_ratios(report: dict) -> None:
    """A line for each ratio of speeds, with the ratio of memory if both sides do the same work."""
    if report["ratios"]:
        print(f"\n{'':46}{'ratio':>8}{'(min - max)':>18}{'memory':>8}")
    for name, one in report["ratios"].items():
        memory = f"{one['memory']:.2f}" if "memory" in one else ""
        extremes = f"({one['min']:.2f} - {one['max']:.2f})"
        print(f"{name:46}{one['median']:8.2f}{extremes:>18}{memory:>8}")


def show_growth(report: dict, unit: str) -> None:
    """A table for each quantity that was varied; speeds are also given relative to its first line."""
    for name, lines in report.get("growth", {}).items():
        print(f"\n{name:16}{unit:>14}{'of the first':>14}{'MB':>8}")
        for line in lines:
            speed = line[key_of(unit)]
            print(f"{line[name]!s:16}{speed:14.2f}{speed / lines[0][key_of(unit)]:14.2f}{line['megabytes']:8.0f}")


def key_of(unit: str) -> str:
    """examples/s -> examples_per_s"""
    return unit.replace("/", "_per_")
