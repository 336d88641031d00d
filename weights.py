"""OpenAI's GPT-2 weights: where they are, how their two file formats are read, without TensorFlow.

safetensors (the Hugging Face hub's copy), and what this project writes itself:

    8 bytes        n, little-endian: the length of the header
    n bytes        JSON: name -> {"dtype", "shape", "data_offsets": [begin, end]}, "__metadata__"
    the rest       the tensors' bytes; offsets count from here

TensorFlow's checkpoint (OpenAI's own release) is two files. `model.ckpt.data-00000-of-00001` holds
the bytes and `model.ckpt.index` says where each tensor lies. The index is a sorted-string table
as LevelDB defines it, blocks of (key, value) with a footer that points to them; a value is a
protocol-buffer message, BundleEntryProto (tensorflow/core/protobuf/tensor_bundle.proto).

Both are data and nothing else: no file is ever unpickled. Left out: compressed index blocks and
tensors split into slices, which GPT-2's checkpoints do not have (both are refused with a sentence),
and TensorFlow's checksums (CRC-32C), too slow in Python for gigabytes.
"""

import json
import math
import re
import struct
from pathlib import Path
from typing import Iterator

import numpy as np
import torch
from torch import Tensor

from files import OFFLINE, InputError, bundled, cache_dir, download, read_text, write_whole
from gpt2 import CONFIGS, GPT2, GPT2Config

HUB = "https://huggingface.co/openai-community/{name}/resolve/main/model.safetensors"
OPENAI = "https://openaipublic.blob.core.windows.net/gpt-2/models/{size}/{file}"
OPENAI_SIZES = {"gpt2": "124M", "gpt2-medium": "355M", "gpt2-large": "774M", "gpt2-xl": "1558M"}
TF_FILES = ("model.ckpt.index", "model.ckpt.data-00000-of-00001")
# What a config.json may state otherwise of models that share GPT-2's names and shapes, but compute something else.
FIXED = {"model_type": "gpt2", "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "scale_attn_weights": True,
         "scale_attn_by_inverse_layer_idx": False}  # fmt: skip


# ----------------------------------------------------------------------------- a model from files


def load_gpt2(name: str, weights: str | None = None, dropout: float = 0.0) -> GPT2:
    """A GPT-2 in fp32 with its weights.

    name     "gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "mini" (in this repository), or a folder that holds config.json
    weights  None: the folder's own file, or a download kept in the cache; a file or folder in
             either format; or "random", untrained weights for trying out the machinery
    Raises InputError for anything that is missing or does not fit.
    """
    config = load_config(name)
    if weights == "random":
        return GPT2(config, dropout).init_weights()
    path = find_checkpoint(Path(weights)) if weights else default_checkpoint(name)
    tensors = read_checkpoint(path)
    check_shapes(tensors, config, name, path)
    with torch.device("meta"):  # no memory and no time for weights that are about to be replaced
        model = GPT2(config, dropout)
    own = {key: tensor.to(torch.float32, copy=True) for key, tensor in tensors.items()}  # not the mapped file itself
    model.load_state_dict(own, assign=True)
    return model.requires_grad_(True)


def load_config(name: str) -> GPT2Config:
    """The architecture behind a published name, or that of a folder's config.json (or hparams.json)."""
    if name in CONFIGS:
        return CONFIGS[name]
    folder = bundled(name)
    for path in (folder / "config.json", folder / "hparams.json"):
        if path.exists():
            break
    else:
        raise InputError(f"unknown model {name!r}: use {', '.join(CONFIGS)}, mini, or a folder that holds config.json")
    try:
        stated = json.loads(read_text(path))
        for key, ours in FIXED.items():
            if stated.get(key, ours) != ours:
                raise ValueError(f"its {key} is {stated[key]!r}, not {ours!r}")
        n_positions = stated["n_positions"] if "n_positions" in stated else stated["n_ctx"]
        vocab_size = stated["vocab_size"] if "vocab_size" in stated else stated["n_vocab"]
        numbers = (stated["n_layer"], stated["n_head"], stated["n_embd"], n_positions, vocab_size)
        if not all(type(n) is int and n > 0 for n in numbers) or stated["n_embd"] % stated["n_head"]:
            raise ValueError("its numbers must be positive and whole, and n_embd a multiple of n_head")
        return GPT2Config(*numbers)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise InputError(
            f"{path} is not a GPT-2 configuration ({error}): it must state n_layer, n_head, n_embd, n_positions and vocab_size"
        ) from None


