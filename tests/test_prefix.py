"""The prefix does what the paper says, and equals the same method in other libraries."""

import peft
import pytest
import torch
import transformers
from tiny import lively

from gpt2 import GPT2, GPT2Config, KVCache
from harness.files import InputError
from harness.safetensors import read_safetensors, write_safetensors
from prefix import Embedding, Infix, Prefix, keys_values, load_prefix

CONFIG = GPT2Config(n_layer=3, n_head=4, n_embd=32, n_positions=64, vocab_size=101)
END = 100


@pytest.fixture
def model():
    return lively(GPT2(CONFIG)).eval().requires_grad_(False)


@pytest.fixture
def twin(model):
    """transformers' GPT-2 with the same weights."""
    config = transformers.GPT2Config(
        n_layer=3, n_head=4, n_embd=32, n_positions=64, vocab_size=101, bos_token_id=END, eos_token_id=END
    )
    config._attn_implementation = "eager"
    twin = transformers.GPT2LMHeadModel(config).eval().requires_grad_(False)
    twin.transformer.load_state_dict(model.state_dict())
    return twin


@pytest.fixture
def tokens():
    return torch.randint(0, 100, (2, 12), generator=torch.Generator().manual_seed(0))


def as_past(activations, batch: int) -> transformers.DynamicCache:
    """[P, 2 L, H, D] as the cache that transformers takes, differentiable."""
    cache = transformers.DynamicCache()
    for layer in range(activations.size(1) // 2):
        k, v = (activations[:, 2 * layer + i].transpose(0, 1).expand(batch, -1, -1, -1) for i in (0, 1))  # [B, H, P, D]
        cache.update(k, v, layer)
    return cache


def test_logits_and_gradients_equal_transformers_given_the_same_keys_and_values(model, twin, tokens):
    prefix = Prefix(CONFIG, prefix_len=7, mid_dim=16).attach(model)
    ours = model(tokens)
    weights = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1))  # a loss in which every logit counts
    (ours * weights).sum().backward()
    gradients = {name: p.grad.clone() for name, p in prefix.named_parameters()}
    assert len(gradients) == 5  # P', and weight and bias of the MLP's two layers

    prefix.zero_grad()
    theirs = twin(tokens, past_key_values=as_past(prefix.activations(model), batch=2)).logits
    (theirs * weights).sum().backward()
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
    for name, p in prefix.named_parameters():
        assert p.grad.abs().max() > 1e-2
        say = lambda text, name=name: f"{name}: {text}"
        torch.testing.assert_close(gradients[name], p.grad, atol=1e-3, rtol=1e-4, msg=say)


def test_the_frozen_model_gets_no_gradients(model, tokens):
    Prefix(CONFIG, 5, 16).attach(model)
    model(tokens).sum().backward()
    assert all(p.grad is None for p in model.parameters())


