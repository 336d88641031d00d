"""Bad input ends a command line with one sentence that names the fault and the remedy, with status 2 and no traceback.

No existing file changes, and no new run folder is left. Each table below maps a fault to what the sentence must say.
"""

import builtins
import errno
import io
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import tiktoken.registry
import torch
from tiny import write_config, write_data

import evaluate
import metrics.meteor
import train
from e2e_data import find_split
from gpt2 import GPT2, GPT2Config
from harness import loop
from harness.safetensors import read_safetensors, write_safetensors
from harness.tokenizers import load_tokenizer

ROOT = Path(__file__).resolve().parents[1]


def flags(world: Path, data: Path, out: Path, *more) -> list[str]:
    """train.py's flags for a run of four steps; if a flag is given twice, the last one counts."""
    always = {"model": world / "model", "data": data, "out": out, "device": "cpu", "dtype": "fp32", "mid_dim": 8,
              "batch_size": 4, "max_steps": 4, "log_every": 1, "checkpoint_every": 2, "max_new_tokens": 8,
              "beam_size": 2}  # fmt: skip
    return [str(word) for pair in always.items() for word in (f"--{pair[0]}", pair[1])] + [str(word) for word in more]


@pytest.fixture(scope="module", autouse=True)
def no_meteor():
    """METEOR's tables take long to load, and these tests do not need the scores."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics.meteor, "available", lambda: "not used in these tests")
        yield


@pytest.fixture(scope="module")
def kept(world, tmp_path_factory):
    """kept / "data"; kept / "done", a finished run; kept / "begun", a run killed in its third step."""
    folder = tmp_path_factory.mktemp("kept")
    write_data(folder / "data", 12, 4, 4)
    train.main(flags(world, folder / "data", folder / "done"))
    with pytest.MonkeyPatch.context() as patch:
        kill(patch, in_step=3)
        with pytest.raises(Killed):
            train.main(flags(world, folder / "data", folder / "begun"))
    assert (folder / "begun" / "checkpoint.pt").exists() and not (folder / "begun" / "prefix.safetensors").exists()
    return folder


class Killed(BaseException):
    """An exception that no part of the program handles."""


def kill(patch, in_step: int) -> None:
    update, calls = train.update, []

    def until_killed(*args):
        calls.append(1)
        if len(calls) == in_step:
            raise Killed
        return update(*args)

    patch.setattr(train, "update", until_killed)


@pytest.fixture
def place(kept, tmp_path, monkeypatch):
    """A copy of `kept` for one test, without a network and with an empty cache."""
    shutil.copytree(kept, tmp_path, dirs_exist_ok=True)
    for settings in tmp_path.glob("*/settings.json"):
        settings.write_text(settings.read_text().replace(str(kept), str(tmp_path)))
    cut_the_network(monkeypatch)
    monkeypatch.setenv("PREFIX_TUNING_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "cache" / "tiktoken"))
    monkeypatch.setattr(tiktoken.registry, "ENCODINGS", {})
    return tmp_path


def cut_the_network(monkeypatch) -> None:
    def refuse(*_, **__):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def refused(world, place, capsys):
    """refused(main, argv) runs a command line that must end with an error and change no file; returns the error."""

    def run(main, argv) -> str:
        before = content(place) | content(world)
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(word) for word in argv])
        complaint = capsys.readouterr().err
        assert ended.value.code == 2, complaint
        assert complaint.startswith("error: ") and complaint.endswith("\n") and complaint.count("\n") == 1, complaint
        assert content(place) | content(world) == before
        assert not (place / "new").exists()
        return complaint

    return run


def content(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_says(complaint: str, *parts: str) -> None:
    for part in parts:
        assert part in complaint, f"{part!r} is missing in: {complaint}"


# ----------------------------------------------------------------------------- data

GOOD = "name : A | food : B||A has B . \n"
BAD_TEXTS = {  # the file's content, text or bytes (None: no file), and what the sentence must say
    "no file": (None, ["has no {split} data", "{file}"]),
    "nothing in it": ("", ["{file} is empty"]),
    "blank lines only": ("\n \n\n", ["{file} is empty"]),
    "no bars": (GOOD + "name : A, food : B\n", ["{file}, line 2: no '||'", "table||sentence"]),
    "one bar": (GOOD + GOOD + "name : A | food : B|A has B .\n", ["{file}, line 3: no '||'"]),
    "no table": (GOOD + "\n\n||A has B .\n", ["{file}, line 4: nothing before '||'", "delete it"]),
    "no sentence": (GOOD + "name : A||  \n", ["{file}, line 2: nothing after '||'", "delete it"]),
    "cut in a table": ((GOOD * 3)[:-25], ["{file}, line 3: no '||'"]),
    "cut in a letter": ((GOOD + "name : Café").encode()[:-1], ["{file}, line 2: not UTF-8", "save the file as UTF-8"]),
    "Latin-1": ((GOOD + "name : Café||Café .\n").encode("latin-1"), ["{file}, line 2: not UTF-8"]),
    "UTF-16": (GOOD.encode("utf-16"), ["{file}, line 1: not UTF-8"]),
    "longer than the context": (
        GOOD * 2 + "name : " + "A B C " * 40 + "||A .\n",
        ["{file}, line 3: ", "tokens", "shorten it"],
    ),
}
BAD_TABLES = {  # the same for CSV files
    "nothing in it": ("", ["{file} is empty"]),
    "no header": ("name[A],A .\n", ["{file}, line 1: it must name the columns mr and ref"]),
    "other columns": (
        "meaning,text\nname[A],A .\n",
        ["{file}, line 1: it must name the columns mr and ref", "meaning, text"],
    ),
    "semicolons": ("mr;ref\nname[A];A .\n", ["{file}, line 1: it must name the columns mr and ref"]),
    "header only": ("mr,ref\n", ["{file} holds a header but no example", "name other data"]),
    "a column too many": (
        "mr,ref\nname[A],A .\nname[A],A, and B .\n",
        ["{file}, line 3: 3 columns where the header has 2", "quotes"],
    ),
    "a column too few": ("mr,ref\nname[A]\n", ["{file}, line 2: 1 columns where the header has 2"]),
    "cut in quotes": ('mr,ref\n"name[A], food[B]",A .\n"name[A], fo', ["{file}, line 3: not CSV", "cut short"]),
    "no table": ("mr,ref\nname[A],A .\nname: A,A .\n", ["{file}, line 3: not a table such as name[Blue Spice]"]),
    "an open bracket": ("mr,ref\nname[A,A .\n", ["{file}, line 2: not a table"]),
    "a column twice": ("mr,ref,ref\nname[A],A .,B .\n", ["{file}, line 1: it must name the columns mr and ref once"]),
    "no sentence": ('mr,ref\nname[A]," "\n', ["{file}, line 2: the column ref is empty", "delete it"]),
    "Latin-1": ("mr,ref\nname[Café],A .\n".encode("latin-1"), ["{file}, line 2: not UTF-8"]),
    "longer than the context": (
        "mr,ref\nname[A],A .\nname[" + "A B C " * 40 + "],A .\n",
        ["{file}, line 3: ", "tokens"],
    ),
}
ALL_BAD = [
    pytest.param(ending, bad, parts, id=f"{ending}: {what}")
    for ending, cases in ((".txt", BAD_TEXTS), (".csv", BAD_TABLES))
    for what, (bad, parts) in cases.items()
]


def spoil(data: Path, split: str, ending: str, bad: str | bytes | None) -> Path:
    """Replace a split's file by one with bad content."""
    (data / f"src1_{split}.txt").unlink()
    path = data / f"{split}{ending}"
    if bad is not None:
        path.write_bytes(bad.encode() if isinstance(bad, str) else bad)
    return path


