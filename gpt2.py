"""GPT-2 (Radford et al. 2019, "Language Models are Unsupervised Multitask Learners").

The model reads token ids t_1 .. t_T and gives, at each position, the logits of the next token:

    x_0     = wte[t] + wpe[position]
    x'_l    = x_(l-1) + Attention(LayerNorm(x_(l-1)))        for the layers l = 1 .. L
    x_l     = x'_l + MLP(LayerNorm(x'_l))
    logits  = LayerNorm(x_L) wte^T                           (the input embedding, tied)

    Attention:  [q k v] = x c_attn, each split into H heads of size D
                head_h = softmax(q_h k_h^T / sqrt(D) + causal mask) v_h,   heads concatenated, times c_proj
    MLP:        gelu(x c_fc) c_proj                      each product with a weight matrix c_.. adds its bias

Three hooks are not in a plain GPT-2: on the keys and values of each layer (`Attention.kv_hook`), on the tokens,
positions and mask of a forward pass (`GPT2.input_hook`), on what a projection or an MLP returns (`output_hook`). The
model knows nothing of prefixes and adapters; prefix.py uses the first two, lora.py and adapter.py the third.

Parameter names and shapes are those of the published checkpoints, so weights.py copies them key by key. Left out:
what only pretraining at scale needs. The faster versions are in fast/.

Shapes: B batch, T tokens, E entries that a hook put in front, S keys (E + cached + T), H heads, D head size,
C = H * D width, V vocabulary, L layers.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class GPT2Config:
    """The numbers that define a GPT-2. The defaults are those of the smallest, 124 million parameters."""

    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    n_positions: int = 1024
    vocab_size: int = 50257

    # Derived from the numbers above; LlamaConfig states some of them (llama.py):

    @property
    def n_kv_head(self) -> int:
        """Heads of keys and values: as many as of queries."""
        return self.n_head

    @property
    def head_size(self) -> int:
        return self.n_embd // self.n_head

    @property
    def end_token(self) -> int:
        """The id of <|endoftext|>: the vocabulary's last."""
        return self.vocab_size - 1

    @property
    def projections(self) -> dict[str, tuple[int, int, tuple[str, ...]]]:
        """A layer's projections: path -> n_in, n_out, and the matrices that lie side by side in its columns (which
        lora.py adapts one by one)."""
        C = self.n_embd
        return {
            "attn.c_attn": (C, 3 * C, ("q", "k", "v")),
            "attn.c_proj": (C, C, ("proj",)),
            "mlp.c_fc": (C, 4 * C, ("fc",)),
            "mlp.c_proj": (4 * C, C, ("mlp",)),
        }

    @property
    def shape(self) -> str:
        """The shape that a prefix has to fit, in words."""
        return f"{self.n_layer} layers of {self.n_head} heads and width {self.n_embd}"


CONFIGS = {
    "gpt2": GPT2Config(),  # 124 M
    "gpt2-medium": GPT2Config(n_layer=24, n_head=16, n_embd=1024),  # 355 M
    "gpt2-large": GPT2Config(n_layer=36, n_head=20, n_embd=1280),  # 774 M
    "gpt2-xl": GPT2Config(n_layer=48, n_head=25, n_embd=1600),  # 1558 M
}

KVHook = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
OutputHook = Callable[[Tensor, Tensor], Tensor]  # called with a module's input and output; returns the output to use


