"""BLEU, NIST, METEOR, ROUGE-L and CIDEr, equal to the E2E challenge's reference scorer; and TER on request.

    >>> scores = score(["The cat sat on a mat.", "A dog!"], [["The cat sat on the mat.", "It sat."], ["A dog barked."]])
    >>> {key: round(value, 4) for key, value in scores.items() if key != "METEOR"}
    {'BLEU': 0.4088, 'NIST': 2.9374, 'NIST_perl': 2.9374, 'ROUGE_L': 0.8027, 'CIDEr': 3.4598}

(The example leaves METEOR out because its tables may not be installed; see `unavailable`.)

What to read next, in the order in which a text is processed:

    read.py     reads files of outputs and references
    mteval.py   tokens for BLEU and NIST       -> ngrams.py -> bleu.py, nist.py
    ptb.py      tokens for the other three     -> meteor.py, rouge.py, cider.py
    ter.py      TER, with words of its own; WebNLG reports it, E2E does not
    bootstrap.py    how far a score would move on another test set, and whether two outputs differ
    fields.py   for the opposite task: tables that a model read out of sentences

Left out: the formulas. Each is in the docstring of its file.
"""

import gc
from collections.abc import Sequence
from contextlib import contextmanager

from metrics import bleu, cider, meteor, mteval, ngrams, nist, ptb, rouge, ter

# Increased whenever a change alters any score of any input, so that a printed signature identifies the scorer.
VERSION = "1.0"

CORPUS_KEYS = ("BLEU", "NIST", "NIST_perl", "METEOR", "ROUGE_L", "CIDEr")
ALL_KEYS = (*CORPUS_KEYS, "TER")
DETAILS = "BLEU_details"  # beside the scores on request: what to look at before two BLEUs are compared
SEGMENT_KEYS = ("BLEU", "sentBLEU", "NIST", "METEOR", "ROUGE_L", "CIDEr")  # the reference's per-segment table


def score(
    hypotheses: list[str],
    references: list[list[str]],
    per_segment: bool = False,
    names: tuple[str, ...] = CORPUS_KEYS,
    details: bool = False,
) -> dict:
    """Score system outputs against references.

    hypotheses: N texts, raw or tokenised, any Unicode, possibly empty.
    references: N lists of one or more texts; the lists may differ in length.
    names: the scores to compute, from ALL_KEYS, or the name of one.

    Returns corpus scores on the reference scorer's scale, those of `names`:
        BLEU, METEOR, ROUGE_L   0..1
        NIST, NIST_perl         0 upwards (the two length penalties of metrics/nist.py)
        CIDEr                   0..10, and 0 for a single segment, which has no document frequencies
        TER                     0 upwards, lower is better
    METEOR is absent when its tables are not installed; `unavailable()` then says why.
    With details=True the corpus scores have DETAILS too, the dict of `bleu.details`.

    With per_segment=True returns {"corpus": those scores, "segments": [N dicts with SEGMENT_KEYS, those of `names`]}:
    BLEU and NIST of the segment scored as a corpus of one, sentBLEU the smoothed BLEU, and for METEOR, ROUGE_L,
    CIDEr and TER the segment's own score.

    Raises ValueError for no hypotheses, lists of different lengths, a segment without references, what is not a list of
    strings, or an unknown name.
    """
    check(hypotheses, references)
    names = (names,) if isinstance(names, str) else names
    if unknown := set(names) - set(ALL_KEYS):
        raise ValueError(f"no score is called {', '.join(sorted(unknown))}; there are {', '.join(ALL_KEYS)}")
    corpus, columns = {}, {}
    with without_garbage_collector():
        if {"BLEU", "NIST", "NIST_perl"} & set(names):
            corpus, columns = score_words(hypotheses, references, per_segment)
            beside = {DETAILS: corpus.pop(DETAILS)}
        if {"METEOR", "ROUGE_L", "CIDEr"} & set(names):
            hypotheses_tokens, references_tokens = ptb_tokens(hypotheses, references)
        if "METEOR" in names and not unavailable():
            corpus["METEOR"], columns["METEOR"] = meteor.meteor(
                [" ".join(tokens) for tokens in hypotheses_tokens],
                [[" ".join(tokens) for tokens in segment_references] for segment_references in references_tokens],
            )
        if "ROUGE_L" in names:
            corpus["ROUGE_L"], columns["ROUGE_L"] = rouge.rouge_l(hypotheses_tokens, references_tokens)
        if "CIDEr" in names:
            corpus["CIDEr"], columns["CIDEr"] = cider.cider(hypotheses_tokens, references_tokens)
        if "TER" in names:
            corpus["TER"], columns["TER"] = ter.ter(
                [ter.tokenize(text) for text in hypotheses],
                [[ter.tokenize(text) for text in segment_references] for segment_references in references],
            )
    corpus = {key: value for key, value in corpus.items() if key in names}
    if details and "BLEU" in names:
        corpus |= beside
    if not per_segment:
        return corpus
    wanted = [key for key in columns if key in names or (key == "sentBLEU" and "BLEU" in names)]
    return {"corpus": corpus, "segments": [dict(zip(wanted, row)) for row in zip(*(columns[key] for key in wanted))]}


def unavailable() -> dict[str, str]:
    """Each score that cannot be computed, with one line that says why and what to do; {} if all can."""
    reason = meteor.available()
    return {} if reason is None else {"METEOR": reason}


