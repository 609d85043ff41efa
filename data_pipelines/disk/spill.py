"""Work on more rows than memory holds: rows are partitioned by key into files, results restored to the log's order."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from data_pipelines.arrays import to_arrow

KEY = "key"
PARTITION_ROWS = 1 << 16
"""Few enough that the work on one partition stays in the processor's cache."""
MEMORY_ROWS = 1 << 20
CHUNK_ROWS = 1 << 17
_MOST_BITS = 8
_READ_AHEAD = 1 << 19


@dataclass(frozen=True)
class Partition:
    """The rows whose key is at least ``low`` and below ``high``."""

    rows: pl.DataFrame
    low: int
    high: int


def partitions(frame: pl.LazyFrame, rows: int, scratch: Path) -> Iterator[Partition]:
    """``frame`` in parts of roughly ``PARTITION_ROWS`` rows: each holds a span of the UInt64 column ``key``.

    Parts come in the order of their keys, and rows in the order of ``frame``. There are at most 256 parts, unless one
    would then have more than ``MEMORY_ROWS`` rows. About so many rows are in memory at once; the others are on disk.
    """
    coarse = _bits(rows, MEMORY_ROWS)
    fine = max(coarse, min(_bits(rows, PARTITION_ROWS), _MOST_BITS))
    width = 1 << (64 - fine)
    empty = frame.collect_schema().to_frame()
    chunks = frame.collect_batches(chunk_size=CHUNK_ROWS, maintain_order=True, engine="streaming")
    for span, there in _spilled(chunks, empty, coarse, scratch) if coarse else [(0, chunks)]:
        within = range(span << (fine - coarse), (span + 1) << (fine - coarse))
        dealt = {part: [empty] for part in within}
        for chunk in there:
            for part, held in _deal(chunk, fine):
                dealt[part].append(held)
        for part in within:
            yield Partition(pl.concat(dealt.pop(part), rechunk=True), part * width, (part + 1) * width)


def _bits(rows: int, size: int) -> int:
    """How many leading bits of the keys divide ``rows`` rows into parts of ``size``."""
    return max(0, (rows - 1).bit_length() - (size - 1).bit_length())


def _deal(chunk: pl.DataFrame, bits: int) -> Iterator[tuple[int, pl.DataFrame]]:
    """The rows of ``chunk`` by the leading bits of their key, in ascending order."""
    if bits == 0:
        yield 0, chunk
        return
    part_of = (chunk[KEY].to_numpy() >> np.uint64(64 - bits)).astype(np.uint16)
    dealt = chunk[np.argsort(part_of, kind="stable")]
    ends = np.cumsum(np.bincount(part_of, minlength=1 << bits)).tolist()
    for part, (start, end) in enumerate(pairwise([0, *ends])):
        if start < end:
            yield part, dealt[start:end]


def _spilled(
    chunks: Iterable[pl.DataFrame], empty: pl.DataFrame, bits: int, scratch: Path
) -> Iterator[tuple[int, Iterator[pl.DataFrame]]]:
    """Each value of the leading bits, and the rows that have it, chunk by chunk."""
    with TemporaryDirectory(dir=scratch) as folder:
        paths = [Path(folder, f"{part}.arrow") for part in range(1 << bits)]
        writers = [pa.ipc.new_file(str(path), to_arrow(empty).schema) for path in paths]
        for chunk in chunks:
            for part, held in _deal(chunk, bits):
                writers[part].write_table(to_arrow(held))
        for writer in writers:
            writer.close()
        for part, path in enumerate(paths):
            yield part, _read(path)
            path.unlink()


def _read(path: Path) -> Iterator[pl.DataFrame]:
    with pa.OSFile(str(path)) as file:
        reader = pa.ipc.open_file(file)
        for i in range(reader.num_record_batches):
            frame = pl.from_arrow(reader.get_batch(i))
            assert isinstance(frame, pl.DataFrame)
            yield frame


class ByRow:
    """Records ``(row, value, ...)``, written in batches that are sorted by row, and read in the order of the rows."""

    def __init__(self, path: Path, fields: Sequence[tuple[str, str]]) -> None:
        self.dtype: np.dtype[np.void] = np.dtype([("row", "<u4"), *fields])
        self._file = path.open("wb+")
        self._ends = [0]
        self._readers: list[_Reader] | None = None

    def add(self, rows: npt.NDArray[np.uint32], **values: np.ndarray) -> None:
        """Write a batch, sorted by row."""
        records = np.empty(len(rows), self.dtype)
        records["row"] = rows
        for name, column in values.items():
            records[name] = column
        self._file.write(records.view(np.uint8).data)  # ``tofile`` hides why a write failed
        self._ends.append(self._ends[-1] + len(rows))

    def take(self, end: int) -> np.ndarray:
        """All records of rows below ``end`` that were not taken before: ordered by batch, not by row."""
        if self._readers is None:
            self._file.flush()
            ahead = _READ_AHEAD // len(self._ends)
            spans = pairwise(self._ends)
            self._readers = [_Reader(self._file, self.dtype, start, stop, ahead) for start, stop in spans]
        return np.concatenate([np.empty(0, self.dtype), *(reader.take(end) for reader in self._readers)])


def places(rows: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The position of each of ``wanted`` in ``rows``, which is ascending and has all of them."""
    consecutive = len(rows) > 0 and int(rows[-1]) - int(rows[0]) == len(rows) - 1
    return wanted - rows[0] if consecutive else np.searchsorted(rows, wanted)


class _Reader:
    """Records of one batch, read a little ahead."""

    def __init__(self, file: BinaryIO, dtype: np.dtype[np.void], start: int, stop: int, ahead: int) -> None:
        self._file, self._dtype = file, dtype
        self._next, self._stop, self._size = start, stop, ahead
        self._ahead = np.empty(0, dtype)

    def take(self, end: int) -> np.ndarray:
        taken = []
        while True:
            if not len(self._ahead):
                self._ahead = self._read()
            n = int(np.searchsorted(self._ahead["row"], end))
            taken.append(self._ahead[:n])
            complete = n < len(self._ahead) or not len(self._ahead)
            self._ahead = self._ahead[n:]
            if complete:
                return np.concatenate(taken)

    def _read(self) -> np.ndarray:
        size = self._dtype.itemsize
        records = min(self._size, self._stop - self._next)
        read = os.pread(self._file.fileno(), records * size, self._next * size)
        self._next += records
        return np.frombuffer(read, self._dtype)
