"""evaluate.py: the table it prints, the files it writes, scoring any outputs against any references."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import evaluate
import metrics
from beam import beam_search
from e2e_data import group_references, load_split, read_examples
from evaluate import decode, evaluate_run, main, newline_tokens
from harness.files import InputError
from harness.progress import Progress
from harness.report import PUBLISHED, print_table, published_for
from harness.runs import load_run
from harness.settings import Settings
from harness.tokenizers import load_tokenizer
from train import train

ROOT = Path(__file__).resolve().parent.parent
E2E = ROOT.parent / "shared" / "e2e"
HYP = ["Blue Spice is a pub .", "The Mill serves Thai food ."]
REFS = [
    ["Blue Spice is a cheap pub .", "A pub called Blue Spice ."],
    ["The Mill serves Thai food .", "Thai food at The Mill ."],
]


@pytest.fixture(scope="module")
def run(world, tmp_path_factory):
    """A short finished run."""
    return train(Settings(
        mode="finetune", model=str(world / "model"), data=str(world / "data"),
        out=str(tmp_path_factory.mktemp("runs") / "tuned"),
        device="cpu", dtype="fp32", lr=3e-3, epochs=6, max_new_tokens=40,
    ))  # fmt: skip


@pytest.fixture
def files(tmp_path):
    """The same outputs and references in each form: {name: (hyp, ref)}."""
    hyp = tmp_path / "outputs.txt"
    hyp.write_text("".join(text + "\n" for text in HYP))
    (tmp_path / "blocks.txt").write_text("\n\n".join("\n".join(refs) for refs in REFS) + "\n")
    (tmp_path / "pairs.txt").write_text(
        "".join(f"table {i}||{text} \n" for i, refs in enumerate(REFS) for text in refs)
    )
    rows = "".join(f'"table[{i}]","{text}"\n' for i, refs in enumerate(REFS) for text in refs)
    (tmp_path / "refs.csv").write_text("mr,ref\n" + rows)
    return {name: (hyp, tmp_path / name) for name in ("blocks.txt", "pairs.txt", "refs.csv")}


@pytest.mark.parametrize("form", ["blocks.txt", "pairs.txt", "refs.csv"])
def test_outputs_are_scored_against_references_in_every_form(files, form, capsys, tmp_path):
    hyp, ref = files[form]
    main(["--hyp", str(hyp), "--ref", str(ref)])
    assert json.loads((tmp_path / "scores.json").read_text()) == metrics.score(HYP, REFS, details=True)
    printed = capsys.readouterr().out
    assert "outputs.txt" in printed and metrics.signature() in printed and str(ref) in printed


def test_one_reference_a_line_is_scored_too(tmp_path):
    (tmp_path / "o.txt").write_text("\n".join(HYP) + "\n")
    (tmp_path / "r.txt").write_text("\n".join(refs[0] for refs in REFS) + "\n")
    main(["--hyp", str(tmp_path / "o.txt"), "--ref", str(tmp_path / "r.txt")])
    expected = metrics.score(HYP, [refs[:1] for refs in REFS], details=True)
    assert json.loads((tmp_path / "scores.json").read_text()) == expected


def test_segment_scores_are_written_on_request(files, tmp_path):
    hyp, ref = files["blocks.txt"]
    main(["--hyp", str(hyp), "--ref", str(ref), "--segments", str(tmp_path / "segments.tsv")])
    header, *rows = [line.split("\t") for line in (tmp_path / "segments.tsv").read_text().splitlines()]
    expected = metrics.score(HYP, REFS, per_segment=True)["segments"]
    assert header == ["segment", *expected[0], "source", "output"]
    assert [[float(x) for x in row[1:-2]] for row in rows] == [list(segment.values()) for segment in expected]
    assert [row[-1] for row in rows] == HYP


def test_the_table_puts_our_row_beside_the_papers_and_the_posters(capsys):
    print_table(
        {"ours": {"BLEU": 0.70125, "NIST": 8.5, "NIST_perl": 8.4, "ROUGE_L": 0.5, "CIDEr": 2.0}},
        "some references",
        PUBLISHED,
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["BLEU", "NIST", "NIST_perl", "METEOR", "ROUGE_L", "CIDEr"]
    assert lines[2].split() == ["ours", "70.12", "8.50", "8.40", "-", "50.00", "2.00"]  # no METEOR: a dash, no number
    assert len(lines) > 2 + len(PUBLISHED)
    by_name = {name: next(line for line in lines if line.startswith(name)) for name in PUBLISHED}
    assert by_name["poster, prefix 0.1 %"].split()[-6:] == ["68.5", "-", "8.71", "44.3", "70.4", "2.34"]
    assert by_name["poster, fine-tune"].split()[-6:] == ["70.3", "-", "8.94", "46.2", "72.2", "2.47"]
    assert by_name["GPT-2 medium, prefix 0.1 % (Li & Liang 2021)"].split()[-6:] == "70.3 8.82 - 46.3 72.1 2.46".split()


def test_the_published_rows_are_printed_beside_e2es_own_references_only(files, run, capsys):
    """They were scored against the paper's tokenised references: in any format of these, and beside no others."""
    hyp, ref = files["blocks.txt"]
    main(["--hyp", str(hyp), "--ref", str(ref)])
    evaluate_run(run)
    printed = capsys.readouterr().out
    assert "poster" not in printed and "the published rows:" not in printed
    assert published_for(REFS) == {} == published_for([])
    if E2E.exists():
        groups = list(group_references(load_split(str(E2E), "test")).values())
        assert published_for(groups) is PUBLISHED
        assert published_for([[f" {text} " for text in group] for group in groups]) is PUBLISHED
        valid = list(group_references(load_split(str(E2E), "valid")).values())
        official = list(group_references(read_examples(E2E / "testset_w_refs.csv")).values())
        assert published_for(groups[1:]) == published_for(valid) == published_for(official) == {}


