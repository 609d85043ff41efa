"""The kind ``relative``: a value against those of the other rows that were shown in the same list.

The list of a row is what ``data.group`` says, or what is asked together when scoring. A prepared data set, batch jobs,
candidates and requests all compute it by the expressions of :meth:`RelativeFeature.relate`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import polars as pl
from pydantic import Field, model_validator

from data_pipelines.batch import DenseSpec, SparseSpec
from data_pipelines.config.base import register
from data_pipelines.features.kinds.base import Check, Feature, FeatureConfig, Fitted, Specs
from data_pipelines.features.raw_columns import RawColumns
from data_pipelines.hashing import stable_hash
from data_pipelines.names import SOURCE

if TYPE_CHECKING:
    from data_pipelines.features.config import DataConfig

Measure = Literal["rank", "share", "from_mean", "from_min", "from_median", "zscore", "count"]


@register
class RelativeConfig(FeatureConfig):
    """A number, or a statistic, against its list: one number per measure.

    A missing value gets 0 for every measure (0.5 for `rank`), and does not count for the other rows.
    """

    kind: Literal["relative"] = "relative"
    column: str | None = Field(
        default=None, description="The column to read; by default the one with the feature's name."
    )
    of: str | None = Field(
        default=None, description="In place of a column: a feature that is one number, such as a statistic."
    )
    measures: list[Measure] = Field(
        default=["rank", "from_mean", "zscore"],
        min_length=1,
        description="`rank`: 0 for the smallest value of the list, 1 for the largest, ties in the middle. `share`: of "
        "the sum. `from_mean`, `from_min`, `from_median`: the difference. `zscore`: the difference to the mean in "
        "standard deviations. `count`: the logarithm of how many rows of the list have the value; alone, it reads any "
        "values, not only numbers.",
    )

    @model_validator(mode="after")
    def _one_source(self) -> "RelativeConfig":
        if (self.column is None) == (self.of is None):
            raise ValueError("a relative feature reads either a `column` or `of`, another feature")
        if len(set(self.measures)) < len(self.measures):
            raise ValueError("a measure is named twice")
        return self

    @classmethod
    def defaults(cls, name: str, data: Mapping[str, Any]) -> dict[str, Any]:
        own = data["features"][name]
        return {} if "of" in own else {"column": name}

    def problems(self, name: str, data: "DataConfig") -> Iterator[str]:
        if data.group is None:
            yield f"feature `{name}`: relative to its list needs the key `group`: the columns that a list shares"
        if self.of is not None and not _is_one_number(self.of, data):
            yield f"feature `{name}`: `of` names `{self.of}`, which is not a feature of exactly one number"

    def build(self, name: str, data: "DataConfig") -> "RelativeFeature":
        of = None if self.of is None else data.features[self.of].build(self.of, data)
        return RelativeFeature(name, self, of)


def _is_one_number(of: str, data: "DataConfig") -> bool:
    config = data.features.get(of)
    if config is None or isinstance(config, RelativeConfig):
        return False
    specs = config.build(of, data).specs()
    return not specs.sparse and [spec.width for spec in specs.dense] == [1]


class RelativeFeature(Feature[RelativeConfig]):
    """Numbers of a row that depend on the other rows of its list.

    Attributes:
        of: The feature whose value is compared; ``None`` where that is a column.
        source: The column that holds the value to compare until :meth:`relate` is done.
    """

    def __init__(self, name: str, config: RelativeConfig, of: Feature[Any] | None) -> None:
        super().__init__(name, config)
        self.of = of
        self.source = name + SOURCE

    def columns(self) -> frozenset[str]:
        if self.of is not None:
            return self.of.columns()
        assert self.config.column is not None
        return frozenset({self.config.column})

    def log_columns(self) -> frozenset[str]:
        return self.columns() if self.of is None else self.of.log_columns()

    def specs(self) -> Specs:
        return Specs(dense=[DenseSpec(name=f"{self.name}.{measure}", width=1) for measure in self.config.measures])

    def checks(self, raw: RawColumns) -> Iterator[Check]:
        if self.of is None and not self._counts_only:
            self._value(raw)  # refuses a column that is not there, or holds no numbers
        return iter(())

    def value(self, raw: RawColumns, fitted: Fitted) -> pl.Expr:
        """The value to compare, before the list is known."""
        if self.of is None:
            return self._value(raw).alias(self.source)
        [spec] = self.of.specs().dense
        return self.of.encode(spec, raw, fitted)[0].cast(pl.Float64).alias(self.source)

    def carried(self, raw: RawColumns) -> bool:
        """Whether rows bring the numbers themselves."""
        return all(spec.name in raw.schema for spec in self.specs().dense)

    def encode(self, spec: SparseSpec | DenseSpec, raw: RawColumns, fitted: Fitted) -> list[pl.Expr]:
        """The numbers that rows bring themselves; all others come from :meth:`relate`."""
        return [raw.number(self.reader, spec.name).cast(pl.Float32).alias(spec.name)]

    def relate(self, key: pl.Expr, chosen: Sequence[str]) -> list[pl.Expr]:
        """Float32 of the encoded features ``chosen``, for rows of whole lists with the column :attr:`source`.

        Args:
            key: The list of each row.
            chosen: Names of encoded features; those of other features are left out.
        """
        value = pl.col(self.source)
        return [
            _measure(measure, value, key).fill_null(0.5 if measure == "rank" else 0.0).cast(pl.Float32).alias(name)
            for measure in self.config.measures
            if (name := f"{self.name}.{measure}") in chosen
        ]

    @property
    def _counts_only(self) -> bool:
        return self.config.measures == ["count"]

    def _value(self, raw: RawColumns) -> pl.Expr:
        assert self.config.column is not None
        if self._counts_only:
            return stable_hash(raw.text(self.reader, self.config.column))
        return raw.number(self.reader, self.config.column)


def _rank(value: pl.Expr) -> pl.Expr:
    others = value.count() - 1
    return pl.when(others > 0).then((value.rank("average") - 1) / others)


def _per(value: pl.Expr, whole: pl.Expr) -> pl.Expr:
    """``value / whole``; null where ``whole`` is 0."""
    return pl.when(whole != 0).then(value / whole)


_WITHIN: Mapping[str, Callable[[pl.Expr], pl.Expr]] = {
    "rank": _rank,
    "share": lambda value: _per(value, value.sum()),
    "from_mean": lambda value: value - value.mean(),
    "from_min": lambda value: value - value.min(),
    "from_median": lambda value: value - value.median(),
    "zscore": lambda value: _per(value - value.mean(), value.std(ddof=0)),
}


def _measure(measure: str, value: pl.Expr, key: pl.Expr) -> pl.Expr:
    """A measure of each row in its list; null where the value is."""
    if measure == "count":
        return pl.when(value.is_not_null()).then(pl.len().over(key, value).log())
    return _WITHIN[measure](value).over(key)
