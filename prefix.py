"""The prefix (Li & Liang 2021, "Prefix-Tuning: Optimizing Continuous Prompts for Generation") and its ablations.

GPT-2 stays frozen. Each layer's attention gets P learned keys and values in front of those computed from the tokens
(section 4.2; in code through `Attention.kv_hook`):

    k_l  <-  [P_k,l ; k_l]        v_l  <-  [P_v,l ; v_l]        for every layer l

Every token attends to them as if P earlier tokens had been read. Learning these numbers directly is unstable, so during
training they are the output of a small network (section 4.3):

    P_theta[i, :] = MLP_theta(P'_theta[i, :])        MLP: Linear(C, mid_dim), tanh, Linear(mid_dim, 2 L H D)

P' is learned too, [P, C]. Row i of P_theta holds position i's keys and values of all layers, so P_k,l is entry 2 l and
P_v,l entry 2 l + 1 of every row (l from 0). After training only P_theta is kept, P * 2 * L * H * D numbers (in GPT-2
H * D = C); P' and the MLP are dropped.

The ablations (section 7) differ in where the activations come from, or in which tokens see them:

    prefix      [PREFIX; table; text]   every token sees it
    infix       [table; INFIX; text]    only the text sees it, from the separator on
    embedding   [EMB; table; text]      P learned input embeddings ("embedding-only"); the activations are those that
                                        the frozen GPT-2 computes from them

They are learned through the same network; for embedding-only its last layer is Linear(mid_dim, C).

Left out: prefixes in some layers only. Several tasks, each with a prefix of its own, are in tasks.py.

Use:

    with prefix.attached(model):        # or prefix.attach(model) ... prefix.detach()
        logits = model(tokens)          # training, decoding: the model is called as always

Shapes: P prefix length, L layers, H heads of keys and values, D head size, C width, B batch, T tokens.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2 import GPT2, GPT2Config, KVCache, causal_mask
from harness.files import InputError
from harness.hooks import Hooks
from harness.peft_files import read_learned
from harness.safetensors import write_safetensors


class PrefixNetwork(nn.Module):
    """P learned rows of n_out numbers: the output of an MLP (mid_dim > 0), or free parameters (mid_dim = 0)."""

    def __init__(self, prefix_len: int, n_embd: int, n_out: int, mid_dim: int):
        super().__init__()
        self.reparametrised = mid_dim > 0
        if self.reparametrised:
            self.p_prime = nn.Parameter(torch.randn(prefix_len, n_embd))  # P', N(0, 1)
            self.mlp = nn.Sequential(nn.Linear(n_embd, mid_dim), nn.Tanh(), nn.Linear(mid_dim, n_out))
        else:
            self.direct = nn.Parameter(torch.randn(prefix_len, n_out))  # N(0, 1), like P'

    def forward(self) -> Tensor:
        """[P, n_out], in fp32 also under autocast: it is little work, and these numbers are what is learned."""
        if not self.reparametrised:
            return self.direct
        with torch.autocast(self.p_prime.device.type, enabled=False):
            return self.mlp(self.p_prime)


class PrefixHooks(Hooks):
    """The two hooks of a prefix, and of a shelf of prefixes (tasks.py).

    before_pass(tokens, cache, positions, mask) -> tokens, positions, mask        GPT2.input_hook
    put_in_front(layer, k, v) -> k, v                                             Attention.kv_hook
    """

    def __init__(self, config: GPT2Config):
        super().__init__(config)
        self.current: Tensor | None = None  # the activations that the current forward pass uses

    def hooks(self, model: GPT2) -> list[tuple[nn.Module, str, Callable]]:
        in_layers = [
            (attn, "kv_hook", partial(self.put_in_front, layer)) for layer, attn in enumerate(model.attentions)
        ]
        return [(model, "input_hook", self.before_pass), *in_layers]

    def detach(self) -> None:
        super().detach()
        self.current = None


class Prefix(PrefixHooks):
    """Learned keys and values in front of all tokens.

    mid_dim  width of the MLP; 0 learns the activations directly (the paper's ablation "without MLP")
    Raises InputError when prefix_len leaves no room for tokens.
    """

    mode = kind = "prefix"

    def __init__(self, config: GPT2Config, prefix_len: int, mid_dim: int = 512):
        super().__init__(config)
        if prefix_len < 1:
            raise InputError(f"--prefix_len {prefix_len}: a prefix has at least one position")
        if prefix_len >= config.n_positions:
            raise InputError(
                f"--prefix_len {prefix_len} leaves no room for tokens: the model has {config.n_positions} positions"
            )
        self.prefix_len = prefix_len
        self.rows = PrefixNetwork(prefix_len, config.n_embd, self.row_size(config), mid_dim)

    @staticmethod
    def row_size(config: GPT2Config) -> int:
        """Numbers per position: a key and a value of H heads in each layer."""
        return 2 * config.n_layer * config.n_kv_head * config.head_size

    def activations(self, model: GPT2) -> Tensor:
        """[P, 2 L, H, D]: entry 2l is layer l's keys, entry 2l + 1 its values."""
        return self.rows().view(self.prefix_len, 2 * self.config.n_layer, self.config.n_kv_head, -1)

    # ------------------------------------------------------------------- the method: two hooks on GPT-2

    def before_pass(
        self, tokens: Tensor, cache: KVCache | None, positions: Tensor | None, mask: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """GPT2.input_hook: compute the activations where a sequence begins, and shift the positions by P.

        So the first real token is at position P, in training and in decoding.
        """
        if cache is None or cache.length == 0:
            self.check_fits(tokens)
            self.current = self.activations(self.model())  # once a pass, for all layers; gradients flow back through it
            if positions is None:
                positions = torch.arange(tokens.size(1), device=tokens.device)
        if positions is not None:  # None: the tokens continue the cache, whose length includes the prefix
            positions = positions + self.prefix_len
        return tokens, positions, mask

    def put_in_front(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Attention.kv_hook:  k, v [B, H, T, D]  ->  [P_k; k], [P_v; v]  [B, H, P + T, D]."""
        prefix = self.current[:, 2 * layer : 2 * layer + 2].to(k.dtype)  # [P, 2, H, D]
        prefix = prefix.permute(1, 2, 0, 3).unsqueeze(1)  # [2, 1, H, P, D]
        prefix_k, prefix_v = prefix.expand(2, k.size(0), -1, -1, -1)  # each [B, H, P, D]
        return torch.cat([prefix_k, k], dim=2), torch.cat([prefix_v, v], dim=2)

    def check_fits(self, tokens: Tensor) -> None:
        """Raise ValueError when the prefix and tokens [B, T] exceed the context."""
        if self.prefix_len + tokens.size(1) > self.config.n_positions:
            raise ValueError(
                f"a prefix of {self.prefix_len} and {tokens.size(1)} tokens do not fit into"
                f" {self.config.n_positions} positions"
            )

    # ------------------------------------------------------------------- initialisation and files

    def words_as_rows(self, model: GPT2, tokens: Tensor) -> Tensor:
        """The rows with which this prefix acts as if the words tokens [P] had been read: [P, row_size]."""
        return keys_values(model, model.embed(tokens)).flatten(1)

    def init_from_words(self, model: GPT2, tokens: Tensor, steps: int = 500, lr: float = 1e-4) -> float:
        """Start from the activations of real words, tokens [P] (section 7.4; it helps in low-data settings).

        The MLP's output is fitted to them (mean squared error, Adam); without an MLP they are copied. Returns the
        remaining error.
        """
        with torch.no_grad():
            target = self.words_as_rows(model, tokens)  # [P, row_size]
            if not self.rows.reparametrised:
                self.rows.direct.copy_(target)
                return 0.0
        optimizer = torch.optim.Adam(self.rows.parameters(), lr=lr)
        for _ in range(steps):
            optimizer.zero_grad()
            loss = F.mse_loss(self.rows(), target)
            loss.backward()
            optimizer.step()
        optimizer.zero_grad()  # or the last gradient would be added to training's first
        return F.mse_loss(self.rows(), target).item()

    def drop_mlp(self) -> "Prefix":
        """The same prefix without P' and the MLP: what remains after training."""
        return self.of_rows(self.config, self.rows().detach().clone())

    @classmethod
    def of_rows(cls, config: GPT2Config, rows: Tensor) -> "Prefix":
        """A prefix of given rows [P, row_size]. Draws no random numbers, so a resumed run's stream is unchanged."""
        with torch.device("meta"):
            prefix = cls(config, len(rows), mid_dim=0)
        prefix.rows.direct = nn.Parameter(rows)
        return prefix

    def save(self, path: Path, metadata: dict[str, str] | None = None) -> None:
        """Write the prefix, P * row_size numbers in fp32, as a safetensors file.

        One tensor [P, row_size], named after the mode. A row is [2 L, H, D] flattened (see `activations`); for
        embedding-only it is one embedding. The metadata say which model it fits.
        """
        about = {"mode": self.mode, "made_for": self.config.shape}
        write_safetensors(path, self.tensors(), about | (metadata or {}))

    def tensors(self) -> dict[str, Tensor]:
        """What is learned, by the name that it has in a file."""
        return {self.mode: self.rows().detach().float()}


class Infix(Prefix):
    """The same activations between table and text: only the text attends to them.

    Attention does not depend on the order of the keys, so they can stay in front in memory. What makes them an infix is
    the mask and the positions: a table of N tokens is at 0 .. N - 1, and the text begins at N + P, as if P tokens stood
    between them.
    The separator, the model's end token, counts as text, because the first word of the text is predicted from it.
    """

    mode = "infix"

    def before_pass(self, tokens, cache, positions, mask):
        if cache is not None and cache.length:  # the text continues, token by token
            return super().before_pass(tokens, cache, positions, mask)
        if positions is not None or mask is not None:
            raise ValueError("an infix sets mask and positions itself")
        self.check_fits(tokens)
        self.current = self.activations(self.model())
        B, T = tokens.shape
        is_text = (tokens == self.config.end_token).cumsum(1) > 0  # [B, T]
        positions = torch.arange(T, device=tokens.device) + self.prefix_len * is_text  # [B, T]
        sees_infix = is_text[:, :, None].expand(B, T, self.prefix_len)
        sees_token = causal_mask(T, T, tokens.device).expand(B, T, T)
        mask = torch.cat([sees_infix, sees_token], dim=2).unsqueeze(1)  # [B, 1, T, P + T]
        return tokens, positions, mask


class Embedding(Prefix):
    """Embedding-only: P learned input embeddings, and nothing learned in the layers above.

    Reading them before the tokens is the same as putting the keys and values that GPT-2 computes from them in front, so
    this is a prefix whose activations the frozen GPT-2 itself produces.
    """

    mode = "embedding"

    @staticmethod
    def row_size(config: GPT2Config) -> int:
        """Numbers per position: one embedding of width C."""
        return config.n_embd

    def activations(self, model: GPT2) -> Tensor:
        return keys_values(model, self.rows())

    def words_as_rows(self, model: GPT2, tokens: Tensor) -> Tensor:
        return model.embed(tokens)


MODES = {cls.mode: cls for cls in (Prefix, Infix, Embedding)}


def keys_values(model: GPT2, embeddings: Tensor) -> Tensor:
    """What GPT-2's layers compute for input embeddings [P, C] at positions 0 .. P - 1: [P, 2 L, H, D].

    The hooks can also observe: here they only record what passes.
    """
    seen: list[Tensor] = []

    def record(k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        seen.extend([k[0], v[0]])  # each [H, P, D]
        return k, v

    hooks = [attn.kv_hook for attn in model.attentions]
    for attn in model.attentions:
        attn.kv_hook = record
    try:
        positions = torch.arange(len(embeddings), device=embeddings.device)
        model.read(embeddings.unsqueeze(0), positions)
    finally:
        for attn, hook in zip(model.attentions, hooks):
            attn.kv_hook = hook
    return torch.stack(seen).permute(2, 0, 1, 3)  # [2 L, H, P, D] -> [P, 2 L, H, D]


def load_prefix(path: Path, config: GPT2Config) -> Prefix:
    """A saved prefix, infix or embedding, ready to attach to a GPT-2 of this configuration.

    path   our file, or a folder of the `peft` library's
    Raises InputError when the file is something else or was made for another model.
    """
    tensors, metadata = read_learned(path, config)
    return prefix_of_tensors(metadata.get("mode"), config, tensors, metadata, path)


def prefix_of_tensors(
    mode: str | None, config: GPT2Config, tensors: dict[str, Tensor], metadata: dict[str, str], path: Path
) -> Prefix:
    """The prefix of a file's tensors and metadata. Raises InputError as `load_prefix` does."""
    if mode not in MODES or list(tensors) != [mode]:
        raise InputError(
            f"{path} does not hold a prefix (its mode is {mode!r}): name a file that holds one of {', '.join(MODES)}"
        )
    values = tensors[mode]  # [P, row_size]
    if metadata.get("made_for") != config.shape:
        raise InputError(
            f"{path} was made for {metadata.get('made_for')}, but this model has {config.shape}:"
            " use the model it was trained with"
        )
    if values.dim() != 2 or values.size(1) != MODES[mode].row_size(config):
        raise InputError(
            f"{path}: its {mode} has the shape {list(values.shape)}, which does not fit {config.shape}:"
            " restore the file, or train again"
        )
    return MODES[mode].of_rows(config, values.float().clone())
