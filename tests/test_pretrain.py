"""mini/pretrain.py and what it stands on: the vocabulary's training, the mixture, a run that resumes."""

import csv
import gzip
import itertools
import json
import random
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import regex
import torch
from hypothesis import given
from hypothesis import strategies as st

from e2e_data import END, load_tokenizer, tiktoken_pattern
from files import InputError
from mini import pretrain
from mini.corpus import AFTER_KEY, BETWEEN, Mixture, Prose, Tables, held_out_rows, make_sources, parse_table, read_documents
from mini.tokenizer import byte_letters, train_bpe, write_vocabulary
from weights import load_gpt2

ROOT = Path(__file__).resolve().parents[1]

# ----------------------------------------------------------------------------- the vocabulary


def test_merges_of_an_example_small_enough_to_check_on_paper():
    """low x 5, lower x 2, newest x 6, each word with the space in front:

    w e: 2 + 6 = 8, the most frequent pair, so "we" is first. Then " l", "lo" (7 each: of equals the larger pair in
    byte order, ("l", "o")), and " lo" (7); "ne", "we s", "es t" and " n" occur 6 times, of which ("we", "s") is the largest.
    """
    merges = train_bpe([" low" * 5 + " lower" * 2 + " newest" * 6], 4)
    assert merges == [(b"w", b"e"), (b"l", b"o"), (b" ", b"lo"), (b"we", b"s")]


def naive_bpe(text: str, n_merges: int) -> list[tuple[bytes, bytes]]:
    """The definition, counting everything anew for each merge."""
    words = [[bytes([b]) for b in piece.encode()] for piece in regex.findall(tiktoken_pattern(), text)]
    merges = []
    for _ in range(n_merges):
        pairs = Counter(pair for word in words for pair in itertools.pairwise(word))
        merges.append(max(pairs, key=lambda pair: (pairs[pair], pair)))
        for word in words:
            i = 0
            while i + 1 < len(word):
                if (word[i], word[i + 1]) == merges[-1]:
                    word[i : i + 2] = [word[i] + word[i + 1]]
                i += 1
    return merges


@pytest.mark.parametrize("seed", range(3))
def test_merges_equal_those_of_counting_everything_anew(seed):
    rng = random.Random(seed)
    text = " ".join("".join(rng.choices("abcé1 \n", k=rng.randrange(1, 9))) for _ in range(300)) + " aaaa aaa aaaaaaa" * 7
    assert train_bpe([text], 60) == naive_bpe(text, 60)


def test_the_order_of_the_texts_does_not_count():
    texts = ["a cat sat on a mat", "the dog saw the cat", "on and on and on"]
    assert train_bpe(texts, 20) == train_bpe(texts[::-1], 20)


def test_too_little_text_is_said():
    with pytest.raises(ValueError, match="only 3 merges, not 10"):
        train_bpe(["abcd"], 10)


def test_the_letters_of_the_bytes_are_gpt2s():
    """As transformers has them for GPT-2's vocabulary."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    assert byte_letters() == [bytes_to_unicode()[b] for b in range(256)]


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    """A folder with a vocabulary of 400 tokens trained on this project's own prose, and its tokenizer."""
    folder = tmp_path_factory.mktemp("vocabulary")
    write_vocabulary(folder, train_bpe([(ROOT / "README.md").read_text(encoding="utf-8")], 400 - 257))
    (folder / "config.json").write_text(json.dumps({"n_layer": 1, "n_head": 1, "n_embd": 8, "n_positions": 32, "vocab_size": 400}))
    return folder, load_tokenizer(str(folder))


@given(text=st.text())
def test_encode_then_decode_is_the_identity(vocabulary, text):
    _, tokenizer = vocabulary
    assert tokenizer.decode(tokenizer.encode_ordinary(text)) == text


def test_the_end_token_has_the_last_id_and_every_byte_a_token(vocabulary):
    _, tokenizer = vocabulary
    assert (tokenizer.n_vocab, tokenizer.eot_token) == (400, 399)
    assert {tokenizer.decode_single_token_bytes(i) for i in range(256)} == {bytes([b]) for b in range(256)}


# ----------------------------------------------------------------------------- the mixture

PROSE = "The ship left the harbour at Porto before the sun was up.\nCaptain Reed did not look back.\n" * 20
TABLE = "restaurants\ncity : Porto | restaurant name : Blue Spice\nIn Porto there is Blue Spice."


