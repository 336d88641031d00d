"""Snowball's English stemmer ("Porter2"), in the edition inside meteor-1.5.jar.

Source: M. F. Porter, "Snowball: A language for stemming algorithms" (2001), the English stemmer.
METEOR counts two different words with the same stem as a match (metrics/meteor_match.py).

A suffix is removed only if enough of the word is left before it. Two regions measure that:

    R1 = what follows the first consonant after a vowel;  R2 = the same rule applied again inside R1

                b e a u t i f u l
                          |-------|   R1 = "iful"
                              |---|   R2 = "ul"

Vowels are a e i o u y; a y at the start of a word or after a vowel is a consonant and is written Y
while the steps run. Each step finds the *longest* of its suffixes that the word ends in, and
then checks that suffix's condition. If the condition fails, the step does nothing: shorter suffixes
are not tried.

Worked example: "nationally". R1 starts after "nat" ("ionally"), R2 after "nation" ("ally").
Step 1c writes the y as i ("nationalli"); step 2 finds "alli" in R1 and replaces it by "al" ("national");
step 3's "tional" does not begin in R1; step 4 finds "al" in R2 and removes it: "nation".

>>> stem("nationally"), stem("restaurants"), stem("dying"), stem("fluently")
('nation', 'restaur', 'die', 'fluentli')

Where the jar's edition (about 2010) differs from today's Snowball:
* the words that shift R1 are gener-, commun- and arsen- only;
* there is no suffix -ogist in step 2, and no special past tense ("-eed" aside) in step 1b;
* a word is "short" at the end of step 1b if the cut is exactly at the R1 that was determined
  *before* anything was cut. A word whose R1 was empty never counts as short.

Left out: other languages, and upper case (METEOR lower-cases first).
"""

from functools import lru_cache

VOWELS = frozenset("aeiouy")
AFTER_LI = frozenset("cdeghkmnrt")  # the letters that "-li" may follow in step 2

IRREGULAR = {
    "skis": "ski", "skies": "sky", "dying": "die", "lying": "lie", "tying": "tie",
    "idly": "idl", "gently": "gentl", "ugly": "ugli", "early": "earli", "only": "onli", "singly": "singl",
}  # fmt: skip
UNCHANGED = frozenset("sky news howe atlas cosmos bias andes".split())
DONE_AFTER_STEP_1A = frozenset("inning outing canning herring earring proceed exceed succeed".split())
R1_AFTER = ("gener", "commun", "arsen")  # R1 starts right after these beginnings

# Suffix -> replacement.
STEP_2 = {
    "tional": "tion", "enci": "ence", "anci": "ance", "abli": "able", "entli": "ent",
    "izer": "ize", "ization": "ize", "ational": "ate", "ation": "ate", "ator": "ate",
    "alism": "al", "aliti": "al", "alli": "al", "fulness": "ful", "fulli": "ful",
    "ousli": "ous", "ousness": "ous", "iveness": "ive", "iviti": "ive", "biliti": "ble", "bli": "ble",
    "lessli": "less", "ogi": "og", "li": "",
}  # fmt: skip
STEP_3 = {
    "tional": "tion", "ational": "ate", "alize": "al", "icate": "ic", "iciti": "ic", "ical": "ic",
    "ful": "", "ness": "", "ative": "",
}  # fmt: skip
STEP_4 = dict.fromkeys("al ance ence er ic able ible ant ement ment ent ism ate iti ous ive ize ion".split(), "")


@lru_cache(maxsize=1 << 17)
def stem(word: str) -> str:
    """The stem of one lower-case word. Any Unicode; letters outside a-z count as consonants."""
    if word in IRREGULAR:
        return IRREGULAR[word]
    if word in UNCHANGED or len(word) < 3:
        return word
    word = mark_consonant_y(word.removeprefix("'"))
    r1, r2 = regions(word)
    word = step_1a(word)
    if word not in DONE_AFTER_STEP_1A:
        word = step_1b(word, r1)
        word = step_1c(word)
        word = step_2(word, r1)
        word = step_3(word, r1, r2)
        word = step_4(word, r2)
        word = step_5(word, r1, r2)
    return word.replace("Y", "y")


def mark_consonant_y(word: str) -> str:
    letters = list(word)
    for index, letter in enumerate(letters):
        # The letter before has been rewritten already: in "yy" the second y is a vowel.
        if letter == "y" and (index == 0 or letters[index - 1] in VOWELS):
            letters[index] = "Y"
    return "".join(letters)


def regions(word: str) -> tuple[int, int]:
    """The indices where R1 and R2 start; len(word) for an empty region."""
    for beginning in R1_AFTER:
        if word.startswith(beginning):
            r1 = len(beginning)
            break
    else:
        r1 = after_vowel_consonant(word, 0)
    return r1, after_vowel_consonant(word, r1)


