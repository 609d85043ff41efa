"""Interactions of pairs of fields: factorization machine and dot products.

Letters: B rows of a batch, F fields, d width of a field's embedding, P columns of products.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from data_pipelines.config.base import register
from data_pipelines.errors import UserError
from models.layers.interactions.base import Fields, Interaction, InteractionConfig
from models.layers.part import Int8Input
from models.products import Linear


@register
class FactorizationMachineConfig(InteractionConfig):
    """Sums of products of all pairs of fields (see :class:`FactorizationMachine`)."""

    kind: Literal["fm"] = "fm"

    def build(self, fields: Fields) -> "FactorizationMachine":
        return FactorizationMachine(fields, self)


@register
class DotConfig(InteractionConfig):
    """Dot products of all pairs of fields (see :class:`DotInteraction`)."""

    kind: Literal["dot"] = "dot"

    def build(self, fields: Fields) -> "DotInteraction":
        return DotInteraction(fields, self)


class PairInteraction(Interaction):
    """Base of interactions that multiply fields of the same width d; dense features are projected to one more field.

    Args:
        fields: All of one width.
        config: Of the interaction.
        products: P.

    Raises:
        UserError: The tables differ in their width.
    """

    def __init__(self, fields: Fields, config: InteractionConfig, products: int | None = None) -> None:
        if len(set(fields.widths)) > 1:
            raise UserError(
                f"model.interaction.kind {config.kind!r} multiplies embeddings: give all tables the same dim."
            )
        dim = fields.widths[0] if fields.widths else fields.dim
        width = field_count(fields) * dim
        super().__init__(config, width, width + (dim if products is None else products))
        self.fields, self.dim = field_count(fields), dim
        self.dense_field = Linear(fields.dense, dim) if fields.dense else None

    def products(self, fields_BFd: Tensor) -> Tensor:
        """(B, P)."""
        raise NotImplementedError

    def row(self, fields: Sequence[Tensor], dense_BD: Tensor) -> Tensor:
        """(B, F d)."""
        if self.dense_field is not None:
            fields = [*fields, self.dense_field(dense_BD).float()]
        return torch.cat(list(fields), 1)

    def forward(self, x_BD: Tensor) -> Tensor:
        """(B, F d + P) the fields of a row and their products."""
        products_BP = self.products(x_BD.view(len(x_BD), self.fields, self.dim))
        return torch.cat([x_BD, products_BP.to(x_BD.dtype)], 1)

    @property
    def narrows_inputs(self) -> bool:
        return False

    def int8_inputs(self, path: str) -> list[Int8Input]:
        return []

    def to_int8(self, path: str, grids: Mapping[str, Tensor], out_2O: Tensor | None = None) -> "PairInteraction":
        return self


class FactorizationMachine(PairInteraction):
    """Sum over all pairs of fields of their products, by dimension (arXiv 1708.05027); its own sum is FM's."""

    def products(self, fields_BFd: Tensor) -> Tensor:
        """(B, d)."""
        return 0.5 * (fields_BFd.sum(1).square() - fields_BFd.square().sum(1))


class DotInteraction(PairInteraction):
    """Dot products of all pairs of fields (DLRM, arXiv 1906.00091)."""

    pairs: Tensor

    def __init__(self, fields: Fields, config: InteractionConfig) -> None:
        count = field_count(fields)
        super().__init__(fields, config, count * (count - 1) // 2)
        rows, columns = torch.triu_indices(count, count, offset=1)
        self.register_buffer("pairs", rows * count + columns, persistent=False)

    def products(self, fields_BFd: Tensor) -> Tensor:
        """(B, F (F - 1) / 2), pairs in the order (0, 1), (0, 2), ..., (F - 2, F - 1)."""
        return torch.bmm(fields_BFd, fields_BFd.transpose(1, 2)).flatten(1).index_select(1, self.pairs)


def field_count(fields: Fields) -> int:
    """F: the sparse features, and one field for the dense ones together."""
    return len(fields.widths) + (fields.dense > 0)
