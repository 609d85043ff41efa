"""The last events of an entity, strictly earlier than each row: as slices of the entity's events.

Letters: N rows of a timeline, E events among them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from data_pipelines.disk.spill import ByRow
from data_pipelines.features.compiling import Values
from data_pipelines.features.config import BagFeature, DataConfig, HistoryFeature
from data_pipelines.features.values import condition
from data_pipelines.features.vocabulary import Table, Vocabulary
from data_pipelines.timelines import Int64s, Keys, Timeline, bisect, running

_FLAG = "?"
NO_ROW = 2**32 - 1
"""The row of an event that is not of the log."""


def columns(config: DataConfig, name: str, values: Values) -> list[pl.Expr]:
    """What a history needs of each row: whether it is an event, and the text of each part if so."""
    feature = config.features[name]
    assert isinstance(feature, HistoryFeature)
    event = pl.lit(True) if feature.where is None else condition(f"history {name!r}", feature.where).fill_null(False)
    texts = part_texts(config, name, values.schema)
    named = zip(feature.of, texts, strict=True)
    return [event.alias(name + _FLAG), *(pl.when(event).then(text).alias(f"{name}.{part}") for part, text in named)]


def part_texts(config: DataConfig, name: str, schema: pl.Schema) -> list[pl.Expr]:
    """The text of each part of a history, ``<history>.<part>``, of any row; of a bag its first value."""
    feature, values = config.features[name], Values(config, schema)
    assert isinstance(feature, HistoryFeature)
    texts = []
    for part in feature.of:
        text = values.of(part)
        if isinstance(config.features[part], BagFeature):
            text = text.list.first()
        texts.append(text.alias(f"{name}.{part}"))
    return texts


@dataclass
class Slices:
    """Writes the slices of one history, row by row, and the events that they are slices of.

    Attributes:
        tables: By part of the history, the table that encodes it.
        folder: Of the encoded events: ``<feature>.i32``, ``times.i64``, ``rows.u32``, by entity and time.
        rows: Receives ``start`` and ``length`` of each row.
    """

    name: str
    feature: HistoryFeature
    tables: Mapping[str, Table]
    folder: Path
    rows: ByRow
    events: int = 0

    def __post_init__(self) -> None:
        self._ids = [self._encoded(part) for part in self.feature.of]

    def add(self, frame: pl.DataFrame, line: Timeline, earlier: pl.DataFrame | None) -> pl.DataFrame:
        """Take in one part of the log; returns its events in order: ``key``, ``time`` and the texts.

        Args:
            earlier: Events that were before the log.
        """
        known = 0 if earlier is None else len(earlier)
        if earlier is not None:
            before = earlier.with_columns(pl.lit(True).alias(self.name + _FLAG), row=pl.lit(NO_ROW, dtype=pl.UInt32))
            frame = pl.concat([before, frame.select(before.columns)])
            line = Timeline.of(frame["key"].to_numpy(), frame["time"].to_numpy())
        rows = frame["row"].to_numpy()
        event = frame[self.name + _FLAG].to_numpy()[line.order]
        count = running(event)
        end = count[line.tie]
        length = np.minimum(end - count[line.first], self.feature.last)
        start = line.in_log_order(self.events + end - length)
        self.rows.add(rows[known:], start=start[known:], length=line.in_log_order(length)[known:])
        places = line.order[event]
        found = _events(self.name, self.feature, frame).select(pl.all().gather(places))
        self._write(found, rows[places])
        self.events += len(found)
        return found.filter(pl.Series(places >= known)) if known else found

    def _write(self, found: pl.DataFrame, rows: np.ndarray) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for column in found.select(self._ids):
            _append(self.folder / f"{column.name}.i32", column.to_numpy())
        _append(self.folder / "times.i64", found["time"].to_numpy())
        _append(self.folder / "rows.u32", rows)

    def _encoded(self, part: str) -> pl.Expr:
        table = self.tables[part]
        assert isinstance(table, Vocabulary)
        return table.ids(pl.col(f"{self.name}.{part}")).alias(f"{self.name}.{part}")


def events(name: str, feature: HistoryFeature, frame: pl.DataFrame) -> pl.DataFrame:
    """The events among rows that have :func:`columns`: ``key``, ``time`` and the texts, in the order of the rows."""
    return _events(name, feature, frame.filter(pl.col(name + _FLAG)))


def _events(name: str, feature: HistoryFeature, frame: pl.DataFrame) -> pl.DataFrame:
    return frame.select("key", "time", *(f"{name}.{part}" for part in feature.of))


def _append(path: Path, values: np.ndarray) -> None:
    with path.open("ab") as file:
        file.write(np.ascontiguousarray(values).view(np.uint8).data)  # ``tofile`` hides why a write failed


def remembered(events: pl.DataFrame, last: int) -> pl.DataFrame:
    """Of ``events`` in the order of (key, time), those that the history of a later row can hold.

    Those are the last ``last`` events of each key before its latest time, and all events at that time: a row may come
    at the same time, and then sees only the former.
    """
    line = Timeline.of(events["key"].to_numpy(), events["time"].to_numpy())
    places = line.last_places()
    sizes = np.diff(np.append(line.first[places], len(events)))
    kept = np.arange(len(events)) >= np.repeat(line.tie[places] - last, sizes)
    return line.arranged(events).filter(pl.Series(kept))


def recall(event_keys: Keys, event_times: Int64s, keys: Keys, times: Int64s, last: int) -> tuple[Int64s, Int64s]:
    """Where in remembered events, in the order of (key, time), the history of each (key, time) starts; its length."""
    low = np.searchsorted(event_keys, keys, side="left").astype(np.int64)
    high = np.searchsorted(event_keys, keys, side="right").astype(np.int64)
    end = bisect(event_times, low, high, times)
    start = np.maximum(low, end - last)
    return start, end - start
