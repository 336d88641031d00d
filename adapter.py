"""The parallel adapter (He et al. 2022, "Towards a Unified View of Parameter-Efficient Transfer Learning").

The model stays frozen. Each layer's MLP gets a small learned network in parallel, which reads the MLP's input (section
3.3; in code through `MLP.output_hook`):

    y  =  MLP(x) + s relu(x D) U        D [C, r], U [r, C]; s = 4, not learned

U is zero at the start, so training begins at the frozen model; D begins as LoRA's A (lora.py). With a short prefix
this is the paper's best mixture ("MAM": a prefix of 30 positions and r = 512). Because of the relu it cannot be merged
into the weights, as LoRA can. Left out: biases, adapters on attention, sequential adapters.

Use: as in lora.py, without merge.

Shapes: C width, r the adapter's width, L layers.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2 import GPT2, GPT2Config
from harness.files import InputError
from lora import OutputHooks, start_of


class Adapter(OutputHooks):
    """A learned network in parallel with each MLP. dim: its width r; scale: s. Raises InputError if one is not > 0."""

    mode = kind = "adapter"

    def __init__(self, config: GPT2Config, dim: int = 64, scale: float = 4.0):
        super().__init__(config)
        if dim < 1:
            raise InputError(f"--adapter_dim {dim}: must be at least 1")
        if not 0 < scale < math.inf:
            raise InputError(f"--adapter_scale {scale}: must be above 0, and finite")
        self.dim, self.scale, C = dim, scale, config.n_embd
        self.D = nn.ParameterList(start_of(C, dim) for _ in range(config.n_layer))
        self.U = nn.ParameterList(nn.Parameter(torch.zeros(dim, C)) for _ in range(config.n_layer))

    def add(self, layer: int, x: Tensor, y: Tensor) -> Tensor:
        """MLP.output_hook:  x, y [.., C]  ->  y + s relu(x D) U  [.., C]."""
        return y + (self.scale * F.relu(x @ self.D[layer])) @ self.U[layer]

    def hooks(self, model: GPT2) -> list[tuple[nn.Module, str, Callable]]:
        return [(block.mlp, "output_hook", partial(self.add, layer)) for layer, block in enumerate(model.blocks)]

    def tensors(self) -> dict[str, Tensor]:
        """adapter.0.D [C, r], adapter.0.U [r, C], ...: 0 is the layer."""
        return {
            f"adapter.{layer}.{name}": tensor.detach()
            for layer, (D, U) in enumerate(zip(self.D, self.U))
            for name, tensor in (("D", D), ("U", U))
        }

    def about(self) -> dict[str, str]:
        return {"adapter_scale": repr(float(self.scale))}

    @classmethod
    def shaped_like(cls, config: GPT2Config, tensors: dict[str, Tensor], about: dict[str, str]) -> "Adapter":
        return cls(config, tensors["adapter.0.D"].size(1), float(about["adapter_scale"]))
