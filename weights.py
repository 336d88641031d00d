"""GPT-2's weights (and a Llama's): where to find them, and how a checkpoint becomes a model.

A checkpoint's names and shapes are gpt2.py's own (`h.0.attn.c_attn.weight`), so loading is a copy, key by key, with
every shape checked. The two file formats are read in harness/safetensors.py (the Hugging Face hub's copy) and
harness/tensorflow.py (OpenAI's own release). What is different for a Llama is in harness/llama_files.py.
Left out: pickled checkpoints, which may run code when they are read.
"""

import json
import re
from pathlib import Path

import torch
from torch import Tensor

import llama
from gpt2 import CONFIGS, GPT2, GPT2Config
from harness import llama_files
from harness.download import OFFLINE, cache_dir, download
from harness.files import InputError, read_text, resolve_path
from harness.safetensors import check_finite, read_safetensors
from harness.tensorflow import read_tensorflow
from llama import Llama, LlamaConfig

HUB = "https://huggingface.co/openai-community/{name}/resolve/main/model.safetensors"
OPENAI = "https://openaipublic.blob.core.windows.net/gpt-2/models/{size}/{file}"
OPENAI_SIZES = {"gpt2": "124M", "gpt2-medium": "355M", "gpt2-large": "774M", "gpt2-xl": "1558M"}
TF_FILES = ("model.ckpt.index", "model.ckpt.data-00000-of-00001")
# A config.json that states other values describes a model with GPT-2's names and shapes that computes something else.
FIXED = {
    "model_type": "gpt2", "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5,
    "scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False,
}  # fmt: skip


# ----------------------------------------------------------------------------- a model from files


def load_model(name: str, weights: str | None = None, dropout: float = 0.0) -> GPT2 | Llama:
    """A GPT-2 or a Llama in fp32 with its weights.

    name     "gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "mini" (in this repository), "smollm2" (an installed
             package), or a folder with config.json, hparams.json or a .gguf file
    weights  None: the folder's own file, or a cached download; a file or folder in one of the formats; or "random":
             untrained weights
    dropout  GPT-2's; a Llama has none
    Raises InputError if anything is missing or does not fit.
    """
    config = load_config(name)
    if weights == "random":
        return new_model(config, dropout).init_weights()
    path = find_checkpoint(Path(weights)) if weights else default_checkpoint(name)
    with torch.device("meta"):  # allocate nothing: every weight is about to be assigned
        model = new_model(config, dropout)
    is_gpt2 = isinstance(config, GPT2Config)
    tensors = read_checkpoint(path) if is_gpt2 else llama_files.read_llama(path, config, name)
    check_shapes(tensors, config, name, path)
    check_finite(tensors, path)
    # Copies: read_safetensors returns views of the memory-mapped file.
    own = {key: tensors.pop(key).to(torch.float32, copy=True) for key in list(tensors)}
    model.load_state_dict(own, assign=True)
    return model.requires_grad_(True)


def load_gpt2(name: str, weights: str | None = None, dropout: float = 0.0) -> GPT2:
    """`load_model` for GPT-2 only: raises InputError for a Llama."""
    if not isinstance(load_config(name), GPT2Config):
        raise InputError(f"{name} is a Llama, but a GPT-2 is needed here: use {', '.join(CONFIGS)} or mini")
    return load_model(name, weights, dropout)


def new_model(config: GPT2Config | LlamaConfig, dropout: float) -> GPT2 | Llama:
    """A model of this configuration. Raises InputError for dropout in a Llama."""
    if isinstance(config, GPT2Config):
        return GPT2(config, dropout)
    if dropout:
        raise InputError(f"--dropout {dropout:g}: a Llama has no dropout; leave the flag out")
    return Llama(config)


def load_config(name: str) -> GPT2Config | LlamaConfig:
    """The architecture of a published name, or of a folder's config.json (or hparams.json) or .gguf file."""
    if name in CONFIGS:
        return CONFIGS[name]
    if name in llama.CONFIGS:
        return llama.CONFIGS[name]
    folder = resolve_path(name)
    for path in (folder / "config.json", folder / "hparams.json"):
        if path.exists():
            break
    else:
        if gguf := llama_files.gguf_in(folder):
            return llama_files.config_of_gguf(gguf)
        raise InputError(
            f"unknown model {name!r}: use {', '.join((*CONFIGS, *llama.CONFIGS))}, mini, or a folder that holds"
            " config.json, hparams.json or a .gguf file"
        )
    try:
        stated = json.loads(read_text(path))
        if stated.get("model_type") == "llama":
            return llama_files.config_of_hub(stated, folder)
        for key, ours in FIXED.items():
            if stated.get(key, ours) != ours:
                raise InputError(f"{path}: its {key} is {stated[key]!r}, but a GPT-2 has {ours!r}: use another model")
        n_positions = stated["n_positions"] if "n_positions" in stated else stated["n_ctx"]
        vocab_size = stated["vocab_size"] if "vocab_size" in stated else stated["n_vocab"]
        numbers = (stated["n_layer"], stated["n_head"], stated["n_embd"], n_positions, vocab_size)
        if not all(type(n) is int and n > 0 for n in numbers) or stated["n_embd"] % stated["n_head"]:
            raise ValueError("its numbers must be positive and whole, and n_embd a multiple of n_head")
        return GPT2Config(*numbers)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise InputError(
            f"{path} is not a GPT-2 configuration ({error}):"
            " it must state n_layer, n_head, n_embd, n_positions and vocab_size"
        ) from None


