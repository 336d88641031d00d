"""The tokeniser of NIST's mteval-v13a.pl, which BLEU and NIST stand on.

It is the one sacrebleu calls "13a": a few SGML entities are undone, ASCII
punctuation is split off, and a full stop or comma stays inside a number.
Non-ASCII characters are never split ("£20" is one token, "$20" two), a rule from
a time when text came as bytes.

Two programs use it with small differences, and both have written numbers into papers:

* the Python port (pymteval, `measure_scores.py -p`), which lower-cases by Unicode: `tokenize`;
* the Perl script (`measure_scores.py`), which lower-cases A-Z only, so that
  "É" and "é" stay apart, and never sees a line break: `tokenize_perl`.

Left out: mteval's `--international-tokenization`, its `-e` switch (a space round
every non-ASCII character), and the SGML files around the text.

Worked example:

>>> tokenize('Prices start at $10.50, &quot;cheap&quot; (5-star)...')
['prices', 'start', 'at', '$', '10.50', ',', '"', 'cheap', '"', '(', '5', '-', 'star', ')', '.', '.', '.']
>>> tokenize('Family-friendly? £20-25.')
['family-friendly', '?', '£20', '-', '25', '.']
>>> tokenize_perl('CAFÉ'), tokenize('CAFÉ')
(['cafÉ'], ['café'])
"""

import re
import sys

# Undone in this order, so "&amp;lt;" becomes "<", as in both programs. "&apos;" and
# numeric entities are not in the list and stay as they are.
ENTITIES = (("&quot;", '"'), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">"))

RULES = (
    # Every ASCII symbol stands alone, save the four that may belong to a word or a number:
    # the apostrophe (don't), the hyphen (family-friendly), the full stop and the comma (1,000.50).
    (re.compile(r"([!-&(-+:-@\[-`{-~/])"), r" \1 "),
    # A full stop or comma is split off unless a digit stands before it ...
    (re.compile(r"([^0-9])([.,])"), r"\1 \2 "),
    # ... and once more unless a digit follows it: only "3.5" keeps its point. The two passes
    # do not overlap with themselves, so "..", where the first pass has eaten the neighbour, needs the second.
    (re.compile(r"([.,])([^0-9])"), r" \1 \2"),
    # A hyphen after a digit is a range or a compound number: "20-25", "5-star".
    (re.compile(r"([0-9])(-)"), r"\1 \2 "),
)

# Perl's \s, which Python's str.split() exceeds by the four separators U+001C to U+001F.
PERL_SPACE = re.compile("[\t\n\v\f\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+")
ASCII_LOWER = str.maketrans("ABCDEFGHIJKLMNOPQRSTUVWXYZ", "abcdefghijklmnopqrstuvwxyz")


def _split_punctuation(text: str) -> str:
    """The part both programs share: entities, then the four rules; words end up apart by spaces."""
    if "&" in text:
        for entity, character in ENTITIES:
            text = text.replace(entity, character)
    text = f" {text} "  # the rules look at a neighbour on each side; now the first and last word have one
    for pattern, replacement in RULES:
        text = pattern.sub(replacement, text)
    return text


def tokenize(text: str) -> list[str]:
    """Lower-cased 13a tokens of one text, as the reference's Python scorer makes them.

    Any string is accepted; an empty or blank one has no tokens. (The Python reference
    gives it one empty token; the Perl script and sacrebleu give none, and so do we.)
    """
    text = text.replace("<skipped>", "")  # the mark human translators left where they gave up
    text = text.replace("-\n", "").replace("\n", " ")  # undo end-of-line hyphenation, join lines
    # Lower-casing comes last, as there: a few capitals change when their neighbours do (the final sigma).
    words = _split_punctuation(text).lower().split()
    return list(map(sys.intern, words))  # equal words are now one object, which makes comparing n-grams faster


def tokenize_perl(text: str) -> list[str]:
    """Lower-cased 13a tokens of one text, as the reference's Perl scorer makes them (see the file's head)."""
    text = PERL_SPACE.sub(" ", text)  # the SGML reader has joined the lines before the tokeniser runs
    text = text.replace("<skipped>", "").translate(ASCII_LOWER)
    return [token for token in PERL_SPACE.split(_split_punctuation(text)) if token]


def tokenizers_agree(text: str) -> bool:
    """True only where the two tokenisers give the same tokens; where False, they may differ."""
    return text.isprintable() and text.lower() == text.translate(ASCII_LOWER)
