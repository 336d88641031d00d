"""Adapter folders of the `peft` library, read and written without it.

    adapter_config.json         the kind, and the numbers that define it
    adapter_model.safetensors   the tensors

    ours        peft_type        its tensors
    prefix      PREFIX_TUNING    prompt_embeddings [P, 2 L H D]: our rows as they are
    embedding   PROMPT_TUNING    prompt_embeddings [P, C]: likewise
    lora        LORA             base_model.model.transformer.h.0.attn.c_attn.lora_A.weight [r, n_in] and so on (a
                                 Llama's: base_model.model.model.layers.0.self_attn.q_proj and so on),
                                 lora_B.weight [n_out, r]; scaled by lora_alpha / r (use_rslora: / sqrt(r))

In the first two the text begins at position P in both libraries. `prefix_projection` concerns training only: what PEFT
stores is the output of its MLP. LoRA's pairs belong to projections there, to matrices here. They differ in
GPT-2's c_attn, which is q, k and v:

    from here   the pairs of c_attn are one pair of their ranks' sum, with zeros in B where a matrix does not see it
    to here     q, k and v each get the part of the pair that they use; a pair of smaller rank is filled up with zeros,
                and where scales differ B takes the ratio

Left out: an infix and an adapter, which PEFT lacks; of PEFT all other kinds, and LoRA's variants that compute
something else (DoRA) or change the base model (PiSSA, LoftQ).

Shapes: as in prefix.py and lora.py.
"""

import json
import math
import re
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2 import CONFIGS, GPT2Config
from harness.files import InputError, read_text, write_atomic
from harness.safetensors import check_finite, read_safetensors, write_safetensors
from lora import LoRA, matrices_of

CONFIG, TENSORS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
KINDS = {"PREFIX_TUNING": "prefix", "PROMPT_TUNING": "embedding", "LORA": "lora"}
HUB = "openai-community/"  # where the published GPT-2s are on the hub
# What the configuration of a LoRA may say; anything else changes what it computes.
PLAIN_LORA = {
    "use_dora": (None, False), "bias": (None, "none"), "lora_bias": (None, False), "layer_replication": (None, []),
    "modules_to_save": (None, []), "trainable_token_indices": (None, [], {}), "alora_invocation_tokens": (None, []),
    "target_parameters": (None, []), "init_lora_weights": (None, True, False, "gaussian", "eva", "orthogonal"),
}  # fmt: skip


# ----------------------------------------------------------------------------- reading


def is_adapter(folder: Path) -> bool:
    """Is this a folder of PEFT's (or half of one), not a run's?"""
    folder = Path(folder)
    found = any((folder / name).exists() for name in (CONFIG, TENSORS, PICKLE))
    return found and not (folder / "settings.json").exists()


