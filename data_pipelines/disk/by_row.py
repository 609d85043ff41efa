"""Records of rows on disk: written partition by partition, read in the order of the log."""

import os
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
import numpy.typing as npt

from data_pipelines.timelines import bisect

_READ_AHEAD = 1 << 19

Fields = tuple[tuple[str, str], ...]
"""Names of the values of a record, and their NumPy types."""


@dataclass(frozen=True)
class RecordFile:
    """A file that a :class:`ByRow` wrote.

    Attributes:
        path: The file.
        ends: Where each of its batches ends, after a zero.
        added: What to add to fields of its records, by name.
    """

    path: Path
    ends: tuple[int, ...]
    added: tuple[tuple[str, int], ...] = ()


class Records(Protocol):
    """Records of rows, taken in the order of the rows."""

    def take(self, rows: np.ndarray) -> np.ndarray:
        """All records of ``rows``, which are ascending: ordered by batch, not by row."""


class ByRow:
    """Records ``(row, value, ...)``, written in batches that are each sorted by row, and read in the order of the rows.

    Args:
        path: The file to write.
        fields: Names and NumPy types of the values.
    """

    def __init__(self, path: Path, fields: Fields) -> None:
        self.dtype = _record(fields)
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

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Records not taken before, up to the last of the ascending ``rows``: batch by batch, not in row order."""
        if self._readers is None:
            self._file.flush()
            ahead = _READ_AHEAD // len(self._ends)
            spans = pairwise(self._ends)
            self._readers = [_Reader(self._file, self.dtype, start, stop, ahead) for start, stop in spans]
        end = int(rows[-1]) + 1
        return np.concatenate([np.empty(0, self.dtype), *(reader.take(end) for reader in self._readers)])

    def close(self) -> tuple[int, ...]:
        """Close the file; returns where each batch ends, after a zero."""
        self._file.close()
        return tuple(self._ends)


@dataclass(frozen=True)
class ByRowFiles:
    """The records of several files, in their order, for readers of any range of rows.

    Attributes:
        fields: Names and NumPy types of the values.
    """

    fields: Fields
    files: tuple[RecordFile, ...]

    def take(self, rows: np.ndarray) -> np.ndarray:
        """All records from the first to the last of ``rows``: ordered by batch, not by row."""
        dtype = _record(self.fields)
        found = [np.empty(0, dtype)]
        for file in self.files:
            ends = np.array(file.ends)
            if not ends[-1]:
                continue  # an empty file cannot be mapped
            records = np.memmap(file.path, dtype, mode="r", shape=(int(ends[-1]),))
            first, end = (np.full(len(ends) - 1, bound) for bound in (rows[0], int(rows[-1]) + 1))
            low = bisect(records["row"], ends[:-1], ends[1:], first)
            high = bisect(records["row"], low, ends[1:], end)
            for start, stop in zip(low, high, strict=True):
                here = records[start:stop].copy()
                for name, value in file.added:
                    here[name] += np.array(value).astype(dtype[name])
                found.append(here)
        return np.concatenate(found)


def _record(fields: Fields) -> np.dtype[np.void]:
    return np.dtype([("row", "<u4"), *fields])


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
