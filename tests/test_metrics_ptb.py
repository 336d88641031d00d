"""The PTB tokeniser against the one it follows.

Three kinds of proof. Recorded: lines written for this file, with the tokens the reference gave them. Live: the
reference run with Java on large texts, where pycocoevalcap and Java are there. And the strongest: the reference's
own automaton, read out of its jar without Java, is the same automaton as ours, on every text there is.

    python tests/test_metrics_ptb.py        records ptb_recorded.json again (needs Java)
"""

import csv
import doctest
import gzip
import importlib.util
import json
import random
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from metrics import ptb
from metrics.ptb import Matcher, tokenize, tokenize_for_scoring, tokenize_lines, without_punctuation
from metrics.ptb_patterns import RULES

RECORDED = Path(__file__).with_name("ptb_recorded.json")
SHARED = Path(__file__).resolve().parents[2] / "shared"

_SPEC = importlib.util.find_spec("pycocoevalcap")
JAR = Path(_SPEC.submodule_search_locations[0], "tokenizer", "stanford-corenlp-3.4.1.jar") if _SPEC else None
needs_jar = pytest.mark.skipif(JAR is None or not JAR.exists(), reason="needs pycocoevalcap, for the tokeniser's jar")
needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="needs Java")
needs_shared = pytest.mark.skipif(not SHARED.exists(), reason="needs the folder ../shared with E2E and the corpora")


