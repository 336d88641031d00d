"""The safetensors format, the Hugging Face hub's and this project's own for weights:

    8 bytes        n, little-endian: the length of the header
    n bytes        JSON: name -> {"dtype", "shape", "data_offsets": [begin, end]}, "__metadata__"
    the rest       the tensors' bytes; offsets count from here

It is data only: nothing is unpickled.
"""

import json
import math
import struct
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from harness.files import InputError, write_atomic

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(name -> tensor, metadata) of a safetensors file. Raises InputError if it is truncated or damaged."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} {'is not a file' if path.exists() else 'does not exist'}: check the path")
    size = path.stat().st_size
    try:
        with open(path, "rb") as file:
            (n,) = struct.unpack("<Q", file.read(8))
            if n > size - 8:
                raise ValueError("its header is longer than the file")
            header = json.loads(file.read(n))
        metadata = header.pop("__metadata__", {})
        if not all(isinstance(value, str) for value in metadata.values()):
            raise ValueError("its metadata are not strings")
        # A private copy-on-write mapping: pages are read on use, and the file is never modified.
        data = torch.from_numpy(np.memmap(path, dtype=np.uint8, mode="c"))
        tensors, start = {}, 8 + n
        for key, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):  # contiguous, in file order
            (begin, end), shape = entry["data_offsets"], entry["shape"]
            if entry["dtype"] not in DTYPES:
                raise ValueError(f"{key} has the type {entry['dtype']}, which is not supported")
            dtype = DTYPES[entry["dtype"]]
            if not all(0 <= dim < 2**40 for dim in shape):
                raise ValueError(f"{key} has the impossible shape {shape}")
            if begin != start - 8 - n or end > size - 8 - n or end - begin != math.prod(shape) * dtype.itemsize:
                raise ValueError(f"{key} is not where the header says; the file is truncated or damaged")
            piece = data[start : 8 + n + end]
            if start % dtype.itemsize:
                piece = piece.clone()  # a view with a wider dtype must be aligned to it
            tensors[key] = piece.view(dtype).view(shape)
            start = 8 + n + end
        if start != size:
            raise ValueError(f"{size - start} bytes are left over")
        return {key: tensors[key] for key in header}, metadata
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, struct.error) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(
            f"{path} is not a complete safetensors file ({reason}): restore it, or fetch it again if it was downloaded"
        ) from None


def check_finite(tensors: dict[str, Tensor], path: Path) -> None:
    """Raise InputError if one of a file's tensors holds NaN or infinity: a model would compute with it silently."""
    for key, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise InputError(f"{path}: {key} holds numbers that are not finite: restore it, or fetch it again")


def write_safetensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write tensors (as contiguous copies on the CPU) and metadata, atomically."""
    names = {dtype: name for name, dtype in DTYPES.items()}
    header, offset = {"__metadata__": {"format": "pt"} | metadata}, 0  # transformers requires "format"
    for key, tensor in tensors.items():
        end = offset + tensor.numel() * tensor.element_size()
        header[key] = {"dtype": names[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # aligns the data to 8 bytes
    with write_atomic(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors.values():
            file.write(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
