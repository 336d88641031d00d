"""Which values of a table a text says, which it omits, and which it invents: a checker for E2E's eight fields.

    python experiments/slots.py --data FOLDER        what it finds in the sentences that people wrote

A score against references says how near a text is to what people wrote; not whether it is true. Here a text is read for
what it states of each field, and that is compared with the table:

    omitted   = values of the table that the text does not state
    invented  = what the text states of a field without support in the table

The rules, by field (case, accents, hyphens and white space never count; "n't" is "not"):

    name, near        the value itself, with or without its "The". Invented: another name that the data know
    Type              pub, coffee shop (café, coffee house), restaurant; "restaurant" is never invented: people call
                      any of the three so
    food              the value, or sushi (Japanese), pasta (Italian), British (English), burgers (Fast food)
    area              riverside: the river, the waterfront; city centre: centre of the city, town centre, downtown, in the city
    price             three levels, each a word and a sum in E2E, that people use for each other: cheap and less than £ 20,
                      moderate and £ 20 - 25, high and more than £ 30; with inexpensive, mid-priced, expensive and the like
    customer rating   three levels: low and 1 out of 5, average and 3 out of 5, high and 5 out of 5; "poorly rated",
                      "five stars" and the like
    family friendly   a family, kids or children are mentioned; with a negation near by, or "adults only", it says no

"high", "low" and "average" count only beside a word for price or for rating. A value that stands in none of these lists (other
data have them) is searched for literally. Names are taken out before anything else is read: Raja Indian Cuisine is no food.

People omit values themselves, and invent some: in E2E's test references the checker finds 91 % of the tables' values said, and a value
invented in every tenth sentence. Read by hand, 5 of 60 such omissions drawn at random and 9 of 60 inventions were the checker's own errors
("children-free atmosphere", "higher than average priced"). So a system is to be held to the references' figures, not to 100 %.

Left out: paraphrases beyond these ("Asian food", "won't break the bank"), misspellings, and grammar: a text that says the
right word of the wrong place passes.
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
LINK = r"(?:(?:is|are|was|be|of|it|as|a|an|at|in|the|very|quite|to|by|from|customers?|has|been|range|for|rather|just|considered) )*"
FAMILY = r"(?:famil(?:y|ies)|kids?|child|children|childrens)"
NOT = r"(?:not|no|non|none|never|without|nor|unsuitable|discourages?)"


def stated(level: str, what: str) -> str:
    """A pattern for a level beside what it is of: "high price", "prices are high", "rated it low"."""
    return rf"\b{level} (?:and |in |range )?{what}\b|\b{what} {LINK}{level}\b(?! (?:customer|price|rat))"


def out_of_five(number: str) -> str:
    """A pattern for "3 out of 5", "three stars"."""
    return rf"\b(?:{number}) (?:out of|of|out) (?:5|five)\b|(?<!of )(?<!out )\b(?:{number}) stars?\b"


# field -> what can be stated of it -> how texts state it, on plain text (see `plain`)
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
        "low": r"\bcheap(?:er|est|ly)?\b|\binexpensive\b|\baffordabl[ey]\b|\b(?:less|lower|cheaper|under|below)(?: than| then)? £? ?20\b|"
               + stated("low(?:er|est)?", PRICE),
        "moderate": rf"\b(?:moderate(?:ly)?|mid(?:dle|dling)? (?:range|price[ds]?|pricing))\b(?! {RATED})|\breasonabl[ey]\b"
                    r"|\b20 (?:£ |to |and |pounds )*25\b|" + stated("(?:average(?:ly)?|mid(?:dle)?|medium)", PRICE),
        "high": r"\bexpensive\b|\bpricey\b|\bcostly\b|\bupscale\b|\bhigh end\b"
                r"|\b(?:more|over|above|higher|greater|upwards)(?: of| than| then)? £? ?30\b|" + stated("high(?:er|est|ly)?", PRICE),
    },
    "customer rating": {
        "low": out_of_five("1|one") + "|" + stated("(?:low(?:er|est|ly)?|poor(?:ly)?|bad(?:ly)?)", RATED),
        "average": out_of_five("3|three") + "|"
                   + stated("(?:average(?:ly)?|medium|moderate(?:ly)?|mid range|mediocre|decent|fair|ok(?:ay)?)", RATED),
        "high": out_of_five("5|five") + "|" + stated("(?:high(?:er|est|ly)?|excellent|great|top|well|perfect|good|best)", RATED),
        "2 or 4": out_of_five("2|two|4|four"),  # which no table of E2E says
    },
    "family friendly": {
        # A few words may stand between, but no end of a clause.
        "no": rf"\b{NOT} (?:(?!but |and is |it |, |\. )\S+ ){{0,5}}{FAMILY}\b"
              rf"|\b{FAMILY} (?:(?!but |and |, |\. )\S+ ){{0,4}}(?:not|no)\b|\badults?\b"
              rf"|\b{FAMILY} unfriendly\b|\bunfriendly (?:to|for) {FAMILY}\b",
        "yes": rf"\b{FAMILY}\b",
    },
}  # fmt: skip
# What a table's value states, where that has another name above.
LEVELS = {
    "price": {"cheap": "low", "less than £ 20": "low", "£ 20 - 25": "moderate", "more than £ 30": "high"},
    "customer rating": {"1 out of 5": "low", "3 out of 5": "average", "5 out of 5": "high"},
}


class Slots(NamedTuple):
    """What a text did with its table. `omitted` and `invented` are written as in a table, "food : Thai"."""

    values: int  # in the table
    omitted: list[str]
    invented: list[str]


def parse(source: str) -> dict[str, str]:
    """`name : Blue Spice | Type : pub` -> {"name": "Blue Spice", "Type": "pub"}; parts without " : " are left out."""
    pairs = (part.partition(" : ") for part in source.split(" | "))
    return {field.strip(): value.strip() for field, colon, value in pairs if colon}


@lru_cache(maxsize=10_000)
def plain(text: str) -> str:
    """Small letters without accents, words and numbers between single spaces; "." and "," stay, as words."""
    text = unicodedata.normalize("NFKD", text.lower().replace("’", "'"))
    text = "".join(c for c in text if not unicodedata.combining(c))
    text = re.sub(r" ?n ?' ?t\b", " not", text)
    text = re.sub(r"[.!?;]+", " . ", text).replace(",", " , ").replace("£", " £ ")
    text = re.sub(r"(?<=\d)of(?=\d)", " of ", text)
    text = " ".join(re.sub(r"[^a-z0-9£.,]+", " ", text).split())
    text = text.replace("above average", "high").replace("below average", "low")
    return re.sub(
        rf"\bnot (?:(?:an?|the|very|so|have|has|get) )*(?:good|great|high(?:ly)?|well)(?= {RATED})", "poor", text
    )


def pattern_of(value: str) -> str:
    """Finds a value itself in plain text, with or without its article."""
    return rf"(?<!\S){re.escape(plain(value).removeprefix('the '))}(?!\S)"


class SlotChecker:
    """Knows the names and the other values of a data set, from its tables."""

    def __init__(self, sources: Iterable[str]):
        self.known: dict[str, dict[str, str]] = {field: dict(STATEMENTS.get(field, {})) for field in FIELDS.values()}
        for source in sources:
            for field, value in parse(source).items():
                if self.level(field, value) not in self.known.setdefault(field, {}):
                    self.known[field][value] = pattern_of(value)
        names = self.known["name"] | self.known["near"]
        self.names = dict(sorted(names.items(), key=lambda item: -len(item[0])))  # a name may be part of a longer one

    @staticmethod
    def level(field: str, value: str) -> str:
        """What a table's value states: "cheap" states the price "low"."""
        return LEVELS.get(field, {}).get(value, value)

    def read(self, text: str) -> dict[str, set[str]]:
        """What a text states: field -> values or levels; all names under "name"."""
        text = plain(text)
        facts: dict[str, set[str]] = {"name": set()}
        for name, pattern in self.names.items():
            text, found = re.subn(pattern, "@", text)
            if found:
                facts["name"].add(name)
        for field in self.known.keys() - set(NAMES):
            facts[field] = {value for value, pattern in self.known[field].items() if re.search(pattern, text)}
        if "no" in facts["family friendly"]:
            facts["family friendly"].discard("yes")  # the family was mentioned to say so
        return facts

    def check(self, source: str, text: str) -> Slots:
        """Compare a text with its table. The table's values must be among those that the checker was made with."""
        table, facts = parse(source), self.read(text)
        omitted, invented = [], []
        for field, value in table.items():
            if self.level(field, value) not in facts.get("name" if field in NAMES else field, set()):
                omitted.append(f"{field} : {value}")
        for field, values in facts.items():
            supported = (
                {table.get(name) for name in NAMES} if field == "name" else {self.level(field, table.get(field, ""))}
            )
            if field == "Type":
                supported.add("restaurant")
            invented += [f"{field} : {value}" for value in sorted(values - supported)]
        return Slots(len(table), omitted, sorted(invented))


