"""A shelf in a folder, from the command line: trained onto, listed, asked; files of requests; the reverse task."""

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import write_data, write_model

import evaluate
import train
from harness import shelves
from harness.files import InputError
from harness.loop import Run
from harness.runs import load_run
from harness.safetensors import read_safetensors, write_safetensors
from harness.tables import read_requests

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module", autouse=True)
def no_meteor(tmp_path_factory):
    """Its tables take long to load, and what is scored here does not matter."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("METEOR_DATA", str(tmp_path_factory.mktemp("none")))
        yield


def flags(world: Path, out: Path, **more) -> list[str]:
    """train.py's flags for a short run on the tiny world."""
    given = {"model": world / "model", "data": world / "data", "out": out, "device": "cpu", "dtype": "fp32"}
    given |= {"max_steps": 4, "lr": 0.05, "beam_size": 2, "max_new_tokens": 12, "mid_dim": 8} | more
    return [
        word
        for name, value in given.items()
        for word in ([f"--{name}"] if value is True else [f"--{name}", str(value)])
    ]


@pytest.fixture(scope="module")
def shelf(world, tmp_path_factory):
    """A folder with three tasks: prefixes of different lengths, an infix and the reverse task."""
    top = tmp_path_factory.mktemp("shelf")
    for name, more in {
        "e2e": {"prefix_len": 3},
        "long": {"prefix_len": 9, "mode": "infix", "no_eval": True},
        "table": {"prefix_len": 2, "reverse": True},
    }.items():
        train.main([*flags(world, top / "runs" / name, **more), "--task", name, "--shelf", str(top / "mine")])
    return top / "mine"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


TABLES = [
    "name : Lotus | food : Thai",
    "<|e2e|> name : Lotus | food : Thai",
    "<|table|> Lotus serves Thai food .",
    "<|long|> name : The Anchor | food : Indian | area : riverside",
    "<|e2e|> name : The Anchor | near : <|long|>",
]


def test_a_shelf_holds_a_file_a_task_and_lists_them(shelf, capsys):
    assert set(contents(shelf)) == {f"{name}.safetensors" for name in ("e2e", "long", "table")}
    evaluate.main(["--shelf", str(shelf)])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["<|e2e|>", "<|long|>", "<|table|>"]
    size = (shelf / "e2e.safetensors").stat().st_size
    assert f"prefix of 3 positions, 768 numbers, {size:,} bytes" in lines[0] and "BLEU" in lines[0]
    assert "infix of 9 positions" in lines[1] and lines[1].endswith("not scored")
    assert "F1" in lines[2] and "exact" in lines[2] and "BLEU" not in lines[2]


def test_what_is_stored_is_what_the_run_learned(shelf):
    for name in ("e2e", "long", "table"):
        (ours,) = read_safetensors(shelf / f"{name}.safetensors")[0].values()
        (its,) = read_safetensors(shelf.parent / "runs" / name / "prefix.safetensors")[0].values()
        assert torch.equal(ours, its)


def test_a_mixed_file_is_answered_in_order_as_each_run_answers_alone(shelf, world, tmp_path, capsys):
    (tmp_path / "in.txt").write_text("\n".join(TABLES) + "\n", encoding="utf-8")
    options = ["--beam_size", "2", "--max_new_tokens", "12", "--decode_dtype", "fp32", "--device", "cpu"]
    found = {}
    for size in (1, 2, 64):
        for plain in ([], ["--plain"]):
            out = tmp_path / f"out{size}{len(plain)}.txt"
            words = ["--shelf", str(shelf), "--tables", str(tmp_path / "in.txt"), "--out", str(out)]
            evaluate.main([*words, "--batch_size", str(size), *options, *plain])
            found[size, len(plain)] = out.read_text(encoding="utf-8").splitlines()
    (texts,) = {tuple(lines) for lines in found.values()}
    assert len(texts) == 5 and len(set(texts)) > 2
    for request, text in zip(TABLES[1:4], texts[1:4]):
        name, source = evaluate.split_request(request)
        changes = {"beam_size": 2, "max_new_tokens": 12, "dtype": "fp32", "device": "cpu"}
        assert text == evaluate.generate(shelf.parent / "runs" / name, source, **changes)
        evaluate.main(["--shelf", str(shelf), "--text", request, *options])
        assert capsys.readouterr().out.splitlines() == [text]


