"""Reading outputs and references: each form, each repair, and a clear sentence for each mistake."""

from pathlib import Path

import pytest

from harness.files import InputError
from metrics import read

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture
def put(tmp_path):
    """put("name", text or bytes) writes a file and returns its path."""

    def write(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
        return path

    return write


def references_of(put, name, content, outputs=2, sources=None):
    return read.read_references(put(name, content), sources or [""] * outputs)


# ------------------------------------------------------------------------- text


def test_one_output_a_line_and_a_blank_line_is_an_empty_output(put):
    assert read.load(put("out.txt", "one\n\n  three \n"), put("ref.txt", "a\nb\nc\n")) == (
        ["", "", ""],
        ["one", "", "three"],
        [["a"], ["b"], ["c"]],
    )


def test_all_outputs_may_be_empty(put):
    assert read.load(put("out.txt", "\n\n"), put("ref.txt", "a\nb\n")).hypotheses == ["", ""]


def test_blocks_of_references(put):
    assert references_of(put, "r.txt", "a\nb\n\nc\n") == [["a", "b"], ["c"]]


@pytest.mark.parametrize("ending", ["", "\n", "\n\n", "\n\n\n", "\n \n"])
def test_blank_lines_at_the_end_do_not_count(put, ending):
    assert references_of(put, "r.txt", "a\nb\n\nc" + ending) == [["a", "b"], ["c"]]


def test_windows_and_old_mac_line_ends(put):
    assert references_of(put, "r.txt", "a\r\nb\r\n\r\nc\r\n") == [["a", "b"], ["c"]]
    assert references_of(put, "r.txt", "a\rb\r\rc\r") == [["a", "b"], ["c"]]


def test_lines_also_end_at_unicode_line_separators(put):
    assert read.read_lines(put("o.txt", "a\u2028b\x85c\n")) == ["a", "b", "c"]


def test_byte_order_mark_is_dropped(put):
    assert read.read_lines(put("o.txt", b"\xef\xbb\xbfone\n")) == ["one"]


def test_references_without_blank_lines_are_one_an_output(put):
    assert references_of(put, "r.txt", "a\nb\n") == [["a"], ["b"]]


def test_a_single_output_may_have_several_references(put):
    assert references_of(put, "r.txt", "a\nb\n", outputs=1) == [["a", "b"]]


# ------------------------------------------------------------------------- tables

TABLES = {
    "header": "mr,ref\ns1,a\ns1,b\ns2,c\n",
    "header in capitals, other order": "REFERENCE,Source MR\na,s1\nb,s1\nc,s2\n",
    "header with a third column": "id,mr,ref\n1,s1,a\n2,s1,b\n3,s2,c\n",
    "quoted": '"mr","ref"\n"s1","a"\n"s1","b"\n"s2","c"\n',
    "no header": "s1,a\ns1,b\ns2,c\n",
    "tabs": "src\thuman ref\ns1\ta\ns1\tb\ns2\tc\n",
    "byte-order mark": "\ufeffmr,ref\ns1,a\ns1,b\ns2,c\n",
    "blank lines": "\nmr,ref\n\ns1,a\ns1,b\n\n\ns2,c\n\n",
    "dialogue act": "dial_act,target\ns1,a\ns1,b\ns2,c\n",
    "field over two lines": 'mr,ref\n"s\n1",a\ns1,b\ns2,c\n',
}


@pytest.mark.parametrize("kind", TABLES)
def test_each_kind_of_table(put, kind):
    assert references_of(put, "r.csv", TABLES[kind]) == [["a", "b"], ["c"]]


def test_the_separator_is_a_tab_where_the_first_line_has_one_whatever_the_file_is_called(put):
    assert references_of(put, "r.csv", "mr\tref\ns1\ta, b\ns2\tc\n") == [["a, b"], ["c"]]
    assert references_of(put, "r.TSV", "mr,ref\ns1,a\ns2,c\n") == [["a"], ["c"]]


def test_repairs_of_broken_encodings_in_tables_only(put):
    broken = "Ł20 Â£20 cafÃ© cafã©"
    assert references_of(put, "r.csv", f"mr,ref\ns,{broken}\n") == [["£20 £20 café café"]]
    assert references_of(put, "r.txt", f"{broken}\nx\n") == [[broken], ["x"]]


def test_without_sources_of_outputs_only_consecutive_rows_are_grouped(put):
    assert references_of(put, "r.csv", "mr,ref\ns1,a\ns2,b\ns1,c\n", outputs=3) == [["a"], ["b"], ["c"]]


def test_with_sources_of_outputs_references_are_ordered_by_them(put):
    outputs = put("o.csv", "mr,output\ns2,x\ns1,y\n")
    references = put("r.csv", "mr,ref\ns1,a\ns2,b\ns1,c\n")
    assert read.load(outputs, references) == (["s2", "s1"], ["x", "y"], [["b"], ["a", "c"]])


def test_outputs_with_sources_and_references_as_text(put):
    outputs = put("o.tsv", "source\tsystem output\ns2\tx\ns1\ty\n")
    assert read.load(outputs, put("r.txt", "a\n\nb\n")) == (["s2", "s1"], ["x", "y"], [["a"], ["b"]])


def test_a_source_file_is_compared_with_the_sources_of_the_outputs(put):
    outputs, references = put("o.txt", "mr,output\ns1,x\ns2,y\n"), put("r.txt", "a\nb\n")
    assert read.load(outputs, references, put("s.txt", "s1\ns2\n")).hypotheses == ["x", "y"]
    with pytest.raises(InputError, match='output 2: its source is "s2", but line 2 of .*s.txt is "s3"'):
        read.load(outputs, references, put("s.txt", "s1\ns3\n"))
    with pytest.raises(InputError, match="2 outputs but .* 1 sources"):
        read.load(outputs, references, put("s.txt", "s1\n"))


# ------------------------------------------------------------------------- source||target


def test_pairs_are_grouped_by_source_in_file_order(put):
    pairs = "name : A | area : x||one . \nname : B||two .\nname : A | area : x||three ||.\n"
    assert references_of(put, "src1_test.txt", pairs) == [["one .", "three ||."], ["two ."]]


def test_lines_of_which_only_some_hold_bars_are_text(put):
    assert references_of(put, "r.txt", "a||b\nc\n") == [["a||b"], ["c"]]


# ------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    "outputs, references, complaint",
    [
        (("o.txt", "x\n"), ("r.txt", "a\n\nb\n"), "1 outputs but .*r.txt has references for 2"),
        (("o.txt", "x\ny\n"), ("r.csv", "mr,ref\ns1,a\ns1,b\n"), "2 outputs but .* for 1"),
        (("o.txt", ""), ("r.txt", "a\n"), "o.txt is empty"),
        (("o.txt", "x\n"), ("r.txt", " \n\n"), "r.txt is empty"),
        (("o.txt", b"x\n\xff\n"), ("r.txt", "a\nb\n"), "o.txt, line 2: not UTF-8"),
        (("o.txt", "x\ny\n"), ("r.txt", "a\n\n\nb\n"), "r.txt, line 3: a blank line without"),
        (("o.txt", "x\n"), ("r.txt", "\na\n"), "r.txt, line 1: a blank line without"),
        (("o.txt", "x\n"), ("r.csv", "a,b,c\nd,e,f\n"), "r.csv, line 1: 0 columns look like sources and 0 like ref"),
        (("o.txt", "x\n"), ("r.csv", "mr,ref,human\ns,a,b\n"), "line 1: 1 columns .* 2 like references"),
        (("o.csv", "s1,Outside it rains\n"), ("r.txt", "a\n"), "o.csv, line 1: .* write a header line"),
        (("o.txt", "x\n"), ("r.csv", "mr,ref\n\ns1,a\ns2,b,c\n"), "r.csv, line 4: 3 columns where the first"),
        (("o.txt", "x\n"), ("r.csv", "mr,ref\n"), "nothing below"),
        (("o.csv", "mr,out\ns1,x\n"), ("r.csv", "mr,ref\ns2,a\n"), 'no reference for the source "s1"'),
        (
            ("o.csv", "mr,out\ns1,x\n"),
            ("r.csv", "mr,ref\ns1,a\ns2,b\n"),
            '1 of the 2 sources .* no output, one is "s2"',
        ),
        (("o.csv", 'mr,out\ns1,"x\n'), ("r.csv", "mr,ref\ns1,a\n"), "o.csv, line 2: not a table .*: check its quotes"),
        (("o.txt", "x\n"), ("r.csv", "mr,ref\ns1," + "a" * 200_000 + "\n"), "r.csv, line 2: not a table"),
    ],
)
def test_mistakes_are_named_in_one_sentence(put, outputs, references, complaint):
    with pytest.raises(InputError, match=complaint) as error:
        read.load(put(*outputs), put(*references))
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named(put, tmp_path):
    with pytest.raises(InputError, match="nowhere.txt does not exist"):
        read.load(tmp_path / "nowhere.txt", put("r.txt", "a\n"))


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared folder is not here")
def test_real_files_have_the_known_numbers_of_segments_and_references():
    e2e = SHARED / "e2e"
    for name, segments, texts in [
        ("src1_test.txt", 630, 4693),
        ("testset_w_refs.csv", 630, 4693),
        ("devset.csv", 547, 4672),
        ("src1_valid.txt", 547, 4672),
    ]:
        references = read.read_references(e2e / name, [""] * segments)
        assert (len(references), sum(map(len, references))) == (segments, texts)
