"""The slot checker, on sentences checked by hand and on the sentences that people wrote for E2E."""

from pathlib import Path

import pytest
from tiny import tables, write_data

from e2e_data import read_examples
from experiments.slots import SlotChecker, by_field, main, parse, plain, shares

E2E = Path(__file__).resolve().parents[2] / "shared" / "e2e"
TABLE = (
    "name : Blue Spice | Type : pub | food : Indian | price : moderate | customer rating : 3 out of 5"
    " | area : riverside | family friendly : no | near : Raja Indian Cuisine"
)
OTHERS = (
    "name : The Mill | food : Japanese | near : Café Sicilia",
    "name : Blue Spice House | Type : coffee shop | price : £ 20 - 25",
    "name : Loch Fyne | food : Thai | area : harbour | customer rating : 4 out of 10 | price : about a fiver",
)


@pytest.fixture(scope="module")
def checker():
    return SlotChecker([TABLE, *OTHERS])


def found(checker, source: str, text: str) -> tuple[list[str], list[str]]:
    """(omitted, invented)."""
    slots = checker.check(source, text)
    assert slots.values == len(parse(source))
    return slots.omitted, slots.invented


@pytest.mark.parametrize("text", [
    "Blue Spice is a moderately priced Indian pub by the river near Raja Indian Cuisine ."
    " It is rated 3 out of 5 and is not family - friendly .",
    "BLUE SPICE, an average-priced pub in the riverside area close to raja indian cuisine, serves Indian food;"
    " three stars. Adults only!",
    "Near Raja Indian Cuisine stands the Blue Spice pub . Indian food , £ 20 - 25 ,"
    " average customer rating , riverside . Children are not welcome .",
    "The Blue Spice : Indian pub , mid - priced , riverside , near Raja Indian Cuisine"
    " , isn 't kid friendly , with an average rating .",
])  # fmt: skip
def test_a_sentence_that_states_the_whole_table_has_no_errors(checker, text):
    assert found(checker, TABLE, text) == ([], [])


@pytest.mark.parametrize("source, text, omitted, invented", [
    ("name : Blue Spice | near : Café Sicilia", "Blue Spice is near Cafe Sicilia .", [], []),  # accents do not count
    ("name : The Mill | near : Café Sicilia", "Mill is near Café Sicilia .", [], []),  # nor an article
    ("name : The Mill | near : Café Sicilia", "The Mills is near Café .",
     ["name : The Mill", "near : Café Sicilia"], ["Type : coffee shop"]),
    # a longer name is another restaurant
    ("name : Blue Spice", "Blue Spice House is nice .", ["name : Blue Spice"], ["name : Blue Spice House"]),
    ("name : Blue Spice | food : Japanese", "Blue Spice , near The Mill , has sushi .", [], ["name : The Mill"]),
    # a name is not a food
    ("name : Blue Spice | near : Raja Indian Cuisine", "Blue Spice is near Raja Indian Cuisine .", [], []),
    ("name : Blue Spice | Type : pub", "Blue Spice is a restaurant .", ["Type : pub"], []),  # never invented
    ("name : Blue Spice | Type : restaurant", "Blue Spice is a coffee shop .",
     ["Type : restaurant"], ["Type : coffee shop"]),
    ("name : Blue Spice | food : Fast food", "Blue Spice sells fast - food .", [], []),
    # values that E2E lacks are searched for literally
    ("name : Loch Fyne | food : Thai | area : harbour", "Loch Fyne serves Thai food at the harbour .", [], []),
    ("name : Loch Fyne | food : Thai", "Loch Fyne serves Chinese food .", ["food : Thai"], ["food : Chinese"]),
    ("name : Loch Fyne | price : about a fiver", "Loch Fyne costs about a fiver .", [], []),
    ("name : The Mill | area : city centre", "The Mill is in the center of the city .", [], []),
    ("name : The Mill | area : city centre", "The Mill lies by the river .",
     ["area : city centre"], ["area : riverside"]),
    ("name : The Mill", "The Mill is in the city centre , and family friendly .",
     [], ["area : city centre", "family friendly : yes"]),
    # a word and a sum for the same level
    ("name : The Mill | price : cheap", "The Mill costs less than £ 20 .", [], []),
    ("name : The Mill | price : less than £ 20", "The Mill has low prices .", [], []),
    ("name : The Mill | price : high", "The Mill is inexpensive .", ["price : high"], ["price : low"]),
    ("name : The Mill | price : more than £ 30", "The price range of The Mill is over £30 .", [], []),
    ("name : The Mill | price : £ 20 - 25", "The Mill costs 20 to 25 pounds .", [], []),
    ("name : The Mill | price : high", "The Mill has a high customer rating .",
     ["price : high"], ["customer rating : high"]),
    ("name : The Mill | customer rating : high", "The Mill has high prices .",
     ["customer rating : high"], ["price : high"]),
    ("name : The Mill | customer rating : high | price : high", "The Mill has high prices and is highly rated .",
     [], []),
    ("name : The Mill | customer rating : 5 out of 5", "The Mill is a five star place .", [], []),
    ("name : The Mill | customer rating : 1 out of 5", "The Mill is rated 1 out of 5 stars .", [], []),  # not "5 stars"
    ("name : The Mill | customer rating : low", "The Mill does not have good ratings .", [], []),
    # a limitation: the name comes between verb and level
    ("name : The Mill | customer rating : low", "Customers rate The Mill poorly .", ["customer rating : low"], []),
    ("name : The Mill | customer rating : low", "The Mill has a rating of 4 out of 5 .",
     ["customer rating : low"], ["customer rating : 2 or 4"]),
    ("name : The Mill | customer rating : average", "Its customer rating is average : The Mill", [], []),
    ("name : The Mill | family friendly : yes", "The Mill , a place for the whole family .", [], []),
    ("name : The Mill | family friendly : yes", "The Mill does not have high prices but is kid friendly .",
     [], ["price : high"]),
    ("name : The Mill | family friendly : no", "The Mill is child friendly .",
     ["family friendly : no"], ["family friendly : yes"]),
    ("name : The Mill | family friendly : no", "The Mill is non - family - friendly .", [], []),
    ("name : The Mill | family friendly : no", "The Mill , where children aren't allowed .", [], []),
    ("name : The Mill", "", ["name : The Mill"], []),
])  # fmt: skip
def test_what_a_text_omits_and_invents_is_named(checker, source, text, omitted, invented):
    assert found(checker, source, text) == (omitted, invented)


