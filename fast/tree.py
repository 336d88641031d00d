"""The keys and values of beams, each stored once however many beams need it.

The beams of a prompt form a tree: the prompt is its trunk, and each step adds K leaves, a token for each beam. The
entries of a tree are stored next to each other, as if it were one sequence, and a table says which beam sees which:

    path[b, k, s]  =  is entry s on the way from the root of prompt b's tree to the leaf of its beam k?

So no key or value is copied when beams change places or branch; only `path` changes. In a step, a prompt's K tokens
attend as K queries of one sequence, with `path` as the mask. A leaf overwrites an entry that is on no beam's path any
more, and is appended only if there is none, so a tree is hardly larger than what its beams have read, and memory is
allocated as trees grow. Entries therefore have no order. Attention does not mind (a key contains its token's position);
a mask, which names a beam's entries in the order in which it read them, finds them by

    depth[b, s]  =  the number of entries before s on its path

Shapes: B prompts, K beams, R = B * K rows, S entries of a tree, as many as the largest has. The first S' are its trunk,
and S <= S' + n K after n steps. H, D, E, T as in gpt2.py.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2 import causal_mask


@dataclass
class BeamTree:
    """What KVCache is to the plain path. Inference only: it writes into its memory in place.

    room  entries allocated beyond the prompts'
    """

    room: int
    layers: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # k, v memory of each layer, [B, H, allocated, D]
    length: int = 0  # entries in use, S; all layers have the same number between two passes
    rows: Tensor | None = None  # [B, ..], what a hook remembers of each prompt; once there are beams [R, ..]
    path: Tensor | None = None  # [B, K, S] booleans; None until the prompts are read
    depth: Tensor | None = None  # [B, S], 0 .. S' + n - 1
    leaves: Tensor | None = None  # [R * H], where this step's keys and values go, as rows of D numbers of the memory
    bias: Tensor | None = None  # [B, 1, K, S], added to the scores: 0 on the path, -inf elsewhere

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Store k, v and attend to all entries.

        Prompts: q [B, H, T, D], k, v [B, H, E + T, D], mask [B or 1, 1, T, E + T] -> [B, H, T, D]
        Beams: q, k, v [R, H, 1, D], mask [R, 1, 1, S' + n] or None, in the order in which a beam read its entries
        """
        if self.path is None:
            return self.attend_in_prompts(layer, q, k, v, mask)
        B, K, S = self.path.shape
        if layer == 0:  # once for all layers
            seen = self.path
            if mask is not None:
                seen = seen & mask.reshape(B, K, -1).gather(2, self.depth[:, None].expand(B, K, S))
            self.bias = torch.zeros_like(seen, dtype=q.dtype).masked_fill(~seen, -torch.inf).unsqueeze(1)
        for memory, x in zip(self.layers[layer], (k, v)):
            memory.view(-1, x.size(-1)).index_copy_(0, self.leaves, x.reshape(-1, x.size(-1)))
        k, v = (memory[:, :, :S] for memory in self.layers[layer])  # each [B, H, S, D]
        # A prompt's K rows of one token become one row of K.
        q = q.unflatten(0, (B, K)).squeeze(3).transpose(1, 2)  # [B, H, K, D]
        # In a Llama several query heads share a head of keys and values.
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=self.bias, enable_gqa=q.size(1) != k.size(1))
        return y.transpose(1, 2).flatten(0, 1).unsqueeze(2)

    def attend_in_prompts(self, layer: int, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        # The free memory is zero-filled, because masked entries must not be NaN.
        self.layers.append(tuple(F.pad(x, (0, 0, 0, self.room)) for x in (k, v)))
        self.length = k.size(2)
        if mask is None and q.size(2) > 1:
            mask = causal_mask(q.size(2), k.size(2), q.device)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=q.size(1) != k.size(1))

    def branch(self, prompts: Tensor, beams: Tensor) -> None:
        """Before a step: keep these prompts [B], and extend these beams of each [B, K], repeats allowed."""
        B, K = beams.shape
        if self.path is None:
            trunk = torch.arange(self.length, device=beams.device).expand(len(self.layers[0][0]), -1)  # [B, S']
            self.depth, self.path = trunk, torch.ones_like(trunk, dtype=torch.bool).unsqueeze(1)
        if self.rows is not None:  # as in KVCache.select
            self.rows = self.rows[(prompts[:, None] * self.path.size(1) + beams).flatten()]  # [R, ..]
        if B < len(self.path):
            self.select(prompts)
        path = self.path.gather(1, beams[:, :, None].expand(-1, -1, self.length))
        path = F.pad(path, (0, K))  # [B, K, S + K], K entries more than there were
        dead = ~path.any(1)  # [B, S + K], at least K of each tree
        places = (dead & (dead.cumsum(1) <= K)).nonzero()[:, 1].view(B, K)  # the first K
        S = self.grow(max(self.length, int(places.max()) + 1))
        read = path[:1, :1].sum(2)  # [1, 1], as many entries as are on every beam's path
        self.depth = F.pad(self.depth, (0, K))[:, :S].scatter(1, places, read.expand(B, K))  # [B, S]
        self.path = path[:, :, :S].scatter(2, places[:, :, None], True)  # [B, K, S]
        _, H, room, _ = self.layers[0][0].shape
        trees = torch.arange(B * H, device=beams.device).view(B, 1, H)
        self.leaves = (trees * room + places[:, :, None]).flatten()

    def select(self, prompts: Tensor) -> None:
        """Keep these prompts' trees, moved within the memory that is allocated already."""
        n, used = len(prompts), self.length
        for layer, memories in enumerate(self.layers):
            for memory in memories:
                memory[:n, :, :used] = memory[:, :, :used].index_select(0, prompts)
            self.layers[layer] = tuple(memory[:n] for memory in memories)
        self.depth, self.path = self.depth[prompts], self.path[prompts]

    def grow(self, S: int) -> int:
        """Use S entries in all layers; returns S. If the memory is too small, it is reallocated for 3/2 S entries."""
        for layer, memories in enumerate(self.layers):
            if (room := memories[0].size(2)) < S:
                self.layers[layer] = tuple(F.pad(memory, (0, 0, 0, S + S // 2 - room)) for memory in memories)
        self.length = S
        return S
