"""The machine: device, number format, and how they are described beside a figure."""

import platform
from contextlib import nullcontext
from pathlib import Path

import torch

from harness import ranks
from harness.files import InputError


def pick_device(name: str) -> str:
    """The device to use: for "auto" "cuda" if there is one, else "cpu". Each of several ranks has a GPU of its own.

    Raises InputError if the device cannot be used.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        name = ranks.own_gpu()
    try:
        torch.empty(1, device=name).cpu()
        if name.startswith("cuda:"):
            torch.cuda.set_device(name)  # or calls that name no GPU would use the first one
    except (RuntimeError, AssertionError, ImportError) as error:  # PyTorch's ways to say "not compiled with"
        raise InputError(f"--device {name} cannot be used here: {str(error).splitlines()[0]}") from None
    return name


def pick_dtype(name: str, device: str) -> str:
    """ "auto" -> "bf16" if the hardware multiplies in bf16, else "fp32"."""
    if name != "auto":
        return name
    if device.startswith("cuda"):
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if device == "cpu" and cpu_has_bf16() else "fp32"


def cpu_facts() -> dict[str, str]:
    """What Linux says about the first CPU, e.g. "model name" and "flags"; elsewhere nothing."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    lines = (line.partition(":") for line in text.split("\n\n")[0].splitlines())
    return {name.strip(): value.strip() for name, _, value in lines}


def cpu_has_bf16() -> bool:
    """Does the CPU have AMX or AVX512-BF16? (Without them PyTorch emulates bf16, slower than fp32.)"""
    return not {"amx_bf16", "avx512_bf16"}.isdisjoint(cpu_facts().get("flags", "").split())


def autocast(device: str, dtype: str):
    """The context in which the model is called: with "bf16", matrix products in bf16; with "fp32", nothing special."""
    return torch.autocast(device.split(":")[0], torch.bfloat16) if dtype == "bf16" else nullcontext()


def describe_machine(device: str, dtype: str) -> dict[str, str]:
    """What a figure was measured on."""
    processor = cpu_facts().get("model name") or platform.processor() or platform.machine()
    processor += f", {torch.get_num_threads()} threads"
    if device.startswith("cuda"):
        processor = torch.cuda.get_device_name(device)
    facts = {"device": device, "processor": processor, "dtype": dtype, "torch": torch.__version__}
    return facts | ({"processes": str(ranks.size())} if ranks.size() > 1 else {})