def test_decoding_options_reach_the_search_and_are_recorded(run, monkeypatch):
    evaluate_run(run)
    first = json.loads((run / "evaluation.json").read_text())
    assert (first["beam_size"], first["length_norm"], first["references"]) == (5, "total", first["references"])
    groups = list(group_references(load_split(load_run(run)[0].data, "test")).values())
    assert first["signature"] == metrics.signature(references=groups)
    written = metrics.score((run / "outputs.txt").read_text().splitlines(), groups, details=True)
    assert json.loads((run / "scores.json").read_text()) == written
    before = {name: (run / name).read_bytes() for name in ("outputs.txt", "scores.json", "evaluation.json")}
    calls = []

    def spy(model, prompts, end, beam_size, max_new_tokens, length_norm, banned, *more):
        calls.append((len(prompts), beam_size, *set(max_new_tokens), length_norm, banned))
        return beam_search(model, prompts, end, beam_size, max_new_tokens, length_norm, banned, *more)

    monkeypatch.setattr(evaluate, "beam_search", spy)
    main(["--run", str(run), "--beam_size", "1", "--length_norm", "none", "--max_new_tokens", "7", "--batch_size", "3"])
    newlines = newline_tokens(load_tokenizer(load_run(run)[0].model))
    assert len(newlines) > 0 and set(calls) <= {(n, 1, 7, "none", newlines) for n in (1, 2, 3)} and calls[0][0] == 3
    second = json.loads((run / "evaluation-beam_size_1-length_norm_none-max_new_tokens_7.json").read_text())
    assert (second["beam_size"], second["length_norm"], second["max_new_tokens"], second["batch_size"]) == (
        1,
        "none",
        7,
        3,
    )
    assert before == {name: (run / name).read_bytes() for name in before}  # another search has files of its own
    assert json.loads((run / "settings.json").read_text())["beam_size"] == 5  # the run's own settings stay