def test_plain_text_has_neither_accents_nor_hyphens_nor_contractions():
    assert (
        plain("Café Ruby isn 't family-friendly ; it costs £20-25!")
        == "cafe ruby is not family friendly . it costs £ 20 25 ."
    )


def test_shares_count_values_over_all_texts(checker):
    slots = [
        checker.check("name : The Mill | food : Japanese", text)
        for text in ("The Mill has sushi .", "The Mill is a cheap pub .")
    ]
    assert shares(slots) == (0.75, 1.0)
    counts = by_field(["name : The Mill | food : Japanese"] * 2, slots)
    assert counts["food"] == (2, 1, 0) and counts["price"] == (0, 0, 1) and counts["name"] == (2, 0, 0)


def test_true_sentences_about_made_up_tables_have_no_errors():
    examples = tables(300)
    checker = SlotChecker(example.source for example in examples)
    slots = [checker.check(example.source, example.target) for example in examples]
    assert shares(slots)[0] == 1.0
    assert {error for s in slots for error in s.invented} == set()


def test_the_command_line_prints_each_fields_figures(tmp_path, capsys):
    main(["--data", str(write_data(tmp_path / "data"))])
    out = capsys.readouterr().out
    assert out.startswith("30 sentences: 100.0 % of the values said, 0.000 invented per sentence\n") and "near " in out


@pytest.mark.skipif(not E2E.exists(), reason="needs E2E's files in ../shared/e2e")
def test_in_peoples_own_sentences_few_values_are_missed():
    splits = {split: read_examples(E2E / f"src1_{split}.txt") for split in ("train", "valid", "test")}
    checker = SlotChecker({example.source for examples in splits.values() for example in examples})
    slots = [checker.check(example.source, example.target) for example in splits["test"]]
    said, invented = shares(slots)
    assert said > 0.91 and invented < 0.10  # people omit and invent values too: see slots.py
    counts = by_field([example.source for example in splits["test"]], slots)
    rates = {field: omitted / n for field, (n, omitted, _) in counts.items()}
    assert rates["name"] < 0.001 and rates["near"] < 0.005 and rates["Type"] < 0.05 and max(rates.values()) < 0.2