def in_data(parts: list[str], path: Path, split: str) -> list[str]:
    return [part.format(file=path if "{file}," in part else path.name, split=split) for part in parts]


@pytest.mark.parametrize("split", ["train", "valid"])
@pytest.mark.parametrize("ending, bad, parts", ALL_BAD)
def test_training_refuses_bad_data(world, place, refused, split, ending, bad, parts):
    path = spoil(place / "data", split, ending, bad)
    assert_says(refused(train.main, flags(world, place / "data", place / "new")), *in_data(parts, path, split))


@pytest.mark.parametrize("ending, bad, parts", [case for case in ALL_BAD if "longer" not in case.id])
def test_evaluation_refuses_bad_data(place, refused, ending, bad, parts):
    path = spoil(place / "data", "test", ending, bad)
    assert_says(refused(evaluate.main, ["--run", place / "done", "--device", "cpu"]), *in_data(parts, path, "test"))


def test_evaluation_refuses_a_table_longer_than_the_context(place, refused):
    spoil(place / "data", "test", ".txt", GOOD + "name : " + "A B C " * 60 + "||A .\n")
    assert_says(
        refused(evaluate.main, ["--run", place / "done", "--device", "cpu"]), "name : A B C", "positions", "160"
    )


@pytest.mark.parametrize(
    "ending, bad, parts", [case for case in ALL_BAD if "no file" in case.id or "Latin-1" in case.id]
)
def test_bad_test_data_are_found_before_training(world, place, refused, ending, bad, parts):
    path = spoil(place / "data", "test", ending, bad)
    assert_says(refused(train.main, flags(world, place / "data", place / "new")), *in_data(parts, path, "test"))


def test_without_evaluation_no_test_data_are_needed(world, place):
    spoil(place / "data", "test", ".txt", None)
    train.main(flags(world, place / "data", place / "new", "--no_eval"))
    assert (place / "new" / "prefix.safetensors").exists()


@pytest.mark.parametrize("what", ["nowhere", "done/settings.json"])
def test_a_data_path_that_is_not_a_folder_is_named(world, place, refused, what):
    assert_says(
        refused(train.main, flags(world, place / what, place / "new")),
        f"{place / what} is not a folder: --data names one",
    )


# ----------------------------------------------------------------------------- flags


