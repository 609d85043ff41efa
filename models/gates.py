"""A learned gate on every feature: what reaches exactly zero is a feature that the ranker does without.

Letters: B rows of a batch, F sparse features, G dense features, D width of all dense features together.
"""

import torch
from torch import Tensor, nn

from data_pipelines.batch import Schema


class FeatureGates(nn.Module):
    """Multiplies each feature, wherever interaction, tower and wide part read it, by one number that starts at 1.

    The rows that attention reads are not gated, only its result.
    """

    widths: Tensor

    def __init__(self, schema: Schema) -> None:
        super().__init__()
        self.sparse_F = nn.Parameter(torch.ones(len(schema.sparse)))
        self.dense_G = nn.Parameter(torch.ones(len(schema.dense)))
        self._names = [feature.name for feature in schema.sparse]
        self.register_buffer(
            "widths", torch.tensor([f.width for f in schema.dense], dtype=torch.int64), persistent=False
        )

    def forward(
        self, pooled: dict[str, Tensor], dense_BD: Tensor, wide: dict[str, Tensor]
    ) -> tuple[dict[str, Tensor], Tensor, dict[str, Tensor]]:
        """The same with every feature multiplied by its gate."""
        gates = dict(zip(self._names, self.sparse_F.unbind(), strict=True))
        return (
            {name: value * gates[name] for name, value in pooled.items()},
            dense_BD * self.dense_G.repeat_interleave(self.widths),
            {name: value * gates[name] for name, value in wide.items()},
        )
