"""The data: restaurant tables and sentences that say them (E2E, Novikova et al. 2017).

    files  ->  examples (source, target)  ->  token ids  ->  batches

An example in the form of the paper's files, one `source||target` line each:

    name : Blue Spice | Type : coffee shop | area : city centre||A coffee shop in the city centre area called Blue Spice .

The official release is a CSV file instead, `mr,ref` with a table such as `name[Blue Spice], eatType[coffee shop]`;
it is brought to the same source string. Its sentences stay as they are, and they are not tokenised
("family-friendly." where the paper's files have "family - friendly ."), which moves BLEU by points: scores
on the two kinds of references cannot be compared.

GPT-2 reads (section 6.3; <|endoftext|> separates, and ends):

    " " + source + " <|endoftext|> " + target + " <|endoftext|>"
    |------------ prompt ---------|----------- scored ----------|

The loss counts the tokens behind the separator, the end token included.
"""

import csv
import io
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator, NamedTuple

import tiktoken
import torch
from torch import Tensor

from files import OFFLINE, InputError, bundled, cache_dir, download, read_text, sha256_of
from loss import STEP
from weights import load_config

PAPER_FILES = "https://raw.githubusercontent.com/XiangLi1999/PrefixTuning/cleaned/data/e2e_data/{file}"
SHA256 = {
    "src1_train.txt": "eae319082237310913d9f37f6a891d48fb3f821f29d86870d2cb4f92ddd72c5a",
    "src1_valid.txt": "ba963113c8401d3d26216c0dc0a6dae1ea6ea927de3bf830e32c41f65401c80d",
    "src1_test.txt": "81b1bcd40c4f12845ec4eb61a77bf43765d112483cd9b2f91ef10bfc1b3d8f13",
}
# A folder may hold the paper's files, the official release, or CSV or text files with plain names.
SPLIT_FILES = {
    "train": ("src1_train.txt", "trainset.csv", "train.csv", "train.txt"),
    "valid": ("src1_valid.txt", "devset.csv", "valid.csv", "valid.txt"),
    "test": ("src1_test.txt", "testset_w_refs.csv", "test.csv", "test.txt"),
}
# The official release's names for the fields, and the paper's, in the order the paper's files keep.
FIELDS = {
    "name": "name", "eatType": "Type", "food": "food", "priceRange": "price", "customer rating": "customer rating",
    "area": "area", "familyFriendly": "family friendly", "near": "near",
}  # fmt: skip
END = "<|endoftext|>"
# GPT-2's vocabulary, the merges and the ids: under OpenAI's names and under those of the Hugging Face hub.
VOCABULARY_FILES = (("vocab.bpe", "encoder.json"), ("merges.txt", "vocab.json"))


class Example(NamedTuple):
    """A table as one line of text, and one sentence for it."""

    source: str
    target: str


class Placed(Example):
    """An example that was read from a file, and still knows where it stands there, for complaints about it."""

    def __new__(cls, source: str, target: str, path: Path, line: int):
        example = super().__new__(cls, source, target)
        example.where = f"{path}, line {line}"
        return example


# ----------------------------------------------------------------------------- files -> examples


def load_split(folder: str | None, split: str) -> list[Example]:
    """The examples of "train", "valid" or "test", in file order.

    folder  None: the paper's files, downloaded once and checked; "mini": the sample tables in this repository; else where the
            files are
    Raises InputError for what is missing or malformed.
    """
    if folder is None:
        file = SPLIT_FILES[split][0]
        try:
            path = download(PAPER_FILES.format(file=file), cache_dir() / "e2e" / file, sha256=SHA256[file])
        except InputError as error:
            raise InputError(f"{error}. {OFFLINE}") from None
        if sha256_of(path) != SHA256[file]:
            raise InputError(f"{path} was changed since it was downloaded: delete it, or name your own data with --data FOLDER")
        return read_examples(path)
    return read_examples(find_split(bundled(folder, "restaurants"), split))


def find_split(folder: Path, split: str) -> Path:
    """The file in a folder that holds a split."""
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder: --data names one that holds {SPLIT_FILES[split][0]} and so on")
    for name in SPLIT_FILES[split]:
        if (folder / name).exists():
            return folder / name
    raise InputError(f"{folder} has no {split} data: none of {', '.join(SPLIT_FILES[split])} is there")


def read_examples(path: Path) -> list[Example]:
    """Read `source||target` lines, or CSV with the columns mr and ref, by the file's ending."""
    path = Path(path)
    examples = list(read_csv(path) if path.suffix.lower() == ".csv" else read_lines(path))
    if not examples:
        raise InputError(f"{path} holds no example, but a header: fetch it again, or name other data")
    return examples


