"""LoRA (Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models").

The model stays frozen. Chosen weight matrices get a learned low-rank update (section 4.1; in code through
`Projection.output_hook`):

    y  =  x W + b + (alpha / r) x A B        W [n_in, n], A [n_in, r], B [r, n]; a Llama has no b

B is zero at the start, so training begins at the frozen model; A is uniform in +-1 / sqrt(n_in) (Kaiming's with
a = sqrt(5)). In training, dropout may be applied to the x of the second term. The matrices, by their names in
--lora_on:

    q k v    attention's queries, keys and values (in GPT-2 side by side in c_attn), each with a pair of its own
    proj     attention's output projection
    fc mlp   the MLP's first matrix and its last; in a Llama up_proj and down_proj
    gate     the gate of a Llama's MLP

The paper adapts q and v. After training the update can be merged, W' = W + (alpha / r) A B: the model then decodes at
its own speed. Left out: ranks that differ from matrix to matrix, embeddings, biases.

Use:

    lora = LoRA.load("runs/gpt2-lora/parts.safetensors", model.config)
    with lora.attached(model):          # or lora.attach(model) ... lora.detach()
        logits = model(tokens)
        lora.merge()                    # the same logits up to rounding; lora.unmerge() restores the weights

Shapes: n_in and n_out of a projection, n columns of one of its matrices, r rank, R the sum of the ranks of a
projection's pairs, C width.
"""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2 import GPT2, GPT2Config
from harness.files import InputError
from harness.hooks import Hooks
from harness.safetensors import check_finite, read_safetensors, write_safetensors


def matrices_of(config: GPT2Config) -> tuple[str, ...]:
    """The names of a layer's matrices, in order."""
    return tuple(name for *_, names in config.projections.values() for name in names)


MATRICES = matrices_of(GPT2Config())  # GPT-2's


def start_of(n_in: int, r: int) -> nn.Parameter:
    """A pair's first matrix [n_in, r] before training; its second is zero."""
    return nn.Parameter(torch.empty(n_in, r).uniform_(-1, 1) / math.sqrt(n_in))


class OutputHooks(Hooks):
    """What LoRA and the adapter (adapter.py) share: they change outputs of modules, and have one kind of file."""

    mode = ""  # its name in --mode and in files

    def tensors(self) -> dict[str, Tensor]:
        """What is learned, by the names that it has in a file."""
        raise NotImplementedError

    def about(self) -> dict[str, str]:
        """Metadata: what loading needs that the tensors' shapes do not say."""
        raise NotImplementedError

    @classmethod
    def shaped_like(cls, config: GPT2Config, tensors: dict[str, Tensor], about: dict[str, str]) -> "OutputHooks":
        """A new one with tensors of these shapes. Raises ValueError or KeyError if they do not form one."""
        raise NotImplementedError

    def save(self, path: Path, metadata: dict[str, str] | None = None) -> None:
        """Write what is learned in fp32 as a safetensors file. The metadata say which model it fits."""
        about = {"mode": self.mode, "made_for": self.config.shape} | self.about()
        write_safetensors(path, self.tensors(), about | (metadata or {}))

    @classmethod
    def load(cls, path: Path, config: GPT2Config):
        """What `save` wrote. Raises InputError when the file is something else or was made for another model."""
        tensors, about = read_safetensors(path)
        check_finite(tensors, path)
        if about.get("mode") != cls.mode:
            raise InputError(f"{path} holds no {cls.mode} (its mode is {about.get('mode')!r}): name another file")
        return cls.of_tensors(config, tensors, about, path)

    @classmethod
    def of_tensors(cls, config: GPT2Config, tensors: dict[str, Tensor], about: dict[str, str], path: Path):
        """From the tensors and metadata of a file. Draws no random numbers, so a resumed run's stream is unchanged.

        Raises InputError when they are another model's or not of this kind.
        """
        if about.get("made_for") != config.shape:
            raise InputError(
                f"{path} was made for {about.get('made_for')}, but this model has {config.shape}:"
                " use the model it was trained with"
            )
        try:
            with torch.device("meta"):
                new = cls.shaped_like(config, tensors, about)
            expected = {name: tensor.shape for name, tensor in new.tensors().items()}
            if expected != {name: tensor.shape for name, tensor in tensors.items()}:
                raise ValueError
        except (ValueError, KeyError, IndexError, InputError):
            raise InputError(
                f"{path} does not hold the {cls.mode} of a model of {config.shape}:"
                " restore it as train.py wrote it, or train again"
            ) from None
        new.to_empty(device="cpu")
        with torch.no_grad():
            for name, tensor in new.tensors().items():
                tensor.copy_(tensors[name])
        return new.eval()


class LowRank(nn.Module):
    """The pairs of one projection: for each of its matrices that is adapted, A [n_in, r] and B [r, n].

    names  the matrices side by side in the projection's columns, n = n_out / len(names) each
    """

    def __init__(self, n_in: int, n_out: int, names: tuple[str, ...], on: tuple[str, ...], rank: int):
        super().__init__()
        self.names, self.on, n = names, [name for name in names if name in on], n_out // len(names)
        self.A = nn.ParameterDict({name: start_of(n_in, rank) for name in self.on})
        self.B = nn.ParameterDict({name: nn.Parameter(torch.zeros(rank, n)) for name in self.on})

    def factors(self) -> tuple[Tensor, Tensor]:
        """All pairs as one, A [n_in, R] and B [R, n_out]: zeros in B where a matrix must not see another's pair."""
        A = torch.cat([self.A[name] for name in self.on], dim=1)  # by name: a ParameterDict has an order of its own
        none = self.B[self.on[0]][:0]  # [0, n]
        return A, torch.block_diag(*(self.B[name] if name in self.B else none for name in self.names))


