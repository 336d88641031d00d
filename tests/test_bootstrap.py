"""Bootstrap: BLEU's numbers against sacrebleu live, every score's against a loop over resampled texts; what is printed.

Also what is printed and written beside BLEU: brevity penalty, lengths, references.
"""

import doctest
import json
import random

import numpy as np
import pytest

import evaluate
import metrics
from harness.report import print_table
from harness.shelves import spelled
from metrics import bleu, bootstrap, cider, meteor, rouge

N, R = 30, 200  # segments, resamples
WITH_METEOR = not metrics.unavailable()
VOCABULARY = (
    "The the pub cat, Ruby's café serves 20 £20-25 cheap family-friendly Thai food near a river . in it CAFÉ".split()
)


def texts(seed: int, worse: float) -> list[str]:
    """Outputs: references with some of their words replaced or left out."""
    chosen = random.Random(seed)
    outputs = []
    for references in REFERENCES:
        words = [word for word in chosen.choice(references).split() if chosen.random() > worse / 3]
        outputs.append(" ".join(chosen.choice(VOCABULARY) if chosen.random() < worse else word for word in words))
    return outputs


def some_references() -> list[list[str]]:
    chosen = random.Random(0)
    numbers = (chosen.randint(1, 4) for _ in range(N))
    return [[" ".join(chosen.choices(VOCABULARY, k=chosen.randint(6, 20))) for _ in range(n)] for n in numbers]


REFERENCES = some_references()
BASELINE, SYSTEM = texts(1, worse=0.25), texts(2, worse=0.15)


@pytest.fixture
def without_meteor(monkeypatch):
    """Its tables take long to load."""
    monkeypatch.setattr(meteor, "available", lambda: "switched off for this test")


@pytest.fixture(scope="module")
def counted():
    return bootstrap.count(SYSTEM, REFERENCES)


def test_examples_of_the_docstring():
    assert doctest.testmod(bootstrap).failed == 0


# ------------------------------------------------------------------------- against sacrebleu


def sacrebleus(baseline, system, resamples):
    """sacrebleu's results of the paired bootstrap: [of the baseline, of the system], its own seed."""
    sacrebleu = pytest.importorskip("sacrebleu")
    from sacrebleu.significance import PairedTest

    most = max(map(len, REFERENCES))
    streams = [[texts[i] if i < len(texts) else None for texts in REFERENCES] for i in range(most)]
    metric = sacrebleu.BLEU(lowercase=True, tokenize="13a", smooth_method="none")
    test = PairedTest([("a", baseline), ("b", system)], {"BLEU": metric}, streams, test_type="bs", n_samples=resamples)
    return test()[1]["BLEU"]


@pytest.mark.parametrize("resamples", [39, 200, 1000])
@pytest.mark.parametrize("system", [SYSTEM, texts(3, worse=0.25), [*BASELINE[:-3], *SYSTEM[-3:]]])
def test_bleus_intervals_and_p_equal_sacrebleus(without_meteor, monkeypatch, system, resamples):
    monkeypatch.delenv("SACREBLEU_SEED", raising=False)
    theirs = sacrebleus(BASELINE, system, resamples)
    ours = bootstrap.compare(BASELINE, system, REFERENCES, resamples)["BLEU"]
    for estimate, result in zip((ours.baseline, ours.system), theirs):
        assert 100 * estimate.score == pytest.approx(result.score, abs=1e-4)  # theirs are sums in fp32
        assert 100 * estimate.interval.mean == pytest.approx(result.mean, abs=1e-4)
        assert 100 * estimate.interval.half_width == pytest.approx(result.ci, abs=1e-4)
    assert ours.p_value == theirs[1].p_value
    assert 0 < ours.p_value < 1 and ours.baseline.score > 0.1


def test_another_seed_gives_sacrebleus_resamples_of_that_seed(without_meteor, monkeypatch):
    monkeypatch.setenv("SACREBLEU_SEED", "7")
    theirs = sacrebleus(BASELINE, SYSTEM, R)
    ours = bootstrap.compare(BASELINE, SYSTEM, REFERENCES, R, seed=7)["BLEU"]
    assert ours.p_value == theirs[1].p_value
    assert 100 * ours.system.interval.mean == pytest.approx(theirs[1].mean, abs=1e-4)
    assert ours.system.interval != bootstrap.compare(BASELINE, SYSTEM, REFERENCES, R)["BLEU"].system.interval