def reference(lines):
    """The tokens of each line, from the jar, called as the scorer calls it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "lines.txt")
        path.write_bytes("\n".join(line.replace("\n", " ") for line in lines).encode())
        command = ["java", "-cp", str(JAR), "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
        output = subprocess.run([*command, str(path)], capture_output=True, check=True).stdout.decode()
    result = [[word for word in line.split(" ") if word] for line in output.split("\n")]
    return result + [[]] * (len(lines) - len(result))


def differences(lines):
    """(share of identical lines, the first few that differ)"""
    with ThreadPoolExecutor(1) as other:  # Java works while we do
        expected = other.submit(reference, lines)
        got, expected = tokenize_lines(lines), expected.result()
    assert len(got) == len(lines) == len(expected)
    different = [f"{line!r}\n  reference {a}\n  ours      {b}" for line, a, b in zip(lines, expected, got) if a != b]
    return 1 - len(different) / len(lines), "\n".join(different[:5])


# --- on paper


def test_examples_of_the_docstrings():
    assert doctest.testmod(ptb).failed == 0


def test_the_longest_match_wins_and_the_first_pattern_breaks_ties():
    matcher = Matcher(["ab|a", "abc?", "[a-c]{2}", r"a(b|c)*d"])
    assert matcher.longest("a", 0, 1) == (0, 1)
    assert matcher.longest("ab", 0, 2) == (0, 2)  # patterns 0, 1 and 2
    assert matcher.longest("aBcc", 0, 4) == (1, 3)  # letters outside brackets have no case
    assert matcher.longest("abcbcd", 0, 6) == (3, 6)
    assert matcher.longest("abcbcd", 0, 5) == (1, 3)  # never past the stop
    assert matcher.longest("xab", 1, 3) == (0, 3)
    assert matcher.longest("x", 0, 1) == (None, 0)


def test_matcher_equals_re_on_all_short_texts():
    """`re` has no longest match, but it can say of every prefix whether a pattern matches all of it."""
    texts = [""]
    for text in texts:
        if len(text) < 6:
            texts += [text + char for char in "abc"]
    for pattern in ["a*b+c?", "(a|b)*c", "(ab?){2,3}", "a{2}|(b|ca)+", "((a|bc)?b)*", "(a?b?c?)+", "[^b]+b{0,2}"]:
        matcher = Matcher([pattern])
        for text in texts:
            ends = [end for end in range(1, len(text) + 1) if re.fullmatch(pattern, text[:end])]
            assert matcher.longest(text, 0, len(text)) == ((0, ends[-1]) if ends else (None, 0)), (pattern, text)


def test_quirks_that_the_docstring_names():
    assert tokenize("1 1/2") == ["1\u00a01/2"]
    assert tokenize_for_scoring("cheap (but good) food.") == ["cheap", "-lrb-", "but", "good", "-rrb-", "food"]
    assert tokenize("20 - 25 L.") == ["20", "-", "25", "l."]
    assert tokenize_lines(["20 - 25 L.", "The end"])[0] == ["20", "-", "25", "l", "."]
    assert tokenize_lines(["It was no.", "5 Main Street"])[0] == ["it", "was", "no."]
    assert tokenize("It was no.") == ["it", "was", "no", "."]
    assert tokenize("one\rtwo\u2028three") == ["one", "two", "three"]
    assert tokenize("a \ud800 b") == ["a", "b"]


def test_a_line_break_inside_a_line_is_a_space():
    assert tokenize("the cat\nsat") == ["the", "cat", "sat"] and tokenize_lines(["a\nb", "c"]) == [["a", "b"], ["c"]]


def test_nothing_in_nothing_out():
    assert tokenize_lines([]) == [] and tokenize("") == [] and tokenize_for_scoring(" .\t") == []


# --- recorded


def test_tokens_equal_the_recorded_ones():
    recorded = json.loads(RECORDED.read_text())
    assert len(recorded["alone"]) > 100
    for line, tokens in recorded["alone"]:
        assert tokenize(line) == tokens
    lines, tokens = zip(*recorded["together"])
    assert tokenize_lines(list(lines)) == list(tokens)


def record():
    recorded = json.loads(RECORDED.read_text())
    alone = [(line, reference([line])[0]) for line, _ in recorded["alone"]]
    lines = [line for line, _ in recorded["together"]]
    together = list(zip(lines, reference(lines)))
    blocks = [
        f'"{name}": [\n' + ",\n".join(json.dumps(pair) for pair in pairs) + "\n]"
        for name, pairs in (("alone", alone), ("together", together))
    ]
    RECORDED.write_text("{\n" + ",\n".join(blocks) + "\n}\n")


# --- properties


@settings(max_examples=300, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=[]), max_size=60), max_size=4))
@example(["<a b='\n", "'>"])
@example(["http://\ud83d", "\ude00.com"])
def test_any_unicode_is_tokenised_line_by_line(lines):
    result = tokenize_lines(lines)
    assert len(result) == len(lines)
    for line in result:
        assert all(token and " " not in token and "\n" not in token for token in line)
        assert not set(without_punctuation(line)) & ptb.PUNCTUATION


def some_lines(count, seed=0):
    """Lines of many kinds, made of pieces that rules compete for, glued with and without spaces."""
    generator = random.Random(seed)
    recorded = json.loads(RECORDED.read_text())
    pieces = [
        piece
        for line, _ in recorded["alone"] + recorded["together"]
        for piece in line.split(" ")
        if not re.search("[\r\v\f\x85\u2028\u2029\u03a3\ud800-\udfff]", piece)
    ]
    characters = sorted(set("".join(pieces)) | set("aeiNSTU0123459.,'-/&;:<>()#@$_!?")) * 2 + list("abAB01.,'- ") * 40
    names, foods = ["Mr. Brown", "The Rice Boat", "O'Hara", "U.S. officials", "Acme Inc.", "She"], ["sushi", "tea"]

    def mixture():
        kind = generator.randrange(8)
        number = generator.choice(["5", "1,250", "3.5", "20-25", "1/2", "1990s", "10:30", "7%", "2nd", "555-1234"])
        if kind == 0:  # news
            return (
                f"{generator.choice(names)} said on {generator.choice(['Jan.', 'Monday,', 'Sept.'])} {number} that "
                f"profits rose {number} percent to ${number} million, up from £{number}m in the U.S."
            )
        if kind == 1:  # dialogue
            return f"\"I {generator.choice(names)}'d {generator.choice(foods)}, isn't it?\" 'No,' said {names[0]}"
        if kind == 2:  # addresses
            return f"see http://www.{number}.com/{generator.choice(pieces)}, or www.b&b.org. joe@{number}.com #{number}"
        if kind < 6:
            return "".join(
                generator.choice(pieces) + generator.choice(["", " ", " ", ". ", ", ", "'", "-", ". The "])
                for _ in range(generator.randint(0, 12))
            )
        return "".join(generator.choice(characters) for _ in range(generator.randint(0, 40)))

    return [mixture() for _ in range(count)]


def test_plain_words_take_a_shortcut_to_the_same_tokens(monkeypatch):
    lines = some_lines(2000, seed=1) + [line for line, _ in json.loads(RECORDED.read_text())["alone"]]
    quick = tokenize_lines(lines)
    monkeypatch.setattr(ptb, "PLAIN_WORDS", re.compile("(?!)"))
    assert tokenize_lines(lines) == quick


def test_text_like_the_text_before_computes_no_step_again(monkeypatch):
    """What makes it fast: from the second time on, a character costs one look-up in a state's table."""
    line = "There is a cheap, family-friendly pub near Café Rouge called The Golden Curry; it's rated 3 out of 5."
    expected = tokenize_lines([line] * 2)
    monkeypatch.setattr(Matcher, "step", lambda *_: pytest.fail("a step was computed again"))
    assert tokenize_lines([line] * 2000) == expected * 1000


