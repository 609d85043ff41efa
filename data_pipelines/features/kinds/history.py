"""The kind ``history``: the last events of an entity, as slices of the entity's events.

Letters: N rows of a timeline, E events among them.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import polars as pl
from pydantic import Field

from data_pipelines.arrays import age_bucket, lists, spans
from data_pipelines.batch import DenseSpec, SparseSpec
from data_pipelines.config.base import register
from data_pipelines.disk.by_row import ByRow, Fields, places
from data_pipelines.features.events import Events, append_events
from data_pipelines.features.kinds.base import Fitted, Specs
from data_pipelines.features.kinds.categorical import CategoricalFeature, categorical_parts, part_problems
from data_pipelines.features.kinds.past import DelayedConfig, Kept, PastFeature, is_event
from data_pipelines.features.raw_columns import RawColumns, wrong_type
from data_pipelines.features.values import text
from data_pipelines.features.vocabulary import Table, Vocabulary
from data_pipelines.names import LENGTH, ROW, START, TIME
from data_pipelines.timelines import Int64s, Keys, Timeline, bisect, running

if TYPE_CHECKING:
    from data_pipelines.features.config import DataConfig

_FLAG = "?"
_AGE_BUCKETS = 33
"""log2 of an event's age in seconds: bucket 0 is under a second, the last 136 years and more."""
NO_ROW = 2**32 - 1
"""The row of an event that is not of the log."""


@register
class HistoryConfig(DelayedConfig):
    """The last events of an entity that were strictly earlier than the row, oldest first."""

    kind: Literal["history"] = "history"
    of: list[str] = Field(
        min_length=1,
        description="Names of the id or bag features to read from those events; of a bag, its first value.",
    )
    where: str | None = Field(default=None, description="A SQL condition: which rows are events; all where absent.")
    last: int = Field(default=50, ge=1, le=65535, description="Events per row at most.")
    entity: str = Field(description="The column of the entity whose past is read; by default `data.user`.")
    age: bool = Field(
        default=False, description="Add how long ago each event was, as an id of buckets by log2 of the seconds."
    )

    @classmethod
    def defaults(cls, name: str, data: Mapping[str, Any]) -> dict[str, Any]:
        entity = {} if data.get("user") is None else {"entity": data["user"]}
        return super().defaults(name, data) | entity

    @property
    def past_parts(self) -> Sequence[str]:
        return self.of

    def problems(self, name: str, data: "DataConfig") -> Iterator[str]:
        yield from part_problems(name, self.of, data)
        yield from super().problems(name, data)

    def build(self, name: str, data: "DataConfig") -> "HistoryFeature":
        return HistoryFeature(name, self, categorical_parts(self.of, data))


