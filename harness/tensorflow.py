"""TensorFlow's checkpoint format (OpenAI's own release of GPT-2), read without TensorFlow.

A checkpoint is two files. `model.ckpt.data-00000-of-00001` holds the bytes, and `model.ckpt.index` says where each
tensor lies. The index is a sorted-string table as LevelDB defines it: blocks of (key, value), and a footer that points
to them. A value is a protocol-buffer message, BundleEntryProto (tensorflow/core/protobuf/tensor_bundle.proto).

Left out: compressed index blocks and tensors split into slices, which GPT-2's checkpoints do not have (both are
refused with a sentence), and TensorFlow's checksums (CRC-32C), too slow in Python for gigabytes.
"""

import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from harness.files import InputError

TABLE_MAGIC = 0xDB4775248B80FB57
# The numbers of tensorflow/core/framework/types.proto.
TF_DTYPES = {1: np.float32, 2: np.float64, 3: np.int32, 9: np.int64, 19: np.float16}


def read_tensorflow(index: Path) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) for each entry of a TensorFlow checkpoint, given its .index file."""
    index = Path(index)
    try:
        entries = dict(read_table(index.read_bytes()))
        shards = parse_message(entries.pop(b"", b"")).get(1, [0])[0]  # the empty key: BundleHeaderProto.num_shards
        files = {}
        for key, value in entries.items():
            entry = parse_message(value)  # dtype 1, shape 2, shard_id 3, offset 4, size 5, crc32c 6, slices 7
            if 7 in entry:
                raise ValueError("it holds a tensor in slices")
            shape = [parse_message(d).get(1, [0])[0] for d in parse_message(entry.get(2, [b""])[0]).get(2, [])]
            shard, offset, size = (entry.get(field, [0])[0] for field in (3, 4, 5))
            dtype = np.dtype(TF_DTYPES[entry[1][0]])
            if shard not in files:
                path = index.with_name(f"{index.stem}.data-{shard:05d}-of-{shards:05d}")
                files[shard] = np.memmap(path, dtype=np.uint8, mode="c")
            if offset + size > len(files[shard]) or size != np.prod(shape, dtype=np.int64) * dtype.itemsize:
                raise ValueError(
                    f"{key.decode()} is not where the index says;"
                    " the data file is truncated or belongs to another checkpoint"
                )
            yield key.decode(), torch.from_numpy(files[shard][offset : offset + size].view(dtype).reshape(shape))
    except FileNotFoundError as error:
        raise InputError(f"{error.filename} is missing: put it next to {index.name}") from None
    except (ValueError, KeyError, IndexError, TypeError, OverflowError, struct.error) as error:
        raise InputError(
            f"{index} is not a complete TensorFlow checkpoint ({error}): delete it and fetch it again"
        ) from None


def read_table(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(key, value) pairs of a sorted-string table. Its last 48 bytes, the footer, point to an index block, whose values
    point to the data blocks: offset and size as varints.
    """
    if len(data) < 48 or struct.unpack("<Q", data[-8:])[0] != TABLE_MAGIC:
        raise ValueError("the sorted-string table's magic number is missing")
    _, at = read_varint(data, len(data) - 48)  # the first handle is the meta-index block's, unused here
    _, at = read_varint(data, at)
    offset, at = read_varint(data, at)
    size, _ = read_varint(data, at)
    for _, handle in read_block(data, offset, size):
        block_offset, at = read_varint(handle, 0)
        yield from read_block(data, block_offset, read_varint(handle, at)[0])


def read_block(data: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """(key, value) pairs of one block. Keys are delta-encoded: each stores its difference from the previous one."""
    if data[offset + size] != 0:
        raise ValueError("its index is compressed, which is not supported")
    block = data[offset : offset + size]
    (restarts,) = struct.unpack("<I", block[-4:])  # the block ends with a list of restart points for binary search
    at, key = 0, b""
    while at < size - 4 - 4 * restarts:
        shared, at = read_varint(block, at)
        unshared, at = read_varint(block, at)
        length, at = read_varint(block, at)
        key = key[:shared] + block[at : at + unshared]
        at += unshared
        yield key, block[at : at + length]
        at += length


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    """A varint, 7 bits a byte, lowest first, the top bit set if more follow: (value, next position)."""
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, at


def parse_message(data: bytes) -> dict[int, list]:
    """A protocol-buffer message as field number -> values: integers, or bytes for nested messages."""
    fields, at = {}, 0
    while at < len(data):
        tag, at = read_varint(data, at)
        kind = tag & 7
        if kind == 0:  # varint
            value, at = read_varint(data, at)
        elif kind == 2:  # length-prefixed bytes
            length, at = read_varint(data, at)
            value, at = data[at : at + length], at + length
        elif kind in (1, 5):  # 8 or 4 bytes
            width = 8 if kind == 1 else 4
            value, at = int.from_bytes(data[at : at + width], "little"), at + width
        else:
            raise ValueError(f"unknown wire type {kind}")
        fields.setdefault(tag >> 3, []).append(value)
    return fields
