"""What a run learns when it is more than a prefix: the parts of `--mode prefix+lora`, attached to one model.

    prefix, infix, embedding     at most one of them (prefix.py)
    lora                         lora.py
    adapter                      adapter.py

One file holds all of them: a tensor named after the prefix's kind, and tensors lora.0.q.A, adapter.0.D, ...; the
metadata say the mode. A prefix alone has a file of its own kind, which prefix.py writes and reads.
"""

from pathlib import Path

from torch import Tensor, nn

from adapter import Adapter
from gpt2 import GPT2, GPT2Config
from harness.files import InputError
from harness.peft_files import read_learned
from harness.safetensors import write_safetensors
from lora import LoRA, OutputHooks
from prefix import MODES, Prefix, prefix_of_tensors

ADAPTERS = {cls.mode: cls for cls in (LoRA, Adapter)}
PARTS = (*MODES, *ADAPTERS)


def parts_of(mode: str) -> tuple[str, ...]:
    """ "lora+prefix" -> ("prefix", "lora"), in the order of PARTS; () for "finetune". Raises InputError."""
    names = mode.split("+")
    if names == ["finetune"]:
        return ()
    if unknown := [name for name in names if name not in PARTS]:
        why = "fine-tuning trains all weights already" if "finetune" in unknown else f"there is no {unknown[0]!r}"
        raise InputError(f"--mode {mode}: {why}; use finetune, or one of {', '.join(PARTS)} or a sum, as prefix+lora")
    if len(set(names)) < len(names):
        raise InputError(f"--mode {mode} names a part twice: name each once")
    if len([name for name in names if name in MODES]) > 1:
        raise InputError(f"--mode {mode}: a model has one kind of prefix at a time; use one of {', '.join(MODES)}")
    return tuple(name for name in PARTS if name in names)


class Parts(nn.ModuleDict):
    """The parts by name, used where a Prefix is: attached, saved and counted as one."""

    @property
    def mode(self) -> str:
        return "+".join(self)

    def attach(self, model: GPT2) -> "Parts":
        """Attach each part that is not attached already (or merged). Returns self."""
        for part in self.values():
            if not part.attached_to:
                part.attach(model)
        return self

    def merge(self, model: GPT2) -> None:
        """Put a LoRA into the weights of a model, before these are rounded."""
        if "lora" in self:
            self["lora"].attach(model).merge()

    def drop_mlp(self) -> "Parts":
        """The same parts, the prefix without its MLP: what is stored."""
        return Parts({name: part.drop_mlp() if isinstance(part, Prefix) else part for name, part in self.items()})

    def tensors(self) -> dict[str, Tensor]:
        """What is learned, by the names that it has in a file."""
        return {name: tensor for part in self.values() for name, tensor in part.tensors().items()}

    def save(self, path: Path, metadata: dict[str, str] | None = None) -> None:
        """Write what is learned in fp32. The metadata say which parts it has and which model they fit."""
        about = {"mode": self.mode}
        for part in self.values():
            about |= {"made_for": part.config.shape}
            about |= part.about() if isinstance(part, OutputHooks) else {}
        write_safetensors(path, self.tensors(), about | (metadata or {}))

    def sizes(self) -> dict[str, int]:
        """Numbers stored, part by part."""
        return {
            name: sum(tensor.numel() for tensor in part.tensors().values()) for name, part in self.drop_mlp().items()
        }

    def describe(self) -> str:
        """`prefix of 5 positions 15,360 + lora of rank 4 on q, v 24,576`: with the numbers stored."""
        return " + ".join(f"{described(self[name])} {size:,}" for name, size in self.sizes().items())


def described(part: nn.Module) -> str:
    """A part and its size."""
    if isinstance(part, LoRA):
        return f"lora of rank {part.rank} on {', '.join(part.on)}"
    if isinstance(part, Adapter):
        return f"adapter of width {part.dim}"
    return f"{part.mode} of {part.prefix_len} positions"


def load_parts(path: Path, config: GPT2Config, mode: str) -> Parts:
    """The parts of a file that `Parts.save` wrote in this mode, or the LoRA of a folder of the `peft` library's.

    Raises InputError when the file is damaged, of another mode, or was made for another model.
    """
    tensors, about = read_learned(path, config)
    if about.get("mode") != mode:
        raise InputError(
            f"{path} holds {about.get('mode')!r}, but the run's settings say {mode}:"
            " the folder's files do not belong together"
        )
    names = parts_of(mode)
    of = {part: {key: t for key, t in tensors.items() if key.split(".")[0] == part} for part in names}
    if sum(map(len, of.values())) < len(tensors):
        raise InputError(f"{path} holds more than {mode}: restore it as train.py wrote it, or train again")
    return Parts(
        {
            part: ADAPTERS[part].of_tensors(config, of[part], about, path)
            if part in ADAPTERS
            else prefix_of_tensors(part, config, of[part], about, path)
            for part in names
        }
    )
