"""The kind ``vector``: a list of numbers of a fixed length, such as an embedding of a text or an image."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

import polars as pl
from pydantic import Field

from data_pipelines.batch import DenseSpec, SparseSpec
from data_pipelines.config.base import register
from data_pipelines.features.kinds.base import Check, Feature, FeatureConfig, Fitted, Specs
from data_pipelines.features.raw_columns import RawColumns, wrong_type

if TYPE_CHECKING:
    from data_pipelines.features.config import DataConfig


@register
class VectorConfig(FeatureConfig):
    """A list of ``width`` numbers, such as an embedding of a text or an image. Null becomes zeros."""

    kind: Literal["vector"] = "vector"
    column: str = Field(description="The column to read; by default the one with the feature's name.")
    width: int = Field(ge=1, description="Numbers per row.")

    @classmethod
    def defaults(cls, name: str, data: Mapping[str, Any]) -> dict[str, Any]:
        return {"column": name}

    def build(self, name: str, data: "DataConfig") -> "VectorFeature":
        return VectorFeature(name, self)


class VectorFeature(Feature[VectorConfig]):
    """Several numbers per row, unchanged."""

    def columns(self) -> frozenset[str]:
        return frozenset({self.config.column})

    def specs(self) -> Specs:
        return Specs(dense=[DenseSpec(name=self.name, width=self.config.width)])

    def checks(self, raw: RawColumns) -> Iterator[Check]:
        expression, dtype = raw.column(self.reader, self.config.column)
        if isinstance(dtype, pl.List):
            numbers = expression.list
            finite = numbers.eval(pl.element().cast(pl.Float32, strict=False).is_finite().fill_null(False))
            wrong = (numbers.len() != self.config.width) | ~finite.list.all()
            yield f"{self.config.column}: not {self.config.width} finite numbers", wrong

    def encode(self, spec: SparseSpec | DenseSpec, raw: RawColumns, fitted: Fitted) -> list[pl.Expr]:
        expression, dtype = raw.column(self.reader, self.config.column)
        if not isinstance(dtype, pl.List | pl.Array):
            raise wrong_type(self.reader, self.config.column, dtype, "lists of numbers")
        array = pl.Array(pl.Float32, self.config.width)
        zeros = pl.lit([0.0] * self.config.width, dtype=array)
        return [expression.cast(array).fill_null(zeros).alias(self.name)]
