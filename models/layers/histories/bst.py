"""The pooling ``bst``: the behavior sequence transformer (Chen et al., arXiv 1905.06874).

Letters: B rows of a batch, L events of all rows, H width of a token, h heads.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers.histories.jagged import Rows
from models.layers.histories.self_attention import HEAD_WIDTH, WIDTH, AttentionLayer, SelfAttention
from models.products import Linear
from models.tables.poolings import register_pooling


class BstLayer(AttentionLayer):
    """A transformer block: softmax attention, then a feed-forward network of two matrices with a leaky ReLU.

    Unlike in the paper, tokens are normalised before each of the two and not after, which trains without a warm-up;
    and events do not attend to the candidate.
    """

    def __init__(self, side: int) -> None:
        super().__init__(side)
        self.query = Linear(WIDTH, WIDTH)
        self.mix = Linear(WIDTH, WIDTH)
        self.norm_mixed = nn.LayerNorm(WIDTH)
        self.forward_in = Linear(WIDTH, 2 * WIDTH)
        self.forward_out = Linear(2 * WIDTH, WIDTH)

    def keys(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(..., H) keys, (..., H) values."""
        key, value = self.key_value(self.norm(x)).chunk(2, -1)
        return key, value

    def queries(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(..., H) queries, divided by the square root of a head's width; and (..., 0), as it has no gates."""
        query = self.query(self.norm(x)) / HEAD_WIDTH**0.5
        return query, query[..., :0]

    def weights(self, scores: Tensor) -> Tensor:
        return scores.softmax(-1)

    def row_weights(self, scores_Lh: Tensor, own_Bh: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
        """A softmax over the events of each row and the candidate."""
        offsets = rows.offsets
        with torch.no_grad():
            largest_Bh = torch.segment_reduce(scores_Lh, "max", offsets=offsets, axis=0, initial=-torch.inf)
            largest_Bh = torch.maximum(largest_Bh, own_Bh)
        events_Lh = (scores_Lh - largest_Bh.index_select(0, rows.row_L)).exp()
        own_Bh = (own_Bh - largest_Bh).exp()
        total_Bh = own_Bh + torch.segment_reduce(events_Lh, "sum", offsets=offsets, axis=0, initial=0)
        return events_Lh / total_Bh.index_select(0, rows.row_L), own_Bh / total_Bh

    def combine(self, x: Tensor, attended: Tensor, own: Tensor) -> Tensor:
        """(..., H)."""
        x = x + self.mix(attended)
        inner = F.leaky_relu(self.forward_in(self.norm_mixed(x)))
        mixed: Tensor = self.forward_out(inner)
        return x + mixed


@register_pooling("bst")
class Bst(SelfAttention):
    """Transformer blocks over the events, the candidate last (arXiv 1905.06874)."""

    layer = BstLayer