class HistoryFeature(PastFeature[HistoryConfig]):
    """A sequence of events per row: one encoded feature ``<name>.<part>`` for each part, and ``<name>.age``.

    Attributes:
        parts: By the names of encoded features, the features to read from events.
    """

    def __init__(self, name: str, config: HistoryConfig, parts: Sequence[CategoricalFeature[Any]]) -> None:
        super().__init__(name, config)
        self.reader = f"history {name!r}"
        self.parts = {f"{name}.{part.name}": part for part in parts}
        self._age = f"{name}.age"

    @property
    def by(self) -> tuple[str, ...]:
        return (self.config.entity,)

    @property
    def carried(self) -> Sequence[str]:
        return list(self.parts)

    @property
    def stored(self) -> Sequence[str]:
        return [self.name + START, self.name + LENGTH]

    def log_columns(self) -> frozenset[str]:
        return self.columns().union(*(part.log_columns() for part in self.parts.values()))

    def conditions(self) -> Sequence[str]:
        return () if self.config.where is None else (self.config.where,)

    def specs(self) -> Specs:
        tables = {name: part.config.table for name, part in self.parts.items()}
        slots = {self._age: _AGE_BUCKETS} if self.config.age else {}
        sparse = [
            SparseSpec(name=name, table=table, kind="history", max_length=self.config.last, sequence=self.name)
            for name, table in [*tables.items(), *((name, name) for name in slots)]
        ]
        return Specs(sparse=sparse, slots=slots)

    def encode(self, spec: SparseSpec | DenseSpec, raw: RawColumns, fitted: Fitted) -> list[pl.Expr]:
        assert isinstance(spec, SparseSpec)
        table = fitted.tables[spec.table]
        expression, dtype = raw.column(f"{self.reader} (which State.attach adds)", spec.name)
        empty = pl.lit([], dtype=pl.List(pl.Int32))
        if dtype in (pl.Null, pl.List(pl.Null)):
            return [empty.alias(spec.name)]
        if not isinstance(dtype, pl.List):
            raise wrong_type(self.reader, spec.name, dtype, "lists")
        last = expression.list.tail(self.config.last)
        assert isinstance(dtype.inner, pl.DataType)
        if spec.name == self._age and not isinstance(table, Vocabulary):
            if not dtype.inner.is_numeric():
                raise wrong_type(self.reader, spec.name, dtype, "lists of slots")
            # Rows that carry their own history may carry any number.
            slot = pl.element().cast(pl.Int64, strict=False).clip(0, _AGE_BUCKETS - 1)
            ids = last.list.eval(table.slot_ids(slot))
        else:
            assert isinstance(table, Vocabulary)
            ids = last.list.eval(table.ids(text(pl.element(), dtype.inner)))
        return [ids.fill_null(empty).alias(spec.name)]

    def past_columns(self, raw: RawColumns) -> list[pl.Expr]:
        """Whether a row is an event, and the text of each part if so."""
        event = is_event(self.reader, self.config.where, raw)
        texts = self._texts(raw).items()
        return [event.alias(self.name + _FLAG), *(pl.when(event).then(value).alias(name) for name, value in texts)]

    def _texts(self, raw: RawColumns) -> dict[str, pl.Expr]:
        """The text of each part, of any row; of a bag its first value."""
        values = {name: (part.values(raw), part.is_bag) for name, part in self.parts.items()}
        return {name: value.list.first() if is_bag else value for name, (value, is_bag) in values.items()}

    @property
    def fields(self) -> Fields:
        return (("start", "<u4"), ("length", "<u4"))

    @property
    def positions(self) -> Sequence[str]:
        return ["start"]

    def begin(
        self, tables: Mapping[str, Table], events: Path, records: ByRow, minutes: pl.DataFrame | None
    ) -> "Slices":
        return Slices(self, tables, events, records)

    def gather(
        self, records: np.ndarray, rows: np.ndarray, times: np.ndarray, minutes: pl.DataFrame | None
    ) -> list[pl.Series]:
        place = places(rows, records["row"])
        columns = []
        for name, (field, _) in zip(self.stored, self.fields, strict=True):
            values = np.zeros(len(rows), np.uint32)
            values[place] = records[field]
            columns.append(pl.Series(name, values))
        return columns

    def events(self, rows: pl.DataFrame) -> pl.DataFrame:
        return self.event_columns(rows.filter(pl.col(self.name + _FLAG)))

    def event_columns(self, rows: pl.DataFrame) -> pl.DataFrame:
        """``key``, ``time`` and the texts of rows that are events."""
        return rows.select("key", "time", *self.parts)

    def condense(self, past: pl.DataFrame, latest: int) -> pl.DataFrame:
        """The events that the history of a later row can hold, in the order of (key, time).

        Those are the last ``last`` events of each key before its latest time, and all events at that time: a row may
        come at the same time, and then sees only the former. Labels that are not known yet keep more of them.
        """
        line = Timeline.of(past["key"].to_numpy(), past["time"].to_numpy())
        ends = line.last_places()
        sizes = np.diff(np.append(line.first[ends], len(past)))
        seen = line.tie[ends]
        if self.config.delay:
            seen = bisect(line.times, line.first[ends], seen, np.full(len(ends), latest - self.config.delay))
        kept = np.arange(len(past)) >= np.repeat(seen - self.config.last, sizes)
        return line.arranged(past).filter(pl.Series(kept))

    @property
    def kept_columns(self) -> Mapping[str, pl.DataType]:
        return dict.fromkeys(self.parts, pl.String())

    def merge(self, old: pl.DataFrame, new: pl.DataFrame, latest: int) -> pl.DataFrame:
        return self.condense(pl.concat([old, new]), latest)

    def attach(self, kept: Kept, keys: Keys, places: Int64s, times: Int64s) -> list[pl.Series]:
        """Lists of text, ``<name>.<part>``, and ages as slots."""
        event_keys, event_times = kept.rows["key"].to_numpy(), kept.rows["time"].to_numpy()
        low = np.searchsorted(event_keys, keys, side="left").astype(np.int64)
        high = np.searchsorted(event_keys, keys, side="right").astype(np.int64)
        end = bisect(event_times, low, high, times[places] - self.config.delay)
        start = np.maximum(low, end - self.config.last)
        starts, lengths = np.zeros((2, len(times)), np.int64)
        starts[places], lengths[places] = start, end - start
        picked = spans(starts, lengths)
        return self._lists(kept.rows.select(*self.parts)[picked], times, lengths, event_times[picked])

    def restore(self, stored: pl.DataFrame, events: Path, log: pl.LazyFrame) -> list[pl.Series]:
        encoded = Events.open(events)
        lengths = stored[self.name + LENGTH].to_numpy().astype(np.int64)
        picked = spans(stored[self.name + START].to_numpy().astype(np.int64), lengths)
        rows = pl.DataFrame({ROW: encoded.rows[picked]})
        texts = log.select(ROW, **self._texts(RawColumns(log.collect_schema())))
        distinct = rows.unique().lazy().join(texts, on=ROW, how="left").collect()
        found = rows.join(distinct, on=ROW, how="left", maintain_order="left")
        return self._lists(found, stored[TIME].to_numpy(), lengths, encoded.times[picked])

    def _lists(self, events: pl.DataFrame, times: Int64s, lengths: Int64s, event_times: Int64s) -> list[pl.Series]:
        """Lists of the events of each row, which stand one row after the other."""
        columns = [lists(name, events[name], lengths) for name in self.parts]
        if self.config.age:
            ages = age_bucket(np.repeat(times, lengths) - event_times)
            columns.append(lists(self._age, pl.Series(ages), lengths))
        return columns


