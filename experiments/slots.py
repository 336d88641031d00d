"""Which values of a table a text states, omits and invents: a checker for E2E's eight fields.

    python experiments/slots.py --data FOLDER        checks the data's own sentences, which people wrote

A score against references measures how close a text is to what people wrote, not whether it is true. The checker
finds what a text states about each field and compares that with the table:

    omitted   = values of the table that the text does not state
    invented  = statements about a field that the table does not support

The rules, by field (case, accents, hyphens and white space are ignored; "n't" is "not"):

    name, near        the value itself, with or without its "The". Invented: another name that occurs in the data
    Type              pub, coffee shop (café, coffee house), restaurant; "restaurant" is never counted as invented,
                      because people use it for all three
    food              the value, or sushi (Japanese), pasta (Italian), British (English), burgers (Fast food)
    area              riverside: the river, the waterfront; city centre: centre of the city, town centre, downtown, in
                      the city
    price             three levels. E2E has a word and a sum for each, and people use one for the other: cheap and less
                      than £ 20, moderate and £ 20 - 25, high and more than £ 30; also inexpensive, mid-priced,
                      expensive and similar words
    customer rating   three levels: low and 1 out of 5, average and 3 out of 5, high and 5 out of 5; also "poorly
                      rated", "five stars" and similar phrases
    family friendly   the text mentions a family, kids or children; with a negation nearby, or "adults only", it states
                      no

"high", "low" and "average" count only next to a word for price or rating. A value that is in none of these lists (other
data have such values) is searched for literally. Names are removed first: Raja Indian Cuisine is not a food.

People also omit values and invent some: in E2E's test references the checker finds 91 % of the tables' values, and an
invented value in every tenth sentence. Read by hand, 5 of 60 randomly drawn omissions and 9 of 60 inventions were the
checker's own errors ("children-free atmosphere", "higher than average priced"). A system should therefore be compared
with the references' figures, not with 100 %.

Left out: other paraphrases ("Asian food", "won't break the bank"), misspellings, and grammar: a text that applies the
right word to the wrong restaurant passes.
"""

import argparse
import re
import sys
import unicodedata
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

if __name__ == "__main__":  # so that this project's modules are found
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from e2e_data import FIELDS, load_split
from harness.files import exit_on_input_error

NAMES = ("name", "near")
PRICE = r"(?:price range|price[ds]?|pricing|costs?)"
RATED = r"(?:customer |consumer |user )?(?:rat(?:ed?|es|ings?)|reviews?|reviewed|satisfaction)"
LINK = (
    r"(?:(?:is|are|was|be|of|it|as|a|an|at|in|the|very|quite|to|by|from"
    r"|customers?|has|been|range|for|rather|just|considered) )*"
)
FAMILY = r"(?:famil(?:y|ies)|kids?|child|children|childrens)"
NOT = r"(?:not|no|non|none|never|without|nor|unsuitable|discourages?)"


def stated(level: str, what: str) -> str:
    """A pattern for a level next to its noun or verb: "high price", "prices are high", "rated it low"."""
    return rf"\b{level} (?:and |in |range )?{what}\b|\b{what} {LINK}{level}\b(?! (?:customer|price|rat))"


def out_of_five(number: str) -> str:
    """A pattern for "3 out of 5", "three stars"."""
    return rf"\b(?:{number}) (?:out of|of|out) (?:5|five)\b|(?<!of )(?<!out )\b(?:{number}) stars?\b"