def test_the_rule_of_the_interval_and_of_p_on_any_numbers():
    """Against sacrebleu's functions, which know no score."""
    significance = pytest.importorskip("sacrebleu.significance")
    chosen = np.random.default_rng(3)
    for n in (1, 2, 39, 40, 41, 100, 1000):
        first, second = chosen.normal(0, 1, n), chosen.normal(0.1, 1, n)
        assert bootstrap.interval(first) == pytest.approx(significance.estimate_ci(first), abs=1e-12)
        differences = np.abs(second - first)
        for observed in (0.0, 0.3, -0.3, 2.0):
            theirs = significance._compute_p_value(differences - differences.mean(), abs(observed))
            assert bootstrap.p_value(first, second, observed) == theirs


# ------------------------------------------------------------------------- against a loop


def test_a_resample_holds_each_segment_as_often_as_it_was_drawn():
    times = bootstrap.draw(N, R)
    chosen = np.random.default_rng(bootstrap.SEED).choice(N, size=(R, N))
    assert times.shape == (R, N) and (times.sum(1) == N).all()
    assert all(times[r, s] == list(chosen[r]).count(s) for r in (0, R - 1) for s in range(N))


def resampled_scores(key: str) -> list[float]:
    """The score of each resample, by the formulas of metrics/ on the resampled segments one after another.

    What is computed on the whole test set's references: NIST's information, and each segment's CIDEr.
    """
    segments = metrics.word_segments(SYSTEM, REFERENCES)
    if key == "NIST_perl":
        segments = metrics.as_perl(segments, SYSTEM, REFERENCES)
    hypotheses, references = metrics.ptb_tokens(SYSTEM, REFERENCES)
    whole_cider = cider.cider(hypotheses, references)[1]
    occurrences = {}
    for segment in segments:
        for ngram, number in segment.reference_counts.items():
            occurrences[ngram] = occurrences.get(ngram, 0) + number
    words = sum(number for ngram, number in occurrences.items() if len(ngram) == 1)
    if key == "METEOR":
        joined = [[" ".join(tokens) for tokens in texts] for texts in references]
        stats = meteor.statistics([" ".join(tokens) for tokens in hypotheses], joined)

    def nist_of(chosen, variant):
        bits, ngrams = np.zeros(5), np.zeros(5)
        for segment in chosen:
            for ngram, number in segment.matches.items():
                history = occurrences[ngram[:-1]] if len(ngram) > 1 else words
                bits[len(ngram) - 1] += number * np.log2(history / occurrences[ngram])
            ngrams += [max(0, segment.hypothesis_length - n) for n in range(5)]
        lengths = [segment.reference_lengths for segment in chosen]
        if variant == "python":
            expected = sum(sum(each) / len(each) for each in lengths)
        else:
            expected = sum(map(sum, lengths)) / (sum(map(len, lengths)) / len(lengths))
        penalty = np.exp(np.log(0.5) / np.log(1.5) ** 2 * np.log(min(1, ngrams[0] / expected)) ** 2)
        return float((bits / ngrams).sum() * penalty)

    of_resample = {
        "BLEU": lambda chosen: bleu.bleu([segments[i] for i in chosen]),
        "NIST": lambda chosen: nist_of([segments[i] for i in chosen], "python"),
        "NIST_perl": lambda chosen: nist_of([segments[i] for i in chosen], "perl"),
        "METEOR": lambda chosen: meteor.score(meteor.total([stats[i] for i in chosen])),
        "ROUGE_L": lambda chosen: rouge.rouge_l([hypotheses[i] for i in chosen], [references[i] for i in chosen])[0],
        "CIDEr": lambda chosen: sum(whole_cider[i] for i in chosen) / N,
    }[key]
    drawn = np.random.default_rng(bootstrap.SEED).choice(N, size=(R, N))
    return [of_resample([int(i) for i in row]) for row in drawn]


@pytest.mark.parametrize("key", metrics.CORPUS_KEYS)
def test_every_resamples_score_equals_a_loop_over_its_segments(counted, key):
    if key == "METEOR" and not WITH_METEOR:
        pytest.skip(metrics.unavailable()["METEOR"])
    expected = resampled_scores(key)
    ours = counted[key].resampled(bootstrap.draw(N, R))
    assert ours == pytest.approx(expected, rel=1e-9) and len(set(ours)) > R / 2