BAD_FLAGS = [
    ("--prefix_len 0", "--prefix_len 0: must be at least 1"),
    ("--prefix_len -3", "--prefix_len -3"),
    ("--prefix_len 160", "--prefix_len 160 leaves no room"),
    ("--prefix_len 999999999", "--prefix_len 999999999 leaves no room"),
    ("--prefix_len 155", "--prefix_len"),
    ("--mode infix --prefix_len 155", "--prefix_len"),
    ("--mode embedding --prefix_len 0", "--prefix_len 0"),
    ("--max_new_tokens 160", "--max_new_tokens"),
    ("--max_new_tokens 0", "--max_new_tokens 0: must be at least 1"),
    ("--lr -1", "--lr -1.0: must be 0 or more"),
    ("--lr nan", "--lr nan"),
    ("--lr inf", "--lr inf"),
    ("--batch_size 0", "--batch_size 0: must be at least 1"),
    ("--batch_size -8", "--batch_size -8"),
    ("--grad_accum 0", "--grad_accum 0"),
    ("--epochs 0", "--epochs 0"),
    ("--max_steps 0", "--max_steps 0"),
    ("--max_steps -1", "--max_steps -1"),
    ("--mid_dim 0", "--mid_dim 0"),
    ("--mid_dim 1000000000000", "not enough memory"),
    ("--mid_dim 4611686018427387904", "--mid_dim 4611686018427387904: must be at least 1, and below 2**40"),
    ("--mode adapter --adapter_dim 9223372036854775808", "and below 2**40"),
    ("--out {place}/\udcff", "characters that cannot be written as utf-8"),
    ("--dropout 1", "--dropout 1.0: must be below 1"),
    ("--dropout nan", "--dropout nan"),
    ("--clip -1", "--clip -1.0"),
    ("--weight_decay nan", "--weight_decay nan"),
    ("--warmup_steps -1", "--warmup_steps -1"),
    ("--valid_every -1", "--valid_every -1"),
    ("--log_every 0", "--log_every 0"),
    ("--checkpoint_every 0", "--checkpoint_every 0"),
    ("--train_examples 0", "--train_examples 0"),
    ("--valid_examples 0", "--valid_examples 0: must be at least 1"),
    ("--seed -1", "--seed -1"),
    ("--seed 99999999999999999999", "--seed 99999999999999999999"),
    ("--beam_size 0", "--beam_size 0: must be at least 1"),
    ("--beam_size 201", "--beam_size 201"),  # two candidates a beam, and the model has 401 tokens
    ("--device nonsense", "--device nonsense cannot be used here"),
    ("--device hpu", "--device hpu cannot be used here"),
    (
        "--model nonsense",
        "unknown model 'nonsense': use gpt2, gpt2-medium, gpt2-large, gpt2-xl, smollm2, mini, or a folder",
    ),
    ("--model {place}/data", "data': use gpt2"),
    ("--weights {place}/nowhere.safetensors", "nowhere.safetensors does not exist"),
    ("--weights {place}/data", "data holds no checkpoint"),
    ("--weights {place}/data/src1_test.txt", "src1_test.txt is not a checkpoint: name a .safetensors or .gguf file"),
    ("--weights {place}/done/prefix.safetensors", "prefix.safetensors lacks wte.weight"),
    ("--mode finetune --init_text hello", "--init_text needs a mode with a prefix"),
    ("--init_text hello --prefix_len 100", "--prefix_len 100, but --init_text"),
    ("--init_text " + 200 * "x", "leaves no room"),
    (
        "--mode nonsense",
        "--mode nonsense: there is no 'nonsense'; use finetune, or one of prefix, infix, embedding, lora",
    ),
    ("--mode prefix+", "--mode prefix+: there is no ''"),
    ("--mode lora+lora", "--mode lora+lora names a part twice"),
    ("--mode prefix+infix", "a model has one kind of prefix at a time"),
    ("--mode finetune+lora", "fine-tuning trains all weights already"),
    ("--mode lora --lora_rank 0", "--lora_rank 0: must be at least 1"),
    ("--mode lora --lora_rank 999999999", "--lora_rank 999999999: must be between 1 and the model's width"),
    ("--mode lora --lora_alpha 0", "--lora_alpha 0.0: must be above 0"),
    ("--mode lora --lora_alpha nan", "--lora_alpha nan: must be above 0"),
    ("--mode lora --lora_on q,w", "--lora_on q,w: name some of q, k, v, proj, fc, mlp, each once"),
    ("--mode lora --lora_on q,q", "--lora_on q,q"),
    ("--mode lora --lora_dropout 1", "--lora_dropout 1.0: must be below 1"),
    ("--mode lora", "--warmup_steps 500: the run has only 4 steps: lower it"),
    ("--mode lora --prefix_len 5", "need a mode with a prefix: lora has none"),
    ("--lora_rank 4", "--lora_rank needs a mode with lora, such as --mode prefix+lora"),
    ("--lora_lr 1e-3", "--lora_lr needs a mode with lora or adapter"),
    ("--mode prefix+lora --lora_lr 1e-3 --lr 0", "--lora_lr is applied relative to --lr"),
    ("--mode adapter --adapter_dim 0", "--adapter_dim 0: must be at least 1"),
    ("--mode adapter --adapter_dim 1000000000000", "not enough memory"),
    ("--mode adapter --adapter_scale 0", "--adapter_scale 0.0: must be above 0"),
    ("--label_smoothing 1", "--label_smoothing 1.0: must be below 1"),
    ("--mode prefix+lora --task e2e --shelf {place}/shelf", "a shelf holds prefixes only"),
    ("--out {place}/done", "done holds this run already: resume it with --resume, or choose another --out"),
    ("--out {place}/data", "data exists and is not a run: choose another --out"),
    ("--out {place}/data/src1_test.txt", "src1_test.txt exists and is not a run"),
    ("--out {place}/data/src1_test.txt/new", "src1_test.txt"),
]


@pytest.mark.parametrize("wrong, said", BAD_FLAGS, ids=[wrong[:60] for wrong, _ in BAD_FLAGS])
def test_training_refuses_bad_flags(world, place, refused, wrong, said):
    complaint = refused(train.main, flags(world, place / "data", place / "new", *wrong.format(place=place).split()))
    assert_says(complaint, said)


@pytest.mark.parametrize("wrong", ["--lr abc", "--prefix_len 2.5", "--seed 1e3", "--dtype fp8", "--nonsense 3", "--lr"])
@pytest.mark.parametrize("main", [train.main, evaluate.main], ids=["train", "evaluate"])
def test_unknown_flags_and_malformed_values_are_refused_by_argparse(place, main, wrong, capsys):
    before = content(place)
    with pytest.raises(SystemExit) as ended:
        main(wrong.split())
    assert ended.value.code == 2
    usage, complaint = capsys.readouterr().err.rstrip().rsplit("\n", 1)
    assert usage.startswith("usage: ") and ": error: " in complaint and wrong.split()[0] in complaint
    assert content(place) == before


def test_training_that_weight_decay_makes_diverge_names_it(world, place, capsys):
    with pytest.raises(SystemExit):
        train.main(flags(world, place / "data", place / "new", "--weight_decay", "1e30", "--lr", "1"))
    assert_says(capsys.readouterr().err, "lower --lr (it is 1) or --weight_decay (it is 1e+30), with another --out")


@pytest.mark.parametrize("wrong", ["--lr 1e30", "--lr 1e38 --max_steps 1", "--lr 1e38 --max_steps 1 --keep best"])
@pytest.mark.parametrize("mode", ["prefix", "finetune"])
def test_training_that_diverges_ends_with_a_sentence_and_keeps_no_weights(world, place, capsys, mode, wrong):
    with pytest.raises(SystemExit) as ended:
        train.main(flags(world, place / "data", place / "new", "--mode", mode, *wrong.split()))
    complaint = capsys.readouterr().err
    assert ended.value.code == 2 and complaint.startswith("error: ") and complaint.count("\n") == 1, complaint
    assert_says(complaint, "loss is", "lower --lr (it is 1e+3")
    assert "--weight_decay" not in complaint
    assert not [path.name for path in (place / "new").iterdir() if path.suffix == ".safetensors"]


