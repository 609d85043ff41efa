"""A learned gate on every feature: the ranker does not use a feature whose gate is exactly zero.

Letters: B rows of a batch, F sparse features, G dense features, D width of all dense features together.
"""

import math

import torch
from torch import Tensor, nn

from data_pipelines.batch import Schema
from models.layers.part import Part

_LOW, _HIGH, _TEMPERATURE = -0.1, 1.1, 2 / 3
_SPEED = 40.0
_FIRST_LOGIT = 1.0


class FeatureGates(Part):
    """Multiplies each feature, wherever interaction, tower and wide part read it, by a hard-concrete gate.

    In training a gate is random for each row, and mostly 0 or 1, so that a ranker cannot compensate for a small gate
    with large embeddings. In evaluation it is its stretched mean, between 0 and 1, and exactly 0 once its logit is low
    enough (Louizos, Welling & Kingma, arXiv 1712.01312). The parameters are logits divided by 40: one optimizer step
    moves a logit by forty times its usual size. The events that attention reads are not gated, only its result.
    """

    widths: Tensor

    def __init__(self, schema: Schema) -> None:
        super().__init__()
        self.sparse_F = nn.Parameter(torch.full((len(schema.sparse),), _FIRST_LOGIT / _SPEED))
        self.dense_G = nn.Parameter(torch.full((len(schema.dense),), _FIRST_LOGIT / _SPEED))
        self.names = schema.feature_names
        widths = torch.tensor([feature.width for feature in schema.dense], dtype=torch.int64)
        self.register_buffer("widths", widths, persistent=False)

    def forward(
        self, pooled: dict[str, Tensor], dense_BD: Tensor, wide: dict[str, Tensor]
    ) -> tuple[dict[str, Tensor], Tensor, dict[str, Tensor]]:
        """The inputs, with every feature multiplied by its gate."""
        gates = dict(zip(self.names, self._sample(self.sparse_F, len(dense_BD)).unbind(1), strict=False))
        dense_gates_BG = self._sample(self.dense_G, len(dense_BD))
        return (
            {name: value * gates[name].unsqueeze(1) for name, value in pooled.items()},
            dense_BD * dense_gates_BG.repeat_interleave(self.widths, 1, output_size=dense_BD.shape[1]),
            {name: value * gates[name].unsqueeze(1) for name, value in wide.items()},
        )

    def _sample(self, parameter_F: Tensor, rows: int) -> Tensor:
        """(B, F) gates of one forward pass; the same for all rows in evaluation."""
        if not self.training:
            return open_share(parameter_F).expand(rows, -1)
        uniform_BF = torch.rand(rows, len(parameter_F), device=parameter_F.device).clamp(1e-6, 1 - 1e-6)
        noise_BF = uniform_BF.log() - (1 - uniform_BF).log()
        return _stretched((noise_BF + _SPEED * parameter_F) / _TEMPERATURE)

    def chance_open(self) -> Tensor:
        """(F + G,) probability that a gate is not zero in training, differentiable."""
        logits = _SPEED * torch.cat([self.sparse_F, self.dense_G])
        return torch.sigmoid(logits - _TEMPERATURE * math.log(-_LOW / _HIGH))

    def values(self) -> dict[str, float]:
        """The gate of every feature by name, as in evaluation."""
        gates = open_share(torch.cat([self.sparse_F, self.dense_G]).detach())
        return dict(zip(self.names, gates.tolist(), strict=True))

    def keep(self, kept_sparse: Tensor, kept_dense: Tensor) -> None:
        """Keep only the gates of these features: (F,) and (G,) bool."""
        self.names = tuple(
            name for name, kept in zip(self.names, torch.cat([kept_sparse, kept_dense]).tolist(), strict=True) if kept
        )
        self.sparse_F = nn.Parameter(self.sparse_F.detach()[kept_sparse])
        self.dense_G = nn.Parameter(self.dense_G.detach()[kept_dense])
        self.widths = self.widths[kept_dense]


def open_share(parameter_F: Tensor) -> Tensor:
    """(F,) the gates of evaluation from the parameters of :class:`FeatureGates`."""
    return _stretched(_SPEED * parameter_F)


def _stretched(logits: Tensor) -> Tensor:
    return (torch.sigmoid(logits) * (_HIGH - _LOW) + _LOW).clamp(0, 1)
