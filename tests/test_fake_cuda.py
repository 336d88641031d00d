"""Training, validation and both decoders on a pretended GPU (fake_device.py): no tensor is on the wrong device.

Walked: every mode, with and without the MLP, a shelf whose batch calls several tasks, a Llama, label smoothing,
dropout, clipping, bf16 autocast and fp32, the plain path and the fast path; and (slow) train.py with checkpoints and
--resume, evaluate.py, a shelf's folder, mini/pretrain.py. The pretended GPU carries data, so no branch of the loop or
of beam search is replaced by a stub, and in fp32 the numbers must be those of the plain path on the CPU.

For every place where the method, harness/ or fast/ names a device, a test leaves the device out: the walk must fail.

Not walked: several GPUs (nccl, LOCAL_RANK), WebNLG's files, benchmarks/, experiments/, torch.compile. A pretended GPU
cannot show what CUDA's own kernels compute and how fast; which of them PyTorch picks (attention, fused AdamW, norms of
lists); TF32; memory; asynchronous copies and errors; the GPU's random generator (its state is a stub); PyTorch's own
autocast (the two lists are imitated for the operations used here). Where there is a real GPU, it is the one that walks.
"""

import ast
import dataclasses
import functools
import importlib
import inspect
import json
from contextlib import contextmanager
from pathlib import Path

import fake_device
import pytest
import tiny_llama
import torch
import torch.nn.functional as F
from test_pretrain import FLAGS, write_corpus

import evaluate
import train
from beam import NextWords, beam_search
from e2e_data import Encoded, collate
from gpt2 import KVCache
from harness.door import Engine
from harness.files import InputError
from harness.loop import validation_loss
from harness.machine import autocast, describe_machine, pick_device, pick_dtype
from harness.runs import start_model, trained_file
from harness.safetensors import read_safetensors
from harness.settings import Settings
from llama import Llama
from lora import LoRA
from mini import pretrain
from prefix import MODES
from tasks import Shelf
from weights import load_model

ROOT = Path(__file__).resolve().parent.parent
ERROR = "same device"  # "Expected all tensors to be on the same device, but ..."
PARTS = ["prefix", "infix", "embedding", "lora", "adapter", "prefix+lora", "prefix+adapter", "finetune", "no_reparam"]
SPECIAL = ["shelf", "llama", "llama infix", "llama lora"]
LIMITS = [4, 1, 3, 2]
PATHS = {"plain": True, "fast": False}


def batch_of(end: int, *first: int):
    """Four examples of unequal lengths, which begin with these tokens (a shelf's)."""
    generator = torch.Generator().manual_seed(0)
    examples = []
    for i, (prompt, text) in enumerate([(9, 6), (4, 9), (7, 1), (3, 4)]):
        ids = torch.randint(1, end or 300, (prompt + text - 2,), generator=generator).tolist()
        begin = [token for token in first[i : i + 1] if token is not None]
        examples.append(Encoded([*begin, *ids[: prompt - 1], end, *ids[prompt - 1 :], end], len(begin) + prompt))
    return examples


def start(what: str, folder, engine: Engine):
    """(model, what is trained, the shelf or None) as a run starts with them, on the engine's device."""
    torch.manual_seed(3)
    if what == "shelf":
        model = load_model(str(folder))
        prefixes = {name: MODES[mode](model.config, P, 8) for P, (name, mode) in enumerate(TASKS.items(), start=2)}
        shelf = Shelf(model.config, prefixes)
        return engine.to_device_and_freeze(model, shelf), shelf, shelf
    if what.startswith("llama"):
        model = tiny_llama.lively(Llama(tiny_llama.TINY))
        if "lora" in what:
            learned = LoRA(model.config, ("q", "gate"), 2)
        else:
            learned = MODES["infix" if "infix" in what else "prefix"](model.config, 3, 8)
        return engine.to_device_and_freeze(model, learned), learned, None
    mode = {"mode": "prefix", "no_reparam": True} if what == "no_reparam" else {"mode": what}
    settings = Settings(model=str(folder), mid_dim=8, dropout=0.0, **mode)
    settings = dataclasses.replace(settings, lora_dropout=0.0 if "lora" in what else None, device="cpu").resolve()
    settings.device, settings.dtype, settings.plain = engine.device, engine.dtype, engine.plain
    model, prefix = start_model(settings)
    return model, model if prefix is None else prefix, None


