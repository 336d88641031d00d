"""Writes the sample data: tables about fictional restaurants, and several short texts for each.

    python mini/restaurants/generate.py [--out FOLDER] [--seed N]

Without flags it rewrites train.csv, valid.csv and test.csv in this folder, byte for byte. They have the format of E2E's
official release (columns mr and ref); the tables and sentences were made up for this repository.

A text is generated in the steps of Reiter & Dale, Building Natural Language Generation Systems (2000):

    sentence planning    text, opening, follow_up   "{name} is {a np}." and then "it {does}."
    aggregation          predicate, join            "is cheap" + "is not meant for families"
                                                    -> "is cheap but not meant for families"
    reference            follow_up                  "The Salty Heron", "it", "the pub"
    lexical choice       lexicon.py                 "serves Thai dishes", "a pub serving Thai dishes",
                                                    "the dishes are Thai"

`Writer.left` lists the fields that the text has not stated yet. A phrase that states a field removes it from the
list, and the text ends when the list is empty. So every value is stated exactly once (only "the pub" may later refer
to the name). Nothing is planned ahead. A choice that fails, for example a sentence about food that has been stated
already, raises Unsayable, and the text starts over.
"""

import argparse
import csv
import random
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]

from lexicon import (  # noqa: E402
    ADJECTIVES,
    BAD,
    BEFORE_NOUN,
    FIELDS,
    GOOD,
    IN_AREA,
    NEAR,
    NOUNS,
    OPENINGS,
    OWNERS,
    REMARKS,
    VALUES,
    VERBS,
    WHERE,
    WISHES,
)  # fmt: skip

from harness.files import exit_on_input_error, write_atomic  # noqa: E402

SEED = 4  # with this seed no sentence, and no eight words in a row, coincide with E2E's (README.md)


class Unsayable(Exception):
    """A sentence needs a fact that the table lacks or the text has stated already."""


# ----------------------------------------------------------------------------- grammar


class Clause(NamedTuple):
    """A predicate in two forms: verb + rest follow a subject, `modifier` follows a noun."""

    verb: str
    rest: str
    modifier: str
    mood: int  # 1 praise, -1 blame, 0 neither


