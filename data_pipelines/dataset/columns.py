"""The encoded columns of one split, memory-mapped from its Arrow files."""

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from data_pipelines.arrays import to_arrow
from data_pipelines.batch import NULL_ID, Schema
from data_pipelines.dataset.blocks import Bags, Block, EventSlices
from data_pipelines.disk.damage import intact
from data_pipelines.disk.file_names import below
from data_pipelines.disk.storage import sync
from data_pipelines.errors import UserError
from data_pipelines.features.events import Events
from data_pipelines.names import LENGTH, LIST, ROW, START, TIME

LABEL = "label:"
WEIGHT = "weight:"
"""Prefix of how much a row counts for a task, if rows have weights."""
LOG_Q_OF = "log_q:"
"""Prefix of what log-q correction takes from a row's logit of a task, where it takes anything."""
KEY = "key:"
WEIGHTS = ":weights"
PART_ROWS = 1 << 20

Range = tuple[int, int]
Piece = tuple[int, int, int]
"""A record batch, and where in it rows start and stop."""


def parts(folder: Path) -> list[Path]:
    """The files that :class:`PartWriter` wrote into ``folder``, in order."""
    return sorted(folder.glob("part-*.arrow"))


def scan_parts(folder: Path) -> pl.LazyFrame:
    """The rows that :class:`PartWriter` wrote into ``folder``, whatever marks are in its name (``runs [final]``)."""
    return pl.scan_ipc(parts(folder), glob=False)


