"""What the self-attentive poolings of histories share: tokens, jagged attention, relative time and position.

The events of a row and its candidate are one sequence, oldest event first and the candidate last. A token attends to
itself and to tokens before it, so no event depends on the candidate: events are computed once for all candidates of a
history. The result is read from the candidate's token.

Letters: B rows of a batch, L events of all rows, C width of one event, Q width of the candidate, S width of the other
columns of an event, N candidates of one history, H width of a token, h heads, d width of a head, e width of a head's
keys, P events of a piece and K events of its context (see :class:`~models.layers.histories.jagged.Block`).
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import ClassVar, cast

import torch
from fbgemm_gpu.split_table_batched_embeddings_ops_common import PoolingMode
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.layers.histories.jagged import Block, Blocks, Rows
from models.products import Linear, linear
from models.tables.lookup import pool_rows
from models.tables.poolings import HistoryPooling

WINDOW = 64
"""An event attends to itself and the 63 before it, so that the work grows with the events. The candidate attends to
all of them."""
WIDTH = 32
_HEADS = 2
HEAD_WIDTH = WIDTH // _HEADS
_LAYERS = 2
_TIME = 4
_POSITIONS = 256
_CACHED_SCORES = 1 << 18
_HIDDEN = -1e30
"""Added to the score of a token that must not be seen; its weight is then exactly 0."""

_recomputed = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)


@dataclass(frozen=True)
class Events:
    """What a layer needs to know of the events of a batch besides their tokens.

    Attributes:
        side_LS: Their columns that have no counterpart in the candidate, such as action and age.
    """

    side_LS: Tensor
    rows: Rows
    blocks: Blocks


@dataclass(frozen=True)
class _Asking:
    """Candidates that attend: (h, B, e) queries, (h, B) scores of themselves, and (h, B, d) values of themselves.

    With N candidates of each row, (h, B, N, e) and so on.
    """

    query: Tensor
    score: Tensor
    value: Tensor


class AttentionLayer(nn.Module, ABC):
    """One layer: every token attends to itself and to earlier ones.

    The score of a pair of tokens is the product of query and key, plus a bias for the number of tokens between them.
    If events have further columns, such as their age, a second product is added, of a query and a key computed from
    these columns alone: a bias that depends on how long ago both events were.

    Args:
        side: S, the width of the further columns of an event; 0 if there are none.
    """

    def __init__(self, side: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.key_value = Linear(WIDTH, 2 * WIDTH)
        self.position = nn.Embedding(_POSITIONS, _HEADS)
        nn.init.zeros_(self.position.weight)
        self.time = Linear(side, 2 * _HEADS * _TIME, bias=False) if side else None
        self.now = nn.Parameter(torch.randn(_HEADS * _TIME)) if side else None

    @abstractmethod
    def keys(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(..., H) keys and (..., H) values of tokens (..., H)."""

    @abstractmethod
    def queries(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(..., H) queries of tokens (..., H), and what :meth:`combine` needs of these tokens."""

    @abstractmethod
    def weights(self, scores: Tensor) -> Tensor:
        """Weights from scores, over the last dimension."""

    @abstractmethod
    def row_weights(self, scores_Lh: Tensor, own_Bh: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
        """:meth:`weights` of jagged scores: of the events of each row, and of the candidate itself."""

    @abstractmethod
    def combine(self, x: Tensor, attended: Tensor, own: Tensor) -> Tensor:
        """(..., H) the tokens after this layer.

        Args:
            attended: (..., H) weighted sums of values.
            own: What :meth:`queries` gave.
        """

    def work(self, tokens: int, attending: int, pairs: int) -> dict[str, int]:
        """Multiplications and additions by name of a submodule, those of pairs at ``position``.

        Args:
            attending: How many of the ``tokens`` attend to others.
        """
        width = 2 * HEAD_WIDTH + (0 if self.time is None else _TIME)
        found = {"position": 2 * pairs * _HEADS * width}
        for name, module in self.named_children():
            if isinstance(module, nn.Linear):
                times = tokens if module in (self.key_value, self.time) else attending
                found[name] = 2 * module.weight.numel() * times
        return found

    def forward(self, x_LH: Tensor, candidate: Tensor, events: Events, *, last: bool) -> tuple[Tensor, Tensor]:
        """The events and the candidates, (B, H) or (B, N, H), after this layer; events stay if it is the ``last``."""
        key_LH, value_LH = self.keys(x_LH)
        time_L2 = x_LH.new_empty(len(x_LH), 0) if self.time is None else self.time(events.side_LS)
        asked_time_L, told_time_L = time_L2.tensor_split(2, 1)
        key_hLe, value_hLd = _with_time(key_LH, told_time_L), _heads(value_LH)
        new_candidate = self._read(candidate, key_hLe, value_hLd, events)
        if last:
            return x_LH, new_candidate
        query_LH, own_L = self.queries(x_LH)
        attended_LH = self._attend(_with_time(query_LH, asked_time_L), key_hLe, value_hLd, events.blocks)
        return self.combine(x_LH, attended_LH, own_L), new_candidate

    def _attend(self, query_hLe: Tensor, key_hLe: Tensor, value_hLd: Tensor, blocks: Blocks) -> Tensor:
        """(L, H) what events get from events, in parts that fit into the cache.

        The scores of a part are computed a second time for its gradient: to store those of all parts takes more memory
        than everything else in a ranker, and saves little time.
        """
        parts = [part for block in blocks.blocks for part in _parts(block)]
        sizes, context_sizes = [p.pieces * p.length for p in parts], [p.pieces * p.context for p in parts]
        queries = torch.split(query_hLe.index_select(1, blocks.events), sizes, 1)
        keys = torch.split(key_hLe.index_select(1, blocks.contexts), context_sizes, 1)
        values = torch.split(value_hLd.index_select(1, blocks.contexts), context_sizes, 1)
        attended = [value_hLd[:, :0]]
        bias: dict[tuple[int, int], Tensor] = {}
        for part, *tensors in zip(parts, queries, keys, values, strict=True):
            shape = (part.length, part.context)
            if shape not in bias:
                bias[shape] = self._bias(part.distances(query_hLe.device))
            query, key, value = (x.view(_HEADS, part.pieces, -1, x.shape[2]) for x in tensors)
            attended.append(_recomputed(self._attend_part, query, key, value, bias[shape]))
        return torch.cat(attended, 1).index_select(1, blocks.places_L).transpose(0, 1).flatten(1)

    def _bias(self, distances_PK: Tensor) -> Tensor:
        """(h, 1, P, K) for positions; a token that must not be seen has a hidden one."""
        seen_PK = (distances_PK >= 0) & (distances_PK < WINDOW)
        bias_PKh: Tensor = self.position(distances_PK.clamp(0, _POSITIONS - 1))
        return bias_PKh.permute(2, 0, 1).masked_fill(~seen_PK, _HIDDEN).unsqueeze(1)

    def _attend_part(self, query_hRPe: Tensor, key_hRKe: Tensor, value_hRKd: Tensor, bias_h1PK: Tensor) -> Tensor:
        """(h, R x P, d)."""
        weights_hRPK = self.weights(query_hRPe @ key_hRKe.mT + bias_h1PK)
        attended_hRPd = weights_hRPK.to(value_hRKd.dtype) @ value_hRKd
        return attended_hRPd.flatten(1, 2)

    def _read(self, candidate: Tensor, key_hLe: Tensor, value_hLd: Tensor, events: Events) -> Tensor:
        """The candidates after this layer: each attends to all events of its row and to itself."""
        key, value = self.keys(candidate)
        query, own = self.queries(candidate)
        now = query.new_empty(*query.shape[:-1], 0)
        if self.now is not None:
            now = self.now.to(query.dtype).expand(*query.shape[:-1], -1)
        query_he, key_he = _with_time(query, now).float(), _with_time(key, torch.zeros_like(now)).float()
        own_h = (query_he * key_he).sum(-1) + self.position.weight[0].view(-1, *[1] * (query.dim() - 1))
        bias_hL = self.position((events.rows.from_newest_L + 1).clamp(max=_POSITIONS - 1)).t()
        asking = _Asking(query_he, own_h, _heads(value).float())
        read = self._read_rows if candidate.dim() == 2 else self._read_candidates
        with torch.autocast(candidate.device.type, enabled=False):
            attended_hd = read(asking, key_hLe.float(), value_hLd.float(), bias_hL, events.rows)
        return self.combine(candidate, attended_hd.movedim(0, -2).flatten(-2), own)

    def _read_rows(self, asking: _Asking, key_hLe: Tensor, value_hLd: Tensor, bias_hL: Tensor, rows: Rows) -> Tensor:
        """(h, B, d) for one candidate of each row, by sums over the events of rows."""
        scores_hL = (asking.query.index_select(1, rows.row_L) * key_hLe).sum(2) + bias_hL
        weights_Lh, own_Bh = self.row_weights(scores_hL.t(), asking.score.t(), rows)
        weighted_LH = (weights_Lh.t().unsqueeze(2) * value_hLd).transpose(0, 1).flatten(1)
        return _heads(pool_rows(weighted_LH, rows.offsets, PoolingMode.SUM)) + own_Bh.t().unsqueeze(2) * asking.value

    def _read_candidates(
        self, asking: _Asking, key_hLe: Tensor, value_hLd: Tensor, bias_hL: Tensor, rows: Rows
    ) -> Tensor:
        """(h, B, N, d) for N candidates of each row, in parts that fit into the cache."""
        attended = []
        for b, (start, stop) in enumerate(pairwise(rows.offsets.tolist())):
            key_hel, value_hld = key_hLe[:, start:stop].mT, value_hLd[:, start:stop]
            size = max(1, _CACHED_SCORES // (_HEADS * (stop - start + 1)))
            parts = (torch.split(x[:, b], size, 1) for x in (asking.query, asking.score, asking.value))
            for query_hne, own_hn, value_hnd in zip(*parts, strict=True):
                scores_hnl = query_hne @ key_hel + bias_hL[:, start:stop].unsqueeze(1)
                weights = self.weights(torch.cat([scores_hnl, own_hn.unsqueeze(2)], 2))
                attended.append(weights[..., :-1] @ value_hld + weights[..., -1:] * value_hnd)
        return torch.cat(attended, 1).view_as(asking.value)


class SelfAttention(HistoryPooling):
    """Base of poolings that read events and candidate as one sequence through :class:`AttentionLayer` s.

    Args:
        query: Q.
        side: S.
    """

    needs_candidate = True
    layer: ClassVar[type[AttentionLayer]]

    def __init__(self, query: int, side: int) -> None:
        super().__init__(query, side)
        self.query = query
        self.token = Linear(query + side, WIDTH)
        self.now = nn.Parameter(torch.zeros(WIDTH))
        self.layers = nn.ModuleList([self.layer(side) for _ in range(_LAYERS)])
        self.out = Linear(WIDTH, query + side)

    def forward(self, candidate: Tensor, events_LC: Tensor, offsets: Tensor) -> Tensor:
        """(B, C) for (B, Q) candidates, or (B, N, C) for (B, N, Q); zeros where a row has no events."""
        rows = Rows.of(offsets.long(), len(events_LC))
        events = Events(events_LC[:, self.query :], rows, Blocks.of(rows, WINDOW))
        x_LH = self.token(events_LC)
        x = linear(candidate, self.token.weight[:, : self.query], self.token.bias) + self.now
        for number, layer in enumerate(self.layers, 1):
            x_LH, x = layer(x_LH, x, events, last=number == len(self.layers))
        pooled = self.out(x).float()
        present_B = rows.offsets.diff() > 0
        return torch.where(present_B.view(-1, *[1] * (pooled.dim() - 1)), pooled, 0.0)

    def pool_candidates(self, candidate_BNQ: Tensor, events_LC: Tensor, offsets: Tensor) -> Tensor:
        """(B, N, C); events attend to events once for all candidates."""
        pooled: Tensor = self(candidate_BNQ, events_LC, offsets)
        return pooled

    def work(self, events: int) -> dict[str, int]:
        """As of the base; each token is projected once, and only the candidate attends in the last layer."""
        tokens = events + 1
        found = {"token": 2 * self.token.weight.numel() * tokens, "out": 2 * self.out.weight.numel()}
        seen = sum(min(newer + 1, WINDOW) for newer in range(events))
        for number, layer in enumerate(self.layers, 1):
            last = number == len(self.layers)
            work = cast(AttentionLayer, layer).work(tokens, 1 if last else tokens, tokens + (0 if last else seen))
            found |= {f"layers.{number - 1}.{name}": flops for name, flops in work.items()}
        return found


def _heads(x: Tensor) -> Tensor:
    """(h, ..., d) of (..., H)."""
    return x.view(*x.shape[:-1], _HEADS, x.shape[-1] // _HEADS).movedim(-2, 0)


def _with_time(x: Tensor, time: Tensor) -> Tensor:
    """(h, ..., e): columns for time beside those of queries or keys, so that one product computes both terms."""
    return torch.cat([_heads(x), _heads(time)], -1) if time.shape[-1] else _heads(x)


def _parts(block: Block) -> Iterator[Block]:
    """The block in parts whose scores fit into the cache."""
    pieces = max(1, _CACHED_SCORES // (_HEADS * block.length * block.context))
    for start in range(0, block.pieces, pieces):
        yield replace(block, pieces=min(pieces, block.pieces - start))