def test_a_new_task_leaves_the_others_files_and_texts(shelf, world, tmp_path, capsys):
    mine = shutil.copytree(shelf, tmp_path / "mine")
    ask = ["--text", TABLES[1], "--beam_size", "2", "--max_new_tokens", "12", "--device", "cpu"]
    evaluate.main(["--shelf", str(mine), *ask])
    before, text = contents(mine), capsys.readouterr().out
    # a name that comes first, so that the other tasks' ids change
    train.main(
        [*flags(world, tmp_path / "run", prefix_len=4, seed=5, no_eval=True), "--task", "a", "--shelf", str(mine)]
    )
    capsys.readouterr()
    after = contents(mine)
    assert {name: after[name] for name in before} == before and set(after) - set(before) == {"a.safetensors"}
    evaluate.main(["--shelf", str(mine), *ask])
    assert capsys.readouterr().out == text


def test_a_run_that_is_on_the_shelf_is_not_put_there_twice_and_goes_to_another_on_request(
    shelf, world, tmp_path, capsys
):
    before = contents(shelf)
    words = [*flags(world, shelf.parent / "runs" / "e2e", prefix_len=3), "--task", "e2e", "--resume", "--no_eval"]
    train.main([*words, "--shelf", str(shelf)])
    assert "is on the shelf" in capsys.readouterr().out and contents(shelf) == before
    train.main([*words, "--shelf", str(tmp_path / "other")])
    assert contents(tmp_path / "other")["e2e.safetensors"] == before["e2e.safetensors"]
    train.main([*words[:-4], "--task", "second-name", "--resume", "--no_eval", "--shelf", str(tmp_path / "other")])
    assert set(contents(tmp_path / "other")) == {"e2e.safetensors", "second-name.safetensors"}


def test_a_run_that_is_scored_after_it_was_put_on_the_shelf_brings_its_scores_there(world, tmp_path, capsys):
    words = [*flags(world, tmp_path / "run"), "--task", "late", "--shelf", str(tmp_path / "mine")]
    train.main([*words, "--no_eval"])
    assert shelves.describe(tmp_path / "mine").endswith("not scored")
    train.main([*words, "--resume"])
    assert "BLEU" in shelves.describe(tmp_path / "mine")
    run = json.loads((tmp_path / "run" / "scores.json").read_text())
    assert f"ROUGE_L {100 * run['ROUGE_L']:.2f}" in shelves.describe(tmp_path / "mine")


def test_a_sentence_with_brackets_is_read_as_it_is(shelf):
    """By the reverse task, its run, and the plain GPT-2; `x [y]` would be a table in E2E's notation."""
    sentence = "Lotus serves food [Thai]"
    writer = evaluate.writer_of(shelf=shelf)
    assert writer.prepare(f"<|table|> {sentence}") == f"<|table|> {sentence}" and writer.prepare(sentence) == sentence
    assert writer.prepare(f"<|e2e|> {sentence}") == "<|e2e|> Lotus serves food : Thai"
    assert evaluate.writer_of(run=shelf.parent / "runs" / "table").prepare(sentence) == sentence


