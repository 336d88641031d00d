"""What is learned: the prefix (Li & Liang 2021, "Prefix-Tuning") and its relatives.

GPT-2 stays frozen. In front of the keys and values that each layer computes from the tokens stand
P learned ones (section 4.2; in code they enter through `Attention.kv_hook`):

    k_l  <-  [P_k,l ; k_l]        v_l  <-  [P_v,l ; v_l]        for every layer l

so each token attends to them as if P earlier tokens had been read. Learning these numbers directly
is unstable, so while training they are the output of a small network (section 4.3):

    P_theta[i, :] = MLP_theta(P'_theta[i, :])        MLP: Linear(C, mid_dim), tanh, Linear(mid_dim, 2 L C)

After training only the MLP's output is kept, P * 2 * L * C numbers; P' and the MLP are dropped.

The relatives (section 7) differ in where the activations come from or in who sees them:

    prefix      [PREFIX; table; text]   seen by all tokens
    infix       [table; INFIX; text]    seen by the text alone, from the separator on
    embedding   [EMB; table; text]      P learned input embeddings; the activations are what the frozen
                                        GPT-2 itself computes from them, "embedding-only" in the paper

Use:  `prefix.attach(gpt2)`, then call gpt2 as ever, for training or decoding; `prefix.detach(gpt2)`.

Shapes: P prefix length, L layers, H heads, D head size, C = H * D width, B batch, T tokens.
"""

from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from files import InputError
from gpt2 import GPT2, GPT2Config, causal_mask
from weights import read_safetensors, write_safetensors


class Rows(nn.Module):
    """P learned rows of n_out numbers: the output of an MLP (mid_dim > 0), or learned directly (0)."""

    def __init__(self, prefix_len: int, n_embd: int, n_out: int, mid_dim: int):
        super().__init__()
        if mid_dim:
            self.p_prime = nn.Parameter(torch.randn(prefix_len, n_embd))  # P', N(0, 1)
            self.mlp = nn.Sequential(nn.Linear(n_embd, mid_dim), nn.Tanh(), nn.Linear(mid_dim, n_out))
        else:
            self.direct = nn.Parameter(torch.randn(prefix_len, n_out))  # N(0, 1), like P'
        self.reparametrised = bool(mid_dim)

    def forward(self) -> Tensor:
        """[P, n_out], in fp32 also under autocast: it is little work, and every digit is learned."""
        if not self.reparametrised:
            return self.direct
        with torch.autocast(self.p_prime.device.type, enabled=False):
            return self.mlp(self.p_prime)


