"""TER, the translation edit rate (Snover et al. 2006, "A Study of Translation Edit Rate with Targeted Human
Annotation").

    TER = edits / average reference length

    edits      the fewest insertions, deletions, substitutions and shifts of words that turn the hypothesis into one
               of the references; of several references, the one with the fewest edits counts
    a shift    moves a block of words that also occurs in the reference to another place, at the cost of one edit
    corpus     the edits of all segments / the average reference lengths of all segments

0 is best, and a bad hypothesis can exceed 1. To find the fewest edits is NP-hard with shifts, so the score is defined
by a greedy search: apply the shift that reduces the edit distance most until none reduces it; then
edits = shifts + edit distance. A block may be shifted if

    * it equals a block of the reference, at most MAX_SHIFT_DISTANCE words away, and has at most MAX_SHIFT_SIZE words;
    * some of its words are errors in the current alignment, and so are some of the words it equals;
    * it goes to where the alignment has the words it equals, or after one of these words.

Of equally good shifts the longest is taken, then the leftmost block, then the leftmost goal. Like the program tercom,
the edit distance looks at BEAM_WIDTH cells on each side of the diagonal only, and the search ends after MAX_CANDIDATES
shifts have been tried. All limits are tercom's, and the numbers equal sacrebleu's.

The words are what lies between blanks, in lower case: the default of tercom and sacrebleu ("norm:no|punct:yes|lc"), in
which "Ohio." and "Ohio" differ. The options of `tokenize` are tercom's -N (separate punctuation), -P (drop
punctuation) and -s (keep capitals). WebNLG's evaluation ran tercom with its defaults on prepared texts: `as_webnlg`.

Left out: tercom's options for Asian scripts, other costs, and the list of edits.

Worked example. "on the mat the cat sat" against "the cat sat on the mat": the edit distance is 6, but one shift of
"the cat sat" to the front makes the texts equal: 1 edit, 6 words, TER = 1/6.

>>> ter(["on the mat the cat sat".split()], [["the cat sat on the mat".split()]])
(0.16666666666666666, [0.16666666666666666])
"""

import math
import re
from collections import Counter
from itertools import accumulate
from typing import NamedTuple

from metrics.rouge import token_positions

MAX_SHIFT_SIZE = 10  # words
MAX_SHIFT_DISTANCE = 50  # words between the block and the equal block of the reference
MAX_CANDIDATES = 1000  # shifts tried for one pair of texts
BEAM_WIDTH = 25  # cells of the edit distance on each side of the diagonal
INFINITY = 10**9

# ------------------------------------------------------------------------- words

PUNCTUATION = re.compile(r"[.,?:;!\"()]")
ENTITIES = (("&quot;", '"'), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">"))
SEPARATIONS = (
    (re.compile(r"([!-&(-+/:-@\[-`{-~])"), r" \1 "),  # ASCII signs except ' - , .
    (re.compile(r"'s "), r" 's "),
    (re.compile(r"([^0-9])([.,])"), r"\1 \2 "),
    (re.compile(r"([.,])([^0-9])"), r" \1 \2"),
    (re.compile(r"([0-9])(-)"), r"\1 \2 "),
)


def tokenize(text: str, normalized: bool = False, no_punct: bool = False, case_sensitive: bool = False) -> list[str]:
    """The words of a text.

    normalized      separate punctuation from words and decode four SGML entities, as tercom -N
    no_punct        drop punctuation, as tercom -P
    case_sensitive  keep capitals, as tercom -s
    """
    if not case_sensitive:
        text = text.lower()
    if normalized:
        text = separate_punctuation(text)
    if no_punct:
        text = PUNCTUATION.sub("", text)
    return text.split()


def separate_punctuation(text: str) -> str:
    text = text.replace("\n-", "").replace("\n", " ")
    text = f" {text} "  # the rules need a neighbour on each side
    for entity, sign in ENTITIES:
        text = text.replace(entity, sign)
    for pattern, spaced in SEPARATIONS:
        text = pattern.sub(spaced, text)
    return text


def as_webnlg(text: str) -> str:
    """A text as WebNLG 2017's evaluation prepared it for BLEU and TER: each character that is not a letter, a digit or
    "_" stands alone, all in lower case.

    That evaluation also wrote accented letters without accents, and used the first three references of an entry.
    """
    return " ".join(re.sub(r"(\W)", r" \1 ", text).split()).lower()


# ------------------------------------------------------------------------- scores


def ter(hypotheses: list[list[str]], references: list[list[list[str]]]) -> tuple[float, list[float]]:
    """(corpus TER, the TER of each segment), both 0 upwards, lower is better.

    hypotheses  N lists of words, from `tokenize`
    references  N lists of one or more lists of words
    A segment whose references are all empty scores 0 if the hypothesis is empty too, else 1.
    """
    counts = [segment(words, texts) for words, texts in zip(hypotheses, references)]
    total = Edits(sum(count.edits for count in counts), sum(count.reference_length for count in counts))
    return rate(total), [rate(count) for count in counts]


