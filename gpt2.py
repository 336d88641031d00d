"""GPT-2 (Radford et al. 2019, "Language Models are Unsupervised Multitask Learners").

The model reads token ids t_1 .. t_T and gives, at each position, the logits of the next token:

    x_0     = wte[t] + wpe[position]
    x'_l    = x_(l-1) + Attention(LayerNorm(x_(l-1)))        for the layers l = 1 .. L
    x_l     = x'_l + MLP(LayerNorm(x'_l))
    logits  = LayerNorm(x_L) wte^T                           (the input embedding, used again)

    Attention:  head_h = softmax(q_h k_h^T / sqrt(D) + causal mask) v_h,   heads side by side, times c_proj
    MLP:        gelu(x c_fc) c_proj

Two things are here that a plain GPT-2 would not need:

* a hook on each attention layer's keys and values (`Attention.kv_hook`). GPT-2 itself knows
  nothing of prefixes; `prefix.py` uses the hook to put learned keys and values in front;
* `at`, `real` and `targets`, to compute only what is needed. The product with the 50,257 rows of `wte` is
  a third of GPT-2 small's arithmetic, and the loss needs it at half of the positions; a quarter of a batch of
  sentences of different lengths is padding.

Products, dropout, the embedding's two uses and the padding are PyTorch's as far as the mathematics goes; `ops.py` computes
them in less time.

Parameters have the names and the shapes of the published checkpoints, so `weights.py` copies them
key by key. Left out: everything that only pretraining at scale needs.

Shapes: B batch, T tokens, E entries that a hook put in front, S keys seen (E + past + T), H heads,
D head size, C = H * D width, V vocabulary, N tokens that are no padding.
"""

import math
from dataclasses import dataclass, field
from typing import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from loss import STEP, SummedLoss
from ops import Padded, dropout, look_up, product


@dataclass(frozen=True)
class GPT2Config:
    """The numbers that make a GPT-2. The defaults are those of the smallest, 124 million parameters."""

    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    n_positions: int = 1024
    vocab_size: int = 50257


CONFIGS = {
    "gpt2": GPT2Config(),  # 124 M
    "gpt2-medium": GPT2Config(n_layer=24, n_head=16, n_embd=1024),  # 355 M
    "gpt2-large": GPT2Config(n_layer=36, n_head=20, n_embd=1280),  # 774 M
    "gpt2-xl": GPT2Config(n_layer=48, n_head=25, n_embd=1600),  # 1558 M
}

KVHook = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass
class KVCache:
    """Keys and values of what was read so far, so that the next token need not read it again.

    The memory is taken once, for the first entries and `room` more: appending writes into it instead
    of copying all that is there. Inference only: gradients do not flow through it.
    """

    room: int
    layers: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # k and v, each [B, H, first + room, D]
    used: list[int] = field(default_factory=list)  # entries in use, by layer

    @property
    def length(self) -> int:
        """Entries in use (between two forward passes all layers have the same number)."""
        return self.used[0] if self.used else 0

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Add k, v [B, H, T, D] to a layer; returns all its keys and values, [B, H, length + T, D].

        Raises ValueError where there is no room for them.
        """
        B, H, T, D = k.shape
        if layer == len(self.layers):  # the layer's first entries. Zeros behind them: what is hidden by a mask must still be a number
            self.layers.append((k.new_zeros(B, H, T + self.room, D), v.new_zeros(B, H, T + self.room, D)))
            self.used.append(0)
        k_memory, v_memory = self.layers[layer]
        start, end = self.used[layer], self.used[layer] + T
        if end > k_memory.size(2):
            raise ValueError(f"the cache has room for {k_memory.size(2)} entries, not for {end}")
        k_memory[:, :, start:end], v_memory[:, :, start:end] = k, v
        self.used[layer] = end
        return k_memory[:, :, :end], v_memory[:, :, :end]

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Add k, v; returns what the queries q, the newest T tokens, find among all entries: each [B, H, T, D].

        mask [B or 1, 1, T, length + T] as in GPT2.forward. PyTorch's own attention: without gradients one fused operation.
        """
        k, v = self.append(layer, k, v)  # [B, H, S, D]
        if mask is None and q.size(2) > 1:
            mask = causal_mask(q.size(2), k.size(2), q.device)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    def select(self, rows: Tensor) -> None:
        """Keep these rows of the batch, no more than there are, in this order: [B] -> [len(rows)]."""
        n, used = len(rows), self.length
        for layer, memories in enumerate(self.layers):
            for memory in memories:  # into the memory that is there
                memory[:n, :, :used] = memory[:, :, :used].index_select(0, rows)
            self.layers[layer] = tuple(memory[:n] for memory in memories)


