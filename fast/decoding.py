"""The best next words on the fast path (plain: beam.NextWords).

Beams share keys and values (tree.py); the prompts' logits, and the last layer's MLP, are computed at their last tokens
only; and a frozen bf16 model on a CPU is packed, its vocabulary searched in two rounds (prepacked.py).

Shapes as in beam.py; C width, W = 2 K words compared, S' entries of the prompts (a prefix's included), n tokens since.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from fast.loss import SHAPE_MULTIPLE
from fast.prepacked import PrepackedLinear, PrepackedMLP, TwoRounds, can_pack, largest
from fast.training import exact_logits, output_matrix
from fast.tree import BeamTree
from gpt2 import GPT2, Attention, Projection, join_heads, split_heads


class NextWords:
    """As beam.NextWords, for a GPT2. A packed model (`pack`) is searched in two rounds."""

    def __init__(self, model: GPT2, n_words: int, banned: tuple[int, ...], pad: int):
        self.model, self.n_words, self.banned, self.pad = model, n_words, banned, pad
        self.tree = BeamTree(room=4 * n_words)  # enough for 8 tokens of each of W / 2 beams; it grows

    def of_prompts(self, prompts: list[list[int]]) -> tuple[Tensor, Tensor]:
        """Read the prompts: log p and ids of the best first words, each [B, W]."""
        device, B, T = output_matrix(self.model).device, len(prompts), max(map(len, prompts))
        tokens = torch.tensor([prompt + [self.pad] * (T - len(prompt)) for prompt in prompts], device=device)  # [B, T]
        self.lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)  # [B], tokens read by a beam
        self.steps, self.longest = 0, T
        last = torch.arange(B, device=device) * T + self.lengths - 1  # the prompts' last tokens, among the B * T
        x = self.hidden_states(tokens, None, None, last)  # [B, C]
        is_token = torch.arange(T, device=device) < self.lengths[:, None]  # [B, T]
        self.visible = F.pad(is_token, (self.tree.length - T, 0), value=True)  # [B, S'], a prefix is seen by all
        return self.best(x)

    def of_beams(self, prompts: Tensor, beams: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Extend beams by a token each: log p and ids of the best words after it, each [R, W]. See beam.py."""
        B, K = beams.shape
        self.tree.branch(prompts, beams)
        self.lengths, self.visible = self.lengths[prompts] + 1, self.visible[prompts]
        self.steps += 1
        mask = None
        if self.tree.rows is not None or self.lengths.min() - self.steps < self.longest:  # a hook's, or padded prompts
            produced = self.visible.new_ones(B, self.steps)
            mask = torch.cat([self.visible, produced], dim=1).repeat_interleave(K, 0)  # [R, S' + n]
            mask = mask[:, None, None]
        positions = (self.lengths - 1).repeat_interleave(K)[:, None]  # [R, 1]
        x = self.hidden_states(tokens.view(-1, 1), positions, mask)  # [R, 1, C]
        return self.best(x.flatten(0, 1))

    def hidden_states(
        self, tokens: Tensor, positions: Tensor | None, mask: Tensor | None, last: Tensor | None = None
    ) -> Tensor:
        """LayerNorm(x_L), see below."""
        return hidden_states(self.model, tokens, self.tree, positions, mask, last)

    def best(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """log p and ids of the W best words given LayerNorm(x_L): [R, C] -> each [R, W], best first."""
        V = self.model.config.vocab_size
        if V - len(self.banned) < self.n_words:
            raise ValueError(f"a vocabulary of {V} is too small for {self.n_words // 2} beams")
        two_rounds = getattr(self.model, "two_rounds", None)
        if two_rounds is not None:
            return two_rounds(x, self.n_words, self.banned)
        logits = exact_logits(x, output_matrix(self.model))  # [R, V]
        # log p = logit - log z with z = sum exp(logits), on a CPU a few rows at a time, so that they stay in its cache.
        parts = logits.split(16 if logits.device.type == "cpu" else len(logits))
        log_z = torch.cat([rows.logsumexp(dim=-1, keepdim=True) for rows in parts])  # [R, 1]
        logits[:, list(self.banned)] = -torch.inf
        best, words = largest(logits, self.n_words)
        return best - log_z, words


def hidden_states(
    model: GPT2,
    tokens: Tensor,
    tree: BeamTree,
    positions: Tensor | None = None,
    mask: Tensor | None = None,
    last: Tensor | None = None,
) -> Tensor:
    """LayerNorm(x_L) of tokens [B, T], added to the tree: [B, T, C]; at `last`, indices into B * T, [M, C]."""
    tokens, positions, mask = model.inputs(tokens, tree, positions, mask)
    begins = tree.length == 0
    x = model.wte(tokens) + model.wpe(positions)  # [B, T, C]
    for layer, block in enumerate(model.h):
        x = x + attention(block.attn, block.ln_1(x), tree, mask, begins)
        if last is not None and layer == len(model.h) - 1:
            x = x.flatten(0, 1).index_select(0, F.pad(last, (0, -len(last) % SHAPE_MULTIPLE)))
        x = x + block.mlp(block.ln_2(x))
    x = model.ln_f(x)
    return x if last is None else x[: len(last)]


def attention(attn: Attention, x: Tensor, tree: BeamTree, mask: Tensor | None, begins: bool) -> Tensor:
    """Attention.forward with a tree, [B, T, C] -> [B, T, C]. As a function it frees q, k and v before the MLP."""
    q, k, v = split_heads(attn.c_attn(x), attn.n_head)  # each [B, H, T, D]
    if begins and attn.kv_hook is not None:
        k, v = attn.kv_hook(k, v)  # [B, H, E + T, D]
    return attn.c_proj(join_heads(tree.attend(attn.layer, q, k, v, mask)))


def pack(model: GPT2) -> GPT2:
    """Prepare a frozen model for decoding only, in place; returns it.

    It must be on a CPU with its projections in bf16 (`training.round_frozen`) and without hooks (a LoRA is merged). Any
    other model is left unchanged, as is one that is packed already, and every model where PyTorch cannot pack.
    """
    packed = getattr(model, "two_rounds", None) is not None
    if (
        packed
        or model.wte.weight.device.type != "cpu"
        or model.h[0].mlp.c_fc.weight.dtype != torch.bfloat16
        or any(isinstance(m, Projection) and m.output_hook is not None for m in model.modules())
        or not can_pack()
    ):
        return model
    for block in model.h:
        block.attn.c_attn, block.attn.c_proj = PrepackedLinear(block.attn.c_attn), PrepackedLinear(block.attn.c_proj)
        block.mlp = PrepackedMLP(block.mlp)
    model.two_rounds = TwoRounds(model.wte.weight)
    return model