def test_the_flattened_prefix_equals_what_peft_computes_from_the_same_numbers(model, twin):
    settings = peft.PrefixTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=7, prefix_projection=True, encoder_hidden_size=16
    )
    theirs = peft.get_peft_model(twin, settings).prompt_encoder["default"]
    ours = Prefix(CONFIG, prefix_len=7, mid_dim=16)
    with torch.no_grad():
        ours.rows.p_prime.copy_(theirs.embedding.weight)
        for mine, its in zip(ours.rows.mlp, theirs.transform):
            mine.load_state_dict(its.state_dict())
        flat = theirs(torch.arange(7))  # [P, 2 L C]
        torch.testing.assert_close(ours.rows(), flat, atol=1e-6, rtol=0)
        torch.testing.assert_close(ours.activations(model).flatten(), flat.flatten(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", [Prefix, Embedding])
@torch.no_grad()
def test_the_true_keys_and_values_of_words_act_as_the_words_in_front(model, tokens, kind):
    words = torch.tensor([5, 81, 33, 7])
    prefix = kind(CONFIG, prefix_len=4, mid_dim=0)
    prefix.init_from_words(model, words)
    with_words = model(torch.cat([words.expand(2, -1), tokens], dim=1))[:, 4:]
    without = model(tokens)
    prefix.attach(model)
    torch.testing.assert_close(model(tokens), with_words, atol=1e-4, rtol=0)
    assert (without - with_words).abs().max() > 0.5


@torch.no_grad()
def test_words_between_table_and_text_act_as_an_infix_of_them():
    """In a model of one layer keys do not depend on what stands in front, so an infix can be spelled out in words."""
    config = GPT2Config(n_layer=1, n_head=4, n_embd=32, n_positions=64, vocab_size=101)
    model = lively(GPT2(config)).eval()
    table, words, text = torch.tensor([4, 9, 2, 71]), torch.tensor([5, 81]), torch.tensor([END, 12, 60, 3])
    spelled_out = model(torch.cat([table, words, text])[None])[0]
    model.wpe.weight.data = model.wpe.weight.roll(-4, 0)  # the words' own positions, for computing their activations
    infix = Infix(config, prefix_len=2, mid_dim=0)
    infix.init_from_words(model, words)
    model.wpe.weight.data = model.wpe.weight.roll(4, 0)
    infix.attach(model)
    logits = model(torch.cat([table, text])[None])[0]
    torch.testing.assert_close(logits, spelled_out[[0, 1, 2, 3, 6, 7, 8, 9]], atol=1e-4, rtol=0)


@torch.no_grad()
def test_an_infix_is_seen_by_the_text_alone(model, tokens):
    tokens[0, 5] = tokens[1, 8] = END  # tables of different lengths
    plain = model(tokens)
    Infix(CONFIG, prefix_len=6, mid_dim=8).attach(model)
    change = (model(tokens) - plain).abs().amax(dim=2)  # [B, T]
    assert change[0, :5].max() < 1e-5 and change[1, :8].max() < 1e-5
    assert change[0, 5:].min() > 1e-3 and change[1, 8:].min() > 1e-3


@pytest.mark.parametrize("kind", [Prefix, Infix, Embedding])
@torch.no_grad()
def test_decoding_with_a_cache_equals_reading_at_once(model, tokens, kind):
    tokens[:, 5] = END
    kind(CONFIG, prefix_len=6, mid_dim=8).attach(model)
    cache = KVCache()
    pieces = [model(tokens[:, :6], cache=cache), *(model(tokens[:, i : i + 1], cache=cache) for i in range(6, 12))]
    assert cache.length == 6 + 12
    torch.testing.assert_close(torch.cat(pieces, dim=1), model(tokens), atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", [Prefix, Infix, Embedding])
@pytest.mark.parametrize("mid_dim", [0, 8])
@torch.no_grad()
def test_what_is_saved_acts_as_what_was_trained_without_the_mlp(model, tokens, kind, mid_dim, tmp_path):
    tokens[:, 4] = END
    trained = kind(CONFIG, prefix_len=3, mid_dim=mid_dim)
    trained.attach(model)
    expected = model(tokens)
    trained.detach()
    trained.drop_mlp().save(tmp_path / "prefix.safetensors", {"model": "gpt2"})

    tensors, metadata = read_safetensors(tmp_path / "prefix.safetensors")
    size = 3 * CONFIG.n_embd * (1 if kind is Embedding else 2 * CONFIG.n_layer)
    assert [t.numel() for t in tensors.values()] == [size] and metadata["mode"] == kind.mode
    load_prefix(tmp_path / "prefix.safetensors", CONFIG).attach(model)
    assert torch.equal(model(tokens), expected)


def test_the_default_prefix_of_gpt2_keeps_92160_numbers_and_trains_ten_million():
    prefix = Prefix(GPT2Config(), prefix_len=5)
    assert prefix.drop_mlp().rows().numel() == 92_160
    assert sum(p.numel() for p in prefix.parameters()) == 5 * 768 + 768 * 512 + 512 + 512 * 18432 + 18432 == 9_853_184


@torch.no_grad()
def test_detaching_gives_the_model_back_as_it_was(model, tokens):
    plain = model(tokens)
    prefix = Prefix(CONFIG, 5, 8).attach(model)
    assert not torch.equal(model(tokens), plain)
    prefix.detach()
    assert torch.equal(model(tokens), plain)
    with pytest.raises(InputError, match="is not attached"):
        prefix.detach()


@torch.no_grad()
def test_a_prefix_is_attached_inside_a_with_block_whatever_ends_it(model, tokens):
    plain, prefix = model(tokens), Prefix(CONFIG, 5, 8)
    with prefix.attached(model) as attached:
        assert attached is prefix and not torch.equal(model(tokens), plain)
    assert torch.equal(model(tokens), plain)
    with pytest.raises(ZeroDivisionError), prefix.attached(model):
        raise ZeroDivisionError
    assert torch.equal(model(tokens), plain)


@torch.no_grad()
def test_two_prefixes_on_two_models_do_not_touch_each_other(model, tokens):
    """A prefix knows the model that it is attached to: neither can take the other's away."""
    other = lively(GPT2(CONFIG), seed=3).eval()
    first, second = Prefix(CONFIG, 5, 8).attach(model), Prefix(CONFIG, 7, 8).attach(other)
    with_first, with_second = model(tokens), other(tokens)
    with pytest.raises(InputError, match="this prefix is attached to a model already"):
        first.attach(other)
    first.detach()
    assert not torch.equal(model(tokens), with_first) and torch.equal(other(tokens), with_second)
    first.attach(model)
    second.detach()
    assert torch.equal(model(tokens), with_first)
    assert "attached_to" not in dict(first.named_modules()) and len(list(first.parameters())) == 5


def test_fitting_the_mlp_to_words_brings_its_output_near_their_activations(model):
    words = torch.tensor([5, 81, 33])
    prefix = Prefix(CONFIG, prefix_len=3, mid_dim=64)
    target = keys_values(model, model.wte(words)).flatten(1)
    before = (prefix.rows() - target).square().mean().item()
    left = prefix.init_from_words(model, words, steps=300, lr=1e-2)
    assert left < 0.05 * before
    assert left == pytest.approx((prefix.rows() - target).square().mean().item())


def test_misuse_is_refused_with_a_sentence(model, tmp_path):
    with pytest.raises(InputError, match="at least one position"):
        Prefix(CONFIG, 0)
    with pytest.raises(InputError, match="leaves no room for tokens: the model has 64 positions"):
        Prefix(CONFIG, 64)
    with pytest.raises(InputError, match="was made for"):
        Prefix(GPT2Config(3, 8, 32, 64, 101), 5).attach(model)
    infix = Infix(CONFIG, 5).attach(model)
    with pytest.raises(ValueError, match="an infix sets mask and positions itself"):
        model(torch.tensor([[1, 2]]), positions=torch.arange(2))
    with pytest.raises(ValueError, match="a prefix of 5 and 60 tokens do not fit"):
        model(torch.zeros(1, 60, dtype=torch.long))
    infix.detach()
    Prefix(CONFIG, 5).attach(model)
    with pytest.raises(ValueError, match="a prefix of 5 and 60 tokens do not fit into 64 positions"):
        model(torch.zeros(1, 60, dtype=torch.long))
    with pytest.raises(InputError, match="the hooks that this prefix needs are taken"):
        Prefix(CONFIG, 5).attach(model)
    path = tmp_path / "prefix.safetensors"
    Prefix(GPT2Config(3, 8, 32, 64, 101), 5, 0).save(path)
    with pytest.raises(
        InputError,
        match=r"prefix\.safetensors was made for 3 layers of 8 heads .*but this model has 3 layers of 4 heads",
    ):
        load_prefix(path, CONFIG)
    write_safetensors(path, {"prefix": torch.zeros(5, 10)}, {"mode": "prefix", "made_for": CONFIG.shape})
    with pytest.raises(InputError, match=r"has the shape \[5, 10\], which does not fit 3 layers of 4 heads"):
        load_prefix(path, CONFIG)
    write_safetensors(path, {"wte.weight": torch.zeros(5, 10)}, {})
    with pytest.raises(InputError, match="does not hold a prefix"):
        load_prefix(path, CONFIG)