class Edits(NamedTuple):
    """What is counted for a segment, and summed for a corpus."""

    edits: int
    reference_length: float  # words, the average of the references


def rate(count: Edits) -> float:
    if count.reference_length > 0:
        return count.edits / count.reference_length
    return 1.0 if count.edits else 0.0


def segment(hypothesis: list[str], references: list[list[str]]) -> Edits:
    """The fewest edits to one of the references."""
    fewest = INFINITY
    # The likeliest first: the others then often need no search.
    for bound, reference in sorted((fewest_possible(hypothesis, reference), reference) for reference in references):
        if bound < fewest:
            fewest = min(fewest, edits(hypothesis, reference))
    return Edits(fewest, sum(map(len, references)) / len(references))


def fewest_possible(hypothesis: list[str], reference: list[str]) -> int:
    """A lower bound of the edits that no order of the words can beat: the words without a counterpart."""
    shared = (Counter(hypothesis) & Counter(reference)).total()
    return max(len(hypothesis), len(reference)) - shared


def edits(hypothesis: list[str], reference: list[str]) -> int:
    """Shifts + edit distance after the greedy search."""
    words, shifts, tried = list(hypothesis), 0, 0
    bound = fewest_possible(hypothesis, reference)
    while True:
        table = distance_table(words, reference)
        if table.distance <= bound:  # no shift can reduce it
            return shifts + table.distance
        shifted, tried = best_shift(words, reference, table, bound, tried)
        if shifted is None or tried >= MAX_CANDIDATES:
            return shifts + table.distance
        words, shifts = shifted, shifts + 1


# ------------------------------------------------------------------------- edit distance


class BeamTable:
    """D[i][j]: the edit distance from the first i words of the hypothesis to the first j of the reference.

        D[i][j] = min(D[i-1][j-1] + (words differ), D[i-1][j] + 1, D[i][j-1] + 1),    infinite outside the beam

    distance    the last number
    """

    def __init__(self, words: list[str], reference: list[str], above: list[list[int]] = ()):
        """above: the first rows, if they are known."""
        n, m = len(words), len(reference)
        slope = m / n if n else 1.0  # tercom's "diagonal" ends in the last cell
        beam = math.ceil(slope / 2 + BEAM_WIDTH) if slope / 2 > BEAM_WIDTH else BEAM_WIDTH
        self.reference = reference
        self.rows = list(above) or [list(range(m + 1))]
        for i in range(len(self.rows), n + 1):
            word, previous, row = words[i - 1], self.rows[-1], [INFINITY] * (m + 1)
            first = max(0, int(i * slope) - beam)
            last = min(m + 1, int(i * slope) + beam) if i < n else m + 1
            if first == 0:
                row[0] = i
            for j in range(max(first, 1), last):
                kept = previous[j - 1] + (word != reference[j - 1])
                row[j] = min(kept, previous[j] + 1, row[j - 1] + 1)
            self.rows.append(row)
        self.distance = self.rows[-1][-1]

    def cell(self, i: int, j: int) -> int:
        return self.rows[i][j]

    def distance_of(self, words: list[str], same: int) -> int:
        """The distance of other words, of which the first `same` are the same."""
        return BeamTable(words, self.reference, self.rows[: same + 1]).distance


class BitTable:
    """The same table without the beam, in less time. The reference must have a word.

    Neighbouring cells differ by -1, 0 or 1, so two integers hold a row: bit j says whether it steps up, or down, from
    column j to j + 1. A dozen operations on them make the next row (Myers 1999; this form is from Hyyro 2003).
    """

    def __init__(self, words: list[str], reference: list[str]):
        self.length = len(reference)
        self.positions = token_positions(reference)
        everywhere = (1 << self.length) - 1
        self.rows = self.next_rows(words, (everywhere, 0, self.length))
        self.distance = self.rows[-1][2]

    def next_rows(self, words: list[str], row: tuple[int, int, int]) -> list[tuple[int, int, int]]:
        """[(steps up, steps down, last number)] of `row`, and after each word."""
        up, down, distance = row
        rows, positions = [row], self.positions
        everywhere, end = (1 << self.length) - 1, 1 << self.length >> 1
        for word in words:
            equal = positions.get(word, 0)
            free = ((equal & up) + up ^ up) | equal | down  # where D[i][j] = D[i-1][j-1]
            more, less = down | ~(free | up), free & up  # where D[i][j] - D[i-1][j] is 1, -1
            if more & end:
                distance += 1
            elif less & end:
                distance -= 1
            more = more << 1 | 1  # column 0 grows by 1 from row to row
            up, down = (less << 1 | ~(free | more)) & everywhere, free & more & everywhere
            rows.append((up, down, distance))
        return rows

    def cell(self, i: int, j: int) -> int:
        up, down, _distance = self.rows[i]
        left = (1 << j) - 1
        return i + (up & left).bit_count() - (down & left).bit_count()

    def distance_of(self, words: list[str], same: int) -> int:
        """As above."""
        return self.next_rows(words[same:], self.rows[same])[-1][2]