class Projection(nn.Module):
    """y = x W + b, with W [n_in, n_out] the way round OpenAI stored it (nn.Linear keeps its transpose)."""

    def __init__(self, n_in: int, n_out: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_in, n_out))
        self.bias = nn.Parameter(torch.zeros(n_out))

    def forward(self, x: Tensor) -> Tensor:
        y = product(x.flatten(0, -2), self.weight, self.bias)  # [B * T, n_out]
        return y.view(*x.shape[:-1], -1)  # [B, T, n_out]


class Attention(nn.Module):
    """Causal self-attention with H heads."""

    def __init__(self, config: GPT2Config, layer: int, dropout: float):
        super().__init__()
        self.layer, self.n_head, self.dropout = layer, config.n_head, dropout
        self.c_attn = Projection(config.n_embd, 3 * config.n_embd)  # q, k and v in one product
        self.c_proj = Projection(config.n_embd, config.n_embd)
        # Called once where a sequence begins, with k, v [B, H, T, D]; returns what attention shall use
        # in their place, [B, H, E + T, D] with E entries of its own in front (a cache remembers them).
        self.kv_hook: KVHook | None = None

    def forward(self, x: Tensor, mask: Tensor | None, cache: KVCache | None, padded: Padded | None) -> Tensor:
        qkv = self.c_attn(x)  # [B, T, 3 C], or [N, 3 C]
        q, k, v = split_heads(qkv, self.n_head) if padded is None else padded.heads(qkv)  # each [B, H, T, D]
        if self.kv_hook is not None and (cache is None or self.layer == len(cache.layers)):
            k, v = self.kv_hook(k, v)  # [B, H, E + T, D]
        if cache is not None:
            return self.c_proj(join_heads(cache.attend(self.layer, q, k, v, mask)))  # [B, T, C]
        T, S = q.size(2), k.size(2)
        scores = (q / math.sqrt(q.size(-1))) @ k.transpose(-2, -1)  # [B, H, T, S]
        if mask is None and T > 1:  # (one new token may see everything)
            mask = causal_mask(T, S, x.device)
        if mask is not None:  # added, not filled in: then the backward pass has nothing to do for it
            scores = scores + torch.zeros_like(mask, dtype=scores.dtype).masked_fill(~mask, -torch.inf)
        weights = dropout(F.softmax(scores, dim=-1), self.dropout, self.training)
        y = weights @ v  # [B, H, T, D]
        y = self.c_proj(join_heads(y) if padded is None else padded.tokens(y))  # [B, T, C], or [N, C]
        return dropout(y, self.dropout, self.training)


def split_heads(qkv: Tensor, H: int) -> tuple[Tensor, Tensor, Tensor]:
    """[B, T, 3 C] -> q, k, v, each [B, H, T, D]."""
    q, k, v = qkv.chunk(3, dim=-1)  # each [B, T, C]
    return tuple(t.unflatten(-1, (H, -1)).transpose(1, 2) for t in (q, k, v))


def join_heads(y: Tensor) -> Tensor:
    """[B, H, T, D] -> [B, T, C], the heads side by side."""
    return y.transpose(1, 2).flatten(2)


def causal_mask(T: int, S: int, device=None) -> Tensor:
    """[T, S] booleans: may query t see key s? The T queries are the last T of the S keys.

    So each query sees all that stands in front (a prefix, the past), and itself:  s <= t + (S - T).
    """
    return torch.ones(T, S, dtype=torch.bool, device=device).tril(S - T)