def test_a_loss_whose_perplexity_overflows_is_accepted(world, place):
    """exp(710) exceeds the largest float."""
    train.main(flags(world, place / "data", place / "new", "--mode", "finetune", "--lr", 10, "--max_steps", 1))
    losses = [line.split(",")[2] for line in (place / "new" / "valid.csv").read_text().splitlines()]
    assert float(losses[1]) > 710


def test_a_prefix_as_long_as_init_text_must_fit_into_the_context(world, place, refused):
    """The prefix has one position for each token of the text."""
    text = "table to text : " * 6
    wrong = flags(world, place / "data", place / "new", "--init_text", text, "--no_reparam", "--max_new_tokens", 90)
    assert_says(refused(train.main, wrong), "positions", "160")


# ----------------------------------------------------------------------------- the frozen model


def another_model(folder: Path, **changes) -> Path:
    """A model folder like the world's, with another shape."""
    folder.mkdir(parents=True)
    config = GPT2Config(**({"n_layer": 2, "n_head": 4, "n_embd": 64, "n_positions": 160, "vocab_size": 401} | changes))
    write_config(folder, config)
    write_safetensors(folder / "model.safetensors", GPT2(config).init_weights().state_dict(), {})
    return folder


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"n_embd": 32}, "wte.weight has shape [401, 32], but"),
        ({"n_layer": 1}, "lacks h.1.ln_1.weight"),
        ({"n_layer": 3}, "holds h.2.attn.c_attn.bias, which"),
        ({"n_positions": 80}, "wpe.weight has shape [80, 64], but"),
        ({"vocab_size": 400}, "wte.weight has shape [400, 64], but"),
    ],
)
def test_weights_of_another_shape_are_refused(world, place, refused, changes, said):
    other = another_model(place / "other", **changes)
    complaint = refused(train.main, flags(world, place / "data", place / "new", "--weights", other))
    assert_says(complaint, f"{other / 'model.safetensors'}", said)


def test_truncated_weights_are_refused(world, place, refused):
    whole = (world / "model" / "model.safetensors").read_bytes()
    (place / "cut.safetensors").write_bytes(whole[:-100])
    complaint = refused(train.main, flags(world, place / "data", place / "new", "--weights", place / "cut.safetensors"))
    assert_says(complaint, "cut.safetensors is not a complete safetensors file", "restore it, or fetch it again")


def test_a_vocabulary_larger_than_the_model_is_refused(world, place, refused):
    other = another_model(place / "other", vocab_size=300)
    for file in ("vocab.bpe", "encoder.json"):
        shutil.copy(world / "model" / file, other)
    complaint = refused(train.main, flags(world, place / "data", place / "new", "--model", other))
    assert_says(complaint, "401", "300", str(other))