def test_the_scores_are_those_of_metrics_score(counted):
    for output, ours in ((SYSTEM, counted), (["", *BASELINE[1:]], bootstrap.count(["", *BASELINE[1:]], REFERENCES))):
        expected = metrics.score(output, REFERENCES)
        assert tuple(ours) == tuple(expected)
        assert {key: each.score for key, each in ours.items()} == pytest.approx(expected, rel=1e-12)


def test_the_paired_test_uses_the_same_resamples_for_both(without_meteor):
    first, second = (bootstrap.count(output, REFERENCES) for output in (BASELINE, SYSTEM))
    times = bootstrap.draw(N, R)
    for key, row in bootstrap.compare(BASELINE, SYSTEM, REFERENCES, R).items():
        a, b = first[key].resampled(times), second[key].resampled(times)
        differences = [abs(y - x) for x, y in zip(a, b)]
        mean = sum(differences) / R
        larger = sum(each - mean > abs(second[key].score - first[key].score) for each in differences)
        assert row.p_value == (larger + 1) / (R + 1)
        assert row.difference == second[key].score - first[key].score
        assert row.system.interval == bootstrap.interval(b) and row.baseline.interval == bootstrap.interval(a)
        assert row.system == bootstrap.intervals(SYSTEM, REFERENCES, R)[key]


def test_equal_outputs_differ_by_nothing_and_p_is_1(without_meteor):
    for row in bootstrap.compare(SYSTEM, SYSTEM, REFERENCES, R).values():
        assert (row.difference, row.p_value) == (0.0, 1.0) and row.baseline == row.system


def test_a_much_better_output_has_the_least_p(without_meteor):
    perfect = [references[0] for references in REFERENCES]
    for row in bootstrap.compare(texts(4, worse=0.9), perfect, REFERENCES, R).values():
        assert row.p_value == 1 / (R + 1) and row.difference > 0


def test_a_single_segment_has_no_spread(without_meteor):
    for estimate in bootstrap.intervals(SYSTEM[:1], REFERENCES[:1], 3).values():
        assert estimate.interval == (pytest.approx(estimate.score), 0.0)


@pytest.mark.parametrize("first, second", [([], []), (["a"], ["a", "b"]), (["a", "b"], ["a"])])
def test_lists_that_do_not_fit_get_a_value_error(without_meteor, first, second):
    with pytest.raises(ValueError, match="hypotheses"):
        bootstrap.compare(first, second, [["a"]][: len(first)])


@pytest.mark.parametrize("resamples", [0, -1])
def test_no_resamples_get_a_value_error(without_meteor, resamples):
    with pytest.raises(ValueError, match="at least 1"):
        bootstrap.intervals(["a"], [["a"]], resamples)


# ------------------------------------------------------------------------- beside BLEU


def test_brevity_penalty_lengths_and_references_equal_sacrebleus(without_meteor):
    sacrebleu = pytest.importorskip("sacrebleu")
    streams = [[texts[i] if i < len(texts) else None for texts in REFERENCES] for i in range(4)]
    metric = sacrebleu.BLEU(lowercase=True, tokenize="13a", smooth_method="none")
    theirs = metric.corpus_score(BASELINE, streams)
    scores = metrics.score(BASELINE, REFERENCES, details=True)
    assert scores[metrics.DETAILS] == {
        "brevity_penalty": pytest.approx(theirs.bp, abs=1e-12),
        "hypothesis_length": theirs.sys_len,
        "reference_length": theirs.ref_len,
        "fewest_references": 1,
        "most_references": 4,
    }
    assert 0 < theirs.bp < 1
    assert {key: scores[key] for key in scores if key != metrics.DETAILS} == metrics.score(BASELINE, REFERENCES)
    assert metrics.DETAILS not in metrics.score(BASELINE, REFERENCES, names=("ROUGE_L",), details=True)


