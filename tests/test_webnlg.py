"""WebNLG as a data set of the program: scores by part, and the experiment whose rows make results/webnlg."""

import csv
import json
from pathlib import Path

import pytest
from test_webnlg_data import release  # noqa: F401

import metrics
from evaluate import evaluate_run
from experiments import webnlg
from harness.datasets import DataSet
from harness.files import InputError
from harness.report import print_table
from harness.settings import Settings
from metrics import ter
from train import train

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results" / "webnlg"


@pytest.fixture(autouse=True)
def no_meteor(monkeypatch, tmp_path):
    """Its tables take long to load."""
    monkeypatch.setenv("METEOR_DATA", str(tmp_path / "none"))


def test_entries_are_scored_for_all_seen_and_unseen_categories(release, capsys):
    data = DataSet(str(release))
    test_set = data.test_set("test")
    assert test_set.parts == {"all": [0, 1], "seen": [0], "unseen": [1]} and len(test_set.references[0]) == 2
    outputs = ["One .", "D is a C ."]
    rows = data.score(outputs, test_set)
    assert list(rows) == ["all", "seen", "unseen"]
    for part, i in (("seen", 0), ("unseen", 1)):
        assert rows[part]["BLEU"] == metrics.score([outputs[i]], [test_set.references[i]])["BLEU"]
        words = [ter.tokenize(ter.as_webnlg(text)) for text in (outputs[i], *test_set.references[i])]
        assert rows[part]["TER"] == ter.ter(words[:1], [words[1:]])[0]
    print_table(rows, test_set.described, {}, data.signature(test_set))
    printed = capsys.readouterr().out
    assert printed.split("\n")[1].split() == ["BLEU", "NIST", "NIST_perl", "METEOR", "ROUGE_L", "CIDEr", "TER"]
    assert "|TER:" in printed and "METEOR is not available" in printed


def test_all_entries_of_a_validation_set_are_scored_though_two_have_the_same_source(release):
    test_set = DataSet(str(release)).test_set("valid")
    assert test_set.sources == ["Feast : place : Ohio"] * 2 and test_set.references == [["One.", "Two."], ["Three."]]


def test_the_quirk_of_the_papers_strings_is_a_flag(release):
    quirk = Settings(data=str(release), paper_quirk=True).resolve().dataset
    assert [source[:3] for source, _ in quirk.examples("train")] == [" | "]
    assert [source[:3] for source in quirk.test_set("test").sources] == ["Fea", " | "]
    with pytest.raises(InputError, match="--paper_quirk is about WebNLG"):
        Settings(data="mini", paper_quirk=True).resolve()


def test_reversed_triples_are_read_out_of_texts(release):
    assert DataSet(str(release), reverse=True).examples("train") == [("A feast in Ohio.", "Feast : place : Ohio")]


def test_webnlg_without_a_network_is_refused_with_a_sentence(monkeypatch):
    def no_network(*args, **kwargs):
        raise InputError("no network")

    monkeypatch.setattr("harness.download.download", no_network)
    monkeypatch.setenv("PREFIX_TUNING_CACHE", "/nonexistent/cache")
    with pytest.raises(InputError, match="no network"):
        DataSet("webnlg").examples("train")


def test_a_run_is_trained_and_scored_on_it(release, world, tmp_path, capsys):
    settings = Settings(
        model=str(world / "model"), data=str(release), out=str(tmp_path / "run"), device="cpu", dtype="fp32",
        max_steps=2, beam_size=2, max_new_tokens=8, mid_dim=8, skip_long=True,
    )  # fmt: skip
    evaluate_run(train(settings))
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())
    assert list(scores) == ["all", "seen", "unseen"] and scores["all"]["TER"] > 0
    assert ", unseen " in capsys.readouterr().out


def test_the_experiment_writes_its_rows_and_its_table(release, world, tmp_path, monkeypatch):
    monkeypatch.setattr(webnlg, "SEARCH_STEPS", 2)
    out = tmp_path / "results"
    words = [
        "--model",
        str(world / "model"),
        "--data",
        str(release),
        "--runs",
        str(tmp_path / "runs"),
        "--out",
        str(out),
    ]
    webnlg.main(words)
    first = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    with open(out / "search.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == sum(map(len, webnlg.RATES.values()))
    with open(out / "runs.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["run"], row["part"]) for row in rows] == [
        (run, part) for run in ("prefix5-seed101", "finetune-seed101") for part in webnlg.PARTS
    ]
    assert len((out / "outputs" / "finetune-seed101.txt").read_text().splitlines()) == 2
    assert webnlg.table(rows) in (out / "README.md").read_text()
    webnlg.main(words)  # everything is there already
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()} == first


def recorded() -> list[dict[str, str]]:
    with open(RESULTS / "runs.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_recorded_table_is_that_of_the_rows():
    assert webnlg.table(recorded()) in (RESULTS / "README.md").read_text(encoding="utf-8")
    assert {row["part"] for row in recorded()} == set(webnlg.PARTS)


def test_the_findings_state_the_rows_differences():
    bleu = {(row["mode"], row["part"]): 100 * float(row["BLEU"]) for row in recorded()}
    gap = {part: bleu["finetune", part] - bleu["prefix", part] for part in webnlg.PARTS}
    share = {part: 100 * bleu["prefix", part] / bleu["finetune", part] for part in webnlg.PARTS}
    drop = {mode: bleu[mode, "seen"] - bleu[mode, "unseen"] for mode in webnlg.RATES}
    text = " ".join((RESULTS / "README.md").read_text(encoding="utf-8").split())
    assert f"{gap['unseen']:.1f} BLEU below it there, {gap['seen']:.1f} on seen ones" in text
    assert f"{share['unseen']:.0f} % on unseen categories and {share['seen']:.0f} % on seen ones" in text
    assert f"prefix {drop['prefix']:.1f} BLEU, fine-tuning {drop['finetune']:.1f}" in text


def test_the_recorded_rates_are_those_with_the_lowest_validation_loss():
    with open(RESULTS / "search.csv", newline="", encoding="utf-8") as file:
        searched = list(csv.DictReader(file))
    for mode in webnlg.RATES:
        best = min(webnlg.of(searched, mode), key=lambda row: float(row["valid_loss"]))
        assert {row["lr"] for row in recorded() if row["mode"] == mode} == {best["lr"]}


@pytest.mark.slow
def test_the_recorded_outputs_scored_again_give_the_rows():
    folder = ROOT.parent / "shared" / "webnlg"
    if not folder.is_dir():
        pytest.skip("WebNLG's files are not at hand (../shared/webnlg)")
    data = DataSet(str(folder))
    test_set = data.test_set("test")
    rows = recorded()
    for run in dict.fromkeys(row["run"] for row in rows):
        outputs = (RESULTS / "outputs" / f"{run}.txt").read_text(encoding="utf-8").split("\n")[:-1]
        scores = data.score(outputs, test_set)
        for row in (row for row in rows if row["run"] == run):
            assert int(row["entries"]) == len(test_set.parts[row["part"]])
            for name in ("BLEU", "TER", "NIST", "ROUGE_L", "CIDEr"):
                assert float(row[name]) == pytest.approx(scores[row["part"]][name], abs=1e-6)
