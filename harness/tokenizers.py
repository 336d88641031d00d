"""A model's vocabulary, as a tiktoken encoding: GPT-2's (gpt2_bpe.py) or a Llama's (llama_files.py)."""

import tiktoken

from harness.files import InputError, resolve_path
from harness.gpt2_bpe import load_gpt2_tokenizer
from harness.llama_files import load_llama_tokenizer
from llama import LlamaConfig
from weights import load_config


def load_tokenizer(model: str, weights: str | None = None) -> tiktoken.Encoding:
    """The model's vocabulary: GPT-2's byte-level BPE, published or in the model's folder; a Llama's.

    A Llama's is in its checkpoint (or in the copy that `weights` names) or in the same folder. Raises InputError when
    it cannot be had, for an unknown model, and for a vocabulary that has another size or end token than the model
    states (the end token is the separator, by which an infix finds its place).
    """
    config = load_config(model)
    is_llama = isinstance(config, LlamaConfig)
    tokenizer = load_llama_tokenizer(model, weights) if is_llama else load_gpt2_tokenizer(resolve_path(model))
    if (tokenizer.n_vocab, tokenizer.eot_token) != (config.vocab_size, config.end_token):
        raise InputError(
            f"{weights if is_llama and weights else model}: the vocabulary, {tokenizer.n_vocab} tokens, is another"
            f" model's: this one has {config.vocab_size}; fetch the files that belong to the model again"
        )
    return tokenizer
