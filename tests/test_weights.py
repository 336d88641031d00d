"""Reading checkpoints: the tensors that the formats' own libraries read, and one sentence for each faulty file."""

import json
import math
import random
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from tiny import write_config

import weights
from gpt2 import CONFIGS, GPT2, GPT2Config
from harness.files import InputError
from harness.safetensors import DTYPES, read_safetensors, write_safetensors
from harness.tensorflow import read_tensorflow, read_varint
from weights import check_shapes, load_config, load_gpt2

TENSORFLOW = Path(__file__).parent / "fixtures" / "tensorflow"
INDEX, DATA = weights.TF_FILES
FIXTURE = GPT2Config(n_layer=2, n_head=2, n_embd=8, n_positions=16, vocab_size=31)


@pytest.fixture
def model():
    return GPT2(FIXTURE).init_weights(3)


@pytest.fixture
def folder(tmp_path, model):
    """A complete model folder."""
    write_config(tmp_path, FIXTURE)
    write_safetensors(tmp_path / "model.safetensors", model.state_dict(), {})
    return tmp_path


def assert_same(found: dict, wanted: dict) -> None:
    assert found.keys() == wanted.keys()
    for key in wanted:
        assert found[key].dtype == wanted[key].dtype and found[key].shape == wanted[key].shape
        assert torch.equal(found[key], wanted[key])


# ----------------------------------------------------------------------------- safetensors: reading and writing

EVERY_KIND = {
    "f64": torch.tensor([[1e-300, math.pi]], dtype=torch.float64),
    "f32": torch.arange(6.0).view(2, 3),
    "f16": torch.tensor([65504.0, -0.1], dtype=torch.float16),
    "bf16": torch.tensor([[3e38], [0.1]], dtype=torch.bfloat16),
    "i64": torch.tensor([-(2**63), 2**63 - 1]),
    "i32": torch.tensor([7], dtype=torch.int32),
    "i16": torch.tensor([-5, 5], dtype=torch.int16),
    "i8": torch.tensor([-128, 127, 0], dtype=torch.int8),
    "u8": torch.tensor([0, 255, 3], dtype=torch.uint8),
    "bool": torch.tensor([True, False, True]),
    "scalar": torch.tensor(2.5),
    "empty": torch.zeros(0, 4),
    "empty scalar's neighbour": torch.zeros(3, 0, dtype=torch.int64),
    "transposed": torch.arange(6.0).view(2, 3).t(),
    "é / ü": torch.ones(1, 1, 1, 1),
}


def test_a_file_that_the_library_wrote_is_read(tmp_path):
    tensors = {key: tensor.contiguous() for key, tensor in EVERY_KIND.items()}
    safetensors.torch.save_file(tensors, tmp_path / "x.safetensors", {"who": "the library"})
    found, metadata = read_safetensors(tmp_path / "x.safetensors")
    assert_same(found, tensors)
    assert metadata == {"who": "the library"}


def test_the_library_reads_a_file_that_we_wrote(tmp_path):
    write_safetensors(tmp_path / "x.safetensors", EVERY_KIND, {"mode": "prefix"})
    assert_same(safetensors.torch.load_file(tmp_path / "x.safetensors"), EVERY_KIND)
    with safetensors.safe_open(tmp_path / "x.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "mode": "prefix"}
    found, metadata = read_safetensors(tmp_path / "x.safetensors")
    assert_same(found, EVERY_KIND)
    assert list(found) == list(EVERY_KIND) and metadata["mode"] == "prefix"


@pytest.mark.parametrize("shift", range(8))
def test_tensors_may_start_at_any_byte(tmp_path, shift):
    header = {"pad": {"dtype": "U8", "shape": [shift], "data_offsets": [0, shift]}}
    wanted = {"pad": torch.zeros(shift, dtype=torch.uint8)}
    content, end = bytes(shift), shift
    for key, kind in (("f64", "F64"), ("f32", "F32"), ("bf16", "BF16")):
        dtype = DTYPES[kind]
        wanted[key] = torch.tensor([1.5, -2.0]).to(dtype)
        raw = wanted[key].view(torch.uint8).numpy().tobytes()
        header[key] = {"dtype": kind, "shape": [2], "data_offsets": [end, end + len(raw)]}
        content, end = content + raw, end + len(raw)
    put(tmp_path / "x.safetensors", header, content)
    assert_same(read_safetensors(tmp_path / "x.safetensors")[0], wanted)


def test_changing_a_tensor_does_not_change_its_file(folder):
    before = (folder / "model.safetensors").read_bytes()
    read_safetensors(folder / "model.safetensors")[0]["wte.weight"].zero_()
    load_gpt2(str(folder)).init_weights(9)
    assert (folder / "model.safetensors").read_bytes() == before


def test_a_failed_write_keeps_the_old_file(folder, monkeypatch):
    before = (folder / "model.safetensors").read_bytes()

    class Unreadable:
        dtype, shape = torch.float32, torch.Size([2])
        numel, element_size = (lambda self: 2), (lambda self: 4)

        def detach(self):
            raise RuntimeError("device lost")

    with pytest.raises(RuntimeError, match="device lost"):
        write_safetensors(folder / "model.safetensors", {"a": torch.zeros(3), "b": Unreadable()}, {})
    assert (folder / "model.safetensors").read_bytes() == before
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]