def test_a_run_itself_answers_a_file_too(shelf, tmp_path, capsys):
    run = shelf.parent / "runs" / "e2e"
    (tmp_path / "in.csv").write_text('mr,note\n"name[Lotus], food[Thai]",x\n"food[Indian], name[Lotus]",y\n')
    (tmp_path / "in.txt").write_text("name : Lotus | food : Thai||Lotus serves Thai .\nname[Lotus], food[Indian]\n")
    texts = []
    for name in ("in.csv", "in.txt"):
        evaluate.main(["--run", str(run), "--tables", str(tmp_path / name), "--out", "-", "--decode_dtype", "fp32"])
        texts.append(capsys.readouterr().out.splitlines())
    assert len(texts[0]) == 2 and texts[0] == texts[1]


@pytest.mark.slow
def test_a_pipe_is_answered_batch_by_batch(shelf):
    """The first text comes while standard input is still open."""
    words = [sys.executable, "evaluate.py", "--shelf", str(shelf), "--tables", "-", "--out", "-", "--batch_size", "1"]
    words += ["--max_new_tokens", "5", "--beam_size", "2"]
    with subprocess.Popen(words, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as program:
        program.stdin.write(TABLES[1] + "\n")
        program.stdin.flush()
        first = program.stdout.readline()
        assert first.endswith("\n")
        program.stdin.write(TABLES[1] + "\n" + TABLES[0] + "\n")
        program.stdin.close()
        rest = program.stdout.read().splitlines()
    assert program.returncode == 0 and len(rest) == 2 and rest[0] + "\n" == first


# ----------------------------------------------------------------------------- what is refused


def refused(capsys, main, *words) -> str:
    """The one sentence with which a command line ends with status 2."""
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    lines = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2 and len(lines) == 1 and lines[0].startswith("error: ")
    return lines[0]


def test_a_name_that_is_taken_is_refused_before_training(shelf, world, tmp_path, capsys):
    before = contents(shelf)
    words = [*flags(world, tmp_path / "run"), "--task", "e2e", "--shelf", shelf]
    assert "e2e.safetensors exists: choose another --task" in refused(capsys, train.main, *words)
    assert contents(shelf) == before and not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["a b", "endoftext", "x|y", ""])
def test_a_name_that_cannot_be_a_token_is_refused(world, tmp_path, capsys, name):
    words = [*flags(world, tmp_path / "run"), "--task", name, "--shelf", tmp_path / "mine"]
    assert "cannot be a task's name" in refused(capsys, train.main, *words)
    assert not (tmp_path / "mine").exists()


def test_a_shelf_of_another_model_is_refused(shelf, world, tmp_path, capsys):
    """It has the same shape, but other weights. Neither training onto it nor asking it works, and nothing changes."""
    write_model(tmp_path / "other", seed=3)
    before = contents(shelf)
    words = flags(world, tmp_path / "run", model=tmp_path / "other")
    assert "was made for another model" in refused(capsys, train.main, *words, "--task", "new", "--shelf", shelf)
    words = ["--shelf", shelf, "--text", TABLES[1], "--model", tmp_path / "other"]
    assert "was made for another model" in refused(capsys, evaluate.main, *words)
    assert contents(shelf) == before and not (tmp_path / "run").exists()


def test_fine_tuning_and_a_shelf_without_a_task_are_refused(world, tmp_path, capsys):
    words = flags(world, tmp_path / "run")
    assert "--task needs a mode with a prefix" in refused(
        capsys, train.main, *words, "--mode", "finetune", "--task", "a"
    )
    assert "--shelf needs --task NAME" in refused(capsys, train.main, *words, "--shelf", tmp_path)


def test_requests_that_cannot_be_answered_are_refused_with_their_line_and_nothing_is_written(shelf, tmp_path, capsys):
    for lines, message in {
        "<|e2e|> name : X\n<|none|> name : Y\n": "line 2: no task 'none' on the shelf: it holds e2e, long, table",
        "<|e2e|> name : X\n\n": "in.txt, line 2: no request",
        "<|e2e|>\n": "in.txt, line 1: the table is empty",
        "<||> name : X\n": "in.txt, line 1: no task ''",
        "<|e2e|> " + "name : X | " * 60 + "\n": "in.txt, line 1: the table 'name : X",
    }.items():
        (tmp_path / "in.txt").write_text(lines)
        words = ["--shelf", shelf, "--tables", tmp_path / "in.txt", "--out", tmp_path / "out.txt"]
        assert message in refused(capsys, evaluate.main, *words)
        assert not (tmp_path / "out.txt").exists()
    (tmp_path / "empty.txt").write_text("")
    words = ["--shelf", shelf, "--tables", tmp_path / "empty.txt", "--out", tmp_path / "out.txt"]
    assert "is empty" in refused(capsys, evaluate.main, *words)


