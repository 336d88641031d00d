"""GPT-2 mini and the sample tables: the vocabulary, the files, and the README's quick start without a network."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import tokenizers
import torch
from hypothesis import given
from hypothesis import strategies as st

from e2e_data import load_split
from harness import download
from harness.files import InputError
from harness.settings import Settings
from harness.tokenizers import load_tokenizer
from prefix import load_prefix
from weights import load_config, load_gpt2

ROOT = Path(__file__).resolve().parent.parent
MINI = ROOT / "mini"

# ----------------------------------------------------------------------------- the vocabulary


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("mini")


@given(text=st.text())
def test_encode_then_decode_is_the_identity_on_any_unicode(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode_ordinary(text)) == text


@pytest.fixture(scope="module")
def reference():
    """Hugging Face's byte-level BPE over the same merges."""
    merges = [tuple(line.split(" ")) for line in (MINI / "vocab.bpe").read_text(encoding="utf-8").splitlines()[1:]]
    return tokenizers.ByteLevelBPETokenizer(
        vocab=json.loads((MINI / "encoder.json").read_text(encoding="utf-8")), merges=merges
    )


@given(
    text=st.text(st.characters(exclude_categories=["Cs"]))
    | st.lists(st.sampled_from("the  Thai food's £20-25 né\n 12 it's restaurant!? 日".split(" "))).map(" ".join)
)
def test_ids_are_those_of_another_byte_level_bpe(tokenizer, reference, text):
    assert tokenizer.encode_ordinary(text) == reference.encode(text).ids


def test_ids_of_all_sample_texts_are_those_of_another_byte_level_bpe(tokenizer, reference):
    texts = [
        f" {text} " for split in ("train", "valid", "test") for example in load_split("mini", split) for text in example
    ]
    texts += [path.read_text(encoding="utf-8") for path in (ROOT / "README.md", ROOT / "prefix.py", MINI / "README.md")]
    for text, ids in zip(texts, tokenizer.encode_ordinary_batch(texts)):
        assert ids == reference.encode(text).ids


# ----------------------------------------------------------------------------- the files


