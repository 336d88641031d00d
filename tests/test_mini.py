"""GPT-2 mini and the sample tables: the README's first command, in a process that can reach neither a network nor other files."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import tokenizers
import torch
from hypothesis import given
from hypothesis import strategies as st

import metrics
from e2e_data import group_references, load_split, load_tokenizer
from evaluate import decode, generate
from harness.files import InputError
from harness.runs import load_run
from harness.settings import Settings
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
    """At most 16 MB with all that belongs to it; the architecture is GPT-2's, and the same loader reads it."""
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


# ----------------------------------------------------------------------------- the README's first command

# Put in front of the command's Python: any use of the network ends the program, and every file that is opened is written down.
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


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """The repository as a clone has it (without what runs leave behind), and the first command of the README run in it."""
    folder = tmp_path_factory.mktemp("fresh")
    clone = folder / "clone"
    shutil.copytree(
        ROOT,
        clone,
        ignore=shutil.ignore_patterns(".git", ".venv", "runs", "__pycache__", ".pytest_cache", ".hypothesis"),
    )
    (folder / "guard").mkdir()
    (folder / "guard" / "sitecustomize.py").write_text(GUARD)
    (folder / "home").mkdir()
    command = re.search(
        r"^pip install -r requirements.txt && python (train.py .*--model mini --data mini.*)$",
        (ROOT / "README.md").read_text(),
        re.M,
    )
    unset = ("TIKTOKEN_CACHE_DIR", "PREFIX_TUNING_CACHE", "METEOR_DATA", "OMP_NUM_THREADS")
    env = {name: value for name, value in os.environ.items() if name not in unset}
    env |= {"PYTHONPATH": str(folder / "guard"), "GUARD_LOG": str(folder / "log"), "HOME": str(folder / "home")}

    def python(*words: str) -> str:
        ended = subprocess.run([sys.executable, *words], cwd=clone, env=env, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    began = time.monotonic()
    printed = python(*command[1].split())
    return Fresh(clone, python, printed, time.monotonic() - began, (folder / "log").read_text().splitlines())


class Fresh(NamedTuple):
    """What the first command did."""

    clone: Path
    python: Callable  # runs another command there
    printed: str
    seconds: float
    log: list[str]  # of GUARD

    @property
    def run(self) -> Path:
        (run,) = (self.clone / "runs").iterdir()
        return run


def test_the_first_command_ends_within_three_minutes(fresh):
    assert fresh.seconds < 180


def test_it_reaches_for_no_network_and_no_file_outside_of_the_repository(fresh):
    clone = fresh.clone
    assert not [line for line in fresh.log if line.startswith("network")]
    opened = {Path(line.removeprefix("open ")) for line in fresh.log}
    assert len(opened) > 20
    system = [Path(path) for path in {sys.prefix, sys.base_prefix, "/usr", "/lib", "/etc", "/proc", "/sys", "/dev"}]
    own = (
        clone,
        clone.parent / "guard",
        clone.parent / "home",
    )  # the home was empty: what is in it, METEOR's tables packed, is its own
    others = [path for path in opened if not any(path.is_relative_to(top) for top in (*own, *system))]
    assert not [path for path in others if path.exists() and path.is_file()], others


def test_it_lowers_the_loss_and_prints_sentences_and_scores(fresh):
    losses = [float(loss) for loss in re.findall(r"^step .* loss (\S+)", fresh.printed, re.M)]
    assert losses[-1] < 0.5 * losses[0]
    assert re.search(r"this run: \S+ +\d", fresh.printed) and fresh.printed.count("  output ") == 3


PREFIX_BLEU_AT_LEAST = 0.30  # measured: 0.468 with the default seed; 0.443, 0.492, 0.446 and 0.511 with seeds 1 to 4


def test_it_scores_well_above_the_untuned_model(fresh):
    """The untuned model is the same run with nothing learned; measured: 0.000."""
    scores = json.loads((fresh.run / "scores.json").read_text())
    settings, model = load_run(fresh.run)
    (hook,) = model._forward_pre_hooks.values()
    hook.__self__.detach(model)
    groups = group_references(load_split("mini", "test"))
    untuned = metrics.score(decode(model, load_tokenizer("mini"), list(groups), settings), list(groups.values()))
    assert untuned["BLEU"] < 0.05 and scores["BLEU"] > PREFIX_BLEU_AT_LEAST


def test_the_saved_prefix_is_as_large_as_stated_and_gives_the_same_outputs_when_loaded_afresh(fresh):
    run, config = fresh.run, load_config("mini")
    prefix = load_prefix(run / "prefix.safetensors", config)
    assert sum(p.numel() for p in prefix.parameters()) == 5 * 2 * config.n_layer * config.n_embd
    before = (run / "outputs.txt").read_text()
    assert "  output " in fresh.python("evaluate.py", "--run", str(run))  # as many threads, so the same roundings
    assert (run / "outputs.txt").read_text() == before


def test_a_table_is_said_with_its_name(fresh):
    sentence = generate(fresh.run, "name : Silver Fig | Type : pub | food : Thai | area : riverside")
    assert "Silver Fig" in sentence


# ----------------------------------------------------------------------------- names, and no network


def test_mini_is_the_one_in_the_repository_wherever_one_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mini").mkdir()
    settings = Settings(model="mini", data="mini").resolve()
    assert (settings.model, settings.data, settings.out) == ("mini", "mini", "runs/mini-prefix5-data_mini")
    assert load_gpt2(settings.model).config.n_embd == 256 and len(load_split(settings.data, "test")) > 300


def test_without_a_network_gpt2_names_the_command_that_needs_none(tmp_path, monkeypatch):
    """Whichever of vocabulary, data and weights is missing."""
    import files
    import requests

    import e2e_data
    import weights

    monkeypatch.setenv("PREFIX_TUNING_CACHE", str(tmp_path))
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "tiktoken"))
    monkeypatch.setattr(files.time, "sleep", lambda _: None)

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