@pytest.mark.parametrize("file", ["vocab.bpe", "encoder.json"])
@pytest.mark.parametrize("bad", ["", "[]", "{", "not a vocabulary at all", b"\xff\xfe", "half"])
def test_a_malformed_vocabulary_is_refused(world, place, refused, file, bad):
    model = shutil.copytree(world / "model", place / "other")
    if bad == "half":
        bad = (model / file).read_bytes()[: (model / file).stat().st_size // 2]
    (model / file).write_bytes(bad.encode() if isinstance(bad, str) else bad)
    complaint = refused(train.main, flags(world, place / "data", place / "new", "--model", model))
    assert_says(complaint, f"{model}: its vocab.bpe and encoder.json do not form a vocabulary", "fetch both again")


def test_one_of_the_vocabularys_two_files_is_refused(world, place, refused):
    model = shutil.copytree(world / "model", place / "other")
    (model / "encoder.json").unlink()
    assert_says(
        refused(train.main, flags(world, place / "data", place / "new", "--model", model)), "vocab.bpe and encoder.json"
    )


# ----------------------------------------------------------------------------- no network


def test_without_a_network_the_vocabulary_is_not_available(world, place, refused):
    complaint = refused(train.main, flags(world, place / "data", place / "new", "--model", "gpt2"))
    assert_says(complaint, "GPT-2's vocabulary is not available", "connect to the network once", "TIKTOKEN_CACHE_DIR")


def test_without_a_network_the_weights_are_not_available(world, place, refused, monkeypatch):
    vocabulary = load_tokenizer(str(world / "model"))
    monkeypatch.setattr(loop, "load_tokenizer", lambda model, weights: vocabulary)
    complaint = refused(train.main, flags(world, place / "data", place / "new", "--model", "gpt2"))
    assert_says(complaint, "no weights for gpt2", "name cannot be resolved", "check the network", "--weights PATH")


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_without_a_network_the_papers_files_are_not_available(world, place, refused, command):
    if command == "train":
        main, argv = train.main, flags(world, place / "data", place / "new")
        del argv[argv.index("--data") : argv.index("--data") + 2]
    else:
        settings = json.loads((place / "done" / "settings.json").read_text())
        (place / "done" / "settings.json").write_text(json.dumps(settings | {"data": None}))
        main, argv = evaluate.main, ["--run", place / "done"]
    assert_says(refused(main, argv), "src1_t", "cannot be downloaded", "check the network", str(place / "cache"))


# ----------------------------------------------------------------------------- resuming a run


OTHER_FLAGS = [
    ("--mode infix", "--mode prefix, not infix"),
    ("--mode finetune", "--mode prefix, not finetune"),
    ("--prefix_len 6", "--prefix_len 5, not 6"),
    ("--mid_dim 9", "--mid_dim 8, not 9"),
    ("--no_reparam", "--no_reparam False, not True"),
    ("--lr 1e-3", "--lr 8e-05, not 0.001"),
    ("--batch_size 5", "--batch_size 4, not 5"),
    ("--max_steps 8", "--max_steps 4, not 8"),
    ("--seed 1", "--seed 101, not 1"),
    ("--dtype bf16", "--dtype fp32, not bf16"),
    ("--weights random", "--weights None, not random"),
    ("--train_examples 3", "--train_examples None, not 3"),
    ("--valid_examples 3", "--valid_examples None, not 3"),
    ("--beam_size 3", "--beam_size 2, not 3"),
    ("--length_norm none", "--length_norm total, not none"),
    ("--max_new_tokens 9", "--max_new_tokens 8, not 9"),
]


@pytest.mark.parametrize("run", ["begun", "done"])
@pytest.mark.parametrize("wrong, said", OTHER_FLAGS, ids=[wrong for wrong, _ in OTHER_FLAGS])
def test_resuming_with_other_flags_is_refused(world, place, refused, run, wrong, said):
    complaint = refused(train.main, flags(world, place / "data", place / run, "--resume", *wrong.split()))
    remedy = ": resume it with the same flags, or choose another --out"
    assert_says(complaint, f"{place / run} was begun with {said}", remedy)


def test_the_same_command_again_is_refused_without_resume(world, place, refused):
    complaint = refused(train.main, flags(world, place / "data", place / "begun"))
    assert_says(complaint, "begun holds this run already: resume it with --resume, or choose another --out")


def test_resuming_with_another_model_is_refused(world, place, refused):
    model = shutil.copytree(world / "model", place / "model")
    argv = flags(world, place / "data", place / "own", "--model", model)
    with pytest.MonkeyPatch.context() as patch:
        kill(patch, in_step=3)
        with pytest.raises(Killed):
            train.main(argv)
    tensors, about = read_safetensors(model / "model.safetensors")
    changed = {key: tensor * 2 if key.endswith("wte.weight") else tensor.clone() for key, tensor in tensors.items()}
    write_safetensors(model / "model.safetensors", changed, about)
    complaint = refused(train.main, [*argv, "--resume"])
    assert_says(complaint, str(place / "own"), "model's weights have changed", "restore them")


@pytest.mark.parametrize("mode", ["prefix", "prefix+lora"])
def test_evaluating_a_run_on_other_weights_is_refused_unless_they_are_named(world, place, refused, mode):
    model = shutil.copytree(world / "model", place / "model")
    argv = flags(world, place / "data", place / "own", "--model", model, "--mode", mode, "--max_steps", 2, "--no_eval")
    train.main(argv)
    tensors, about = read_safetensors(model / "model.safetensors")
    changed = {key: tensor * 2 if key.endswith("wte.weight") else tensor.clone() for key, tensor in tensors.items()}
    write_safetensors(model / "model.safetensors", changed, about)
    asked = ["--run", place / "own", "--table", "name : Lotus"]
    assert_says(refused(evaluate.main, asked), str(place / "own"), "was learned on other weights", "restore them")
    evaluate.main([str(word) for word in (*asked, "--weights", model)])
    evaluate.main([str(word) for word in (*asked, "--model", model)])


def test_resuming_with_other_validation_data_is_refused(world, place, refused):
    data = shutil.copytree(place / "data", place / "other")
    argv = flags(world, data, place / "own")
    with pytest.MonkeyPatch.context() as patch:
        kill(patch, in_step=3)
        with pytest.raises(Killed):
            train.main(argv)
    file = find_split(data, "valid")
    file.write_text(file.read_text() + "name : Lotus||Lotus is a pub .\n")
    complaint = refused(train.main, [*argv, "--resume"])
    assert_says(complaint, str(place / "own"), "validation examples have changed", "restore them")


def test_a_resumed_run_removes_what_a_killed_one_left_half_written(world, place):
    (place / "begun" / "checkpoint.pt.652.part").write_bytes(b"half")
    train.main(flags(world, place / "data", place / "begun", "--resume"))
    assert not [path for path in (place / "begun").iterdir() if path.suffix == ".part"]


def test_resuming_with_other_data_is_refused(world, place, refused):
    """Other examples make another run; with fewer, the step at which it stopped may not exist."""
    lines = (place / "data" / "src1_train.txt").read_text().splitlines(keepends=True)
    (place / "data" / "src1_train.txt").write_text("".join(lines[:-1]))
    complaint = refused(train.main, flags(world, place / "data", place / "begun", "--resume"))
    assert_says(complaint, str(place / "begun"), "training examples", "have changed")


@pytest.mark.parametrize("bad", [*range(0, 5000, 977), "last byte", b"hello", "text"], ids=str)
def test_resuming_from_a_damaged_checkpoint_is_refused(world, place, refused, bad):
    checkpoint = place / "begun" / "checkpoint.pt"
    if bad == "last byte":
        bad = checkpoint.stat().st_size - 1
    content = checkpoint.read_bytes()[:bad] if isinstance(bad, int) else bad
    checkpoint.write_bytes(content.encode() if isinstance(content, str) else content)
    complaint = refused(train.main, flags(world, place / "data", place / "begun", "--resume"))
    assert_says(complaint, f"{checkpoint} ", "delete it to start over")


@pytest.mark.parametrize("zeros", [1, 512])
def test_a_checkpoint_with_a_wrong_checksum_is_refused(world, place, refused, zeros):
    """Bytes of a weight that a failing disk has lost: the file still has its length and its structure."""
    checkpoint = place / "begun" / "checkpoint.pt"
    content = bytearray(checkpoint.read_bytes())
    learned = torch.load(checkpoint, weights_only=True)["learned"]
    weight = max(learned.values(), key=torch.numel).numpy().tobytes()
    at = bytes(content).index(weight)
    content[at : at + zeros] = bytes(byte ^ 64 for byte in content[at : at + zeros])
    checkpoint.write_bytes(content)
    complaint = refused(train.main, flags(world, place / "data", place / "begun", "--resume"))
    assert_says(complaint, f"{checkpoint} ", "checksum", "delete it to start over")


@pytest.mark.parametrize(
    "other", ["--mode infix --prefix_len 6", "--mode embedding", "--mode finetune", "--no_reparam", "--mid_dim 16"]
)
def test_the_checkpoint_of_another_run_is_refused(world, place, refused, monkeypatch, other):
    with monkeypatch.context() as patch:
        kill(patch, in_step=3)
        with pytest.raises(Killed):
            train.main(flags(world, place / "data", place / "other", *other.split()))
    shutil.copy(place / "other" / "checkpoint.pt", place / "begun" / "checkpoint.pt")
    complaint = refused(train.main, flags(world, place / "data", place / "begun", "--resume"))
    assert_says(complaint, f"{place / 'begun' / 'checkpoint.pt'} does not fit this run", "delete it to start over")


class Malicious:
    """Unpickling this creates a folder."""

    def __init__(self, evidence: Path):
        self.evidence = evidence

    def __reduce__(self):
        return Path.mkdir, (self.evidence,)


def test_a_malicious_checkpoint_is_refused_and_not_unpickled(world, place, refused):
    checkpoint = place / "begun" / "checkpoint.pt"
    state = torch.load(checkpoint, weights_only=True)
    torch.save(state | {"best": Malicious(place / "evidence")}, checkpoint)
    complaint = refused(train.main, flags(world, place / "data", place / "begun", "--resume"))
    assert_says(complaint, f"{checkpoint} is not a checkpoint of this program")
    assert not (place / "evidence").exists()
    torch.load(checkpoint, weights_only=False)
    assert (place / "evidence").exists()  # unpickling does create it


@pytest.mark.parametrize(
    "change",
    [
        lambda state: {},
        lambda state: [1, 2],
        lambda state: state["learned"],
        lambda state: {key: value for key, value in state.items() if key != "rng"},
        lambda state: state | {"rng": torch.zeros(3)},
        lambda state: state | {"rng": "random"},
        lambda state: state | {"n": "two"},
        lambda state: state | {"n": -3},
        lambda state: state | {"n": 10**6},
        lambda state: state | {"counts": None},
        lambda state: state | {"optimizer": {}},
    ],
    ids="empty list learned no-rng short-rng rng-as-text step-as-text step-below-0 step-too-high no-counts"
    " no-optimizer".split(),
)
def test_a_checkpoint_with_other_content_is_refused(world, place, refused, change):
    checkpoint = place / "begun" / "checkpoint.pt"
    torch.save(change(torch.load(checkpoint, weights_only=True)), checkpoint)
    complaint = refused(train.main, flags(world, place / "data", place / "begun", "--resume"))
    assert_says(complaint, f"{checkpoint} ", "delete it to start over")


@pytest.mark.parametrize(
    "bad",
    [b"step,epoch\nx,1,2,3,4,5\n1,2,3,4,5,6\n", b"\xff\xfe\x00", b"\0" * 100, b'"'],
    ids=["words", "binary", "zeros", "quote"],
)
def test_a_run_with_a_damaged_log_can_be_resumed(world, place, bad):
    """Readable lines of the log stay; resuming needs the checkpoint only."""
    (place / "begun" / "log.csv").write_bytes(bad)
    train.main(flags(world, place / "data", place / "begun", "--resume", "--no_eval"))
    assert (place / "begun" / "prefix.safetensors").read_bytes() == (place / "done" / "prefix.safetensors").read_bytes()
    assert (place / "begun" / "log.csv").read_text().splitlines()[-1].startswith("4,")


# ----------------------------------------------------------------------------- evaluation


def rewrite(file: str, content: str | bytes):
    return lambda place: (place / "done" / file).write_bytes(content.encode() if isinstance(content, str) else content)


def restate(**changes):
    def change(place):
        path = place / "done" / "settings.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def nothing(place):
    pass


BAD_RUNS = {
    "nowhere": (nothing, "--run {place}/nowhere", "nowhere is not a run: it has no settings.json"),
    "no run": (nothing, "--run {place}/data", "data is not a run"),
    "a file": (nothing, "--run {place}/done/log.csv", "log.csv is not a run"),
    "unfinished": (
        nothing,
        "--run {place}/begun",
        "begun has no finished prefix.safetensors: resume its training with train.py … --resume",
    ),
    "settings empty": (rewrite("settings.json", ""), "--run {place}/done", "settings.json is empty"),
    "settings no JSON": (rewrite("settings.json", "{"), "--run {place}/done", "settings.json is not a run's settings"),
    "settings a list": (rewrite("settings.json", "[]"), "--run {place}/done", "settings.json is not a run's settings"),
    "settings nested deep": (
        rewrite("settings.json", "[" * 100_000),
        "--run {place}/done",
        "settings.json is not a run's settings",
    ),
    "settings of another program": (
        rewrite("settings.json", '{"lr": 1, "optimizer": "sgd"}'),
        "--run {place}/done",
        "settings.json is not a run's",
    ),
    "a setting of another type": (restate(beam_size="five"), "--run {place}/done", "settings.json"),
    "an unknown mode": (restate(mode="suffix"), "--run {place}/done", "suffix"),
    "an unknown length_norm": (restate(length_norm="half"), "--run {place}/done", "half"),
    "prefix empty": (rewrite("prefix.safetensors", ""), "--run {place}/done", "prefix.safetensors is not a complete"),
    "prefix cut": (
        lambda p: os.truncate(p / "done" / "prefix.safetensors", 900),
        "--run {place}/done",
        "prefix.safetensors is not a complete",
    ),
    "prefix replaced by weights": (
        lambda p: write_safetensors(p / "done" / "prefix.safetensors", {"wte.weight": torch.zeros(2, 2)}, {}),
        "--run {place}/done",
        "prefix.safetensors does not hold a prefix",
    ),
    "prefix of another mode": (
        restate(mode="infix"),
        "--run {place}/done",
        "prefix.safetensors holds a prefix, but the run's settings say infix",
    ),
    "the model is gone": (restate(model="/nowhere"), "--run {place}/done", "unknown model '/nowhere'"),
    "the weights are gone": (
        restate(weights="/nowhere.safetensors"),
        "--run {place}/done",
        "/nowhere.safetensors does not exist",
    ),
    "the data are gone": (restate(data="/nowhere"), "--run {place}/done", "/nowhere is not a folder"),
    "no batch": (nothing, "--run {place}/done --batch_size 0", "--batch_size 0: must be at least 1"),
    "no beams": (nothing, "--run {place}/done --beam_size 0", "--beam_size 0: must be at least 1"),
    "too many beams": (nothing, "--run {place}/done --beam_size 201", "--beam_size 201"),
    "no room for the text": (nothing, "--run {place}/done --max_new_tokens 160", "--max_new_tokens"),
    "both ways at once": (
        nothing,
        "--run {place}/done --hyp {place}/h --ref {place}/r",
        "--run FOLDER and how to decode it, --shelf FOLDER and what to ask, or --hyp FILE and --ref FILE",
    ),
    "neither way": (
        nothing,
        "--split test",
        "--run FOLDER and how to decode it, --shelf FOLDER and what to ask, or --hyp FILE and --ref FILE",
    ),
    "outputs alone": (nothing, "--hyp {place}/done/outputs.txt", "--ref FILE"),
}


@pytest.mark.parametrize("spoil_run, argv, said", BAD_RUNS.values(), ids=BAD_RUNS)
def test_evaluation_refuses_a_bad_run(place, refused, spoil_run, argv, said):
    spoil_run(place)
    assert_says(refused(evaluate.main, argv.format(place=place).split()), said)


def test_evaluation_refuses_the_prefix_of_another_model(place, refused):
    restate(model=str(another_model(place / "other", n_layer=1)))(place)
    for file in ("vocab.bpe", "encoder.json"):
        shutil.copy(Path(json.loads((place / "begun" / "settings.json").read_text())["model"]) / file, place / "other")
    assert_says(
        refused(evaluate.main, ["--run", place / "done"]),
        "prefix.safetensors was made for",
        "use the model it was trained with",
    )


NO_EFFECT = {  # what is asked for -> the flags that have no effect on it
    "--run {place}/done": ("--segments {place}/new", "--scores {place}/new", "--src {place}/h.txt"),
    "--run {place}/done --table name:A": (
        "--split valid", "--batch_size 2", "--data {place}/data", "--segments {place}/new", "--scores {place}/new",
        "--src {place}/h.txt"),
    "--hyp {place}/h.txt --ref {place}/r.txt": (
        "--split valid", "--batch_size 2", "--beam_size 2", "--length_norm none", "--max_new_tokens 9",
        "--model {place}/data", "--weights random", "--data {place}/data", "--device cpu", "--plain",
        "--decode_dtype fp32"),
}  # fmt: skip


@pytest.fixture
def no_result(place, monkeypatch):
    """Two files that could be scored; any attempt to decode or to score fails the test."""

    def fail(*_, **__):
        pytest.fail("the command line computed something")

    for name in ("load_run", "decode", "print_table"):
        monkeypatch.setattr(evaluate, name, fail)
    monkeypatch.setattr(metrics, "score", fail)
    (place / "h.txt").write_text("A has B .\n")
    (place / "r.txt").write_text("A has B .\n")


@pytest.mark.parametrize("asked, flag", [(asked, flag) for asked, useless in NO_EFFECT.items() for flag in useless])
def test_evaluation_refuses_a_flag_without_effect(place, refused, no_result, asked, flag):
    complaint = refused(evaluate.main, f"{asked} {flag}".format(place=place).split())
    names = " and ".join(word for word in asked.split() if word.startswith("--"))
    assert complaint == f"error: {flag.split()[0]} has no effect with {names}: leave it out\n"


@pytest.mark.parametrize("table", ["", "  "])
def test_evaluation_refuses_an_empty_table(place, refused, no_result, table):
    complaint = refused(evaluate.main, ["--run", place / "done", "--table", table])
    assert_says(complaint, "--table is empty: name some fields, e.g. 'name : Blue Spice | area : riverside'")


BAD_SCORING = {  # outputs, references, what the sentence must say
    "no outputs": (None, "a b\n", "h.txt does not exist"),
    "no references": ("a b\n", None, "r.txt does not exist"),
    "outputs empty": ("", "a b\n", "h.txt is empty"),
    "references empty": ("a b\n", " \n", "r.txt is empty"),
    "outputs Latin-1": ("a\né\n".encode("latin-1"), "a\n\nb\n", "h.txt, line 2: not UTF-8"),
    "references Latin-1": ("a\nb\n", "a\n\né\n".encode("latin-1"), "r.txt, line 3: not UTF-8"),
    "more outputs": ("a\nb\nc\n", "a\n\nb\n", "h.txt has 3 outputs but"),
    "more references": ("a\nb\n", "a\n\nb\n\nc\n", "has references for 3"),
    "a gap in the references": ("a\nb\n", "a\n\n\nb\n", "r.txt, line 3: a blank line without a reference"),
}


@pytest.mark.parametrize("which", ["prefix", "model"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_evaluation_refuses_numbers_that_are_not_finite(world, place, refused, which, bad):
    path = place / "done" / "prefix.safetensors"
    argv = ["--run", place / "done"]
    if which == "model":
        path = shutil.copytree(world / "model", place / "model") / "model.safetensors"
        argv += ["--model", place / "model"]
    tensors, about = read_safetensors(path)
    tensors = {key: tensor.clone() for key, tensor in tensors.items()}
    next(iter(tensors.values())).view(-1)[3] = bad
    write_safetensors(path, tensors, about)
    assert_says(refused(evaluate.main, argv), f"{path}: ", "not finite")


def test_another_models_outputs_go_to_files_of_their_own(place):
    done = place / "done"
    before = content(done)
    evaluate.main(["--run", str(done), "--weights", "random"])
    assert before.items() <= content(done).items()
    assert json.loads((done / "evaluation-weights_random.json").read_text())["weights"] == "random"
    assert json.loads((done / "evaluation.json").read_text())["weights"] is None


@pytest.mark.parametrize("file", ["prefix.safetensors", "settings.json"])
def test_answers_do_not_overwrite_a_runs_files(place, refused, file):
    (place / "tables.txt").write_text("name : Lotus | food : Thai\n")
    argv = ["--run", place / "done", "--tables", place / "tables.txt", "--out", place / "done" / file]
    assert_says(refused(evaluate.main, argv), file, "would overwrite a file of a run")


@pytest.mark.parametrize("stream", ["stdin", "stdout"])
def test_a_closed_standard_stream_is_named(place, refused, monkeypatch, stream):
    (place / "tables.txt").write_text("name : Lotus | food : Thai\n")
    monkeypatch.setattr(sys, stream, None)
    ends = {"stdin": ("-", place / "new.txt"), "stdout": (place / "tables.txt", "-")}[stream]
    complaint = refused(evaluate.main, ["--run", place / "done", "--tables", ends[0], "--out", ends[1]])
    assert_says(complaint, "standard stream", "closed")


@pytest.mark.parametrize("outputs, references, said", BAD_SCORING.values(), ids=BAD_SCORING)
def test_scoring_refuses_bad_files(place, refused, outputs, references, said):
    (place / "scores.json").write_text("scores from before")
    for name, text in (("h.txt", outputs), ("r.txt", references)):
        if text is not None:
            (place / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    assert_says(refused(evaluate.main, ["--hyp", place / "h.txt", "--ref", place / "r.txt"]), said)


@pytest.mark.parametrize("name", ["h.txt", "r.txt"])
def test_scoring_does_not_overwrite_its_input(place, refused, name):
    (place / "h.txt").write_text("a b\n")
    (place / "r.txt").write_text("a b\n")
    complaint = refused(evaluate.main, ["--hyp", place / "h.txt", "--ref", place / "r.txt", "--segments", place / name])
    assert_says(complaint, "--segments", name)


def test_scoring_does_not_write_two_outputs_to_one_file(place, refused):
    (place / "h.txt").write_text("a b\n")
    argv = ["--hyp", place / "h.txt", "--ref", place / "h.txt", "--segments", place / "x", "--scores", place / "x"]
    assert_says(refused(evaluate.main, argv), "--scores", "another output")


# ----------------------------------------------------------------------------- a full disk


class FullDisk(io.RawIOBase):
    """A file on a full disk."""

    def writable(self):
        return True

    def write(self, _):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def fill_disk(patch, name: str, spare: int) -> None:
    """Let every write to files of this name fail with ENOSPC, except in the first `spare` times that one is opened."""
    ordinary, times = builtins.open, []

    def opened(path, mode="r", *args, **kwargs):
        if isinstance(path, Path) and path.name.startswith(name) and mode[0] in "wa":
            times.append(path)
            if len(times) > spare:
                full = io.BufferedWriter(FullDisk())
                return full if "b" in mode else io.TextIOWrapper(full, encoding="utf-8")
        return ordinary(path, mode, *args, **kwargs)

    patch.setattr(builtins, "open", opened)


NO_ROOM = [
    ("settings.json", 0),
    ("log.csv", 0),
    ("log.csv", 1),
    ("log.csv", 3),
    ("valid.csv", 0),
    ("valid.csv", 1),
    ("checkpoint.pt", 0),
    ("checkpoint.pt", 1),
    ("prefix.safetensors", 0),
    ("summary.json", 0),
    ("outputs.txt", 0),
    ("scores.json", 0),
    ("evaluation.json", 0),
]


@pytest.mark.parametrize("name, spare", NO_ROOM, ids=[f"{name}-{spare}" for name, spare in NO_ROOM])
def test_a_full_disk_ends_a_run_and_resuming_gives_the_same_result(world, place, capsys, name, spare):
    argv = flags(world, place / "data", place / "new", "--checkpoint_every", 1)
    with pytest.MonkeyPatch.context() as patch:
        fill_disk(patch, name, spare)
        with pytest.raises(SystemExit) as ended:
            train.main(argv)
    complaint = capsys.readouterr().err
    assert ended.value.code == 2 and complaint.startswith("error: ") and complaint.count("\n") == 1, complaint
    assert_says(complaint, name, "disk is full")
    left = content(place / "new")
    assert not [path.name for path in left if path.suffix == ".part"]
    if name == "checkpoint.pt" and spare == 1:
        assert torch.load(place / "new" / "checkpoint.pt", weights_only=True)["n"] == 1  # the previous one is kept

    train.main([*argv, "--resume"])
    for file in ("prefix.safetensors", "outputs.txt", "scores.json"):
        assert (place / "new" / file).read_bytes() == (place / "done" / file).read_bytes()
    steps = [line.split(",")[0] for line in (place / "new" / "log.csv").read_text().splitlines()]
    assert steps == ["step", "1", "2", "3", "4"]


# ----------------------------------------------------------------------------- in a process of its own

LIMITED = """
import resource, runpy, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
sys.argv = sys.argv[1:]
sys.path.insert(0, {root!r})
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def program(*argv, limited: bool = False) -> subprocess.CompletedProcess:
    """Run a command line as a shell does; `limited`: no file may grow beyond 20,000 bytes."""
    front = [sys.executable, "-c", LIMITED.format(root=str(ROOT))] if limited else [sys.executable]
    return subprocess.run([*front, *map(str, argv)], capture_output=True, text=True, cwd=ROOT)


@pytest.mark.slow
def test_a_checkpoint_that_does_not_fit_on_the_disk_ends_the_program_with_a_sentence(world, place):
    ended = program(ROOT / "train.py", *flags(world, place / "data", place / "new"), limited=True)
    assert ended.returncode == 2 and ended.stderr.startswith("error: ") and ended.stderr.count("\n") == 1, ended.stderr
    assert_says(ended.stderr, str(place / "new" / "checkpoint.pt"), "free some space")
    assert sorted(path.name for path in (place / "new").iterdir()) == ["log.csv", "settings.json", "valid.csv"]


def test_train_as_a_program_reports_an_error_in_one_line(world, place):
    spoil(place / "data", "train", ".txt", BAD_TEXTS["no bars"][0])
    ended = program(ROOT / "train.py", *flags(world, place / "data", place / "new"))
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith(f"error: {place / 'data' / 'train.txt'}, line 2: no '||'")
    assert ended.stderr.count("\n") == 1
    assert not (place / "new").exists()


def test_evaluate_as_a_program_reports_an_error_in_one_line(place):
    ended = program(ROOT / "evaluate.py", "--hyp", place / "nowhere.txt", "--ref", place / "data" / "src1_test.txt")
    assert (ended.returncode, ended.stdout, ended.stderr) == (
        2,
        "",
        f"error: {place / 'nowhere.txt'} does not exist: check the path\n",
    )
