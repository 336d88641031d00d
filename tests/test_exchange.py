"""What is learned here lives on in `peft` and `transformers`, and what they learned lives on here: the same logits, the
same beams."""

import dataclasses
import json
import shutil
from collections import defaultdict

import peft
import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_lora import trained
from tiny import tables
from tiny_llama import TINY, write_hub
from tiny_llama import lively as lively_llama

import evaluate
from adapter import Adapter
from beam import beam_search
from e2e_data import encode_prompt
from evaluate import evaluate_run
from harness import export
from harness.files import InputError
from harness.parts import Parts
from harness.peft_files import CONFIG, TENSORS, read_learned, write_adapter
from harness.runs import load_run, save_learned, trained_file, write_json
from harness.safetensors import read_safetensors, write_safetensors
from harness.settings import Settings
from harness.tokenizers import load_tokenizer
from llama import Llama
from lora import LoRA, matrices_of
from prefix import MODES, load_prefix
from weights import load_model

CLOSE = {"atol": 1e-4, "rtol": 0}


def hub_model(folder) -> torch.nn.Module:
    """transformers' model of a folder; it has every weight, and no other."""
    model, found = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not any(found[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def folder(world, tmp_path_factory):
    """The model of `world`, but the end token's logit is larger by 3, so that some texts end by themselves."""
    folder = tmp_path_factory.mktemp("ending") / "model"
    shutil.copytree(world / "model", folder)
    tensors = {name: tensor.clone() for name, tensor in read_safetensors(folder / "model.safetensors")[0].items()}
    end = tensors["wte.weight"][-1]
    tensors["ln_f.bias"] += 3 * end / end.square().sum()
    write_safetensors(folder / "model.safetensors", tensors, {})
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return load_model(str(folder)).eval().requires_grad_(False)


@pytest.fixture
def twin(folder):
    """transformers' model with the weights of `model`; a fresh one, because peft puts its layers into it."""
    return hub_model(folder)


@pytest.fixture(scope="module")
def prompts(world):
    return prompts_of(world / "model", 50)


def prompts_of(name, n: int) -> list[list[int]]:
    tokenizer = load_tokenizer(str(name))
    sources = list(dict.fromkeys(example.source for example in tables(1500, seed=2)))
    return [encode_prompt(tokenizer, source) for source in sources[:n]]


@torch.no_grad()
def assert_same_logits(ours, theirs, vocabulary: int = 400) -> None:
    """For two batches of random tokens, of different lengths."""
    for T in (17, 4):
        tokens = torch.randint(0, vocabulary, (2, T), generator=torch.Generator().manual_seed(T))
        logits = theirs(tokens, attention_mask=torch.ones_like(tokens)).logits[
            :, -T:
        ]  # without those of virtual tokens
        torch.testing.assert_close(ours(tokens), logits, **CLOSE)


def assert_same_beams(ours, theirs, prompts, max_new_tokens: int, banned: tuple[int, ...] = ()) -> list[list[int]]:
    """Token by token, 25 prompts at a time.

    With PROMPT_TUNING peft ignores the positions of padded prompts, so those of one length are read together there.
    """
    end, batches = ours.config.end_token, defaultdict(list)
    for i, prompt in enumerate(prompts):
        batches[len(prompt) if theirs.peft_type == "PROMPT_TUNING" else i // 25].append(prompt)
    texts = []
    for batch in batches.values():
        found = beam_search(ours, batch, end, 5, max_new_tokens, "output", banned)
        S = max(map(len, batch))
        rows = theirs.generate(
            input_ids=torch.tensor([[end] * (S - len(p)) + p for p in batch]),  # transformers pads on the left
            attention_mask=torch.tensor([[0] * (S - len(p)) + [1] * len(p) for p in batch]),
            num_beams=5, early_stopping=False, length_penalty=1.0, do_sample=False, max_new_tokens=max_new_tokens,
            eos_token_id=end, pad_token_id=end, bad_words_ids=[[i] for i in banned] or None,
        )  # fmt: skip
        for ids, row in zip(found, rows[:, S:].tolist()):
            assert ids == (row[: row.index(end)] if end in row else row)
        texts += found
    return texts


# ----------------------------------------------------------------------------- from here to peft


def make(kind: str, config, P: int = 5):
    """A part of this kind as after training."""
    torch.manual_seed(3)
    if kind.startswith("lora"):
        return trained(LoRA(config, matrices_of(config) if kind == "lora everywhere" else ("q", "v"), 3, 7.0)).eval()
    if kind == "adapter":
        return trained(Adapter(config, 4))
    return MODES[kind](config, P, mid_dim=16).drop_mlp()


@pytest.mark.parametrize("kind", ["prefix", "embedding", "lora", "lora everywhere"])
def test_what_is_learned_here_gives_the_same_logits_in_peft_and_comes_back_to_the_bit(model, twin, kind, tmp_path):
    part = make(kind, model.config)
    write_adapter(tmp_path, part, "base")
    theirs = peft.PeftModel.from_pretrained(twin, tmp_path).eval()
    with part.attached(model):
        assert_same_logits(model, theirs)
    tensors, about = read_learned(tmp_path, model.config)
    back = (
        LoRA.of_tensors(model.config, tensors, about, tmp_path)
        if "lora" in kind
        else load_prefix(tmp_path, model.config)
    )
    expected = part.tensors()
    assert back.tensors().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in back.tensors().items())
    assert getattr(back, "alpha", None) == getattr(part, "alpha", None)


@pytest.mark.parametrize("kind", ["prefix", "embedding", "lora"])
def test_peft_generates_our_beams_on_50_prompts(model, twin, prompts, kind, tmp_path):
    part = make(kind, model.config)
    write_adapter(tmp_path, part, "base")
    theirs = peft.PeftModel.from_pretrained(twin, tmp_path).eval()
    with part.attached(model):
        texts = assert_same_beams(model, theirs, prompts, 12)
    assert len(set(map(tuple, texts))) >= 10 and any(len(ids) < 12 for ids in texts)


@pytest.mark.parametrize("kind", ["prefix", "embedding", "lora", "lora everywhere"])
def test_what_is_learned_on_a_llama_gives_the_same_logits_in_peft(kind, tmp_path):
    model, part = lively_llama(Llama(TINY)), make(kind, TINY)
    write_hub(tmp_path / "model", model)
    write_adapter(tmp_path / kind, part, "base")
    theirs = peft.PeftModel.from_pretrained(hub_model(tmp_path / "model"), tmp_path / kind).eval()
    back = load_prefix(tmp_path / kind, TINY) if "lora" not in kind else read_lora(TINY, tmp_path / kind)
    with torch.no_grad(), back.attached(model):
        assert_same_logits(model, theirs)
    assert all(torch.equal(tensor, back.tensors()[name]) for name, tensor in part.tensors().items())


# ----------------------------------------------------------------------------- from peft to here


def learn_with_peft(model, config, folder, steps: int = 3, vocabulary: int = 400):
    """peft's adapter after a few steps, saved; the model that has it."""
    torch.manual_seed(4)
    model = peft.get_peft_model(model, config)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.05)
    for _ in range(steps):
        tokens = torch.randint(0, vocabulary, (2, 9))
        optimizer.zero_grad()
        model(input_ids=tokens, attention_mask=torch.ones_like(tokens), labels=tokens).loss.backward()
        optimizer.step()
    model.eval().save_pretrained(folder)
    return model


def read_lora(config, folder) -> LoRA:
    """The LoRA of peft's folder."""
    return LoRA.of_tensors(config, *read_learned(folder, config), folder)


PROMPTS = {
    "prefix": lambda: peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
    "projection": lambda: peft.PrefixTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=4, prefix_projection=True, encoder_hidden_size=24
    ),
    "embedding": lambda: peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
}
LORAS = {
    "c_attn": {"target_modules": ["c_attn"], "r": 4, "lora_alpha": 8},
    "every projection": {"target_modules": ["c_attn", "c_proj", "c_fc"], "r": 3, "lora_alpha": 10, "lora_dropout": 0.1},
    "rslora": {"target_modules": ["c_attn"], "r": 4, "lora_alpha": 8, "use_rslora": True},
    "ranks and scales of their own": {
        "target_modules": ["c_attn", "mlp.c_proj"], "r": 4, "lora_alpha": 8, "rank_pattern": {"mlp.c_proj": 2},
        "alpha_pattern": {r"h\.0\.attn\.c_attn": 3, "mlp.c_proj": 5},
    },
    "one layer": {"target_modules": ["c_attn"], "r": 2, "lora_alpha": 8, "layers_to_transform": [1]},
}  # fmt: skip


