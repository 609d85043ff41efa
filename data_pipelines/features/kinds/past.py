"""Base of the kinds that depend on rows strictly earlier than the row itself.

Such a feature is computed in two ways with equal results: for the rows of a log from the log itself (:class:`Worker`),
and for new rows from a state (:meth:`PastFeature.attach`).

Letters: N rows, K rows that have a key (several per row where a column of ``by`` is a bag).
"""

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
import polars as pl
from pydantic import Field

from data_pipelines.batch import DenseSpec, SparseSpec
from data_pipelines.disk.by_row import ByRow, Fields
from data_pipelines.disk.file_names import is_plain_name
from data_pipelines.errors import UserError
from data_pipelines.features.conditions import condition, condition_columns
from data_pipelines.features.kinds.base import Feature, FeatureConfig, Fitted, Specs
from data_pipelines.features.raw_columns import RawColumns
from data_pipelines.features.values import MICROSECONDS
from data_pipelines.features.vocabulary import Table
from data_pipelines.names import DRAWN
from data_pipelines.timelines import Int64s, Keys, Timeline

if TYPE_CHECKING:
    from data_pipelines.features.config import DataConfig


class PastConfig(FeatureConfig):
    """Keys of a feature that depends on earlier rows."""

    def problems(self, name: str, data: "DataConfig") -> Iterator[str]:
        if data.time is None:
            yield f"feature `{name}`: a {self.kind_name()} needs the key `time`: the column that says what came before"
        # The files of the past have these names.
        for file in (f"{name}.arrow", *(f"{name}.{part}.i32" for part in self.past_parts)):
            if not is_plain_name(file):
                yield f"feature `{name}`: files are named after it and its parts: use short names without `/` or `\\`"

    @property
    def delay(self) -> int:
        """How long before a row, in microseconds, an event must lie to count."""
        return 0


class DelayedConfig(PastConfig):
    """Keys of a feature that may read labels, which are known some time after their rows."""

    label_delay: float = Field(
        default=0.0,
        ge=0,
        description="Seconds after a row from which it counts, because its label is known only then. By default the "
        "`label_delay` of the task that the feature reads.",
    )

    @classmethod
    def defaults(cls, name: str, data: Mapping[str, Any]) -> dict[str, Any]:
        delay = label_delay(name, data)
        return {"label_delay": delay} if delay else {}

    @property
    def delay(self) -> int:
        return round(self.label_delay * MICROSECONDS)


def label_delay(name: str, data: Mapping[str, Any]) -> float:
    """The longest delay of the tasks that a feature reads, by ``of`` or in ``where``; of a block not validated yet."""
    feature, tasks = data["features"][name], data.get("tasks")
    if not isinstance(feature, dict) or not isinstance(tasks, dict):
        return 0.0
    of, where = feature.get("of"), feature.get("where")
    try:
        read = condition_columns(f"feature {name!r}", where) if isinstance(where, str) else frozenset()
    except UserError:  # reported where the condition is read
        read = frozenset()
    found = []
    for task, keys in tasks.items():
        delay = keys.get("label_delay") if isinstance(keys, dict) else None
        if isinstance(delay, int | float) and delay > 0 and (of == task or keys.get("column") in read):
            found.append(float(delay))
    return max(found, default=0.0)


@dataclass(frozen=True)
class Kept:
    """What a state keeps of one feature.

    Attributes:
        rows: What :meth:`PastFeature.condense` gave, in the order of ``key``.
        minutes: What :meth:`PastFeature.minutes` gave, earlier minutes added up; ``None`` if it gave none.
    """

    rows: pl.DataFrame
    minutes: pl.DataFrame | None


def happened(raw: RawColumns) -> pl.Expr:
    """Whether a row is an event of the log, and not a negative that was drawn for one."""
    return ~pl.col(DRAWN) if DRAWN in raw.schema else pl.lit(True)


def is_event(reader: str, where: str | None, raw: RawColumns) -> pl.Expr:
    """Whether a row happened, and fulfils the condition ``where`` if there is one."""
    event = happened(raw)
    return event if where is None else event & condition(reader, where, raw.schema).fill_null(False)


class Worker(Protocol):
    """Works out one feature for the rows of a log, part by part: writes a record per row that has a key."""

    def add(self, rows: pl.DataFrame, line: Timeline, earlier: pl.DataFrame | None) -> pl.DataFrame:
        """Take in the part of the log that holds a span of keys.

        Args:
            rows: In the order of the log: ``key``, ``time``, ``row`` and the feature's own columns.
            line: Their timeline.
            earlier: What the state that the log continues keeps of those keys; ``None`` without such a state.

        Returns:
            What :meth:`PastFeature.condense` needs of the part, in the order of the log or of the timeline.
        """


P = TypeVar("P", bound=PastConfig)


