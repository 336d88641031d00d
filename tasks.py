"""Task tokens: one frozen GPT-2, a shelf of prefixes, and a token in the input that says which prefix to put in front.

A task is a name and a prefix (Li & Liang 2021). Its token, written `<|name|>`, has an id that no text contains: V for
the first task of a shelf, V + 1 for the second, ... A row of tokens that begins with a task's token is read with that
task's prefix in front, and the token itself takes no position:

    <|e2e|> t_1 t_2 .. t_m      is read as      P_1 .. P_p t_1 t_2 .. t_m        t_1 at position p, as in prefix.py

A row without a task token is read by the plain GPT-2. The rows of one batch may call different tasks, or none. Shorter
prefixes are padded on the left, and a mask hides the padding and the task tokens (both dotted) from all tokens:

    a task of length 2      .  .  .  P1 P2   .  t1 t2 t3
    a task of length 5      P1 P2 P3 P4 P5   .  t1 t2 t3
    no task                 .  .  .  .  .   t1 t2 t3 t4

Only the tasks that a batch calls are computed, so gradients reach them alone. Use:

    shelf = Shelf(model.config, {"e2e": load_prefix("e2e.safetensors", model.config), "webnlg": another})
    with shelf.attached(model):
        logits = model(tokens)          # rows such as shelf.encode_prompt(tokenizer, "<|e2e|> name : Blue Spice")

harness/shelves.py keeps a shelf in a folder, a file a task. Left out: weights that differ row by row.

Shapes: B rows, R = B * K rows once K beams extend each, p the length of a row's prefix, P that of the longest that a
batch calls, n the number of tasks that it calls; L, H, D, T, S, V as in gpt2.py.
"""

import re

import tiktoken
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from e2e_data import encode_prompt
from gpt2 import GPT2Config, KVCache, causal_mask
from harness.files import InputError
from harness.vocabulary import END
from prefix import Infix, Prefix, PrefixHooks

TOKEN = re.compile(r"<\|(.*?)\|>")