class Prefix(nn.Module):
    """Learned keys and values in front of all tokens.

    mid_dim  width of the MLP; 0 learns the activations directly (the paper's ablation "without MLP")
    Raises InputError when prefix_len leaves no room for tokens.
    """

    mode = "prefix"

    def __init__(self, config: GPT2Config, prefix_len: int, mid_dim: int = 512):
        super().__init__()
        if prefix_len < 1:
            raise InputError(f"--prefix_len {prefix_len}: a prefix has at least one position")
        if prefix_len >= config.n_positions:
            raise InputError(f"--prefix_len {prefix_len} leaves no room for tokens: the model has {config.n_positions} positions")
        self.config, self.prefix_len = config, prefix_len
        self.rows = Rows(prefix_len, config.n_embd, self.row_size(config), mid_dim)
        self.handle = None  # while attached: what takes `before_forward` away again
        self.current: Tensor | None = None  # the activations that this forward pass uses

    @staticmethod
    def row_size(config: GPT2Config) -> int:
        """Numbers kept for each position of the prefix: a key and a value of width C in each layer."""
        return 2 * config.n_layer * config.n_embd

    def activations(self, model: GPT2) -> Tensor:
        """[P, 2 L, H, D]: entry 2l is layer l's keys, entry 2l + 1 its values."""
        return self.rows().view(self.prefix_len, 2 * self.config.n_layer, self.config.n_head, -1)

    # ------------------------------------------------------------------- into GPT-2 and out again

    def attach(self, model: GPT2) -> "Prefix":
        """From now on each sequence that `model` reads begins with this prefix. Returns self."""
        if model.config != self.config:
            raise InputError(f"this prefix was made for {self.config}, not for {model.config}")
        for block in model.h:
            if block.attn.kv_hook is not None:
                raise InputError("this model has a prefix already: detach it first")
        for layer, block in enumerate(model.h):
            block.attn.kv_hook = partial(self.put_in_front, layer)
        self.handle = model.register_forward_pre_hook(self.before_forward, with_kwargs=True)
        return self

    def detach(self, model: GPT2) -> None:
        """Give the model back as it was. Raises InputError where this prefix is not attached."""
        if self.handle is None:
            raise InputError("this prefix is not attached to a model")
        for block in model.h:
            block.attn.kv_hook = None
        self.handle.remove()
        self.handle = self.current = None

    def put_in_front(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """The method itself:  k, v [B, H, T, D]  ->  [P_k; k], [P_v; v]  [B, H, P + T, D]."""
        prefix = self.current[:, 2 * layer : 2 * layer + 2].to(k.dtype)  # [P, 2, H, D]
        prefix_k, prefix_v = prefix.permute(1, 2, 0, 3).unsqueeze(1).expand(2, k.size(0), -1, -1, -1)  # each [B, H, P, D]
        return torch.cat([prefix_k, k], dim=2), torch.cat([prefix_v, v], dim=2)

    def before_forward(self, model: GPT2, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        """PyTorch calls this before each forward pass: compute the activations, shift the positions.

        The first real token stands at position P, in training and in decoding.
        """
        tokens, cache = args[0], kwargs.get("cache")
        begins = cache is None or cache.length == 0
        if begins:
            self.check_room(tokens)
            self.current = self.activations(model)  # once a pass, for all layers; gradients flow back through it
        positions = kwargs.get("positions")
        if positions is None and begins:
            positions = torch.arange(tokens.size(1), device=tokens.device)
        if positions is not None:  # None: the tokens go on behind the cache, which counts the prefix
            kwargs["positions"] = positions + self.prefix_len
        return args, kwargs

    def check_room(self, tokens: Tensor) -> None:
        """Raise ValueError when prefix and tokens [B, T] do not fit (on a GPU a position outside of `wpe` would end the program)."""
        if self.prefix_len + tokens.size(1) > self.config.n_positions:
            raise ValueError(f"a prefix of {self.prefix_len} and {tokens.size(1)} tokens do not fit into {self.config.n_positions} positions")

    # ------------------------------------------------------------------- initialisation and files

    def words_as_rows(self, model: GPT2, tokens: Tensor) -> Tensor:
        """The rows that make this prefix act as if the words tokens [P] had been read: [P, row_size]."""
        return keys_values(model, model.wte(tokens)).flatten(1)

    def init_from_words(self, model: GPT2, tokens: Tensor, steps: int = 500, lr: float = 1e-4) -> float:
        """Start from the activations of real words, tokens [P] (section 7.4; it helps where data are few).

        The MLP's output is fitted to them (mean squared error, Adam); without an MLP they are copied.
        Returns the error left.
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
        optimizer.zero_grad()  # the last gradient must not be added to training's first
        return F.mse_loss(self.rows(), target).item()

    def drop_mlp(self) -> "Prefix":
        """The same prefix without P' and the MLP: what is left after training."""
        return self.of_rows(self.config, self.rows().detach().clone())

    @classmethod
    def of_rows(cls, config: GPT2Config, rows: Tensor) -> "Prefix":
        """The prefix whose rows [P, row_size] are known. Draws no random numbers, on which a resumed run depends."""
        with torch.device("meta"):
            prefix = cls(config, len(rows), mid_dim=0)
        prefix.rows.direct = nn.Parameter(rows)
        return prefix

    def save(self, path: Path, metadata: dict[str, str] | None = None) -> None:
        """Write the prefix, P * row_size numbers in fp32, as a safetensors file.

        One tensor [P, row_size], named as the mode is. A row is [2 L, H, D] laid flat (see `activations`), or for
        embedding-only one embedding. The metadata say which model it fits.
        """
        about = {"mode": self.mode, "made_for": shape_of(self.config)}
        write_safetensors(path, {self.mode: self.rows().detach().float()}, about | (metadata or {}))


class Infix(Prefix):
    """The same activations between table and text: only the text attends to them.

    Keys have no order of their own in attention, so they can stay in front in memory. What makes
    an infix of them is who sees them, and the positions: the table's tokens stand at 0 .. S - 1, the
    infix at S .. S + P - 1, the text behind it. The separator, the vocabulary's last id, counts as
    text, because the text's first word is read off it.
    """

    mode = "infix"

    def before_forward(self, model: GPT2, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        cache = kwargs.get("cache")
        if cache is not None and cache.length:  # the text goes on, word by word
            return super().before_forward(model, args, kwargs)
        if kwargs.get("mask") is not None or kwargs.get("positions") is not None:
            raise ValueError("an infix makes mask and positions itself")
        tokens = args[0]  # [B, T]
        self.check_room(tokens)
        B, T = tokens.shape
        is_text = (tokens == self.config.vocab_size - 1).cumsum(1) > 0  # [B, T]
        self.current = self.activations(model)
        kwargs["positions"] = torch.arange(T, device=tokens.device) + self.prefix_len * is_text  # [B, T]
        sees_infix = is_text[:, :, None].expand(B, T, self.prefix_len)
        sees_token = causal_mask(T, T, tokens.device).expand(B, T, T)
        kwargs["mask"] = torch.cat([sees_infix, sees_token], dim=2).unsqueeze(1)  # [B, 1, T, P + T]
        return args, kwargs


class Embedding(Prefix):
    """Embedding-only: P learned input embeddings, and nothing learned in the layers above.

    Reading them first and the tokens after is the same as putting in front the keys and values that
    GPT-2 computes from them, so this is a prefix whose activations the frozen GPT-2 itself produces.
    """

    mode = "embedding"

    @staticmethod
    def row_size(config: GPT2Config) -> int:
        """Numbers kept for each position: one embedding of width C."""
        return config.n_embd

    def activations(self, model: GPT2) -> Tensor:
        return keys_values(model, self.rows())

    def words_as_rows(self, model: GPT2, tokens: Tensor) -> Tensor:
        return model.wte(tokens)


def shape_of(config: GPT2Config) -> str:
    """What a prefix has to fit."""
    return f"{config.n_layer} layers of {config.n_head} heads and width {config.n_embd}"


MODES = {cls.mode: cls for cls in (Prefix, Infix, Embedding)}


def keys_values(model: GPT2, embeddings: Tensor) -> Tensor:
    """What GPT-2's layers compute for input embeddings [P, C] at positions 0 .. P - 1: [P, 2 L, H, D].

    The hooks, which can put things in, can also look: here they only write down what passes.
    """
    seen: list[Tensor] = []

    def write_down(k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        seen.extend([k[0], v[0]])  # each [H, P, D]
        return k, v

    hooks = [block.attn.kv_hook for block in model.h]
    for block in model.h:
        block.attn.kv_hook = write_down
    try:
        positions = torch.arange(len(embeddings), device=embeddings.device)
        model.run((embeddings + model.wpe(positions)).unsqueeze(0))
    finally:
        for block, hook in zip(model.h, hooks):
            block.attn.kv_hook = hook
    return torch.stack(seen).permute(2, 0, 1, 3)  # [2 L, H, P, D] -> [P, 2 L, H, D]


def load_prefix(path: Path, config: GPT2Config) -> Prefix:
    """A saved prefix, infix or embedding, to be attached to a GPT-2 of this configuration.

    Raises InputError when the file is something else or was made for another model.
    """
    tensors, metadata = read_safetensors(path)
    mode = metadata.get("mode")
    if mode not in MODES or list(tensors) != [mode]:
        raise InputError(f"{path} does not hold a prefix (its mode is {mode!r}): expected one of {', '.join(MODES)}")
    values = tensors[mode]  # [P, row_size]
    if metadata.get("made_for") != shape_of(config) or values.dim() != 2 or values.size(1) != MODES[mode].row_size(config):
        raise InputError(
            f"{path} was made for {metadata.get('made_for')}, but this model has {shape_of(config)}: use the model it was trained with"
        )
    return MODES[mode].of_rows(config, values.float().clone())