class LoRA(OutputHooks):
    """Learned low-rank updates.

    on       the matrices that are adapted in every layer, of matrices_of(config)
    alpha    the update is scaled by alpha / rank
    dropout  of its input, in training mode
    Raises InputError for an unknown or repeated matrix, a rank outside 1 .. C, an alpha that is not above 0.
    """

    mode = kind = "lora"

    def __init__(
        self,
        config: GPT2Config,
        on: tuple[str, ...] = ("q", "v"),
        rank: int = 4,
        alpha: float = 32.0,
        dropout: float = 0.0,
    ):
        super().__init__(config)
        known = matrices_of(config)
        if not on or len(set(on)) < len(on) or not set(on) <= set(known):
            raise InputError(f"--lora_on {','.join(on)}: name some of {', '.join(known)}, each once")
        if not 1 <= rank <= config.n_embd:
            raise InputError(f"--lora_rank {rank}: must be between 1 and the model's width, {config.n_embd}")
        if not 0 < alpha < math.inf:
            raise InputError(f"--lora_alpha {alpha}: must be above 0, and finite")
        self.on, self.rank, self.alpha, self.p = tuple(name for name in known if name in on), rank, alpha, dropout
        self.dropout = F.dropout  # or a faster function (harness/door.py)
        self.kept: list[Tensor] = []  # while merged: the weights as they were, in the order of `places`
        self.layers = nn.ModuleList(
            nn.ModuleDict(
                {
                    path.replace(".", "_"): LowRank(n_in, n_out, names, on, rank)
                    for path, (n_in, n_out, names) in config.projections.items()
                    if set(names) & set(on)
                }
            )
            for _ in range(config.n_layer)
        )

    # ------------------------------------------------------------------- the method: a hook on the model's projections

    def add(self, pairs: LowRank, x: Tensor, y: Tensor) -> Tensor:
        """Projection.output_hook:  x [.., n_in], y [.., n_out]  ->  y + (alpha / r) x A B  [.., n_out]."""
        A, B = pairs.factors()
        x = self.dropout(x, self.p, self.training)
        return y + (self.alpha / self.rank * (x @ A)) @ B

    def places(self, model: GPT2) -> list[tuple[nn.Module, LowRank]]:
        """The projections that are adapted, each with its pairs."""
        return [
            (block.get_submodule(path), layer[path.replace(".", "_")])
            for block, layer in zip(model.blocks, self.layers)
            for path in self.config.projections
            if path.replace(".", "_") in layer
        ]

    def hooks(self, model: GPT2) -> list[tuple[nn.Module, str, Callable]]:
        return [(projection, "output_hook", partial(self.add, pairs)) for projection, pairs in self.places(model)]

    def detach(self) -> None:
        if self.kept:
            self.unmerge()
        super().detach()

    # ------------------------------------------------------------------- into the weights, and out of them

    @torch.no_grad()
    def merge(self) -> None:
        """W' = W + (alpha / r) A B in the model that this is attached to; the hooks are removed.

        Merge before the weights are rounded to bf16: if W is rounded first and the sum again, a small change may be
        lost. Raises InputError if it is merged already or not attached.
        """
        model = self.model()
        if self.kept:
            raise InputError("this lora is merged into its model already: unmerge it first")
        for projection, pairs in self.places(model):
            A, B = pairs.factors()
            W, change = projection.weight, self.alpha / self.rank * (A @ B)  # [n_in, n_out]
            self.kept.append(W.detach().clone())
            W.copy_(W.float() + (change.t() if isinstance(projection, nn.Linear) else change))
            projection.output_hook = None

    @torch.no_grad()
    def unmerge(self) -> None:
        """The weights as they were before `merge`, to the bit, and the hooks. Raises InputError if it is not merged."""
        if not self.kept:
            raise InputError("this lora is not merged into a model")
        for (projection, _, hook), W in zip(self.hooks(self.model()), self.kept):
            projection.weight.copy_(W)
            projection.output_hook = hook
        self.kept = []

    # ------------------------------------------------------------------- files

    def tensors(self) -> dict[str, Tensor]:
        """lora.0.q.A [n_in, r], lora.0.q.B [r, n], ...: 0 is the layer."""
        return {
            f"lora.{layer}.{name}.{which}": pair[name].detach()
            for layer, projections in enumerate(self.layers)
            for pairs in projections.values()
            for name in pairs.on
            for which, pair in (("A", pairs.A), ("B", pairs.B))
        }

    def about(self) -> dict[str, str]:
        return {"lora_alpha": repr(float(self.alpha))}

    @classmethod
    def shaped_like(cls, config: GPT2Config, tensors: dict[str, Tensor], about: dict[str, str]) -> "LoRA":
        on = tuple(name for name in matrices_of(config) if f"lora.0.{name}.A" in tensors)
        return cls(config, on, tensors[f"lora.0.{on[0]}.A"].size(1), float(about["lora_alpha"]))
