"""Numbers below the normal range of fp32, 1.2e-38, count as zero.

A CPU computes with them many times more slowly than with other numbers. They come from the softmax: a learned prefix
attracts nearly all of a head's attention, and the other tokens' weights fall to 1e-39. Beside the remaining weights,
which sum to 1, they change nothing. In fp32 it matters most: x86's products in bf16 ignore such numbers anyway.
"""

import torch


def flush_denormals() -> None:
    """Let the CPU treat such numbers as zero, where it can.

    It holds for the calling thread and for threads that start later, PyTorch's own among them. So a program calls it
    once, at its start, before the first computation.
    """
    torch.set_flush_denormal(True)