def test_each_distinct_table_is_decoded_once_in_file_order_whatever_the_batches(run):
    settings, model = load_run(run, device="cpu", dtype="fp32")
    tokenizer = load_tokenizer(settings.model)
    sources = list(group_references(load_split(settings.data, "test")))
    texts = decode(model, tokenizer, sources, **settings.search, batch_size=4)
    assert len(texts) == len(sources) < len(load_split(settings.data, "test"))
    one_by_one = [decode(model, tokenizer, [source], **settings.search)[0] for source in sources]
    assert texts == one_by_one and len(set(texts)) > 1


def test_the_validation_split_goes_to_files_of_its_own(run):
    evaluate_run(run)
    before = (run / "outputs.txt").read_bytes()
    main(["--run", str(run), "--split", "valid"])
    assert (run / "outputs.txt").read_bytes() == before
    n = len(group_references(load_split(str(json.loads((run / "settings.json").read_text())["data"]), "valid")))
    assert len((run / "outputs-valid.txt").read_text().splitlines()) == n
    assert (run / "scores-valid.json").exists()


def test_other_data_goes_to_files_of_its_own(run, tmp_path):
    evaluate_run(run)
    before = {name: (run / name).read_bytes() for name in ("outputs.txt", "scores.json", "evaluation.json")}
    own = Path(json.loads((run / "settings.json").read_text())["data"])
    other = shutil.copytree(own, tmp_path / "other")
    (test_file,) = other.glob("*test*")
    kept = [line for line in test_file.read_text(encoding="utf-8").splitlines(keepends=True) if line.strip()][:3]
    test_file.write_text("".join(kept), encoding="utf-8")
    main(["--run", str(run), "--data", str(other)])
    assert before == {name: (run / name).read_bytes() for name in before}
    n = len(group_references(load_split(str(other), "test")))
    (outputs,) = run.glob("outputs-data_*_other.txt")  # the whole path: another folder may be called so too
    assert len(outputs.read_text(encoding="utf-8").splitlines()) == n < len(kept) + 1
    for name in ("scores", "evaluation"):
        assert outputs.with_name(outputs.name.replace("outputs", name)).with_suffix(".json").exists()


def test_one_table_is_said(run, capsys):
    source = load_split(json.loads((run / "settings.json").read_text())["data"], "test")[0].source
    main(["--run", str(run), "--table", source, "--plain"])
    evaluate_run(run, dtype="fp32")
    first = (run / "outputs.txt").read_text().splitlines()[0]
    assert capsys.readouterr().out.splitlines()[0] == first
    main(["--run", str(run), "--table", "name[Lotus], food[Thai]", "--plain"])
    main(["--run", str(run), "--table", "name : Lotus | food : Thai", "--plain"])
    said = capsys.readouterr().out.splitlines()
    assert said[-1] == said[-2] != ""


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_one_line_on_a_terminal_and_nothing_elsewhere(terminal, monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal)
    progress, silent = Progress("decoded", 6, "tables"), Progress("decoded", 6, shown=False)
    for done in (4, 8):  # with several ranks the last batch may exceed the total
        progress(done)
        silent(done)
    shown = capsys.readouterr().err
    assert re.sub(r"\d+ s left", "N s left", shown) == (
        "\rdecoded 4/6 tables, N s left \rdecoded 6/6 tables, N s left \n" if terminal else ""
    )


def test_progress_needs_no_standard_error(monkeypatch):
    monkeypatch.setattr("sys.stderr", None)
    Progress("decoded", 6, "tables")(3)


def test_only_a_table_in_e2es_notation_is_converted(run):
    writer = evaluate.writer_of(run=run)
    for source in ("name : Lotus [closed] | food : Thai", "food : Thai | name : Lotus [closed]"):
        assert writer.prepare(source) == source
    assert writer.prepare("food[Thai], name[Lotus : closed]") == "name : Lotus : closed | food : Thai"
    with pytest.raises(InputError, match="the table: not a table such as"):
        writer.prepare("Lotus serves [sic")