def test_plain_words_skip_the_automaton(monkeypatch):
    begins, longest = [], Matcher.longest
    counting = lambda self, text, begin, stop: begins.append(begin) or longest(self, text, begin, stop)
    monkeypatch.setattr(Matcher, "longest", counting)
    assert tokenize("There is a pub near here") == ["there", "is", "a", "pub", "near", "here"]
    assert begins == [len("There is a pub near ")]  # a blank follows a plain word


# --- the same automaton


def jar_tables():
    """The tables of the reference's scanner: run-length coded strings in the constant pool of its class file."""
    data = zipfile.ZipFile(JAR).read("edu/stanford/nlp/process/PTBLexer.class")
    pool, at, index = {}, 10, 1
    sizes = {3: 5, 4: 5, 5: 9, 6: 9, 7: 3, 8: 3, 9: 5, 10: 5, 11: 5, 12: 5, 15: 4, 16: 3, 18: 5}
    while index < struct.unpack_from(">H", data, 8)[0]:
        if data[at] == 1:  # text, in Java's variant of UTF-8: UTF-16 units
            length = struct.unpack_from(">H", data, at + 1)[0]
            raw = data[at + 3 : at + 3 + length].replace(b"\xc0\x80", b"\x00")
            pool[index], at = raw.decode("utf-8", "surrogatepass"), at + 3 + length
        else:
            pool[index] = struct.unpack_from(">H", data, at + 1)[0] if data[at] == 8 else None
            at, index = at + sizes[data[at]], index + (data[at] in (5, 6))
        index += 1
    u2 = lambda: struct.unpack_from(">H", data, at)[0]  # noqa: E731
    at += 6
    at += 2 + 2 * u2()  # the interfaces
    fields, at, constants = u2(), at + 2, {}
    for _ in range(fields):
        at += 2
        name, at = pool[u2()], at + 4
        attributes, at = u2(), at + 2
        for _ in range(attributes):
            kind, length = pool[u2()], struct.unpack_from(">I", data, at + 2)[0]
            at += 6
            if kind == "ConstantValue" and isinstance(pool[u2()], int):
                constants[name] = pool[pool[u2()]]
            at += length

    def unpacked(name):
        units = "".join(constants[key] for key in sorted(constants) if re.fullmatch(name + r"_PACKED(_\d+)?", key))
        units = [ord(unit) for unit in units]
        return [value for count, value in zip(units[0::2], units[1::2]) for _ in range(count)]

    rows = [ord(unit) for unit in constants["ZZ_ROWMAP_PACKED_0"]]
    rows = [high << 16 | low for high, low in zip(rows[0::2], rows[1::2])]
    # An arc is stored plus one, so that 0 can mean "no arc"; the lowest bit of a state's attribute says "final".
    return (
        unpacked("ZZ_CMAP"),
        rows,
        [state - 1 for state in unpacked("ZZ_TRANS")],
        unpacked("ZZ_ACTION"),
        [bool(value & 1) for value in unpacked("ZZ_ATTRIBUTE")],
    )