TASKS = {"a": "prefix", "b": "infix", "c": "embedding"}


def walk(what: str, folder, device: str, dtype: str, plain: bool) -> dict:
    """Two steps, a validation, a beam search and a greedy one: the numbers and texts that come out."""
    engine = Engine(plain, device, dtype)
    model, learned, shelf = start(what, folder, engine)
    examples = batch_of(model.config.end_token, *([shelf.token("a"), None, shelf.token("c")] if shelf else []))
    loss_of = engine.in_precision(engine.choose(train.summed_loss, model))
    smoothed = functools.partial(loss_of, label_smoothing=0.1)
    clip, adamw = engine.choose(train.clip_gradients), engine.choose(train.adamw)
    optimizer = adamw(learned.parameters(), 1e-3, 0.01)
    model.train(what == "finetune")
    batches = [collate(examples[i : i + 2], model.config.end_token).to(device) for i in (0, 2)]
    steps = [train.update(model, optimizer, batches, 4, 1e-3, 1.0, loss, clip) for loss in (loss_of, smoothed)]
    model.eval()
    valid = validation_loss(model, examples, loss_of, model.config.end_token, device, batch_size=2)
    prompts = [ids[:n_prompt] for ids, n_prompt in examples]
    search = engine.in_precision(beam_search)
    next_words = engine.choose(NextWords, model)
    # The prompts' searches end at different lengths, so rows leave the batch.
    texts = search(engine.ready_to_decode(model), prompts, model.config.end_token, 3, LIMITS, "total", (5,),
                   next_words)  # fmt: skip
    with torch.inference_mode(), autocast(device, dtype):  # and a loop of one's own: no mask, no positions
        cache, row = KVCache(), torch.tensor([examples[0].ids[:5]], device=device)
        logits = [model(tokens, cache)[0, -1] for tokens in (row, row[:, 1:2], row[:, 2:3])]
    assert {x.device.type for x in (*logits, *model.parameters(), *learned.parameters())} == {device}
    return {"numbers": [*sum(steps, ()), valid, *(x.logsumexp(0).item() for x in logits)], "texts": texts}


@functools.lru_cache
def on_cpu(what: str, folder) -> dict:
    return walk(what, folder, "cpu", "fp32", plain=True)


QUICK = {"plain": ("prefix+lora", "finetune", "shelf", "llama"), "fast": (*PARTS, *SPECIAL)}  # the others are slow


def walks(quick: dict[str, tuple[str, ...]]) -> list:
    """All modes on both paths, as parameters of a test."""
    return [
        pytest.param(what, path, marks=() if what in quick[path] else pytest.mark.slow)
        for what in (*PARTS, *SPECIAL)
        for path in PATHS
    ]


@pytest.mark.parametrize("what, path", walks(QUICK))
def test_every_mode_trains_validates_and_decodes_there_as_on_the_cpu(world, what, path):
    expected = on_cpu(what, world / "model")
    with fake_device.cuda() as device:
        found = walk(what, world / "model", device, "fp32", PATHS[path])
    assert found["numbers"] == pytest.approx(expected["numbers"], rel=1e-4)
    assert found["texts"] == expected["texts"]


@pytest.mark.parametrize("what, path", walks({"plain": ("finetune",), "fast": ("prefix+lora",)}))
def test_every_mode_under_bf16_autocast(world, what, path):
    """Numbers within 5 % of fp32's on the CPU. Close candidates may change places, so texts are not compared."""
    expected = on_cpu(what, world / "model")
    with fake_device.cuda() as device:
        found = walk(what, world / "model", device, "bf16", PATHS[path])
    assert found["numbers"] == pytest.approx(expected["numbers"], rel=0.05)
    assert found["numbers"] != pytest.approx(expected["numbers"], rel=1e-5)  # autocast did something
    assert all(len(text) <= limit for text, limit in zip(found["texts"], LIMITS))


