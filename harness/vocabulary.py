"""A Llama's vocabulary for tiktoken: byte-level BPE from a GGUF file's metadata, or from the hub's tokenizer.json.

Both list the tokens, written in GPT-2's letters for bytes, and the merges in their order. tiktoken merges in the order
of the ids, so the ids of the merged tokens must rise with the merges; this is checked. Before BPE a regular expression
splits the text. Two are known: GPT-2's, and SmolLM's, which is GPT-2's after every digit has been cut out.

A trained vocabulary may lack bytes that its texts did not have (SmolLM's lacks eight that occur in UTF-8). Such a byte
is dropped, as `tokenizers` does. Left out: SentencePiece vocabularies, normalisers, other patterns.
"""

import json
from pathlib import Path
from typing import NamedTuple

import tiktoken

from harness.files import InputError, read_text
from harness.gguf import GGUF

END = "<|endoftext|>"
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
# A digit ends the text before it, so spaces in front of a digit stay together, as at the end of a text.
DIGITS_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++|\p{N}| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?![^\s\p{N}])|\s"
GGUF_PATTERNS = {"gpt-2": GPT2_PATTERN, "smollm": DIGITS_PATTERN}  # by tokenizer.ggml.pre
CONTROL, USER_DEFINED = 3, 4  # of GGUF's token types: not made by merges


class Vocabulary(NamedTuple):
    """What a file says."""

    ids: dict[str, int]  # all tokens, in GPT-2's letters; those of `special` as they are
    merges: list[tuple[str, str]]
    special: dict[str, int]  # control tokens such as <|endoftext|>
    pattern: str


def read_vocabulary(path: Path) -> Vocabulary:
    """The vocabulary in a GGUF file or a tokenizer.json. Raises InputError for a kind that is not read, or damage."""
    try:
        found = from_gguf(GGUF(path).metadata) if path.suffix == ".gguf" else from_json(json.loads(read_text(path)))
        if END not in found.special:
            raise ValueError(f"it has no {END}, which separates table and text")
        return found
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else error
        raise InputError(
            f"{path} does not hold a vocabulary that can be read here ({reason}): use SmolLM2's, or fetch it again"
        ) from None


def from_gguf(metadata: dict) -> Vocabulary:
    model, pre = metadata["tokenizer.ggml.model"], metadata["tokenizer.ggml.pre"]
    if model != "gpt2" or pre not in GGUF_PATTERNS:
        raise ValueError(f"its kind is {model!r} with the pattern {pre!r}")
    tokens, kinds = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    ids = {token: i for i, token in enumerate(tokens)}
    if len(ids) != len(tokens) or len(kinds) != len(tokens):
        raise ValueError("its tokens and their types do not match")
    special = {token: i for i, token in enumerate(tokens) if kinds[i] in (CONTROL, USER_DEFINED)}
    return Vocabulary(ids, split_merges(metadata["tokenizer.ggml.merges"]), special, GGUF_PATTERNS[pre])


def from_json(stated: dict) -> Vocabulary:
    model, splitter = stated["model"], stated["pre_tokenizer"]
    steps = splitter["pretokenizers"] if splitter["type"] == "Sequence" else [splitter]
    kinds = [step["type"] for step in steps]
    as_gpt2 = {"add_prefix_space": False, "use_regex": True}
    digits = kinds == ["Digits", "ByteLevel"] and steps[0].get("individual_digits") is True
    if (
        model["type"] != "BPE"
        or stated.get("normalizer") is not None
        or not (digits or kinds == ["ByteLevel"])
        or any(steps[-1].get(key, True) is not value for key, value in as_gpt2.items())
    ):
        raise ValueError(f"its kind is {model['type']} with {', '.join(kinds)}")
    special = {token["content"]: token["id"] for token in stated["added_tokens"]}
    pattern = DIGITS_PATTERN if digits else GPT2_PATTERN
    return Vocabulary(model["vocab"] | special, split_merges(model["merges"]), special, pattern)


def split_merges(merges: list) -> list[tuple[str, str]]:
    """Merges as "a b" or ["a", "b"]."""
    pairs = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in merges]
    if any(len(pair) != 2 for pair in pairs):
        raise ValueError("its merges are not pairs")
    return pairs


def byte_of_letter() -> dict[str, int]:
    """GPT-2's letter of each byte: printable Latin-1 stands for itself, the others are U+0100 and so on."""
    plain = [b for b in range(256) if chr(b).isprintable() and chr(b) != " "]
    others = [b for b in range(256) if b not in plain]
    return {chr(b): b for b in plain} | {chr(256 + i): b for i, b in enumerate(others)}


class ByteBPE(tiktoken.Encoding):
    """An encoding whose vocabulary may lack bytes: they get ids from `size` on inside, which do not come out."""

    def __init__(self, name: str, pattern: str, ranks: dict[bytes, int], special: dict[str, int], size: int):
        lacking = [bytes([b]) for b in range(256) if bytes([b]) not in ranks]
        ranks = ranks | {byte: size + i for i, byte in enumerate(lacking)}
        super().__init__(name, pat_str=pattern, mergeable_ranks=ranks, special_tokens=special)
        self.size = size

    @property
    def n_vocab(self) -> int:
        return self.size

    def encode_ordinary(self, text: str) -> list[int]:
        return [i for i in super().encode_ordinary(text) if i < self.size]


def load_vocabulary(path: Path) -> ByteBPE:
    """The vocabulary of a GGUF file or a tokenizer.json, for tiktoken.

    Raises InputError, also when the ids do not rise with the merges.
    """
    ids, merges, special, pattern = read_vocabulary(path)
    letters = byte_of_letter()
    try:
        ranks = {bytes(map(letters.__getitem__, token)): i for token, i in ids.items() if token not in special}
        merged = [ids[a + b] for a, b in merges]
        if merged != sorted(set(merged)) or len(ranks) != len(merged) + sum(len(token) == 1 for token in ranks):
            raise ValueError("its tokens do not follow from its merges")
        if sorted(ids.values()) != list(range(len(ids))):
            raise ValueError("its ids have gaps")
        return ByteBPE(path.name, pattern, ranks, special, len(ids))
    except (KeyError, TypeError, ValueError) as error:
        reason = f"{error} is not a token" if isinstance(error, KeyError) else error
        raise InputError(f"{path}: its tokens and merges do not form a vocabulary ({reason}): fetch it again") from None
