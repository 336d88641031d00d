"""The training text of GPT-2 mini: a mixture of four kinds of English, cut into rows of tokens.

    dialogue      people who look for restaurants, hotels and films; recipes
    books         novels, travel and cookery books
    expository    textbooks, encyclopedia articles, government writing
    structured    a small table, and a sentence that states it

A prefix cannot teach the frozen model to copy a name out of a table: the model must have learned that in pretraining.
So two fifths of the rows are tables, and each table is varied every time it is used (`Tables.vary`): values are
replaced in table and sentence alike, by values that the model has not seen in that place; tables are joined; the
separators between keys and values change. Memorising the values does not help; copying them does.

For the same reason an end token does not always separate unrelated texts: it replaces some of the line ends between the
paragraphs of one text. A model trained only on independent texts learns to ignore everything before an end token, but
GPT-2's task format has one between a table and its sentence. (No table of the corpus is separated from its sentence in
this way.)

Everything is a function of the seed and the step, so a resumed run reads the rows of an uninterrupted one.
"""

import gzip
import hashlib
import random
import re
import zlib
from pathlib import Path

import numpy as np
import tiktoken
import torch

from harness.files import InputError
from harness.vocabulary import END

KINDS = ("dialogue", "books", "expository", "structured")
FILES = f"{', '.join(f'{kind}.txt' for kind in KINDS)} (or .txt.gz)"
HELD_OUT, FIRST = 100, 7  # one document in 100 is held out, the first at index 7
DIVIDER = re.compile(rf"^{re.escape(END)}$\n?", re.M)  # a line that consists of the end mark


# ----------------------------------------------------------------------------- files


def find_documents(folder: Path, kind: str) -> Path | None:
    """The file of a kind of text, KIND.txt.gz or KIND.txt; None if the folder has neither."""
    paths = (Path(folder) / f"{kind}.txt.gz", Path(folder) / f"{kind}.txt")
    return next((path for path in paths if path.exists()), None)


def find_kinds(folder: Path) -> list[str]:
    """The kinds of text in a folder. Raises InputError if there is none."""
    if not Path(folder).is_dir():
        problem = "is not a folder" if Path(folder).exists() else "does not exist"
        raise InputError(f"{folder} {problem}: --corpus names a folder with {FILES}")
    kinds = [kind for kind in KINDS if find_documents(folder, kind)]
    if not kinds:
        raise InputError(f"{folder} holds none of {FILES}")
    return kinds


def read_documents(folder: Path, kind: str) -> tuple[list[str], list[str]]:
    """(training documents, held-out documents) of a kind of text. Lines `<|endoftext|>` separate a file's documents.

    The held-out documents are always the same: the 8th, the 108th, the 208th and so on. Raises InputError for a file
    that cannot be read or has fewer than 8 documents, and for tables that `parse_table` cannot parse.
    """
    path = find_documents(folder, kind)
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8-sig") as file:
            documents = [text.strip("\n") for text in DIVIDER.split(file.read())]
    except (OSError, EOFError, ValueError, zlib.error) as error:  # not UTF-8 (ValueError), not gzip, or damaged
        raise InputError(f"{path} cannot be read ({type(error).__name__}: {error}): fetch or write it again") from None
    documents = [text for text in documents if text.strip()]
    if len(documents) <= FIRST:
        raise InputError(
            f"{path}: {len(documents)} documents are too few to hold one out:"
            f" divide the text into {FIRST + 1} or more, by lines {END}"
        )
    training = [text for i, text in enumerate(documents) if i % HELD_OUT != FIRST]
    if kind == "structured" and not any(map(parse_table, training)):
        form = "write key : value | key : value, and below it the sentence"
        raise InputError(f"{path}: no document is a table and its sentence: {form}")
    return training, documents[FIRST::HELD_OUT]


# ----------------------------------------------------------------------------- running text