def test_dropout_is_drawn_there(world):
    with fake_device.cuda() as device:
        for plain in PATHS.values():
            engine = Engine(plain, device, "fp32")
            model, _, _ = start("finetune", world / "model", engine)
            for module in model.modules():
                if isinstance(module, torch.nn.Dropout):
                    module.p = 0.1
            examples = batch_of(model.config.end_token)
            batch, loss_of = collate(examples, model.config.end_token).to(device), engine.choose(train.summed_loss)
            drawn = [loss_of(model.train(), batch) for _ in range(2)]
            drawn[0].backward()
            assert drawn[0].item() != drawn[1].item()
            assert drawn[0].item() == pytest.approx(loss_of(model.eval(), batch).item(), rel=0.2)


# ----------------------------------------------------------------------------- what the walk would find

# Whatever the product says about devices, and the walks (mode, plain path?) in which one of them must fail without it.
WALKS = {
    "gpt2": [("prefix", True), ("finetune", True)],
    "llama": [("llama", True)],
    "prefix": [("prefix", True), ("infix", True), ("embedding", True)],
    "tasks": [("shelf", True)],
    "beam": [("prefix", True)],
    "harness.door": [("prefix", True)],
    "fast.decoding": [("prefix", False)],
    "fast.llama": [("llama", False)],
    "fast.loss": [("prefix", False)],
    "fast.ops": [("prefix", False)],
    "fast.training": [("prefix", False)],
    "fast.tree": [("prefix", False)],
}


class Forget(ast.NodeTransformer):
    """Leaves out the n-th mention of a device: `device=x.device`, `causal_mask(T, S, x.device)`, `.to(device)`."""

    def __init__(self, n: int | None = None):
        self.n, self.inside, self.sites = n, [], []

    def visit_ClassDef(self, node):
        self.inside.append(node.name)
        self.generic_visit(node)
        self.inside.pop()
        return node

    visit_FunctionDef = visit_ClassDef

    def visit_Call(self, node):
        self.generic_visit(node)
        named = [k for k in node.keywords if k.arg == "device" and not isinstance(k.value, ast.Constant)]
        third = isinstance(node.func, ast.Name) and node.func.id == "causal_mask" and len(node.args) == 3
        moved = (
            ast.unparse(node.func).endswith(".to")
            and len(node.args) == 1
            and ast.unparse(node.args[0]).endswith("device")
        )
        if not (self.inside and (named or third or moved)):
            return node
        self.sites.append((tuple(self.inside), ast.unparse(node)))
        if len(self.sites) - 1 != self.n:
            return node
        if moved:
            return node.func.value
        args = node.args[:2] if third else node.args
        return ast.Call(node.func, args, [k for k in node.keywords if k not in named])


def sites_of(module: str) -> list[tuple[tuple[str, ...], str]]:
    finder = Forget()
    finder.visit(ast.parse(inspect.getsource(importlib.import_module(module))))
    return finder.sites


@contextmanager
def forgotten(module_name: str, n: int):
    """A block in which the n-th mention is not there. Functions get the code of a changed copy of their file."""
    module, change = importlib.import_module(module_name), Forget(n)
    tree = ast.fix_missing_locations(change.visit(ast.parse(inspect.getsource(module))))
    copy = dict(vars(module))
    exec(compile(tree, module.__file__, "exec"), copy)
    names, _ = change.sites[n]

    def function_of(namespace):
        found = namespace[names[0]]
        for name in names[1:]:
            if inspect.isfunction(found):
                break
            found = vars(found)[name]
        return inspect.unwrap(getattr(found, "__func__", found))

    function, changed = function_of(vars(module)), function_of(copy)
    code, function.__code__ = function.__code__, changed.__code__
    try:
        yield
    finally:
        function.__code__ = code


# A GPU's tensor may be indexed by one on the CPU, so this is no error on a GPU either.
HARMLESS = {("beam", "torch.arange(len(prompts), device=device)")}
SITES = [
    pytest.param(module, n, id=f"{module}: {call}", marks=() if n == 0 else pytest.mark.slow)
    for module in WALKS
    for n, (_, call) in enumerate(sites_of(module))
    if (module, call) not in HARMLESS
]


@pytest.mark.parametrize("module, n", SITES)
def test_a_device_that_is_forgotten_is_found(world, module, n):
    with pytest.raises(RuntimeError, match=ERROR):
        with fake_device.cuda() as device, forgotten(module, n):
            for what, plain in WALKS[module]:
                walk(what, world / "model", device, "fp32", plain)


