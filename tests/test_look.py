"""Pictures of runs: the weights are those of the attention itself, shares are sums of them, curves are the logs."""

import dataclasses
import json
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import tiny_llama
import torch
from test_lora import KINDS, trained
from test_prefix import CONFIG, END, as_past, model, twin  # noqa: F401

from adapter import Adapter
from e2e_data import encode_prompt
from evaluate import generate, writer_of
from experiments import look as program
from experiments import look_figures
from experiments.attention import attention_weights, fields_of, look, ranking, words_of
from gpt2 import join_heads
from harness.parts import Parts
from harness.runs import save_learned, trained_file, write_json
from harness.settings import Settings
from harness.tokenizers import load_tokenizer
from lora import MATRICES, LoRA, matrices_of
from prefix import MODES, Embedding, Infix, Prefix
from weights import load_model

ROOT = Path(__file__).resolve().parent.parent
TABLE = "name : Café Ruby | food : Thai | near : the Clock Tower"
LOG = "step,epoch,loss,lr,grad_norm,tokens_per_s\n1,0.1,3.5,1.0e-03,2.5,100\n2,0.2,3.25,5.0e-04,1.5,100\n"
VALID = 'step,epoch,valid_loss,seconds,sample\n2,0.2,3.125,1.0,"Lotus, a pub"\n'


@pytest.fixture
def tokens():
    tokens = torch.randint(0, 100, (2, 12), generator=torch.Generator().manual_seed(0))
    tokens[:, 7] = END  # where an infix begins
    return tokens


@pytest.fixture(scope="module")
def make_run(world, tmp_path_factory):
    """make_run(mode): the folder of a finished run with random numbers in place of learned ones."""

    def make(mode: str, **changes) -> Path:
        folder = tmp_path_factory.mktemp("runs") / mode.replace("+", "-")
        settings = Settings(
            mode=mode, model=changes.get("model", str(world / "model")), data=str(world / "data"), out=str(folder),
            prefix_len=3, no_reparam=True, device="cpu", dtype="fp32", max_new_tokens=12,
        )  # fmt: skip
        if not settings.has_prefix:
            settings = dataclasses.replace(settings, prefix_len=None, no_reparam=False)
        model = load_model(settings.model)
        parts = {
            name: MODES[name](model.config, 3, mid_dim=0) if name in MODES else trained(KINDS[name](model.config))
            for name in settings.parts
        }
        learned = None if settings.finetunes else Parts(parts) if settings.adapts else parts[mode]
        write_json(folder / "settings.json", dataclasses.asdict(settings))
        (folder / "log.csv").write_text(LOG)
        (folder / "valid.csv").write_text(VALID)
        save_learned(model, learned, trained_file(folder, settings.finetunes, settings.adapts), mode, settings.model)
        write_json(folder / "summary.json", {})
        return folder

    return make


@pytest.fixture(scope="module")
def run(make_run):
    """A run with a prefix. Read only."""
    return make_run("prefix")


@pytest.fixture
def writes(world, monkeypatch):
    """What the run writes, in place of its random letters: (text, ids)."""
    text = "Café Ruby's pub serves £20-25 food ."
    ids = load_tokenizer(str(world / "model")).encode_ordinary(f" {text} ")
    monkeypatch.setattr("experiments.attention.beam_search", lambda *args: [ids])
    return text, ids


# ----------------------------------------------------------------------------- weights


@pytest.mark.parametrize("kind", ["prefix", "embedding", "prefix+lora", "none"])
def test_the_weights_are_those_that_transformers_returns(model, twin, tokens, kind):
    past = None
    if kind != "none":
        prefix = (Embedding if kind == "embedding" else Prefix)(CONFIG, 5, mid_dim=0).attach(model)
        past = as_past(prefix.activations(model).detach(), batch=2)
    if "lora" in kind:
        lora = trained(LoRA(CONFIG, MATRICES)).attach(model)
        ours = attention_weights(model, tokens)
        lora.merge()
        for layer, merged in zip(ours, attention_weights(model, tokens)):
            torch.testing.assert_close(layer.weights, merged.weights, atol=1e-5, rtol=0)
        twin.transformer.load_state_dict(model.state_dict())
    expected = twin(tokens, past_key_values=past, output_attentions=True).attentions
    ours = attention_weights(model, tokens)
    assert len(ours) == len(expected) == 3 and ours[0].weights.shape == (2, 4, 12, 12 + (0 if past is None else 5))
    for layer, weights in zip(ours, expected):
        torch.testing.assert_close(layer.weights, weights, atol=1e-5, rtol=0)


