"""The state: what features of the past need at scoring time, as of the last event seen.

A row that comes after that event gets from the state the same features, value by value, as when it is prepared with the
whole log.
"""

from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import polars as pl
import pyarrow as pa
from pydantic import Field, model_validator

from data_pipelines.config.base import Config, extensions_meta
from data_pipelines.disk import storage
from data_pipelines.disk.damage import intact, read_json
from data_pipelines.disk.file_names import below
from data_pipelines.disk.spill import KEY
from data_pipelines.errors import UserError
from data_pipelines.features.config import DataConfig
from data_pipelines.features.kinds.past import Kept
from data_pipelines.features.plan import Plan
from data_pipelines.features.raw_columns import RawColumns
from data_pipelines.files.base import reading
from data_pipelines.files.formats import scan_files
from data_pipelines.locations import expand
from data_pipelines.logs import sources
from data_pipelines.logs.keys import keyed
from data_pipelines.logs.validation import check_times, checked
from data_pipelines.names import REASON, ROW, TIME
from data_pipelines.past.deliveries import Late, fresh_events
from data_pipelines.past.point_in_time import remember
from data_pipelines.past.snapshots import DELIVERED, Snapshots
from data_pipelines.timelines import Int64s

STATE = "state.json"


class _Content(Config):
    """What ``state.json`` holds: ``priors`` are rows of ``[minute, count, sum]`` by feature."""

    config: DataConfig
    latest: int = Field(ge=-(1 << 62), le=1 << 62)
    priors: dict[str, list[Annotated[list[int], Field(min_length=3, max_length=3)]]]

    @model_validator(mode="after")
    def _complete(self) -> "_Content":
        for name, feature in Plan.of(self.config).past.items():
            if feature.needs_minutes and name not in self.priors:
                raise ValueError(f"the statistic {name!r} has no prior")
        return self


