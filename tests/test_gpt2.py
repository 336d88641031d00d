"""The model equals transformers' GPT-2; cache, padding and dropout do what they say."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from tiny import lively, write_config

from gpt2 import CONFIGS, GPT2, GPT2Config, KVCache
from harness.safetensors import write_safetensors
from harness.tensorflow import read_tensorflow
from weights import load_gpt2

# Each published architecture with its own number of layers, heads and head size in proportion, shrunk.
SHRUNK = {
    "gpt2": GPT2Config(n_layer=12, n_head=12, n_embd=96, n_positions=64, vocab_size=211),
    "gpt2-medium": GPT2Config(n_layer=24, n_head=16, n_embd=128, n_positions=64, vocab_size=211),
    "gpt2-large": GPT2Config(n_layer=36, n_head=20, n_embd=160, n_positions=64, vocab_size=211),
    "gpt2-xl": GPT2Config(n_layer=48, n_head=25, n_embd=200, n_positions=64, vocab_size=211),
}


def save(model: GPT2, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    write_config(folder, model.config)
    write_safetensors(folder / "model.safetensors", model.state_dict(), {})
    return folder


@pytest.fixture(scope="module")
def model():
    return lively(GPT2(GPT2Config(n_layer=3, n_head=4, n_embd=32, n_positions=64, vocab_size=101))).eval()


@pytest.mark.parametrize("name", SHRUNK)
def test_logits_equal_transformers_for_every_published_architecture(name, tmp_path, reference_gpt2):
    shape, full = SHRUNK[name], CONFIGS[name]
    assert (shape.n_layer, shape.n_head) == (full.n_layer, full.n_head)
    folder = save(lively(GPT2(shape), seed=3), tmp_path / name)
    tokens = torch.randint(0, 211, (3, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours, theirs = load_gpt2(str(folder))(tokens), reference_gpt2(folder)(tokens).logits
    assert theirs.abs().max() > 1  # logits that the model's parts have really moved
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


@pytest.mark.slow
def test_logits_equal_transformers_at_124_million_parameters(tmp_path, reference_gpt2):
    folder = save(GPT2(CONFIGS["gpt2"]).init_weights(5), tmp_path / "gpt2")
    tokens = torch.randint(0, 50257, (2, 50), generator=torch.Generator().manual_seed(0))
    ours = load_gpt2("gpt2", str(folder / "model.safetensors"))
    assert sum(p.numel() for p in ours.parameters()) == 124_439_808
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens), reference_gpt2(folder)(tokens).logits, atol=1e-4, rtol=0)


def test_a_checkpoint_written_by_tensorflow_gives_the_same_logits(tmp_path):
    fixture = Path(__file__).parent / "fixtures" / "tensorflow"
    config = GPT2Config(n_layer=2, n_head=2, n_embd=8, n_positions=16, vocab_size=31)
    write_config(tmp_path, config)
    ours = load_gpt2(str(tmp_path), str(fixture))

    # The reference gets its weights from TensorFlow's own reading of the file, by names spelled out here.
    arrays = np.load(fixture / "as_tensorflow_reads_it.npz")
    theirs = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(**json.loads((tmp_path / "config.json").read_text()))
    ).eval()
    state = {"wte.weight": arrays["model/wte"], "wpe.weight": arrays["model/wpe"]}
    state |= {"ln_f.weight": arrays["model/ln_f/g"], "ln_f.bias": arrays["model/ln_f/b"]}
    for layer in range(2):
        for part in ("ln_1", "ln_2"):
            state[f"h.{layer}.{part}.weight"] = arrays[f"model/h{layer}/{part}/g"]
            state[f"h.{layer}.{part}.bias"] = arrays[f"model/h{layer}/{part}/b"]
        for part in ("attn/c_attn", "attn/c_proj", "mlp/c_fc", "mlp/c_proj"):
            state[f"h.{layer}.{part.replace('/', '.')}.weight"] = arrays[f"model/h{layer}/{part}/w"][0]
            state[f"h.{layer}.{part.replace('/', '.')}.bias"] = arrays[f"model/h{layer}/{part}/b"]
    theirs.transformer.load_state_dict({key: torch.from_numpy(value) for key, value in state.items()})
    assert len(list(read_tensorflow(fixture / "model.ckpt.index"))) == len(state)

    tokens = torch.arange(12).view(1, 12) * 2
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens), theirs(tokens).logits, atol=1e-4, rtol=0)


@torch.no_grad()
def test_reading_piece_by_piece_with_a_cache_equals_reading_at_once(model):
    tokens = torch.randint(0, 101, (2, 20))
    cache = KVCache()
    pieces = [model(tokens[:, a:b], cache=cache) for a, b in ((0, 5), (5, 6), (6, 11), (11, 20))]
    torch.testing.assert_close(torch.cat(pieces, dim=1), model(tokens), atol=1e-5, rtol=0)


@torch.no_grad()
def test_selected_rows_of_a_cache_go_on_by_themselves(model):
    tokens = torch.randint(0, 101, (3, 8))
    for rows in ([2, 0], [1, 1, 0], [0, 2, 1, 1, 2]):  # fewer rows, as many, more
        cache = KVCache()
        model(tokens[:, :6], cache=cache)
        cache.select(torch.tensor(rows))
        torch.testing.assert_close(model(tokens[rows, 6:], cache=cache), model(tokens[rows])[:, 6:], atol=1e-5, rtol=0)


@torch.no_grad()
def test_padding_on_the_right_changes_nothing_before_it(model):
    tokens = torch.randint(0, 101, (2, 9))
    padded = torch.cat([tokens, torch.full((2, 4), 100)], dim=1)
    torch.testing.assert_close(model(padded)[:, :9], model(tokens), atol=1e-5, rtol=0)


def test_dropout_acts_in_training_mode_only():
    model = lively(GPT2(GPT2Config(2, 2, 16, 16, 50), dropout=0.5))
    tokens = torch.arange(8).view(1, 8)
    assert not torch.equal(model.train()(tokens), model(tokens))
    assert torch.equal(model.eval()(tokens), model(tokens))


def test_more_tokens_than_positions_are_refused(model):
    with pytest.raises(ValueError, match="65 tokens do not fit into the model's context of 64"):
        model(torch.zeros(1, 65, dtype=torch.long))


def test_logits_are_fp32_even_under_autocast(model):
    """From hidden states that are not: bf16 products in the layers move them."""
    tokens = torch.randint(0, 101, (1, 8))
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        logits = model(tokens)
    assert logits.dtype == torch.float32
    off = (logits - model(tokens)).abs().max()
    assert 0 < off < 0.1 * logits.abs().max()