class Prose:
    """Running text as one sequence of tokens, from which rows are cut."""

    def __init__(self, documents: list[str], tokenizer: tiktoken.Encoding, seed: int, divide: float = 0.12):
        """divide: the share of line ends between paragraphs that an end token replaces."""
        rng = random.Random(seed)
        order = rng.sample(documents, len(documents))
        pieces = []
        for text in order:
            lines = text.split("\n")
            piece = lines[0]
            for line in lines[1:]:
                if rng.random() < divide:
                    pieces.append(piece)
                    piece = line
                else:
                    piece += "\n" + line
            pieces.append(piece)
        end = tokenizer.eot_token
        rows = tokenizer.encode_ordinary_batch(pieces, num_threads=2)
        self.tokens = np.concatenate([np.array([*row, end], dtype=np.uint16) for row in rows])

    def row(self, rng: random.Random, n: int) -> np.ndarray:
        """n tokens from a random position."""
        start = rng.randrange(len(self.tokens) - n)
        return self.tokens[start : start + n]

    def fingerprint(self) -> str:
        """Changes when the text or its tokens change."""
        return f"{len(self.tokens):,} tokens (SHA-256 {hashlib.sha256(self.tokens).hexdigest()[:16]})"


# ----------------------------------------------------------------------------- tables

# The separators between two items of a table. After a comma only a lower-case key counts: "Dumbo, Mad Max: Fury Road"
# is one value.
ITEM = re.compile(r"(?: \| |; |\n)(?=[^\W\d_][\w ]*(?: : |: | = ))|, (?=[a-z][a-z ]*(?: : |: | = ))")
KEY = re.compile(r"([^\W\d_][\w ]*?)(?: : |: | = )(.+)", re.S)  # a key of letters, digits and spaces; its value
BETWEEN = (" | ", " | ", "; ", ", ", "\n", " , ")
AFTER_KEY = (" : ", " : ", ": ", " = ")
NAME = re.compile(r"(?<=[a-z] )[A-Z][a-z]{2,}(?: (?:[A-Z][a-z]{2,}|of|the|and)(?= [A-Z]))*(?: [A-Z][a-z]{2,})?")


class Tables:
    """Tables with their sentences, varied every time they are used."""

    def __init__(self, documents: list[str], tokenizer: tiktoken.Encoding, names: list[str]):
        """names: texts whose capitalised names may replace values. Documents in another form are skipped."""
        self.tokenizer = tokenizer
        self.parsed = [parsed for parsed in map(parse_table, documents) if parsed is not None]
        self.values: dict[str, list[str]] = {}
        for _, items, _ in self.parsed:
            for key, value in items:
                self.values.setdefault(key, []).append(value)
        self.values = {key: sorted(set(values)) for key, values in self.values.items()}
        self.all_values = sorted({v for values in self.values.values() for v in values if re.search("[a-z]{3}", v)})
        self.names = sorted({name for text in names for name in NAME.findall(text) if 3 < len(name) < 30})

    def fingerprint(self) -> str:
        """Changes when the tables or the names change. With the vocabulary they determine the rows."""
        digest = hashlib.sha256(repr((self.parsed, self.names)).encode()).hexdigest()[:16]
        return f"{len(self.parsed):,} tables (SHA-256 {digest})"

    def row(self, rng: random.Random, n: int) -> np.ndarray:
        """n tokens: varied tables with their sentences, separated by end tokens; the last may be cut off."""
        tokens: list[int] = []
        while len(tokens) < n:
            tokens += [*self.tokenizer.encode_ordinary(self.vary(rng)), self.tokenizer.eot_token]
        return np.array(tokens[:n], dtype=np.uint16)

    def vary(self, rng: random.Random) -> str:
        """One table, or several joined, with new values and separators, and below it the sentence that states it."""
        heading, items, sentence = self.exchange(rng, *rng.choice(self.parsed))
        if rng.random() < 0.5:  # make a long table; the corpus has few
            for _ in range(rng.choice((1, 1, 2, 3))):
                _, more, also = self.exchange(rng, *rng.choice(self.parsed))
                if {key for key, _ in items}.isdisjoint(key for key, _ in more):
                    items, sentence = items + more, f"{sentence} {also}"
            heading = ""
        if rng.random() < 0.5:
            items = rng.sample(items, len(items))
        after_key, between = rng.choice(AFTER_KEY), rng.choice(BETWEEN)
        table = between.join(key + after_key + value for key, value in items)
        return heading + table + "\n" + sentence

    def exchange(self, rng: random.Random, heading: str, items: list[tuple[str, str]], sentence: str):
        """Replace values that the sentence repeats literally. Half of the tables stay as they are."""
        if rng.random() < 0.5:
            return heading, items, sentence
        others = {}  # old value -> new value
        for key, value in items:
            said = re.search(rf"(?<!\w){re.escape(value)}(?!\w)", sentence)
            if said and len(value) > 1 and value not in ("True", "False") and rng.random() < 0.8:
                others[value] = self.other_value(rng, key, value)
        if others:
            # In one pass, because a new value may equal another old one; the longest first, as it may contain others.
            old = "|".join(re.escape(value) for value in sorted(others, key=len, reverse=True))
            sentence = re.sub(rf"(?<!\w)(?:{old})(?!\w)", lambda found: others[found[0]], sentence)
        return heading, [(key, others.get(value, value)) for key, value in items], sentence

    def other_value(self, rng: random.Random, key: str, value: str) -> str:
        """A value of the same kind: digits for digits, often a name for a name, else a value of this key or any."""
        if re.search(r"\d", value):
            return re.sub(r"\d", lambda _: str(rng.randrange(1, 10)), value)
        choice = rng.random()
        if value[0].isupper() and choice < 0.5 and self.names:
            name = rng.choice(self.names)
            return name if rng.random() < 0.6 else f"{name} {rng.choice(self.names)}"
        return rng.choice(self.all_values if choice >= 0.8 and self.all_values else self.values[key])


