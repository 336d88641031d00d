"""mini/pretrain.py: the training of its vocabulary, the mixture of texts, runs that stop and resume."""

import argparse
import csv
import gzip
import itertools
import json
import math
import random
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import regex
import torch
from hypothesis import given
from hypothesis import strategies as st

from harness.files import InputError
from harness.gpt2_bpe import tiktoken_pattern
from harness.tokenizers import load_tokenizer
from harness.vocabulary import END
from mini import pretrain
from mini.corpus import (
    AFTER_KEY,
    BETWEEN,
    Mixture,
    Prose,
    Tables,
    held_out_rows,
    make_sources,
    parse_table,
    read_documents,
)
from mini.tokenizer import byte_letters, train_bpe, write_vocabulary
from weights import load_gpt2

ROOT = Path(__file__).resolve().parents[1]

# ----------------------------------------------------------------------------- the vocabulary


def test_merges_of_an_example_small_enough_to_check_on_paper():
    """low x 5, lower x 2, newest x 6, each word with its leading space:

    w e: 2 + 6 = 8, the most frequent pair, so "we" is first. " l" and "lo" have 7 each; of equally frequent pairs the
    larger in byte order wins, ("l", "o"). " lo" is next (7). "ne", "we s", "es t" and " n" have 6 each; ("we", "s") is
    the largest of them.
    """
    merges = train_bpe([" low" * 5 + " lower" * 2 + " newest" * 6], 4)
    assert merges == [(b"w", b"e"), (b"l", b"o"), (b" ", b"lo"), (b"we", b"s")]


def naive_bpe(text: str, n_merges: int) -> list[tuple[bytes, bytes]]:
    """The definition: count all pairs again for each merge."""
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
def test_merges_equal_those_of_the_definition(seed):
    rng = random.Random(seed)
    text = " ".join("".join(rng.choices("abcé1 \n", k=rng.randrange(1, 9))) for _ in range(300))
    text += " aaaa aaa aaaaaaa" * 7
    assert train_bpe([text], 60) == naive_bpe(text, 60)


def test_the_merges_do_not_depend_on_the_order_of_the_texts():
    texts = ["a cat sat on a mat", "the dog saw the cat", "on and on and on"]
    assert train_bpe(texts, 20) == train_bpe(texts[::-1], 20)


def test_too_little_text_for_the_merges_is_an_error():
    with pytest.raises(ValueError, match="only 3 merges, not 10"):
        train_bpe(["abcd"], 10)


