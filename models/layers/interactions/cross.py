"""Cross layers: each multiplies the features of the row by a linear function of the previous layer's output.

Letters: B rows of a batch, D columns of a row, r rank.
"""

from collections.abc import Iterator, Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from data_pipelines.config.base import register
from models.layers.int8 import fuse
from models.layers.interactions.base import Fields, Interaction, InteractionConfig
from models.layers.part import Component, Int8Input, linear_inputs, module_components, narrow_linear
from models.layers.truncation import truncated_svd
from models.products import Linear


@register
class CrossConfig(InteractionConfig):
    """Cross layers of DCN-V2 (see :class:`CrossNet`).

    Example:
        >>> rs.CrossConfig(layers=2).build(Fields(widths=(8, 8), dense=1, dim=8)).out_width
        17
    """

    kind: Literal["cross"] = "cross"
    layers: int = Field(default=3, ge=1, le=1000, description="Number of cross layers.")
    rank: int | None = Field(default=None, ge=1, description="Rank of each layer's matrix; full where absent.")

    def build(self, fields: Fields) -> "CrossNet":
        return CrossNet(sum(fields.widths) + fields.dense, self)


class CrossNet(Interaction):
    """DCN-V2's cross layers, ``x_(l+1) = x_0 * (W_l x_l + b_l) + x_l`` (arXiv 2008.13535).

    With a ``rank``, each W is the product of a (D, r) and an (r, D) matrix.

    Args:
        width: D.
        config: Number of layers, and their rank.

    Example:
        >>> CrossNet(8, CrossConfig(layers=2))(torch.randn(100, 8)).shape
        torch.Size([100, 8])
    """

    config: CrossConfig
    factorable = True

    def __init__(self, width: int, config: CrossConfig) -> None:
        super().__init__(config, width, width)
        rank = config.rank
        self.layers = nn.ModuleList(
            Linear(width, width)
            if rank is None
            else nn.Sequential(Linear(width, rank, bias=False), Linear(rank, width))
            for _ in range(config.layers)
        )

    def forward(self, x_BD: Tensor) -> Tensor:
        """(B, D)."""
        crossed_BD = x_BD
        for layer in self.layers:
            crossed_BD = torch.addcmul(crossed_BD, x_BD, layer(crossed_BD).to(x_BD.dtype))
        return crossed_BD

    def components(self, path: str) -> Iterator[Component]:
        """One for each cross layer, the two matrices of a low-rank one together."""
        for index, layer in enumerate(self.layers):
            name = f"{path}.layers.{index}"
            parts = list(module_components(layer, name))
            tensors = {key: tensor for part in parts for key, tensor in part.tensors.items()}
            linears = tuple(part.name for part in parts)
            yield Component(name, "layer", tensors, sum(part.flops for part in parts), linears)

    @property
    def narrows_inputs(self) -> bool:
        return True

    def narrow_inputs(self, kept_D: Tensor) -> Tensor:
        for layer in self.layers:
            linears = [module for module in layer.modules() if isinstance(module, nn.Linear)]
            narrow_linear(linears[0], inputs=kept_D)
            narrow_linear(linears[-1], outputs=kept_D)
        self.in_width = self.out_width = len(kept_D)
        return kept_D

    @torch.no_grad()
    def factor(self, rank: int) -> None:
        if self.config.rank is not None:
            return
        for index, layer in enumerate(self.layers):
            assert isinstance(layer, nn.Linear)
            up_Dr, down_rD = truncated_svd(layer.weight, rank)
            down, up = Linear(self.in_width, rank, bias=False), Linear(rank, self.in_width)
            down.weight, up.weight, up.bias = nn.Parameter(down_rD), nn.Parameter(up_Dr.contiguous()), layer.bias
            self.layers[index] = nn.Sequential(down, up)
        self.config = self.config.model_copy(update={"rank": rank})

    def int8_inputs(self, path: str) -> list[Int8Input]:
        return linear_inputs(self, path)

    def to_int8(self, path: str, grids: Mapping[str, Tensor], out_2O: Tensor | None = None) -> "CrossNet":
        for index, layer in enumerate(self.layers):
            self.layers[index] = fuse(f"{path}.layers.{index}", layer, grids)
        return self