def read_learned(path: Path, config: GPT2Config) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors, metadata), as we write them to a file: of that file, or of PEFT's folder.

    config   of the model that they are read for
    Raises InputError for a damaged file, and for an adapter of another kind or another model.
    """
    path = Path(path)
    if not path.is_dir():
        tensors, about = read_safetensors(path)
        check_finite(tensors, path)
        return tensors, about
    stated, kind = read_config(path)
    tensors = read_safetensors(path / TENSORS)[0]
    check_finite(tensors, path / TENSORS)
    if kind == "lora":
        return lora_from_peft(path, stated, tensors, config)
    return prefix_from_peft(path, stated, tensors, kind, config)


def read_config(folder: Path) -> tuple[dict, str]:
    """What adapter_config.json states, and our word for its kind. Raises InputError, also for half a folder."""
    path = Path(folder) / CONFIG
    if not path.exists():
        raise InputError(
            f"{folder} has no {CONFIG}, so it is not a PEFT adapter: fetch the whole folder again, or name a run's"
            " prefix.safetensors"
        )
    try:
        stated = json.loads(read_text(path))
        if not isinstance(stated, dict):
            raise ValueError("not an object")
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged ({error}): fetch it again") from None
    kind = stated.get("peft_type")
    if not isinstance(kind, str) or kind not in KINDS:
        raise InputError(f"{path}: the kind {kind!r} is not read here, only {', '.join(KINDS)}: use another adapter")
    if not (Path(folder) / TENSORS).exists():
        if (Path(folder) / PICKLE).exists():
            raise InputError(
                f"{folder} has its tensors in {PICKLE}, and files are not unpickled here: save it again with"
                " PEFT's safe_serialization=True"
            )
        raise InputError(f"{folder} has no {TENSORS}: fetch the whole folder again")
    return stated, KINDS[kind]


def settings_of(folder: Path) -> dict:
    """The settings of a run that would have learned this adapter: mode, prefix_len, and model ("": not known)."""
    stated, kind = read_config(folder)
    found = {"mode": kind, "model": known_model(stated.get("base_model_name_or_path"))}
    return found if kind == "lora" else found | {"prefix_len": whole(stated, "num_virtual_tokens", folder)}


def known_model(base: object) -> str:
    """Our name of a base model, "" for one that is not known here. A folder with config.json is known."""
    if not isinstance(base, str):
        return ""
    name = base.removeprefix(HUB)
    return name if name in (*CONFIGS, "mini", "smollm2") or (base and (Path(base) / "config.json").exists()) else ""


def whole(stated: dict, key: str, folder: Path) -> int:
    """A positive whole number of the configuration."""
    if type(stated.get(key)) is not int or stated[key] < 1:
        raise InputError(f"{Path(folder) / CONFIG}: its {key} is {stated.get(key)!r}: fetch it again")
    return stated[key]


def prefix_from_peft(
    folder: Path, stated: dict, tensors: dict[str, Tensor], kind: str, config: GPT2Config
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A prefix or an embedding: the rows, and the model that they fit."""
    if list(tensors) != ["prompt_embeddings"] or tensors["prompt_embeddings"].dim() != 2:
        raise InputError(f"{folder / TENSORS} does not hold prompt_embeddings alone: save the adapter again with PEFT")
    rows = tensors["prompt_embeddings"]
    P, width = whole(stated, "num_virtual_tokens", folder), whole(stated, "token_dim", folder)
    if stated.get("num_transformer_submodules") not in (None, 1):
        raise InputError(
            f"{folder / CONFIG} is for a model with encoder and decoder: use an adapter of a decoder-only model"
        )
    L, H = whole(stated, "num_layers", folder), whole(stated, "num_attention_heads", folder)
    expected = (P, 2 * L * width if kind == "prefix" else width)
    if tuple(rows.shape) != expected:
        raise InputError(
            f"{folder}: {TENSORS} has the shape {list(rows.shape)}, but {CONFIG} says {list(expected)}: the two files"
            " do not belong together, fetch both again"
        )
    heads, own_width = config.n_head, config.n_embd
    if kind == "prefix":  # PEFT counts the heads of keys and values
        heads, own_width = config.n_kv_head, config.n_kv_head * config.head_size
    fits = (L, H, width) == (config.n_layer, heads, own_width)
    made_for = config.shape if fits else f"{L} layers of {H} heads and width {width}"
    return {kind: rows.float()}, {"mode": kind, "made_for": made_for}


