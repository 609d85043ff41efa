"""Work on more rows than memory holds: rows are partitioned by key into files."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import polars as pl
import pyarrow as pa

from data_pipelines.arrays import to_arrow, to_batch

KEY = "key"
PARTITION_ROWS = 1 << 16
"""Few enough that the work on one partition stays in the processor's cache."""
MEMORY_ROWS = 1 << 20
CHUNK_ROWS = 1 << 17
_MOST_BITS = 8


@dataclass(frozen=True)
class Partition:
    """The rows whose key is at least ``low`` and below ``high``."""

    rows: pl.DataFrame
    low: int
    high: int


@dataclass(frozen=True)
class Division:
    """How rows are divided by the leading bits of their keys: into spans, and each span into partitions.

    Attributes:
        coarse: The bits that name a span. The rows of one are in memory at once, those of the others on disk.
        fine: The bits that name a partition.
    """

    coarse: int
    fine: int

    @staticmethod
    def of(rows: int, span: int | None = None) -> "Division":
        """Partitions of roughly ``PARTITION_ROWS`` of ``rows``; at most 256, unless one had more than ``MEMORY_ROWS``.

        Partitions do not depend on ``span``.

        Args:
            span: Rows of a span; ``MEMORY_ROWS`` at most, and if absent.
        """
        coarse = _bits(rows, MEMORY_ROWS)
        fine = max(coarse, min(_bits(rows, PARTITION_ROWS), _MOST_BITS))
        return Division(coarse if span is None else max(coarse, min(fine, _bits(rows, span))), fine)

    @property
    def spans(self) -> int:
        """The number of spans."""
        return 1 << self.coarse

    def within(self, span: int, chunks: Iterable[pl.DataFrame], empty: pl.DataFrame) -> Iterator[Partition]:
        """The partitions of one span, in the order of their keys.

        Args:
            span: Its number.
            chunks: The rows of the span, chunk by chunk.
            empty: A frame without rows, of the same columns.
        """
        width = 1 << (64 - self.fine)
        within = range(span << (self.fine - self.coarse), (span + 1) << (self.fine - self.coarse))
        dealt = {part: [empty] for part in within}
        for chunk in chunks:
            for part, held in _deal(chunk, self.fine):
                dealt[part].append(held)
        for part in within:
            yield Partition(pl.concat(dealt.pop(part), rechunk=True), part * width, (part + 1) * width)


def partitions(frame: pl.LazyFrame, rows: int, scratch: Path) -> Iterator[Partition]:
    """``frame`` in parts of roughly ``PARTITION_ROWS`` rows: each holds a span of the UInt64 column ``key``.

    Parts come in the order of their keys, and rows in the order of ``frame``. There are at most 256 parts, unless one
    would then have more than ``MEMORY_ROWS`` rows. About so many rows are in memory at once; the others are on disk.
    """
    division = Division.of(rows)
    empty = frame.collect_schema().to_frame()
    chunks = frame.collect_batches(chunk_size=CHUNK_ROWS, maintain_order=True, engine="streaming")
    for span, there in _spilled(chunks, empty, division.coarse, scratch) if division.coarse else [(0, chunks)]:
        yield from division.within(span, there, empty)


def write_spans(frame: pl.DataFrame, division: Division, path: Path) -> None:
    """Write a part of the rows as an Arrow file of one record batch per span, for :func:`read_span`."""
    empty = to_batch(frame.clear())
    dealt = {span: to_batch(held) for span, held in _deal(frame, division.coarse)}
    with pa.ipc.new_file(str(path), empty.schema) as writer:
        for span in range(division.spans):
            writer.write_batch(dealt.get(span, empty))


def read_span(paths: Iterable[Path], span: int) -> Iterator[pl.DataFrame]:
    """The rows of one span from files of :func:`write_spans`, file by file; the file of a part may hold none."""
    for path in paths:
        with pa.OSFile(str(path)) as file:
            frame = pl.from_arrow(pa.ipc.open_file(file).get_batch(span))
            assert isinstance(frame, pl.DataFrame)
            yield frame


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
            yield part, read_batches(path)
            path.unlink()


def read_batches(path: Path) -> Iterator[pl.DataFrame]:
    """The record batches of an Arrow file, one by one."""
    with pa.OSFile(str(path)) as file:
        reader = pa.ipc.open_file(file)
        for i in range(reader.num_record_batches):
            frame = pl.from_arrow(reader.get_batch(i))
            assert isinstance(frame, pl.DataFrame)
            yield frame