def test_lines_end_at_line_feeds_only_and_begin_after_a_byte_order_mark(tmp_path, monkeypatch):
    lines = ["<|e2e|> a\u2028b || c\r\n", "d\x0be\n"]
    (tmp_path / "in.txt").write_bytes("".join(lines).encode("utf-8-sig"))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO((tmp_path / "in.txt").read_bytes())))
    for name in (str(tmp_path / "in.txt"), "-"):
        assert [request.text for request in read_requests(name)] == ["<|e2e|> a\u2028b", "d\x0be"]


def test_an_output_folder_is_refused_before_anything_is_decoded(shelf, tmp_path, capsys, monkeypatch):
    (tmp_path / "in.txt").write_text(TABLES[0] + "\n")
    monkeypatch.setattr(evaluate, "beam_search", None)
    refused(capsys, evaluate.main, "--shelf", shelf, "--tables", tmp_path / "in.txt", "--out", tmp_path)


def test_damaged_tables_are_refused(shelf, tmp_path, capsys, monkeypatch):
    for text, message in {
        "name,ref\na,b\n": "there must be one column mr",
        "mr,ref,mr\na,b,c\n": "there must be one column mr",
        'mr\n""\n': "column mr is empty",
        'mr\n"a': "not CSV",
    }.items():
        (tmp_path / "in.csv").write_text(text)
        with pytest.raises(InputError, match=message):
            list(read_requests(str(tmp_path / "in.csv")))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"fine\n\xff\n")))
    with pytest.raises(InputError, match="standard input, line 2: not UTF-8"):
        list(read_requests("-"))
    words = ["--shelf", shelf, "--tables", tmp_path / "in.csv", "--out", tmp_path / "in.csv"]
    assert "would overwrite an input file" in refused(capsys, evaluate.main, *words)


def test_what_is_no_shelf_is_refused(shelf, tmp_path, capsys):
    assert "is not a shelf" in refused(capsys, evaluate.main, "--shelf", tmp_path)
    assert "is not a shelf" in refused(capsys, evaluate.main, "--shelf", tmp_path / "none", "--text", "x")
    mine = shutil.copytree(shelf, tmp_path / "mine")
    shutil.copy(mine / "e2e.safetensors", mine / "renamed.safetensors")
    assert "is not the file of a task" in refused(capsys, evaluate.main, "--shelf", mine, "--text", "x")
    (mine / "renamed.safetensors").write_bytes(b"damaged")
    assert "renamed.safetensors" in refused(capsys, evaluate.main, "--shelf", mine)
    (mine / "renamed.safetensors").unlink()
    tensors, about = read_safetensors(mine / "e2e.safetensors")
    for damaged in ("{", "[1, 2]", '{"BLEU": null}', '{"BLEU": "x"}'):
        write_safetensors(mine / "e2e.safetensors", {"prefix": tensors["prefix"].clone()}, about | {"scores": damaged})
        assert "the scores in its metadata are damaged" in refused(capsys, evaluate.main, "--shelf", mine)


@pytest.mark.parametrize("file", ["model.safetensors", "prefix.safetensors"])
def test_a_folder_of_a_model_or_a_run_is_no_shelf(shelf, world, capsys, file):
    folder = world / "model" if file == "model.safetensors" else shelf.parent / "runs" / "e2e"
    for words in ([], ["--text", "x"]):
        assert f"{file} is not the file of a task" in refused(capsys, evaluate.main, "--shelf", folder, *words)