@dataclass
class KVCache:
    """The keys and values of the tokens read so far, so that the next token need not read them again."""

    layers: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # k and v of each layer, each [B, H, length, D]
    rows: Tensor | None = None  # [B, ..], which of the first entries each row may see (tasks.py); None: all

    @property
    def length(self) -> int:
        """Entries of a layer: the tokens read so far, and what a hook put in front."""
        return self.layers[0][0].size(2) if self.layers else 0

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Add k, v [B, H, T, D] to a layer; returns all its keys and values, each [B, H, length + T, D]."""
        if layer == len(self.layers):
            self.layers.append((k, v))
        else:
            past_k, past_v = self.layers[layer]
            self.layers[layer] = torch.cat([past_k, k], dim=2), torch.cat([past_v, v], dim=2)
        return self.layers[layer]

    def select(self, rows: Tensor) -> None:
        """Keep these rows of the batch in this order, repeats allowed: [B] -> [len(rows)]."""
        self.layers = [(k[rows], v[rows]) for k, v in self.layers]
        self.rows = None if self.rows is None else self.rows[rows]


class Projection(nn.Module):
    """y = x W + b. W is [n_in, n_out] as in OpenAI's files, the transpose of nn.Linear's weight."""

    def __init__(self, n_in: int, n_out: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_in, n_out))
        self.bias = nn.Parameter(torch.zeros(n_out))
        self.output_hook: OutputHook | None = None

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(x, self.weight.t(), self.bias)  # [B, T, n_in] -> [B, T, n_out]
        return y if self.output_hook is None else self.output_hook(x, y)


class Attention(nn.Module):
    """Causal self-attention with H heads."""

    def __init__(self, config: GPT2Config, layer: int, dropout: float):
        super().__init__()
        self.layer, self.n_head = layer, config.n_head
        self.c_attn = Projection(config.n_embd, 3 * config.n_embd)  # q, k and v in one product
        self.c_proj = Projection(config.n_embd, config.n_embd)
        self.dropout = nn.Dropout(dropout)
        # Called once, where a sequence begins, with k, v [B, H, T, D]; returns the k, v [B, H, E + T, D] to use
        # instead.
        self.kv_hook: KVHook | None = None

    def forward(self, x: Tensor, mask: Tensor | None, cache: KVCache | None) -> Tensor:
        q, k, v = split_heads(self.c_attn(x), self.n_head)  # each [B, H, T, D]
        begins = cache is None or self.layer == len(cache.layers)  # this layer has no cached entries yet
        if begins and self.kv_hook is not None:
            k, v = self.kv_hook(k, v)  # [B, H, E + T, D]
        if cache is not None:
            k, v = cache.append(self.layer, k, v)  # [B, H, S, D]
        if mask is None:
            mask = causal_mask(q.size(2), k.size(2), x.device)  # [T, S]
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))  # [B, H, T, S]
        weights = F.softmax(scores.masked_fill(~mask, -torch.inf), dim=-1)
        y = join_heads(self.dropout(weights) @ v)  # [B, T, C]
        return self.dropout(self.c_proj(y))


def split_heads(qkv: Tensor, H: int) -> tuple[Tensor, ...]:
    """[B, T, 3 C] -> q, k, v, each [B, H, T, D]."""
    return tuple(t.unflatten(-1, (H, -1)).transpose(1, 2) for t in qkv.chunk(3, dim=-1))


def join_heads(y: Tensor) -> Tensor:
    """[B, H, T, D] -> [B, T, C], the heads concatenated."""
    return y.transpose(1, 2).flatten(2)


def causal_mask(T: int, S: int, device=None) -> Tensor:
    """[T, S] booleans: may query t see key s?  s <= t + (S - T), since the T queries are the last T of the S keys.

    So every query sees itself and everything before it, a prefix and the cached tokens included.
    """
    return torch.ones(T, S, dtype=torch.bool, device=device).tril(S - T)


class MLP(nn.Module):
    """Two layers with GPT-2's gelu, the tanh approximation of Hendrycks & Gimpel 2016."""

    def __init__(self, config: GPT2Config, dropout: float):
        super().__init__()
        self.c_fc = Projection(config.n_embd, 4 * config.n_embd)
        self.c_proj = Projection(4 * config.n_embd, config.n_embd)
        self.dropout = nn.Dropout(dropout)
        self.output_hook: OutputHook | None = None

    def forward(self, x: Tensor) -> Tensor:
        y = self.dropout(self.c_proj(F.gelu(self.c_fc(x), approximate="tanh")))  # [B, T, C]
        return y if self.output_hook is None else self.output_hook(x, y)


class Block(nn.Module):
    """One layer: attention, then the MLP. Each reads a normalised copy of the residual stream and adds to it."""

    def __init__(self, config: GPT2Config, layer: int, dropout: float):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, eps=1e-5)
        self.attn = Attention(config, layer, dropout)
        self.ln_2 = nn.LayerNorm(config.n_embd, eps=1e-5)
        self.mlp = MLP(config, dropout)

    def forward(self, x: Tensor, mask: Tensor | None, cache: KVCache | None) -> Tensor:
        x = x + self.attn(self.ln_1(x), mask, cache)  # [B, T, C]
        return x + self.mlp(self.ln_2(x))


