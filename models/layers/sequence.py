"""Poolings of histories other than sums: the last event, attention with the candidate as query, local convolution.

Letters: B rows of a batch, L events of all rows, C width of one event (its columns side by side), H hidden width,
N candidates of one history.
"""

from typing import cast

import torch
from fbgemm_gpu.split_table_batched_embeddings_ops_common import PoolingMode
from torch import Tensor, nn

from data_pipelines.batch import Schema, SparseSpec
from data_pipelines.errors import UserError
from models.layers.part import Part
from models.products import Linear, linear
from models.tables.config import TablesConfig
from models.tables.lookup import Embedded, pool_rows
from models.tables.poolings import SIMPLE, HistoryPooling, pooling_class, register_pooling

_HIDDEN = 64
_POSITIONS = 256
_CACHED_EVENTS = 1 << 12


def row_numbers(offsets: Tensor) -> Tensor:
    """(L,) the row each event belongs to."""
    lengths = offsets.diff()
    return torch.arange(len(lengths), device=offsets.device).repeat_interleave(lengths)


def last_event(events_LC: Tensor, offsets: Tensor) -> Tensor:
    """(B, C) the newest event of each row; zeros where a row has none."""
    last_B = offsets[1:].long() - 1
    present_B1 = (offsets.diff() > 0).unsqueeze(1)
    if not len(events_LC):
        return events_LC.new_zeros(len(last_B), events_LC.shape[1])
    return torch.where(present_B1, events_LC.index_select(0, last_B.clamp(min=0)), 0.0)