class Shelf(PrefixHooks):
    """Prefixes of one model, by name. A prefix may be an infix or embedding-only.

    Raises InputError for a name that cannot be a token's, a name that is taken, or a prefix of another model.
    """

    kind = "shelf"

    def __init__(self, config: GPT2Config, tasks: dict[str, Prefix] | None = None):
        super().__init__(config)
        self.names: list[str] = []
        self.reverse: set[str] = set()  # the tasks that read a sentence and write its table
        self.prefixes = nn.ModuleList()
        self.place: Tensor | None = None  # [B], where in `current` each row's prefix is
        for name, prefix in (tasks or {}).items():
            self.add(name, prefix)

    def add(self, name: str, prefix: Prefix) -> None:
        """Put a task on the shelf."""
        check_name(name)
        if name in self.names:
            raise InputError(f"the task {name!r} is on the shelf already: choose another name")
        if prefix.config != self.config:
            raise InputError(f"the prefix of {name!r} was made for {prefix.config}, not for {self.config}")
        self.names.append(name)
        self.prefixes.append(prefix)

    def token(self, name: str) -> int:
        """The id of a task's token. Raises InputError for a task that is not on the shelf."""
        return self.config.vocab_size + self.index(name)

    def prefix(self, name: str) -> Prefix:
        """A task's prefix. Raises InputError for a task that is not on the shelf."""
        return self.prefixes[self.index(name)]

    def index(self, name: str) -> int:
        if name not in self.names:
            raise InputError(f"no task {name!r} on the shelf: it holds {', '.join(self.names) or 'none'}")
        return self.names.index(name)

    # ------------------------------------------------------------------- the method: two hooks on GPT-2

    def before_pass(
        self, tokens: Tensor, cache: KVCache | None, positions: Tensor | None, mask: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """GPT2.input_hook: find each row's task; its positions, and what it sees."""
        V = self.config.vocab_size
        if cache is not None and cache.length:
            return self.continue_rows(tokens, cache, positions, mask)
        task = tokens[:, 0] - V  # [B], below 0: no task
        if (tokens[:, 1:] >= V).any() or (task >= len(self.names)).any():
            raise InputError("a task token must come first in its row and name a task on this shelf")
        called = sorted({i for i in task.tolist() if i >= 0})
        if not called:
            self.current = None
            return tokens, positions, mask
        if positions is not None or mask is not None:
            raise ValueError("a shelf sets positions and mask itself")
        self.current, lengths = self.stack(called)  # [n + 1, P, 2 L, H, D], [n + 1]
        place_of = torch.full((len(self.names) + 1,), len(called), device=tokens.device)  # task -> place in the stack
        place_of[called] = torch.arange(len(called), device=tokens.device)
        self.place = place_of[task.clamp(min=-1)]  # [B]; -1, no task, is the last place, whose prefix is empty
        length = lengths.to(tokens.device)[self.place]  # [B]
        visible, positions, mask = self.begin_rows(tokens, task, length)
        if cache is not None:
            cache.rows = visible
        return tokens.where(tokens < V, 0), positions, mask

    def begin_rows(self, tokens: Tensor, task: Tensor, length: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What the rows [B, T] see, given their tasks and the lengths of their prefixes, each [B].

        Returns what all later tokens see of the first P + 1 entries, [B, P + 1]; the positions of the tokens, [B, T];
        and their mask, [B, 1, T, P + T].
        """
        P, T, device = self.current.size(1), tokens.size(1), tokens.device
        has_task = task[:, None] >= 0  # [B, 1]
        own = torch.arange(P, device=device) >= P - length[:, None]  # [B, P], its prefix without the filling
        visible = torch.cat([own, ~has_task], dim=1)  # [B, P + 1], and t_1, if it is not a task token
        mask = F.pad(visible, (0, T - 1), value=True)[:, None] & causal_mask(T, P + T, device)  # [B, T, P + T]
        mask[:, 0, P] = True  # a task token sees itself: nobody uses its output, but a softmax needs one key
        shift = length[:, None].expand(-1, T)  # [B, T]
        infix = [i for i, prefix in enumerate(self.prefixes) if isinstance(prefix, Infix)]
        if infix:  # its table does not see it, and is at the positions before it
            is_text = (tokens == self.config.end_token).cumsum(1) > 0  # [B, T]
            sees = is_text | ~torch.isin(task, torch.tensor(infix, device=device))[:, None]
            mask[:, :, :P] &= sees[:, :, None]
            shift = shift * sees
        positions = torch.arange(T, device=device) - has_task.long() + shift  # [B, T]
        return visible, self.clamp_padding(tokens, positions), mask[:, None]

    def clamp_padding(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """The positions [B, T], with those of padding kept inside the context.

        A short row with a long prefix is padded to a long row's length, perhaps beyond the context. Raises ValueError
        when a token that is not padding lies there.
        """
        is_end = tokens == self.config.end_token
        padding = F.pad(is_end[:, 1:] & is_end[:, :-1], (1, 0))  # [B, T], end tokens after an end token
        if ((positions >= self.config.n_positions) & ~padding).any():
            raise ValueError(f"a prefix and its tokens do not fit into {self.config.n_positions} positions")
        return positions.clamp(0, self.config.n_positions - 1)

    def continue_rows(
        self, tokens: Tensor, cache: KVCache, positions: Tensor | None, mask: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The same for tokens [R, T] that continue a cache. Its `rows` say what each sees of the first entries.

        positions  [R, T] as the caller counts: the tokens of the row that came before
        """
        if (tokens >= self.config.vocab_size).any():
            raise InputError("a task token must come first in its row")
        if cache.rows is None:  # no row called a task
            return tokens, positions, mask
        T, visible = tokens.size(1), cache.rows  # visible [R, P + 1]
        S = cache.length + T if mask is None else mask.size(-1)
        if mask is None:
            mask = causal_mask(T, S, tokens.device)
        mask = mask & F.pad(visible, (0, S - visible.size(1)), value=True)[:, None, None]  # [R, 1, T, S]
        if positions is None:
            hidden = (~visible).sum(1, keepdim=True)  # [R, 1]
            positions = torch.arange(cache.length, S, device=tokens.device) - hidden
            if positions.max() >= self.config.n_positions:
                raise ValueError(f"a prefix and its tokens do not fit into {self.config.n_positions} positions")
        else:
            positions = positions + visible.sum(1, keepdim=True) - 1  # with a task + p - 1, for its token; else + 1 - 1
        return tokens, positions, mask

    def put_in_front(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Attention.kv_hook:  k, v [B, H, T, D]  ->  each row's [P_k; k], [P_v; v]  [B, H, P + T, D]."""
        if self.current is None:
            return k, v
        prefix = self.current[:, :, 2 * layer : 2 * layer + 2].to(k.dtype)  # [n + 1, P, 2, H, D]
        prefix = prefix.permute(2, 0, 3, 1, 4).index_select(1, self.place)  # [2, B, H, P, D]
        return torch.cat([prefix[0], k], dim=2), torch.cat([prefix[1], v], dim=2)

    def stack(self, called: list[int]) -> tuple[Tensor, Tensor]:
        """The activations of these tasks, filled up in front to the same length, and at the end an empty prefix.

        Returns [n + 1, P, 2 L, H, D] and the lengths without the filling [n + 1].
        """
        called_ones = [self.prefixes[i].activations(self.model()) for i in called]  # each [P_i, 2 L, H, D]
        rows = [*called_ones, called_ones[0][:0]]
        lengths = [len(row) for row in rows]
        filled = [F.pad(row, (0, 0) * 3 + (max(lengths) - len(row), 0)) for row in rows]
        return torch.stack(filled), torch.tensor(lengths)

    # ------------------------------------------------------------------- text

    def encode_prompt(self, tokenizer: tiktoken.Encoding, request: str) -> list[int]:
        """Ids of a request: `<|e2e|> name : ...` calls the task e2e; without a token the plain GPT-2 is asked.

        The text after the token is encoded as in e2e_data.py, a task token inside it as ordinary text. Raises
        InputError for a task that is not on the shelf.
        """
        name, source = split_request(request)
        return ([] if name is None else [self.token(name)]) + encode_prompt(tokenizer, source)

    def prompt_len(self, prompt: list[int]) -> int:
        """The tokens of a prompt without its task's token."""
        return len(prompt) - (prompt[0] >= self.config.vocab_size)


def split_request(request: str) -> tuple[str | None, str]:
    """`<|e2e|> name : Blue Spice` -> ("e2e", "name : Blue Spice"); a request without a token -> (None, request)."""
    match = TOKEN.match(request.lstrip())
    if match is None:
        return None, request
    return match[1], request.lstrip()[match.end() :].strip()


def check_name(name: str) -> None:
    """Raise InputError unless `<|name|>` can be a task's token."""
    if not re.fullmatch(r"[A-Za-z0-9-]{1,64}", name) or f"<|{name}|>" == END:
        raise InputError(
            f"{name[:80]!r} cannot be a task's name: use up to 64 letters, digits and '-', and not GPT-2's endoftext"
        )