class MLP(nn.Module):
    """Two layers with GPT-2's gelu, the tanh approximation of Hendrycks & Gimpel 2016."""

    def __init__(self, config: GPT2Config, dropout: float):
        super().__init__()
        self.dropout = dropout
        self.c_fc = Projection(config.n_embd, 4 * config.n_embd)
        self.c_proj = Projection(4 * config.n_embd, config.n_embd)

    def forward(self, x: Tensor) -> Tensor:
        y = self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))
        return dropout(y, self.dropout, self.training)


class Block(nn.Module):
    """One layer: attention, then the MLP, each on a normalised copy and added to the stream."""

    def __init__(self, config: GPT2Config, layer: int, dropout: float):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, eps=1e-5)
        self.attn = Attention(config, layer, dropout)
        self.ln_2 = nn.LayerNorm(config.n_embd, eps=1e-5)
        self.mlp = MLP(config, dropout)

    def forward(self, x: Tensor, mask: Tensor | None, cache: KVCache | None, padded: Padded | None, at: Tensor | None = None) -> Tensor:
        """x [B, T, C], or with `padded` [N, C] -> the same shape; with `at` these M of its rows only, [M, C]."""
        x = x + self.attn(self.ln_1(x), mask, cache, padded)
        if at is not None:
            x = x.flatten(0, -2).index_select(0, at)  # [M, C]
        return x + self.mlp(self.ln_2(x))


