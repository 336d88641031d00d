"""The data: tables about restaurants, and sentences that state them (E2E, Novikova et al. 2017).

    files  ->  examples (source, target)  ->  token ids  ->  batches

The paper's files hold one example a line, `source||target`:

    name : Blue Spice | Type : pub | area : riverside||Blue Spice is a pub in the riverside area .

The official release is CSV, `mr,ref`, with tables like `name[Blue Spice], eatType[pub], area[riverside]`, which are
converted to the source string above. Its sentences are kept as they are, untokenised ("family-friendly." where the
paper's files have "family - friendly ."). This moves BLEU by points, so scores on the two kinds of references are not
comparable.

The model reads (section 5.3 and the paper's code; <|endoftext|> is the separator and the end token):

    " " + source + " <|endoftext|> " + target + " <|endoftext|>"
    |------------ prompt ---------|----------- scored ----------|

By default the loss counts the tokens after the separator, including the end token. Left out: delexicalisation, that is
placeholders in place of names.
"""

import csv
import functools
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import tiktoken
import torch
from torch import Tensor

from harness.download import cache_dir, download_data
from harness.files import InputError, read_text, resolve_path

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


class Example(NamedTuple):
    """A table as one line of text, and one sentence for it."""

    source: str
    target: str


class LocatedExample(Example):
    """An example that remembers its file and line, for error messages."""

    def __new__(cls, source: str, target: str, where: str):
        example = super().__new__(cls, source, target)
        example.where = where
        return example


# ----------------------------------------------------------------------------- files -> examples


def load_split(folder: str | None, split: str) -> list[Example]:
    """The examples of "train", "valid" or "test", in file order.

    folder  None: the paper's files, downloaded once and verified; "mini": the sample tables in this repository; else a
            folder with the files
    Raises InputError for what is missing or malformed.
    """
    if folder is None:
        file = SPLIT_FILES[split][0]
        return read_examples(
            download_data(PAPER_FILES.format(file=file), cache_dir() / "e2e" / file, sha256=SHA256[file])
        )
    return read_examples(find_split(resolve_path(folder, "restaurants"), split))


def find_split(folder: Path, split: str) -> Path:
    """The file in a folder that holds a split."""
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder: --data names one that holds {SPLIT_FILES[split][0]} and so on")
    for name in SPLIT_FILES[split]:
        if (folder / name).exists():
            return folder / name
    raise InputError(f"{folder} has no {split} data: put one of {', '.join(SPLIT_FILES[split])} there")


def read_examples(path: Path) -> list[Example]:
    """Read `source||target` lines, or CSV with the columns mr and ref, by the file's extension."""
    path = Path(path)
    examples = list(read_csv(path) if path.suffix.lower() == ".csv" else read_lines(path))
    if not examples:
        raise InputError(f"{path} holds a header but no example: fetch it again, or name other data")
    return examples


def read_lines(path: Path) -> Iterator[Example]:
    """`source||target` lines; the target keeps its trailing space, which GPT-2's tokeniser sees."""
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        source, bars, target = line.partition("||")
        if not bars:
            raise InputError(
                f"{path}, line {number}: no '||' between table and sentence: {shorten(line)}; write table||sentence"
            )
        if not source.strip() or not target.strip():
            side = "after" if source.strip() else "before"
            raise InputError(
                f"{path}, line {number}: nothing {side} '||': {shorten(line)}; complete the line or delete it"
            )
        yield LocatedExample(source, target, f"{path}, line {number}")


def read_csv(path: Path) -> Iterator[Example]:
    """Rows of the official release, the table linearised as in the paper's files."""
    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    try:
        header = [name.strip() for name in next(reader)]
        if (header.count("mr"), header.count("ref")) != (1, 1):
            raise InputError(
                f"{path}, line 1: it must name the columns mr and ref once, but it names {shorten(', '.join(header))}"
            )
        for row in reader:
            where = f"{path}, line {reader.line_num}"
            if not row:
                continue
            if len(row) != len(header):
                raise InputError(
                    f"{where}: {len(row)} columns where the header has {len(header)};"
                    " put quotes around a field that holds a comma"
                )
            fields = dict(zip(header, row))
            if not fields["ref"].strip():
                raise InputError(f"{where}: the column ref is empty; complete the row or delete it")
            try:
                source = linearise(fields["mr"])
            except ValueError as error:
                raise InputError(f"{where}: {error}") from None
            yield LocatedExample(source, fields["ref"], where)
    except csv.Error as error:
        raise InputError(
            f"{path}, line {reader.line_num}: not CSV ({error});"
            " close each quote, or fetch the file again if it is cut short"
        ) from None