class PastFeature(Feature[P]):
    """A feature that depends on the rows that are strictly earlier and share the values of its ``by`` columns."""

    @property
    @abstractmethod
    def by(self) -> tuple[str, ...]:
        """The raw columns that identify the entity."""

    @property
    @abstractmethod
    def carried(self) -> Sequence[str]:
        """Columns of :meth:`attach` that a row may already have; if it has all of them, nothing is attached."""

    @property
    @abstractmethod
    def stored(self) -> Sequence[str]:
        """Columns that a data set holds for it, which :meth:`gather` gives."""

    def columns(self) -> frozenset[str]:
        return frozenset(self.by)

    @abstractmethod
    def past_columns(self, raw: RawColumns) -> list[pl.Expr]:
        """What it needs of each row of a log."""

    def minutes(self, rows: pl.LazyFrame) -> pl.DataFrame | None:
        """``minute`` (since 1970, ascending), ``count`` and ``sum``: totals over all keys, if it needs any."""
        return None

    @property
    @abstractmethod
    def fields(self) -> Fields:
        """Values of the records that its :class:`Worker` writes: names and NumPy types."""

    @property
    def positions(self) -> Sequence[str]:
        """Fields that count events from the first one of the folder ``events``."""
        return ()

    @abstractmethod
    def begin(self, tables: Mapping[str, Table], events: Path, records: ByRow, minutes: pl.DataFrame | None) -> Worker:
        """Start to work out the feature for a log, or for the part of it that holds a span of keys.

        Args:
            tables: The id space of each table.
            events: A folder of the data set to keep files in.
            records: Where to write the :attr:`fields` of each row.
            minutes: What :meth:`minutes` gave, with those of the state that the log continues.
        """

    @abstractmethod
    def gather(
        self, records: np.ndarray, rows: np.ndarray, times: np.ndarray, minutes: pl.DataFrame | None
    ) -> list[pl.Series]:
        """The :attr:`stored` columns of N rows of the log.

        Args:
            records: Those of the rows, in any order: ``row`` and the :attr:`fields`.
            rows: (N,) their numbers, ascending.
            times: (N,) microseconds since 1970.
            minutes: As :meth:`begin` was given it.
        """

    @abstractmethod
    def events(self, rows: pl.DataFrame) -> pl.DataFrame:
        """What :meth:`condense` needs of rows with ``key``, ``time`` and :meth:`past_columns`."""

    @abstractmethod
    def condense(self, past: pl.DataFrame, latest: int) -> pl.DataFrame:
        """What a state keeps of ``past``.

        Args:
            past: Rows with ``key`` and ``time``, those of a key in the order of the log.
            latest: Time of the last row of the log, in microseconds since 1970.
        """

    @property
    def kept_columns(self) -> Mapping[str, pl.DataType]:
        """Columns and types of what :meth:`condense` gives, beside ``key`` and ``time``, to check a state by."""
        return {}

    def check_kept(self, found: pl.Schema) -> None:
        """Compare the columns of what a state keeps with those that :meth:`condense` gives.

        Raises:
            ValueError: One is missing, or of another type.
        """
        for column, dtype in {"key": pl.UInt64(), "time": pl.Int64(), **self.kept_columns}.items():
            if found.get(column) != dtype:
                raise ValueError(f"column {column!r} is {found.get(column)}, not {dtype}")

    @property
    def needs_minutes(self) -> bool:
        """Whether :meth:`minutes` gives totals, which a state must keep."""
        return False

    @abstractmethod
    def merge(self, old: pl.DataFrame, new: pl.DataFrame, latest: int) -> pl.DataFrame:
        """What a state keeps of two logs, ``new`` after ``old``, each condensed."""

    @abstractmethod
    def attach(self, kept: Kept, keys: Keys, places: Int64s, times: Int64s) -> list[pl.Series]:
        """The columns that :meth:`encode` reads, for N new rows.

        Args:
            keys: (K,) whose past to look up.
            places: (K,) the row that each key belongs to.
            times: (N,) microseconds since 1970.
        """

    @abstractmethod
    def restore(self, stored: pl.DataFrame, events: Path, log: pl.LazyFrame) -> list[pl.Series]:
        """The columns of :meth:`attach` for rows of a data set.

        Args:
            stored: The rows as they are in the data set: :attr:`stored` and the columns that the product adds.
            events: The folder that :meth:`begin` was given.
            log: The log that the data set was made from, with row numbers.
        """


class PastNumber(PastFeature[P]):
    """A feature of the past that is one number per row, in a column of its own name."""

    @property
    def carried(self) -> Sequence[str]:
        return [self.name]

    @property
    def stored(self) -> Sequence[str]:
        return [self.name]

    def specs(self) -> Specs:
        return Specs(dense=[DenseSpec(name=self.name, width=1)])

    def encode(self, spec: SparseSpec | DenseSpec, raw: RawColumns, fitted: Fitted) -> list[pl.Expr]:
        value = raw.number(f"{self.reader} (which State.attach adds)", self.name)
        return [value.cast(pl.Float32).alias(self.name)]

    def restore(self, stored: pl.DataFrame, events: Path, log: pl.LazyFrame) -> list[pl.Series]:
        return [stored[self.name]]
