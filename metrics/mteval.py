"""The tokeniser of NIST's mteval-v13a.pl, used for BLEU and NIST.

It is the one sacrebleu calls "13a": a few SGML entities are decoded, ASCII
punctuation is split off, and a full stop or comma stays inside a number.
Non-ASCII characters are never split off ("£20" is one token, "$20" two), a rule from
the time when text was bytes.

Two programs use it with small differences, and papers report numbers of both:

* the Python port (pymteval, `measure_scores.py -p`), which lower-cases all of Unicode: `tokenize`;
* the Perl script (`measure_scores.py`), which lower-cases A-Z only, so that
  "É" and "é" stay different, and never sees a line break: `tokenize_perl`.

Left out: mteval's `--international-tokenization`, its `-e` switch (a space around
every non-ASCII character), and the SGML files that contain the text.

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

# Decoded in this order, so "&amp;lt;" becomes "<", as in both programs. "&apos;" and
# numeric entities are not in the list and stay as they are.
ENTITIES = (("&quot;", '"'), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">"))

RULES = (
    # Every ASCII symbol is a token, except the four that may belong to a word or a number:
    # the apostrophe (don't), the hyphen (family-friendly), the full stop and the comma (1,000.50).
    (re.compile(r"([!-&(-+:-@\[-`{-~/])"), r" \1 "),
    # A full stop or comma is split off unless it follows a digit ...
    (re.compile(r"([^0-9])([.,])"), r"\1 \2 "),
    # ... and unless a digit follows it: only "3.5" keeps its point. The matches of one pass do not overlap,
    # so in ".." the first pass consumes one stop as the neighbour of the other, and the second pass splits it off.
    (re.compile(r"([.,])([^0-9])"), r" \1 \2"),
    # A hyphen after a digit is a range or a compound number: "20-25", "5-star".
    (re.compile(r"([0-9])(-)"), r"\1 \2 "),
)

# Perl's \s. Python's str.split() also splits at the four separators U+001C to U+001F.
PERL_SPACE = re.compile("[\t\n\v\f\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+")
ASCII_LOWER = str.maketrans("ABCDEFGHIJKLMNOPQRSTUVWXYZ", "abcdefghijklmnopqrstuvwxyz")


def split_punctuation(text: str) -> str:
    """The part both programs share: entities, then the four rules. Tokens are separated by spaces afterwards."""
    if "&" in text:
        for entity, character in ENTITIES:
            text = text.replace(entity, character)
    text = f" {text} "  # the rules need a neighbour on each side, for the first and the last character too
    for pattern, replacement in RULES:
        text = pattern.sub(replacement, text)
    return text


def tokenize(text: str) -> list[str]:
    """Lower-cased 13a tokens of one text, as the reference's Python scorer makes them.

    Any string is accepted; an empty or blank one has no tokens, as in the Perl script and sacrebleu
    (the Python reference returns one empty token).
    """
    text = text.replace("<skipped>", "")  # human translators marked what they did not translate
    text = text.replace("-\n", "").replace("\n", " ")  # undo end-of-line hyphenation, join lines
    # Lower-casing comes last, as in the reference: a capital sigma's lower case depends on its neighbours.
    words = split_punctuation(text).lower().split()
    return list(map(sys.intern, words))  # equal words become one object, so n-grams compare faster


def tokenize_perl(text: str) -> list[str]:
    """Lower-cased 13a tokens of one text, as the reference's Perl scorer makes them (see the module docstring)."""
    text = PERL_SPACE.sub(" ", text)  # the SGML reader joins the lines before the tokeniser runs
    text = text.replace("<skipped>", "").translate(ASCII_LOWER)
    return [token for token in PERL_SPACE.split(split_punctuation(text)) if token]


def tokenizers_agree(text: str) -> bool:
    """True only if the two tokenisers give the same tokens; if False, they may differ."""
    return text.isprintable() and text.lower() == text.translate(ASCII_LOWER)