def signature(names: tuple[str, ...] = CORPUS_KEYS, references: list[list[str]] | None = None) -> str:
    """One line that states how the scores are computed, to print with them; TER's part only if it is in `names`.

    references  those of the test set: adds `nrefs`, the number for each hypothesis, as in sacrebleu's signature
    """
    meteor_modules = "unavailable" if unavailable() else "1.5,en,norm,exact+stem+synonym+paraphrase"
    ter_part = ("TER:tercom,lc,nonorm,punct",) if "TER" in names else ()
    return "|".join(
        (
            f"scorer:{VERSION}",
            "BLEU:13a,lc,closest,nosmooth",
            "NIST:13a,lc,n5,python-penalty",
            "NIST_perl:13a,lc-ascii,n5,perl-penalty",
            "tok:ptb-3.4.1,lc,nopunct",
            f"METEOR:{meteor_modules}",
            "ROUGE_L:beta1.2",
            "CIDEr:n4,sigma6",
            *ter_part,
            *(() if references is None else (nrefs(references),)),
        )
    )


def nrefs(references: list[list[str]]) -> str:
    """`nrefs:5`, or `nrefs:var` if the segments have different numbers of references."""
    numbers = {len(texts) for texts in references}
    return f"nrefs:{numbers.pop() if len(numbers) == 1 else 'var'}"


def without_nrefs(signature: str) -> str:
    """The part of a signature that names the scorer and no data: what results/ records."""
    return signature.partition("|nrefs:")[0]


def check(hypotheses: list[str], references: list[list[str]]) -> None:
    """Raise ValueError unless there is a list of strings, and for each a list of one or more strings."""
    if isinstance(hypotheses, str):
        raise ValueError("the hypotheses are a string; give a list of strings, even for one hypothesis")
    if not hypotheses:
        raise ValueError("there are no hypotheses to score")
    if len(hypotheses) != len(references):
        raise ValueError(
            f"{len(hypotheses)} hypotheses but {len(references)} reference lists; each hypothesis needs one list"
        )
    for index, segment_references in enumerate(references):
        # A bare string is the most likely mistake; it would be scored as a list of letters.
        if isinstance(segment_references, str):
            raise ValueError(f"references[{index}] is a string; give a list of strings, even for one reference")
        if not isinstance(segment_references, Sequence):  # a generator would be used up by the first score
            raise ValueError(f"references[{index}] is not a list; give a list of strings for each hypothesis")
        if not segment_references:
            raise ValueError(f"references[{index}] is empty; each hypothesis needs at least one reference")
        for text in (hypotheses[index], *segment_references):
            if not isinstance(text, str):
                raise ValueError(f"segment {index} holds {text!r}, which is not a string")


def score_words(hypotheses: list[str], references: list[list[str]], per_segment: bool) -> tuple[dict, dict]:
    """BLEU and NIST: (the corpus scores and DETAILS, {key: one value per segment}).

    The second is empty unless per_segment.
    """
    segments = word_segments(hypotheses, references)
    perl_segments = as_perl(segments, hypotheses, references)
    counts = nist.reference_counts(segments)
    corpus = {
        "BLEU": bleu.bleu(segments),
        "NIST": nist.nist(segments, "python", counts),
        "NIST_perl": nist.nist(perl_segments, "perl", counts if perl_segments == segments else None),
        DETAILS: bleu.details(segments),
    }
    columns = {}
    if per_segment:
        columns["BLEU"] = [bleu.bleu([segment]) for segment in segments]
        columns["sentBLEU"] = [bleu.bleu([segment], smoothing=1.0) for segment in segments]
        columns["NIST"] = [nist.nist([segment]) for segment in segments]
    return corpus, columns


def word_segments(hypotheses: list[str], references: list[list[str]]) -> list[ngrams.Segment]:
    """The segments counted on mteval's tokens, for BLEU and NIST."""
    return [
        ngrams.segment(mteval.tokenize(hypothesis), [mteval.tokenize(reference) for reference in segment_references])
        for hypothesis, segment_references in zip(hypotheses, references)
    ]


def ptb_tokens(hypotheses: list[str], references: list[list[str]]) -> tuple[list[list[str]], list[list[list[str]]]]:
    """Tokens for METEOR, ROUGE-L and CIDEr: (of each hypothesis, of each reference of each segment)."""
    # As in the reference scorer, all hypotheses are tokenised as one text and all references as another: a few of
    # the tokeniser's rules look past the end of a line.
    flat = [text for segment_references in references for text in segment_references]
    hypotheses_tokens = [ptb.without_punctuation(tokens) for tokens in ptb.tokenize_lines(hypotheses)]
    reference_tokens = iter([ptb.without_punctuation(tokens) for tokens in ptb.tokenize_lines(flat)])
    return hypotheses_tokens, [[next(reference_tokens) for _ in texts] for texts in references]


def as_perl(segments: list[ngrams.Segment], hypotheses: list[str], references: list[list[str]]) -> list[ngrams.Segment]:
    """The segments counted on the Perl script's tokens, which differ only in texts with capitals like É."""
    perl_segments = []
    for segment, hypothesis, segment_references in zip(segments, hypotheses, references):
        if not all(mteval.tokenizers_agree(text) for text in [hypothesis, *segment_references]):
            reference_tokens = [mteval.tokenize_perl(reference) for reference in segment_references]
            segment = ngrams.segment(mteval.tokenize_perl(hypothesis), reference_tokens)
        perl_segments.append(segment)
    return perl_segments


@contextmanager
def without_garbage_collector():
    """Switch Python's cyclic garbage collector off inside a `with` block.

    Scoring makes millions of small tuples, none of them in a cycle. Walking them again and again costs a tenth of
    the time and frees nothing.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
