"""Files to examples, examples to ids, ids to batches: the same as in the paper's code."""

import os
from pathlib import Path

import pytest
import tiktoken
import torch
from tiny import tables

from e2e_data import (
    IGNORED,
    SHA256,
    Batch,
    Example,
    collate,
    encode,
    encode_prompt,
    epoch_order,
    group_references,
    linearise,
    load_split,
    read_examples,
)
from evaluate import newline_tokens
from harness.files import InputError, sha256_of
from harness.tokenizers import load_tokenizer

SHARED = Path(__file__).resolve().parents[2] / "shared"
real_files = pytest.mark.skipif(not (SHARED / "e2e").exists(), reason="E2E's files are not present (../shared/e2e)")
real_vocabulary = pytest.mark.skipif(
    not (SHARED / "tiktoken_cache").exists() and not os.environ.get("TIKTOKEN_CACHE_DIR"),
    reason="GPT-2's vocabulary is not present (../shared/tiktoken_cache or TIKTOKEN_CACHE_DIR)",
)


@pytest.fixture
def gpt2_tokenizer(monkeypatch):
    if not os.environ.get("TIKTOKEN_CACHE_DIR"):
        monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(SHARED / "tiktoken_cache"))
    return load_tokenizer("gpt2")


# ----------------------------------------------------------------------------- files


def test_an_official_table_becomes_the_papers_source_string():
    table = (
        "name[The Eagle], eatType[coffee shop], food[Japanese], priceRange[£20-25], customer rating[5 out of 5],"
        " area[riverside], familyFriendly[yes], near[Burger King]"
    )
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


def test_csv_columns_may_have_any_order_and_fields_may_hold_commas_and_line_ends(tmp_path):
    (tmp_path / "a.csv").write_bytes(
        '\ufeffid,ref,mr\r\n7,"Loud,\r\nand cheap.","name[A ""1""], food[Thai]"\r\n'.encode()
    )
    assert read_examples(tmp_path / "a.csv") == [Example('name : A "1" | food : Thai', "Loud,\nand cheap.")]


def test_references_are_grouped_by_source_in_file_order():
    examples = [Example("a", "1 "), Example("b", "2 "), Example("a", "3 "), Example("c", "4")]
    assert list(group_references(examples).items()) == [("a", ["1", "3"]), ("b", ["2"]), ("c", ["4"])]


@real_files
def test_the_papers_files_have_their_published_sizes_and_checksums():
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
def test_an_example_has_the_ids_of_the_papers_code(gpt2_tokenizer):
    """A space (220) precedes the separator; two precede the end token, because targets end in a space."""
    example = Example(
        "name : Blue Spice | Type : coffee shop | area : city centre",
        "A coffee shop in the city centre area called Blue Spice . ",
    )
    (encoded,) = encode(gpt2_tokenizer, [example], room=1019)
    prompt = [1438, 1058, 4518, 43537, 930, 5994, 1058, 6891, 6128, 930, 1989, 1058, 1748, 7372, 220, 50256]
    target = [317, 6891, 6128, 287, 262, 1748, 7372, 1989, 1444, 4518, 43537, 764, 220, 220, 50256]
    assert encoded.ids == prompt + target
    assert encoded.n_prompt == len(prompt)
    assert encode_prompt(gpt2_tokenizer, example.source) == prompt
    assert encode(gpt2_tokenizer, [example], 1019, score_separator=True)[0].n_prompt == len(prompt) - 1
    assert newline_tokens(gpt2_tokenizer) == (198, 628)
    assert len(gpt2_tokenizer.encode_ordinary(" table-to-text:")) == 6


@real_files
@real_vocabulary
def test_the_longest_test_example_has_136_tokens(gpt2_tokenizer):
    encoded = encode(gpt2_tokenizer, load_split(str(SHARED / "e2e"), "test"), room=1019)
    assert max(len(ids) for ids, _ in encoded) == 136


def test_an_end_token_written_in_the_text_is_ordinary_text(world):
    tokenizer = load_tokenizer(str(world / "model"))
    (encoded,) = encode(tokenizer, [Example("name : <|endoftext|>", "x <|endoftext|> y")], room=150)
    ends = [i for i, token in enumerate(encoded.ids) if token == tokenizer.eot_token]
    assert ends == [encoded.n_prompt - 1, len(encoded.ids) - 1]