def test_a_llamas_weights_are_those_that_transformers_returns(tokens):
    model = tiny_llama.lively(tiny_llama.Llama(tiny_llama.TINY)).requires_grad_(False)
    prefix = Prefix(model.config, 5, mid_dim=0).attach(model)
    past = as_past(prefix.activations(model).detach(), batch=2)
    lora = trained(LoRA(model.config, matrices_of(model.config))).attach(model)
    attached = attention_weights(model, tokens)
    lora.merge()
    for layer, weights in zip(attached, attention_weights(model, tokens), strict=True):
        torch.testing.assert_close(layer.weights, weights.weights, atol=1e-5, rtol=0)
    expected = tiny_llama.twin(model)(tokens, past_key_values=past, output_attentions=True).attentions
    for layer, weights in zip(attention_weights(model, tokens), expected, strict=True):
        torch.testing.assert_close(layer.weights, weights, atol=1e-5, rtol=0)


ATTACHED = {
    "prefix": [lambda c: Prefix(c, 5, mid_dim=0)],
    "infix": [lambda c: Infix(c, 5, mid_dim=0)],
    "embedding": [lambda c: Embedding(c, 5, mid_dim=0)],
    "lora": [lambda c: trained(KINDS["everywhere"](c))],
    "all": [lambda c: Infix(c, 5, mid_dim=0), lambda c: trained(LoRA(c)), lambda c: trained(Adapter(c))],
    "none": [],
}


@pytest.mark.parametrize("name", [*ATTACHED, "llama"])
@torch.no_grad()
def test_weights_times_values_are_what_the_attention_returns(model, tokens, name):
    if name == "llama":
        model = tiny_llama.lively(tiny_llama.Llama(tiny_llama.TINY))
    for make in ATTACHED.get(name, ATTACHED["prefix"]):
        make(model.config).attach(model)
    returned = {}
    for attn in model.attentions:
        attn.register_forward_hook(lambda attn, args, y: returned.__setitem__(attn.layer, y))  # the last call's
    logits = model(tokens)
    for attn, seen in zip(model.attentions, attention_weights(model, tokens), strict=True):
        project = attn.o_proj if name == "llama" else attn.c_proj
        torch.testing.assert_close(project(join_heads(seen.weights @ seen.values)), returned[attn.layer])
        torch.testing.assert_close(seen.weights.sum(-1), torch.ones_like(seen.weights[..., 0]))
        if name in ("infix", "all"):
            assert not seen.weights[:, :, :7, :5].any() and seen.weights[:, :, 7:, :5].all()
    assert torch.equal(model(tokens), logits) and not any(attn._forward_pre_hooks for attn in model.attentions)


# ----------------------------------------------------------------------------- words and shares


def test_tokens_are_collected_into_words_and_fields(world):
    tokenizer = load_tokenizer(str(world / "model"))
    ids = encode_prompt(tokenizer, f"{TABLE} | food : too")
    names, of = fields_of(tokenizer, f"{TABLE} | food : too", ids)
    spelled = [tokenizer.decode([i for i, field in zip(ids, of) if field == n]) for n in range(len(names) + 1)]
    assert names == ["name", "food", "near"]
    # a token takes the space before it along
    assert spelled == [
        " name : Café Ruby |",
        " food : Thai | food : too",
        " near : the Clock Tower |",
        " <|endoftext|>",
    ]
    assert fields_of(tokenizer, "A cheap pub .", ids)[0] == ["input"]

    ids = tokenizer.encode_ordinary(" Café Ruby's  serves £20-25 food . ")
    words = words_of(tokenizer, ids)
    assert [word for word, _ in words] == ["Café", "Ruby's", "serves", "£20-25", "food", "."]
    assert all(tokenizer.decode([ids[i] for i in places]).strip() == word for word, places in words)
    assert words_of(tokenizer, []) == []


