"""The pooling ``convolution``: a mean of events, each mixed with its neighbours.

Letters: B rows of a batch, L events of all rows, C width of one event (its columns side by side).
"""

import torch
from fbgemm_gpu.split_table_batched_embeddings_ops_common import PoolingMode
from torch import Tensor

from models.layers.histories.jagged import row_numbers
from models.products import Linear
from models.tables.lookup import pool_rows
from models.tables.poolings import HistoryPooling, register_pooling


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
        row_L = row_numbers(offsets, len(events_LC))
        same_L1 = (row_L[1:] == row_L[:-1]).unsqueeze(1)
        edge = events_LC.new_zeros(min(1, len(events_LC)), events_LC.shape[1])
        before_LC = torch.cat([edge, events_LC[:-1] * same_L1])
        after_LC = torch.cat([events_LC[1:] * same_L1, edge])
        mixed_LC = self.kernel(torch.cat([before_LC, events_LC, after_LC], 1)).relu()
        return pool_rows(mixed_LC.float(), offsets, PoolingMode.MEAN)
