"""The kind ``id``: one categorical value per row."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import polars as pl
from pydantic import Field, model_validator

from data_pipelines.config.base import register
from data_pipelines.errors import UserError
from data_pipelines.features.kinds.base import Specs
from data_pipelines.features.kinds.categorical import CategoricalConfig, CategoricalFeature
from data_pipelines.features.raw_columns import RawColumns
from data_pipelines.features.values import text
from data_pipelines.features.vocabulary import Table, Vocabulary

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

    serve: str | int | float | bool | None = Field(
        default=None,
        description="The value that every row has when it is scored, such as 1 for the position in a list: training "
        "learns what each value adds to the logit, apart from all other features. Scoring does not read the column, "
        "unless `override` allows it.",
    )
    override: bool = Field(
        default=False,
        description="With `serve`: a row to score that has a value in the column is scored with it, and `serve` is for "
        "rows without one. For the chance of a click at the position where a row will be shown.",
    )
    served: bool = Field(default=False, description="Set in artifacts: every row has the value `serve`.")

    @model_validator(mode="after")
    def _serves_an_input(self) -> "IdConfig":
        if self.serve is not None and not self.input:
            raise ValueError("`serve` is for a feature that the ranker reads: remove `input: false`")
        if self.override and self.serve is None:
            raise ValueError("`override` needs the key `serve`, whose value it overrides")
        if self.served and self.serve is None:
            raise ValueError("`served` is set by export, and needs `serve`")
        return self

    def as_served(self) -> "IdConfig":
        return self if self.serve is None else self.model_copy(update={"served": True})

    @property
    def is_input(self) -> bool:
        return self.input

    @property
    def is_part(self) -> bool:
        return self.serve is None

    def build(self, name: str, data: "DataConfig") -> "IdFeature":
        return IdFeature(name, self, is_bag=False)


class IdFeature(CategoricalFeature[IdConfig]):
    """One value per row, looked up in a vocabulary."""

    def columns(self) -> frozenset[str]:
        return frozenset() if self.config.served else frozenset({self.config.column})

    def optional_columns(self) -> frozenset[str]:
        overridden = self.config.served and self.config.override
        return frozenset({self.config.column}) if overridden else frozenset()

    def specs(self) -> Specs:
        [spec] = super().specs().sparse
        return Specs(sparse=[spec.model_copy(update={"additive": self.config.serve is not None})])

    def check_tables(self, tables: Mapping[str, Table]) -> None:
        table = tables[self.config.table]
        if self.config.serve is None or not isinstance(table, Vocabulary):
            return
        if self._constant() not in table.values:
            raise UserError(
                f"{self.reader} serves the value {self.config.serve!r}, which no training row has often enough to "
                f"learn: set `serve` to a value of the column {self.config.column!r}."
            )

    def _constant(self) -> str:
        """The canonical text of the value that is served."""
        value = pl.Series("value", [self.config.serve])
        return str(value.to_frame().select(text(pl.col("value"), value.dtype)).item())

    def values(self, raw: RawColumns) -> pl.Expr:
        if not self.config.served:
            return raw.text(self.reader, self.config.column)
        constant = pl.repeat(self._constant(), pl.len())
        if self.config.override and self.config.column in raw.schema:
            return raw.text(self.reader, self.config.column).fill_null(constant)
        return constant

    def written(self, raw: RawColumns) -> pl.Expr:
        column = self._as_text(raw)
        return self.values(raw) if column is None else column

    def ids(self, table: Vocabulary, raw: RawColumns) -> pl.Expr:
        column = self._as_text(raw)
        return super().ids(table, raw) if column is None else table.ids_of_text(column)

    def _as_text(self, raw: RawColumns) -> pl.Expr | None:
        """The column as it is where it is text; ``None`` where it has another type, or a constant is served."""
        if self.config.served:
            return None
        column, dtype = raw.column(self.reader, self.config.column)
        if isinstance(dtype, pl.Categorical | pl.Enum):
            return column.cast(pl.String)
        return column if dtype == pl.String else None