class PartWriter:
    """Writes frames of one schema into ``part-*.arrow`` files of at most about ``PART_ROWS`` rows.

    Written data is flushed while more is computed, so the final flush hardly waits.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self.folder, self.rows = folder, 0
        self._parts, self._in_part = 0, 0
        self._writer: pa.RecordBatchFileWriter | None = None
        self._aside = ThreadPoolExecutor(1)
        self._flushed: Future[None] = Future()
        self._flushed.set_result(None)

    def write(self, frame: pl.DataFrame) -> None:
        """Append rows; an empty frame only makes sure that there is a part to take the schema from."""
        if self._writer is None or (len(frame) and self._in_part >= PART_ROWS):
            self._end_part()
            self._path = self.folder / f"part-{self._parts:05d}.arrow"
            self._writer = pa.ipc.new_file(str(self._path), to_arrow(frame.clear()).schema)
            self._parts, self._in_part = self._parts + 1, 0
        if len(frame):
            self._writer.write_table(to_arrow(frame))
            self._flush()
        self._in_part += len(frame)
        self.rows += len(frame)

    def close(self) -> None:
        self._end_part()
        self._flushed.result()  # the kernel reports a failed write only once
        self._aside.shutdown()

    def _end_part(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def _flush(self) -> None:
        """Start, where the last flush has ended."""
        if self._flushed.done():
            self._flushed.result()
            self._flushed = self._aside.submit(sync, self._path)


@dataclass
class Columns:
    """Encoded columns of one split, read on demand.

    Attributes:
        labelled: Whether blocks have labels, weights and corrections.
        lists: Whether blocks have the keys of lists.
        shards: Rows of the files, in order.
    """

    batches: Sequence[pa.RecordBatch]
    schema: Schema
    events: Mapping[str, Events] = field(default_factory=dict)
    labelled: bool = True
    lists: bool = False
    shards: Sequence[int] = ()

    def __post_init__(self) -> None:
        self._starts = np.cumsum([0, *(batch.num_rows for batch in self.batches)])
        self._flat_cache: dict[str, list[np.ndarray]] = {}
        self._list_cache: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}

    @staticmethod
    def open(folder: Path, schema: Schema, events: Mapping[str, Events]) -> "Columns":
        return Columns.of_files([below(folder, path.name) for path in parts(folder)], schema, events)

    @staticmethod
    def of_files(paths: Iterable[Path], schema: Schema, events: Mapping[str, Events]) -> "Columns":
        batches: list[pa.RecordBatch] = []
        shards: list[int] = []
        for path in paths:
            with intact(path):
                reader = pa.ipc.open_file(pa.memory_map(str(path)))
                found = [reader.get_batch(i) for i in range(reader.num_record_batches)]
                for batch in found:
                    batch.validate()  # buffers are as long as they say; ids and offsets are checked as they are read
                _check_columns(schema, events, reader.schema)
            batches += found
            shards.append(sum(batch.num_rows for batch in found))
        return Columns(batches, schema, events, shards=shards)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def block(self, ranges: Iterable[Range], *, shuffled: bool = False) -> Block:
        """The rows of some ranges, one after the other; ``shuffled`` if batches will not take them in this order."""
        ranges = list(ranges)
        pieces = [piece for start, stop in ranges for piece in self._pieces(start, stop)]
        ids, bags, pasts = list[str](), dict[str, Bags](), dict[str, EventSlices]()
        for feature in self.schema.sparse:
            if feature.kind == "id":
                ids.append(feature.name)
            elif feature.kind == "bag" or feature.sequence not in self.events:
                bags[feature.name] = self._bags(feature.name, pieces, weighted=feature.weighted)
            elif feature.sequence not in pasts:
                assert feature.sequence is not None
                pasts[feature.sequence] = self._past(feature.sequence, pieces)
        size = sum(stop - start for start, stop in ranges)
        dense = [
            self._flat(feature.name, pieces, feature.width).reshape(size, feature.width)
            for feature in self.schema.dense
        ]
        labels = [self._flat(LABEL + task, pieces) for task in self.schema.tasks] if self.labelled else []
        return Block(
            ids={name: row for row, name in enumerate(ids)},
            id_matrix=self._id_matrix(ids, pieces, size, by_row=shuffled),
            bags=bags,
            pasts=pasts,
            dense=np.concatenate(dense, axis=1) if dense else np.empty((size, 0), np.float32),
            labels=np.stack(labels, axis=1) if labels else None,
            rows=np.concatenate([np.arange(start, stop) for start, stop in ranges] or [np.empty(0, np.int64)]),
            weights=self._by_task(WEIGHT, pieces, size, absent=1.0),
            log_q=self._by_task(LOG_Q_OF, pieces, size, absent=0.0),
            lists=self._flat(LIST, pieces) if self.lists else None,
        )

    def _by_task(self, prefix: str, pieces: Sequence[Piece], size: int, *, absent: float) -> np.ndarray | None:
        """(W, T) of the columns that some tasks have, ``absent`` for the others; ``None`` where no task has one."""
        names = self.batches[0].schema.names if self.labelled and self.batches else ()
        if not any(prefix + task in names for task in self.schema.tasks):
            return None
        constant = np.full(size, absent, np.float32)
        columns = [prefix + task for task in self.schema.tasks]
        return np.stack([self._flat(name, pieces) if name in names else constant for name in columns], axis=1)

    def _pieces(self, start: int, stop: int) -> Iterable[Piece]:
        """What makes up a range of rows."""
        batch = int(np.searchsorted(self._starts, start, side="right")) - 1
        while start < stop:
            low, high = int(self._starts[batch]), int(self._starts[batch + 1])
            yield batch, start - low, min(stop, high) - low
            start, batch = high, batch + 1

    def _arrays(self, name: str) -> list[np.ndarray]:
        """Values of a column, one array per record batch; several numbers per row are stored one after the other."""
        if name not in self._flat_cache:
            self._flat_cache[name] = [_numpy(batch.column(name)) for batch in self.batches]
        return self._flat_cache[name]

    def _lists(self, name: str) -> list[tuple[np.ndarray, np.ndarray]]:
        """Offsets and values of a column of lists, one pair a record batch."""
        if name not in self._list_cache:
            columns = (batch.column(name) for batch in self.batches)
            self._list_cache[name] = [(column.offsets.to_numpy(), column.values.to_numpy()) for column in columns]
        return self._list_cache[name]

    def _flat(self, name: str, pieces: Sequence[Piece], width: int = 1) -> np.ndarray:
        arrays = self._arrays(name)
        return _joined([arrays[batch][a * width : b * width] for batch, a, b in pieces])

    def _id_matrix(self, names: Sequence[str], pieces: Sequence[Piece], size: int, *, by_row: bool) -> np.ndarray:
        """(F, W) ids. ``by_row``: those of a row are adjacent in memory, so gathering rows has fewer cache misses."""
        columns = [self._arrays(name) for name in names]
        ids_FW = np.empty((len(names), size), np.int32, order="F" if by_row else "C")
        at = 0
        for batch, start, stop in pieces:
            here = ids_FW[:, at : at + stop - start]
            for ids_W, arrays in zip(here, columns, strict=True):
                ids_W[:] = arrays[batch][start:stop]
            at += stop - start
        return ids_FW

    def _values(self, name: str, pieces: Sequence[Piece]) -> np.ndarray:
        arrays = self._lists(name)
        return _joined([arrays[batch][1][arrays[batch][0][a] : arrays[batch][0][b]] for batch, a, b in pieces])

    def _bags(self, name: str, pieces: Sequence[Piece], *, weighted: bool) -> Bags:
        arrays = self._lists(name)
        lengths = _joined([np.diff(arrays[batch][0][a : b + 1]) for batch, a, b in pieces])
        bags = Bags(
            values=self._values(name, pieces),
            offsets=np.concatenate([[0], np.cumsum(lengths)]),
            weights=self._values(name + WEIGHTS, pieces) if weighted else None,
        )
        held = {len(bags.values), len(bags.values if bags.weights is None else bags.weights), int(bags.offsets[-1])}
        if len(held) > 1 or lengths.min(initial=0) < 0:
            raise UserError(f"column {name!r} is damaged (lengths of lists and values differ): prepare it again.")
        return bags

    def _past(self, history: str, pieces: Sequence[Piece]) -> EventSlices:
        events, age = self.events[history], f"{history}.age"
        wanted = {feature.name for feature in self.schema.sparse if feature.sequence == history}
        past = EventSlices(
            starts=self._flat(history + START, pieces).astype(np.int64),
            lengths=self._flat(history + LENGTH, pieces).astype(np.int64),
            events={name: ids for name, ids in events.ids.items() if name in wanted},
        )
        ends = past.starts + past.lengths
        if min(past.starts.min(initial=0), past.lengths.min(initial=0)) < 0 or ends.max(initial=0) > len(events.rows):
            raise UserError(f"history {history!r} is damaged (it has events that are not there): prepare it again.")
        if age in wanted:
            table = next(f.table for f in self.schema.sparse if f.name == age)
            past.age = (age, NULL_ID + self.schema.table(table).reserved)
            past.times, past.now = events.times, self._flat(TIME, pieces)
        return past


def _check_columns(schema: Schema, events: Mapping[str, Events], found: pa.Schema) -> None:
    """Compare the columns of a file with those that ``schema`` asks for.

    Raises:
        ValueError: One is missing, or of another type.
    """
    if found.get_field_index(ROW) < 0:
        raise ValueError(f"it has no column {ROW!r}: an earlier version prepared it")
    ids, numbers = pa.int32(), pa.float32()
    wanted: dict[str, tuple[pa.DataType, ...]] = {LABEL + task: (numbers,) for task in schema.tasks}
    optional = [prefix + task for prefix in (WEIGHT, LOG_Q_OF) for task in schema.tasks]
    wanted |= {name: (numbers,) for name in optional if name in found.names}
    for feature in schema.sparse:
        if feature.kind == "id":
            wanted[feature.name] = (ids,)
        elif feature.kind == "bag":
            wanted[feature.name] = (pa.list_(ids), pa.large_list(ids))
            if feature.weighted:
                wanted[feature.name + WEIGHTS] = (pa.list_(numbers), pa.large_list(numbers))
        elif feature.sequence is not None and feature.name not in {
            *events[feature.sequence].ids,
            f"{feature.sequence}.age",
        }:
            raise ValueError(f"the events of {feature.name!r} are missing")
    for dense in schema.dense:
        wanted[dense.name] = (numbers,) if dense.width == 1 else (pa.list_(numbers, dense.width),)
    for name, types in wanted.items():
        place = found.get_field_index(name)
        if place < 0 or not any(_same(found.field(place).type, kind) for kind in types):
            raise ValueError(
                f"column {name!r} is {found.field(place).type if place >= 0 else 'missing'}, not {types[0]}"
            )


def _same(one: pa.DataType, other: pa.DataType) -> bool:
    """Whether two types are the same but for the names of their inner fields."""
    if type(one) is not type(other) or getattr(one, "list_size", None) != getattr(other, "list_size", None):
        return False
    return bool(one.value_type == other.value_type if hasattr(one, "value_type") else one == other)


def _mapped(path: Path, dtype: type[np.generic]) -> np.ndarray:
    # An empty file cannot be mapped.
    return np.memmap(path, dtype, mode="r") if path.stat().st_size else np.empty(0, dtype)


def _numpy(array: pa.Array) -> np.ndarray:
    """The values of a column, without a copy unless it has nulls: those of labels are NaN."""
    flat = array.flatten() if pa.types.is_fixed_size_list(array.type) else array
    values: np.ndarray = flat.to_numpy(zero_copy_only=flat.null_count == 0)
    return values


def _joined(pieces: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate(pieces) if len(pieces) != 1 else pieces[0]