def default_checkpoint(name: str) -> Path:
    """A folder's own checkpoint, or the published one: downloaded once, from the hub or from OpenAI."""
    if name not in CONFIGS:
        return find_checkpoint(bundled(name))
    folder = cache_dir() / name
    for file in ("model.safetensors", TF_FILES[0]):
        if (folder / file).exists() and (file != TF_FILES[0] or (folder / TF_FILES[1]).exists()):
            return folder / file
    try:
        return download(HUB.format(name=name), folder / "model.safetensors")
    except InputError as at_hub:
        if isinstance(at_hub.__cause__, OSError):
            raise  # the disk is full: no other server helps
        try:
            for file in reversed(TF_FILES):  # the small index last: where it stands, the data do too
                download(OPENAI.format(size=OPENAI_SIZES[name], file=file), folder / file)
            return folder / TF_FILES[0]
        except InputError:
            raise InputError(
                f"no weights for {name}: {at_hub}; or name a copy with --weights PATH"
                f" (--weights random tries out the machinery with an untrained model). {OFFLINE}"
            ) from None


def find_checkpoint(path: Path) -> Path:
    """The checkpoint file that a user's path means: the file itself, or the one in a folder."""
    if path.is_dir():
        found = [*sorted(path.glob("*.safetensors")), *sorted(path.glob("*.index"))]
        names = [file for file in found if file.name in ("model.safetensors", TF_FILES[0])] or found
        if len(names) == 0:
            raise InputError(f"{path} holds no checkpoint: neither model.safetensors nor TensorFlow's model.ckpt.index is there")
        if len(names) > 1 and names[0].name != "model.safetensors":
            raise InputError(f"{path} holds several checkpoints: name one of {', '.join(file.name for file in names)}")
        return names[0]
    if not path.exists():
        raise InputError(f"{path} does not exist: check the path given with --weights")
    if path.suffix not in (".safetensors", ".index"):
        raise InputError(f"{path} is no checkpoint: name a .safetensors file, or the .index file of TensorFlow's")
    return path


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """A checkpoint's tensors under this project's names (`h.0.attn.c_attn.weight`), unchecked."""
    if path.suffix == ".index":
        entries = read_tensorflow(path)
        return {rename_tensorflow(key): tensor.squeeze(0) if key.endswith("/w") else tensor for key, tensor in entries}
    tensors = {key.removeprefix("transformer."): tensor for key, tensor in read_safetensors(path)[0].items()}
    for key in list(tensors):
        if re.fullmatch(r"h\.\d+\.attn\.(bias|masked_bias)", key):
            del tensors[key]  # the causal mask, which some exports carry along
    head, wte = tensors.pop("lm_head.weight", None), tensors.get("wte.weight")
    if head is not None and wte is not None and not (head.dtype == wte.dtype and torch.equal(head, wte)):
        raise InputError(f"{path}: lm_head.weight differs from wte.weight, which are one in GPT-2: use another checkpoint")
    return tensors


def rename_tensorflow(key: str) -> str:
    """model/h3/attn/c_attn/w -> h.3.attn.c_attn.weight; model/wte -> wte.weight."""
    parts = re.sub(r"^h(\d+)", r"h/\1", key.removeprefix("model/")).split("/")
    if parts[-1] in ("wte", "wpe"):
        parts.append("weight")
    else:
        parts[-1] = {"w": "weight", "g": "weight", "b": "bias"}.get(parts[-1], parts[-1])
    return ".".join(parts)


def check_shapes(tensors: dict[str, Tensor], config: GPT2Config, name: str, path: Path) -> None:
    """Every tensor that the model has must be there with its very shape, and no other."""
    with torch.device("meta"):
        expected = {key: tuple(tensor.shape) for key, tensor in GPT2(config).state_dict().items()}
    hint = ""
    for other, its in CONFIGS.items():
        if other != name and "wte.weight" in tensors and tuple(tensors["wte.weight"].shape) == (its.vocab_size, its.n_embd):
            hint = f"; it looks like {other}: use --model {other}"
    for key, shape in expected.items():
        if key not in tensors:
            raise InputError(f"{path} lacks {key}, so it is not {name}{hint}")
        if tuple(tensors[key].shape) != shape:
            raise InputError(f"{path}: {key} has shape {list(tensors[key].shape)}, but {name} needs {list(shape)}{hint}")
    if unknown := sorted(tensors.keys() - expected.keys()):
        raise InputError(f"{path} holds {unknown[0]}, which {name} does not have{hint}")