def test_the_letter_of_each_byte_is_gpt2s():
    """Equal to the table in transformers."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    assert byte_letters() == [bytes_to_unicode()[b] for b in range(256)]


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    """A folder with a vocabulary of 400 tokens, trained on README.md, and its tokenizer."""
    folder = tmp_path_factory.mktemp("vocabulary")
    write_vocabulary(folder, train_bpe([(ROOT / "README.md").read_text(encoding="utf-8")], 400 - 257))
    config = {"n_layer": 1, "n_head": 1, "n_embd": 8, "n_positions": 32, "vocab_size": 400}
    (folder / "config.json").write_text(json.dumps(config))
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
    """Four small files; no two documents of one are equal."""
    rng = random.Random(4)
    folder.mkdir(parents=True, exist_ok=True)
    names = ["Reed", "Anna Bell", "Old Tom", "Marta", "Mr. Fogg"]
    for kind in ("dialogue", "books", "expository"):
        texts = [PROSE.replace("Captain Reed", f"{rng.choice(names)}, {i}th of {kind},") for i in range(documents)]
        (folder / f"{kind}.txt").write_text(f"\n{END}\n".join(texts), encoding="utf-8")
    tables = [
        TABLE.replace("Porto", rng.choice(["Lisbon", "Faro", "Évora"])).replace("Blue Spice", f"Place {i}")
        for i in range(documents * 4)
    ]
    (folder / "structured.txt").write_text(f"\n{END}\n".join(tables), encoding="utf-8")
    return folder


def test_one_document_in_a_hundred_is_held_out(tmp_path):
    training, held_out = read_documents(write_corpus(tmp_path), "books")
    assert len(held_out) == 3 and len(training) == 247
    assert "7th of books" in held_out[0] and not set(held_out) & set(training)


def write_documents(folder: Path, kind: str, documents: list[str]) -> Path:
    (folder / f"{kind}.txt").write_text(f"\n{END}\n".join(documents), encoding="utf-8")
    return folder


def test_documents_are_divided_only_by_lines_that_hold_nothing_but_the_end_mark(tmp_path):
    documents = [f"text {i}\n\nand more" for i in range(8)]
    documents += [f"a {END} inside a line", f"{END} at the start of a line"]
    for last in ("", f"\n{END}", f"\n{END}\n"):  # no end mark at the end, one, and one with a line end
        text = f"\n{END}\n".join(documents) + last
        (tmp_path / "books.txt").write_text(text, encoding="utf-8-sig")  # with a byte-order mark
        assert read_documents(tmp_path, "books") == (documents[:7] + documents[8:], documents[7:8])


def test_compressed_text_is_read_like_plain_text(tmp_path):
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


def test_with_eight_documents_one_is_held_out(tmp_path):
    documents = [f"text {i}" for i in range(8)]
    assert read_documents(write_documents(tmp_path, "books", documents), "books") == (documents[:7], documents[7:])
    for too_few in (documents[:7], ["a plain text\nwithout end marks\n" * 100]):
        with pytest.raises(InputError, match=r"too few .* divide the text into 8 or more, by lines <\|endoftext\|>"):
            read_documents(write_documents(tmp_path, "books", too_few), "books")


def test_tables_in_an_unknown_form_are_refused(tmp_path):
    write_documents(tmp_path, "structured", ["name[Blue Spice], area[riverside]\nBlue Spice."] * 20)
    said = r"structured.txt: no document is a table .* write key : value \| key : value, and below it the sentence"
    with pytest.raises(InputError, match=said):
        read_documents(tmp_path, "structured")


def test_documents_that_are_not_tables_are_skipped_and_counted(vocabulary, capsys):
    sources = make_sources({"structured": [TABLE, "just a sentence", TABLE]}, vocabulary[1], 33, seed=1)
    assert len(sources["structured"].parsed) == 2
    said = "structured: 1 of 3 documents are not a table with a sentence and are skipped\n"
    assert capsys.readouterr().out == said


def test_held_out_bytes_do_not_include_end_tokens(vocabulary):
    """In very short documents nearly half of the tokens are end tokens; as text each would be 13 bytes."""
    _, tokenizer = vocabulary
    documents = ["a", "é", "no", "x"] * 25
    ((rows, n_bytes),) = held_out_rows({"books": documents}, tokenizer, 9).values()
    scored = tokenizer.decode_bytes(rows[:, 1:].flatten().tolist())
    assert scored.count(END.encode()) > 0.3 * rows[:, 1:].numel()
    assert n_bytes == len(scored.replace(END.encode(), b"")) < rows[:, 1:].numel()


@pytest.mark.parametrize("text, expected", [
    ("wind : 12 | humidity : 15\nA breeze.", ("", [("wind", "12"), ("humidity", "15")], "A breeze.")),
    ("banks\ntype = savings; amount = $40\nSure.", ("banks\n", [("type", "savings"), ("amount", "$40")], "Sure.")),
    ("address: 121, Main Street, rating: 5\nThere.",
     ("", [("address", "121, Main Street"), ("rating", "5")], "There.")),
    ("city : Rome\ndate : May 3rd\nOn May 3rd.", ("", [("city", "Rome"), ("date", "May 3rd")], "On May 3rd.")),
    ("name : Silver Fig | Type : pub | 2nd area : here\nA pub.",
     ("", [("name", "Silver Fig"), ("Type", "pub | 2nd area : here")], "A pub.")),
    ("Pubs\nName: Silver Fig\nArea 2: here; Type: pub\nA pub.",
     ("Pubs\n", [("Name", "Silver Fig"), ("Area 2", "here"), ("Type", "pub")], "A pub.")),
    ("title: Dumbo, Mad Max: Fury Road, price: 5\nOr?",
     ("", [("title", "Dumbo, Mad Max: Fury Road"), ("price", "5")], "Or?")),
    ("just a sentence", None),
    ("heading\na sentence", None),
])  # fmt: skip
def test_tables_in_every_form_of_the_corpus_are_parsed(text, expected):
    assert parse_table(text) == expected


def test_a_varied_table_and_its_sentence_state_the_same_values(vocabulary):
    """If the original sentence repeats a value, the new sentence repeats the new value."""
    tables = Tables(
        [TABLE, "artist : Ruby Moss | track : Low Tide\nLow Tide by Ruby Moss?"],
        vocabulary[1],
        [PROSE * 3, "He met Anna Bell there."],
    )
    rng, seen = random.Random(0), set()
    for _ in range(300):
        varied = tables.vary(rng)
        _, items, sentence = parse_table(varied)
        assert all(value.strip() in sentence for _, value in items), varied  # strip: " , " is a separator too
        seen.add(varied)
    assert len(seen) > 100
    assert any(len(parse_table(varied)[1]) == 4 for varied in seen)  # joined tables
    shown = [varied.rpartition("\n")[0] for varied in seen]  # without their sentences
    for sign in {*AFTER_KEY, *BETWEEN}:
        assert any(re.search(rf"\w{re.escape(sign)}\w", table) for table in shown), sign


def test_without_names_or_words_a_value_is_exchanged_for_another_of_its_key(vocabulary):
    for value in ("Ruby", "AB", "to be told"):
        tables = Tables([f"artist : {value}\nIt is {value}."], vocabulary[1], names=[])
        others = {tables.other_value(random.Random(seed), "artist", value) for seed in range(50)}
        assert tables.names == [] and others == {value}


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


def test_the_report_has_the_perplexity_and_the_bits_per_byte_of_the_held_out_text(corpus, finished):
    report = json.loads((finished / "held_out.json").read_text())
    assert list(report) == ["dialogue", "books", "expository", "structured"]
    model, tokenizer = load_gpt2(str(finished)), load_tokenizer(str(finished))  # stored in fp16, so roughly equal
    rows, n_bytes = held_out_rows({"books": read_documents(corpus, "books")[1]}, tokenizer, 33)["books"]
    with torch.no_grad():
        losses = [-model(row[None, :-1]).log_softmax(-1)[0, range(32), row[1:]] for row in rows]
    assert report["books"]["tokens"] == 32 * len(losses)
    assert report["books"]["perplexity"] == pytest.approx(torch.stack(losses).mean().exp().item(), rel=1e-2)
    bits = torch.stack(losses).sum().item() / math.log(2)
    assert report["books"]["bits_per_byte"] == pytest.approx(bits / n_bytes, rel=1e-2)


def test_the_exported_weights_are_the_trained_ones_in_fp16(finished):
    state = torch.load(finished / "checkpoint.pt", weights_only=True)["model"]
    for name, tensor in load_gpt2(str(finished)).state_dict().items():
        assert torch.equal(tensor, state[name].half().float()), name


def logged(folder: Path) -> dict[int, dict]:
    """step -> its row in log.csv, without the seconds."""
    with open(folder / "log.csv", newline="") as file:
        return {int(row["step"]): row | {"seconds": None} for row in csv.DictReader(file)}


def command(corpus: Path, out: Path, *more) -> list[str]:
    """A command line; if a flag is given twice, the last one counts."""
    return ["--corpus", str(corpus), "--out", str(out), *FLAGS, "--steps", "40", *map(str, more)]


def stopped(argv: list[str], at: int, signals: int = 1) -> None:
    """Start a run, and send SIGINT during update `at` (0 is the first)."""
    batch = Mixture.batch

    def ctrl_c(self, step, rows, n):
        for _ in range(signals if step == at else 0):
            signal.raise_signal(signal.SIGINT)
        return batch(self, step, rows, n)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr(Mixture, "batch", ctrl_c)
        pretrain.main(argv)
    assert ended.value.code == 130


@pytest.fixture
def refused(capsys):
    """refused(argv) runs a command line that must end with one line and change no file in --out; returns the line."""

    def run(argv) -> str:
        out = Path(argv[argv.index("--out") + 1]) if "--out" in argv else None
        before = content(out)
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            pretrain.main(argv)
        complaint = capsys.readouterr().err
        assert ended.value.code == 2 and complaint.startswith("error: ") and complaint.count("\n") == 1, complaint
        assert content(out) == before
        return complaint

    return run


def content(folder: Path | None) -> dict[Path, bytes] | None:
    return {path: path.read_bytes() for path in folder.iterdir()} if folder and folder.exists() else None


# ----------------------------------------------------------------------------- stopping and resuming


def test_a_stopped_run_resumes_to_the_same_bits(corpus, finished, tmp_path, refused, capsys):
    argv = command(corpus, tmp_path / "run")
    stopped(argv, at=14)
    assert capsys.readouterr().err == "\nstopped; the same command with --resume continues\n"
    assert "holds a run already: continue it (--resume)" in refused(argv)
    pretrain.main([*argv, "--resume"])
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == (finished / "model.safetensors").read_bytes()

    ours, whole = logged(tmp_path / "run"), logged(finished)  # the step in progress was finished: 15
    assert ours.keys() - whole.keys() == {15} and whole.keys() <= ours.keys()
    assert [step for step in whole if ours[step] != whole[step]] == [16]
    loss = {step: float(row["loss"]) for step, row in ours.items()}  # of steps 13 to 15, and of step 16 alone
    assert (3 * loss[15] + loss[16]) / 4 == pytest.approx(float(whole[16]["loss"]), abs=2e-4)


def test_flags_that_do_not_change_the_result_may_change_on_resume(corpus, finished, tmp_path):
    stopped(command(corpus, tmp_path / "run"), at=6)
    pretrain.main(command(corpus, tmp_path / "run", "--resume", "--every", 15))
    assert list(logged(tmp_path / "run")) == [4, 7, 15, 30, 40]
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == (finished / "model.safetensors").read_bytes()


def test_a_run_can_be_extended_until_its_learning_rate_falls(corpus, finished, tmp_path, refused):
    stopped(command(corpus, tmp_path / "run", "--steps", 20), at=6)
    pretrain.main(command(corpus, tmp_path / "run", "--steps", 40, "--resume"))
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == (finished / "model.safetensors").read_bytes()
    assert "--steps 39: 40 are done already" in refused(command(corpus, finished, "--steps", 39, "--resume"))
    complaint = refused(command(corpus, finished, "--steps", 41, "--resume"))
    rates = "the 40 steps that are done had the learning rates of --steps 40, with which it has begun to fall"
    assert f"--steps 41: {rates}" in complaint


KILLED = """
import os, sys
import torch
torch.set_num_threads(1)  # as in this process: several threads add in another order, which rounds differently
sys.path.insert(0, {root!r})
from mini import pretrain
export = pretrain.Pretraining.export
pretrain.Pretraining.export = lambda run: os._exit(9) if run.n == 40 else export(run)
pretrain.main({argv!r})
"""


def test_a_run_killed_between_its_last_checkpoint_and_the_export_resumes_to_both(corpus, finished, tmp_path):
    argv = command(corpus, tmp_path / "run")
    code = KILLED.format(root=str(ROOT), argv=argv)
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 9
    assert (tmp_path / "run" / "model.safetensors").read_bytes() != (finished / "model.safetensors").read_bytes()
    pretrain.main([*argv, "--resume"])
    assert content(tmp_path / "run").keys() == {tmp_path / "run" / path.name for path in finished.iterdir()}
    for name in ("model.safetensors", "held_out.json"):
        assert (tmp_path / "run" / name).read_bytes() == (finished / name).read_bytes()
    assert logged(tmp_path / "run") == logged(finished)


def test_a_second_ctrl_c_and_one_before_the_loop_end_at_once(corpus, tmp_path, capsys, monkeypatch):
    argv, said = command(corpus, tmp_path / "run"), "\nstopped; the same command with --resume continues\n"
    stopped([*argv, "--vocab_size", "300"], at=2, signals=2)
    assert capsys.readouterr().err == said and not (tmp_path / "run" / "checkpoint.pt").exists()
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr(pretrain, "train_bpe", lambda *_: signal.raise_signal(signal.SIGINT))
        pretrain.main(argv)
    assert ended.value.code == 130 and capsys.readouterr().err == said
    pretrain.main([*argv, "--resume", "--steps", "1"])  # no checkpoint: a new run with a new vocabulary
    assert load_tokenizer(str(tmp_path / "run")).n_vocab == 320


@pytest.mark.parametrize("change, named", [
    (f"--{flag} {value}", f"was begun with --{flag} {before}, not {value}: resume it with the same flags")
    for flag, before, value in (("n_head", 2, 4), ("n_embd", 32, 64), ("rows", 4, 5), ("lr", 0.008, 0.01),
                                ("falling", 0.3, 0.5), ("weight_decay", 0.05, 0.0), ("seed", 1, 2))
] + [("--shares 1 1 1 1", "was begun with --shares [0.25, 0.15, 0.2, 0.4], not [1.0, 1.0, 1.0, 1.0]")])  # fmt: skip
def test_resuming_with_other_flags_is_refused(corpus, finished, refused, change, named):
    assert named in refused([*command(corpus, finished), "--resume", *change.split()])


@pytest.mark.parametrize("kind", ["books", "structured"])
def test_resuming_with_other_text_is_refused(corpus, finished, tmp_path, refused, kind):
    shutil.copytree(corpus, tmp_path / "corpus")
    path = tmp_path / "corpus" / f"{kind}.txt"
    path.write_text(path.read_text().replace("In " if kind == "structured" else "The ship", "At ", 1))
    complaint = refused([*command(tmp_path / "corpus", finished), "--resume"])
    said = rf"was begun with {kind} [\d,]+ (tokens|tables) \(SHA-256 \w+\), not [\d,]+ "
    assert re.search(said, complaint), complaint
    path.unlink()
    assert f"was begun with {kind} " in refused([*command(tmp_path / "corpus", finished), "--resume"])


@pytest.mark.parametrize("bad", [
    *(lambda file, n=n: file.write_bytes(file.read_bytes()[:n]) for n in (0, 5, 977, -1)),
    lambda file: file.write_text("hello"),
    *(lambda file, change=change: torch.save(change(torch.load(file)), file) for change in (
        lambda state: [1, 2], lambda state: state["model"], lambda state: state | {"flags": None},
        lambda state: state | {"n": "forty"}, lambda state: state | {"optimizers": []},
        lambda state: state | {"optimizers": [1, 2]}, lambda state: state | {"model": {}},
        lambda state: state | {"steps": Path("40")})),
])  # fmt: skip
def test_a_damaged_checkpoint_is_refused(corpus, finished, tmp_path, refused, bad):
    shutil.copytree(finished, tmp_path / "run")
    bad(tmp_path / "run" / "checkpoint.pt")
    complaint = refused([*command(corpus, tmp_path / "run"), "--resume"])
    assert "checkpoint.pt " in complaint and "delete it to start over" in complaint


def test_a_run_that_diverges_keeps_its_last_checkpoint(corpus, tmp_path, refused, monkeypatch, capsys):
    argv, held_out_loss = command(corpus, tmp_path / "run"), pretrain.held_out_loss
    stopped(argv, at=5)
    before = content(tmp_path / "run")
    monkeypatch.setattr(pretrain, "held_out_loss", lambda *args, **most: math.nan)
    complaint = refused([*argv, "--resume"])
    assert "the loss (dialogue) is nan at step 8: lower --lr (it is 0.008), with another --out" in complaint
    monkeypatch.setattr(pretrain, "held_out_loss", held_out_loss)
    monkeypatch.setattr(pretrain, "loss_of", lambda model, rows: model.wte.weight.sum() * math.nan)
    assert "the loss (training) is nan at step 8" in refused([*argv, "--resume"])
    assert content(tmp_path / "run") == before


NO_ROOM = """
import resource, sys
sys.path.insert(0, {root!r})
from mini import pretrain
resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))
pretrain.main({argv!r})
"""


@pytest.mark.slow
def test_a_full_disk_ends_the_program_with_a_sentence(corpus, tmp_path):
    code = NO_ROOM.format(root=str(ROOT), argv=command(corpus, tmp_path / "run"))
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 2 and ended.stderr.startswith("error: ") and ended.stderr.count("\n") == 1, ended.stderr
    assert f"{tmp_path / 'run' / 'checkpoint.pt'} was not written" in ended.stderr


# ----------------------------------------------------------------------------- folders and flags


def test_a_folder_with_other_files_is_refused(corpus, tmp_path, refused):
    for name, said in (("model.safetensors", "holds a model.safetensors but no checkpoint.pt: choose another --out"),
                       ("settings.json", "holds a run of train.py: choose another --out")):  # fmt: skip
        folder = tmp_path / name.partition(".")[0]
        folder.mkdir()
        (folder / name).write_text("{}")
        for more in ([], ["--resume"]):
            assert f"{folder} {said}" in refused(command(corpus, folder, *more))


def test_it_runs_from_any_working_directory_and_reports_a_missing_corpus(tmp_path):
    argv = [sys.executable, str(ROOT / "mini" / "pretrain.py"), "--corpus", "nothing", "--out", "out"]
    ended = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True)
    files = "dialogue.txt, books.txt, expository.txt, structured.txt (or .txt.gz)"
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == f"error: nothing does not exist: --corpus names a folder with {files}\n"
    assert not list(tmp_path.iterdir())


def test_missing_flags_and_missing_text_are_named(tmp_path, refused):
    (tmp_path / "file").write_text("text")
    out, files = (
        ["--out", str(tmp_path / "run")],
        "dialogue.txt, books.txt, expository.txt, structured.txt (or .txt.gz)",
    )
    for argv in ([], out, ["--corpus", str(tmp_path)]):
        assert "with --corpus one of text, which is not in this repository: " + files in refused(argv)
    assert f"{tmp_path} holds none of {files}" in refused(["--corpus", str(tmp_path), *out])
    complaint = refused(["--corpus", str(tmp_path / "file"), *out])
    assert f"{tmp_path / 'file'} is not a folder: --corpus names a folder with {files}" in complaint


@pytest.mark.parametrize("flags, said", [
    *((f"--{name} {value}", f"--{name} {value}: must be at least 1") for name, value in (
        ("every", 0), ("rows", 0), ("steps", -1), ("vocab_chars", 0), ("n_layer", 0), ("n_head", 0))),
    ("--n_positions 1", "--n_positions 1: must be at least 2"),
    ("--vocab_size 256", "--vocab_size 256: must be at least 257 and at most 65536"),
    ("--vocab_size 65537", "--vocab_size 65537: must be at least 257 and at most 65536"),
    ("--n_embd 33", "--n_embd 33: must be a multiple of --n_head 2"),
    ("--lr nan", "--lr nan: must be at least 0"),
    ("--lr inf", "--lr inf: must be at least 0"),
    ("--weight_decay -1", "--weight_decay -1.0: must be at least 0"),
    ("--falling 1.5", "--falling 1.5: must be at least 0 and at most 1"),
    ("--seed -1", "--seed -1: must be at least 0"),
    ("--shares 1 1 1 -1", "--shares 1.0 1.0 1.0 -1.0: must be 0 or more"),
    ("--shares 1 1 1 nan", "--shares 1.0 1.0 1.0 nan: must be 0 or more"),
])  # fmt: skip
def test_invalid_flags_are_refused_before_any_text_is_read(tmp_path, refused, flags, said):
    assert said in refused(command(tmp_path / "nowhere", tmp_path / "run", *flags.split()))


def test_shares_that_leave_no_text_are_refused(corpus, tmp_path, refused):
    shutil.copy(corpus / "books.txt", tmp_path)
    complaint = refused(command(tmp_path, tmp_path / "run", *"--shares 1 0 0 0".split()))
    assert f"--shares leave nothing to books, all that {tmp_path} holds: give a share above 0" in complaint


@pytest.mark.parametrize("documents, said", [
    (["a"] * 17, "books: 32 tokens are too few to train on, 34 are needed: add text, or lower --n_positions"),
    (["a"] * 18, "books: 2 tokens are too few to hold out, 33 are needed: add text, or lower --n_positions"),
])  # fmt: skip
def test_too_little_text_is_refused_and_more_text_is_accepted(tmp_path, capsys, documents, said):
    """The smallest vocabulary has no merges, so each document has 2 tokens."""
    bare = ("--vocab_size", 257, "--steps", 1)
    with pytest.raises(SystemExit):
        pretrain.main(command(write_documents(tmp_path, "books", documents), tmp_path / "run", *bare))
    assert capsys.readouterr().err == f"error: {said}\n"
    pretrain.main(command(write_documents(tmp_path, "books", documents * 100), tmp_path / "run", *bare))
    assert load_tokenizer(str(tmp_path / "run")).encode_ordinary("ab") == [64, 65]


@pytest.mark.parametrize("kind", ["books", "structured"])
def test_one_kind_of_text_is_enough(corpus, tmp_path, kind):
    (tmp_path / f"{kind}.txt").write_text((corpus / f"{kind}.txt").read_text())
    pretrain.main(command(tmp_path, tmp_path / "run", "--steps", 2))
    assert list(json.loads((tmp_path / "run" / "held_out.json").read_text())) == [kind]


def test_the_pattern_matcher_is_off_on_cpus_only(monkeypatch):
    from torch._inductor import config as inductor

    monkeypatch.setattr(torch, "compile", lambda function, dynamic: function)
    for device, on in (("cuda", True), ("cpu", False)):
        monkeypatch.setattr(inductor, "pattern_matcher", True)
        assert pretrain.compiled(argparse.Namespace(compile=True, device=device)) is pretrain.loss_of
        assert inductor.pattern_matcher is on