@register_pooling("attention")
class TargetAttention(HistoryPooling):
    """Deep Interest Network (arXiv 1706.06978): the candidate decides how much each past event counts.

    An event's weight is a small MLP of candidate, event, their product, side columns such as the event's age, and its
    position counted from the newest. As in the paper there is no softmax, so that the weights need not sum to 1: how
    much of a history matches the candidate is learned too.

    Args:
        query: Width of the candidate; the first columns of an event correspond to it.
        side: Width of the columns of an event that have no counterpart in the candidate.
    """

    needs_candidate = True

    def __init__(self, query: int, side: int) -> None:
        super().__init__(query, side)
        self.query = query
        self.candidate = Linear(query, _HIDDEN, bias=False)
        self.event = Linear(2 * query + side, _HIDDEN)
        self.position = nn.Embedding(_POSITIONS, _HIDDEN)
        nn.init.zeros_(self.position.weight)
        self.score = nn.Sequential(nn.ReLU(), Linear(_HIDDEN, 1))

    def forward(self, candidate_BQ: Tensor, events_LC: Tensor, offsets: Tensor) -> Tensor:
        """(B, C) weighted sums of the events; zeros where a row has none."""
        offsets = offsets.long()
        row_L = row_numbers(offsets)
        product_LQ = candidate_BQ.index_select(0, row_L) * events_LC[:, : self.query]
        hidden_LH = self.event(torch.cat([events_LC, product_LQ], 1))
        hidden_LH = hidden_LH + self.candidate(candidate_BQ).index_select(0, row_L)
        hidden_LH = hidden_LH + self._positions(offsets)
        return pool_rows(self.score(hidden_LH).float() * events_LC, offsets, PoolingMode.SUM)

    def _positions(self, offsets: Tensor) -> Tensor:
        from_newest_L = offsets[1:].index_select(0, row_numbers(offsets)) - 1
        from_newest_L = from_newest_L - torch.arange(len(from_newest_L), device=offsets.device)
        return cast(Tensor, self.position(from_newest_L.clamp(max=_POSITIONS - 1)))

    def pool_candidates(self, candidate_BNQ: Tensor, events_LC: Tensor, offsets: Tensor) -> Tensor:
        """Terms without the candidate are computed once; products in pieces that fit into the cache."""
        offsets = offsets.long()
        event_weight_HC, product_weight_HQ = self.event.weight.tensor_split((events_LC.shape[1],), 1)
        alone_LH = linear(events_LC, event_weight_HC, self.event.bias) + self._positions(offsets)
        pooled = []
        for b, (start, stop) in enumerate(zip(offsets.tolist(), offsets[1:].tolist(), strict=False)):
            own_LC, own_LH = events_LC[start:stop], alone_LH[start:stop]
            for piece_NQ in torch.split(candidate_BNQ[b], max(1, _CACHED_EVENTS // max(1, stop - start))):
                product_NLQ = piece_NQ.unsqueeze(1) * own_LC[:, : self.query]
                hidden_NLH = linear(product_NLQ, product_weight_HQ) + own_LH + self.candidate(piece_NQ).unsqueeze(1)
                weights_NL = self.score(hidden_NLH).squeeze(2).float()
                with torch.autocast(events_LC.device.type, enabled=False):
                    pooled.append(weights_NL @ own_LC)
        return torch.cat(pooled).view(*candidate_BNQ.shape[:2], -1)


@register_pooling("convolution")
class LocalConvolution(HistoryPooling):
    """The mean over a history of a convolution of each event and its two neighbours: local connectivity.

    Events of different rows never mix: each history is padded with zeros.
    """

    def __init__(self, query: int, side: int) -> None:
        super().__init__(query, side)
        width = query + side
        self.kernel = Linear(3 * width, width)

    def forward(self, candidate_BQ: Tensor, events_LC: Tensor, offsets: Tensor) -> Tensor:
        """(B, C)."""
        offsets = offsets.long()
        row_L = row_numbers(offsets)
        same_L1 = (row_L[1:] == row_L[:-1]).unsqueeze(1)
        edge = events_LC.new_zeros(min(1, len(events_LC)), events_LC.shape[1])
        before_LC = torch.cat([edge, events_LC[:-1] * same_L1])
        after_LC = torch.cat([events_LC[1:] * same_L1, edge])
        mixed_LC = self.kernel(torch.cat([before_LC, events_LC, after_LC], 1)).relu()
        return pool_rows(mixed_LC.float(), offsets, PoolingMode.MEAN)


class Histories(Part):
    """Pools every history that is looked up as a sequence, all its columns together.

    Raises:
        UserError: A pooling needs a candidate, and no feature of the row shares a table with any of its columns.
    """

    def __init__(self, schema: Schema, config: TablesConfig) -> None:
        super().__init__()
        self.columns: dict[str, list[str]] = {}
        self.widths: dict[str, list[int]] = {}
        self.candidates: dict[str, list[str]] = {}
        self.last: list[str] = []
        self.pools = nn.ModuleDict()
        sequences: dict[str, list[SparseSpec]] = {}
        for feature in schema.sparse:
            if feature.sequence and config.pooling_of(feature) not in ("sum", "mean"):
                sequences.setdefault(feature.sequence, []).append(feature)
        for history, features in sequences.items():
            kind = config.pooling.get(history)
            if kind is None or kind in SIMPLE:
                self.last += [feature.name for feature in features]
                continue
            candidates = {feature.name: _candidate(schema, feature) for feature in features}
            features = sorted(features, key=lambda feature: candidates[feature.name] is None)
            dims = {feature.name: config.table_dim(feature.table) for feature in features}
            query = [feature.name for feature in features if candidates[feature.name]]
            pooling = pooling_class(kind)
            if pooling.needs_candidate and not query:
                raise UserError(
                    f"model.pooling.{history}: {kind} needs a candidate; let a feature share a table with one of "
                    f"{', '.join(dims)}, or choose another pooling."
                )
            self.columns[history] = list(dims)
            self.widths[history] = list(dims.values())
            self.candidates[history] = [cast(str, candidates[name]) for name in query]
            width, query_width = sum(dims.values()), sum(dims[name] for name in query)
            key = f"history:{history}".replace(".", ":")
            self.pools[key] = pooling(query_width, width - query_width)

    def forward(self, embedded: Embedded) -> dict[str, Tensor]:
        """(B, d) by feature name, for every feature in ``embedded.sequences``.

        If ``embedded.pooled`` holds (B, N, d), N candidates of each of the B histories, poolings that read the
        candidate give (B, N, d) too.
        """
        pooled = {name: last_event(*embedded.sequences[name]) for name in self.last if name in embedded.sequences}
        for (history, columns), pool in zip(self.columns.items(), self.pools.values(), strict=True):
            if columns[0] not in embedded.sequences:
                continue
            events_LC = torch.cat([embedded.sequences[name][0] for name in columns], 1)
            offsets = embedded.sequences[columns[0]][1]
            if cast(HistoryPooling, pool).needs_candidate:
                candidate = torch.cat([embedded.pooled[name] for name in self.candidates[history]], -1)
            else:
                candidate = events_LC.new_empty(len(offsets) - 1, 0)
            pool_events = cast(HistoryPooling, pool).pool_candidates if candidate.dim() == 3 else pool
            pooled_BC = pool_events(candidate, events_LC, offsets)
            pooled |= dict(zip(columns, torch.split(pooled_BC, self.widths[history], -1), strict=True))
        return pooled


def _candidate(schema: Schema, column: SparseSpec) -> str | None:
    """The feature of the row itself that indexes the same table; an id is preferred to a bag."""
    same = [feature for feature in schema.sparse if feature.table == column.table and feature.sequence is None]
    same.sort(key=lambda feature: feature.kind != "id")
    return same[0].name if same else None