def distance_table(words: list[str], reference: list[str]) -> BeamTable | BitTable:
    """The table within the beam.

    A path that leaves the beam wanders about BEAM_WIDTH columns from the diagonal and back, so it costs at least
    2 BEAM_WIDTH minus the difference in length. If the distance is smaller, the beam changes nothing.
    """
    table = BitTable(words, reference) if reference else None
    if table and table.distance + abs(len(words) - len(reference)) < 2 * BEAM_WIDTH - 2:
        return table
    return BeamTable(words, reference)


# ------------------------------------------------------------------------- alignment


class Alignment(NamedTuple):
    """How the words of the two texts correspond along the cheapest path."""

    partner: list[int]  # for each reference word: its hypothesis word, or the one before the gap (-1: none)
    wrong_hypothesis: list[int]  # errors among the first i words of the hypothesis, i = 0 .. n
    wrong_reference: list[int]  # likewise


def align(words: list[str], reference: list[str], table: BeamTable | BitTable) -> Alignment:
    """Follow the table back from its end. Of equally cheap steps a substitution comes first, then a deletion."""
    i, j, cost = len(words), len(reference), table.distance
    partner, wrong_hypothesis, wrong_reference = [0] * j, [0] * i, [0] * j
    while i or j:
        wrong = int(not (i and j and words[i - 1] == reference[j - 1]))
        if i and j and table.cell(i - 1, j - 1) + wrong == cost:
            i, j = i - 1, j - 1
            partner[j] = i
            wrong_hypothesis[i] = wrong_reference[j] = wrong
        elif i and table.cell(i - 1, j) + 1 == cost:
            i -= 1
            wrong = wrong_hypothesis[i] = 1
        else:
            j -= 1
            partner[j] = i - 1
            wrong = wrong_reference[j] = 1
        cost -= wrong
    return Alignment(
        partner,
        list(accumulate(wrong_hypothesis, initial=0)),
        list(accumulate(wrong_reference, initial=0)),
    )


# ------------------------------------------------------------------------- shifts


def best_shift(words: list[str], reference: list[str], table: BeamTable | BitTable, bound: int, tried: int):
    """(the words after the shift that reduces the distance most, or None; the shifts tried so far)."""
    aligned = align(words, reference, table)
    best, shifted = (0,), None  # (reduction, length, -start, -goal): a larger tuple is a better shift
    for start, at, length in equal_blocks(words, reference):
        if aligned.wrong_hypothesis[start + length] == aligned.wrong_hypothesis[start]:
            continue
        if aligned.wrong_reference[at + length] == aligned.wrong_reference[at]:
            continue
        if start <= aligned.partner[at] < start + length:  # the goal lies inside the block
            continue
        goals = [0 if j < 0 else aligned.partner[j] + 1 for j in range(at - 1, at + length)]
        for number, goal in enumerate(goals):
            if number and goal == goals[number - 1]:
                continue
            tried += 1
            # No shift brings the distance below the bound, nor, without a beam, reduces it by more than deleting the
            # block and inserting it elsewhere would.
            most = min(table.distance - bound, 2 * length if isinstance(table, BitTable) else INFINITY)
            if (most, length, -start, -goal) < best:
                continue
            candidate = shift(words, start, length, goal)
            reduction = table.distance - table.distance_of(candidate, same=min(start, goal))
            if reduction > 0 and (reduction, length, -start, -goal) > best:
                best, shifted = (reduction, length, -start, -goal), candidate
        if tried >= MAX_CANDIDATES:
            break
    return shifted, tried


def equal_blocks(words: list[str], reference: list[str]):
    """(start in the hypothesis, start in the reference, length) of each block of words that the two have in common."""
    places = {}
    for at, word in enumerate(reference):
        places.setdefault(word, []).append(at)
    for start, word in enumerate(words):
        for at in places.get(word, ()):
            if abs(at - start) > MAX_SHIFT_DISTANCE:
                continue
            longest = min(MAX_SHIFT_SIZE, len(words) - start, len(reference) - at)
            for length in range(1, longest + 1):
                if words[start + length - 1] != reference[at + length - 1]:
                    break
                yield start, at, length


def shift(words: list[str], start: int, length: int, goal: int) -> list[str]:
    """Move words[start : start + length] to before words[goal]; a goal inside the block counts from its start."""
    block, rest = words[start : start + length], words[:start] + words[start + length :]
    place = goal if goal <= start + length else goal - length
    return rest[:place] + block + rest[place:]