def write_corpus(folder: Path, documents: int = 250) -> Path:
    """Four small files with documents that differ."""
    rng = random.Random(4)
    folder.mkdir(parents=True, exist_ok=True)
    names = ["Reed", "Anna Bell", "Old Tom", "Marta", "Mr. Fogg"]
    for kind in ("dialogue", "books", "expository"):
        texts = [PROSE.replace("Captain Reed", f"{rng.choice(names)}, {i}th of {kind},") for i in range(documents)]
        (folder / f"{kind}.txt").write_text(f"\n{END}\n".join(texts), encoding="utf-8")
    tables = [TABLE.replace("Porto", rng.choice(["Lisbon", "Faro", "Évora"])).replace("Blue Spice", f"Place {i}") for i in range(documents * 4)]
    (folder / "structured.txt").write_text(f"\n{END}\n".join(tables), encoding="utf-8")
    return folder


def test_one_document_in_a_hundred_is_held_out_and_no_other(tmp_path):
    training, held_out = read_documents(write_corpus(tmp_path), "books")
    assert len(held_out) == 3 and len(training) == 247
    assert "7th of books" in held_out[0] and not set(held_out) & set(training)


def write_documents(folder: Path, kind: str, documents: list[str]) -> Path:
    (folder / f"{kind}.txt").write_text(f"\n{END}\n".join(documents), encoding="utf-8")
    return folder


def test_only_lines_that_are_the_end_mark_alone_divide_documents(tmp_path):
    documents = [f"text {i}\n\nand more" for i in range(8)] + [f"a {END} inside of a line", f"{END} at the beginning of one"]
    for last in ("", f"\n{END}", f"\n{END}\n"):  # with and without a mark at the end, and a line end behind it
        (tmp_path / "books.txt").write_text(f"\n{END}\n".join(documents) + last, encoding="utf-8-sig")  # with a byte-order mark
        assert read_documents(tmp_path, "books") == (documents[:7] + documents[8:], documents[7:8])


def test_compressed_text_is_read_like_any_other(tmp_path):
    plain, packed = write_corpus(tmp_path / "plain"), tmp_path / "packed"
    packed.mkdir()
    (packed / "books.txt.gz").write_bytes(gzip.compress((plain / "books.txt").read_bytes()))
    assert read_documents(packed, "books") == read_documents(plain, "books")


def damaged(content: bytes) -> dict[str, bytes]:
    return {"cut off": content[:-100], "other bytes": content[:200] + b"\xff" * 50 + content[250:], "not gzip": b"text"}


@pytest.mark.parametrize("how", ["cut off", "other bytes", "not gzip"])
def test_damaged_compressed_text_is_refused(tmp_path, how):
    text = (write_corpus(tmp_path / "plain") / "books.txt").read_bytes()
    (tmp_path / "books.txt.gz").write_bytes(damaged(gzip.compress(text))[how])
    with pytest.raises(InputError, match=r"books.txt.gz cannot be read \(.*\): fetch or write it again"):
        read_documents(tmp_path, "books")


def test_text_in_another_encoding_is_refused(tmp_path):
    (tmp_path / "books.txt").write_bytes("Évora".encode("latin-1"))
    with pytest.raises(InputError, match="books.txt cannot be read .*UnicodeDecodeError"):
        read_documents(tmp_path, "books")


def test_a_document_is_held_out_from_eight_on(tmp_path):
    documents = [f"text {i}" for i in range(8)]
    assert read_documents(write_documents(tmp_path, "books", documents), "books") == (documents[:7], documents[7:])
    for too_few in (documents[:7], ["a plain text\nwithout marks\n" * 100]):
        with pytest.raises(InputError, match=r"too few .* divide the text into 8 or more, by lines <\|endoftext\|>"):
            read_documents(write_documents(tmp_path, "books", too_few), "books")


def test_tables_in_a_form_that_is_not_understood_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"structured.txt: no document is a table .* write key : value \| key : value, and below it the sentence"):
        read_documents(write_documents(tmp_path, "structured", ["name[Blue Spice], area[riverside]\nBlue Spice."] * 20), "structured")