# ----------------------------------------------------------------------------- safetensors: damaged


def put(path: Path, header, content: bytes = b"") -> Path:
    """A safetensors file with this header: an object, or raw bytes."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content)
    return path


def entry(dtype="F32", shape=(2,), offsets=(0, 8)) -> dict:
    return {"a": {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}}


@pytest.mark.parametrize(
    "header, said",
    [
        (b"{", "Expecting property name"),
        (b"\xff\xfe\xfd", "codec can't decode"),
        (b"[" * 100_000, "recursion"),
        ([], ""),
        (3, ""),
        ({"a": 3}, ""),
        ({"a": {"dtype": "F32", "shape": [2]}}, "data_offsets"),
        ({"__metadata__": [1]}, ""),
        ({"__metadata__": {"mode": 1}}, "metadata"),
        (entry("F8_E4M3", (8,)), "a has the type F8_E4M3, which is not supported"),
        (entry(["F32"]), ""),
        (entry(offsets=(0, 12)), "a is not where"),
        (entry(shape=(3,)), "a is not where"),
        (entry(offsets=(8, 0)), "a is not where"),
        (entry(offsets=(-8, 0)), "a is not where"),
        (entry(offsets=(4, 12)), "a is not where"),
        (entry(offsets=(0.0, 8.0)), ""),
        (entry(offsets=("0", "8")), "a is not where"),
        (entry(offsets=(0,)), ""),
        (entry(shape=(1,), offsets=(0, 4)), "4 bytes are left over"),
        (entry(shape=(-1, -2)), "impossible shape"),
        (entry(shape=(2**32, 2**32), offsets=(0, 0)), "a is not where"),  # in 64 bits the product would be 0
        (entry(shape=(0, 2**70), offsets=(0, 0)), "impossible shape"),
        (entry(shape=(10**400,)), "impossible shape"),
        (entry(shape="ab"), ""),
        (entry(shape=(2.0,)), "invalid"),  # PyTorch's message has several lines
        ({**entry(), "b": entry()["a"]}, "b is not where"),  # overlapping tensors
    ],
)
def test_a_malformed_header_is_refused(tmp_path, header, said):
    with pytest.raises(
        InputError,
        match=rf"x\.safetensors is not a complete safetensors file \(.*{said}.*\): restore it, or fetch it again",
    ):
        read_safetensors(put(tmp_path / "x.safetensors", header, bytes(8)))


def test_an_error_about_a_file_is_one_line(tmp_path):
    with pytest.raises(InputError) as error:
        read_safetensors(put(tmp_path / "x.safetensors", entry(shape=(2.0,)), bytes(8)))
    assert "\n" not in str(error.value)


def test_a_truncated_file_is_refused(folder):
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    n = 8 + struct.unpack("<Q", whole[:8])[0]
    for length in (0, 1, 7, 8, 9, n - 1, n, n + 1, (n + len(whole)) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(
            InputError, match=r"model\.safetensors is not a complete safetensors file .*: restore it, or fetch it again"
        ):
            load_gpt2(str(folder))
    path.write_bytes(whole + b"\0")
    with pytest.raises(InputError, match="1 bytes are left over"):
        load_gpt2(str(folder))


def test_a_header_longer_than_the_file_is_refused_without_reading_it(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", 2**63) + b"{}")
    with pytest.raises(InputError, match="header is longer than the file"):
        read_safetensors(tmp_path / "x.safetensors")


def test_a_web_page_saved_under_the_files_name_is_refused(tmp_path):
    (tmp_path / "x.safetensors").write_text("<!DOCTYPE html><html>Please log in to this network</html>")
    with pytest.raises(InputError, match="x.safetensors is not a complete safetensors file"):
        read_safetensors(tmp_path / "x.safetensors")


def test_a_folder_or_a_missing_file_is_refused(tmp_path):
    (tmp_path / "x.safetensors").mkdir()
    with pytest.raises(InputError, match="x.safetensors is not a file"):
        read_safetensors(tmp_path / "x.safetensors")
    with pytest.raises(InputError, match="y.safetensors does not exist"):
        read_safetensors(tmp_path / "y.safetensors")


# ----------------------------------------------------------------------------- names and shapes


def change(folder: Path, **changes) -> None:
    """Rewrite the folder's tensors; the value None removes one; "__" is a dot of its name."""
    tensors = {key: tensor.clone() for key, tensor in read_safetensors(folder / "model.safetensors")[0].items()}
    for key, tensor in changes.items():
        key = key.replace("__", ".")
        tensors.pop(key, None)
        if tensor is not None:
            tensors[key] = tensor
    write_safetensors(folder / "model.safetensors", tensors, {})


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"h__1__mlp__c_fc__bias": None}, "lacks h.1.mlp.c_fc.bias, so it is not"),
        ({"wte__weight": None}, "lacks wte.weight"),
        ({"h__2__ln_1__bias": torch.zeros(8)}, "holds h.2.ln_1.bias, which .* does not have"),
        ({"score__weight": torch.zeros(2, 8)}, "holds score.weight, which"),
        ({"ln_f__weight": torch.zeros(9)}, r"ln_f.weight has shape \[9\], but .* needs \[8\]"),
        (
            {"h__0__attn__c_attn__weight": torch.zeros(24, 8)},
            r"h.0.attn.c_attn.weight has shape \[24, 8\], but .* needs \[8, 24\]",
        ),
        ({"h__0__ln_1__bias": torch.tensor(0.0)}, r"h.0.ln_1.bias has shape \[\], but .* needs \[8\]"),
        ({"lm_head__weight": torch.ones(31, 8)}, "lm_head.weight differs from wte.weight"),
        ({"lm_head__weight": torch.ones(31, 9)}, "lm_head.weight differs from wte.weight"),
        ({"lm_head__weight": torch.ones(31, 8, dtype=torch.float16)}, "lm_head.weight differs from wte.weight"),
    ],
)
def test_missing_unknown_and_misshapen_tensors_are_refused(folder, changes, said):
    change(folder, **changes)
    with pytest.raises(InputError, match=rf"model\.safetensors:? {said}"):
        load_gpt2(str(folder))


