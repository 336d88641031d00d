"""The fast path: what the plain files compute, from the same parameters and through the same hooks, in less time.

    plain                      fast                      how
    train.summed_loss          training.summed_loss      no padding outside attention, logits of scored tokens only
    train.adamw                training.adamw            one pass over the weights
    train.clip_gradients       training.clip_gradients   the norm row by row, the division inside AdamW
    beam.NextWords             decoding.NextWords        beams share keys and values; frozen weights are packed
    F.dropout                  ops.dropout               16 random bits each (LoRA's, GPT-2's in training)

    summed_loss, NextWords     llama.*                   the same for a Llama, whose weights are not packed

harness/door.py is the only place that imports this package, and chooses. tests/test_fast.py holds each function to its
plain counterpart.

    ops.py          products, dropout, the tied embedding, padding
    loss.py         cross entropy over a large vocabulary, with its gradient computed in the forward pass
    training.py     the loss of a batch; AdamW and clipping
    tree.py         keys and values of beams, each stored once
    prepacked.py    weights in oneDNN's own layout; the vocabulary in two rounds
    decoding.py     the best next words
    llama.py        the loss and the next words of a Llama
    memory.py       the C library keeps freed memory, in large pages
    denormals.py    numbers below fp32's normal range count as zero
"""

from fast import llama
from fast.decoding import NextWords, pack
from fast.denormals import flush_denormals
from fast.memory import keep_freed_memory
from fast.ops import dropout
from fast.training import adamw, clip_gradients, round_frozen, summed_loss

__all__ = [
    "NextWords",
    "adamw",
    "clip_gradients",
    "dropout",
    "flush_denormals",
    "keep_freed_memory",
    "llama",
    "pack",
    "round_frozen",
    "summed_loss",
]