@pytest.mark.parametrize("kind", PROMPTS)
def test_what_peft_learned_gives_the_same_logits_and_beams_here(model, twin, prompts, kind, tmp_path):
    theirs = learn_with_peft(twin, PROMPTS[kind](), tmp_path)
    prefix = load_prefix(tmp_path, model.config)
    assert (prefix.mode, prefix.prefix_len) == ("embedding" if kind == "embedding" else "prefix", 4)
    with prefix.attached(model):
        assert_same_logits(model, theirs)
        assert_same_beams(model, theirs, prompts, 12)


@pytest.mark.parametrize("kind", LORAS)
def test_pefts_lora_gives_the_same_logits_here(model, twin, kind, tmp_path):
    config = peft.LoraConfig(task_type="CAUSAL_LM", fan_in_fan_out=True, **LORAS[kind])
    theirs = learn_with_peft(twin, config, tmp_path)
    lora = read_lora(model.config, tmp_path)
    with lora.attached(model):
        assert_same_logits(model, theirs)
        changed = model(torch.arange(9)[None])
    assert (changed - model(torch.arange(9)[None])).abs().max() > 0.01


def test_pefts_lora_on_a_llama_gives_the_same_logits_here(tmp_path):
    """Scales differ from module to module, by a pattern with the layer's number in it."""
    model = lively_llama(Llama(TINY)).requires_grad_(False)
    write_hub(tmp_path / "model", model)
    config = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj", "gate_proj", "down_proj"], r=3,
                             lora_alpha=6, alpha_pattern={r"layers\.1\.mlp\.gate_proj": 2})  # fmt: skip
    theirs = learn_with_peft(hub_model(tmp_path / "model"), config, tmp_path / "lora")
    lora = read_lora(TINY, tmp_path / "lora")
    assert lora.on == ("q", "v", "gate", "mlp")
    plain = model(torch.arange(9)[None])
    with lora.attached(model):
        assert_same_logits(model, theirs)
        assert (model(torch.arange(9)[None]) - plain).abs().max() > 0.01