@pytest.mark.parametrize(
    "export", ["plain", "named transformer.*", "tied lm_head", "causal masks", "half precision", "all of it"]
)
def test_every_form_in_which_gpt2_is_exported_gives_the_same_weights(folder, model, export):
    tensors = model.state_dict()
    if export in ("causal masks", "all of it"):
        tensors |= {f"h.{i}.attn.bias": torch.ones(1, 1, 16, 16).tril() for i in range(2)}
        tensors |= {f"h.{i}.attn.masked_bias": torch.tensor(-1e4) for i in range(2)}
    if export in ("named transformer.*", "all of it"):
        tensors = {f"transformer.{key}": tensor for key, tensor in tensors.items()}
    if export in ("tied lm_head", "all of it"):
        tensors["lm_head.weight"] = model.wte.weight
    if export == "half precision":
        tensors = {key: tensor.to(torch.bfloat16) for key, tensor in tensors.items()}
    write_safetensors(folder / "model.safetensors", tensors, {})
    loaded = load_gpt2(str(folder)).state_dict()
    wanted = {
        key: tensor.to(torch.bfloat16).float() if export == "half precision" else tensor
        for key, tensor in model.state_dict().items()
    }
    assert_same(loaded, wanted)


def test_a_file_of_another_size_is_recognised(tmp_path):
    """Only the header is read; the 50257 x 1024 bytes after it are a hole in the file, which uses no disk space."""
    shape = [CONFIGS["gpt2-medium"].vocab_size, CONFIGS["gpt2-medium"].n_embd]
    path = put(
        tmp_path / "medium.safetensors",
        {"wte.weight": {"dtype": "U8", "shape": shape, "data_offsets": [0, math.prod(shape)]}},
    )
    with open(path, "r+b") as file:
        file.truncate(path.stat().st_size + math.prod(shape))
    said = (
        r"medium\.safetensors: wte.weight has shape \[50257, 1024\], but gpt2 needs \[50257, 768\];"
        " it looks like gpt2-medium: use --model gpt2-medium"
    )
    with pytest.raises(InputError, match=said):
        load_gpt2("gpt2", str(path))