@pytest.mark.parametrize("counts, expected", [([2, 2], "nrefs:2"), ([1, 1, 1], "nrefs:1"), ([1, 3], "nrefs:var")])
def test_the_signature_says_how_many_references_as_sacrebleus_does(counts, expected):
    sacrebleu = pytest.importorskip("sacrebleu")
    references = [["a b c d"] * count for count in counts]
    signature = metrics.signature(references=references)
    assert signature == f"{metrics.signature()}|{expected}" and metrics.without_nrefs(signature) == metrics.signature()
    streams = [[texts[i] if i < len(texts) else None for texts in references] for i in range(max(counts))]
    metric = sacrebleu.BLEU()
    metric.corpus_score(["a b c d"] * len(counts), streams)
    assert expected in str(metric.get_signature()).split("|")
    assert metrics.without_nrefs(metrics.signature()) == metrics.signature()


def test_the_details_are_a_line_under_the_table_and_no_column_of_it(without_meteor, capsys):
    scores = metrics.score(["a b c d e", "a"], [["a b c d e f"], ["a", "b"]], details=True)
    print_table({"ours": scores}, "some references", {})
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == list(metrics.CORPUS_KEYS)
    line = "BLEU's brevity penalty: 0.846 (outputs 6 words, closest references 7); references of an output: 1 to 2"
    assert line in lines
    assert spelled(scores).count("  ") == len(scores) - 2 and "details" not in spelled(scores)  # on a shelf


# ------------------------------------------------------------------------- the command line


@pytest.fixture
def files(tmp_path, without_meteor):
    """tmp_path with a.txt, b.txt and r.txt."""
    for name, outputs in (("a.txt", BASELINE), ("b.txt", SYSTEM)):
        (tmp_path / name).write_text("".join(text + "\n" for text in outputs))
    (tmp_path / "r.txt").write_text("\n\n".join("\n".join(group) for group in REFERENCES) + "\n")
    return tmp_path


def run(folder, words: str) -> None:
    """evaluate.py, with the file names of a folder."""
    evaluate.main([str(folder / word) if "." in word else word for word in words.split()])


def test_intervals_are_printed_and_written_beside_the_scores(files, capsys):
    run(files, "--hyp b.txt --ref r.txt")
    plain = json.loads((files / "scores.json").read_text())
    assert plain == metrics.score(SYSTEM, REFERENCES, details=True)
    run(files, "--hyp b.txt --ref r.txt --bootstrap 50")
    written = json.loads((files / "scores.json").read_text())
    expected = bootstrap.intervals(SYSTEM, REFERENCES, 50)
    found = written.pop("bootstrap")
    assert written == plain  # the scores of before are no reason to refuse
    assert {key: found.pop(key) for key in expected} == {key: e.interval._asdict() for key, e in expected.items()}
    assert found == {"resamples": 50, "seed": 12345, "confidence": 0.95}
    score, mean, half_width = (100 * x for x in (expected["BLEU"].score, *expected["BLEU"].interval))
    printed = capsys.readouterr().out
    assert f"BLEU       {score:.2f} ({mean:.2f} ± {half_width:.2f})\n" in printed and "|nrefs:var\n" in printed
    run(files, "--hyp b.txt --ref r.txt")
    assert "bootstrap" in json.loads((files / "scores.json").read_text())  # scored again, they stay


def test_two_outputs_are_compared(files, capsys):
    run(files, "--hyp a.txt --hyp b.txt --ref r.txt --bootstrap 60")
    written = json.loads((files / "comparison.json").read_text())
    expected = bootstrap.compare(BASELINE, SYSTEM, REFERENCES, 60)
    assert list(written["scores"]) == list(expected)
    for key, row in expected.items():
        assert written["scores"][key] == {
            "baseline": {"score": row.baseline.score, **row.baseline.interval._asdict()},
            "system": {"score": row.system.score, **row.system.interval._asdict()},
            "difference": row.difference,
            "p_value": row.p_value,
        }
    assert written[metrics.DETAILS] == {
        name: metrics.score(outputs, REFERENCES, details=True)[metrics.DETAILS]
        for name, outputs in (("baseline", BASELINE), ("system", SYSTEM))
    }
    assert (written["resamples"], written["seed"], written["signature"][-9:]) == (60, 12345, "nrefs:var")
    lines = capsys.readouterr().out.splitlines()
    cells = next(line for line in lines if line.startswith("CIDEr ")).split()
    row = expected["CIDEr"]
    assert cells[1:] == [
        f"{row.baseline.interval.mean:.2f}", "±", f"{row.baseline.interval.half_width:.2f}",
        f"{row.system.interval.mean:.2f}", "±", f"{row.system.interval.half_width:.2f}",
        f"{row.difference:+.2f}", f"{row.p_value:.4f}",
    ]  # fmt: skip
    for name, outputs in (("a.txt (baseline) ", BASELINE), ("b.txt ", SYSTEM)):
        printed = f"{100 * metrics.score(outputs, REFERENCES)['BLEU']:.2f}"
        assert next(line for line in lines if line.startswith(name)).removeprefix(name).split()[0] == printed
    assert not (files / "scores.json").exists()