def read_lines(path: Path) -> Iterator[Example]:
    """`source||target` lines; the target keeps its closing space, which GPT-2's tokeniser sees."""
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        source, bars, target = line.partition("||")
        if not bars:
            raise InputError(f"{path}, line {number}: no '||' between table and sentence: {shorten(line)}; write table||sentence")
        if not source.strip() or not target.strip():
            side = "after" if source.strip() else "before"
            raise InputError(f"{path}, line {number}: nothing {side} '||': {shorten(line)}; complete the line or delete it")
        yield Placed(source, target, path, number)


def read_csv(path: Path) -> Iterator[Example]:
    """Rows of the official release; the table is linearised as the paper's files have it."""
    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    try:
        header = [name.strip() for name in next(reader)]
        if not {"mr", "ref"} <= set(header):
            raise InputError(f"{path}, line 1: it must name the columns mr and ref, but it names {shorten(', '.join(header))}")
        for row in reader:
            if not row:
                continue
            if len(row) != len(header):
                raise InputError(
                    f"{path}, line {reader.line_num}: {len(row)} columns where the header has {len(header)};"
                    " put quotes around a field that holds a comma"
                )
            fields = dict(zip(header, row))
            if not fields["ref"].strip():
                raise InputError(f"{path}, line {reader.line_num}: the column ref is empty; complete the row or delete it")
            try:
                yield Placed(linearise(fields["mr"]), fields["ref"], path, reader.line_num)
            except ValueError as error:
                raise InputError(f"{path}, line {reader.line_num}: {error}") from None
    except csv.Error as error:
        raise InputError(
            f"{path}, line {reader.line_num}: not CSV ({error}); close each quote, or fetch the file again if it is cut short"
        ) from None


def linearise(table: str) -> str:
    """`name[Blue Spice], eatType[pub]` -> `name : Blue Spice | Type : pub`.

    Fields come in the paper's order whatever their order was; fields that E2E does not have keep their
    names and stand at the end. Prices are spaced as the paper's files space them, "£20-25" -> "£ 20 - 25".
    Raises ValueError for text that is not such a table.
    """
    if not re.fullmatch(r"\s*[^\[\],]+\[[^\[\]]*\](\s*,\s*[^\[\],]+\[[^\[\]]*\])*\s*", table):
        raise ValueError(f"not a table such as name[Blue Spice], area[riverside]: {shorten(table)}")
    found = [(name.strip(), value.strip()) for name, value in re.findall(r"([^\[\],]+)\[([^\[\]]*)\]", table)]
    order = list(FIELDS)
    found.sort(key=lambda pair: order.index(pair[0]) if pair[0] in FIELDS else len(order))  # a stable sort
    spaced = {"priceRange": lambda price: re.sub(r"(?<=\d)-(?=\d)", " - ", re.sub(r"£(?=\d)", "£ ", price))}
    return " | ".join(f"{FIELDS.get(name, name)} : {spaced.get(name, str)(value)}" for name, value in found)


def shorten(text: str, length: int = 60) -> str:
    """The text in quotes, cut so that a message stays one line."""
    return repr(text if len(text) <= length else text[:length] + "…")


def group_references(examples: list[Example]) -> dict[str, list[str]]:
    """source -> all its sentences, in file order: what one generated sentence is scored against."""
    groups: dict[str, list[str]] = {}
    for source, target in examples:
        groups.setdefault(source, []).append(target.strip())
    return groups


# ----------------------------------------------------------------------------- examples -> token ids


def load_tokenizer(model: str) -> tiktoken.Encoding:
    """GPT-2's byte-level BPE; for a model's folder the vocabulary in it, if it has its own (VOCABULARY_FILES).

    The published vocabulary (1.5 MB) is downloaded by tiktoken once and kept in our cache folder.
    Raises InputError when that is not possible, for an unknown model, and for one with another number of tokens
    (the last of them must be the separator, by which an infix finds its place).
    """
    config = load_config(model)
    own = [files for files in VOCABULARY_FILES if (bundled(model) / files[0]).exists()]
    tokenizer = read_tokenizer(bundled(model), *own[0]) if own else published_tokenizer()
    if tokenizer.n_vocab != config.vocab_size:
        raise InputError(
            f"{model} has {config.vocab_size} tokens, but the vocabulary {tokenizer.n_vocab}: put the vocab.bpe and"
            " encoder.json that belong to the model into its folder"
        )
    return tokenizer


def published_tokenizer() -> tiktoken.Encoding:
    """GPT-2's own vocabulary, from tiktoken's cache or from the network."""
    os.environ.setdefault("TIKTOKEN_CACHE_DIR", str(cache_dir() / "tiktoken"))
    try:
        return tiktoken.get_encoding("gpt2")
    except (OSError, ValueError) as error:  # no network (requests' errors are OSErrors), no permission, a damaged file
        raise InputError(
            f"GPT-2's vocabulary cannot be had ({type(error).__name__}): connect to the network once,"
            f" or set TIKTOKEN_CACHE_DIR (now {os.environ['TIKTOKEN_CACHE_DIR']}) to a folder where tiktoken has kept it. {OFFLINE}"
        ) from None