def test_no_file_that_names_a_device_is_left_out():
    """Whole programs walk harness/loop.py (below), which calls Batch.to; harness/machine.py asks PyTorch."""
    elsewhere = {"harness.loop", "e2e_data", "harness.machine"}
    for path in [*ROOT.glob("*.py"), *ROOT.glob("harness/*.py"), *ROOT.glob("fast/*.py")]:
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        assert module in {*WALKS, *elsewhere} or not sites_of(module.removesuffix(".__init__")), path


# ----------------------------------------------------------------------------- programs


@pytest.fixture
def run_there(world, tmp_path):
    """run_there(main, words): a command line of this project on the pretended GPU; in 3 steps if it trains."""
    brief = "--max_steps 3 --batch_size 4 --mid_dim 8 --max_new_tokens 4 --beam_size 2 --log_every 1 --dtype fp32"
    data = ["--model", world / "model", "--data", world / "data", *brief.split(), "--checkpoint_every", 1]

    def run(main, *words, device="cuda"):
        given = [*(data if main is train.main else []), *words, "--device", device]
        with fake_device.cuda():
            main([str(word) for word in given])

    return run


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        "--mode prefix --prefix_len 3 --keep best --grad_accum 2",
        "--mode prefix --no_reparam --init_text cheap --label_smoothing 0.1 --plain",
        "--mode prefix+lora --prefix_len 3 --lora_dropout 0 --lora_lr 1e-3",
        "--mode finetune --dropout 0 --clip 0",
    ],
)
def test_a_run_is_trained_resumed_and_evaluated_there(run_there, tmp_path, monkeypatch, words):
    words = words.split()
    run_there(train.main, *words, "--out", tmp_path / "cpu", "--no_eval", device="cpu")
    calls, update = [], train.update

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return update(*args)

    monkeypatch.setattr(train, "update", interrupted)
    with pytest.raises(SystemExit):
        run_there(train.main, *words, "--out", tmp_path / "cuda")
    assert (tmp_path / "cuda" / "checkpoint.pt").exists()
    run_there(train.main, *words, "--out", tmp_path / "cuda", "--resume")
    assert len(calls) == 4
    name = trained_file(tmp_path / "cuda", "finetune" in words, "prefix+lora" in words).name
    ours, theirs = (read_safetensors(tmp_path / device / name)[0] for device in ("cuda", "cpu"))
    for key, tensor in theirs.items():
        torch.testing.assert_close(ours[key], tensor, rtol=1e-4, atol=1e-5)
    summary = json.loads((tmp_path / "cuda" / "summary.json").read_text())
    assert summary["machine"]["device"] == "cuda"
    assert (tmp_path / "cuda" / "scores.json").exists()
    run_there(
        evaluate.main, "--run", tmp_path / "cuda", "--table", "name : Lotus | food : Indian", "--decode_dtype", "bf16"
    )


@pytest.mark.slow
@pytest.mark.parametrize("n", range(len(sites_of("harness.loop"))))
def test_a_batch_that_is_left_on_the_cpu_is_found(run_there, tmp_path, n):
    with pytest.raises(RuntimeError, match=ERROR), forgotten("harness.loop", n):
        run_there(train.main, "--prefix_len", 3, "--no_eval", "--out", tmp_path / "run")


@pytest.mark.slow
def test_a_shelf_is_filled_and_asked_there(run_there, tmp_path, capsys):
    shelf = tmp_path / "shelf"
    for task, P in (("a", 2), ("b", 4)):
        words = ["--task", task, "--shelf", shelf, "--prefix_len", P, "--no_eval"]
        run_there(train.main, *words, "--out", tmp_path / task)
    requests = ["<|a|> name : Lotus", "name : Lotus | food : Indian", "<|b|> name : Café Ruby | price : cheap"]
    (tmp_path / "in.txt").write_text("\n".join(requests), encoding="utf-8")
    texts = []
    for device in ("cuda", "cpu"):
        words = ["--shelf", shelf, "--tables", tmp_path / "in.txt", "--out", tmp_path / device]
        run_there(evaluate.main, *words, "--max_new_tokens", 5, device=device)
        texts.append((tmp_path / device).read_text(encoding="utf-8"))
    assert texts[0] == texts[1]
    assert len(texts[0].splitlines()) == 3