# field -> what a text can state about it -> a pattern of how texts state it, for plain text (see `plain`)
STATEMENTS = {
    "Type": {
        "pub": r"\bpubs?\b(?! (?:food|style|menu))|\bpublic house\b",
        "coffee shop": r"\bcoffee ?(?:shop|house|bar)s?\b|\bcafes?\b",
        "restaurant": r"\brestaurants?\b",
    },
    "food": {
        "Japanese": r"\bjapanese\b|\bsushi\b",
        "Italian": r"\bitalian\b|\bpasta\b",
        "English": r"\benglish\b|\bbritish\b",
        "French": r"\bfrench\b",
        "Chinese": r"\bchinese\b",
        "Indian": r"\bindian\b",
        "Fast food": r"\bfast ?foods?\b|\bburgers?\b",
    },
    "area": {
        "riverside": r"\briver|\bwaterfront\b",
        "city centre": r"\b(?:city|town) ?cent(?:re|er)\b|\bcent(?:re|er) (?:of )?(?:the )?(?:city|town)\b|\bdowntown\b"
                       r"|\bin (?:the )?(?:city|cent(?:re|er))\b|\bheart of (?:the )?(?:city|town)\b",
    },
    "price": {
        "low": r"\bcheap(?:er|est|ly)?\b|\binexpensive\b|\baffordabl[ey]\b"
               r"|\b(?:less|lower|cheaper|under|below)(?: than| then)? £? ?20\b|" + stated("low(?:er|est)?", PRICE),
        "moderate": rf"\b(?:moderate(?:ly)?|mid(?:dle|dling)? (?:range|price[ds]?|pricing))\b(?! {RATED})"
                    r"|\breasonabl[ey]\b|\b20 (?:£ |to |and |pounds )*25\b|"
                    + stated("(?:average(?:ly)?|mid(?:dle)?|medium)", PRICE),
        "high": r"\bexpensive\b|\bpricey\b|\bcostly\b|\bupscale\b|\bhigh end\b"
                r"|\b(?:more|over|above|higher|greater|upwards)(?: of| than| then)? £? ?30\b|"
                + stated("high(?:er|est|ly)?", PRICE),
    },
    "customer rating": {
        "low": out_of_five("1|one") + "|" + stated("(?:low(?:er|est|ly)?|poor(?:ly)?|bad(?:ly)?)", RATED),
        "average": out_of_five("3|three") + "|"
                   + stated("(?:average(?:ly)?|medium|moderate(?:ly)?|mid range|mediocre|decent|fair|okay|ok)", RATED),
        "high": out_of_five("5|five") + "|"
                + stated("(?:high(?:er|est|ly)?|excellent|great|top|well|perfect|good|best)", RATED),
        "2 or 4": out_of_five("2|two|4|four"),  # in no table of E2E
    },
    "family friendly": {
        # A few words may come between, but not the end of a clause.
        "no": rf"\b{NOT} (?:(?!but |and is |it |, |\. )\S+ ){{0,5}}{FAMILY}\b"
              rf"|\b{FAMILY} (?:(?!but |and |, |\. )\S+ ){{0,4}}(?:not|no)\b|\badults?\b"
              rf"|\b{FAMILY} unfriendly\b|\bunfriendly (?:to|for) {FAMILY}\b",
        "yes": rf"\b{FAMILY}\b",
    },
}  # fmt: skip
# Values of a table that have another name above.
LEVELS = {
    "price": {"cheap": "low", "less than £ 20": "low", "£ 20 - 25": "moderate", "more than £ 30": "high"},
    "customer rating": {"1 out of 5": "low", "3 out of 5": "average", "5 out of 5": "high"},
}


class Slots(NamedTuple):
    """A text compared with its table. `omitted` and `invented` are written as in a table, "food : Thai"."""

    values: int  # number of values in the table
    omitted: list[str]
    invented: list[str]


def parse(source: str) -> dict[str, str]:
    """`name : Blue Spice | Type : pub` -> {"name": "Blue Spice", "Type": "pub"}; skips parts without " : "."""
    pairs = (part.partition(" : ") for part in source.split(" | "))
    return {field.strip(): value.strip() for field, colon, value in pairs if colon}


@lru_cache(maxsize=10_000)
def plain(text: str) -> str:
    """Lower case, no accents, words and numbers separated by single spaces; "." and "," are kept as words."""
    text = unicodedata.normalize("NFKD", text.lower().replace("’", "'"))
    text = "".join(c for c in text if not unicodedata.combining(c))
    text = re.sub(r" ?n ?' ?t\b", " not", text)
    text = re.sub(r"[.!?;]+", " . ", text).replace(",", " , ").replace("£", " £ ")
    text = re.sub(r"(?<=\d)of(?=\d)", " of ", text)
    text = " ".join(re.sub(r"[^a-z0-9£.,]+", " ", text).split())
    text = text.replace("above average", "high").replace("below average", "low")
    not_good = rf"\bnot (?:(?:an?|the|very|so|have|has|get) )*(?:good|great|high(?:ly)?|well)(?= {RATED})"
    return re.sub(not_good, "poor", text)


