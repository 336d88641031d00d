"""Attach what was learned to a frozen model, and detach it again: a prefix, a shelf of prefixes, a LoRA, an adapter.

    prefix.attach(model) ... prefix.detach()        or        with prefix.attached(model): ...

gpt2.py says what each hook is called with.
"""

from collections.abc import Callable
from contextlib import contextmanager

from torch import nn

from gpt2 import GPT2, GPT2Config
from harness.files import InputError


class Hooks(nn.Module):
    """What a frozen model calls through its hooks. A subclass states which hooks; they are set and removed here."""

    kind = ""  # its name in messages

    def __init__(self, config: GPT2Config):
        super().__init__()
        self.config = config
        self.attached_to: list[GPT2] = []  # a list, because nn.Module would register a model as a part of this one

    def hooks(self, model: GPT2) -> list[tuple[nn.Module, str, Callable]]:
        """The hooks to set: a module of the model, the name of its hook, and what the hook becomes."""
        raise NotImplementedError

    def attach(self, model: GPT2):
        """Set the hooks: from now on `model` computes with what was learned. Returns self.

        Raises InputError if this does not fit the model or is attached already, or a hook is taken.
        """
        if model.config != self.config:
            raise InputError(f"this {self.kind} was made for {self.config}, not for {model.config}")
        if self.attached_to:
            raise InputError(f"this {self.kind} is attached to a model already: detach it first")
        hooks = self.hooks(model)
        if any(getattr(module, name) is not None for module, name, _ in hooks):
            raise InputError(f"the hooks that this {self.kind} needs are taken: detach what is attached to the model")
        self.attached_to = [model]
        for module, name, hook in hooks:
            setattr(module, name, hook)
        return self

    def detach(self) -> None:
        """Remove the hooks: the model is the plain one again. Raises InputError if there is nothing to remove."""
        for module, name, _ in self.hooks(self.model()):
            setattr(module, name, None)
        self.attached_to = []

    @contextmanager
    def attached(self, model: GPT2):
        """`with prefix.attached(model):` attached inside the block, detached after it."""
        self.attach(model)
        try:
            yield self
        finally:
            self.detach()

    def model(self) -> GPT2:
        """The model that this is attached to. Raises InputError if there is none."""
        if not self.attached_to:
            raise InputError(f"this {self.kind} is not attached to a model")
        return self.attached_to[0]