@pytest.mark.slow
def test_mini_is_pretrained_there_as_on_the_cpu(tmp_path):
    (tmp_path / "corpus").mkdir()
    corpus, models = write_corpus(tmp_path / "corpus"), []
    for device in ("cuda", "cpu"):
        with fake_device.cuda():
            words = ["--corpus", corpus, "--out", tmp_path / device, *FLAGS, "--steps", 3, "--device", device]
            pretrain.main([str(word) for word in words])
        models.append(read_safetensors(tmp_path / device / "model.safetensors")[0])
    for key, tensor in models[1].items():
        torch.testing.assert_close(models[0][key], tensor, rtol=1e-4, atol=1e-5)


def test_the_gpu_is_found_and_described():
    with fake_device.cuda():
        assert pick_device("auto") == "cuda"
        assert pick_dtype("auto", "cuda") == ("bf16" if torch.cuda.is_bf16_supported(False) else "fp32")
        assert describe_machine("cuda", "bf16")["processor"] == torch.cuda.get_device_name("cuda")


# ----------------------------------------------------------------------------- the pretended GPU itself


def test_tensors_of_both_devices_do_not_meet():
    with fake_device.cuda() as device:
        there, here = torch.ones(2, 3, device=device), torch.ones(2, 3)
        for meet in (
            lambda: there + here,
            lambda: here @ there.t(),
            lambda: torch.cat([there, here]),
            lambda: torch.cat([there[0], torch.ones(1)]),
            lambda: there.add_(here),
            lambda: here.add_(there),
            lambda: torch.zeros(()).add_(there.sum()),
            lambda: F.embedding(torch.tensor([0]), there),
            lambda: there.gather(1, torch.tensor([[0]])),
            lambda: here[torch.tensor([0], device=device)],
            lambda: there.index_put_((torch.tensor([0]),), torch.ones(3)),
            lambda: torch.nn.Linear(3, 3)(there),
        ):
            with pytest.raises(RuntimeError, match="device"):
                meet()
        with pytest.raises((TypeError, RuntimeError), match="numpy"):
            there.numpy()
        with pytest.raises(RuntimeError, match="generator"):
            torch.randn(2, device=device, generator=torch.Generator())


def test_what_a_gpu_allows_is_allowed():
    with fake_device.cuda() as device:
        there = torch.arange(6.0, device=device).view(2, 3)
        assert there.device == torch.device(device, 0)
        assert (there + torch.tensor(1.0)).tolist() == [[1, 2, 3], [4, 5, 6]]
        assert there[torch.tensor([1])].tolist() == [[3, 4, 5]]
        assert there[:, [0, 2]].tolist() == [[0, 2], [3, 5]]
        there[:, [1]] = -1.0  # through a view of the memory, in place
        assert there.cpu().tolist() == [[0, -1, 2], [3, -1, 5]]
        there[1].copy_(torch.ones(3))
        assert there.sum().item() == 4
        assert torch.tensor([1, 2], device=device).max() == 2


def test_gradients_are_those_of_the_cpu():
    torch.manual_seed(0)
    layer, x = torch.nn.Linear(4, 3), torch.randn(5, 4)
    layer(x).tanh().sum().backward()
    expected = layer.weight.grad.clone()
    with fake_device.cuda() as device:
        layer.to(device).zero_grad()
        layer(x.to(device)).tanh().sum().backward()
        assert layer.weight.grad.device.type == device
        torch.testing.assert_close(layer.weight.grad.cpu(), expected)


def test_autocast_is_that_of_cuda():
    """Products in bf16, softmax and LayerNorm in fp32 (CUDA's lists; on a CPU, LayerNorm would keep bf16)."""
    with fake_device.cuda() as device, autocast(device, "bf16"):
        x = torch.randn(4, 4, device=device)
        assert (x @ x).dtype == F.linear(x, x).dtype == torch.bfloat16
        assert F.softmax(x @ x, -1).dtype == F.layer_norm(x @ x, (4,)).dtype == torch.float32
        with torch.autocast(device, enabled=False):
            assert (x @ x).dtype == torch.float32


def test_outside_the_block_nothing_is_pretended():
    available = torch.cuda.is_available()
    with fake_device.cuda():
        pass
    assert torch.cuda.is_available() is available
    if not available:
        with pytest.raises(InputError, match="--device cuda cannot be used here"):
            pick_device("cuda")
