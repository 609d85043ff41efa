"""What every kind of feature is made of: the keys of its config, and the feature that is built from them.

A kind is one module with two classes. Its config (a :class:`FeatureConfig`, decorated with ``@register``) says which
keys the YAML may have. Its feature (a :class:`Feature`) says which columns it reads, what it fits, which rows it
refuses, and how it is encoded. Everything else asks :class:`data_pipelines.features.plan.Plan`, and never a kind.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import polars as pl

from data_pipelines.batch import DenseSpec, SparseSpec
from data_pipelines.config.base import Family
from data_pipelines.features.raw_columns import RawColumns
from data_pipelines.features.vocabulary import Table

if TYPE_CHECKING:
    from data_pipelines.features.config import DataConfig

Check = tuple[str, pl.Expr]
"""A reason to refuse a row, and an expression that is true where it holds (null counts as false)."""


@dataclass(frozen=True)
class Fitted:
    """What was fitted on the training split.

    Attributes:
        tables: The id space of each table.
        numbers: What :meth:`Feature.fit` gave for each feature that fits numbers.
    """

    tables: dict[str, Table]
    numbers: dict[str, list[float]]


@dataclass
class Specs:
    """Encoded features, in the order of the schema.

    Attributes:
        sparse: Features whose values are ids.
        dense: Features whose values are numbers.
        slots: Sizes of the tables whose ids are the whole numbers below a size, and which need no vocabulary.
    """

    sparse: list[SparseSpec] = field(default_factory=list)
    dense: list[DenseSpec] = field(default_factory=list)
    slots: dict[str, int] = field(default_factory=dict)


class FeatureConfig(Family):
    """The keys of one feature in the block ``data.features``: the root of all feature kinds."""

    @classmethod
    def defaults(cls, name: str, data: Mapping[str, Any]) -> dict[str, Any]:
        """Default values of keys that the user left out.

        Args:
            name: The name of the feature.
            data: The ``data:`` block as the user wrote it, not validated yet.
        """
        return {}

    @property
    def is_input(self) -> bool:
        """Whether the ranker may read the feature. If not, only features of the past read it, from earlier rows."""
        return True

    @property
    def bag_column(self) -> str | None:
        """The column that the feature reads as a bag of values; ``None`` if it reads none."""
        return None

    @property
    def is_part(self) -> bool:
        """Whether crosses and histories may name the feature under ``of``."""
        return False

    @property
    def past_parts(self) -> Sequence[str]:
        """Names of the features whose values this one reads from earlier rows."""
        return ()

    @property
    def table_rule(self) -> tuple[str, object] | None:
        """Name and size keys of a table that features may share, and whose size keys must then be equal."""
        return None

    def as_served(self) -> "FeatureConfig":
        """The keys of the feature in an artifact."""
        return self

    def problems(self, name: str, data: "DataConfig") -> Iterator[str]:
        """Sentences on what does not fit the rest of the ``data:`` block."""
        return iter(())

    @abstractmethod
    def build(self, name: str, data: "DataConfig") -> "Feature[Any]":
        """The feature that these keys describe."""


C = TypeVar("C", bound=FeatureConfig)


class Feature(Generic[C]):
    """One feature of a plan: its config, bound to its name and to the keys of ``data`` that it needs.

    Attributes:
        name: Its name in the config. Encoded features are named ``name``, or ``name.part`` where it gives several.
        config: Its keys.
        reader: Its name in errors.
    """

    def __init__(self, name: str, config: C) -> None:
        self.name = name
        self.config = config
        self.reader = f"feature {name!r}"

    @abstractmethod
    def specs(self) -> Specs:
        """The encoded features that it gives."""

    @abstractmethod
    def columns(self) -> frozenset[str]:
        """Raw columns that a row must have to be encoded."""

    def optional_columns(self) -> frozenset[str]:
        """Raw columns that it reads of new rows that have them."""
        return frozenset()

    def log_columns(self) -> frozenset[str]:
        """Raw columns that it reads of a log: those to encode, and those to learn from."""
        return self.columns()

    def times(self) -> Mapping[str, tuple[str, str | None]]:
        """Raw columns that it reads as times: for each the key that says its format, and that format."""
        return {}

    def conditions(self) -> Sequence[str]:
        """SQL conditions over raw columns."""
        return ()

    def summaries(self, raw: RawColumns, sample: Callable[[], pl.Expr]) -> dict[str, pl.Expr]:
        """Aggregations over the training rows that :meth:`fit` needs, by name.

        Args:
            sample: Gives a condition that holds for an even sample of about a million rows, for aggregations that keep
                their values in memory, such as quantiles.
        """
        return {}

    def fit(self, summary: Mapping[str, Any]) -> list[float]:
        """The numbers to keep, from the values of :meth:`summaries`.

        Raises:
            UserError: They cannot be used.
        """
        return []

    def check_fitted(self, numbers: Sequence[float] | None) -> None:
        """Compare numbers that were loaded with those that :meth:`fit` gives.

        Raises:
            ValueError: They are missing, or could lead out of a table.
        """

    def checks(self, raw: RawColumns) -> Iterator[Check]:
        """Reasons to refuse a row. An unseen or a missing value is never one."""
        return iter(())

    def check_tables(self, tables: Mapping[str, Table]) -> None:
        """Compare what was fitted on the training rows with the config.

        Raises:
            UserError: They do not fit.
        """

    @abstractmethod
    def encode(self, spec: SparseSpec | DenseSpec, raw: RawColumns, fitted: Fitted) -> list[pl.Expr]:
        """Expressions that encode one of its :meth:`specs`, the first with the name of the spec.

        Ids are Int32 (of a bag List(Int32), with a second expression ``<name>:weights``, List(Float32), where it is
        weighted), numbers Float32, or Array(Float32) of the width of the spec.

        Raises:
            UserError: A column is missing, or of a type that cannot be read.
        """
