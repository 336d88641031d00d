"""The door to fast/: the one place that chooses between the plain path and the fast one.

    engine = Engine(plain, device, dtype)
    loss_of = engine.in_precision(engine.choose(train.summed_loss))

For some functions of the plain files, listed in fast/__init__.py, fast/ has one of the same name, arguments and result.
The method's files never import fast/.
"""

import functools
from collections.abc import Callable

import torch.nn.functional as F

from gpt2 import GPT2
from harness.machine import autocast
from llama import Llama
from lora import LoRA


def prepare_process(plain: bool) -> None:
    """Settings of the whole process, for speed; a command line calls it once, at its start."""
    if not plain:
        import fast

        fast.keep_freed_memory()
        fast.flush_denormals()


class Engine:
    """How a program computes: on the plain path or the fast one, on which device, in which number format.

    plain   every computation by the plain files
    device  "cpu", "cuda", "cuda:1", "mps"
    dtype   "bf16" (under autocast) or "fp32"
    """

    def __init__(self, plain: bool, device: str, dtype: str):
        self.plain, self.device, self.dtype = plain, device, dtype

    def choose(self, plain_function: Callable, model=None) -> Callable:
        """A function or class of the plain path, or its counterpart of the same name in fast/.

        model  what it will be called with: a Llama has counterparts of its own
        """
        if self.plain:
            return plain_function
        import fast  # here, so that --plain never loads it

        return getattr(fast.llama if isinstance(model, Llama) else fast, plain_function.__name__)

    def in_precision(self, function: Callable) -> Callable:
        """The function, called in this number format."""

        @functools.wraps(function)
        def wrapper(*args, **kwargs):
            with autocast(self.device, self.dtype):
                return function(*args, **kwargs)

        return wrapper

    def to_device_and_freeze(self, model: GPT2, prefix=None) -> GPT2:
        """Move GPT-2 to the device; with a prefix (or Parts), freeze it and attach the prefix. Returns the model.

        On the fast path in bf16 the frozen projections are rounded in place; embeddings and norms stay fp32.
        """
        model.to(self.device)
        if prefix is not None:
            prefix.to(self.device).attach(model.requires_grad_(False))
            for part in prefix.modules():
                if isinstance(part, LoRA):
                    part.dropout = self.choose(F.dropout)
        if self.dtype == "bf16" and not self.plain:
            import fast

            fast.round_frozen(model)  # the weights that are not trained
        return model

    def ready_to_decode(self, model: GPT2) -> GPT2:
        """Prepare a frozen model for decoding, after which it cannot be trained. Returns the model."""
        if self.plain or not isinstance(model, GPT2):
            return model
        import fast

        return fast.pack(model)