def listed(parts: list[str]) -> str:
    """["a", "b", "c"] -> "a, b and c"."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def join(clauses: list[Clause]) -> str:
    """Several clauses as one predicate.

    "but" joins blame to praise; otherwise the clauses are listed. Of two clauses with the same verb the second loses
    it: "is cheap but not family-friendly".
    """
    blame = [clause for clause in clauses if clause.mood < 0]
    contrast = blame and any(clause.mood > 0 for clause in clauses)
    if contrast:
        clauses = [clause for clause in clauses if clause.mood >= 0] + blame
    shared = len(clauses) == 2 and clauses[0].verb == clauses[1].verb
    parts = [rest if shared and i else f"{verb} {rest}" for i, (verb, rest, *_) in enumerate(clauses)]
    return f"{listed(parts[: -len(blame)])} but {listed(parts[-len(blame) :])}" if contrast else listed(parts)


def with_article(noun: str) -> str:
    """a or an, by the first letter. This is right for all words here (there is no "hour" and no "unique")."""
    return f"{'an' if noun[0].lower() in 'aeiou' else 'a'} {noun}"


class Writer:
    """One text for one table; `left` are the fields that it has not stated yet."""

    def __init__(self, table: dict[str, str], rng: random.Random):
        self.table, self.rng = table, rng
        self.left = [field for field in table if field != "name"]
        self.meals = self.chance(0.5)  # state food and price together, if both are left

    def chance(self, p: float) -> bool:
        return self.rng.random() < p

    # ------------------------------------------------------------------------- facts

    def facts(self) -> list[str]:
        """The facts left that a predicate can state, in random order (a noun states the type)."""
        facts = [fact for fact in ("food", "price", "rating", "family") if fact in self.left]
        if self.meals and facts[:2] == ["food", "price"]:
            facts[:2] = ["meal"]
        if "area" in self.left or "near" in self.left:
            facts.append("place")
        self.rng.shuffle(facts)
        return facts

    def kind(self, fact: str) -> str:
        """The lexicon's key for a fact."""
        value = self.table.get("price" if fact == "meal" else fact, "")
        if fact in ("price", "meal"):
            return f"{fact} {'pounds' if '£' in value else value}"
        if fact == "rating":
            return f"rating {'number' if value[0].isdigit() else 'word'}"
        return f"family {value}" if fact == "family" else fact

    def mood(self, fact: str) -> int:
        """1 for praise, -1 for blame, 0 for neither."""
        fact = "price" if fact == "meal" else fact
        return (self.table.get(fact) in GOOD.get(fact, ())) - (self.table.get(fact) in BAD.get(fact, ()))

    def wanted(self, fact: str) -> bool:
        """Would someone look for this? Nobody asks for high prices or an average rating."""
        return self.mood(fact) > 0 or self.mood(fact) == 0 and fact != "rating"

    def take(self, fact: str) -> None:
        """Mark a fact as stated."""
        fields = {"meal": ("food", "price"), "place": ("area", "near")}.get(fact, (fact,))
        enough = any if fact == "place" else all  # area or near alone is enough for a place
        if not enough(field in self.left for field in fields):
            raise Unsayable(fact)
        self.left = [field for field in self.left if field not in fields]

    # ------------------------------------------------------------------------- sentences

    def text(self) -> str:
        """One to three sentences that state the whole table."""
        sentences = [self.opening()]
        while self.left:
            if len(sentences) == 3:
                raise Unsayable("too much left for the third sentence")
            sentences.append(self.follow_up(sentences[-1]))
        return " ".join(sentence[0].upper() + sentence[1:] for sentence in sentences)

    def opening(self) -> str:
        """The first sentence, with the name."""
        plans = [("any", pattern) for pattern in OPENINGS["any"]]
        plans += [(fact, pattern) for fact in ["type", *self.facts()] for pattern in OPENINGS.get(self.kind(fact), ())]
        fact, pattern = self.rng.choice(plans)
        if fact != "any":
            self.take(fact)
        return self.fill(pattern)

    def follow_up(self, before: str) -> str:
        """A further sentence, about "it" or "the pub" or with a subject of its own."""
        if "type" in self.left and self.chance(0.5):
            return self.fill("this is {a noun} that {does}.")
        subject = "it"
        if "type" in self.left or before.startswith("it ") and self.chance(0.6):
            subject = f"the {self.table.get('type', 'place')}"
            self.left = [field for field in self.left if field != "type"]
        facts = self.facts()[: self.rng.choice((1, 2, 2, 3))]
        if len(facts) == 1 and subject == "it" and self.chance(0.7):
            kind = self.kind(facts[0])
            return self.say(facts[0], [*(f"{clause}." for clause in WHERE.get(kind, ())), *REMARKS.get(kind, ())])
        return f"{subject} {self.predicate(facts)}."

    def fill(self, pattern: str) -> str:
        """Fill the slots of a pattern, from left to right."""
        return re.sub(r"\{(.+?)\}", lambda slot: self.slot(slot[1]), pattern)

    def slot(self, name: str) -> str:
        """The text for a slot: a value of the table, or the result of the method of this name."""
        if name.startswith("a "):
            return with_article(self.slot(name[2:]))
        return self.table[name] if name in self.table else getattr(self, name)()

    # ------------------------------------------------------------------------- predicates

    def say(self, fact: str, phrases) -> str:
        """A fact in one of several wordings."""
        if fact != "place":  # the slot {place} takes it
            self.take(fact)
        return self.fill(self.rng.choice(phrases))

    def clause(self, fact: str, said: Sequence[Clause] = ()) -> Clause:
        """A predicate that states a fact, if possible with a verb that the earlier ones do not have."""
        phrases = VERBS[self.kind(fact)]
        others = [phrase for phrase in phrases if phrase.split()[0] not in [clause.verb for clause in said]]
        verb, form, rest = re.fullmatch(r"(\w+) \((.*)\) (.*)", self.say(fact, others or phrases)).groups()
        return Clause(verb, rest, f"{form} {rest}".strip(), self.mood(fact))

    def predicate(self, facts: list[str]) -> str:
        """One or several facts after a subject: "serves Thai food and has moderate prices"."""
        clauses: list[Clause] = []
        for fact in facts:
            clauses.append(self.clause(fact, clauses))
        if not clauses or len(clauses) > 2 and len({clause.verb for clause in clauses}) < len(clauses):
            raise Unsayable("nothing, or a list with a verb twice")
        return join(clauses)

    def does(self) -> str:
        return self.predicate(self.facts()[: self.rng.choice((1, 1, 2))])

    def praise(self) -> str:
        return self.predicate([fact for fact in self.facts() if self.mood(fact) > 0][:1])

    def blame(self) -> str:
        return self.predicate([fact for fact in self.facts() if self.mood(fact) < 0][:1])

    def having(self) -> str:
        """A noun phrase that may follow "with": "low ratings from its guests and meals for £20-30"."""
        facts = [fact for fact in self.facts() if fact in ("price", "rating")]
        clauses = [self.clause(fact) for fact in facts[: self.rng.choice((1, 1, 2))]]
        if not clauses or not all(clause.verb == "has" for clause in clauses):
            raise Unsayable("with")
        return listed([clause.rest for clause in clauses])

    # ------------------------------------------------------------------------- nouns

    def place(self) -> str:
        """Where it is: "in the old town", "near Hollins Park", or both."""
        area = [self.rng.choice(IN_AREA[self.table["area"]])] if "area" in self.left else []
        near = [self.fill(self.rng.choice(NEAR))] if "near" in self.left else []
        self.take("place")
        return " ".join(self.rng.choice((area + near, near + area)))

    def noun(self, wish: bool = False) -> str:
        """A noun with its adjectives: "cheap, family-friendly pub", "Thai bistro"."""
        words = []
        for fact in ("rating", "price", "family"):
            known = BEFORE_NOUN.get(f"{fact} {self.table.get(fact)}")
            if known and fact in self.left and len(words) < 2 and self.chance(0.3) and (self.wanted(fact) or not wish):
                self.take(fact)
                words.append(self.rng.choice(known))
        noun = self.rng.choice(("place", "venue", "place to eat"))
        if "type" in self.left:
            self.take("type")
            noun = self.table["type"]
        if "food" in self.left and noun in ("restaurant", "bistro", "place") and self.chance(0.6):
            self.take("food")
            noun = f"{self.table['food']} {'eatery' if noun == 'place' else noun}"
        elif (
            "area" in self.left
            and noun in VALUES["type"]
            and f"area {self.table['area']}" in BEFORE_NOUN
            and self.chance(0.3)
        ):
            self.take("area")
            noun = f"{self.table['area']} {noun}"
        return f"{', '.join(words)} {noun}".strip()

    def modifier(self, facts: list[str]) -> str:
        """The modifier after a noun: " serving Thai food", " where families are welcome", " that ... and ..."."""
        if not facts:
            return ""
        if len(facts) > 1:
            return f" that {self.predicate(facts)}"
        where = WHERE.get(self.kind(facts[0]))
        if where and self.chance(0.3):
            return f" where {self.say(facts[0], where)}"
        return f" {self.clause(facts[0]).modifier}"

    def np(self, wish: bool = False) -> str:
        """A noun phrase: "cheap pub near Hollins Park serving Thai food". It states more than the type."""
        before = set(self.left) - {"type"}
        text = self.noun(wish)
        if "place" in self.facts() and self.chance(0.55):
            text += f" {self.place()}"
        facts = [fact for fact in self.facts() if fact != "place" and (self.wanted(fact) or not wish)]
        modifier = self.modifier(facts[: self.rng.choice((0, 0, 0, 1, 1, 1, 2))])
        if "near" in before - set(self.left) and not re.match("$| (with|serving|offering) ", modifier):
            raise Unsayable("it would be the park that gets 3 out of 5")
        if before <= set(self.left) and not wish:
            raise Unsayable("a pub, and no more")
        return text + modifier

    def wish(self) -> str:
        """What someone may look for: "cheap Thai food near Hollins Park", "a family-friendly pub"."""
        food = [fact for fact in self.facts() if self.kind(fact) in WISHES]
        if not food or self.chance(0.5):
            thing = self.np(wish=True)
            return "somewhere to eat" if thing in ("place", "venue", "place to eat") else with_article(thing)
        thing = self.say(food[0], WISHES[self.kind(food[0])])
        return f"{thing} {self.place()}" if "place" in self.facts() and self.chance(0.5) else thing


