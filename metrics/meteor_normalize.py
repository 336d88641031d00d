"""METEOR 1.5's English tokeniser (the jar's `-norm`), applied to every text before comparison.

Source: Denkowski and Lavie 2014, "Meteor Universal", section 2 ("text normalization"): the Moses
tokeniser, plus rules that give outputs the same words if they differ only in punctuation style. In this order:

    1  every character other than letters, digits, . ' ` , - and the single quotes is a word
    2  a run of dots ("...") is one word
    3  a comma is a word, unless it is between two digits (3,000)
    4  the quotes ` ‘ ’ become ', and “ ” '' become "; the dashes – and -- become -
    5  a hyphen between letters or digits becomes a space: "family-friendly" is two words
    6  apostrophes: "don't" -> "don 't", "1990's" -> "1990 's", "dogs' " -> "dogs ' "
    7  the dot at a word's end is a word, except that
           U.S.   (letters with dots inside) loses its dots: "US"
           Dr.    (a listed abbreviation) keeps it, as does any word followed by a lower-case letter
           No. 5  (listed with #NUMERIC_ONLY#) keeps it before a digit

Then the text is lower-cased and split at spaces.

Worked example: "U.S. prices, 'n' so on... cost 3,000." Rule 2 separates "...", rule 3 the comma after
"prices" but not the one in 3,000; rule 6 separates the quotes around n; rule 7 makes "US" and splits "000.":

>>> tokenize("U.S. prices, 'n' so on... cost 3,000.", {})
['us', 'prices', ',', "'", 'n', "'", 'so', 'on', '...', 'cost', '3,000', '.']

Behaviour of the jar beyond these rules, reproduced here:
* "Letters" are those of Western Europe and Cyrillic; any other letter (Greek, Chinese) is a word by rule 1.
* Each substitution runs once, from left to right, and does not use a character as context twice:
  in "a,b,c" only the first comma is split off, and "x-y-z" becomes "x y-z".
* "--" becomes "-", so "---" becomes "--".
* Control characters are words, except at both ends of the line, where they are dropped.
* In a text that contains DOTMULTI, the marker for protected dots, it becomes a dot.

Left out: the jar's other languages, and its option to drop punctuation. Two differences remain. Capitals that
only the newer of the two Unicode tables has, Java's or Python's, are lower-cased in that language only. And
DOTMULTI in the text followed by dots is spaced differently.
"""

import re

ANY, BEFORE_DIGIT = "any", "before digit"  # when an abbreviation keeps its dot

LETTERS = (
    "A-Za-zŠŽšžŸ\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u017e"  # Western Europe
    "\u0400-\u0527\ua640-\ua66e\ua67e-\ua697\u1d00-\u1d7f"  # Cyrillic, and phonetic signs
)
_LETTER, _NO_LETTER = f"[{LETTERS}]", f"[^{LETTERS}]"
WORD = f"[0-9{LETTERS}]"
_DIGIT, _NO_DIGIT = "[0-9]", "[^0-9]"

# Text that needs only splitting at spaces: no rule changes letters, digits and spaces. Most tokenised text is plain.
PLAIN = re.compile(r"[a-z0-9 ]*")

OTHER = re.compile(f"([^0-9{LETTERS} \t\n\x0b\f\r.'`,\u2018\u2019-])")  # rule 1
DOTS = re.compile(r"\.(\.+)")  # rule 2
DOT_MARK = re.compile("((?:DOT)*)DOTMULTI")
COMMAS = [  # rule 3, in this order
    re.compile(f"({before}),({after})")
    for before, after in [(_NO_DIGIT, _NO_DIGIT), (_DIGIT, _NO_DIGIT), (_NO_DIGIT, _DIGIT)]
]
SINGLE_QUOTES = re.compile("[`\u2018\u2019]")  # rule 4
DOUBLE_QUOTES = re.compile("[\u201c\u201d]|''")
HYPHEN = re.compile(f"([0-9.{LETTERS}])-({WORD})")  # rule 5
APOSTROPHES = [  # rule 6, in this order
    (re.compile(f"({_NO_LETTER})'({_NO_LETTER})"), r"\1 ' \2"),
    (re.compile(f"([^0-9{LETTERS}])'({_LETTER})"), r"\1 ' \2"),
    (re.compile(f"({_LETTER})'({_NO_LETTER})"), r"\1 ' \2"),
    (re.compile(f"({_LETTER})'({_LETTER})"), r"\1 '\2"),
    (re.compile(f"({_DIGIT})'(s)"), r"\1 '\2"),
]
HAS_LETTER = re.compile(_LETTER)
JAVA_SPACE = re.compile(
    "[ \t\n\r\f]+"
)  # where Java's StringTokenizer splits; Python's split() splits at more characters
UNICODE_SPACE = re.compile("[ \u00a0\u2000-\u200a\u202f\u205f\u3000]+")
TRIMMED = "".join(map(chr, range(0x21)))  # what Java's trim() removes at both ends


def tokenize(text: str, abbreviations: dict[str, str]) -> list[str]:
    """The words METEOR compares.

    text: any Unicode. abbreviations: word without its dot -> ANY or BEFORE_DIGIT
    (metrics/meteor_tables.py reads them from the jar's nonbreaking/english.prefixes).
    """
    if PLAIN.fullmatch(text):
        return text.split()
    return [word for word in JAVA_SPACE.split(normalize(text, abbreviations).lower()) if word]


def normalize(text: str, abbreviations: dict[str, str]) -> str:
    text = f" {text} "  # so that every character has a neighbour on both sides
    text = OTHER.sub(r" \1 ", text)
    # "..." becomes "DOTDOTDOTMULTI", one DOT for each dot after the first. It ends in no dot, so rule 7 keeps it.
    text = DOTS.sub(lambda dots: f" {'DOT' * len(dots[1])}DOTMULTI ", text)
    for pattern in COMMAS:
        text = pattern.sub(r"\1 , \2", text)
    text = SINGLE_QUOTES.sub("'", text)
    text = DOUBLE_QUOTES.sub(' " ', text)
    text = text.replace("\u2013", "-").replace("--", "-")
    text = HYPHEN.sub(r"\1 \2", text)
    for pattern, replacement in APOSTROPHES:
        text = pattern.sub(replacement, text)
    words = [word for word in JAVA_SPACE.split(text) if word]
    text = " ".join(final_dot(word, following, abbreviations) for word, following in zip(words, [*words[1:], ""]))
    text = DOT_MARK.sub(lambda mark: "." * (len(mark[1]) // 3 + 1), text)
    return UNICODE_SPACE.sub(" ", text).strip(TRIMMED)


def final_dot(word: str, following: str, abbreviations: dict[str, str]) -> str:
    """Rule 7: `word` with its final dot kept, split off as " .", or dropped together with all other dots."""
    if len(word) < 2 or not word.endswith("."):
        return word
    rest = word[:-1]
    if "." in rest and HAS_LETTER.search(rest):
        return word.replace(".", "")
    kind, first = abbreviations.get(rest), following[:1]
    # A lower-case letter after it shows that no sentence ends here ("Inc. said"), listed or not.
    if kind == ANY or "a" <= first <= "z" or (kind == BEFORE_DIGIT and "0" <= first <= "9"):
        return word
    return f"{rest} ."