def test_a_shelf_whose_model_is_elsewhere_says_how_to_name_it(shelf, tmp_path, capsys):
    mine = shutil.copytree(shelf, tmp_path / "mine")
    for path in mine.iterdir():
        tensors, about = read_safetensors(path)
        own = {name: tensor.clone() for name, tensor in tensors.items()}
        write_safetensors(path, own, about | {"model": "/nowhere/model"})
    complaint = refused(capsys, evaluate.main, "--shelf", mine, "--text", TABLES[1])
    assert "name your copy of the model with --model" in complaint


@pytest.mark.parametrize(
    "words", [["--text", "x", "--split", "test"], ["--tables", "x"], ["--table", "x"], ["--batch_size", "2"]]
)
def test_flags_without_effect_on_a_shelf_are_refused(shelf, capsys, words):
    refused(capsys, evaluate.main, "--shelf", shelf, *words)


def test_a_killed_training_leaves_the_shelf_as_it_was(shelf, world, tmp_path, monkeypatch):
    """Killed while it trains; while it evaluates; and while its file is written."""
    before = contents(shelf)

    class Killed(BaseException):
        pass

    def die(*args, **kwargs):
        raise Killed

    for where, name in ((Run, "after_step"), (train, "evaluate_run"), (shelves, "write_safetensors")):
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(where, name, die)
            train.main([*flags(world, tmp_path / name), "--task", "new", "--shelf", str(shelf)])
        assert contents(shelf) == before


# ----------------------------------------------------------------------------- the reverse task


def test_the_reverse_task_reads_the_sentence_and_writes_the_table(world):
    forward, reverse = (shelves.Settings(data=str(world / "data"), reverse=r).dataset for r in (False, True))
    for split in ("train", "test"):
        pairs = [(target.strip(), source) for source, target in forward.examples(split)]
        assert [tuple(example) for example in reverse.examples(split)] == pairs
    test_set = reverse.test_set("test")
    assert all(table.startswith("name : ") for tables in test_set.references for table in tables)
    perfect = reverse.score([tables[0] for tables in test_set.references], test_set)
    assert perfect == {"all": {"precision": 1.0, "recall": 1.0, "F1": 1.0, "exact": 1.0}}


def test_a_reverse_run_is_scored_by_fields(shelf):
    run = shelf.parent / "runs" / "table"
    assert set(json.loads((run / "scores.json").read_text())) == {"precision", "recall", "F1", "exact"}
    assert json.loads((run / "evaluation.json").read_text())["signature"].startswith("fields:")


# ----------------------------------------------------------------------------- examples longer than the context


def test_long_examples_are_refused_or_left_out_and_long_texts_end_with_the_context(world, tmp_path, capsys):
    """The tiny model has 160 positions."""
    data = write_data(tmp_path / "data")
    line = "name : Lotus | food : " + " , ".join(["Thai"] * 60) + "||Lotus serves Thai food .\n"
    for split in ("train", "test"):
        with open(data / f"src1_{split}.txt", "a", encoding="utf-8") as file:
            file.write(line if split == "train" else line.replace(" , Thai" * 25, ""))
    valid = data / "src1_valid.txt"  # of which the first table is shown after each validation
    valid.write_text(line.replace("||", " , Thai" * 60 + "||") + valid.read_text("utf-8"), "utf-8")
    words = flags(world, tmp_path / "run", data=data, max_new_tokens=100)
    assert "tokens, but only 155 fit" in refused(capsys, train.main, *words)
    train.main([*words, "--skip_long"])
    assert "1 of 121 training examples are longer than the context and left out" in capsys.readouterr().out
    settings, model = load_run(tmp_path / "run")
    assert settings.skip_long and len((tmp_path / "run" / "outputs.txt").read_text().splitlines()) > 5