@pytest.mark.parametrize("name", CONFIGS)
def test_each_published_size_expects_its_own_tensors(name):
    """The release's parameter counts. A block has 12 tensors; wte, wpe and ln_f's two are outside the blocks."""
    config = CONFIGS[name]
    with torch.device("meta"):
        tensors = GPT2(config).state_dict()
    check_shapes(tensors, config, name, Path("x"))
    assert len(tensors) == 12 * config.n_layer + 4
    millions = {"gpt2": 124, "gpt2-medium": 355, "gpt2-large": 774, "gpt2-xl": 1558}
    assert round(sum(tensor.numel() for tensor in tensors.values()) / 1e6) == millions[name]


# ----------------------------------------------------------------------------- TensorFlow's checkpoint


@pytest.fixture
def tensorflow(tmp_path):
    """A model folder with a copy of the checkpoint that TensorFlow wrote."""
    write_config(tmp_path, FIXTURE)
    for file in (INDEX, DATA):
        shutil.copy(TENSORFLOW / file, tmp_path)
    return tmp_path


def test_a_tensorflow_checkpoint_gives_the_tensors_that_tensorflow_reads():
    wanted = np.load(TENSORFLOW / "as_tensorflow_reads_it.npz")
    found = dict(read_tensorflow(TENSORFLOW / INDEX))
    assert found.keys() == set(wanted)
    for key, tensor in found.items():
        assert tensor.dtype == torch.float32 and tensor.shape == wanted[key].shape
        assert np.array_equal(tensor.numpy(), wanted[key])


def test_both_formats_give_the_same_model(tensorflow, tmp_path):
    from_tensorflow = load_gpt2(str(tensorflow)).state_dict()
    write_safetensors(tmp_path / "other.safetensors", from_tensorflow, {})
    assert_same(load_gpt2(str(tensorflow), str(tmp_path / "other.safetensors")).state_dict(), from_tensorflow)


