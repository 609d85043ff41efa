"""Factorised interaction layers of FinalNet.

Letters: B rows of a batch, D columns of a row.
"""

from collections.abc import Mapping
from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from data_pipelines.config.base import register
from models.layers.int8 import fuse
from models.layers.interactions.base import Fields, Interaction, InteractionConfig
from models.layers.part import Int8Input, linear_inputs
from models.products import Linear


@register
class MultiplicativeConfig(InteractionConfig):
    """Factorised interaction layers of FinalNet (see :class:`MultiplicativeBlocks`)."""

    kind: Literal["multiplicative"] = "multiplicative"
    layers: int = Field(default=3, ge=1, le=1000, description="Number of layers; each doubles the degree.")

    def build(self, fields: Fields) -> "MultiplicativeBlocks":
        return MultiplicativeBlocks(sum(fields.widths) + fields.dense, self)


class MultiplicativeBlocks(Interaction):
    """FinalNet's factorised interaction layers (SIGIR 2023, doi 10.1145/3539618.3591988).

    A layer maps its input linearly to a and b and gives ``a + a * b``: the degree doubles with each layer, so that
    ``layers`` of them reach every interaction up to order ``2 ** layers``.

    Args:
        width: D.
        config: Number of layers.
    """

    def __init__(self, width: int, config: MultiplicativeConfig) -> None:
        super().__init__(config, width, width)
        self.layers = nn.ModuleList(Linear(width, 2 * width) for _ in range(config.layers))

    def forward(self, x_BD: Tensor) -> Tensor:
        """(B, D)."""
        for layer in self.layers:
            linear_BD, factor_BD = layer(x_BD).chunk(2, dim=1)
            x_BD = linear_BD + linear_BD * factor_BD
        return x_BD

    @property
    def narrows_inputs(self) -> bool:
        return False

    def int8_inputs(self, path: str) -> list[Int8Input]:
        return linear_inputs(self, path)

    def to_int8(self, path: str, grids: Mapping[str, Tensor], out_2O: Tensor | None = None) -> "MultiplicativeBlocks":
        for index, layer in enumerate(self.layers):
            self.layers[index] = fuse(f"{path}.layers.{index}", layer, grids)
        return self
