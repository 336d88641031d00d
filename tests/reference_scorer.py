"""The reference scorer, live: pycocoevalcap and the two Java programs it runs.

METEOR's program reads its tables for ten seconds when it starts, so each process of the tests starts it once
(`meteor_program`). Whole corpora take minutes: `scores_of_all_corpora` scores them with our code and with the
reference, once a session, in three processes that work while other tests run.
"""

import functools
import gc
import importlib.util
import multiprocessing
import os
import shutil
from pathlib import Path

import pytest

import metrics
from e2e_data import group_references, read_examples
from metrics import meteor, mteval, ptb, read

SHARED = Path(__file__).resolve().parents[2] / "shared"
SYSTEMS = sorted((SHARED / "scores" / "dev_outputs").glob("*.txt"))
needs_systems = pytest.mark.skipif(not SYSTEMS, reason="the 20 systems' outputs are in ../shared, which is not here")

JAVA_IS_HERE = shutil.which("java") is not None and importlib.util.find_spec("pycocoevalcap") is not None
needs_java = pytest.mark.skipif(not JAVA_IS_HERE, reason="no Java, or no pycocoevalcap, to compare with")

# The default garbage collector runs threads of its own, which cost METEOR's program a third more CPU time.
os.environ.setdefault("JAVA_TOOL_OPTIONS", "-XX:+UseParallelGC")

Corpus = tuple[list[str], list[list[str]]]  # hypotheses, references
Scores = dict[str, list[float]]  # key -> [the corpus score, then each segment's]


# ------------------------------------------------------------------------- a few texts


@functools.cache
def meteor_program():
    """pycocoevalcap's METEOR. Returns at once; the first score waits until the tables are read."""
    from pycocoevalcap.meteor.meteor import Meteor

    return Meteor()


def their_meteor(hypotheses, references) -> list[float]:
    """[corpus, *segments] of the jar, driven by pycocoevalcap; texts as they are."""
    numbers = range(len(hypotheses))
    outputs = {number: [hypotheses[number]] for number in numbers}
    corpus, segments = meteor_program().compute_score(dict(zip(numbers, references)), outputs)
    return [corpus, *segments]


def their_scores(hypotheses, references, keys=("METEOR", "ROUGE_L", "CIDEr")) -> Scores:
    """The reference's tokens and scores."""
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    metric = {"METEOR": meteor_program, "ROUGE_L": Rouge, "CIDEr": Cider}
    truth = their_tokens(references)
    outputs = their_tokens([[text] for text in hypotheses])
    result = {}
    for key in keys:
        corpus, segments = metric[key]().compute_score(truth, outputs)
        result[key] = [float(corpus), *map(float, segments)]
    return result


def their_tokens(texts):
    """{number of the segment: its texts, as tokens joined by spaces, without punctuation}."""
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    return PTBTokenizer().tokenize({i: [{"caption": text} for text in segment] for i, segment in enumerate(texts)})


def our_scores(hypotheses, references) -> Scores:
    """metrics.score in the same form, with all its keys: [corpus, *segments], or [corpus] where segments have none."""
    ours = metrics.score(hypotheses, references, per_segment=True)
    segments = ours["segments"]
    return {
        key: [corpus, *(segment[key] for segment in segments if key in segment)]
        for key, corpus in ours["corpus"].items()
    }


def assert_equal(ours: Scores, theirs: Scores) -> None:
    """The corpus score and every segment's, for each key of `theirs` that we can compute here."""
    assert theirs.keys() - metrics.unavailable() <= ours.keys()
    for key in theirs.keys() & ours.keys():
        pairs = enumerate(zip(ours[key], theirs[key], strict=True))
        different = [(number, *pair) for number, pair in pairs if not abs(pair[0] - pair[1]) <= 1e-6]
        assert not different, (key, different[:5])  # number 0 is the corpus


# ------------------------------------------------------------------------- whole corpora

E2E_FILES = ("src1_test.txt", "testset_w_refs.csv")
CORPORA = [path.name for path in SYSTEMS] + [name for name in E2E_FILES if (SHARED / "e2e" / name).is_file()]
ALL_OUTPUTS = "all outputs"  # scored by METEOR only


