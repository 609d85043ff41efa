"""The encoded events of a history on disk, by entity and time: ``<feature>.i32``, ``times.i64`` and ``rows.u32``."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data_pipelines.disk.damage import intact
from data_pipelines.disk.file_names import below

_COPIED = 1 << 22


@dataclass(frozen=True)
class Events:
    """Events of one history, memory-mapped.

    Attributes:
        ids: (E,) encoded ids of each feature.
        times: (E,) microseconds since 1970.
        rows: (E,) numbers of the rows of the log.
    """

    ids: Mapping[str, npt.NDArray[np.int32]]
    times: npt.NDArray[np.int64]
    rows: npt.NDArray[np.uint32]

    @staticmethod
    def open(folder: Path) -> "Events":
        """Map the events of one history.

        Raises:
            UserError: A file is missing or has another length than the others.
        """
        with intact(folder):
            ids = {path.stem: _mapped(below(folder, path.name), np.int32) for path in sorted(folder.glob("*.i32"))}
            times = _mapped(below(folder, "times.i64"), np.int64)
            rows = _mapped(below(folder, "rows.u32"), np.uint32)
            if {len(array) for array in (*ids.values(), times)} != {len(rows)}:
                raise ValueError("its files have different lengths")
        return Events(ids, times, rows)


def append_events(
    folder: Path, ids: Mapping[str, npt.NDArray[np.int32]], times: npt.NDArray[np.int64], rows: npt.NDArray[np.uint32]
) -> None:
    """Add events at the end of those in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, own in ids.items():
        _append(folder / f"{name}.i32", own)
    _append(folder / "times.i64", times)
    _append(folder / "rows.u32", rows)


def append_from(folder: Path, part: Path) -> int:
    """Add the events in the folder ``part`` at the end of those in ``folder``; returns how many they are."""
    folder.mkdir(parents=True, exist_ok=True)
    for source in part.iterdir():
        with source.open("rb") as read, (folder / source.name).open("ab") as written:
            shutil.copyfileobj(read, written, _COPIED)
    return (part / "rows.u32").stat().st_size // np.dtype(np.uint32).itemsize


def _append(path: Path, values: np.ndarray) -> None:
    with path.open("ab") as file:
        file.write(np.ascontiguousarray(values).view(np.uint8).data)  # ``tofile`` hides why a write failed


def _mapped(path: Path, dtype: type[np.generic]) -> np.ndarray:
    # An empty file cannot be mapped.
    return np.memmap(path, dtype, mode="r") if path.stat().st_size else np.empty(0, dtype)