def shares(slots: list[Slots]) -> tuple[float, float]:
    """(share of the tables' values that the texts say, 0 .. 1; values invented, a table)."""
    values = sum(s.values for s in slots)
    return 1 - sum(len(s.omitted) for s in slots) / max(1, values), sum(len(s.invented) for s in slots) / len(slots)


def by_field(sources: list[str], slots: list[Slots]) -> dict[str, tuple[int, int, int]]:
    """field -> (values in the tables, omitted, invented); invented names count as "name"."""
    counts = {field: [0, 0, 0] for field in FIELDS.values()}
    for source, found in zip(sources, slots):
        for place, fields in enumerate(
            (parse(source), *([v.partition(" : ")[0] for v in values] for values in found[1:]))
        ):
            for field in fields:
                counts.setdefault(field, [0, 0, 0])[place] += 1
    return {field: tuple(numbers) for field, numbers in counts.items()}


@exit_on_input_error
def main(argv: list[str] | None = None) -> None:
    """Check a data set's own sentences."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description="Which values of their tables do a data set's sentences say?"
    )
    parser.add_argument("--data", help="folder with the data (default: the paper's E2E files, downloaded)")
    parser.add_argument("--split", default="test", choices=("train", "valid", "test"))
    given = parser.parse_args(argv)
    checker = SlotChecker({e.source for split in ("train", "valid", "test") for e in load_split(given.data, split)})
    examples = load_split(given.data, given.split)
    slots = [checker.check(example.source, example.target) for example in examples]
    said, invented = shares(slots)
    print(f"{len(slots)} sentences: {100 * said:.1f} % of the values said, {invented:.3f} invented a sentence")
    for field, (n, omitted, invented) in by_field([example.source for example in examples], slots).items():
        print(f"{field:<16}{n:>7} values  {100 * omitted / max(1, n):5.1f} % omitted{invented:>6} invented")


if __name__ == "__main__":
    main()
