"""The mteval-13a tokeniser: its rules one by one, and sacrebleu's tokeniser as a second opinion."""

import doctest

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metrics import mteval

RULE_EXAMPLES = [
    ("", []),
    ("   \t ", []),
    ("Hello, world!", ["hello", ",", "world", "!"]),
    ("don't stop-and-go", ["don't", "stop-and-go"]),
    ("1,000.50", ["1,000.50"]),
    ("in 1990.", ["in", "1990", "."]),
    (".5 and 5.", [".", "5", "and", "5", "."]),
    ("a.b,c", ["a", ".", "b", ",", "c"]),
    ("...", [".", ".", "."]),
    ("5-star 5-6 a-5", ["5", "-", "star", "5", "-", "6", "a-5"]),
    ("$5 £5 50%", ["$", "5", "£5", "50", "%"]),
    ("x@y.org #tag a/b a_b", ["x", "@", "y", ".", "org", "#", "tag", "a", "/", "b", "a", "_", "b"]),
    ("R&amp;B &quot;x&quot; &amp;lt; &apos;", ["r", "&", "b", '"', "x", '"', "<", "&", "apos", ";"]),
    ("one <skipped> two", ["one", "two"]),
    ("co-\noperate\nnow", ["cooperate", "now"]),
    ("é\u00a0É\u2003x", ["é", "é", "x"]),
    ("“quoted” – dash… 寿司。", ["“quoted”", "–", "dash…", "寿司。"]),
]


@pytest.mark.parametrize("text, tokens", RULE_EXAMPLES)
def test_each_rule_on_an_example(text, tokens):
    assert mteval.tokenize(text) == tokens


def test_examples_of_the_docstring():
    assert doctest.testmod(mteval).failed == 0


def test_perl_lowers_only_ascii_and_never_joins_lines():
    assert mteval.tokenize_perl("ÉCOLE Ab co-\nop") == ["École", "ab", "co-", "op"]


def test_perl_does_not_split_at_control_separators_where_python_does():
    assert mteval.tokenize("a\x1cb") == ["a", "b"]
    assert mteval.tokenize_perl("a\x1cb") == ["a\x1cb"]


@given(st.text())
@settings(deadline=None)
def test_any_text_is_accepted_and_tokens_hold_no_space(text):
    for tokenize in (mteval.tokenize, mteval.tokenize_perl):
        assert all(token and " " not in token for token in tokenize(text))


@given(st.text(alphabet=st.characters(max_codepoint=127)))
@settings(deadline=None)
def test_both_tokenisers_agree_on_printable_ascii(text):
    text = "".join(character for character in text if character.isprintable())
    assert mteval.tokenize(text) == mteval.tokenize_perl(text)


@given(st.text(alphabet=st.sampled_from("aZ09.,-'&;:!?$£é“ \n<>/"), max_size=40))
@settings(deadline=None)
def test_equals_sacrebleu_13a(text):
    tokenizer = pytest.importorskip("sacrebleu.tokenizers.tokenizer_13a").Tokenizer13a()
    assert mteval.tokenize(text) == tokenizer(text).lower().split()