def test_documents_that_are_no_tables_are_left_out_and_counted(vocabulary, capsys):
    sources = make_sources({"structured": [TABLE, "just a sentence", TABLE]}, vocabulary[1], 33, seed=1)
    assert len(sources["structured"].parsed) == 2
    assert capsys.readouterr().out == "structured: 1 of 3 documents are no tables with a sentence, and left out\n"


def test_bytes_per_document_do_not_count_its_end_token(vocabulary):
    """Of very short documents nearly half of the tokens are ends, and "<|endoftext|>" would be 13 bytes."""
    _, tokenizer = vocabulary
    documents = ["a", "é", "no", "x"] * 25
    (rows, n_bytes), = held_out_rows({"books": documents}, tokenizer, 9).values()
    scored = tokenizer.decode_bytes(rows[:, 1:].flatten().tolist())
    assert scored.count(END.encode()) > 0.3 * rows[:, 1:].numel()
    assert n_bytes == len(scored.replace(END.encode(), b"")) < rows[:, 1:].numel()


@pytest.mark.parametrize("text, expected", [
    ("wind : 12 | humidity : 15\nA breeze.", ("", [("wind", "12"), ("humidity", "15")], "A breeze.")),
    ("banks\ntype = savings; amount = $40\nSure.", ("banks\n", [("type", "savings"), ("amount", "$40")], "Sure.")),
    ("address: 121, Main Street, rating: 5\nThere.", ("", [("address", "121, Main Street"), ("rating", "5")], "There.")),
    ("city : Rome\ndate : May 3rd\nOn May 3rd.", ("", [("city", "Rome"), ("date", "May 3rd")], "On May 3rd.")),
    ("name : Silver Fig | Type : pub | 2nd area : here\nA pub.", ("", [("name", "Silver Fig"), ("Type", "pub | 2nd area : here")], "A pub.")),
    ("Pubs\nName: Silver Fig\nArea 2: here; Type: pub\nA pub.", ("Pubs\n", [("Name", "Silver Fig"), ("Area 2", "here"), ("Type", "pub")], "A pub.")),
    ("title: Dumbo, Mad Max: Fury Road, price: 5\nOr?", ("", [("title", "Dumbo, Mad Max: Fury Road"), ("price", "5")], "Or?")),
    ("just a sentence", None),
    ("heading\na sentence", None),
])  # fmt: skip
def test_tables_in_all_the_forms_of_the_corpus_are_understood(text, expected):
    assert parse_table(text) == expected


def test_a_table_told_anew_says_the_same_values_in_table_and_sentence(vocabulary):
    """Where the original sentence repeats a value, the new sentence repeats the new one."""
    tables = Tables([TABLE, "artist : Ruby Moss | track : Low Tide\nLow Tide by Ruby Moss?"], vocabulary[1], [PROSE * 3, "He met Anna Bell there."])
    rng, seen = random.Random(0), set()
    for _ in range(300):
        told = tables.tell(rng)
        _, items, sentence = parse_table(told)
        assert all(value.strip() in sentence for _, value in items), told  # (strip: " , " also stands between items)
        seen.add(told)
    assert len(seen) > 100
    assert any(len(parse_table(told)[1]) == 4 for told in seen)  # joined
    shown = [told.rpartition("\n")[0] for told in seen]  # without their sentences
    for sign in {*AFTER_KEY, *BETWEEN}:
        assert any(re.search(rf"\w{re.escape(sign)}\w", table) for table in shown), sign


def test_without_names_or_words_to_take_a_value_is_exchanged_for_one_of_its_key(vocabulary):
    for value in ("Ruby", "AB", "to be told"):
        tables = Tables([f"artist : {value}\nIt is {value}."], vocabulary[1], names=[])
        assert tables.names == [] and {tables.other_value(random.Random(seed), "artist", value) for seed in range(50)} == {value}


def test_some_paragraphs_are_divided_by_an_end_token_and_tables_never(vocabulary):
    _, tokenizer = vocabulary
    whole = Prose([PROSE], tokenizer, seed=1, divide=0).tokens
    divided = Prose([PROSE], tokenizer, seed=1, divide=0.5).tokens
    ends = [(tokens == tokenizer.eot_token).sum() for tokens in (whole, divided)]
    assert ends[0] == 1 and 10 < ends[1] < 30
    assert tokenizer.decode(divided.tolist()).replace(END, "\n").strip() == PROSE.strip()
    row = Tables([TABLE], tokenizer, [PROSE]).row(random.Random(1), 400).tolist()
    assert all("\n" in text for text in tokenizer.decode(row).split(END)[:-1])


