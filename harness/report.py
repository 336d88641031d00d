"""The printed table of scores: our rows, and beside them those that others report on the same references."""

import hashlib

import metrics

# Scores that others report on E2E's test set, with the paper's tokenised references. The paper's NIST is that of the
# scorer's Python variant, the poster's that of the Perl one (metrics/nist.py).
PAPER = ("BLEU", "NIST", "METEOR", "ROUGE_L", "CIDEr")
POSTER = ("BLEU", "NIST_perl", "METEOR", "ROUGE_L", "CIDEr")
PUBLISHED = {
    "GPT-2 medium, fine-tune (Li & Liang 2021)": dict(zip(PAPER, (68.8, 8.71, 46.1, 71.1, 2.43))),
    "GPT-2 medium, prefix 0.1 % (Li & Liang 2021)": dict(zip(PAPER, (70.3, 8.82, 46.3, 72.1, 2.46))),
    "GPT-2 large, prefix (Li & Liang 2021)": dict(zip(PAPER, (70.3, 8.85, 46.2, 71.7, 2.47))),
    "previous best (Shen et al. 2019)": dict(zip(PAPER, (68.6, 8.70, 45.3, 70.8, 2.37))),
    "poster, prefix 0.1 %": dict(zip(POSTER, (68.5, 8.71, 44.3, 70.4, 2.34))),
    "poster, fine-tune": dict(zip(POSTER, (70.3, 8.94, 46.2, 72.2, 2.47))),
}
E2E_REFERENCES = "ec54a9ebca59cd3403c7dddb170771920ff3e93dce66922c761726677c2871a1"  # fingerprint of these references
COLUMNS = ("BLEU", "NIST", "NIST_perl", "METEOR", "ROUGE_L", "CIDEr")
PERCENT = ("BLEU", "METEOR", "ROUGE_L", "TER", "precision", "recall", "F1", "exact")  # papers print these times 100


def published_for(references: list[list[str]]) -> dict[str, dict[str, float]]:
    """The rows of PUBLISHED if these are the references that they were scored against, else none."""
    text = "\n\n".join("\n".join(sentence.strip() for sentence in group) for group in references)
    return PUBLISHED if hashlib.sha256(text.encode()).hexdigest() == E2E_REFERENCES else {}


def print_table(
    rows: dict[str, dict[str, float]],
    references: str,
    published: dict[str, dict[str, float]],
    signature: str | None = None,
) -> None:
    """Our rows, then the published ones. A score that could not be computed is a dash, with the reason below.

    rows       name -> scores, with metrics.DETAILS for the line about BLEU's lengths
    signature  how the scores were computed, by default those of metrics.score
    """
    width = max(len(name) for name in (*rows, *published))
    columns = columns_of(rows)
    print("\n" + " " * width + "".join(f"{column:>11}" for column in columns))
    for name, scores in rows.items():
        print(format_row(name, {key: scaled(key, scores[key]) for key in columns if key in scores}, columns, width, 2))
    for name, scores in published.items():
        print(format_row(name, scores, columns, width, digits=None))
    note = "; the published rows: E2E's test set, the paper's tokenised references" if published else ""
    print()
    for name, scores in rows.items():
        if metrics.DETAILS in scores:
            print((f"{name}: " if len(rows) > 1 else "") + describe_details(scores[metrics.DETAILS]))
    print(f"references: {references}{note}")
    print(f"signature: {signature or metrics.signature()}")
    for name, reason in metrics.unavailable().items():
        if name in columns:
            print(f"{name} is not available: {reason}")


def scaled(key: str, value: float) -> float:
    """A score on the scale that papers print."""
    return 100 * value if key in PERCENT else value


def describe_details(details: dict[str, float]) -> str:
    """One line about what BLEU depends on besides the matches."""
    fewest, most = details["fewest_references"], details["most_references"]
    return (
        f"BLEU's brevity penalty: {details['brevity_penalty']:.3f} (outputs {details['hypothesis_length']:,} words, "
        f"closest references {details['reference_length']:,}); references of an output: {fewest}"
        + (f" to {most}" if most > fewest else "")
    )


def columns_of(rows: dict[str, dict[str, float]]) -> tuple[str, ...]:
    """Which scores are printed: the five, and those that the rows have besides; without BLEU, the rows' own."""
    keys = (key for scores in rows.values() for key in scores if key != metrics.DETAILS)
    found = tuple(dict.fromkeys(keys))
    return (*COLUMNS, *(key for key in found if key not in COLUMNS)) if "BLEU" in found else found


def format_row(name: str, scores: dict[str, float], columns: tuple[str, ...], width: int, digits: int | None) -> str:
    """One line of the table; published numbers keep their digits."""
    cells = []
    for column in columns:
        value = scores.get(column)
        places = digits if digits is not None else (1 if column in PERCENT else 2)
        cells.append(f"{'-':>11}" if value is None else f"{value:>11.{places}f}")
    return f"{name:<{width}}" + "".join(cells)