def test_a_truncated_tensorflow_index_is_refused(tensorflow):
    whole = (tensorflow / INDEX).read_bytes()
    for length in (0, 1, 40, 47, 48, len(whole) // 2, len(whole) - 1):
        (tensorflow / INDEX).write_bytes(whole[:length])
        with pytest.raises(
            InputError,
            match=r"model\.ckpt\.index is not a complete TensorFlow checkpoint .*: delete it and fetch it again",
        ):
            load_gpt2(str(tensorflow))


def test_truncated_tensorflow_data_are_refused(tensorflow):
    whole = (tensorflow / DATA).read_bytes()
    for length in (0, 1, len(whole) // 2, len(whole) - 1):
        (tensorflow / DATA).write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"model\.ckpt\.index is not a complete TensorFlow checkpoint"):
            load_gpt2(str(tensorflow))


def test_a_missing_tensorflow_data_file_is_named(tensorflow):
    (tensorflow / DATA).unlink()
    with pytest.raises(InputError, match=rf"{DATA} is missing: put it next to {INDEX}"):
        load_gpt2(str(tensorflow))


def test_a_compressed_tensorflow_index_is_named_as_the_reason(tensorflow):
    """The byte after each block states its compression: 0 none, 1 snappy."""
    whole = bytearray((tensorflow / INDEX).read_bytes())
    at = len(whole) - 48
    for _ in range(2):  # skip the meta-index block's offset and size in the footer
        _, at = read_varint(whole, at)
    offset, at = read_varint(whole, at)
    size, _ = read_varint(whole, at)
    assert whole[offset + size] == 0
    whole[offset + size] = 1
    (tensorflow / INDEX).write_bytes(whole)
    with pytest.raises(InputError, match="its index is compressed, which is not supported"):
        load_gpt2(str(tensorflow))


def test_a_damaged_tensorflow_index_never_ends_in_a_traceback(tensorflow):
    """Checksums are not verified, so some damage goes unnoticed; the rest is an InputError."""
    whole = (tensorflow / INDEX).read_bytes()
    refused = 0
    rng = random.Random(0)
    for _ in range(600):
        damaged = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            damaged[rng.randrange(len(whole))] = rng.randrange(256)
        (tensorflow / INDEX).write_bytes(damaged)
        try:
            dict(read_tensorflow(tensorflow / INDEX))
        except InputError:
            refused += 1
    assert refused > 300


# ----------------------------------------------------------------------------- which file is read


def test_a_folder_with_both_formats_is_read_as_safetensors(tensorflow, model):
    write_safetensors(tensorflow / "model.safetensors", model.state_dict(), {})
    assert_same(load_gpt2(str(tensorflow)).state_dict(), model.state_dict())
    assert not torch.equal(load_gpt2(str(tensorflow), str(tensorflow / INDEX)).wte.weight, model.wte.weight)


@pytest.mark.parametrize(
    "files, said",
    [
        ([], "holds no checkpoint: put model.safetensors, TensorFlow's"),
        (["pytorch_model.bin"], "holds no checkpoint"),
        (["a.safetensors", "b.safetensors"], "holds several checkpoints: name one of a.safetensors, b.safetensors"),
    ],
)
def test_a_folder_without_one_checkpoint_is_refused(tmp_path, files, said):
    for file in files:
        (tmp_path / file).write_bytes(b"x")
    with pytest.raises(InputError, match=said):
        load_gpt2("gpt2", str(tmp_path))


class Malicious:
    """Unpickling this creates a folder."""

    def __init__(self, evidence: Path):
        self.evidence = evidence

    def __reduce__(self):
        return Path.mkdir, (self.evidence,)


@pytest.mark.parametrize(
    "name",
    ["pytorch_model.bin", "model.pt", "model.pth", "model.ckpt", "model.safetensors", "model.ckpt.index", "model"],
)
def test_pickles_are_refused_under_every_name_and_never_unpickled(tmp_path, name):
    torch.save({"wte.weight": Malicious(tmp_path / "evidence")}, tmp_path / name)
    with pytest.raises(InputError, match=f"{name} is "):
        load_gpt2("gpt2", str(tmp_path / name))
    assert not (tmp_path / "evidence").exists()
    shutil.copy(tmp_path / name, tmp_path / "copy")  # PyTorch would choose another format by the name
    torch.load(tmp_path / "copy", weights_only=False)
    assert (tmp_path / "evidence").exists()  # unpickling does create it


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(InputError, match="nowhere.safetensors does not exist: check the path given with --weights"):
        load_gpt2("gpt2", str(tmp_path / "nowhere.safetensors"))


# ----------------------------------------------------------------------------- config.json


def stated(**changes) -> dict:
    return {"n_layer": 2, "n_head": 2, "n_embd": 8, "n_positions": 16, "vocab_size": 31} | changes


def test_a_config_is_read_under_both_names(tmp_path):
    (tmp_path / "hparams.json").write_text('{"n_vocab": 31, "n_ctx": 16, "n_embd": 8, "n_head": 2, "n_layer": 2}')
    assert load_config(str(tmp_path)) == FIXTURE  # OpenAI's file
    (tmp_path / "config.json").write_text(
        json.dumps(stated(n_positions=20, n_ctx=20, activation_function="gelu_new", model_type="gpt2"))
    )
    assert load_config(str(tmp_path)).n_positions == 20  # the hub's file takes precedence


@pytest.mark.parametrize(
    "content, said",
    [
        ("", "config.json is empty"),
        ("{", "is not a GPT-2 configuration"),
        ("[]", "is not a GPT-2 configuration"),
        ("null", "is not a GPT-2 configuration"),
        ("[" * 100_000, "is not a GPT-2 configuration"),
        ("{}", "is not a GPT-2 configuration .*n_ctx.*: it must state n_layer, n_head"),
        (stated(n_layer="two"), "positive and whole"),
        (stated(n_layer=0), "positive and whole"),
        (stated(n_head=0), "positive and whole"),
        (stated(n_positions=-16), "positive and whole"),
        (stated(n_embd=8.0), "positive and whole"),
        (stated(vocab_size=None), "positive and whole"),
        (stated(vocab_size=True), "positive and whole"),
        (stated(n_head=3), "n_embd a multiple of n_head"),
        (stated(model_type="mistral"), "its model_type is 'mistral', but a GPT-2 has 'gpt2': use another model"),
        (stated(activation_function="relu"), "its activation_function is 'relu'"),
        (stated(layer_norm_epsilon=1e-6), "its layer_norm_epsilon is 1e-06"),
        (stated(scale_attn_by_inverse_layer_idx=True), "its scale_attn_by_inverse_layer_idx is True"),
    ],
)
def test_a_config_that_is_not_gpt2s_is_refused(tmp_path, content, said):
    (tmp_path / "config.json").write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(InputError, match=said):
        load_gpt2(str(tmp_path), "random")


@pytest.mark.parametrize("name", ["gpt3", "GPT2", "", "gpt2 ", "openai-community/gpt2"])
def test_an_unknown_model_is_refused_with_a_list_of_the_known_ones(name):
    with pytest.raises(
        InputError, match="unknown model .*: use gpt2, gpt2-medium, gpt2-large, gpt2-xl, smollm2, mini, or a folder"
    ):
        load_config(name)