@pytest.mark.parametrize("batch_size", [1, 3, 70])
def test_requests_are_decoded_as_many_at_a_time_as_asked(run, tmp_path, monkeypatch, batch_size):
    sizes = []

    def counted(model, prompts, *args, **options):
        sizes.append(len(prompts))
        return beam_search(model, prompts, *args, **options)

    monkeypatch.setattr(evaluate, "beam_search", counted)
    (tmp_path / "in.txt").write_text("name : Lotus\n" * 71)
    words = ["--run", str(run), "--tables", str(tmp_path / "in.txt"), "--out", str(tmp_path / "out.txt")]
    main([*words, "--batch_size", str(batch_size), "--beam_size", "1", "--max_new_tokens", "1"])
    assert sum(sizes) == 71 and max(sizes) == batch_size


def test_the_files_of_an_evaluation_on_the_papers_data_are_named_after_it(run):
    settings = evaluate.load_run(run, data=None)[0]
    assert evaluate.ending_of(run, settings, "test") == "-data_e2e"


def test_scores_of_other_outputs_are_not_overwritten(files, tmp_path):
    hyp, ref = files["blocks.txt"]
    main(["--hyp", str(hyp), "--ref", str(ref)])
    before = (tmp_path / "scores.json").read_bytes()
    main(["--hyp", str(hyp), "--ref", str(ref)])  # the same again is no harm
    (tmp_path / "others.txt").write_text("xxx\nyyy\n")
    with pytest.raises(SystemExit):
        main(["--hyp", str(tmp_path / "others.txt"), "--ref", str(ref)])
    assert (tmp_path / "scores.json").read_bytes() == before
    main(["--hyp", str(tmp_path / "others.txt"), "--ref", str(ref), "--scores", str(tmp_path / "others.json")])
    assert json.loads((tmp_path / "others.json").read_text())["ROUGE_L"] == 0


def test_a_run_can_be_evaluated_from_another_folder_and_after_its_model_moved(world, tmp_path, monkeypatch):
    monkeypatch.chdir(world)
    folder = train(
        Settings(
            model="model",
            data="data",
            out=str(tmp_path / "run"),
            device="cpu",
            dtype="fp32",
            max_steps=2,
            max_new_tokens=5,
        )
    )
    monkeypatch.chdir(tmp_path)
    evaluate_run(folder)
    settings = json.loads((folder / "settings.json").read_text())
    (folder / "settings.json").write_text(json.dumps(settings | {"model": "/nowhere/model"}))
    with pytest.raises(InputError, match="unknown model '/nowhere/model'"):
        load_run(folder)
    load_run(folder, model=str(world / "model"))


def test_a_reader_that_has_seen_enough_is_no_error(files):
    hyp, ref = files["blocks.txt"]
    command = [sys.executable, str(ROOT / "evaluate.py"), "--hyp", str(hyp), "--ref", str(ref)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()  # as `| head` does
    assert process.stderr.read() == "" and process.wait() == 1


def test_decoding_is_in_fp32_whatever_training_used_unless_asked(run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    settings = json.loads((folder / "settings.json").read_text())
    (folder / "settings.json").write_text(json.dumps(settings | {"dtype": "bf16"}))
    assert load_run(folder)[0].dtype == "fp32"
    evaluate_run(folder)
    assert (folder / "outputs.txt").read_bytes() == (run / "outputs.txt").read_bytes()
    evaluate_run(folder, decode_dtype="bf16")
    about = json.loads((folder / "evaluation-decode_dtype_bf16.json").read_text())
    assert about["machine"]["dtype"] == "bf16"
    assert json.loads((folder / "evaluation.json").read_text())["machine"]["dtype"] == "fp32"


def test_in_fp32_the_texts_are_the_same_bytes_for_every_batch_size_and_path(run, tmp_path):
    folder, texts = tmp_path / "run", set()
    shutil.copytree(run, folder)
    for plain in (False, True):
        for batch_size in (1, 8, 32, 64):
            evaluate_run(folder, batch_size, plain=plain)
            texts.add((folder / "outputs.txt").read_bytes())
    assert len(texts) == 1
