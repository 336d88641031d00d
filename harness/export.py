"""A run in the formats of other programs.

    python -m harness.export --run runs/gpt2-prefix5 --peft FOLDER      the prefix (embedding, LoRA) as PEFT's adapter
    python -m harness.export --run runs/gpt2-finetune --hub FOLDER      the model as a folder of the hub's

    prefix, embedding    --peft: peft.PeftModel.from_pretrained(base, FOLDER) loads it
    lora                 --peft likewise; --hub: merged into the weights
    finetune             --hub: AutoModelForCausalLM.from_pretrained(FOLDER) loads it, AutoTokenizer its vocabulary
    prefix+lora          --peft: FOLDER/prefix and FOLDER/lora, because PEFT loads one at a time;
                         --hub: LoRA merged; the prefix is then loaded on that model
    infix, adapter       neither: nothing there computes them

Neither library is needed here. What PEFT wrote is read by `evaluate.py --run` and `load_prefix`.
"""

import argparse
import os
import shutil
from contextlib import contextmanager
from pathlib import Path

from gpt2 import CONFIGS, GPT2Config
from harness.files import InputError, exit_on_input_error, write_atomic
from harness.hub_files import vocabulary_of, write_hub_folder
from harness.llama_files import vocabulary_file
from harness.parts import load_parts
from harness.peft_files import HUB, check_has_counterpart, is_adapter, write_adapter
from harness.runs import load_run, load_settings, trained_file
from harness.settings import Settings, add_flags
from harness.tokenizers import load_tokenizer
from harness.vocabulary import Vocabulary, read_vocabulary
from prefix import load_prefix
from weights import load_config

NOTE = """\
What one run learned together, a folder for each part. PEFT loads one adapter at a time, and each of these alone is not
what was trained. For all of it, export the model with the LoRA merged, and load the {prefix} on that:

    python -m harness.export --run {run} --hub MERGED
    model = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("MERGED"), "{prefix}")
"""


def export_adapter(run: Path, folder: Path) -> list[Path]:
    """Write what a run learned as PEFT's adapter folder, of a mixture one for each part. Returns the folders.

    Raises InputError for fine-tuning, for a part that PEFT has not, and where the folder holds something already.
    """
    if is_adapter(run):
        raise InputError(f"{run} is an adapter folder of PEFT's already: copy it")
    settings = load_settings(run)
    if settings.finetunes:
        raise InputError(f"{run} is fine-tuned, and PEFT keeps small parts only: export the model with --hub")
    for name in settings.parts:
        check_has_counterpart(name)
    path, config = trained_file(run, False, settings.adapts), load_config(settings.model)
    check_finished(run, path)
    parts = load_parts(path, config, settings.mode) if settings.adapts else {settings.mode: load_prefix(path, config)}
    with new_folder(folder) as new:
        for name, part in parts.items():
            write_adapter(new / name if len(parts) > 1 else new, part, base_name(settings))
        if len(parts) > 1:
            prefix = next(name for name in parts if name != "lora")
            with write_atomic(new / "NOTE.txt") as file:
                file.write(NOTE.format(prefix=prefix, run=run))
    return [Path(folder) / name for name in parts] if len(parts) > 1 else [Path(folder)]


def export_model(run: Path, folder: Path, **changes) -> str:
    """Write a run's model as a folder of the hub's, a LoRA merged into the weights. Returns what is not in it.

    changes   model and weights, in place of the run's own
    Raises InputError for a run that changes no weights, or has more than weights can hold.
    """
    settings = load_settings(run)
    if not settings.finetunes and "lora" not in settings.parts:
        raise InputError(f"{run} changes no weights of its model: export its {settings.mode} with --peft")
    for name in settings.parts:
        check_has_counterpart(name)
    settings, model = load_run(run, **changes, device="cpu", dtype="fp32", plain=True)
    with new_folder(folder) as new:
        write_hub_folder(new, model, hub_vocabulary(settings))
    return "".join(name for name in settings.parts if name != "lora")


def hub_vocabulary(settings: Settings) -> Vocabulary:
    """The vocabulary of a run's model."""
    if isinstance(load_config(settings.model), GPT2Config):
        return vocabulary_of(load_tokenizer(settings.model, settings.weights))
    return read_vocabulary(vocabulary_file(settings.model, settings.weights))


def base_name(settings: Settings) -> str:
    """The frozen model's name on the hub, or its path, or the path of its own weights."""
    if settings.weights is not None:
        return settings.weights
    return HUB + settings.model if settings.model in CONFIGS else settings.model


def check_finished(run: Path, path: Path) -> None:
    if not path.exists() or not (Path(run) / "summary.json").exists():
        raise InputError(f"{run} has no finished {path.name}: resume its training with train.py … --resume")


@contextmanager
def new_folder(folder: Path):
    """A folder that appears under its name when the block ends without an error.

    Raises InputError where something is already.
    """
    folder = Path(os.path.abspath(folder))
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} exists and is left as it is: name a new folder")
    part = folder.with_name(f"{folder.name}.{os.getpid()}.part")
    try:
        part.mkdir(parents=True)
        yield part
        os.replace(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)  # renamed already, or incomplete


@exit_on_input_error
def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m harness.export",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        description="Write a run in the formats of PEFT and of the Hugging Face hub.",
    )
    parser.add_argument("--run", type=Path, required=True, help="a folder that train.py wrote, or (--hub) PEFT's LoRA")
    to = parser.add_mutually_exclusive_group(required=True)
    to.add_argument("--peft", type=Path, help="a new folder, for the prefix, embedding or LoRA as PEFT's adapter")
    to.add_argument("--hub", type=Path, help="a new folder, for the fine-tuned model or the one with merged LoRA")
    add_flags(parser, ("model", "weights"), default="the run's own")
    given = vars(parser.parse_args(argv))
    run = given.pop("run")
    if "peft" in given:
        if other := [name for name in ("model", "weights") if name in given]:
            raise InputError(f"--{other[0]} has no effect with --peft: leave it out")
        for folder in export_adapter(run, given["peft"]):
            print(f"wrote {folder}: peft.PeftModel.from_pretrained(model, {str(folder)!r})")
        return
    folder = given.pop("hub")
    left = export_model(run, folder, **given)
    print(f"wrote {folder}: AutoModelForCausalLM.from_pretrained({str(folder)!r})")
    if left:
        print(f"the {left} is not in it: export it with --peft and load it on this model")


if __name__ == "__main__":
    main()
