"""A small Llama for the tests, as a GGUF file and as a folder of the hub's, and transformers' twin of it.

The GGUF file is written by the `gguf` package, with the names and the order of rows that llama.cpp's converter gives.
"""

import json
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

import gguf
import tokenizers
import torch
import transformers
from tiny import tables, write_vocabulary

from harness.llama_files import GGUF_NAMES
from harness.vocabulary import END
from llama import Llama, LlamaConfig

SPECIAL = [END, "<|im_start|>", "<|im_end|>"]
TINY = LlamaConfig(n_layer=2, n_head=4, n_kv_head=2, n_embd=64, n_inner=96, n_positions=200, vocab_size=400)
LACKING = "\x04\x1d"  # of bytes that no text had; as SmolLM2's vocabulary


@lru_cache
def vocabulary() -> tuple[list[str], list[str]]:
    """(400 tokens, the special ones first, merges), as SmolLM2's are laid out, without the bytes of LACKING."""
    with TemporaryDirectory() as folder:
        write_vocabulary(Path(folder), [f" {s} {t} " for s, t in tables(300)], size=400 - len(SPECIAL) + len(LACKING))
        merges = (Path(folder) / "vocab.bpe").read_text(encoding="utf-8").split("\n")[1:-1]
        ids = json.loads((Path(folder) / "encoder.json").read_text())
    lacking = {chr(256 + ord(c)) for c in LACKING}
    tokens = [token for token in sorted(ids, key=ids.get) if token not in lacking and token != END]
    return [*SPECIAL, *tokens], merges


@torch.no_grad()
def lively(model: Llama, seed: int = 0) -> Llama:
    """Random weights large enough that every part of the model affects the logits."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.copy_(1 + 0.2 * noise if parameter.dim() == 1 else 0.1 * noise)
    return model.eval()


def twin(model: Llama) -> transformers.LlamaForCausalLM:
    """transformers' Llama with the same weights."""
    c = model.config
    config = transformers.LlamaConfig(
        vocab_size=c.vocab_size, hidden_size=c.n_embd, intermediate_size=c.n_inner, num_hidden_layers=c.n_layer,
        num_attention_heads=c.n_head, num_key_value_heads=c.n_kv_head, max_position_embeddings=c.n_positions,
        rms_norm_eps=c.eps, rope_parameters={"rope_type": "default", "rope_theta": c.rope_base},
        # no pad token: its embedding would get no gradient
        tie_word_embeddings=True, bos_token_id=c.end_token, eos_token_id=c.end_token, pad_token_id=None,
    )  # fmt: skip
    config._attn_implementation = "eager"
    theirs = transformers.LlamaForCausalLM(config)
    theirs.model.load_state_dict(model.state_dict())
    return theirs.eval()


def hub_tokenizer() -> tokenizers.Tokenizer:
    """The vocabulary in the form of the hub's tokenizer.json of SmolLM2."""
    tokens, merges = vocabulary()
    return smollm_tokenizer(tokens, merges, SPECIAL)


def smollm_tokenizer(tokens: list[str], merges: list[str], special: list[str]) -> tokenizers.Tokenizer:
    ids = {token: i for i, token in enumerate(tokens)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(ids, [tuple(merge.split(" ")) for merge in merges]))
    digits = tokenizers.pre_tokenizers.Digits(individual_digits=True)
    by_bytes = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([digits, by_bytes])
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    return tokenizer


def write_hub(folder: Path, model: Llama) -> Path:
    """A folder as transformers writes it: config.json, model.safetensors and tokenizer.json."""
    twin(model).save_pretrained(folder)
    hub_tokenizer().save(str(folder / "tokenizer.json"))
    return folder


def write_gguf(path: Path, model: Llama, kind: str = "F32", arch: str = "llama", **changes) -> Path:
    """A GGUF file of the model, matrices in a tensor type. `changes`: metadata (None: left out)."""
    c, (tokens, merges) = model.config, vocabulary()
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, arch)
    numbers = {
        "block_count": c.n_layer, "context_length": c.n_positions, "embedding_length": c.n_embd,
        "feed_forward_length": c.n_inner, "attention.head_count": c.n_head, "attention.head_count_kv": c.n_kv_head,
        "vocab_size": c.vocab_size, "rope.dimension_count": c.head_size,
    }  # fmt: skip
    for key, value in {**numbers, **{k: v for k, v in changes.items() if k in numbers}}.items():
        if value is not None:
            writer.add_uint32(f"{arch}.{key}", value)
    writer.add_float32(f"{arch}.rope.freq_base", c.rope_base)
    writer.add_float32(f"{arch}.attention.layer_norm_rms_epsilon", c.eps)
    writer.add_tokenizer_model(changes.get("tokenizer", "gpt2"))
    writer.add_tokenizer_pre(changes.get("pre", "smollm"))
    writer.add_token_list(tokens)
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(tokens) - len(SPECIAL)))
    writer.add_token_merges(changes.get("merges", merges))
    quantised = gguf.GGMLQuantizationType[kind]
    for name, tensor in model.state_dict().items():
        name, array = gguf_name(name), tensor
        if heads := {"attn_q": c.n_head, "attn_k": c.n_kv_head}.get(name.split(".")[-2]):
            array = array.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)  # neighbours are turned together
        array = array.contiguous().numpy()
        if array.ndim == 1 or kind == "F32":
            writer.add_tensor(name, array)
        else:
            writer.add_tensor(name, gguf.quantize(array, quantised), raw_dtype=quantised)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def gguf_name(name: str) -> str:
    """layers.3.mlp.up_proj.weight -> blk.3.ffn_up.weight"""
    if not name.startswith("layers."):
        return {"embed_tokens.weight": "token_embd.weight", "norm.weight": "output_norm.weight"}[name]
    _, layer, *what, _ = name.split(".")
    return f"blk.{layer}.{next(key for key, value in GGUF_NAMES.items() if value == '.'.join(what))}.weight"