# ----------------------------------------------------------------------------- safetensors

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(name -> tensor, metadata) of a safetensors file. Raises InputError if it is not whole."""
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
            raise ValueError("its metadata are no texts")
        # Private copy-on-write mapping: pages are read when they are used, and the file stays as it is.
        data = torch.from_numpy(np.memmap(path, dtype=np.uint8, mode="c"))
        tensors, start = {}, 8 + n
        for key, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):  # side by side, without a gap
            (begin, end), shape = entry["data_offsets"], entry["shape"]
            if entry["dtype"] not in DTYPES:
                raise ValueError(f"{key} has the type {entry['dtype']}, which is not supported")
            dtype = DTYPES[entry["dtype"]]
            if not all(0 <= dim < 2**40 for dim in shape):
                raise ValueError(f"{key} has the impossible shape {shape}")
            if begin != start - 8 - n or end > size - 8 - n or end - begin != math.prod(shape) * dtype.itemsize:
                raise ValueError(f"{key} does not lie where the header says; the file is truncated or damaged")
            piece = data[start : 8 + n + end]
            if start % dtype.itemsize:
                piece = piece.clone()  # a view of wider numbers must start at a multiple of their width
            tensors[key] = piece.view(dtype).view(shape)
            start = 8 + n + end
        if start != size:
            raise ValueError(f"{size - start} bytes are left over")
        return {key: tensors[key] for key in header}, metadata
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, struct.error) as error:
        raise InputError(f"{path} is not a whole safetensors file ({error}): delete it and fetch it again") from None


def write_safetensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write tensors (contiguous copies on the CPU are made) and metadata; the file appears when it is whole."""
    names = {dtype: name for name, dtype in DTYPES.items()}
    header, offset = {"__metadata__": {"format": "pt"} | metadata}, 0  # "format" is what transformers looks for
    for key, tensor in tensors.items():
        end = offset + tensor.numel() * tensor.element_size()
        header[key] = {"dtype": names[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the data then start at a multiple of 8
    with write_whole(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors.values():
            file.write(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)


# ----------------------------------------------------------------------------- TensorFlow's checkpoint

TABLE_MAGIC = 0xDB4775248B80FB57
TF_DTYPES = {1: np.float32, 2: np.float64, 3: np.int32, 9: np.int64, 19: np.float16}  # tensorflow/core/framework/types.proto


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
                raise ValueError(f"{key.decode()} does not lie where the index says; the data file is truncated or another's")
            yield key.decode(), torch.from_numpy(files[shard][offset : offset + size].view(dtype).reshape(shape))
    except FileNotFoundError as error:
        raise InputError(f"{error.filename} is missing: it belongs beside {index.name}") from None
    except (ValueError, KeyError, IndexError, TypeError, OverflowError, struct.error) as error:
        raise InputError(f"{index} is not a whole TensorFlow checkpoint ({error}): delete it and fetch it again") from None


def read_table(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(key, value) pairs of a sorted-string table. Its last 48 bytes, the footer, point to an index
    block, whose values point to the data blocks: as variable-length integers, offset and size."""
    if len(data) < 48 or struct.unpack("<Q", data[-8:])[0] != TABLE_MAGIC:
        raise ValueError("the sorted-string table's closing number is missing")
    _, at = read_varint(data, len(data) - 48)  # the first handle is the meta-index block's, unused here
    _, at = read_varint(data, at)
    offset, at = read_varint(data, at)
    size, _ = read_varint(data, at)
    for _, handle in read_block(data, offset, size):
        block_offset, at = read_varint(handle, 0)
        yield from read_block(data, block_offset, read_varint(handle, at)[0])


def read_block(data: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """(key, value) pairs of one block. A key is stored as what differs from the key before it."""
    if data[offset + size] != 0:
        raise ValueError("its index is compressed, which is not supported")
    block = data[offset : offset + size]
    (restarts,) = struct.unpack("<I", block[-4:])  # a list for binary search stands at the block's end
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
    """An integer in groups of 7 bits, the lowest first, the top bit saying "more": (value, next position)."""
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
        if kind == 0:  # a variable-length integer
            value, at = read_varint(data, at)
        elif kind == 2:  # bytes, with their length in front
            length, at = read_varint(data, at)
            value, at = data[at : at + length], at + length
        elif kind in (1, 5):  # 8 or 4 bytes
            width = 8 if kind == 1 else 4
            value, at = int.from_bytes(data[at : at + width], "little"), at + width
        else:
            raise ValueError(f"unknown wire type {kind}")
        fields.setdefault(tag >> 3, []).append(value)
    return fields