def read_tokenizer(folder: Path, merges: str, ids: str) -> tiktoken.Encoding:
    """A vocabulary from GPT-2's own two files, the merges and the ids."""
    from tiktoken.load import data_gym_to_mergeable_bpe_ranks

    caching = os.environ.get("TIKTOKEN_CACHE_DIR")
    os.environ["TIKTOKEN_CACHE_DIR"] = ""  # empty: read the files themselves, not tiktoken's copy of an older state
    try:
        ranks = data_gym_to_mergeable_bpe_ranks(str(folder / merges), str(folder / ids))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, AssertionError, RecursionError) as error:
        raise InputError(
            f"{folder}: its {merges} and {ids} do not make a vocabulary ({type(error).__name__}): fetch both again"
        ) from None
    finally:
        if caching is None:
            del os.environ["TIKTOKEN_CACHE_DIR"]
        else:
            os.environ["TIKTOKEN_CACHE_DIR"] = caching
    pattern = tiktoken_pattern()
    return tiktoken.Encoding(folder.name, pat_str=pattern, mergeable_ranks=ranks, special_tokens={END: len(ranks)})


def tiktoken_pattern() -> str:
    """How GPT-2 cuts text into pieces before BPE, as tiktoken states it: contractions, words, numbers, signs, space."""
    from tiktoken_ext.openai_public import r50k_pat_str

    return r50k_pat_str


def encode_prompt(tokenizer: tiktoken.Encoding, source: str) -> list[int]:
    """Ids of `" " + source + " <|endoftext|>"`, what is given when text is to be generated.

    The text is encoded as ordinary text: an "<|endoftext|>" inside a table does not become a separator.
    """
    return [*tokenizer.encode_ordinary(f" {source} "), tokenizer.eot_token]


def encode_target(tokenizer: tiktoken.Encoding, target: str) -> list[int]:
    """Ids of `" " + target + " <|endoftext|>"`, what the loss counts."""
    return [*tokenizer.encode_ordinary(f" {target} "), tokenizer.eot_token]


class Encoded(NamedTuple):
    """An example as ids; the first `n_prompt` of them (separator included) are given, not scored."""

    ids: list[int]
    n_prompt: int


def encode(tokenizer: tiktoken.Encoding, examples: list[Example], room: int, score_separator: bool = False) -> list[Encoded]:
    """Encode all examples once.

    room             tokens that fit: the model's positions less the prefix
    score_separator  the separator counts in the loss too (the poster's variant)
    Raises InputError, naming the example, when one does not fit.
    """
    encoded = []
    for number, example in enumerate(examples, start=1):
        prompt = encode_prompt(tokenizer, example.source)
        ids = prompt + encode_target(tokenizer, example.target)
        if len(ids) > room:
            where = getattr(example, "where", f"example {number}")
            raise InputError(
                f"{where}: it has {len(ids)} tokens, but only {room} fit into the model's context beside the prefix:"
                f" {shorten(example.source)}; shorten it, or choose a smaller --prefix_len"
            )
        encoded.append(Encoded(ids, len(prompt) - score_separator))
    return encoded


# ----------------------------------------------------------------------------- token ids -> batches


@dataclass
class Batch:
    """Examples side by side, padded on the right (causality keeps padding out of all that counts)."""

    tokens: Tensor  # [B, T]
    at: Tensor  # [M] indices into the B * T positions: those whose next token is scored
    targets: Tensor  # [M] these next tokens
    real: Tensor  # [N] indices into the B * T positions: of the tokens, and of some padding, so that N is a round number

    def to(self, device) -> "Batch":
        """The same batch on a device."""
        return Batch(*(t.to(device, non_blocking=True) for t in (self.tokens, self.at, self.targets, self.real)))


def collate(examples: list[Encoded], pad: int) -> Batch:
    """Put encoded examples into one batch. The id at position t + 1 is the target of position t."""
    T = max(len(ids) for ids, _ in examples)
    tokens = torch.tensor([ids + [pad] * (T - len(ids)) for ids, _ in examples])  # [B, T]
    at = torch.tensor([row * T + t for row, (ids, n) in enumerate(examples) for t in range(n - 1, len(ids) - 1)])  # [M]
    targets = torch.tensor([token for ids, n in examples for token in ids[n:]])  # [M]
    real = [row * T + t for row, (ids, _) in enumerate(examples) for t in range(len(ids))]
    padding = [row * T + t for row, (ids, _) in enumerate(examples) for t in range(len(ids), T)]
    real = sorted(real + padding[: -len(real) % STEP])  # N a round number, where there is so much padding: see STEP
    return Batch(tokens, at, targets, torch.tensor(real))


def epoch_order(n: int, seed: int, epoch: int) -> list[int]:
    """The order of the n examples in an epoch: a shuffle that depends on nothing but (seed, epoch)."""
    generator = torch.Generator().manual_seed((1_000_003 * seed + epoch) % 2**64)
    return torch.randperm(n, generator=generator).tolist()
