"""Files become examples, examples ids, ids batches, as the paper's code has it."""

import os
from pathlib import Path

import pytest
import tiktoken
import torch
from tiny import tables

from e2e_data import (
    Example,
    collate,
    encode,
    encode_prompt,
    epoch_order,
    group_references,
    linearise,
    load_split,
    load_tokenizer,
    read_examples,
)  # fmt: skip
from evaluate import newline_tokens
from fast.loss import STEP
from harness.files import InputError, sha256_of

SHARED = Path(__file__).resolve().parents[2] / "shared"
real_files = pytest.mark.skipif(not (SHARED / "e2e").exists(), reason="E2E's files are not at hand (../shared/e2e)")
real_vocabulary = pytest.mark.skipif(
    not (SHARED / "tiktoken_cache").exists() and not os.environ.get("TIKTOKEN_CACHE_DIR"),
    reason="GPT-2's vocabulary is not at hand (../shared/tiktoken_cache or TIKTOKEN_CACHE_DIR)",
)


@pytest.fixture
def gpt2_tokenizer(monkeypatch):
    if not os.environ.get("TIKTOKEN_CACHE_DIR"):
        monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(SHARED / "tiktoken_cache"))
    return load_tokenizer("gpt2")


# ----------------------------------------------------------------------------- files


def test_an_official_table_becomes_the_papers_source_string():
    table = "name[The Eagle], eatType[coffee shop], food[Japanese], priceRange[£20-25], customer rating[5 out of 5], area[riverside], familyFriendly[yes], near[Burger King]"
    assert linearise(table) == (
        "name : The Eagle | Type : coffee shop | food : Japanese | price : £ 20 - 25 | customer rating : 5 out of 5"
        " | area : riverside | family friendly : yes | near : Burger King"
    )
    assert (
        linearise("near[Café Sicilia], name[Blue Spice], colour[red]")
        == "name : Blue Spice | near : Café Sicilia | colour : red"
    )
    assert linearise("priceRange[more than £30],name[X]") == "name : X | price : more than £ 30"


def test_text_and_csv_give_the_same_examples(tmp_path):
    (tmp_path / "a.txt").write_text(
        "name : A | food : Thai||A serves Thai food . \n\nname : B | area : riverside||B is by the river . \n"
    )
    (tmp_path / "a.csv").write_text(
        'mr,ref\n"name[A], food[Thai]",A serves Thai food . \n"name[B], area[riverside]",B is by the river . \n'
    )
    expected = [
        Example("name : A | food : Thai", "A serves Thai food . "),
        Example("name : B | area : riverside", "B is by the river . "),
    ]
    assert read_examples(tmp_path / "a.txt") == read_examples(tmp_path / "a.csv") == expected


def test_csv_columns_may_stand_in_any_order_and_fields_may_hold_commas_and_line_ends(tmp_path):
    (tmp_path / "a.csv").write_bytes(
        '\ufeffid,ref,mr\r\n7,"Loud,\r\nand cheap.","name[A ""1""], food[Thai]"\r\n'.encode()
    )
    assert read_examples(tmp_path / "a.csv") == [Example('name : A "1" | food : Thai', "Loud,\nand cheap.")]


def test_references_are_grouped_by_source_in_file_order():
    examples = [Example("a", "1 "), Example("b", "2 "), Example("a", "3 "), Example("c", "4")]
    assert list(group_references(examples).items()) == [("a", ["1", "3"]), ("b", ["2"]), ("c", ["4"])]


@real_files
def test_the_papers_files_have_their_published_sizes_and_checksums():
    from e2e_data import SHA256

    for split, rows, sources in (("train", 42061, 4862), ("valid", 4672, 547), ("test", 4693, 630)):
        examples = load_split(str(SHARED / "e2e"), split)
        assert (len(examples), len(group_references(examples))) == (rows, sources)
        assert sha256_of(SHARED / "e2e" / f"src1_{split}.txt") == SHA256[f"src1_{split}.txt"]


@real_files
def test_the_official_release_linearises_to_the_papers_sources():
    for official, paper in (("devset.csv", "src1_valid.txt"), ("testset_w_refs.csv", "src1_test.txt")):
        ours, theirs = read_examples(SHARED / "e2e" / official), read_examples(SHARED / "e2e" / paper)
        assert [e.source for e in ours] == [e.source for e in theirs]


# ----------------------------------------------------------------------------- ids