def test_a_lora_that_was_not_trained_changes_nothing(model, twin, tmp_path):
    peft.get_peft_model(twin, peft.LoraConfig(target_modules=["c_fc"], fan_in_fan_out=True)).save_pretrained(tmp_path)
    lora = read_lora(model.config, tmp_path)
    assert lora.on == ("fc",) and not any(t.any() for name, t in lora.tensors().items() if name.endswith("B"))


# ----------------------------------------------------------------------------- runs


def write_run(folder, world, mode: str, **changes):
    """A finished run of random numbers in this mode."""
    given = {"mode": mode, "model": str(world / "model"), "data": str(world / "data"), "out": str(folder)}
    s = Settings(**given | {"beam_size": 2, "max_new_tokens": 12} | changes).resolve()
    model = load_model(s.model, s.weights)
    learned = None
    if not s.finetunes:
        parts = {name: make(name, model.config) for name in s.parts}
        learned = Parts(parts) if s.adapts else parts[mode]
    else:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    write_json(folder / "settings.json", dataclasses.asdict(s))
    write_json(folder / "summary.json", {})
    save_learned(model, learned, trained_file(folder, s.finetunes, s.adapts), s.mode, s.model)
    return folder


@pytest.fixture
def runs(world, tmp_path):
    return lambda mode, **changes: write_run(tmp_path / f"run of {mode}", world, mode, **changes)


def test_a_runs_adapter_is_one_command_and_evaluates_as_the_run_does(runs, world, tmp_path, capsys):
    run, out = runs("prefix"), tmp_path / "adapter"
    export.main(["--run", str(run), "--peft", str(out)])
    assert "PeftModel.from_pretrained" in capsys.readouterr().out
    assert sorted(path.name for path in out.iterdir()) == [CONFIG, TENSORS]
    stated = json.loads((out / CONFIG).read_text())
    assert stated["base_model_name_or_path"] == str(world / "model") and not stated["prefix_projection"]
    search = {"beam_size": 2, "max_new_tokens": 12, "device": "cpu", "dtype": "fp32"}
    own, foreign = (evaluate_run(folder, data=str(world / "data"), **search) for folder in (run, out))
    assert own == foreign
    assert (out / "outputs-beam_size_2-max_new_tokens_12.txt").read_text() == (run / "outputs.txt").read_text()


