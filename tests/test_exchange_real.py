"""What is learned here lives on in `peft` and back, with models of real size: mini, and 124 M weights.

tests/test_exchange.py has the small ones; this is a file of its own because it takes minutes.
"""

import peft
import pytest
import torch
import transformers
from test_exchange import (
    PROMPTS,
    assert_same_beams,
    assert_same_logits,
    hub_model,
    learn_with_peft,
    make,
    prompts_of,
)
from tiny import lively

import train
from e2e_data import encode_prompt
from evaluate import newline_tokens
from gpt2 import CONFIGS, GPT2
from harness import export
from harness.files import MINI
from harness.peft_files import write_adapter
from harness.runs import load_run
from harness.settings import Settings
from harness.tokenizers import load_tokenizer
from prefix import load_prefix
from weights import load_model

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=["mini", "gpt2"])
def of_real_size(request):
    """(our model, a function that makes its twin, prompts, new tokens): mini, and 124 M weights."""
    if request.param == "mini":
        ours = load_model("mini").eval().requires_grad_(False)
        banned = newline_tokens(load_tokenizer("mini"))
        return ours, lambda: hub_model(MINI), prompts_of("mini", 12), 30, banned
    ours = lively(GPT2(CONFIGS["gpt2"])).eval().requires_grad_(False)

    def twin():
        theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(attn_implementation="eager"))
        theirs.transformer.load_state_dict(ours.state_dict())
        return theirs.eval().requires_grad_(False)

    draw = torch.Generator().manual_seed(0)
    return ours, twin, torch.randint(0, 50256, (8, 6), generator=draw).tolist(), 8, ()


def enough(prompts: list, ours: GPT2, kind: str) -> list:
    """All prompts; 124 M weights read 2 for what is not a prefix, which saves minutes."""
    return prompts if ours.config.n_layer < 12 or kind in ("prefix", "projection") else prompts[:2]


@pytest.mark.parametrize("kind", ["prefix", "embedding", "lora"])
def test_peft_computes_the_same_with_models_of_real_size(of_real_size, kind, tmp_path):
    ours, twin, prompts, new, banned = of_real_size
    part = make(kind, ours.config)
    write_adapter(tmp_path, part, "base")
    theirs = peft.PeftModel.from_pretrained(twin(), tmp_path).eval()
    with part.attached(ours):
        assert_same_logits(ours, theirs)
        assert_same_beams(ours, theirs, enough(prompts, ours, kind), new, banned)


def test_a_prefix_trained_here_generates_the_same_in_peft_on_50_of_minis_tables(tmp_path):
    """After 60 steps most texts end by themselves."""
    given = {"train_examples": 360, "batch_size": 6, "max_steps": 60, "lr": 3e-3, "dtype": "fp32", "device": "cpu"}
    run = train.train(Settings(model="mini", data="mini", out=str(tmp_path / "run"), **given))
    export.main(["--run", str(run), "--peft", str(tmp_path / "adapter")])
    s, ours = load_run(run, device="cpu", dtype="fp32", plain=True)
    tokenizer = load_tokenizer("mini")
    prompts = [encode_prompt(tokenizer, source) for source in s.dataset.test_set("test").sources[:50]]
    theirs = peft.PeftModel.from_pretrained(hub_model(MINI), tmp_path / "adapter").eval()
    assert_same_logits(ours, theirs)
    texts = assert_same_beams(ours, theirs, prompts, 25, newline_tokens(tokenizer))
    assert len(set(map(tuple, texts))) > 25 and 10 < sum(len(ids) < 25 for ids in texts)


@pytest.mark.parametrize("kind", PROMPTS)
def test_so_do_we_with_what_peft_learned_on_models_of_real_size(of_real_size, kind, tmp_path):
    ours, twin, prompts, new, banned = of_real_size
    theirs = learn_with_peft(twin(), PROMPTS[kind](), tmp_path)
    with load_prefix(tmp_path, ours.config).attached(ours):
        assert_same_logits(ours, theirs)
        assert_same_beams(ours, theirs, enough(prompts, ours, kind), new, banned)