class State:
    """A snapshot of the past, memory-mapped.

    Attributes:
        path: Its folder.
        plan: What the log's columns mean.
        latest: Time of the last event seen, in microseconds since 1970.

    Example:
        >>> state = rs.State.open(Path("dataset/state"))
        >>> new = pl.LazyFrame({"reader": ["r1"], "time": [state.latest // 1_000_000 + 60]})
        >>> state.attach(new).collect_schema().names()
        ['reader', 'time', 'read.article']
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        content = read_json(below(path, STATE), _Content)
        self.plan, self.latest, self._priors = Plan.of(content.config), content.latest, content.priors
        self._frames: dict[str, pl.DataFrame] = {}

    @staticmethod
    def open(folder: Path, verify: Literal["full", "sizes"] = "full") -> "State":
        """Open the state at ``folder`` after comparing its checksums (or only its sizes, which is faster).

        Raises:
            UserError: There is no state, or it is damaged.
        """
        storage.open_directory(folder, "state", verify=verify)
        return State(folder)

    @staticmethod
    def before(plan: Plan, log: str, time: int, out: Path) -> "State":
        """The state of a log as it was right before ``time`` (microseconds since 1970), written to ``out``.

        Raises:
            UserError: The log cannot be read or lacks a column, or ``out`` exists.
        """
        with storage.new_directory(out, "state") as folder:
            with reading(log):
                rows = checked(plan, sources.scan(plan, log).rows(log))
                rows = rows.filter(pl.col(REASON).is_null() & (pl.col(TIME) < time))
                latest = rows.select(pl.col(TIME).max()).collect(engine="streaming").item()
                snapshots = Snapshots(plan, folder, time - 1 if latest is None else latest)
                remember(plan, rows, snapshots)
            save(snapshots)
        return State(out)

    def frame(self, name: str) -> pl.DataFrame:
        """What is kept of a feature (see :mod:`data_pipelines.past.snapshots`)."""
        if name not in self._frames:
            path = below(self.path, f"{name}.arrow")
            with intact(path):
                frame = _read_arrow(path)
                self.plan.past[name].check_kept(frame.schema)
            self._frames[name] = frame
        return self._frames[name]

    @cached_property
    def delivered(self) -> pl.DataFrame | None:
        """``key`` and ``time`` of events that may be delivered again; ``None`` where none are remembered."""
        path = below(self.path, DELIVERED)
        if not path.is_file():
            return None
        with intact(path):
            frame = _read_arrow(path)
            if frame.schema != {"key": pl.UInt64(), "time": pl.Int64()}:
                raise ValueError(f"its columns are {dict(frame.schema)}")
        return frame

    def span(self, name: str, low: int, high: int) -> pl.DataFrame:
        """What is kept of the keys from ``low`` to below ``high``."""
        frame = self.frame(name)
        keys = frame[KEY].to_numpy()
        start = int(np.searchsorted(keys, np.uint64(low)))
        stop = len(keys) if high >= 1 << 64 else int(np.searchsorted(keys, np.uint64(high)))
        return frame[start:stop]

    def attach(self, rows: pl.LazyFrame, plan: Plan | None = None) -> pl.LazyFrame:
        """``rows`` with the columns of the features that depend on earlier rows.

        Of a history those are lists of text, ``<history>.<part>``, and ages as slots; of a statistic its value. A row
        without a time comes right after the last event. Columns that are there already, such as a history that a
        request carries, are left as they are.

        Args:
            plan: The features to attach; by default all that the state keeps.

        Raises:
            UserError: A column that identifies an entity is missing.
        """
        plan = plan or self.plan
        frame = rows.collect()
        times = self._times(plan, frame)
        added: list[pl.Series] = []
        for by, features in plan.past_by_key.items():
            wanted = [f for f in features.values() if not all(name in frame.columns for name in f.carried)]
            if not wanted:
                continue
            numbered = frame.lazy().with_row_index(ROW)
            keyed_rows = keyed(plan, by, numbered, [pl.col(ROW)]).collect()
            keys, places = keyed_rows[KEY].to_numpy(), keyed_rows[ROW].to_numpy().astype(np.int64)
            for feature in wanted:
                kept = Kept(self.frame(feature.name), self.minutes(feature.name))
                added += feature.attach(kept, keys, places, times)
        return frame.with_columns(added).lazy()

    def _times(self, plan: Plan, frame: pl.DataFrame) -> Int64s:
        assert plan.time is not None
        after = self.latest + 1
        if plan.time not in frame.columns:
            return np.full(len(frame), after)
        time = plan.when(RawColumns(frame.schema))
        return frame.select(time.fill_null(after)).to_series().to_numpy()

    def minutes(self, name: str) -> pl.DataFrame | None:
        """Totals over all keys, of all minutes before the last one together, and of the last; ``None`` if not kept."""
        if name not in self._priors:
            return None
        schema = {"minute": pl.Int64, "count": pl.Int64, "sum": pl.Int128}
        return pl.DataFrame(self._priors[name], schema=schema, orient="row")

    def update(self, log: str, out: Path | None = None, *, late: Late = "count") -> "State":
        """The state after the events of another log as well, written over this one (or to ``out``).

        Args:
            late: What to do with events that are not later than :attr:`latest`, which this state may have already, as
                :func:`~data_pipelines.past.deliveries.fresh_events` does it.

        Raises:
            UserError: The log cannot be read, or lacks a column; it has late events and ``late`` is ``refuse``; or this
                state is part of a larger directory, whose checksums would no longer hold.
        """
        out = self.path if out is None else out
        if out == self.path and (out.parent / storage.MANIFEST).exists():
            raise UserError(f"{out} is a part of {out.parent}: name another directory for the new state.")
        meta = extensions_meta(self.plan.config)
        with storage.new_directory(out, "state", meta=meta, replace=out == self.path) as folder:
            with reading(log):
                location = expand(log)
                found = scan_files(location, self.plan.config.format, needed=self.plan.log_columns)
                sources.count_left_out(self.plan, found.frame, log)
                events = sources.scan(self.plan, location, found=found).rows(log)
                check_times(self.plan, events, log)
                rows = checked(self.plan, events).filter(pl.col(REASON).is_null())
                rows = fresh_events(self.plan, rows, log, self, late).rows
                newest = rows.select(pl.col(TIME).max()).collect().item()
                latest = max(self.latest, newest if newest is not None else self.latest)
                fresh = Snapshots(self.plan, folder, latest, base=self)
                remember(self.plan, rows, fresh)
            save(fresh)
        return State(out)


def _read_arrow(path: Path) -> pl.DataFrame:
    """A mapped Arrow file, whose buffers are checked before they are used."""
    table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    table.validate(full=True)
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    return frame


def save(snapshots: Snapshots) -> None:
    """Close the snapshots, and write the file of a :class:`State` that is not a feature's own beside them."""
    snapshots.close()
    content = _Content(config=snapshots.plan.config, latest=snapshots.latest, priors=snapshots.priors)
    (snapshots.folder / STATE).write_text(content.model_dump_json())
