"""Llama (Touvron et al. 2023, "LLaMA: Open and Efficient Foundation Language Models"; SmolLM2 is one).

The second model. (The weights of a pretrained one, SmolLM2, can be installed as a Python package.) A Llama reads token
ids t_1 .. t_T as a GPT-2 does. It differs in the norm, the MLP, grouped attention and the positions, and has no biases:

    x_0     = embed_tokens[t]
    x'_l    = x_(l-1) + Attention(RMSNorm(x_(l-1)))          for the layers l = 1 .. L
    x_l     = x'_l + MLP(RMSNorm(x'_l))
    logits  = RMSNorm(x_L) embed_tokens^T                    (the input embedding, tied)

    RMSNorm     x / sqrt(mean(x^2) + eps) * weight                                       Zhang & Sennrich 2019
    MLP         (silu(x W_gate) * (x W_up)) W_down           SwiGLU,                     Shazeer 2020
    Attention   head_h = softmax(R q_h (R k_g)^T / sqrt(D) + causal mask) v_g            heads concatenated, times W_o
                grouped: H query heads share G key/value heads, g = h // (H / G)         Ainslie et al. 2023
    R           RoPE: at position p, R turns each pair (x_i, x_(i + D/2)) by the angle   Su et al. 2021
                p / base^(2i/D), so positions enter (R q)(R k)^T only through their difference

W is [n_in, n_out] here; in the code its transpose, as nn.Linear stores it. The model has GPT-2's three hooks.
`Attention.kv_hook` sees the keys after R, as the cache stores them: what it puts in front is not turned again, so a
learned key acts as one at position 0.

Parameter names and shapes are those of the hub's checkpoints without `model.`. Left out: dropout, which Llamas are
trained without; scaled RoPE for longer contexts; a separate output matrix.

Shapes: B batch, T tokens, E entries that a hook put in front, S keys (E + cached + T), H query heads, G key/value
heads, D head size, C = H * D width, V vocabulary, L layers.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2 import GPT2, KVCache, KVHook, OutputHook, causal_mask, join_heads


@dataclass(frozen=True)
class LlamaConfig:
    """The numbers that define a Llama. The defaults are those of SmolLM2-135M."""

    n_layer: int = 30
    n_head: int = 9
    n_kv_head: int = 3
    n_embd: int = 576
    n_inner: int = 1536  # width of the MLP
    n_positions: int = 8192
    vocab_size: int = 49152
    end_token: int = 0  # the id of <|endoftext|>
    rope_base: float = 100000.0
    eps: float = 1e-5

    @property
    def head_size(self) -> int:
        return self.n_embd // self.n_head

    @property
    def projections(self) -> dict[str, tuple[int, int, tuple[str, ...]]]:
        """A layer's projections: path -> n_in, n_out, and its one matrix by GPT-2's names; gate is SwiGLU's."""
        C, kv_width = self.n_embd, self.n_kv_head * self.head_size
        return {
            "self_attn.q_proj": (C, C, ("q",)),
            "self_attn.k_proj": (C, kv_width, ("k",)),
            "self_attn.v_proj": (C, kv_width, ("v",)),
            "self_attn.o_proj": (C, C, ("proj",)),
            "mlp.gate_proj": (C, self.n_inner, ("gate",)),
            "mlp.up_proj": (C, self.n_inner, ("fc",)),
            "mlp.down_proj": (self.n_inner, C, ("mlp",)),
        }

    @property
    def shape(self) -> str:
        """The shape that a prefix has to fit, in words."""
        return (
            f"{self.n_layer} Llama layers of {self.n_head} heads, {self.n_kv_head} of keys and values,"
            f" and width {self.n_embd}"
        )


CONFIGS = {"smollm2": LlamaConfig()}


def rotation(positions: Tensor, config: LlamaConfig) -> tuple[Tensor, Tensor]:
    """cos and sin of R's angles at positions [T] or [B, T], each [.., 1, T, D/2], the same for all heads."""
    i = torch.arange(config.head_size // 2, device=positions.device)
    angles = positions[..., None, :, None] / config.rope_base ** (2 * i / config.head_size)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """R x for queries or keys [B, H, T, D]."""
    a, b = x.chunk(2, dim=-1)  # each [B, H, T, D/2]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(x.dtype)


class Projection(nn.Linear):
    """y = x W^T, W [n_out, n_in]."""

    def __init__(self, n_in: int, n_out: int):
        super().__init__(n_in, n_out, bias=False)
        self.output_hook: OutputHook | None = None

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)  # [B, T, n_in] -> [B, T, n_out]
        return y if self.output_hook is None else self.output_hook(x, y)