@pytest.mark.parametrize("mode", ["prefix", "infix", "embedding", "lora", "prefix+lora+adapter", "finetune"])
def test_a_words_shares_sum_to_one_in_every_head(make_run, mode):
    folder = make_run(mode)
    found = look(writer_of(run=folder, plain=True, dtype="fp32"), TABLE)
    assert found.text == generate(folder, TABLE, plain=True, dtype="fp32")
    kind = mode if mode in MODES else "prefix"
    assert found.sources == [kind, "name", "food", "near", "separator", "earlier words"]
    assert found.shares.shape == (2, 4, len(found.words), 6)
    torch.testing.assert_close(found.shares.sum(-1), torch.ones(2, 4, len(found.words)))
    has_prefix = any(name in MODES for name in mode.split("+"))
    assert found.shares[..., 0].any() == found.shares[..., 0].all() == has_prefix
    (layer, head, share), *others = ranking(found)
    assert len(others) == 7 and share == found.prefix_by_head.max() == found.prefix_by_head[layer - 1, head - 1]


def test_a_llamas_words_have_shares_too(make_run, tmp_path):
    tiny_llama.write_hub(tmp_path, tiny_llama.lively(tiny_llama.Llama(tiny_llama.TINY)))
    found = look(writer_of(run=make_run("prefix", model=str(tmp_path)), plain=True, dtype="fp32"), TABLE)
    assert found.shares.shape == (2, 4, len(found.words), 6) and found.shares[..., 0].all()
    torch.testing.assert_close(found.shares.sum(-1), torch.ones(2, 4, len(found.words)))


def test_heads_that_look_everywhere_alike_give_each_source_its_number_of_positions(run, writes):
    """With queries of zero the weights are 1 / S, so a share can be counted."""
    text, written = writes
    writer = writer_of(run=run, plain=True, dtype="fp32")
    for attn in writer.model.attentions:
        attn.c_attn.weight.zero_()
        attn.c_attn.bias.zero_()
    found = look(writer, TABLE)
    names, of = fields_of(writer.tokenizer, TABLE, encode_prompt(writer.tokenizer, TABLE))
    counted = [3, *(of.count(n) for n in range(4))]  # prefix, three fields, separator
    assert found.words == text.split() and found.sources[1:4] == names and sum(counted) == 3 + len(of)
    for w, (_, places) in enumerate(words_of(writer.tokenizer, written)):
        rows = torch.tensor([[*counted, j] for j in places])  # j tokens were written before the word's token j
        expected = (rows / rows.sum(1, keepdim=True)).mean(0)
        torch.testing.assert_close(found.shares[1, 2, w], expected)


# ----------------------------------------------------------------------------- pictures