class GPT2(nn.Module):
    """The language model. `dropout` acts in training mode only, at GPT-2's three places."""

    def __init__(self, config: GPT2Config, dropout: float = 0.0):
        super().__init__()
        if config.n_embd % config.n_head:
            raise ValueError(f"width {config.n_embd} cannot be shared out among {config.n_head} heads")
        self.config, self.dropout = config, dropout
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.n_positions, config.n_embd)
        self.h = nn.ModuleList(Block(config, layer, dropout) for layer in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, eps=1e-5)
        # wte once more, in bf16, where it is frozen: its 39 million numbers need not be rounded anew in each step (`loss.rounded`).
        self.register_buffer("head", None, persistent=False)
        self.two_rounds = None  # a faster way from the last states to the best words (packed.py)

    def forward(
        self,
        tokens: Tensor,
        /,
        *,  # by name only: a prefix looks at what is passed, and must not overlook it
        cache: KVCache | None = None,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        at: Tensor | None = None,
        real: Tensor | None = None,
        targets: Tensor | None = None,
        states: bool = False,
    ) -> Tensor:
        """Logits of the next token, or the loss.

        tokens     [B, T] ids
        cache      what was read before; these tokens are added to it
        positions  [T] or [B, T]; None: they go on behind the cache
        mask       [B or 1, 1, T, S] booleans, which of the S keys each query may see;
                   None: all that is in front of it, and itself. Tokens padded on the right need no
                   mask, since nothing that counts looks at them
        at         [M] indices into the B * T positions where logits are wanted; None: all of them
        real       [N] indices, rising, of the tokens that are no padding; None: all of them. With it `at` is needed,
                   and there can be no cache
        targets    [M] the tokens that follow there
        states     the last states, LayerNorm(x_L), in place of logits: C numbers instead of V

        Returns logits [B, T, V], or with `at` [M, V], in fp32 where no gradient is wanted (see `logits`);
        with `targets` the sum of - log p(target) in nats; with `states` [B, T, C], or with `at` [M, C].
        Raises ValueError when the context is too short (of positions that are given, a GPU's are not looked at), and for
        `real` with a cache.
        """
        if positions is None:
            start = cache.length if cache is not None else 0
            if start + tokens.size(1) > self.config.n_positions:
                raise ValueError(f"{start + tokens.size(1)} tokens do not fit into GPT-2's context of {self.config.n_positions}")
            positions = torch.arange(start, start + tokens.size(1), device=tokens.device)
        padded = None
        if real is not None:
            if cache is not None:
                raise ValueError("a cache holds whole rows: leave `real` out, or the cache")
            B, T = tokens.shape
            up = -T % STEP if mask is None else 0  # zeros behind the sequences, for attention
            padded = Padded(B, T + up, self.config.n_head, real + real // T * up)
            positions = positions.expand(tokens.shape).flatten()[real]  # [N]
            tokens, at = tokens.flatten()[real], torch.searchsorted(real, at)  # [N], and places among the N
        x, vocabulary = self.embed(tokens, positions)  # [B, T, C], or [N, C], and [V, C]
        x = self.run(x, mask, cache, padded, at)  # [B, T, C], or [M, C]
        if states:
            return x
        return self.logits(x, vocabulary) if targets is None else self.loss(x, targets, vocabulary)

    def embed(self, tokens: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """x_0 of tokens [B, T] at positions [T] or [B, T]: [B, T, C] (or of [N] tokens at [N] positions), and `wte` for its second use."""
        if positions.device.type == "cpu" and positions.max() >= self.config.n_positions:  # (a GPU would have to be waited for)
            raise ValueError(f"position {positions.max()} is outside of GPT-2's context of {self.config.n_positions}")
        words, vocabulary = look_up(self.wte.weight, tokens)
        return dropout(words + self.wpe(positions), self.dropout, self.training), vocabulary

    def run(
        self, x: Tensor, mask: Tensor | None = None, cache: KVCache | None = None, padded: Padded | None = None, at: Tensor | None = None
    ) -> Tensor:
        """The layers: x_0 [B, T, C], or with `padded` [N, C] -> LayerNorm(x_L) of the same shape; with `at` these of its rows, [M, C].

        Behind the last layer's attention a token has nothing to tell the others, so only the rows that are wanted go on.
        """
        for block in self.h[:-1]:
            x = block(x, mask, cache, padded)
        if at is None:
            return self.ln_f(self.h[-1](x, mask, cache, padded))
        M = len(at)
        at = F.pad(at, (0, -M % STEP))  # (the first row some times more; see STEP)
        return self.ln_f(self.h[-1](x, mask, cache, padded, at)[:M])

    def logits(self, x: Tensor, vocabulary: Tensor) -> Tensor:
        """LayerNorm(x_L) wte^T: [.., C], [V, C] -> [.., V].

        Where no gradient is wanted (validation, decoding) always in fp32: GPT-2's logits lie far below zero, and bf16 has but
        8 significant bits, steps of 0.25 between -32 and -64; beams would tie. Under autocast only their factors are rounded.
        """
        if torch.is_grad_enabled():
            return x @ vocabulary.t()
        precision = torch.get_float32_matmul_precision()
        if torch.is_autocast_enabled(x.device.type):
            torch.set_float32_matmul_precision("medium")  # products of bf16 (on a GPU TF32) factors, sums in fp32
        try:
            with torch.autocast(x.device.type, enabled=False):
                return x.float() @ vocabulary.float().t()
        finally:
            torch.set_float32_matmul_precision(precision)

    def loss(self, x: Tensor, targets: Tensor, vocabulary: Tensor) -> Tensor:
        """The sum of - log p of targets [M] given LayerNorm(x_L) [M, C], in nats."""
        if not torch.is_grad_enabled():  # some places at a time: a batch's logits are hundreds of megabytes
            parts = zip(x.split(256), targets.split(256))
            return torch.stack([F.cross_entropy(self.logits(rows, vocabulary), y, reduction="sum") for rows, y in parts]).sum()
        weight = vocabulary if self.head is None else self.head
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        return SummedLoss.apply(x, weight, targets, self.config.vocab_size)

    @torch.no_grad()
    def init_weights(self, seed: int = 0) -> "GPT2":
        """Random weights as in the paper: N(0, 0.02), the last layer of each residual branch / sqrt(2 L)."""
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                std = 0.02 / math.sqrt(2 * self.config.n_layer) if "c_proj" in name else 0.02
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
        return self
