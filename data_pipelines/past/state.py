"""The state: what histories and statistics need at scoring time, as of the last event seen.

A row that comes after that event gets from the state the same features, value by value, as when it is prepared with the
whole log.
"""

from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import polars as pl
import pyarrow as pa
from pydantic import Field, model_validator

from data_pipelines.arrays import age_bucket, lists, spans
from data_pipelines.disk import storage
from data_pipelines.disk.file_names import below
from data_pipelines.disk.spill import KEY
from data_pipelines.disk.storage import intact, read_json
from data_pipelines.errors import UserError
from data_pipelines.features.compiling import Values
from data_pipelines.features.config import Config, DataConfig, HistoryFeature, StatisticFeature
from data_pipelines.locations import expand
from data_pipelines.logs import sources
from data_pipelines.logs.keys import keyed
from data_pipelines.logs.validation import checked
from data_pipelines.names import REASON, ROW, TIME
from data_pipelines.past import histories, statistics
from data_pipelines.past import point_in_time as past
from data_pipelines.past.snapshots import Snapshots, check_columns
from data_pipelines.past.statistics import Prior
from data_pipelines.timelines import Int64s, Keys, bisect, find, running

STATE = "state.json"


class _Content(Config):
    """What ``state.json`` holds: ``priors`` are rows of ``[minute, count, sum]`` by statistic."""

    config: DataConfig
    latest: int = Field(ge=-(1 << 62), le=1 << 62)
    priors: dict[str, list[Annotated[list[int], Field(min_length=3, max_length=3)]]]

    @model_validator(mode="after")
    def _complete(self) -> "_Content":
        for name, feature in self.config.features.items():
            if isinstance(feature, StatisticFeature) and feature.measure != "count" and name not in self.priors:
                raise ValueError(f"the statistic {name!r} has no prior")
        return self