def test_a_batch_is_a_function_of_seed_and_step(vocabulary):
    _, tokenizer = vocabulary
    sources = {"books": Prose([PROSE], tokenizer, seed=1), "structured": Tables([TABLE], tokenizer, [PROSE])}
    mixture = Mixture(sources, {"books": 0.5, "structured": 0.5}, seed=3)
    assert torch.equal(mixture.batch(7, 4, 33), Mixture(sources, mixture.weights, seed=3).batch(7, 4, 33))
    assert not torch.equal(mixture.batch(7, 4, 33), mixture.batch(8, 4, 33))
    assert mixture.batch(7, 4, 33).shape == (4, 33)


# ----------------------------------------------------------------------------- a run

FLAGS = ("--n_layer 1 --n_head 2 --n_embd 32 --n_positions 32 --vocab_size 320 --vocab_chars 20000 --rows 4 --every 4"
         " --device cpu --dtype fp32").split()  # fmt: skip


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def finished(corpus, tmp_path_factory):
    """A run of 40 steps."""
    out = tmp_path_factory.mktemp("pretrained") / "run"
    pretrain.main(["--corpus", str(corpus), "--out", str(out), *FLAGS, "--steps", "40"])
    return out


def test_the_result_is_a_model_folder_and_the_loss_falls(finished):
    model, tokenizer = load_gpt2(str(finished)), load_tokenizer(str(finished))
    assert tokenizer.n_vocab == 320 == model.config.vocab_size
    rows = list(csv.DictReader(open(finished / "log.csv")))
    assert [int(row["step"]) for row in rows] == list(range(4, 41, 4))
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"]) - 1
    held_out = json.loads((finished / "held_out.json").read_text())
    assert list(held_out) == ["dialogue", "books", "expository", "structured"]
    assert all(1 < its["perplexity"] < 320 and its["tokens"] > 0 for its in held_out.values())


def test_the_exported_weights_are_the_trained_ones_in_fp16(finished):
    state = torch.load(finished / "checkpoint.pt", weights_only=True)["model"]
    for name, tensor in load_gpt2(str(finished)).state_dict().items():
        assert torch.equal(tensor, state[name].half().float()), name


def test_a_stopped_run_goes_on_to_the_same_bits(corpus, finished, tmp_path, monkeypatch):
    out = tmp_path / "run"
    command = ["--corpus", str(corpus), "--out", str(out), *FLAGS, "--steps", "40"]
    stop_at, batch = 14, Mixture.batch

    def ctrl_c(self, step, rows, n):  # in the middle of a step that is then finished
        if step == stop_at:
            import signal

            signal.raise_signal(signal.SIGINT)
        return batch(self, step, rows, n)

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr(Mixture, "batch", ctrl_c)
        pretrain.main(command)
    assert ended.value.code == 130
    with pytest.raises(SystemExit):  # not without being asked
        pretrain.main(command)
    pretrain.main([*command, "--resume"])
    assert (out / "model.safetensors").read_bytes() == (finished / "model.safetensors").read_bytes()


def test_it_can_be_called_from_anywhere_and_says_what_is_wrong(tmp_path):
    command = [sys.executable, str(ROOT / "mini" / "pretrain.py"), "--corpus", "nothing", "--out", "out"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == "error: nothing holds none of dialogue.txt, books.txt, expository.txt, structured.txt (or .txt.gz)\n"


def test_other_flags_for_a_run_that_was_begun_are_refused(corpus, finished):
    command = ["--corpus", str(corpus), "--out", str(finished), *FLAGS, "--steps", "40", "--resume"]
    with pytest.raises(InputError, match="begun with"):
        pretrain.open_folder(pretrain.parse_args([*command, "--n_embd", "64"]))


def test_text_in_some_kinds_only_will_do(corpus, tmp_path):
    few = tmp_path / "few"
    few.mkdir()
    (few / "books.txt").write_text((corpus / "books.txt").read_text())
    pretrain.main(["--corpus", str(few), "--out", str(tmp_path / "run"), *FLAGS, "--steps", "2"])
    assert list(json.loads((tmp_path / "run" / "held_out.json").read_text())) == ["books"]