def read_corpus(name: str) -> Corpus:
    """One of CORPORA: a system's outputs; or E2E's references against each other, tokenised (.txt) or raw (.csv): a
    table's last sentence as the output, the others as its references."""
    if name in E2E_FILES:
        groups = [texts for texts in group_references(read_examples(SHARED / "e2e" / name)).values() if len(texts) > 1]
        return [texts[-1] for texts in groups], [texts[:-1] for texts in groups]
    path = SHARED / "scores" / "dev_outputs" / name
    return read.load(path, SHARED / "e2e" / "devset.csv")[1:]


def read_all_outputs() -> Corpus:
    """The 20 systems' outputs as one corpus, each output of a table once, as PTB tokens of lines read alone."""
    pairs = {}
    for path in SYSTEMS:
        hypotheses, references = read_corpus(path.name)
        pairs.update(((number, text), references[number]) for number, text in enumerate(hypotheses))
    tokens = functools.cache(lambda text: " ".join(ptb.tokenize_for_scoring(text)))
    return [tokens(text) for _number, text in pairs], [[tokens(text) for text in texts] for texts in pairs.values()]


def once(function):
    """`function(text or texts, references, ...)` with its results kept for the same first two arguments.

    Four outputs in ten are another system's too, and the references of all systems are the same.
    """
    known = {}

    @functools.wraps(function)
    def remembering(*arguments):
        key = repr(arguments[:2])
        if key not in known:
            known[key] = function(*arguments)
        return known[key]

    return remembering


def our_scores_of_all() -> dict[str, Scores]:
    for module, name in ((mteval, "tokenize"), (ptb, "tokenize_lines"), (meteor, "best")):
        setattr(module, name, once(getattr(module, name)))  # in a process of its own: no test sees it
    result = {name: our_scores(*read_corpus(name)) for name in CORPORA}
    if SYSTEMS and not metrics.unavailable():
        corpus, segments = meteor.meteor(*read_all_outputs())
        result[ALL_OUTPUTS] = {"METEOR": [corpus, *segments]}
    return result


def their_scores_of_all(*keys: str) -> dict[str, Scores]:
    from pycocoevalcap.cider import cider_scorer
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    gc.disable()  # CIDEr makes millions of small objects, none in a cycle
    cider_scorer.precook = functools.cache(cider_scorer.precook)
    PTBTokenizer.tokenize = staticmethod(once(PTBTokenizer().tokenize))
    Rouge.calc_score = staticmethod(once(Rouge().calc_score))
    if "METEOR" in keys:
        meteor_program()._stat = once(meteor_program()._stat)
    result = {name: their_scores(*read_corpus(name), keys) for name in CORPORA}
    if SYSTEMS and "METEOR" in keys:
        result[ALL_OUTPUTS] = {"METEOR": their_meteor(*read_all_outputs())}
    return result


# ------------------------------------------------------------------------- in processes of their own


class Background:
    """function(*arguments) in another process, which ends with this one."""

    def __init__(self, function, *arguments):
        context = multiprocessing.get_context("spawn")
        self._receiver, sender = context.Pipe(duplex=False)
        self._process = context.Process(target=_run, args=(sender, function, arguments), daemon=True)
        self._process.start()
        sender.close()
        self._answer = []

    def result(self):
        """Wait for what the function returns. Raises EOFError where it raised; its traceback is on stderr."""
        if not self._answer:
            self._answer.append(self._receiver.recv())
        return self._answer[0]


def _run(sender, function, arguments):
    sender.send(function(*arguments))


@functools.cache
def start_all_corpora() -> list[Background]:
    """Start scoring all corpora, ours first; without Java only ours. A second call returns the same."""
    processes = [Background(our_scores_of_all)]
    if JAVA_IS_HERE:
        processes += [Background(their_scores_of_all, "METEOR"), Background(their_scores_of_all, "ROUGE_L", "CIDEr")]
    return processes


def scores_of_all_corpora() -> tuple[dict[str, Scores], dict[str, Scores]]:
    """({name: our scores}, {name: the reference's}), names from CORPORA and ALL_OUTPUTS."""
    ours, *theirs = [process.result() for process in start_all_corpora()]
    merged = {name: {} for name in ours}
    for some in theirs:
        for name, scores in some.items():
            merged[name].update(scores)
    return ours, merged