class State:
    """A snapshot of the past, memory-mapped.

    Attributes:
        path: Where it lies.
        config: What the log's columns mean.
        latest: Time of the last event seen, in microseconds since 1970.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        content = read_json(below(path, STATE), _Content)
        self.config, self.latest, self._priors = content.config, content.latest, content.priors
        self._frames: dict[str, pl.DataFrame] = {}

    @staticmethod
    def open(folder: Path, verify: Literal["full", "sizes"] = "full") -> "State":
        """Open the state at ``folder``, its checksums compared (or, quicker, only sizes).

        Raises:
            UserError: There is none, or it is damaged.
        """
        storage.open_directory(folder, "state", verify=verify)
        return State(folder)

    def frame(self, name: str) -> pl.DataFrame:
        """What is remembered for a feature (see :mod:`data_pipelines.past.snapshots`)."""
        if name not in self._frames:
            path = below(self.path, f"{name}.arrow")
            with intact(path):
                table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
                table.validate(full=True)
                frame = pl.from_arrow(table)
                assert isinstance(frame, pl.DataFrame)
                check_columns(self.config, name, frame.schema)
            self._frames[name] = frame
        return self._frames[name]

    def span(self, name: str, low: int, high: int) -> pl.DataFrame:
        """What is remembered of the keys from ``low`` to below ``high``."""
        frame = self.frame(name)
        keys = frame[KEY].to_numpy()
        start = int(np.searchsorted(keys, np.uint64(low)))
        stop = len(keys) if high >= 1 << 64 else int(np.searchsorted(keys, np.uint64(high)))
        return frame[start:stop]

    def attach(self, rows: pl.LazyFrame) -> pl.LazyFrame:
        """``rows`` with their histories (lists of text, ``<history>.<part>``; ages as slots) and statistics.

        A row without a time comes right after the last event. Columns that are there already, such as a history that a
        request carries, are left as they are.

        Raises:
            UserError: A column that says whose past it is, is missing.
        """
        frame = rows.collect()
        times = self._times(frame)
        added: list[pl.Series] = []
        for by, names in past.groups(self.config).items():
            names = [name for name in names if not self._carried(name, frame)]
            if not names:
                continue
            numbered = frame.lazy().with_row_index(ROW)
            keys = keyed(self.config, by, numbered, [pl.col(ROW)]).collect()
            places = keys[ROW].to_numpy().astype(np.int64)
            for name in names:
                feature = self.config.features[name]
                if isinstance(feature, HistoryFeature):
                    added += self._history(name, feature, keys[KEY].to_numpy(), places, times)
                else:
                    assert isinstance(feature, StatisticFeature)
                    added.append(self._statistic(name, feature, keys[KEY].to_numpy(), places, times))
        return frame.with_columns(added).lazy()

    def _times(self, frame: pl.DataFrame) -> Int64s:
        assert self.config.time is not None
        after = self.latest + 1
        if self.config.time not in frame.columns:
            return np.full(len(frame), after)
        time = Values(self.config, frame.schema).epoch("`time`", self.config.time)
        return frame.select(time.fill_null(after)).to_series().to_numpy()

    def _carried(self, name: str, frame: pl.DataFrame) -> bool:
        feature = self.config.features[name]
        wanted = [f"{name}.{part}" for part in feature.of] if isinstance(feature, HistoryFeature) else [name]
        return all(column in frame.columns for column in wanted)

    def _history(
        self, name: str, feature: HistoryFeature, keys: Keys, places: Int64s, times: Int64s
    ) -> list[pl.Series]:
        events = self.frame(name)
        event_times = events["time"].to_numpy()
        starts, lengths = np.zeros((2, len(times)), np.int64)
        starts[places], lengths[places] = histories.recall(
            events[KEY].to_numpy(), event_times, keys, times[places], feature.last
        )
        picked = spans(starts, lengths)
        columns = [lists(f"{name}.{part}", events[f"{name}.{part}"][picked], lengths) for part in feature.of]
        if feature.age:
            ages = age_bucket(np.repeat(times, lengths) - event_times[picked])
            columns.append(lists(f"{name}.age", pl.Series(ages), lengths))
        return columns

    def _statistic(self, name: str, feature: StatisticFeature, keys: Keys, places: Int64s, times: Int64s) -> pl.Series:
        now = times[places]
        counts, sums = self.sums(name, keys, now)
        prior = self._prior(name)
        before = None if prior is None else prior.at(times, feature)
        levels = statistics.level(feature, counts, sums, None if before is None else before[places])
        totals, elements = statistics.gather(places, levels.astype(np.float32), len(times))
        return pl.Series(name, statistics.finish(feature, totals, elements, before))

    def sums(self, name: str, keys: Keys, now: Int64s) -> tuple[Int64s, Int64s]:
        """Rows of each key strictly before ``now`` (in the window, if the statistic has one), and their sums."""
        feature = self.config.features[name]
        assert isinstance(feature, StatisticFeature)
        return self._windowed(name, feature, keys, now) if feature.window else self._running(name, keys, now)

    def _running(self, name: str, keys: Keys, now: Int64s) -> tuple[Int64s, Int64s]:
        frame = self.frame(name)
        place, known = find(frame[KEY].to_numpy(), keys)
        if frame.is_empty():
            return np.zeros_like(now), np.zeros_like(now)
        later = frame["time"].to_numpy()[place] < now
        counts = frame["before"].to_numpy()[place] + later * frame["at"].to_numpy()[place]
        sums = frame["before_sum"].to_numpy()[place] + later * frame["at_sum"].to_numpy()[place]
        return known * counts, known * sums

    def _windowed(self, name: str, feature: StatisticFeature, keys: Keys, now: Int64s) -> tuple[Int64s, Int64s]:
        assert feature.window is not None
        frame = self.frame(name)
        times, event_keys = frame["time"].to_numpy(), frame[KEY].to_numpy()
        low = np.searchsorted(event_keys, keys, side="left").astype(np.int64)
        high = np.searchsorted(event_keys, keys, side="right").astype(np.int64)
        start = bisect(times, low, high, now - round(feature.window * 1_000_000))
        end = bisect(times, low, high, now)
        sums = running(frame["value"].to_numpy())
        return end - start, sums[end] - sums[start]

    def _prior(self, name: str) -> Prior | None:
        if name not in self._priors:
            return None
        return Prior.of(self.minutes(name))

    def minutes(self, name: str) -> pl.DataFrame:
        """Rows and sums of a statistic's value, of all minutes before the last one together, and of the last."""
        schema = {"minute": pl.Int64, "count": pl.Int64, "sum": pl.Int128}
        return pl.DataFrame(self._priors[name], schema=schema, orient="row")

    def update(self, log: str, out: Path | None = None) -> "State":
        """The state after the events of another log as well, written over this one (or to ``out``).

        Raises:
            UserError: The log cannot be read, or lacks a column; or this state is part of a larger directory, whose
                checksums would no longer hold.
        """
        out = self.path if out is None else out
        if out == self.path and (out.parent / storage.MANIFEST).exists():
            raise UserError(f"{out} is a part of {out.parent}: name another directory for the new state.")
        with storage.new_directory(out, "state", replace=out == self.path) as folder:
            with sources.reading(log):
                rows = checked(self.config, sources.scan(self.config, expand(log))).filter(pl.col(REASON).is_null())
                newest = rows.select(pl.col(TIME).max()).collect().item()
                latest = max(self.latest, newest if newest is not None else self.latest)
                fresh = Snapshots(self.config, folder, latest, base=self)
                past.remember(self.config, rows, fresh)
            fresh.close()
            save(folder, fresh)
        return State(out)


def save(folder: Path, snapshots: Snapshots) -> None:
    """Write what :class:`State` opens beside the features' own files."""
    content = _Content(config=snapshots.config, latest=snapshots.latest, priors=snapshots.priors)
    (folder / STATE).write_text(content.model_dump_json())