def lora_from_peft(
    folder: Path, stated: dict, tensors: dict[str, Tensor], config: GPT2Config
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A LoRA: a pair for each matrix that is changed, all of one rank."""
    for key, plain in PLAIN_LORA.items():
        if stated.get(key) not in plain:
            raise InputError(f"{folder / CONFIG}: a LoRA with {key} {stated[key]!r} is not read here: use a plain one")
    pairs = pairs_by_place(folder, tensors, config)
    check_layers(folder, stated, pairs, config)
    scales = {
        place: scale_of(stated, f"{layers_of(config)[0]}.{place}", len(A), folder) for place, (A, _) in pairs.items()
    }
    scale = next(iter(scales.values()))
    # What each matrix uses of its projection's pair: the rows of A whose columns in its part of B are not all zero.
    parts = {}  # (layer, matrix) -> A [n_in, r of this one], B [r of this one, n]
    for place, (A, B) in pairs.items():
        _, layer, path = place.split(".", 2)
        names = config.projections[path][2]
        B = B if scales[place] == scale else B * (scales[place] / scale)
        for name, own in zip(names, B.chunk(len(names))):  # [n, r]
            used = (own != 0).any(0)
            parts[int(layer), name] = A[used].t(), own[:, used].t()
    on = {name for (_, name), (A, _) in parts.items() if A.size(1)} or {name for _, name in parts}
    rank = max(1, *(A.size(1) for A, _ in parts.values()))
    shapes = {name: (n_in, n_out // len(names)) for n_in, n_out, names in config.projections.values() for name in names}
    found = {}
    for layer in range(config.n_layer):
        for name in (name for name in matrices_of(config) if name in on):
            n_in, n_out = shapes[name]
            A, B = parts.get((layer, name), (torch.zeros(n_in, 0), torch.zeros(0, n_out)))
            missing = rank - A.size(1)
            found[f"lora.{layer}.{name}.A"] = F.pad(A, (0, missing)).contiguous()
            found[f"lora.{layer}.{name}.B"] = F.pad(B, (0, 0, 0, missing)).contiguous()
    return found, {"mode": "lora", "made_for": config.shape, "lora_alpha": repr(scale * rank)}


def pairs_by_place(folder: Path, tensors: dict[str, Tensor], config: GPT2Config) -> dict[str, tuple[Tensor, Tensor]]:
    """h.0.attn.c_attn (a Llama's: layers.0.self_attn.q_proj) -> A [r, n_in], B [n_out, r].

    Raises InputError for other tensors and another model's.
    """
    path = folder / TENSORS
    root, layers = (re.escape(word) for word in layers_of(config))
    own = "|".join(map(re.escape, config.projections))
    form = re.compile(rf"base_model\.model\.(?:{root}\.)?({layers}\.(\d+)\.({own}))\.lora_([AB])\.weight")
    halves: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if not (match := form.fullmatch(key)):
            raise InputError(
                f"{path} holds {key}, which is not a LoRA of this model's layers ({config.shape}): use another adapter"
            )
        place, layer, projection, which = match.groups()
        n_in, n_out, _ = config.projections[projection]
        dim, n = (1, n_in) if which == "A" else (0, n_out)
        if int(layer) >= config.n_layer or tensor.dim() != 2 or tensor.size(dim) != n:
            raise InputError(
                f"{path}: {key} {list(tensor.shape)} does not fit this model of {config.shape}:"
                " use the model it was trained with"
            )
        halves.setdefault(place, {})[which] = tensor.float()
    if not halves or any(len(pair) < 2 or len(pair["A"]) != pair["B"].size(1) for pair in halves.values()):
        raise InputError(f"{path} does not hold pairs of lora_A and lora_B: fetch it again")
    return {place: (pair["A"], pair["B"]) for place, pair in halves.items()}


def check_layers(folder: Path, stated: dict, pairs: dict, config: GPT2Config) -> None:
    """Raise InputError where layers are missing that the configuration does not leave out: another model's adapter."""
    targets = stated.get("target_modules")
    by_name = isinstance(targets, list) and not re.search(r"\d", " ".join(map(str, targets)))
    if by_name and not stated.get("layers_to_transform") and not stated.get("exclude_modules"):
        for path in {place.split(".", 2)[2] for place in pairs}:
            layers = sum(place.endswith(path) for place in pairs)
            if layers != config.n_layer:
                raise InputError(
                    f"{folder / TENSORS} adapts {path} in {layers} layers, but this model has {config.shape}:"
                    " use the model it was trained with"
                )


def scale_of(stated: dict, place: str, rank: int, folder: Path) -> float:
    """By what a place's change is multiplied: lora_alpha / r.

    rank  of the place's tensors. Raises InputError if the configuration states another, or no usable alpha
    """
    stated_rank = for_place(stated, "r", "rank_pattern", place, folder)
    if stated_rank != rank:
        raise InputError(
            f"{folder}: {TENSORS} has a LoRA of rank {rank} at {place}, but {CONFIG} says {stated_rank!r}: the two"
            " files do not belong together, fetch both again"
        )
    alpha = for_place(stated, "lora_alpha", "alpha_pattern", place, folder)
    try:
        scale = alpha / (math.sqrt(rank) if stated.get("use_rslora") else rank)
        if not 0 < scale < math.inf:
            raise ValueError
        return scale
    except (TypeError, ValueError, ZeroDivisionError):
        raise InputError(f"{folder / CONFIG}: its lora_alpha is {alpha!r} for {place}: fetch it again") from None


def for_place(stated: dict, key: str, patterns: str, place: str, folder: Path) -> object:
    """A number of the configuration: of the first pattern that matches the place's end, else the general one."""
    try:
        for pattern, value in (stated.get(patterns) or {}).items():
            if re.fullmatch(rf"(.*\.)?({pattern})", place):
                return value
    except (AttributeError, re.error):
        raise InputError(f"{folder / CONFIG}: its {patterns} is {stated[patterns]!r}: fetch it again") from None
    return stated.get(key)


def layers_of(config: GPT2Config) -> tuple[str, str]:
    """The module that holds a model's layers in transformers, and its name for them."""
    return ("transformer", "h") if isinstance(config, GPT2Config) else ("model", "layers")


# ----------------------------------------------------------------------------- writing


def write_adapter(folder: Path, part: nn.Module, base: str) -> None:
    """Write a Prefix, an Embedding or a LoRA as a folder that `peft.PeftModel.from_pretrained(model, folder)` loads.

    base   the base model's name or path; for information
    Raises InputError for a part that PEFT lacks.
    """
    kinds = {kind: peft_type for peft_type, kind in KINDS.items()}
    check_has_counterpart(part.mode)
    stated = {"peft_type": kinds[part.mode], "task_type": "CAUSAL_LM", "inference_mode": True}
    stated["base_model_name_or_path"] = base
    more, tensors = lora_to_peft(part) if part.mode == "lora" else prefix_to_peft(part)
    write_safetensors(Path(folder) / TENSORS, tensors, {})
    with write_atomic(Path(folder) / CONFIG) as file:
        file.write(json.dumps(stated | more, indent=2) + "\n")


def check_has_counterpart(mode: str) -> None:
    """Raise InputError for a part that PEFT lacks."""
    if mode not in KINDS.values():
        raise InputError(
            f"PEFT has no counterpart of an {mode}, so it cannot be exported: train a run with one of"
            f" {', '.join(KINDS.values())}"
        )


def prefix_to_peft(prefix: nn.Module) -> tuple[dict, dict[str, Tensor]]:
    config, (rows,) = prefix.config, prefix.tensors().values()
    heads, width = config.n_head, config.n_embd
    stated = {}
    if prefix.mode == "prefix":
        heads, width = config.n_kv_head, config.n_kv_head * config.head_size
        stated = {"prefix_projection": False, "encoder_hidden_size": width}
    stated |= {"num_virtual_tokens": len(rows), "num_layers": config.n_layer, "num_attention_heads": heads}
    return stated | {"token_dim": width, "num_transformer_submodules": 1}, {"prompt_embeddings": rows.contiguous()}


def lora_to_peft(lora: LoRA) -> tuple[dict, dict[str, Tensor]]:
    tensors, ranks = {}, {}
    with torch.no_grad():
        for layer, projections in enumerate(lora.layers):
            for path in lora.config.projections:
                if path.replace(".", "_") in projections:
                    A, B = projections[path.replace(".", "_")].factors()
                    key = f"base_model.model.{'.'.join(layers_of(lora.config))}.{layer}.{path}"
                    tensors[f"{key}.lora_A.weight"] = A.t().float().contiguous()
                    tensors[f"{key}.lora_B.weight"] = B.t().float().contiguous()
                    ranks[path] = A.size(1)
    stated = {"r": lora.rank, "lora_alpha": lora.alpha, "lora_dropout": 0.0, "target_modules": list(ranks)}
    stated |= {
        "fan_in_fan_out": isinstance(lora.config, GPT2Config),
        "bias": "none",
        "rank_pattern": {},
        "alpha_pattern": {},
    }
    for path, rank in ranks.items():
        if rank != lora.rank:  # several pairs in one: alpha / r stays what it is
            stated["rank_pattern"][path] = rank
            stated["alpha_pattern"][path] = lora.alpha * rank / lora.rank
    return stated, tensors
