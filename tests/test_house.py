"""Who may import whom: the method stays plain, and fast/ has one door."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
METHOD = (
    "gpt2",
    "llama",
    "prefix",
    "lora",
    "adapter",
    "beam",
    "e2e_data",
    "webnlg_data",
    "evaluate",
    "train",
    "weights",
    "tasks",
)
FOLDERS = {
    path.name
    for path in ROOT.iterdir()
    if path.is_dir() and not path.name.startswith(".") and not (path / "pyvenv.cfg").exists()  # a reader's environment
}
OURS = {path.stem for path in ROOT.glob("*.py")} | FOLDERS


def imports(path: Path) -> set[str]:
    """The modules that a file imports, anywhere in it: "torch", "harness.files", ..."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def packages(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imports(path)}


def files(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def test_the_root_holds_the_method_and_nothing_else():
    assert {path.stem for path in ROOT.glob("*.py")} == set(METHOD)


def test_gpt2_imports_torch_and_the_standard_library_only():
    assert packages(ROOT / "gpt2.py") - set(sys.stdlib_module_names) == {"torch"}


def test_llama_imports_torch_and_gpt2_only():
    assert packages(ROOT / "llama.py") - set(sys.stdlib_module_names) == {"torch", "gpt2"}


@pytest.mark.parametrize("name", METHOD)
def test_no_file_of_the_method_imports_fast(name):
    assert "fast" not in packages(ROOT / f"{name}.py")


@pytest.mark.parametrize("name", METHOD)
def test_the_method_imports_the_method_the_harness_and_the_metrics(name):
    assert packages(ROOT / f"{name}.py") & OURS <= {*METHOD, "harness", "metrics"}


def test_mini_imports_the_method_and_the_harness():
    for path in files("mini"):
        assert packages(path) & OURS <= {*METHOD, "harness", "mini"}, path


def test_fast_has_one_door():
    """Besides tests and benchmarks, only harness/door.py imports it; fast/ itself imports the model only."""
    everything = [*ROOT.glob("*.py"), *(path for folder in FOLDERS for path in files(folder))]
    importers = {path.relative_to(ROOT).as_posix() for path in everything if "fast" in packages(path)}
    outside = {path for path in importers if path.split("/")[0] not in ("fast", "tests", "benchmarks")}
    assert outside == {"harness/door.py"}
    for path in files("fast"):
        assert packages(path) & OURS <= {"fast", "gpt2", "llama"}, path


def test_metrics_need_nothing_of_the_method():
    for path in files("metrics"):
        assert packages(path) & OURS <= {"metrics", "harness"}, path
        assert {name for name in imports(path) if name.startswith("harness.")} <= {
            "harness.download", "harness.download.cache_dir", "harness.files", "harness.files.InputError",
            "harness.files.exit_on_input_error", "harness.files.read_text", "harness.files.sha256_of",
            "harness.files.write_atomic",
        }, path  # fmt: skip


def test_the_program_imports_runtime_packages_only():
    """torch, numpy, tiktoken, requests: what requirements.txt names. (experiments/ draws figures with matplotlib.)"""
    required = {line.split("==")[0] for line in (ROOT / "requirements.txt").read_text().split()}
    for folder in ("fast", "harness", "metrics", "mini"):
        for path in files(folder):
            siblings = {other.stem for other in path.parent.glob("*.py")}
            others = packages(path) - OURS - siblings - set(sys.stdlib_module_names)
            assert others <= required | {"tiktoken_ext", "regex"}, (path, others)


def test_the_program_around_the_method_does_not_import_the_loop_that_it_is_hung_on():
    for path in files("harness"):
        assert "train" not in packages(path), path