def linearise(table: str) -> str:
    """`name[Blue Spice], eatType[pub]` -> `name : Blue Spice | Type : pub`.

    The fields are put into the paper's order; fields that E2E does not have keep their names and come last. Prices are
    spaced as the paper's files space them, "£20-25" -> "£ 20 - 25".
    Raises ValueError for text that is not such a table.
    """
    if not re.fullmatch(r"\s*[^\[\],]+\[[^\[\]]*\](\s*,\s*[^\[\],]+\[[^\[\]]*\])*\s*", table):
        raise ValueError(f"not a table such as name[Blue Spice], area[riverside]: {shorten(table)}")
    found = [(name.strip(), value.strip()) for name, value in re.findall(r"([^\[\],]+)\[([^\[\]]*)\]", table)]
    order = list(FIELDS)
    found.sort(key=lambda pair: order.index(pair[0]) if pair[0] in FIELDS else len(order))  # a stable sort
    spaced = {"priceRange": lambda price: re.sub(r"(?<=\d)-(?=\d)", " - ", re.sub(r"£(?=\d)", "£ ", price))}
    return " | ".join(f"{FIELDS.get(name, name)} : {spaced.get(name, str)(value)}" for name, value in found)


def swapped(example: Example) -> Example:
    """The reverse task's example: the sentence is read, the table written."""
    return LocatedExample(example.target.strip(), example.source, getattr(example, "where", "an example"))


def shorten(text: str, length: int = 60) -> str:
    """The text in quotes, cut so that a message stays one line."""
    return repr(text if len(text) <= length else text[:length] + "…")


def group_references(examples: list[Example]) -> dict[str, list[str]]:
    """source -> all its sentences, in file order: the references of one generated sentence."""
    groups: dict[str, list[str]] = {}
    for source, target in examples:
        groups.setdefault(source, []).append(target.strip())
    return groups


# ----------------------------------------------------------------------------- examples -> token ids


def encode_prompt(tokenizer: tiktoken.Encoding, source: str) -> list[int]:
    """Ids of `" " + source + " <|endoftext|>"`, the prompt of a generation.

    The text is encoded as ordinary text: an "<|endoftext|>" inside a table does not become a separator.
    """
    return [*tokenizer.encode_ordinary(f" {source} "), tokenizer.eot_token]


def encode_target(tokenizer: tiktoken.Encoding, target: str) -> list[int]:
    """Ids of `" " + target + " <|endoftext|>"`, the tokens that the loss counts."""
    return [*tokenizer.encode_ordinary(f" {target} "), tokenizer.eot_token]


class Encoded(NamedTuple):
    """An example as ids. The first `n_prompt` are not scored: the prompt, with the separator unless that is scored."""

    ids: list[int]
    n_prompt: int


def encode(
    tokenizer: tiktoken.Encoding,
    examples: list[Example],
    room: int,
    score_separator: bool = False,
    skip_long: bool = False,
) -> list[Encoded]:
    """Encode all examples once.

    room             tokens that fit: the model's positions minus the prefix
    score_separator  count the separator in the loss too (the poster's variant)
    skip_long        leave out examples that do not fit
    Raises InputError, naming the example, when one does not fit, or when none is left.
    """
    encoded = []
    for number, example in enumerate(examples, start=1):
        prompt = encode_prompt(tokenizer, example.source)
        ids = prompt + encode_target(tokenizer, example.target)
        if len(ids) > room and skip_long:
            continue
        if len(ids) > room:
            where = getattr(example, "where", f"example {number}")
            raise InputError(
                f"{where}: it has {len(ids)} tokens, but only {room} fit into the model's context:"
                f" {shorten(example.source)}; shorten it, lower --prefix_len if there is a prefix, or leave out what is"
                " too long with --skip_long"
            )
        encoded.append(Encoded(ids, len(prompt) - score_separator))
    if examples and not encoded:
        raise InputError(f"none of the {len(examples)} examples fits into {room} positions: choose a larger model")
    return encoded


# ----------------------------------------------------------------------------- token ids -> batches

IGNORED = -100  # the label of a token that the loss does not count, as in PyTorch's cross entropy


class Batch(NamedTuple):
    """Examples of one batch, padded on the right."""

    tokens: Tensor  # [B, T] ids
    labels: Tensor  # [B, T] the ids that the loss counts; -100 on the prompt and on the padding

    def to(self, device) -> "Batch":
        """The same batch on a device."""
        return Batch(*(t.to(device) for t in self))


def collate(examples: list[Encoded], pad: int) -> Batch:
    """Stack encoded examples, padded on the right, where causal attention hides the padding without a mask."""
    T = max(len(ids) for ids, _ in examples)
    tokens = [ids + [pad] * (T - len(ids)) for ids, _ in examples]
    labels = [[IGNORED] * n_prompt + ids[n_prompt:] + [IGNORED] * (T - len(ids)) for ids, n_prompt in examples]
    return Batch(torch.tensor(tokens), torch.tensor(labels))


def scored_tokens(examples: list[Encoded]) -> int:
    """Tokens that the loss counts."""
    return sum(len(ids) - n_prompt for ids, n_prompt in examples)


@functools.lru_cache(maxsize=1)  # each step of an epoch asks for the same
def epoch_order(n: int, seed: int, epoch: int) -> list[int]:
    """The order of the n examples in an epoch: a shuffle that depends only on (seed, epoch)."""
    generator = torch.Generator().manual_seed((1_000_003 * seed + epoch) % 2**64)
    return torch.randperm(n, generator=generator).tolist()