def pictures(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_curves_are_the_runs_numbers(run, make_run, tmp_path, capsys):
    unfinished = make_run("finetune")
    (unfinished / "log.csv").write_text(LOG.replace("3.25", "nan") + "3,0.3,2.0")  # it is just being written
    (unfinished / "valid.csv").unlink()
    program.main(["--run", str(run), "--run", str(unfinished), "--out", str(tmp_path / "a")])
    program.main(["--run", str(run), "--run", str(unfinished), "--out", str(tmp_path / "b")])
    assert "curves.svg" in capsys.readouterr().out
    first = pictures(tmp_path / "a")
    assert first == pictures(tmp_path / "b") and set(first) == {"curves.svg", "curves.png"}
    assert b"<dc:date>" not in first["curves.svg"]

    runs = {folder.name: program.read_run(folder) for folder in (run, unfinished)}
    panels = look_figures.curves(runs).axes
    drawn = [{line.get_label(): line.get_xydata().tolist() for line in axes.lines} for axes in panels]
    assert drawn == [
        {"prefix": [[1, 3.5], [2, 3.25]], "finetune": [[1, 3.5]]},
        {"prefix": [[2, 3.125]]},
        {"prefix": [[1, 1e-3], [2, 5e-4]], "finetune": [[1, 1e-3], [2, 5e-4]]},
        {"prefix": [[1, 2.5], [2, 1.5]], "finetune": [[1, 2.5], [2, 1.5]]},
    ]
    labels = [[text.get_text() for text in axes.texts] for axes in panels]
    assert labels[1] == ["prefix"] and all(sorted(names) == ["finetune", "prefix"] for names in labels[::2])
    many = look_figures.curves({f"run {i}": runs["prefix"] for i in range(20)})
    assert not many.axes[0].texts and len(many.legends[0].get_texts()) == 20


def test_runs_of_one_name_are_told_apart_by_their_folders():
    assert program.names_of([Path("/a/x/run"), Path("/a/y/run"), Path("/a/other")]) == ["x/run", "y/run", "a/other"]
    assert look_figures.wrapped("mini-prefix5-data_mini") == "mini-prefix5-\ndata_mini"


def test_attention_is_drawn_on_as_many_pictures_as_the_text_needs(run, writes, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(look_figures, "WORDS", 4)
    program.main(["--run", str(run), "--table", TABLE, "--out", str(tmp_path)])
    found = look(writer_of(run=run, plain=True, dtype="fp32"), TABLE)
    layer, head, share = ranking(found)[0]
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == writes[0] and printed[2] == f"  layer {layer:>2}, head {head:>2}  {100 * share:5.1f}"

    made = pictures(tmp_path)
    pages = ("attention", "attention-2", "attention-layers", "attention-layers-2", "attention-heads")
    assert set(made) == {"attention.json", *(f"{page}.{kind}" for page in pages for kind in ("svg", "png"))}
    for page in pages:
        assert made[f"{page}.png"].startswith(b"\x89PNG")
        assert ElementTree.fromstring(made[f"{page}.svg"]).tag.endswith("svg")
    again = look_figures.save(look_figures.heads, tmp_path / "again", found)
    assert [path.read_bytes() for path in again] == [made["attention-heads.svg"], made["attention-heads.png"]]
    stated = json.loads(made["attention.json"])
    assert (stated["table"], stated["text"], stated["words"]) == (TABLE, writes[0], found.words)
    torch.testing.assert_close(torch.tensor(stated["by_layer"]), found.shares.mean(1), atol=6e-5, rtol=0)
    torch.testing.assert_close(torch.tensor(stated["prefix_by_head"]), found.prefix_by_head, atol=6e-5, rtol=0)


def test_the_pictures_show_the_shares(run, writes):
    found = look(writer_of(run=run, plain=True, dtype="fp32"), TABLE)

    def cells(axes):
        return torch.tensor(axes.collections[0].get_array().tolist()).flatten()

    (axes,) = look_figures.attention(found, 1, 3, has_prefix=True).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == found.words[1:3]
    assert [label.get_text() for label in axes.get_xticklabels()] == found.sources
    shares = found.shares.mean((0, 1))[1:3].flatten()
    torch.testing.assert_close(cells(axes), shares)
    shown = [text.get_text() for text in axes.texts]
    assert shown == [f"{100 * share:.0f}" for share in shares.tolist()]

    panels = look_figures.layers(found, 0, 7, has_prefix=True).axes[:4]
    assert [axes.get_title() for axes in panels] == ["prefix", "table", "separator", "earlier\nwords"]
    torch.testing.assert_close(cells(panels[1]), found.shares.mean(1)[..., 1:4].sum(-1).T.flatten())
    torch.testing.assert_close(sum(cells(axes) for axes in panels), torch.ones(14))

    upper, lower = look_figures.heads(found).axes
    torch.testing.assert_close(cells(upper), found.prefix_by_head.flatten())
    assert [bar.get_width() for bar in lower.patches] == [100 * share for *_, share in ranking(found)]


def test_without_a_prefix_the_pictures_have_no_column_for_it(make_run, writes, tmp_path):
    program.main(["--run", str(make_run("finetune")), "--table", TABLE, "--out", str(tmp_path)])
    assert {path.name for path in tmp_path.iterdir()} == {
        "attention.svg", "attention.png", "attention-layers.svg", "attention-layers.png", "attention.json",
    }  # fmt: skip


def test_the_picture_of_mini_shows_what_readme_says_of_it():
    folder = ROOT / "results" / "mini" / "figures"
    found = json.loads((folder / "attention.json").read_text(encoding="utf-8"))
    assert (found["model"], found["data"], found["mode"], found["prefix_len"]) == ("mini", "mini", "prefix", 5)
    for name in ("attention", "attention-layers", "attention-heads"):
        assert (folder / f"{name}.svg").stat().st_size < 300_000
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    shares = torch.tensor(found["by_layer"]).mean(0)  # [W, N]
    torch.testing.assert_close(shares.sum(1), torch.ones(len(shares)), atol=1e-3, rtol=0)
    fields = found["sources"][1:-2]
    most = {word: fields[i] for word, i in zip(found["words"], shares[:, 1:-2].argmax(1).tolist())}
    expected = {"Rusty": "name", "Kettle": "name", "restaurant": "Type"}
    expected |= dict.fromkeys(("4", "out", "of", "5"), "customer rating")
    assert {word: most[word] for word in expected} == expected
    assert [f"{100 * share:.0f}" for share in (shares[:, 0].min(), shares[:, 0].max())] == [
        "18",
        "44",
    ]  # % on the prefix
    on_table = torch.tensor(found["by_layer"])[..., 1:-2].sum(2).mean(1)  # [L]
    assert sorted(on_table.topk(3).indices.tolist()) == [0, 4, 5]  # the first layer and the last two
    by_head = torch.tensor(found["prefix_by_head"])
    assert (by_head > 0.99).nonzero().tolist() == [[1, 0], [1, 2], [3, 3]]  # counted from 0
    assert "Fallow" not in found["text"] and f"{100 * shares[:, 1 + fields.index('near')].max():.0f}" == "13"


# ----------------------------------------------------------------------------- bad input


def refused(capsys, *argv) -> str:
    """The one sentence that the command line prints."""
    with pytest.raises(SystemExit) as exit:
        program.main([str(word) for word in argv])
    assert exit.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    return error


def test_bad_input_is_refused_in_one_sentence(run, make_run, tmp_path, capsys):
    assert "is not a run: it has no settings.json" in refused(capsys, "--run", tmp_path / "none")
    assert "--table looks at one run's text" in refused(capsys, "--run", run, "--run", run, "--table", TABLE)
    assert "--table is empty" in refused(capsys, "--run", run, "--table", " ")
    assert "given twice" in refused(capsys, "--run", run, "--run", run)
    assert "name a folder" in refused(capsys, "--run", run, "--out", run / "log.csv")
    assert "positions" in refused(capsys, "--run", run, "--table", f"name : {'pub ' * 200}")

    bare = make_run("lora")
    (bare / "log.csv").write_text(LOG.split("\n")[0] + "\n")
    assert "no line in log.csv yet" in refused(capsys, "--run", bare)
    (bare / "log.csv").write_text(LOG.replace("3.5", "three"))
    assert "log.csv, line 2: no step or no loss" in refused(capsys, "--run", bare)
    (bare / "log.csv").unlink()
    assert "no line in log.csv yet" in refused(capsys, "--run", bare)
    (bare / "summary.json").unlink()
    assert "resume its training" in refused(capsys, "--run", bare, "--table", TABLE)
    assert not (bare / "curves.svg").exists() and not (run / "curves.svg").exists()


def test_a_text_without_words_is_refused(run, monkeypatch, capsys):
    monkeypatch.setattr("experiments.attention.beam_search", lambda *args: [[]])
    assert "text for this table is empty" in refused(capsys, "--run", run, "--table", TABLE)


@pytest.mark.parametrize("table", [[], ["--table", TABLE]])
def test_without_matplotlib_one_sentence_says_what_to_install(run, monkeypatch, capsys, table):
    monkeypatch.delitem(sys.modules, "experiments.look_figures")
    monkeypatch.delitem(sys.modules, "experiments.figures", raising=False)
    monkeypatch.delattr("experiments.look_figures")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "pip install -r requirements-dev.txt" in refused(capsys, "--run", run, *table)
