"""The pooling ``attention``: a weighted sum of events, the candidate deciding what each weighs.

Letters: B rows of a batch, L events of all rows, C width of one event (its columns side by side), H hidden width,
N candidates of one history.
"""

from itertools import pairwise
from typing import cast

import torch
from fbgemm_gpu.split_table_batched_embeddings_ops_common import PoolingMode
from torch import Tensor, nn

from models.layers.histories.jagged import Rows
from models.products import Linear, linear
from models.tables.lookup import pool_rows
from models.tables.poolings import HistoryPooling, register_pooling

_HIDDEN = 64
_POSITIONS = 256
_CACHED_EVENTS = 1 << 12


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
        rows = Rows.of(offsets.long(), len(events_LC))
        product_LQ = candidate_BQ.index_select(0, rows.row_L) * events_LC[:, : self.query]
        hidden_LH = self.event(torch.cat([events_LC, product_LQ], 1))
        hidden_LH = hidden_LH + self.candidate(candidate_BQ).index_select(0, rows.row_L)
        hidden_LH = hidden_LH + self._positions(rows)
        return pool_rows(self.score(hidden_LH).float() * events_LC, rows.offsets, PoolingMode.SUM)

    def _positions(self, rows: Rows) -> Tensor:
        return cast(Tensor, self.position(rows.from_newest_L.clamp(max=_POSITIONS - 1)))

    def work(self, events: int) -> dict[str, int]:
        """As of the base, but the candidate is projected once."""
        return super().work(events) | {"candidate": 2 * self.candidate.weight.numel()}

    def pool_candidates(self, candidate_BNQ: Tensor, events_LC: Tensor, offsets: Tensor) -> Tensor:
        """Terms without the candidate are computed once; products in pieces that fit into the cache."""
        rows = Rows.of(offsets.long(), len(events_LC))
        event_weight_HC, product_weight_HQ = self.event.weight.tensor_split((events_LC.shape[1],), 1)
        alone_LH = linear(events_LC, event_weight_HC, self.event.bias) + self._positions(rows)
        pooled = []
        for b, (start, stop) in enumerate(pairwise(rows.offsets.tolist())):
            own_LC, own_LH = events_LC[start:stop], alone_LH[start:stop]
            for piece_NQ in torch.split(candidate_BNQ[b], max(1, _CACHED_EVENTS // max(1, stop - start))):
                product_NLQ = piece_NQ.unsqueeze(1) * own_LC[:, : self.query]
                hidden_NLH = linear(product_NLQ, product_weight_HQ) + own_LH + self.candidate(piece_NQ).unsqueeze(1)
                weights_NL = self.score(hidden_NLH).squeeze(2).float()
                with torch.autocast(events_LC.device.type, enabled=False):
                    pooled.append(weights_NL @ own_LC)
        return torch.cat(pooled).view(*candidate_BNQ.shape[:2], -1)