@pytest.mark.parametrize("kind", ["prefix", "lora"])
def test_an_adapter_answers_a_table_and_a_file_of_tables(runs, world, tmp_path, kind, capsys):
    out, tables_file = tmp_path / "adapter", tmp_path / "tables.txt"
    run = runs(kind)
    export.main(["--run", str(run), "--peft", str(out)])
    table = "name : Lotus | food : Thai"
    tables_file.write_text(table + "\n")
    more = ["--model", str(world / "model"), "--decode_dtype", "fp32", "--beam_size", "2", "--max_new_tokens", "12"]
    answers = []
    for folder in (run, out):
        capsys.readouterr()
        evaluate.main(["--run", str(folder), "--table", table, *more])
        answers.append(capsys.readouterr().out)
        evaluate.main(["--run", str(folder), "--tables", str(tables_file), "--out", str(tmp_path / "texts"), *more])
        answers.append((tmp_path / "texts").read_text())
    assert len(set(answers)) == 1


def test_a_mixture_is_a_folder_a_part_and_a_note(runs, world, tmp_path):
    run, out, merged = runs("prefix+lora"), tmp_path / "out", tmp_path / "merged"
    export.main(["--run", str(run), "--peft", str(out)])
    assert sorted(path.name for path in out.iterdir()) == ["NOTE.txt", "lora", "prefix"]
    assert "PEFT loads one adapter at a time" in (out / "NOTE.txt").read_text()
    export.main(["--run", str(run), "--hub", str(merged)])
    _, ours = load_run(run, device="cpu", dtype="fp32")
    assert_same_logits(ours, peft.PeftModel.from_pretrained(hub_model(merged), out / "prefix").eval())


# ----------------------------------------------------------------------------- the hub's folder


@pytest.mark.parametrize("mode", ["finetune", "lora"])
def test_an_exported_model_loads_in_transformers_and_here(runs, mode, tmp_path):
    run, out = runs(mode), tmp_path / "hub"
    export.main(["--run", str(run), "--hub", str(out)])
    _, ours = load_run(run, device="cpu", dtype="fp32")
    theirs = hub_model(out)
    assert_same_logits(ours, theirs)
    assert theirs.config.eos_token_id == theirs.generation_config.eos_token_id == 400
    back = load_model(str(out)).eval()
    tokens = torch.arange(40)[None]
    with torch.no_grad():
        torch.testing.assert_close(back(tokens), ours(tokens), **CLOSE)


def test_pefts_lora_is_merged_into_the_hubs_folder(folder, twin, tmp_path):
    config = peft.LoraConfig(task_type="CAUSAL_LM", fan_in_fan_out=True, **LORAS["every projection"])
    theirs = learn_with_peft(twin, config, tmp_path / "adapter")
    export.main(["--run", str(tmp_path / "adapter"), "--model", str(folder), "--hub", str(tmp_path / "out")])
    assert_same_logits(load_model(str(tmp_path / "out")).eval(), theirs)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory, world):
    """(ours, transformers') of three vocabularies, the second from an exported folder."""
    folder = tmp_path_factory.mktemp("vocabularies")
    names = {"tiny": str(world / "model"), "mini": "mini", "llama": str(folder / "llama")}
    write_hub(folder / "llama", lively_llama(Llama(TINY)))
    found = {}
    for kind, name in names.items():
        run = write_run(folder / kind / "run", world, "finetune", model=name)
        export.main(["--run", str(run), "--hub", str(folder / kind / "out")])
        theirs = transformers.AutoTokenizer.from_pretrained(folder / kind / "out")
        found[kind] = load_tokenizer(name), theirs, load_tokenizer(str(folder / kind / "out"))
    return found


LETTERS = st.text(st.characters(codec="utf-8") | st.sampled_from(" \n\t  '0123sdtrvmléñ£<|>"))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@pytest.mark.parametrize("kind", ["tiny", "mini", "llama"])
@given(text=LETTERS)
def test_the_exported_tokenizer_gives_the_same_ids_on_any_text(tokenizers, kind, text):
    ours, theirs, back = tokenizers[kind]
    ids = ours.encode(text, allowed_special="all") if kind != "llama" else ours.encode_ordinary(text)
    assert theirs(text)["input_ids"] == ids
    assert back.encode_ordinary(text) == ours.encode_ordinary(text)
    assert theirs.decode(ids) == ours.decode(ids)


@pytest.mark.parametrize("kind", ["tiny", "mini", "llama"])
def test_the_exported_tokenizer_knows_the_end_token(tokenizers, kind):
    ours, theirs, _ = tokenizers[kind]
    assert theirs.eos_token == "<|endoftext|>" and theirs.eos_token_id == ours.eot_token
    assert len(theirs) == ours.n_vocab
    assert theirs(" name : Lotus <|endoftext|>")["input_ids"] == encode_prompt(ours, "name : Lotus")