class GPT2(nn.Module):
    """The language model. Dropout acts in training mode only: on the input embeddings, on the attention
    weights, and on what each attention and each MLP returns."""

    def __init__(self, config: GPT2Config, dropout: float = 0.0):
        super().__init__()
        if config.n_embd % config.n_head:
            raise ValueError(f"n_embd {config.n_embd} is not a multiple of n_head {config.n_head}")
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.n_positions, config.n_embd)
        self.h = nn.ModuleList(Block(config, layer, dropout) for layer in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, eps=1e-5)
        self.dropout = nn.Dropout(dropout)
        # Called before each pass with (tokens, cache, positions, mask); returns the tokens, positions and mask to use.
        self.input_hook: Callable | None = None

    def forward(
        self,
        tokens: Tensor,
        cache: KVCache | None = None,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Logits of the next token, [B, T, V].

        tokens     [B, T] ids
        cache      what was read before; these tokens are added to it
        positions  [T] or [B, T]; None: they continue the cache
        mask       [B or 1, 1, T, S] booleans, which of the S keys each query may see; None: the causal mask. Padding on
                   the right needs no mask: the tokens before it do not see it
        Raises ValueError when the tokens do not fit into the context, IndexError for given positions outside of it.
        """
        tokens, positions, mask = self.inputs(tokens, cache, positions, mask)
        x = self.dropout(self.wte(tokens) + self.wpe(positions))  # [B, T, C]
        return self.logits(self.run_layers(x, mask, cache))

    def inputs(
        self, tokens: Tensor, cache: KVCache | None, positions: Tensor | None, mask: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """The tokens, their positions, and what each may see, after the hook."""
        if self.input_hook is not None:
            tokens, positions, mask = self.input_hook(tokens, cache, positions, mask)
        if positions is None:
            start = cache.length if cache is not None else 0
            end = start + tokens.size(1)
            if end > self.config.n_positions:
                raise ValueError(f"{end} tokens do not fit into the model's context of {self.config.n_positions}")
            positions = torch.arange(start, end, device=tokens.device)
        return tokens, positions, mask

    def run_layers(self, x: Tensor, mask: Tensor | None = None, cache: KVCache | None = None) -> Tensor:
        """x_0 -> LayerNorm(x_L), both [B, T, C]."""
        for block in self.h:
            x = block(x, mask, cache)
        return self.ln_f(x)

    def logits(self, x: Tensor) -> Tensor:
        """LayerNorm(x_L) wte^T: [B, T, C] -> [B, T, V]. In fp32 also where the program multiplies in bf16 (autocast):
        GPT-2's logits lie far below zero, where bf16 has steps of 0.25 and close candidates would tie."""
        with torch.autocast(x.device.type, enabled=False):
            return x.to(self.wte.weight.dtype) @ self.wte.weight.t()

    # ------------------------------------------------------------ what prefix.py, lora.py and adapter.py ask of a model

    @property
    def blocks(self) -> nn.ModuleList:
        """The layers."""
        return self.h

    @property
    def attentions(self) -> list[Attention]:
        """The layers' attention, each with its `kv_hook`."""
        return [block.attn for block in self.h]

    def embed(self, tokens: Tensor) -> Tensor:
        """The input embeddings of tokens, [..] -> [.., C]."""
        return self.wte(tokens)

    def read(self, embeddings: Tensor, positions: Tensor) -> Tensor:
        """LayerNorm(x_L) of input embeddings [B, T, C] in place of words, at positions [T]: [B, T, C]."""
        return self.run_layers(embeddings + self.wpe(positions))

    @torch.no_grad()
    def init_weights(self, seed: int = 0) -> "GPT2":
        """Random weights: N(0, 0.02^2) (Radford et al. 2018), the last layer of each residual branch / sqrt(2 L)
        (Radford et al. 2019)."""
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                std = 0.02 / math.sqrt(2 * self.config.n_layer) if "c_proj" in name else 0.02
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
        return self