def write_text(table: dict[str, str], rng: random.Random) -> str:
    """A text for a table: the first attempt that succeeds."""
    while True:
        try:
            return Writer(table, rng).text()
        except Unsayable:
            continue


# ----------------------------------------------------------------------------- tables and files


def draw_names(rng: random.Random, part: int) -> list[str]:
    """Names made of the common words (part 0) or the reserved ones (part 1), shuffled."""
    adjectives, nouns, owners = (words.split(" | ")[part].split() for words in (ADJECTIVES, NOUNS, OWNERS))
    names = [f"The {adjective} {noun}" for adjective in adjectives for noun in rng.sample(nouns, 2)]
    names += [f"{noun} & {other}" for noun in nouns for other in rng.sample(nouns, 2) if other != noun]
    names += [pattern.format(owner) for pattern in ("{}'s", "{} House", "Chez {}") for owner in owners]
    rng.shuffle(names)
    return names


def draw_table(rng: random.Random, name: str) -> dict[str, str]:
    """Three to eight fields, small tables more often; most tables have a type."""
    count = rng.choices(range(2, 8), weights=(36, 31, 18, 8, 5, 2))[0]  # besides the name
    fields = rng.sample(list(VALUES), count)
    if "type" not in fields and rng.random() < 0.5:
        fields[0] = "type"
    return {"name": name} | {field: rng.choice(VALUES[field]) for field in FIELDS if field in fields}