@pytest.mark.parametrize("mode", ["finetune", "lora"])
def test_an_exported_llama_loads_in_transformers_and_here(world, tmp_path, mode):
    write_hub(tmp_path / "model", lively_llama(Llama(TINY)))
    run = write_run(tmp_path / "run", world, mode, model=str(tmp_path / "model"))
    export.main(["--run", str(run), "--hub", str(tmp_path / "out")])
    _, ours = load_run(run, device="cpu", dtype="fp32")
    assert_same_logits(ours, hub_model(tmp_path / "out"))
    back = load_model(str(tmp_path / "out")).eval()
    assert back.config == ours.config
    assert all(torch.equal(tensor, back.state_dict()[name]) for name, tensor in ours.state_dict().items())


def test_a_llamas_adapter_evaluates_as_the_run_does(world, tmp_path):
    write_hub(tmp_path / "model", lively_llama(Llama(TINY)))
    run = write_run(tmp_path / "run", world, "lora", model=str(tmp_path / "model"))
    export.main(["--run", str(run), "--peft", str(tmp_path / "adapter")])
    search = {"beam_size": 2, "max_new_tokens": 12, "device": "cpu", "data": str(world / "data")}
    for folder in (run, tmp_path / "adapter"):
        evaluate_run(folder, **search)
    (texts,) = (tmp_path / "adapter").glob("outputs*.txt")
    assert texts.read_text() == (run / "outputs.txt").read_text()


# ----------------------------------------------------------------------------- bad input


