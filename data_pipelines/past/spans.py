"""The past of a whole log, worked out by an engine: each worker takes in a span of keys, with the code of one machine.

Two rounds of work per group of features with the same entity. In the first, each part of the log is dealt into one
file, by the span that the key of each row is in. In the second, each span is read from all those files, in the order of
the log, and its past worked out. A key is in one span only, so that spans know nothing of each other; what they leave
is put together in the order of the keys, and equals what :func:`data_pipelines.past.point_in_time.compute` makes.
"""

import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa

from data_pipelines.arrays import to_batch
from data_pipelines.disk import parallel
from data_pipelines.disk.by_row import ByRow, ByRowFiles, RecordFile
from data_pipelines.disk.parallel import Engine, Part, left_at, merged, parts_of
from data_pipelines.disk.spill import Division, read_batches, read_span, write_spans
from data_pipelines.features.events import append_from
from data_pipelines.features.kinds.past import PastFeature
from data_pipelines.features.plan import Plan
from data_pipelines.features.vocabulary import Table
from data_pipelines.names import ROW
from data_pipelines.past.point_in_time import Past, Stored, keyed_rows, work_out
from data_pipelines.past.snapshots import Snapshots
from data_pipelines.past.state import State

Ends = Mapping[str, tuple[int, ...]]
"""By feature, where each batch of the records of a span ends."""


def compute_by_spans(
    engine: Engine,
    plan: Plan,
    rows: pl.LazyFrame,
    size: int,
    tables: Mapping[str, Table],
    folder: Path,
    scratch: Path,
    snapshots: Snapshots,
) -> Past:
    """Have ``engine`` work out the past of each of the ``size`` accepted rows, to be taken in any order, anywhere.

    Files are as :func:`data_pipelines.past.point_in_time.compute` makes them. ``scratch`` must be the same folder for
    all workers, and so must the folder of the state that the log continues.
    """
    parts = parts_of(size)
    totals = _minutes(engine, plan, rows, parts)
    minutes = {name: snapshots.add_minutes(name, totals.get(name)) for name in plan.past}
    division, base = Division.of(size, parallel.PART_ROWS), snapshots.base
    assert base is None or isinstance(base, State)
    stored: dict[str, Stored] = {}
    for number, (by, features) in enumerate(plan.past_by_key.items()):
        known = {name: totals for name, totals in minutes.items() if name in features}
        read = {spec.table for feature in features.values() for spec in feature.specs().sparse}
        needed = {name: table for name, table in tables.items() if name in read}
        place = scratch / f"past-{number}"
        dealt = tuple(engine(partial(_deal, plan, by, rows, division, place), parts))
        earlier = None if base is None else base.path
        work = _Work(features, needed, known, earlier, snapshots.latest, division, dealt, place)
        files: dict[str, list[RecordFile]] = {name: [] for name in features}
        events = dict.fromkeys(features, 0)
        for span, ends in enumerate(engine(work.work_out, range(division.spans))):
            for name, feature in features.items():
                left = work.left(span, name)
                added = tuple((field, events[name]) for field in feature.positions)
                files[name].append(RecordFile(left.records, ends[name], added))
                for condensed in read_batches(left.state):
                    snapshots.add(name, condensed)
                if left.events.is_dir():
                    events[name] += append_from(folder / "events" / name, left.events)
                    shutil.rmtree(left.events)
        for path in dealt:
            path.unlink()
        for name, feature in features.items():
            stored[name] = Stored(feature, ByRowFiles(feature.fields, tuple(files[name])), minutes[name])
    snapshots.add_delivered(rows)
    return Past.of({name: stored[name] for name in plan.past})


def _deal(plan: Plan, by: tuple[str, ...], rows: pl.LazyFrame, division: Division, place: Path, part: Part) -> Path:
    """Deal the keyed rows of a part into a file, by span."""
    path = place / f"rows-{part.number:06d}.arrow"
    frame = keyed_rows(plan, by, part.of(rows), plan.past_by_key[by].values(), ROW).collect(engine="streaming")
    with left_at(path) as made:
        write_spans(frame, division, made)
    return path


@dataclass(frozen=True)
class _Work:
    """How the past of each span is worked out.

    Attributes:
        features: Those of one entity.
        minutes: By feature, its totals of each minute.
        earlier: The folder of the state that the log continues.
        latest: Time of the last row of the log, in microseconds.
        dealt: The files of :func:`_deal`, in the order of the log.
        place: A folder of files that are needed only until the data set is written.
    """

    features: Mapping[str, PastFeature[Any]]
    tables: Mapping[str, Table]
    minutes: Mapping[str, pl.DataFrame | None]
    earlier: Path | None
    latest: int
    division: Division
    dealt: Sequence[Path]
    place: Path

    @cached_property
    def _base(self) -> State | None:
        return None if self.earlier is None else State(self.earlier)

    def left(self, span: int, name: str) -> "_Left":
        """The files of a span and a feature."""
        return _Left(self._folder(span) / name)

    def _folder(self, span: int) -> Path:
        return self.place / f"span-{span:06d}"

    def work_out(self, span: int) -> Ends:
        """Write the files of a span."""
        with left_at(self._folder(span)) as folder:
            left = {name: _Left(folder / name) for name in self.features}
            records, workers = {}, {}
            for name, feature in self.features.items():
                left[name].folder.mkdir(parents=True)
                records[name] = ByRow(left[name].records, feature.fields)
                workers[name] = feature.begin(self.tables, left[name].events, records[name], self.minutes[name])
            empty = next(read_span(self.dealt[:1], span)).clear()
            parts = self.division.within(span, read_span(self.dealt, span), empty)
            found = work_out(workers, self.features, parts, self._base, self.latest)
            _write_states({name: own.state for name, own in left.items()}, found)
            return {name: own.close() for name, own in records.items()}


@dataclass(frozen=True)
class _Left:
    """What the work on one span leaves of one feature."""

    folder: Path

    @property
    def records(self) -> Path:
        """The file of a :class:`ByRow`."""
        return self.folder / "records"

    @property
    def state(self) -> Path:
        """What a state keeps: an Arrow file of one record batch per partition."""
        return self.folder / "state.arrow"

    @property
    def events(self) -> Path:
        """The folder of its events; absent if it has none."""
        return self.folder / "events"


def _write_states(paths: Mapping[str, Path], found: Iterable[tuple[str, pl.DataFrame]]) -> None:
    writers: dict[str, pa.RecordBatchFileWriter] = {}
    for name, condensed in found:
        batch = to_batch(condensed)
        if name not in writers:
            writers[name] = pa.ipc.new_file(str(paths[name]), batch.schema)
        writers[name].write_batch(batch)
    for writer in writers.values():
        writer.close()


def _minutes(engine: Engine, plan: Plan, rows: pl.LazyFrame, parts: Sequence[Part]) -> dict[str, pl.DataFrame]:
    """By feature that needs them, its totals of each minute of the log."""
    needing = {name: feature for name, feature in plan.past.items() if feature.needs_minutes}
    if not needing:
        return {}
    found = engine(partial(_minutes_of_part, list(needing.values()), rows), parts)
    return dict(zip(needing, merged(found, _by_minute), strict=True))


def _minutes_of_part(features: Sequence[PastFeature[Any]], rows: pl.LazyFrame, part: Part) -> list[pl.DataFrame]:
    found = [feature.minutes(part.of(rows)) for feature in features]
    return [minutes for minutes in found if minutes is not None]


def _by_minute(frames: Sequence[pl.DataFrame]) -> pl.DataFrame:
    return pl.concat(frames).group_by("minute").agg(pl.col("count", "sum").sum()).sort("minute")