def draw_split(
    rng: random.Random, names: list[str], tables: int, texts: dict[int, int], seen: set
) -> list[tuple[str, str]]:
    """Rows (table, text).

    tables  number of tables; none of them is in `seen`
    texts   {number of different texts for a table: weight}
    """
    rows = []
    while tables:
        table = draw_table(rng, names[tables % len(names)])
        key = tuple(table.items())
        if key in seen:
            continue
        seen.add(key)
        tables -= 1
        line = ", ".join(f"{FIELDS[field]}[{value}]" for field, value in table.items())
        different: dict[str, None] = {}  # a dict keeps their order, a set does not
        wanted = rng.choices(list(texts), weights=texts.values())[0]
        while len(different) < wanted:
            different[write_text(table, rng)] = None
        rows += [(line, text) for text in different]
    return rows


def generate(seed: int) -> dict[str, list[tuple[str, str]]]:
    """The rows of the three files. A third of the validation and test tables have names that occur in no other file."""
    rng = random.Random(seed)
    names, new = draw_names(rng, 0), draw_names(rng, 1)
    seen: set = set()
    train = draw_split(rng, names, 600, {3: 2, 4: 1}, seen)
    texts = {4: 3, 5: 2, 6: 1}
    valid = draw_split(rng, names, 40, texts, seen) + draw_split(rng, new[:10], 20, texts, seen)
    texts = {5: 4, 6: 3, 7: 2, 8: 1}
    test = draw_split(rng, names, 54, texts, seen) + draw_split(rng, new[10:], 27, texts, seen)
    return {"train": train, "valid": valid, "test": test}


@exit_on_input_error
def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    out_help = "folder for train.csv, valid.csv and test.csv (default: the generator's own)"
    parser.add_argument("--out", type=Path, default=HERE, metavar="FOLDER", help=out_help)
    seed_help = f"other tables, names and texts (default: {SEED}, that of the committed files)"
    parser.add_argument("--seed", type=int, default=SEED, help=seed_help)
    args = parser.parse_args()
    for split, rows in generate(args.seed).items():
        with write_atomic(args.out / f"{split}.csv") as file:
            csv.writer(file, lineterminator="\n").writerows([("mr", "ref"), *rows])
        print(f"{args.out / split}.csv: {len(rows)} texts for {len({table for table, _ in rows})} tables")


if __name__ == "__main__":
    main()