def pattern_of(value: str) -> str:
    """A pattern that finds a value literally in plain text, with or without its article."""
    return rf"(?<!\S){re.escape(plain(value).removeprefix('the '))}(?!\S)"


class SlotChecker:
    """The checker for a data set. It learns names and other values from the data's tables."""

    def __init__(self, sources: Iterable[str]):
        self.known: dict[str, dict[str, str]] = {field: dict(STATEMENTS.get(field, {})) for field in FIELDS.values()}
        for source in sources:
            for field, value in parse(source).items():
                if self.level(field, value) not in self.known.setdefault(field, {}):
                    self.known[field][value] = pattern_of(value)
        names = self.known["name"] | self.known["near"]
        by_length = sorted(names.items(), key=lambda item: -len(item[0]))  # a name may be part of a longer one
        self.names = dict(by_length)

    @staticmethod
    def level(field: str, value: str) -> str:
        """What a table's value means: "cheap" is the price level "low"."""
        return LEVELS.get(field, {}).get(value, value)

    def read(self, text: str) -> dict[str, set[str]]:
        """What a text states: field -> values or levels; all names are under "name"."""
        text = plain(text)
        facts: dict[str, set[str]] = {"name": set()}
        for name, pattern in self.names.items():
            text, found = re.subn(pattern, "@", text)
            if found:
                facts["name"].add(name)
        for field in self.known.keys() - set(NAMES):
            facts[field] = {value for value, pattern in self.known[field].items() if re.search(pattern, text)}
        if "no" in facts["family friendly"]:
            facts["family friendly"].discard("yes")  # the negation mentions a family too
        return facts

    def check(self, source: str, text: str) -> Slots:
        """Compare a text with its table. The table's values must be among those that the checker was built from."""
        table, facts = parse(source), self.read(text)
        omitted, invented = [], []
        for field, value in table.items():
            if self.level(field, value) not in facts.get("name" if field in NAMES else field, set()):
                omitted.append(f"{field} : {value}")
        for field, values in facts.items():
            supported = {self.level(field, table.get(field, ""))}
            if field == "name":
                supported = {table.get(name) for name in NAMES}
            if field == "Type":
                supported.add("restaurant")
            invented += [f"{field} : {value}" for value in sorted(values - supported)]
        return Slots(len(table), omitted, sorted(invented))


def shares(slots: list[Slots]) -> tuple[float, float]:
    """(share of the tables' values that the texts state, 0 to 1; invented values per table)."""
    values = sum(s.values for s in slots)
    return 1 - sum(len(s.omitted) for s in slots) / max(1, values), sum(len(s.invented) for s in slots) / len(slots)


def by_field(sources: list[str], slots: list[Slots]) -> dict[str, tuple[int, int, int]]:
    """field -> (values in the tables, omitted, invented); invented names count as "name"."""
    counts = {field: [0, 0, 0] for field in FIELDS.values()}
    for source, found in zip(sources, slots):
        omitted, invented = ([value.partition(" : ")[0] for value in values] for values in found[1:])
        for column, fields in enumerate((parse(source), omitted, invented)):
            for field in fields:
                counts.setdefault(field, [0, 0, 0])[column] += 1
    return {field: tuple(numbers) for field, numbers in counts.items()}


@exit_on_input_error
def main(argv: list[str] | None = None) -> None:
    """Check a data set's own sentences."""
    about = "Count the values of the tables that a data set's own sentences state, omit and invent."
    parser = argparse.ArgumentParser(allow_abbrev=False, description=about)
    parser.add_argument("--data", help="folder with the data (default: the paper's E2E files, downloaded)")
    parser.add_argument("--split", default="test", choices=("train", "valid", "test"))
    given = parser.parse_args(argv)
    checker = SlotChecker({e.source for split in ("train", "valid", "test") for e in load_split(given.data, split)})
    examples = load_split(given.data, given.split)
    slots = [checker.check(example.source, example.target) for example in examples]
    said, invented = shares(slots)
    print(f"{len(slots)} sentences: {100 * said:.1f} % of the values said, {invented:.3f} invented per sentence")
    for field, (n, omitted, invented) in by_field([example.source for example in examples], slots).items():
        print(f"{field:<16}{n:>7} values  {100 * omitted / max(1, n):5.1f} % omitted{invented:>6} invented")


if __name__ == "__main__":
    main()