def test_the_model_is_small_and_complete():
    """All of mini's files are at most 16 MB; load_gpt2 reads it like any GPT-2."""
    tracked = [path for path in MINI.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert sum(path.stat().st_size for path in tracked) <= 16_000_000
    model = load_gpt2("mini")
    assert model.config.vocab_size == load_tokenizer("mini").n_vocab
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_the_card_states_the_measured_perplexities():
    card, held_out = (MINI / "README.md").read_text(encoding="utf-8"), json.loads((MINI / "held_out.json").read_text())
    for kind, its in held_out.items():
        assert re.search(rf"\| {kind} \|.*\| {its['perplexity']:.2f} \| {its['bits_per_byte']:.3f} \|", card), kind
    size = sum(p.numel() for p in load_gpt2("mini").parameters())
    assert f"{size:,}" in card


# ----------------------------------------------------------------------------- the README's quick start

# Runs at the start of each Python process: network access ends the process, and every opened file is listed.
GUARD = """
import os, socket, sys
def refuse(event, args):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
        with open(os.environ["GUARD_LOG"], "a") as log:
            log.write(f"network {event} {args}\\n")
        os._exit(99)
    if event == "open" and isinstance(args[0], str) and args[0] != os.environ["GUARD_LOG"]:
        seen.add(os.path.abspath(args[0]))
seen = set()
import atexit
@atexit.register
def write():
    with open(os.environ["GUARD_LOG"], "a") as log:
        log.writelines(f"open {path}\\n" for path in sorted(seen))
sys.addaudithook(refuse)
"""
NOT_CLONED = (".git", ".venv", "runs", "__pycache__", ".pytest_cache", ".ruff_cache", ".hypothesis")
SHORT = "--max_steps 30 --log_every 10 --beam_size 2 --max_new_tokens 30"


class Fresh(NamedTuple):
    """A fresh clone in which the quick start has run."""

    clone: Path
    python: Callable  # runs another command there
    printed: str
    log: list[str]  # written by GUARD

    @property
    def run(self) -> Path:
        (run,) = (self.clone / "runs").iterdir()
        return run


def quick_start(folder: Path, *more: str, **variables: str) -> Fresh:
    """Copy the repository without the files that runs leave, and run the README's quick start there, guarded.

    The whole of it, with its time, memory and BLEU, is a benchmark: benchmarks/quick_start.py.

    more, variables  further flags, and environment variables
    """
    clone = folder / "clone"
    shutil.copytree(ROOT, clone, ignore=shutil.ignore_patterns(*NOT_CLONED))
    (folder / "guard").mkdir()
    (folder / "guard" / "sitecustomize.py").write_text(GUARD)
    (folder / "home").mkdir()
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    command = re.search(r"^(?:.* && )?python (train\.py .*--model mini --data mini)$", readme, re.M)
    unset = ("TIKTOKEN_CACHE_DIR", "PREFIX_TUNING_CACHE", "METEOR_DATA", "OMP_NUM_THREADS")
    env = {name: value for name, value in os.environ.items() if name not in unset}
    env |= {"PYTHONPATH": str(folder / "guard"), "GUARD_LOG": str(folder / "log"), "HOME": str(folder / "home")}
    env |= variables

    def python(*words: str) -> str:
        ended = subprocess.run([sys.executable, *words], cwd=clone, env=env, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    printed = python(*command[1].split(), *more)
    return Fresh(clone, python, printed, (folder / "log").read_text().splitlines())


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """The quick start with 30 steps, short sentences, one thread and no METEOR, whose tables take long to prepare."""
    folder = tmp_path_factory.mktemp("short")
    return quick_start(folder, *SHORT.split(), METEOR_DATA=str(folder), OMP_NUM_THREADS="1")


def assert_isolated(fresh: Fresh) -> None:
    """It used no network, and it opened no file outside the clone and the system's folders."""
    clone = fresh.clone
    assert not [line for line in fresh.log if line.startswith("network")]
    opened = {Path(line.removeprefix("open ")) for line in fresh.log}
    assert len(opened) > 20
    system = [Path(path) for path in {sys.prefix, sys.base_prefix, "/usr", "/lib", "/etc", "/proc", "/sys", "/dev"}]
    own = (clone, clone.parent / "guard", clone.parent / "home")  # the home was empty; METEOR caches its tables there
    others = [path for path in opened if not any(path.is_relative_to(top) for top in (*own, *system))]
    assert not [path for path in others if path.exists() and path.is_file()], others


@pytest.mark.slow
def test_the_quick_start_needs_no_network_and_reads_no_file_outside_the_repository(short):
    assert_isolated(short)


@pytest.mark.slow
def test_the_quick_start_writes_its_files_and_prints_sentences_and_scores(short):
    files = "settings.json log.csv valid.csv prefix.safetensors summary.json outputs.txt scores.json evaluation.json"
    assert {path.name for path in short.run.iterdir()} == set(files.split())
    losses = [float(loss) for loss in re.findall(r"^step .* loss (\S+)", short.printed, re.M)]
    assert len(losses) == 3 and losses[-1] < losses[0]
    assert re.search(r"this run: \S+ +\d", short.printed) and short.printed.count("  output ") == 3


@pytest.mark.slow
def test_the_saved_prefix_has_the_announced_size_and_a_fresh_process_writes_the_same_sentences(short):
    run, config = short.run, load_config("mini")
    prefix = load_prefix(run / "prefix.safetensors", config)
    numbers = 5 * 2 * config.n_layer * config.n_embd
    assert sum(p.numel() for p in prefix.parameters()) == numbers
    assert f"prefix of 5 positions: {numbers:,} numbers stored" in short.printed
    before = (run / "outputs.txt").read_text()
    assert "  output " in short.python("evaluate.py", "--run", str(run))  # as many threads, so the same roundings
    assert (run / "outputs.txt").read_text() == before


# ----------------------------------------------------------------------------- the name, and no network


def test_mini_is_the_repositorys_from_any_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mini").mkdir()
    settings = Settings(model="mini", data="mini").resolve()
    assert (settings.model, settings.data, settings.out) == ("mini", "mini", "runs/mini-prefix5-data_mini")
    assert load_gpt2(settings.model).config.n_embd == 256 and len(load_split(settings.data, "test")) > 300


def test_without_a_network_gpt2_is_refused_with_the_command_that_needs_none(tmp_path, monkeypatch):
    """For the vocabulary, the data and the weights."""
    import requests

    import e2e_data
    import weights

    monkeypatch.setenv("PREFIX_TUNING_CACHE", str(tmp_path))
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "tiktoken"))
    monkeypatch.setattr(download.time, "sleep", lambda _: None)

    def no_network(*args, **kwargs):
        raise requests.ConnectionError("no route to host")

    monkeypatch.setattr(requests, "get", no_network)
    monkeypatch.setattr(requests.Session, "request", no_network)
    monkeypatch.setattr(e2e_data.tiktoken, "get_encoding", no_network)
    for load in (
        lambda: load_tokenizer("gpt2"),
        lambda: load_split(None, "train"),
        lambda: weights.default_checkpoint("gpt2"),
    ):
        with pytest.raises(InputError) as error:
            load()
        assert str(error.value).endswith("python train.py --mode prefix --prefix_len 5 --model mini --data mini")