def default_checkpoint(name: str) -> Path:
    """A folder's own checkpoint, or the published one: downloaded once, from the hub or from OpenAI."""
    if name in llama.CONFIGS:
        return llama_files.package_file()
    if name not in CONFIGS:
        return find_checkpoint(resolve_path(name))
    folder = cache_dir() / name
    if (folder / "model.safetensors").exists():
        return folder / "model.safetensors"
    if all((folder / file).exists() for file in TF_FILES):
        return folder / TF_FILES[0]
    try:
        return download(HUB.format(name=name), folder / "model.safetensors")
    except InputError as at_hub:
        if isinstance(at_hub.__cause__, OSError):
            raise  # the disk is full: no other server helps
        try:
            for file in reversed(TF_FILES):  # the small index last: if it is there, so are the data
                download(OPENAI.format(size=OPENAI_SIZES[name], file=file), folder / file)
            return folder / TF_FILES[0]
        except InputError:
            raise InputError(
                f"no weights for {name}: {at_hub}; or name a copy with --weights PATH"
                f" (--weights random runs an untrained model). {OFFLINE}"
            ) from None


def find_checkpoint(path: Path) -> Path:
    """The checkpoint file at a user's path: the file itself, or the one in a folder."""
    if path.is_dir():
        found = [*sorted(path.glob("*.safetensors")), *sorted(path.glob("*.index"))]
        files = [file for file in found if file.name in ("model.safetensors", TF_FILES[0])] or found
        if len(files) == 0 and (gguf := llama_files.gguf_in(path)):
            return gguf
        if len(files) == 0:
            raise InputError(
                f"{path} holds no checkpoint: put model.safetensors, TensorFlow's model.ckpt.index or a Llama's .gguf"
                " file there, or name one with --weights"
            )
        if len(files) > 1 and files[0].name != "model.safetensors":
            raise InputError(f"{path} holds several checkpoints: name one of {', '.join(file.name for file in files)}")
        return files[0]
    if not path.exists():
        raise InputError(f"{path} does not exist: check the path given with --weights")
    if path.suffix not in (".safetensors", ".index", ".gguf"):
        raise InputError(
            f"{path} is not a checkpoint: name a .safetensors or .gguf file, or the .index file of TensorFlow's"
        )
    return path


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """A checkpoint's tensors under this project's names (`h.0.attn.c_attn.weight`), unchecked."""
    if path.suffix == ".index":
        entries = read_tensorflow(path)
        return {rename_tensorflow(key): tensor.squeeze(0) if key.endswith("/w") else tensor for key, tensor in entries}
    if path.suffix == ".gguf":
        raise InputError(f"{path} holds no GPT-2: GGUF files are read for Llamas; name a .safetensors file")
    tensors = {key.removeprefix("transformer."): tensor for key, tensor in read_safetensors(path)[0].items()}
    for key in list(tensors):
        if re.fullmatch(r"h\.\d+\.attn\.(bias|masked_bias)", key):
            del tensors[key]  # the causal mask, which some exports include
    head, wte = tensors.pop("lm_head.weight", None), tensors.get("wte.weight")
    if head is not None and wte is not None and not (head.dtype == wte.dtype and torch.equal(head, wte)):
        raise InputError(
            f"{path}: lm_head.weight differs from wte.weight, but GPT-2 ties the two: use another checkpoint"
        )
    return tensors


def rename_tensorflow(key: str) -> str:
    """model/h3/attn/c_attn/w -> h.3.attn.c_attn.weight; model/wte -> wte.weight."""
    parts = re.sub(r"^h(\d+)", r"h/\1", key.removeprefix("model/")).split("/")
    if parts[-1] in ("wte", "wpe"):
        parts.append("weight")
    else:
        parts[-1] = {"w": "weight", "g": "weight", "b": "bias"}.get(parts[-1], parts[-1])
    return ".".join(parts)


def check_shapes(tensors: dict[str, Tensor], config: GPT2Config | LlamaConfig, name: str, path: Path) -> None:
    """Raise InputError unless the file has exactly the model's tensors, with their shapes."""
    with torch.device("meta"):
        expected = {key: tuple(tensor.shape) for key, tensor in new_model(config, 0.0).state_dict().items()}
    wte = tuple(tensors["wte.weight"].shape) if "wte.weight" in tensors else None
    hint = ""
    for other, its in CONFIGS.items():
        if other != name and wte == (its.vocab_size, its.n_embd):
            hint = f"; it looks like {other}: use --model {other}"
    for key, shape in expected.items():
        if key not in tensors:
            raise InputError(f"{path} lacks {key}, so it is not {name}{hint}")
        if tuple(tensors[key].shape) != shape:
            raise InputError(
                f"{path}: {key} has shape {list(tensors[key].shape)}, but {name} needs {list(shape)}{hint}"
            )
    if unknown := sorted(tensors.keys() - expected.keys()):
        raise InputError(f"{path} holds {unknown[0]}, which {name} does not have{hint}")
