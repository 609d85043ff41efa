"""The pooling ``hstu``: hierarchical sequential transduction units (Zhai et al., arXiv 2402.17152).

Letters: B rows of a batch, L events of all rows, H width of a token, h heads.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from models.layers.histories.jagged import Rows
from models.layers.histories.self_attention import WIDTH, WINDOW, AttentionLayer, SelfAttention
from models.products import Linear
from models.tables.poolings import register_pooling


class HstuLayer(AttentionLayer):
    """Pointwise aggregated attention: ``x + f2(norm(A V) * U)`` with ``A = SiLU(Q K^T + bias) / 64``.

    ``Q``, ``K``, ``V`` and the gate ``U`` are SiLU of a matrix product of the normalised tokens. There is no softmax,
    so the weights of a token need not sum to 1: how many events match is not lost.
    """

    def __init__(self, side: int) -> None:
        super().__init__(side)
        self.query_gate = Linear(WIDTH, 2 * WIDTH)
        self.norm_attended = nn.LayerNorm(WIDTH)
        self.mix = Linear(WIDTH, WIDTH)

    def keys(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(..., H) keys, (..., H) values."""
        key, value = F.silu(self.key_value(self.norm(x))).chunk(2, -1)
        return key, value

    def queries(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(..., H) queries, (..., H) gates."""
        query, gate = F.silu(self.query_gate(self.norm(x))).chunk(2, -1)
        return query, gate

    def weights(self, scores: Tensor) -> Tensor:
        return F.silu(scores)

    def row_weights(self, scores_Lh: Tensor, own_Bh: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
        return self.weights(scores_Lh), self.weights(own_Bh)

    def combine(self, x: Tensor, attended: Tensor, own: Tensor) -> Tensor:
        """(..., H); ``own`` are the gates."""
        mixed: Tensor = self.mix(self.norm_attended(attended / WINDOW) * own)
        return x + mixed


@register_pooling("hstu")
class Hstu(SelfAttention):
    """Layers of pointwise aggregated attention over the events, the candidate last (arXiv 2402.17152)."""

    layer = HstuLayer
