"""No interaction: tower and heads read the features as they are."""

from collections.abc import Mapping
from typing import Literal

from torch import Tensor

from data_pipelines.config.base import register
from models.layers.interactions.base import Fields, Interaction, InteractionConfig
from models.layers.part import Int8Input


@register
class NoInteractionConfig(InteractionConfig):
    """No interaction."""

    kind: Literal["none"] = "none"

    def build(self, fields: Fields) -> "NoInteraction":
        width = sum(fields.widths) + fields.dense
        return NoInteraction(self, width, width)


class NoInteraction(Interaction):
    """Returns the row unchanged."""

    def forward(self, x_BD: Tensor) -> Tensor:
        """(B, D)."""
        return x_BD

    @property
    def narrows_inputs(self) -> bool:
        return True

    def narrow_inputs(self, kept_D: Tensor) -> Tensor:
        self.in_width = self.out_width = len(kept_D)
        return kept_D

    def int8_inputs(self, path: str) -> list[Int8Input]:
        return []

    def to_int8(self, path: str, grids: Mapping[str, Tensor], out_2O: Tensor | None = None) -> "NoInteraction":
        return self