def test_an_example_longer_than_the_context_is_named(world):
    tokenizer = load_tokenizer(str(world / "model"))
    said = (
        "example 2.* has 7[0-9] tokens, but only 40 fit into the model.s context: 'name : B"
        ".*leave out what is too long with --skip_long"
    )
    with pytest.raises(InputError, match=said):
        encode(tokenizer, [Example("name : A", "A ."), Example("name : B | " + "q " * 30, "B .")], room=40)


def test_a_models_own_vocabulary_is_read_through_tiktoken(world, monkeypatch):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "/nowhere")
    tokenizer = load_tokenizer(str(world / "model"))
    assert isinstance(tokenizer, tiktoken.Encoding) and tokenizer.eot_token == 400 == tokenizer.n_vocab - 1
    for text in (" name : Café Ruby | food : Thai", "日本 🙂\n\n\t naïve", ""):
        assert tokenizer.decode(tokenizer.encode_ordinary(text)) == text
    assert os.environ["TIKTOKEN_CACHE_DIR"] == "/nowhere"


def test_the_vocabulary_is_read_under_the_hubs_file_names_too(world, tmp_path):
    for ours, hubs in (("vocab.bpe", "merges.txt"), ("encoder.json", "vocab.json"), ("config.json", "config.json")):
        (tmp_path / hubs).write_bytes((world / "model" / ours).read_bytes())
    text = " name : Café Ruby | food : Thai"
    ids, expected = (load_tokenizer(str(folder)).encode_ordinary(text) for folder in (tmp_path, world / "model"))
    assert ids == expected


# ----------------------------------------------------------------------------- batches


@pytest.mark.parametrize("n", [1, 3, 10])
def test_a_batch_is_padded_on_the_right_and_its_labels_are_the_scored_tokens(world, n):
    tokenizer = load_tokenizer(str(world / "model"))
    encoded = encode(tokenizer, tables(n), room=150)
    tokens, labels = collate(encoded, tokenizer.eot_token)
    T = max(len(ids) for ids, _ in encoded)
    assert tokens.shape == labels.shape == (n, T) and tokens.dtype == labels.dtype == torch.int64
    for row, (ids, n_prompt) in enumerate(encoded):
        padding = T - len(ids)
        assert tokens[row].tolist() == ids + [tokenizer.eot_token] * padding
        assert labels[row].tolist() == [IGNORED] * n_prompt + ids[n_prompt:] + [IGNORED] * padding


def test_the_labels_are_the_sentence_and_the_end_token(world):
    tokenizer = load_tokenizer(str(world / "model"))
    example = Example("name : A | food : Thai", "A serves Thai food . ")
    tokens, labels = collate(encode(tokenizer, [example, *tables(9)], room=150), tokenizer.eot_token)
    scored = labels[0][labels[0] != IGNORED].tolist()
    assert tokenizer.decode(scored) == " A serves Thai food .  <|endoftext|>"
    assert tokenizer.decode(tokens[0, : int((labels[0] != IGNORED).nonzero()[0])].tolist()) == (
        " name : A | food : Thai <|endoftext|>"
    )


def test_score_separator_labels_the_separator_too(world):
    tokenizer = load_tokenizer(str(world / "model"))
    without, with_it = (
        collate(encode(tokenizer, tables(10), 150, score_separator), tokenizer.eot_token).labels
        for score_separator in (False, True)
    )
    first = (without != IGNORED).int().argmax(dim=1)  # [B] the first scored position
    expected = without.clone()
    expected[torch.arange(10), first - 1] = tokenizer.eot_token
    assert torch.equal(with_it, expected)


def test_a_batch_moves_to_a_device_as_a_whole(world):
    tokenizer = load_tokenizer(str(world / "model"))
    batch = collate(encode(tokenizer, tables(3), room=150), tokenizer.eot_token).to("meta")
    assert isinstance(batch, Batch) and batch.tokens.device.type == batch.labels.device.type == "meta"


def test_an_epochs_order_depends_on_seed_and_epoch_alone():
    order = epoch_order(100, seed=1, epoch=0)
    torch.manual_seed(77)
    assert order == epoch_order(100, 1, 0) and sorted(order) == list(range(100))
    assert order != epoch_order(100, 1, 1) != epoch_order(100, 2, 0)
