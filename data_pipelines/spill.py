"""Work on more rows than memory holds: rows parted by key into files, and results put back in the order of the log."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from data_pipelines.columns import to_arrow

KEY = "key"
PARTITION_ROWS = 1 << 20
CHUNK_ROWS = 1 << 17
_READ_AHEAD = 1 << 15


@dataclass(frozen=True)
class Partition:
    """The rows whose key is at least ``low`` and below ``high``."""

    rows: pl.DataFrame
    low: int = 0
    high: int = 1 << 64


def partitions(frame: pl.LazyFrame, rows: int, scratch: Path) -> Iterator[Partition]:
    """``frame`` in parts of roughly ``PARTITION_ROWS`` rows: each holds a span of the UInt64 column ``key``.

    Parts come in the order of their keys, and rows in the order of ``frame``.
    """
    bits = max(0, (rows - 1).bit_length() - (PARTITION_ROWS - 1).bit_length())
    if bits == 0:
        yield Partition(frame.collect(engine="streaming"))
        return
    schema = to_arrow(frame.collect_schema().to_frame()).schema
    with TemporaryDirectory(dir=scratch) as folder:
        paths = [Path(folder, f"{part}.arrow") for part in range(1 << bits)]
        writers = [pa.ipc.new_file(str(path), schema) for path in paths]
        for chunk in frame.collect_batches(chunk_size=CHUNK_ROWS, maintain_order=True, engine="streaming"):
            part_of = chunk[KEY].to_numpy() >> np.uint64(64 - bits)
            order = np.argsort(part_of, kind="stable")
            ends = np.cumsum(np.bincount(part_of.astype(np.int64), minlength=1 << bits))
            parted = chunk[order]
            for part, writer in enumerate(writers):
                start = int(ends[part - 1]) if part else 0
                if start < ends[part]:
                    writer.write_table(to_arrow(parted[start : int(ends[part])]))
        for writer in writers:
            writer.close()
        width = 1 << (64 - bits)
        for part, path in enumerate(paths):
            with pa.OSFile(str(path)) as file:
                part_frame = pl.from_arrow(pa.ipc.open_file(file).read_all())
            assert isinstance(part_frame, pl.DataFrame)
            path.unlink()
            yield Partition(part_frame, part * width, (part + 1) * width)


class ByRow:
    """Records ``(row, value, ...)`` written in batches each sorted by row, read back in the order of the rows."""

    def __init__(self, folder: Path, fields: Sequence[tuple[str, str]]) -> None:
        self._folder = folder
        folder.mkdir(parents=True)
        self.dtype: np.dtype[np.void] = np.dtype([("row", "<u4"), *fields])
        self._batches = 0
        self._readers: list[_Reader] | None = None

    def add(self, rows: npt.NDArray[np.uint32], **values: np.ndarray) -> None:
        """Write a batch, sorted by row."""
        records = np.empty(len(rows), self.dtype)
        records["row"] = rows
        for name, column in values.items():
            records[name] = column
        records.tofile(self._folder / str(self._batches))
        self._batches += 1

    def take(self, end: int) -> np.ndarray:
        """All records of rows below ``end`` that were not taken before: by batch, not by row."""
        if self._readers is None:
            self._readers = [_Reader((self._folder / str(i)).open("rb"), self.dtype) for i in range(self._batches)]
        return np.concatenate([np.empty(0, self.dtype), *(reader.take(end) for reader in self._readers)])


def places(rows: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Where in ``rows``, rising, each of ``wanted`` stands; all are there."""
    consecutive = len(rows) > 0 and int(rows[-1]) - int(rows[0]) == len(rows) - 1
    return wanted - rows[0] if consecutive else np.searchsorted(rows, wanted)


class _Reader:
    """Records of one batch, read a little ahead of what was asked for."""

    def __init__(self, file: BinaryIO, dtype: np.dtype[np.void]) -> None:
        self._file, self._dtype = file, dtype
        self._ahead = np.empty(0, dtype)

    def take(self, end: int) -> np.ndarray:
        taken = []
        while True:
            if not len(self._ahead):
                self._ahead = np.fromfile(self._file, self._dtype, _READ_AHEAD)
            n = int(np.searchsorted(self._ahead["row"], end))
            taken.append(self._ahead[:n])
            complete = n < len(self._ahead) or not len(self._ahead)
            self._ahead = self._ahead[n:]
            if complete:
                return np.concatenate(taken)