def status_and_message(main, *argv, capsys) -> str:
    """The one sentence of a command that fails with status 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as error:
        main(list(map(str, argv)))
    message = capsys.readouterr().err
    assert error.value.code == 2 and message.startswith("error: ") and message.count("\n") == 1
    return message


def test_what_has_no_counterpart_is_refused(runs, tmp_path, capsys):
    def refused(run, flag):
        message = status_and_message(export.main, "--run", run, flag, tmp_path / "out", capsys=capsys)
        assert not (tmp_path / "out").exists()
        return message

    finetuned = runs("finetune")
    assert "is fine-tuned, and PEFT keeps small parts only: export the model with --hub" in refused(finetuned, "--peft")
    assert "changes no weights of its model: export its prefix with --peft" in refused(runs("prefix"), "--hub")
    assert "PEFT has no counterpart of an infix" in refused(runs("infix"), "--peft")
    mixture = runs("prefix+lora+adapter")
    for flag in ("--peft", "--hub"):
        assert "PEFT has no counterpart of an adapter" in refused(mixture, flag)
    (finetuned / "summary.json").unlink()
    assert "has no finished model.safetensors" in refused(finetuned, "--hub")
    assert "is not a run: it has no settings.json" in refused(tmp_path / "nothing", "--peft")


def test_a_folder_with_content_is_left_as_it_is(runs, tmp_path, capsys):
    run, out = runs("prefix"), tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("mine")
    for folder in (out, out / "thesis.txt", run):
        message = status_and_message(export.main, "--run", run, "--peft", folder, capsys=capsys)
        assert "exists and is left as it is: name a new folder" in message
    assert (out / "thesis.txt").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "run of prefix"]  # nothing half written
    (out / "thesis.txt").unlink()
    export.main(["--run", str(run), "--peft", str(out)])  # an empty folder is as good as none
    message = status_and_message(export.main, "--run", out, "--peft", tmp_path / "again", capsys=capsys)
    assert "is an adapter folder of PEFT's already" in message


def change_config(folder, **changes):
    path = folder / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_tensors(folder, change):
    tensors = {key: tensor.clone() for key, tensor in read_safetensors(folder / TENSORS)[0].items()}
    write_safetensors(folder / TENSORS, change(tensors), {})


LORA_A = "base_model.model.transformer.h.1.attn.c_attn.lora_A.weight"
DAMAGE = {
    "another kind": ("prefix", lambda f: change_config(f, peft_type="IA3"), "the kind 'IA3' is not read here"),
    "no tensors": ("prefix", lambda f: (f / TENSORS).unlink(), "has no adapter_model.safetensors"),
    "a pickle": ("prefix", lambda f: (f / TENSORS).rename(f / "adapter_model.bin"), "files are not unpickled here"),
    "no config": ("prefix", lambda f: (f / CONFIG).unlink(), "has no adapter_config.json"),
    "no JSON": ("prefix", lambda f: (f / CONFIG).write_text('{"peft_type": '), "is damaged"),
    "a list": ("prefix", lambda f: (f / CONFIG).write_text("[]"), "is damaged"),
    "half a file": (
        "prefix",
        lambda f: (f / TENSORS).write_bytes((f / TENSORS).read_bytes()[:-9]),
        "is not a complete safetensors file",
    ),
    "other numbers": (
        "prefix",
        lambda f: change_config(f, num_virtual_tokens=7),
        "the two files do not belong together",
    ),
    "no numbers": ("prefix", lambda f: change_config(f, num_layers=None), "its num_layers is None"),
    "an encoder": ("prefix", lambda f: change_config(f, num_transformer_submodules=2), "encoder and decoder"),
    "other heads": (
        "prefix",
        lambda f: change_config(f, num_attention_heads=8),
        "was made for 2 layers of 8 heads and width 64, but this model has 2 layers of 4 heads",
    ),
    "other tensors": (
        "prefix",
        lambda f: change_tensors(f, lambda t: t | {"score": torch.zeros(2)}),
        "does not hold prompt_embeddings alone",
    ),
    "DoRA": ("lora", lambda f: change_config(f, use_dora=True), "a LoRA with use_dora True is not read here"),
    "PiSSA": ("lora", lambda f: change_config(f, init_lora_weights="pissa"), "with init_lora_weights 'pissa'"),
    "alpha": ("lora", lambda f: change_config(f, lora_alpha="much", alpha_pattern={}), "its lora_alpha is 'much'"),
    "a pattern": ("lora", lambda f: change_config(f, alpha_pattern={"(": 1}), "its alpha_pattern is {'(': 1}"),
    "another rank": ("lora", lambda f: change_config(f, r=64, rank_pattern={}), "says 64: the two files do not belong"),
    "another rank somewhere": (
        "lora",
        lambda f: change_config(f, rank_pattern={r"h\.1\.attn\.c_attn": 64, "attn.c_attn": 6}),
        "at transformer.h.1.attn.c_attn, but adapter_config.json says 64",
    ),
    "another projection": (
        "lora",
        lambda f: change_tensors(f, lambda t: {key.replace("c_attn", "q_proj"): x for key, x in t.items()}),
        "is not a LoRA of this model's layers",
    ),
    "half a pair": (
        "lora",
        lambda f: change_tensors(f, lambda t: {key: x for key, x in t.items() if key != LORA_A}),
        "does not hold pairs",
    ),
    "a layer less": (
        "lora",
        lambda f: change_tensors(f, lambda t: {key: x for key, x in t.items() if ".h.1." not in key}),
        "adapts attn.c_attn in 1 layers, but this model has 2 layers",
    ),
    "another width": (
        "lora",
        lambda f: change_tensors(f, lambda t: {key: x.repeat(2, 2) for key, x in t.items()}),
        "does not fit this model of 2 layers",
    ),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_or_foreign_adapter_is_refused_in_one_sentence(model, world, what, tmp_path, capsys):
    kind, damage, sentence = DAMAGE[what]
    write_adapter(tmp_path / "adapter", make(kind, model.config), str(world / "model"))
    damage(tmp_path / "adapter")
    given = ["--run", tmp_path / "adapter", "--table", "name : Lotus", "--model", world / "model"]
    assert sentence in status_and_message(evaluate.main, *given, capsys=capsys)
    if kind == "prefix":
        with pytest.raises(InputError):
            load_prefix(tmp_path / "adapter", model.config)


def test_an_adapter_of_an_unknown_model_needs_model_and_one_of_another_size_is_refused(model, tmp_path, capsys):
    for kind in ("prefix", "lora"):
        write_adapter(tmp_path / kind, make(kind, model.config), "somebody/her-gpt2")
        given = ["--run", tmp_path / kind, "--table", "name : Lotus"]
        assert "name it with --model" in status_and_message(evaluate.main, *given, capsys=capsys)
        message = status_and_message(evaluate.main, *given, "--model", "mini", capsys=capsys)
        assert "use the model it was trained with" in message


def test_a_lora_folder_is_no_prefix_and_a_gpt2s_is_not_a_llamas(model, tmp_path):
    write_adapter(tmp_path, make("lora", model.config), "base")
    with pytest.raises(InputError, match="does not hold a prefix .its mode is 'lora'"):
        load_prefix(tmp_path, model.config)
    with pytest.raises(InputError, match="which is not a LoRA of this model's layers .2 Llama layers"):
        read_learned(tmp_path, TINY)