@pytest.mark.slow
@needs_jar
def test_our_automaton_is_the_one_in_the_jar():
    """Walk both from the start, over every kind of character, through every pair of states that can be reached
    together. If both always accept together, and each of our rules always belongs to one action of the jar's, then
    no text of UTF-16 units exists on which the two find different matches. A proof, not a sample."""
    kind_of, rows, arcs, action, final = jar_tables()
    matcher = ptb.rules()
    sets = sorted(set(matcher.sets))
    kinds = {}  # characters that neither automaton tells apart
    for code in range(65536):
        kinds.setdefault((kind_of[code], tuple(ptb.accepts.__wrapped__(chars, chr(code)) for chars in sets)), chr(code))
    assert len(kinds) > 100

    start = 2  # 0 and 1 start the other dialects of the reference
    todo, seen, actions_of = [(start, matcher.start)], {(start, id(matcher.start))}, {}
    while todo:
        theirs, ours = todo.pop()
        for (kind, _), char in kinds.items():
            their_next, our_next = arcs[rows[theirs] + kind], ours[char]
            assert (their_next == -1) == (our_next is None)
            if our_next is None:
                continue
            assert final[their_next] == (our_next.number is not None)
            if our_next.number is not None:
                actions_of.setdefault(our_next.number, set()).add(action[their_next])
            if (their_next, id(our_next)) not in seen:
                seen.add((their_next, id(our_next)))
                todo.append((their_next, our_next))
    assert len(seen) > 5000
    assert {number: len(actions) for number, actions in actions_of.items()} == dict.fromkeys(range(len(RULES)), 1)


# --- live


@needs_jar
@needs_java
def test_lines_of_many_kinds_equal_the_reference():
    share, examples = differences(some_lines(20000, seed=2))
    assert share == 1, examples


@needs_jar
@needs_java
def test_scoring_tokens_equal_pycocoevalcap():
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    lines = some_lines(1000, seed=3)
    theirs = PTBTokenizer().tokenize({number: [{"caption": line}] for number, line in enumerate(lines)})
    assert [" ".join(without_punctuation(tokens)) for tokens in tokenize_lines(lines)] == [theirs[n][0] for n in theirs]


@needs_shared
@needs_jar
@needs_java
@pytest.mark.parametrize(
    "name",
    [
        "devset.csv",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("dev_outputs", "testset_w_refs.csv", "src1_valid.txt", "src1_test.txt")
        ),
    ],
)
def test_e2e_equals_the_reference(name):
    if name == "dev_outputs":
        paths = sorted((SHARED / "scores" / name).glob("*.txt"))
        lines = [line for path in paths for line in path.read_text(encoding="utf-8").split("\n")]
        assert len(paths) == 20
    elif name.endswith(".csv"):
        with open(SHARED / "e2e" / name, encoding="utf-8", newline="") as file:
            lines = [text for row in csv.reader(file) for text in row]
    else:
        text = (SHARED / "e2e" / name).read_text(encoding="utf-8")
        lines = [part for line in text.split("\n") for part in line.split("||")]
    assert len(lines) > 9000
    share, examples = differences(lines)
    assert share == 1, examples


@pytest.mark.slow
@needs_shared
@needs_jar
@needs_java
@pytest.mark.parametrize("name", ["books", "dialogue", "expository", "structured"])
def test_running_text_equals_the_reference(name):
    """A tenth of each corpus: one block of 500 lines in ten."""
    with gzip.open(SHARED / "corpus" / f"{name}.txt.gz", "rt", encoding="utf-8", newline="\n") as file:
        lines = [line.rstrip("\n") for number, line in enumerate(file) if number // 500 % 10 == 0]
    share, examples = differences(lines)
    print(f"{name}: {share:.4%} of {len(lines)} lines identical")
    assert share >= 0.9999, examples


if __name__ == "__main__":
    record()
