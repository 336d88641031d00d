"""A model as a folder of the Hugging Face hub's, which `transformers` loads by itself:

    config.json, generation_config.json           the numbers that define the model, and its end token
    model.safetensors                             the weights in fp32
    tokenizer.json, tokenizer_config.json         the vocabulary: tokens, merges, the pattern that splits a text
    vocab.json, merges.txt                        the same in GPT-2's two files, which also this project reads

Names and shapes are the hub's already, but for a first word (`transformer.` or `model.`). tiktoken keeps no merges,
only tokens in the order in which they were merged. A token's merge is found by encoding it with the tokens before it:
two pieces are left.
"""

import json
from pathlib import Path

import tiktoken
from torch import nn

from gpt2 import GPT2Config
from harness.files import write_atomic
from harness.safetensors import write_safetensors
from harness.vocabulary import DIGITS_PATTERN, END, GPT2_PATTERN, Vocabulary, byte_of_letter
from llama import LlamaConfig


def write_hub_folder(folder: Path, model: nn.Module, vocabulary: Vocabulary) -> None:
    """Write a GPT-2 or a Llama and its vocabulary into a folder."""
    folder, config = Path(folder), model.config
    first = "transformer." if isinstance(config, GPT2Config) else "model."
    tensors = {first + name: tensor.float() for name, tensor in model.state_dict().items()}
    write_safetensors(folder / "model.safetensors", tensors, {})
    end = {"bos_token_id": config.end_token, "eos_token_id": config.end_token}
    write(folder / "config.json", hub_config(config) | end | {"tie_word_embeddings": True, "dtype": "float32"})
    write(folder / "generation_config.json", end)
    write(folder / "tokenizer.json", tokenizer_json(vocabulary))
    write(folder / "tokenizer_config.json", tokenizer_config(config))
    if isinstance(config, GPT2Config):
        write(folder / "vocab.json", vocabulary.ids)
        with write_atomic(folder / "merges.txt") as file:
            file.write("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in vocabulary.merges))


def write(path: Path, content: dict) -> None:
    with write_atomic(path) as file:
        file.write(json.dumps(content, indent=2, ensure_ascii=False) + "\n")


# ----------------------------------------------------------------------------- configuration


def hub_config(config: GPT2Config | LlamaConfig) -> dict:
    """The hub's words for a configuration."""
    if isinstance(config, GPT2Config):
        return {
            "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_layer": config.n_layer,
            "n_head": config.n_head, "n_embd": config.n_embd, "n_positions": config.n_positions,
            "n_ctx": config.n_positions, "vocab_size": config.vocab_size, "activation_function": "gelu_new",
            "layer_norm_epsilon": 1e-5, "resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1,
        }  # fmt: skip
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head, "num_key_value_heads": config.n_kv_head, "hidden_size": config.n_embd,
        "head_dim": config.head_size, "intermediate_size": config.n_inner,
        "max_position_embeddings": config.n_positions, "vocab_size": config.vocab_size, "rms_norm_eps": config.eps,
        "rope_theta": config.rope_base, "hidden_act": "silu", "attention_bias": False, "mlp_bias": False,
        # rope_theta is for transformers 4, this for 5
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_base},
    }  # fmt: skip


# ----------------------------------------------------------------------------- vocabulary


def vocabulary_of(tokenizer: tiktoken.Encoding) -> Vocabulary:
    """What GPT-2's two files say, from the encoding that was read from them: the merges, and all tokens' ids."""
    letter_of = {byte: letter for letter, byte in byte_of_letter().items()}
    tokens = [tokenizer.decode_single_token_bytes(i) for i in range(tokenizer.n_vocab - 1)]
    ranks = {token: i for i, token in enumerate(tokens)}
    in_letters = {token: "".join(map(letter_of.__getitem__, token)) for token in tokens}
    merges = [tuple(in_letters[piece] for piece in last_merge(token, ranks)) for token in tokens if len(token) > 1]
    ids = {in_letters[token]: i for token, i in ranks.items()} | {END: tokenizer.eot_token}
    return Vocabulary(ids, merges, {END: tokenizer.eot_token}, GPT2_PATTERN)


def last_merge(token: bytes, ranks: dict[bytes, int]) -> tuple[bytes, bytes]:
    """The two pieces of which a token is merged last: its bytes, merged by all tokens of lower rank."""
    pieces = [token[i : i + 1] for i in range(len(token))]
    while len(pieces) > 2:
        merged = [ranks.get(a + b, len(ranks)) for a, b in zip(pieces, pieces[1:])]
        i = merged.index(min(merged))
        pieces[i : i + 2] = [pieces[i] + pieces[i + 1]]
    return tuple(pieces)


def tokenizer_json(vocabulary: Vocabulary) -> dict:
    """The format of the `tokenizers` library."""
    by_bytes = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    splitter = by_bytes
    if vocabulary.pattern == DIGITS_PATTERN:
        digits = {"type": "Digits", "individual_digits": True}
        splitter = {"type": "Sequence", "pretokenizers": [digits, by_bytes]}
    model = {
        "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
        "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
        "vocab": vocabulary.ids, "merges": [list(pair) for pair in vocabulary.merges],
    }  # fmt: skip
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [{"id": i, "content": token} | plain for token, i in vocabulary.special.items()],
        "normalizer": None, "pre_tokenizer": splitter, "post_processor": None, "decoder": by_bytes, "model": model,
    }  # fmt: skip


def tokenizer_config(config: GPT2Config | LlamaConfig) -> dict:
    """Which of transformers' classes reads the vocabulary, and the special tokens."""
    reader = "GPT2Tokenizer" if isinstance(config, GPT2Config) else "PreTrainedTokenizerFast"
    return {
        "tokenizer_class": reader, "model_max_length": config.n_positions, "bos_token": END, "eos_token": END,
        "unk_token": END, "add_prefix_space": False, "clean_up_tokenization_spaces": False,
    }  # fmt: skip
