"""The base of interactions, which turn the features of a row into an enriched row.

Letters: B rows of a batch, D width of the row before the interaction, E width after it.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Self

import torch
from pydantic import PlainValidator, SerializeAsAny, model_validator
from torch import Tensor

from data_pipelines.config.base import Family
from models.layers.part import Part

_SHARED_KEYS = ("layers", "rank")


@dataclass(frozen=True)
class Fields:
    """The inputs of an interaction.

    Attributes:
        widths: Width of the pooled embedding of each sparse feature.
        dense: Width of all dense features together.
        dim: ``model.dim``: the width of a field if there are no sparse features.
    """

    widths: tuple[int, ...]
    dense: int
    dim: int


class InteractionConfig(Family):
    """How features are combined before the tower: ``model.interaction``.

    ``layers`` and ``rank`` are ignored by kinds that do not have them, so that ``kind`` alone can be changed.
    """

    kind: str

    @classmethod
    def parse(cls, value: Any) -> Self:
        """As :meth:`Family.parse`; without a ``kind``, a cross network."""
        return super().parse({"kind": "cross", **value} if isinstance(value, Mapping) else value)

    @model_validator(mode="before")
    @classmethod
    def _without_keys_of_other_kinds(cls, content: Any) -> Any:
        if not isinstance(content, Mapping):
            return content
        foreign = [key for key in _SHARED_KEYS if key not in cls.model_fields]
        return {key: value for key, value in content.items() if key not in foreign}

    @abstractmethod
    def build(self, fields: Fields) -> "Interaction":
        """The interaction of these fields.

        Raises:
            UserError: The kind cannot combine such fields.
        """


AnyInteraction = Annotated[SerializeAsAny[InteractionConfig], PlainValidator(InteractionConfig.parse)]
"""The type of a config's field that holds any registered kind of interaction."""


class Interaction(Part):
    """Base of interactions.

    :meth:`row` concatenates the features of a row, and ``forward`` enriches the row; batch normalization may be applied
    between the two. A subclass needs only ``forward``, and the methods of :class:`~models.layers.part.Part` that the
    levers in use call.

    Attributes:
        config: What it was built from.
        in_width: Columns of the row before the interaction.
        out_width: Columns after it.
    """

    config: InteractionConfig
    factorable: ClassVar[bool] = False
    """Whether :meth:`factor` is implemented."""

    def __init__(self, config: InteractionConfig, in_width: int, out_width: int) -> None:
        super().__init__()
        self.config, self.in_width, self.out_width = config, in_width, out_width

    def row(self, fields: Sequence[Tensor], dense_BD: Tensor) -> Tensor:
        """(B, D) the pooled sparse features and the dense ones side by side."""
        return torch.cat([*fields, dense_BD], 1)

    def factor(self, rank: int) -> None:
        """Replace the part's matrices by products of two of this rank.

        Args:
            rank: Matrices that are products already stay.
        """
        self.refuse("factor", "replace its matrices by products of two (sparsity.low_rank.cross)")