def after_vowel_consonant(word: str, start: int) -> int:
    """Index after the first consonant that follows a vowel, from `start` on; len(word) if there is none."""
    seen_vowel = False
    for index in range(start, len(word)):
        if word[index] in VOWELS:
            seen_vowel = True
        elif seen_vowel:
            return index + 1
    return len(word)


def longest_suffix(word: str, suffixes) -> str:
    for length in range(min(len(word), 7), 0, -1):  # no suffix is longer than 7 letters
        if word[-length:] in suffixes:
            return word[-length:]
    return ""


def has_vowel(text: str) -> bool:
    return not VOWELS.isdisjoint(text)


def ends_in_short_syllable(text: str) -> bool:
    """consonant-vowel-consonant at the end (the last not w, x, Y), or vowel-consonant as the whole text."""
    if len(text) >= 3:
        before, vowel, after = text[-3:]
        if before not in VOWELS and vowel in VOWELS and after not in VOWELS and after not in "wxY":
            return True
    return len(text) == 2 and text[0] in VOWELS and text[1] not in VOWELS


def step_1a(word: str) -> str:
    """Possessive 's, then plurals: "ponies" -> "poni", "ties" -> "tie", "caresses" -> "caress"."""
    for suffix in ("'s'", "'s", "'"):
        if word.endswith(suffix):
            word = word[: -len(suffix)]
            break
    if word.endswith("sses"):
        return word[:-2]
    if word.endswith(("ies", "ied")):
        return word[:-2] if len(word) > 4 else word[:-1]
    if word.endswith("s") and not word.endswith(("us", "ss")) and has_vowel(word[:-2]):
        return word[:-1]  # [:-2] above: a vowel right before the s does not count, so "gas" stays
    return word


def step_1b(word: str, r1: int) -> str:
    """-ed and -ing: "agreed" -> "agree", "hoping" -> "hope", "hopping" -> "hop"."""
    suffix = longest_suffix(word, ("eed", "eedly", "ed", "edly", "ing", "ingly"))
    if not suffix:
        return word
    rest = word[: -len(suffix)]
    if suffix.startswith("eed"):
        return rest + "ee" if len(rest) >= r1 else word
    if not has_vowel(rest):
        return word
    if rest.endswith(("at", "bl", "iz")):
        return rest + "e"
    if rest.endswith(("bb", "dd", "ff", "gg", "mm", "nn", "pp", "rr", "tt")):
        return rest[:-1]
    if len(rest) == r1 and ends_in_short_syllable(rest):
        return rest + "e"
    return rest


def step_1c(word: str) -> str:
    """y after a consonant that does not begin the word: "happy" -> "happi", but "by" and "say" stay."""
    if len(word) > 2 and word[-1] in "yY" and word[-2] not in VOWELS:
        return word[:-1] + "i"
    return word


def step_2(word: str, r1: int) -> str:
    """Long derivations to shorter ones: "vietnamization" -> "vietnamize", "conformably" -> "conformable"."""
    suffix = longest_suffix(word, STEP_2)
    rest = word[: len(word) - len(suffix)]
    if not suffix or len(rest) < r1:
        return word
    if suffix == "ogi" and not rest.endswith("l"):
        return word
    if suffix == "li" and rest[-1:] not in AFTER_LI:
        return word
    return rest + STEP_2[suffix]


def step_3(word: str, r1: int, r2: int) -> str:
    """ "electrical" -> "electric", "goodness" -> "good"; -ative only in R2."""
    suffix = longest_suffix(word, STEP_3)
    rest = word[: len(word) - len(suffix)]
    if not suffix or len(rest) < (r2 if suffix == "ative" else r1):
        return word
    return rest + STEP_3[suffix]


def step_4(word: str, r2: int) -> str:
    """The rest of a derivation, in R2 only: "replacement" -> "replac", "adoption" -> "adopt"."""
    suffix = longest_suffix(word, STEP_4)
    rest = word[: len(word) - len(suffix)]
    if not suffix or len(rest) < r2:
        return word
    if suffix == "ion" and not rest.endswith(("s", "t")):
        return word
    return rest


def step_5(word: str, r1: int, r2: int) -> str:
    """A final e, unless a short syllable needs it ("hope"), and the second of two final l."""
    rest = word[:-1]
    if word.endswith("e") and (len(rest) >= r2 or (len(rest) >= r1 and not ends_in_short_syllable(rest))):
        return rest
    if word.endswith("ll") and len(rest) >= r2:
        return rest
    return word
