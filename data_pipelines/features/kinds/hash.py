"""The kind ``hash``: ids by hashing, without a vocabulary."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import polars as pl
from pydantic import Field

from data_pipelines.batch import DenseSpec, SparseSpec
from data_pipelines.config.base import register
from data_pipelines.features.kinds.base import Feature, FeatureConfig, Fitted, Specs
from data_pipelines.features.raw_columns import RawColumns
from data_pipelines.hashing import stable_hash

if TYPE_CHECKING:
    from data_pipelines.features.config import DataConfig


@register
class HashConfig(FeatureConfig):
    """A value hashed into ``rows`` ids without a vocabulary.

    With several ``hashes`` a row is a bag of as many ids, and few values share all of them.
    """

    kind: Literal["hash"] = "hash"
    column: str = Field(description="The column to read; by default the one with the feature's name.")
    table: str = Field(description="The table of its ids; by default one of its own. Features may share a table.")
    rows: int = Field(ge=1, description="Ids to hash into.")
    hashes: int = Field(default=1, ge=1, description="Ids per value, each by another hash.")

    @classmethod
    def defaults(cls, name: str, data: Mapping[str, Any]) -> dict[str, Any]:
        return {"column": name, "table": name}

    @property
    def table_rule(self) -> tuple[str, object] | None:
        return self.table, self.rows

    def build(self, name: str, data: "DataConfig") -> "HashFeature":
        return HashFeature(name, self)


class HashFeature(Feature[HashConfig]):
    """One value per row, hashed into one or more ids."""

    def columns(self) -> frozenset[str]:
        return frozenset({self.config.column})

    def specs(self) -> Specs:
        kind: Literal["id", "bag"] = "id" if self.config.hashes == 1 else "bag"
        spec = SparseSpec(name=self.name, table=self.config.table, kind=kind)
        return Specs(sparse=[spec], slots={self.config.table: self.config.rows})

    def encode(self, spec: SparseSpec | DenseSpec, raw: RawColumns, fitted: Fitted) -> list[pl.Expr]:
        table, value = fitted.tables[self.config.table], raw.text(self.reader, self.config.column)
        slots = [stable_hash(value, seed) % self.config.rows for seed in range(self.config.hashes)]
        ids = [table.slot_ids(slot) for slot in slots]
        return [(ids[0] if len(ids) == 1 else pl.concat_list(ids)).alias(self.name)]
