"""The GGUF format, in which llama.cpp keeps models: metadata (numbers, texts, the vocabulary) and tensors, in one file.

    "GGUF", version, number of tensors, number of metadata entries
    metadata       key, type, value; an array has its elements' type and their number
    tensors        name, number of dimensions, dimensions (the innermost first), type, offset
    the data       begins at the next multiple of general.alignment (32); offsets count from here

Numbers are little-endian; a text is its length in 8 bytes and UTF-8. Most tensors are quantised. A block is 32 weights
of a row, and these are the types that are read here:

    F32, F16       as they are
    Q8_0           d (fp16), 32 signed bytes q                     x = d q
    Q4_1           d, m (fp16), 16 bytes of two numbers q each     x = d q + m      (the low four bits: weights 0 .. 15)

Source: the specification, docs/gguf.md of ggml-org/ggml. Left out: the other thirty types, big-endian files, version 1,
and models split into several files. It is data only: nothing is executed.
"""

import math
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from harness.files import InputError

BLOCK = 32  # weights in a block
TEXT, ARRAY = 8, 9
SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}  # struct's letters


def f32(raw: np.ndarray) -> np.ndarray:
    return raw.view("<f4").copy()


def f16(raw: np.ndarray) -> np.ndarray:
    return raw.view("<f2").astype(np.float32)


def q8_0(raw: np.ndarray) -> np.ndarray:
    """[bytes] -> [weights]; a block is 2 + 32 bytes."""
    blocks = raw.reshape(-1, 2 + BLOCK)
    d, q = f16(blocks[:, :2].copy()), blocks[:, 2:].view(np.int8)  # [n, 1], [n, 32]
    return d * q


def q4_1(raw: np.ndarray) -> np.ndarray:
    """[bytes] -> [weights]; a block is 2 + 2 + 16 bytes."""
    blocks = raw.reshape(-1, 4 + BLOCK // 2)
    d, m = f16(blocks[:, :2].copy()), f16(blocks[:, 2:4].copy())  # each [n, 1]
    q = np.concatenate([blocks[:, 4:] & 15, blocks[:, 4:] >> 4], axis=1)  # [n, 32]
    return d * q + m


# type -> name, weights in a block, bytes of a block, how to read it
TYPES: dict[int, tuple[str, int, int, Callable]] = {
    0: ("F32", 1, 4, f32), 1: ("F16", 1, 2, f16), 3: ("Q4_1", BLOCK, 20, q4_1), 8: ("Q8_0", BLOCK, 34, q8_0),
}  # fmt: skip


class Cursor:
    """Reads a file's bytes in order. Raises ValueError at its end."""

    def __init__(self, data: np.ndarray):
        self.data, self.at = memoryview(data), 0

    def take(self, n: int) -> bytes:
        if n > len(self.data) - self.at:
            raise ValueError(f"it ends within byte {self.at}'s entry")
        self.at += n
        return bytes(self.data[self.at - n : self.at])

    def numbers(self, letter: str, n: int) -> tuple:
        return struct.unpack(f"<{n}{letter}", self.take(n * struct.calcsize(f"<{letter}")))

    def number(self, letter: str):
        return self.numbers(letter, 1)[0]

    def text(self) -> str:
        return self.take(self.number("Q")).decode("utf-8")

    def value(self):
        """A metadata entry's value: a number, a text, or a list of either."""
        kind = self.number("I")
        if kind != ARRAY:
            return self.text() if kind == TEXT else self.number(SCALARS[kind])
        kind, n = self.number("I"), self.number("Q")
        return [self.text() for _ in range(n)] if kind == TEXT else list(self.numbers(SCALARS[kind], n))


class GGUF:
    """A file's metadata and where its tensors are; `tensor` reads one.

    metadata  key -> number, text or list
    shapes    name -> shape, the outermost dimension first, as PyTorch counts
    Raises InputError for a file that is truncated, damaged or of a kind that is not read (see above).
    """

    def __init__(self, path: Path):
        self.path = path = Path(path)
        if not path.is_file():
            raise InputError(f"{path} {'is not a file' if path.exists() else 'does not exist'}: check the path")
        try:
            if path.stat().st_size < 24:
                raise ValueError("it is shorter than a header")
            self.data = np.memmap(path, dtype=np.uint8, mode="r")
            self.metadata, self.places = read_header(self.data)
        except (ValueError, KeyError, struct.error, OverflowError, MemoryError) as error:
            raise InputError(
                f"{path} is not a complete GGUF file ({describe(error)}): delete it and fetch it again"
            ) from None
        for name, (_, kind, _) in self.places.items():
            if kind not in TYPES:
                known = ", ".join(name for name, *_ in TYPES.values())
                raise InputError(
                    f"{path}: {name} has the tensor type {kind} of GGUF, but only {known} are read:"
                    " use another quantisation of the model, e.g. F16 or Q8_0"
                )
        self.shapes = {name: shape for name, (shape, _, _) in self.places.items()}

    def tensor(self, name: str) -> Tensor:
        """A tensor in fp32, in memory of its own."""
        shape, kind, start = self.places[name]
        n_bytes = size_of(shape, kind)
        return torch.from_numpy(TYPES[kind][3](self.data[start : start + n_bytes])).view(shape)


def describe(error: Exception) -> str:
    """The reason in words: a KeyError says no more than the key."""
    return f"an unknown type, {error}" if isinstance(error, KeyError) else str(error) or type(error).__name__


def size_of(shape: tuple[int, ...], kind: int) -> int:
    """Bytes of a tensor."""
    _, weights, n_bytes, _ = TYPES[kind]
    return math.prod(shape) // weights * n_bytes


def read_header(data: np.ndarray) -> tuple[dict, dict[str, tuple[tuple[int, ...], int, int]]]:
    """(metadata, name -> (shape, type, first byte)). Raises ValueError and the like for what is damaged."""
    file = Cursor(data)
    if file.take(4) != b"GGUF":
        raise ValueError("it does not begin with GGUF")
    version, n_tensors, n_entries = file.number("I"), file.number("Q"), file.number("Q")
    if version not in (2, 3):
        raise ValueError(f"its version is {version}, not 2 or 3")
    metadata = {}
    for _ in range(n_entries):
        key = file.text()
        metadata[key] = file.value()
    listed = []
    for _ in range(n_tensors):
        name, n_dims = file.text(), file.number("I")
        if n_dims > 4:
            raise ValueError(f"{name} has {n_dims} dimensions")
        dims = file.numbers("Q", n_dims)
        listed.append((name, dims[::-1], file.number("I"), file.number("Q")))
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or alignment < 1:
        raise ValueError(f"its alignment is {alignment!r}")
    start = -(-file.at // alignment) * alignment
    places = {}
    for name, shape, kind, offset in listed:
        if kind in TYPES:  # the sizes of others are not known
            if not all(0 < dim < 2**40 for dim in shape) or (shape and shape[-1] % TYPES[kind][1]):
                raise ValueError(f"{name} has the impossible shape {list(shape)}")
            if start + offset + size_of(shape, kind) > len(data):
                raise ValueError(f"{name} is not where the header says; the file is truncated or damaged")
        if name in places:
            raise ValueError(f"{name} appears twice")
        places[name] = (shape, kind, start + offset)
    return metadata, places
