"""Base of the kinds whose values have ids by a vocabulary."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import polars as pl

from data_pipelines.batch import DenseSpec, SparseSpec
from data_pipelines.features.kinds.base import Feature, FeatureConfig, Fitted, Specs
from data_pipelines.features.raw_columns import RawColumns
from data_pipelines.features.vocabulary import Vocabulary, VocabularyConfig

if TYPE_CHECKING:
    from data_pipelines.features.config import DataConfig


class CategoricalConfig(VocabularyConfig, FeatureConfig):
    """Keys of a feature with a vocabulary."""

    @classmethod
    def defaults(cls, name: str, data: Mapping[str, Any]) -> dict[str, Any]:
        own = {"column": name} if "column" in cls.model_fields else {}
        return own | {"table": name}

    @property
    def table_rule(self) -> tuple[str, object] | None:
        return self.table, (self.min_count, self.max_size, self.oov_buckets)


C = TypeVar("C", bound=CategoricalConfig)


class CategoricalFeature(Feature[C]):
    """A feature whose values are counted over the training split, and get ids by their vocabulary.

    Attributes:
        is_bag: Whether a row has any number of values, and not exactly one.
    """

    def __init__(self, name: str, config: C, *, is_bag: bool) -> None:
        super().__init__(name, config)
        self.is_bag = is_bag

    @abstractmethod
    def values(self, raw: RawColumns) -> pl.Expr:
        """The canonical values of each row: String, or List(String) of a bag.

        Raises:
            UserError: A column is missing, or of a type that cannot be read.
        """

    def written(self, raw: RawColumns) -> pl.Expr:
        """The values of each row, in any spelling whose canonical text is that of :meth:`values`."""
        return self.values(raw)

    def ids(self, table: Vocabulary, raw: RawColumns) -> pl.Expr:
        """Ids of the values of each row: Int32, or List(Int32) of a bag."""
        values = self.values(raw)
        return values.list.eval(table.ids(pl.element())) if self.is_bag else table.ids(values)

    def specs(self) -> Specs:
        return Specs(sparse=[SparseSpec(name=self.name, table=self.config.table, kind="bag" if self.is_bag else "id")])

    def encode(self, spec: SparseSpec | DenseSpec, raw: RawColumns, fitted: Fitted) -> list[pl.Expr]:
        table = fitted.tables[self.config.table]
        assert isinstance(table, Vocabulary)
        return [self.ids(table, raw).alias(self.name)]


def part_problems(name: str, of: Sequence[str], data: "DataConfig") -> Iterator[str]:
    """Sentences on the features that ``of`` names and that have no values to read."""
    for part in of:
        if part not in data.features or not data.features[part].is_part:
            yield f"feature `{name}`: `of` names `{part}`, which is not an id or bag feature"


def categorical_parts(names: Sequence[str], data: "DataConfig") -> list[CategoricalFeature[Any]]:
    """The features that ``of`` names, built."""
    parts = [data.features[name].build(name, data) for name in names]
    assert all(isinstance(part, CategoricalFeature) for part in parts), "a part of a cross or history has values"
    return [part for part in parts if isinstance(part, CategoricalFeature)]