@real_vocabulary
def test_gpt2_reads_an_example_as_in_the_papers_code(gpt2_tokenizer):
    """A lone space (220) stands before the separator and, as targets end in one, two before the end token."""
    example = Example(
        "name : Blue Spice | Type : coffee shop | area : city centre",
        "A coffee shop in the city centre area called Blue Spice . ",
    )
    (encoded,) = encode(gpt2_tokenizer, [example], room=1019)
    prompt = [1438, 1058, 4518, 43537, 930, 5994, 1058, 6891, 6128, 930, 1989, 1058, 1748, 7372, 220, 50256]
    assert encoded.ids == prompt + [
        317,
        6891,
        6128,
        287,
        262,
        1748,
        7372,
        1989,
        1444,
        4518,
        43537,
        764,
        220,
        220,
        50256,
    ]
    assert encoded.n_prompt == len(prompt)
    assert encode_prompt(gpt2_tokenizer, example.source) == prompt
    assert encode(gpt2_tokenizer, [example], 1019, score_separator=True)[0].n_prompt == len(prompt) - 1
    assert newline_tokens(gpt2_tokenizer) == (198, 628)
    assert len(gpt2_tokenizer.encode_ordinary(" table-to-text:")) == 6


@real_files
@real_vocabulary
def test_the_test_sets_lengths_are_the_known_ones(gpt2_tokenizer):
    encoded = encode(gpt2_tokenizer, load_split(str(SHARED / "e2e"), "test"), room=1019)
    assert max(len(ids) for ids, _ in encoded) == 136


def test_an_end_token_written_inside_a_table_is_ordinary_text(world):
    tokenizer = load_tokenizer(str(world / "model"))
    (encoded,) = encode(tokenizer, [Example("name : <|endoftext|>", "x <|endoftext|> y")], room=150)
    assert [i for i, token in enumerate(encoded.ids) if token == tokenizer.eot_token] == [
        encoded.n_prompt - 1,
        len(encoded.ids) - 1,
    ]


def test_an_example_longer_than_the_context_is_named(world):
    tokenizer = load_tokenizer(str(world / "model"))
    with pytest.raises(
        InputError,
        match="example 2.* has 7[0-9] tokens, but only 40 fit into the model.s context beside the prefix: 'name : B.*smaller --prefix_len",
    ):
        encode(tokenizer, [Example("name : A", "A ."), Example("name : B | " + "q " * 30, "B .")], room=40)


def test_a_vocabulary_of_its_own_is_read_through_tiktoken(world, monkeypatch):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "/nowhere")
    tokenizer = load_tokenizer(str(world / "model"))
    assert isinstance(tokenizer, tiktoken.Encoding) and tokenizer.eot_token == 400 == tokenizer.n_vocab - 1
    for text in (" name : Café Ruby | food : Thai", "日本 🙂\n\n\t naïve", ""):
        assert tokenizer.decode(tokenizer.encode_ordinary(text)) == text
    assert os.environ["TIKTOKEN_CACHE_DIR"] == "/nowhere"


def test_the_hubs_names_for_the_vocabularys_files_are_known_too(world, tmp_path):
    for ours, hubs in (("vocab.bpe", "merges.txt"), ("encoder.json", "vocab.json"), ("config.json", "config.json")):
        (tmp_path / hubs).write_bytes((world / "model" / ours).read_bytes())
    text = " name : Café Ruby | food : Thai"
    assert load_tokenizer(str(tmp_path)).encode_ordinary(text) == load_tokenizer(str(world / "model")).encode_ordinary(
        text
    )


# ----------------------------------------------------------------------------- batches


def test_a_batch_scores_exactly_the_tokens_behind_the_separator(world):
    tokenizer = load_tokenizer(str(world / "model"))
    encoded = encode(tokenizer, tables(10), room=150)
    batch = collate(encoded, tokenizer.eot_token)
    B, T = batch.tokens.shape
    assert (B, T) == (10, max(len(e.ids) for e in encoded))
    # Spelled out: the flat position before each scored token, and the token.
    expected = [(row * T + t - 1, e.ids[t]) for row, e in enumerate(encoded) for t in range(e.n_prompt, len(e.ids))]
    assert list(zip(batch.at.tolist(), batch.targets.tolist())) == expected
    assert torch.equal(batch.tokens.flatten()[batch.at + 1], batch.targets)
    for row, e in enumerate(encoded):
        assert batch.tokens[row].tolist() == e.ids + [tokenizer.eot_token] * (T - len(e.ids))


@pytest.mark.parametrize("n", [1, 3, 10, 30])
def test_a_batch_names_all_its_tokens_and_fills_up_with_padding_to_a_round_number(world, n):
    tokenizer = load_tokenizer(str(world / "model"))
    encoded = encode(tokenizer, tables(n), room=150)
    batch = collate(encoded, tokenizer.eot_token)
    B, T = batch.tokens.shape
    real = batch.real.tolist()
    texts = {row * T + t for row, e in enumerate(encoded) for t in range(len(e.ids))}
    assert texts <= set(real) and real == sorted(set(real)) and real[-1] < B * T
    assert len(real) == min(B * T, len(texts) + -len(texts) % STEP)


def test_an_epochs_order_depends_on_seed_and_epoch_alone():
    order = epoch_order(100, seed=1, epoch=0)
    torch.manual_seed(77)
    assert order == epoch_order(100, 1, 0) and sorted(order) == list(range(100))
    assert order != epoch_order(100, 1, 1) != epoch_order(100, 2, 0)