class Slices:
    """Writes the events of one history, and for each row of the log the slice of them that it sees.

    Args:
        tables: The id space of each table.
        folder: Where to write encoded events.
        records: Where to write ``start`` and ``length`` of each row.
    """

    def __init__(self, feature: HistoryFeature, tables: Mapping[str, Table], folder: Path, records: ByRow) -> None:
        self._feature = feature
        self._folder = folder
        self._rows = records
        self._ids: list[pl.Expr] = []
        self._events = 0
        for name, part in feature.parts.items():
            table = tables[part.config.table]
            assert isinstance(table, Vocabulary)
            self._ids.append(table.ids(pl.col(name)).alias(name))

    def add(self, rows: pl.DataFrame, line: Timeline, earlier: pl.DataFrame | None) -> pl.DataFrame:
        """Take in one part of the log; returns its events in order: ``key``, ``time`` and the texts."""
        known, flag = 0 if earlier is None else len(earlier), self._feature.name + _FLAG
        if earlier is not None:
            before = earlier.with_columns(pl.lit(True).alias(flag), row=pl.lit(NO_ROW, dtype=pl.UInt32))
            rows = pl.concat([before, rows.select(before.columns)])
            line = Timeline.of(rows["key"].to_numpy(), rows["time"].to_numpy())
        numbers = rows["row"].to_numpy()
        event = rows[flag].to_numpy()[line.order]
        count = running(event)
        end = count[line.until(self._feature.config.delay)]
        length = np.minimum(end - count[line.first], self._feature.config.last)
        start = line.in_log_order(self._events + end - length)
        self._rows.add(numbers[known:], start=start[known:], length=line.in_log_order(length)[known:])
        picked = line.order[event]
        found = self._feature.event_columns(rows).select(pl.all().gather(picked))
        encoded = found.select(self._ids)
        ids = {column.name: column.to_numpy() for column in encoded}
        append_events(self._folder, ids, found["time"].to_numpy(), numbers[picked])
        self._events += len(found)
        return found.filter(pl.Series(picked >= known)) if known else found