class Attention(nn.Module):
    """Causal self-attention: H query heads, G heads of keys and values."""

    def __init__(self, config: LlamaConfig, layer: int):
        super().__init__()
        self.layer, self.head_size, self.group = layer, config.head_size, config.n_head // config.n_kv_head
        kv_width = config.n_kv_head * config.head_size
        self.q_proj = Projection(config.n_embd, config.n_embd)
        self.k_proj = Projection(config.n_embd, kv_width)
        self.v_proj = Projection(config.n_embd, kv_width)
        self.o_proj = Projection(config.n_embd, config.n_embd)
        # Called once, where a sequence begins, with R k and v [B, G, T, D]; returns the keys and values
        # [B, G, E + T, D] to use instead.
        self.kv_hook: KVHook | None = None

    def forward(self, x: Tensor, turn: tuple[Tensor, Tensor], mask: Tensor | None, cache: KVCache | None) -> Tensor:
        # turn: cos and sin of R's angles, each [.., 1, T, D/2]
        q, k, v = (self.heads(project(x)) for project in (self.q_proj, self.k_proj, self.v_proj))
        q, k = rotate(q, *turn), rotate(k, *turn)  # [B, H, T, D], [B, G, T, D]
        begins = cache is None or self.layer == len(cache.layers)  # this layer has no cached entries yet
        if begins and self.kv_hook is not None:
            k, v = self.kv_hook(k, v)  # [B, G, E + T, D]
        if cache is not None:
            k, v = cache.append(self.layer, k, v)  # [B, G, S, D]
        if mask is None:
            mask = causal_mask(q.size(2), k.size(2), x.device)  # [T, S]
        k, v = (t.repeat_interleave(self.group, dim=1) for t in (k, v))  # [B, H, S, D]
        scores = q @ k.transpose(-2, -1) / math.sqrt(self.head_size)  # [B, H, T, S]
        weights = F.softmax(scores.masked_fill(~mask, -torch.inf), dim=-1)
        return self.o_proj(join_heads(weights @ v))  # [B, T, C]

    def heads(self, x: Tensor) -> Tensor:
        """[B, T, H D] -> [B, H, T, D], or G in place of H."""
        return x.unflatten(-1, (-1, self.head_size)).transpose(1, 2)


class MLP(nn.Module):
    """SwiGLU: one product, gated by another."""

    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.gate_proj = Projection(config.n_embd, config.n_inner)
        self.up_proj = Projection(config.n_embd, config.n_inner)
        self.down_proj = Projection(config.n_inner, config.n_embd)
        self.output_hook: OutputHook | None = None

    def forward(self, x: Tensor) -> Tensor:
        y = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))  # [B, T, C]
        return y if self.output_hook is None else self.output_hook(x, y)


class Block(nn.Module):
    """One layer: attention, then the MLP. Each reads a normalised copy of the residual stream and adds to it."""

    def __init__(self, config: LlamaConfig, layer: int):
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.n_embd, eps=config.eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = nn.RMSNorm(config.n_embd, eps=config.eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, turn: tuple[Tensor, Tensor], mask: Tensor | None, cache: KVCache | None) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), turn, mask, cache)  # [B, T, C]
        return x + self.mlp(self.post_attention_layernorm(x))


class Llama(nn.Module):
    """The language model."""

    def __init__(self, config: LlamaConfig):
        super().__init__()
        if config.n_embd % config.n_head or config.n_head % config.n_kv_head or config.head_size % 2:
            raise ValueError(f"{config}: n_embd must be n_head heads of an even size, n_head a multiple of n_kv_head")
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.n_embd)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.norm = nn.RMSNorm(config.n_embd, eps=config.eps)
        # Called before each pass with (tokens, cache, positions, mask); returns the tokens, positions and mask to use.
        self.input_hook: Callable | None = None

    def forward(
        self,
        tokens: Tensor,
        cache: KVCache | None = None,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Logits of the next token, [B, T, V]. Arguments and errors are those of GPT2.forward; a position outside of
        the context raises no error, since R is defined for all."""
        tokens, positions, mask = self.inputs(tokens, cache, positions, mask)
        return self.logits(self.run_layers(self.embed_tokens(tokens), positions, mask, cache))

    inputs = GPT2.inputs  # the hook, and positions that continue the cache

    def run_layers(
        self, x: Tensor, positions: Tensor, mask: Tensor | None = None, cache: KVCache | None = None
    ) -> Tensor:
        """x_0 at positions [T] or [B, T] -> RMSNorm(x_L), both [B, T, C]."""
        turn = rotation(positions, self.config)  # once for all layers
        for block in self.layers:
            x = block(x, turn, mask, cache)
        return self.norm(x)

    def logits(self, x: Tensor) -> Tensor:
        """RMSNorm(x_L) embed_tokens^T: [B, T, C] -> [B, T, V], in full precision also under autocast."""
        with torch.autocast(x.device.type, enabled=False):
            return x.to(self.embed_tokens.weight.dtype) @ self.embed_tokens.weight.t()

    # ------------------------------------------------------------ what prefix.py, lora.py and adapter.py ask of a model

    @property
    def blocks(self) -> nn.ModuleList:
        """The layers."""
        return self.layers

    @property
    def attentions(self) -> list[Attention]:
        """The layers' attention, each with its `kv_hook`."""
        return [block.self_attn for block in self.layers]

    def embed(self, tokens: Tensor) -> Tensor:
        """The input embeddings of tokens, [..] -> [.., C]."""
        return self.embed_tokens(tokens)

    def read(self, embeddings: Tensor, positions: Tensor) -> Tensor:
        """RMSNorm(x_L) of input embeddings [B, T, C] in place of words, at positions [T]: [B, T, C]."""
        return self.run_layers(embeddings, positions)

    @torch.no_grad()
    def init_weights(self, seed: int = 0) -> "Llama":
        """Random weights: N(0, 0.02^2); the norms' weights are 1."""
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.parameters():
            if parameter.dim() == 2:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.02)
        return self
