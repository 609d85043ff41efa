"""The kind ``bag``: any number of categorical values per row."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

import polars as pl
from pydantic import Field

from data_pipelines.batch import DenseSpec, SparseSpec
from data_pipelines.config.base import register
from data_pipelines.features.kinds.base import Check, Fitted, Specs
from data_pipelines.features.kinds.categorical import CategoricalConfig, CategoricalFeature
from data_pipelines.features.raw_columns import RawColumns, wrong_type
from data_pipelines.features.values import texts
from data_pipelines.features.vocabulary import Vocabulary

if TYPE_CHECKING:
    from data_pipelines.features.config import DataConfig


@register
class BagConfig(CategoricalConfig):
    """Any number of categorical values per row: a list column, text cut at ``delimiter``, or text that looks like a
    list (``[6285, 194]``)."""

    kind: Literal["bag"] = "bag"
    column: str = Field(description="The column to read; by default the one with the feature's name.")
    delimiter: str | None = Field(
        default=None, description="Where to cut text; where absent, text is read as a list such as `[6285, 194]`."
    )
    weights: str | None = Field(default=None, description="A column with one weight per value.")
    max_length: int | None = Field(default=None, ge=1, description="Keep at most this many values, the first ones.")

    @property
    def bag_column(self) -> str | None:
        return self.column

    @property
    def is_part(self) -> bool:
        return True

    def build(self, name: str, data: "DataConfig") -> "BagFeature":
        return BagFeature(name, self, is_bag=True)


class BagFeature(CategoricalFeature[BagConfig]):
    """Any number of values per row, looked up in a vocabulary, with weights if the config names them."""

    def columns(self) -> frozenset[str]:
        weights = self.config.weights
        return frozenset({self.config.column} if weights is None else {self.config.column, weights})

    def specs(self) -> Specs:
        spec = SparseSpec(
            name=self.name,
            table=self.config.table,
            kind="bag",
            weighted=self.config.weights is not None,
            max_length=self.config.max_length,
        )
        return Specs(sparse=[spec])

    def values(self, raw: RawColumns) -> pl.Expr:
        expression, dtype = raw.column(self.reader, self.config.column)
        try:
            lists = texts(expression, dtype, self.config.delimiter)
        except TypeError:
            wanted = "lists, or text to cut into one"
            raise wrong_type(self.reader, self.config.column, dtype, wanted) from None
        return self._cut(lists)

    def written(self, raw: RawColumns) -> pl.Expr:
        lists = self._as_texts(raw)
        return self.values(raw) if lists is None else lists

    def ids(self, table: Vocabulary, raw: RawColumns) -> pl.Expr:
        lists = self._as_texts(raw)
        return super().ids(table, raw) if lists is None else lists.list.eval(table.ids_of_text(pl.element()))

    def _as_texts(self, raw: RawColumns) -> pl.Expr | None:
        """The column as it is where it is lists of text; ``None`` where it has another type."""
        column, dtype = raw.column(self.reader, self.config.column)
        if dtype != pl.List(pl.String):
            return None
        return self._cut(column.fill_null(pl.lit([], dtype=dtype)))

    def _cut(self, lists: pl.Expr) -> pl.Expr:
        return lists if self.config.max_length is None else lists.list.head(self.config.max_length)

    def _weights(self, column: str, raw: RawColumns) -> pl.Expr:
        """List(Float32), cut to ``max_length``; what is not a number is null."""
        expression, dtype = raw.column(self.reader, column)
        if isinstance(dtype, pl.List):
            lists = expression
        elif dtype == pl.String:
            lists = texts(expression, dtype, self.config.delimiter)
        else:
            raise wrong_type(self.reader, column, dtype, "lists of weights")
        lists = self._cut(lists.cast(pl.List(pl.Float32), strict=False))
        return lists.fill_null(pl.lit([], dtype=pl.List(pl.Float32)))

    def checks(self, raw: RawColumns) -> Iterator[Check]:
        column = self.config.weights
        if column is None:
            return
        weights = self._weights(column, raw)
        lengths = self.values(raw).list.len()
        yield f"{column}: a negative weight", weights.list.min() < 0
        yield f"{column}: a weight that is not a number", weights.list.eval(pl.element().is_null()).list.any()
        yield f"{column}: not as many weights as {self.config.column} has values", weights.list.len() != lengths

    def encode(self, spec: SparseSpec | DenseSpec, raw: RawColumns, fitted: Fitted) -> list[pl.Expr]:
        encoded = super().encode(spec, raw, fitted)
        if self.config.weights is not None:
            encoded.append(self._weights(self.config.weights, raw).alias(f"{self.name}:weights"))
        return encoded