def test_1000_resamples_are_the_default_and_the_same_file_twice_is_a_comparison(files, capsys):
    run(files, "--hyp a.txt --hyp a.txt --ref r.txt --scores same.json")
    written = json.loads((files / "same.json").read_text())
    assert written["resamples"] == 1000
    assert {(row["difference"], row["p_value"]) for row in written["scores"].values()} == {(0.0, 1.0)}
    assert "a.txt (baseline)" in capsys.readouterr().out and not (files / "comparison.json").exists()


def test_nothing_else_is_overwritten(files, capsys):
    run(files, "--hyp a.txt --hyp b.txt --ref r.txt --bootstrap 20")
    before = {path.name: path.read_bytes() for path in files.iterdir()}
    run(files, "--hyp a.txt --hyp b.txt --ref r.txt --bootstrap 20")  # the same again is no harm
    capsys.readouterr()
    for words, said in (
        ("--hyp a.txt --hyp b.txt --ref r.txt --bootstrap 21", "comparison.json holds another comparison"),
        ("--hyp a.txt --hyp b.txt --ref r.txt --scores a.txt", "a.txt would overwrite an input file"),
        ("--hyp b.txt --ref r.txt --bootstrap 20 --scores comparison.json", "comparison.json holds other scores"),
    ):
        with pytest.raises(SystemExit) as ended:
            run(files, words)
        complaint = capsys.readouterr().err
        assert ended.value.code == 2 and said in complaint and complaint.count("\n") == 1
    assert {path.name: path.read_bytes() for path in files.iterdir()} == before


REFUSED = {
    "another number of lines": ("--hyp a.txt --hyp short.txt --ref r.txt", f"short.txt has {N - 1} outputs but"),
    "three outputs": ("--hyp a.txt --hyp b.txt --hyp a.txt --ref r.txt", "--hyp is given 3 times"),
    "no resamples": ("--hyp a.txt --ref r.txt --bootstrap 0", "--bootstrap 0: must be from 1 to 100000"),
    "no resamples of two": ("--hyp a.txt --hyp b.txt --ref r.txt --bootstrap -1", "--bootstrap -1: must be from 1"),
    "too many": ("--hyp a.txt --ref r.txt --bootstrap 100001", "--bootstrap 100001: must be from 1 to 100000"),
    "segments": ("--hyp a.txt --hyp b.txt --ref r.txt --segments s.tsv", "--segments has no effect with two --hyp"),
    "no references": ("--hyp a.txt --hyp b.txt", "give --run FOLDER"),
    "of a run": ("--run a.txt --bootstrap 10", "--bootstrap has no effect with --run"),
    "no such file": ("--hyp none.txt --hyp b.txt --ref r.txt", "none.txt does not exist"),
    "other tables": ("--hyp x.csv --hyp y.csv --ref r.csv", "have outputs for other sources, or in another order"),
}


@pytest.mark.parametrize("words, said", REFUSED.values(), ids=REFUSED)
def test_bad_input_is_refused_with_a_sentence(files, capsys, words, said):
    (files / "short.txt").write_text("".join(text + "\n" for text in SYSTEM[1:]))
    (files / "r.csv").write_text("mr,ref\nname[A],A is here\nname[B],B is there\n")
    (files / "x.csv").write_text("mr,output\nname[A],A is here\nname[B],B is there\n")
    (files / "y.csv").write_text("mr,output\nname[B],B is there\nname[A],A is here\n")
    before = sorted(files.iterdir())
    with pytest.raises(SystemExit) as ended:
        run(files, words)
    complaint = capsys.readouterr().err
    assert ended.value.code == 2 and complaint.startswith("error: ") and complaint.count("\n") == 1
    assert said in complaint and sorted(files.iterdir()) == before
