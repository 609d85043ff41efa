"""The kind ``id``: one categorical value per row."""

from typing import TYPE_CHECKING, Literal

import polars as pl
from pydantic import Field

from data_pipelines.config.base import register
from data_pipelines.features.kinds.categorical import CategoricalConfig, CategoricalFeature
from data_pipelines.features.raw_columns import RawColumns

if TYPE_CHECKING:
    from data_pipelines.features.config import DataConfig


@register
class IdConfig(CategoricalConfig):
    """One categorical value per row; null has an id of its own."""

    kind: Literal["id"] = "id"
    column: str = Field(description="The column to read; by default the one with the feature's name.")
    input: bool = Field(
        default=True,
        description="With `false` only histories read the feature, of past events: a rating, say, that is the label of "
        "the row itself.",
    )

    @property
    def is_input(self) -> bool:
        return self.input

    @property
    def is_part(self) -> bool:
        return True

    def build(self, name: str, data: "DataConfig") -> "IdFeature":
        return IdFeature(name, self, is_bag=False)


class IdFeature(CategoricalFeature[IdConfig]):
    """One value per row, looked up in a vocabulary."""

    def columns(self) -> frozenset[str]:
        return frozenset({self.config.column})

    def values(self, raw: RawColumns) -> pl.Expr:
        return raw.text(self.reader, self.config.column)