def parse_table(document: str) -> tuple[str, list[tuple[str, str]], str] | None:
    """(heading with its line end or "", [(key, value)], sentence), or None if the document is in another form."""
    *lines, sentence = document.split("\n")
    heading = ""
    if lines and not KEY.fullmatch(lines[0]):
        heading = lines.pop(0) + "\n"
    items = [KEY.fullmatch(item) for item in ITEM.split("\n".join(lines))]
    if not lines or not all(items):
        return None
    return heading, [(item[1], item[2]) for item in items], sentence


# ----------------------------------------------------------------------------- all kinds together


def make_sources(
    training: dict[str, list[str]], tokenizer: tiktoken.Encoding, n: int, seed: int
) -> dict[str, Prose | Tables]:
    """By kind, the source from which rows of n tokens are drawn. Raises InputError for too little text."""
    sources = {}
    for kind, documents in training.items():
        if kind == "structured":
            names = [text for other in ("books", "expository") for text in training.get(other, [])[:1500]]
            sources[kind] = Tables(documents, tokenizer, names)
            if left_out := len(documents) - len(sources[kind].parsed):
                skipped = f"{left_out:,} of {len(documents):,} documents"
                print(f"structured: {skipped} are not a table with a sentence and are skipped", flush=True)
        else:
            sources[kind] = Prose(documents, tokenizer, seed)
            check_enough(kind, len(sources[kind].tokens), n + 1, "train on")  # > n, so that a position can be drawn
    return sources


def held_out_rows(
    held_out: dict[str, list[str]], tokenizer: tiktoken.Encoding, n: int
) -> dict[str, tuple[torch.Tensor, int]]:
    """By kind, rows [N, n] of the unchanged documents, and the number of bytes of the scored tokens, rows[:, 1:].

    End tokens are scored too, but count no bytes. Raises InputError for too little text.
    """
    result = {}
    for kind, documents in held_out.items():
        tokens = Prose(documents, tokenizer, seed=1, divide=0).tokens  # the same rows whatever the run's seed
        check_enough(kind, len(tokens), n, "hold out")
        rows = torch.from_numpy(tokens.astype(np.int64)).unfold(0, n, n - 1)  # neighbours share a token
        scored = rows[:, 1:].flatten()
        result[kind] = rows, len(tokenizer.decode_bytes(scored[scored != tokenizer.eot_token].tolist()))
    return result


def check_enough(kind: str, n_tokens: int, need: int, purpose: str) -> None:
    """Raise InputError for text that does not fill a row."""
    if n_tokens < need:
        counts = f"{n_tokens} tokens are too few to {purpose}, {need} are needed"
        raise InputError(f"{kind}: {counts}: add text, or lower --n_positions")


class Mixture:
    """Batches of rows, each row of one kind; `weights` are the kinds' shares."""

    def __init__(self, sources: dict[str, Prose | Tables], weights: dict[str, float], seed: int):
        self.sources, self.weights, self.seed = sources, weights, seed

    def batch(self, step: int, rows: int, n: int) -> torch.Tensor:
        """[rows, n] token ids of a step: a function of the seed and the step."""
        rng = random.Random(self.seed * 1_000_003 + step)
        kinds = rng.choices(list(self.weights), list(self.weights.values()), k=rows)
        return torch.from_numpy(np.stack([self.sources[kind].row(rng, n) for kind in kinds]).astype(np.int64))
