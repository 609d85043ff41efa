"""The input of a batch job, divided into parts that are read, scored and written one by one in bounded memory."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from glob import has_magic
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow.parquet as pq
from fsspec.core import url_to_fs

from data_pipelines.dataset.blocks import list_starts
from data_pipelines.dataset.lists import list_cuts, together
from data_pipelines.disk.storage import fingerprint, new_directory, open_directory
from data_pipelines.errors import UserError
from data_pipelines.features.plan import Plan
from data_pipelines.features.raw_columns import RawColumns
from data_pipelines.files.base import FileFormat, flat, reading
from data_pipelines.files.find import find_files
from data_pipelines.files.formats import Find, format_of, scan_files
from data_pipelines.files.parquet import ParquetFormat

PART_ROWS = 1 << 17
_LARGEST_ROW_GROUP = 1 << 20


@dataclass(frozen=True)
class Part:
    """Rows ``offset`` to ``offset + rows`` of a Parquet file; ``first_row`` is the number of the first in the input.

    ``source`` is the user's name of the file: its own, or that of the input from which it was rewritten.
    """

    file: str
    offset: int
    rows: int
    first_row: int
    source: str

    def scan(self) -> pl.LazyFrame:
        return flat(pl.scan_parquet(self.file, glob=False).slice(self.offset, self.rows))


@dataclass(frozen=True)
class Input:
    """Where rows come from.

    Attributes:
        files: Every file, in order.
        format: The format of the files.
    """

    location: str
    files: tuple[str, ...]
    format: FileFormat

    @classmethod
    def find(cls, location: str, plan: Plan, find: Find = find_files) -> "Input":
        """The files at ``location``, in the format of their suffix; text is split into fields as the training log was.

        Args:
            find: Finds the files of a path, or refuses it.

        Raises:
            UserError: There are no files, or their format is unknown.
        """
        files = find(location)
        if "://" in location:
            files = _remote(location)
        trained = plan.config.format
        try:
            format = format_of(location, files)
        except UserError:
            if trained is None:
                raise
            format = trained
        if trained is not None and trained.kind_name() == format.kind_name():
            format = trained
        return cls(location, tuple(files), format)

    def scan(self, plan: Plan) -> pl.LazyFrame:
        """All rows, columns of text files read as training reads them."""
        return scan_files(self.location, self.format, needed=plan.log_columns, files=self.files).rows(self.location)

    def fingerprint(self) -> str:
        """Changes when a file is added, removed, or written again."""
        return fingerprint([(file, *_stamp(file)) for file in self.files])

    def parts(self, stage: Path, plan: Plan, *, fan_out: int = 1, whole_lists: bool = False) -> list[Part]:
        """Divide the input along its row groups into parts with about the same number of scores.

        Other formats, and files with too large row groups, are first rewritten as Parquet in the folder ``stage``,
        which a restart uses again unless it is damaged. An input without rows has one empty part.

        Args:
            fan_out: Scores per row.
            whole_lists: End parts where lists end. Memory holds a number per row.

        Raises:
            UserError: A file cannot be read; or the rows of a list are not next to each other, or lack a list column.
        """
        groups = list(self._row_groups()) if isinstance(self.format, ParquetFormat) else None
        if groups is None or any(rows > _LARGEST_ROW_GROUP for _, _, rows in groups):
            groups = list(_row_groups(str(self._staged(stage, plan))))
        cut = _at_lists(groups, plan, self.location) if whole_lists else _merge(groups, max(1, PART_ROWS // fan_out))
        parts = list(cut) or [Part(self.files[0], 0, 0, 0, self.location)]
        return [part if part.file in self.files else replace(part, source=self.location) for part in parts]

    def _row_groups(self) -> Iterator[tuple[str, int, int]]:
        for file in self.files:
            yield from _row_groups(file)

    def _staged(self, stage: Path, plan: Plan) -> Path:
        """The rows as one Parquet file in ``stage``; written unless it is there and intact."""
        rows = stage / "rows.parquet"
        try:
            open_directory(stage, "stage")
        except UserError:
            with new_directory(stage, "stage", replace=True) as folder, reading(self.location):
                self.scan(plan).sink_parquet(folder / rows.name, row_group_size=PART_ROWS, compression="lz4")
        return rows


def _row_groups(file: str) -> Iterator[tuple[str, int, int]]:
    """``(file, offset, rows)`` of each row group."""
    filesystem, path = url_to_fs(file)
    with reading(file), filesystem.open(path) as handle:
        metadata = pq.read_metadata(handle)
        sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    offset = 0
    for rows in sizes:
        yield file, offset, rows
        offset += rows


def _merge(groups: list[tuple[str, int, int]], most: int) -> Iterator[Part]:
    """Small neighbouring groups of a file together, large groups in pieces, of at most ``most`` rows."""
    first_row = 0
    held: tuple[str, int, int] | None = None
    for file, offset, rows in [*groups, ("", 0, 0)]:
        if held is not None and held[0] == file and held[2] + rows <= most:
            held = (file, held[1], held[2] + rows)
            continue
        if held is not None:
            for start in range(0, held[2], most):
                size = min(most, held[2] - start)
                yield Part(held[0], held[1] + start, size, first_row, source=held[0])
                first_row += size
        held = (file, offset, rows)


def _at_lists(groups: list[tuple[str, int, int]], plan: Plan, location: str) -> Iterator[Part]:
    """Parts of about :data:`PART_ROWS` rows that end where lists end."""
    columns = plan.config.group or ()
    keys: dict[str, npt.NDArray[np.uint64]] = {}
    for file in dict.fromkeys(file for file, _, _ in groups):
        with reading(file):
            rows = flat(pl.scan_parquet(file, glob=False))
            keys[file] = rows.select(plan.list_key(RawColumns(rows.collect_schema()))).collect().to_series().to_numpy()
    if not together(np.concatenate(list(keys.values()))):
        raise UserError(
            f"{location}: rows of one list are not next to each other: sort the rows by {', '.join(columns)}, the "
            "columns of data.group, so that a list is scored as a whole."
        )
    first_row = 0
    for file, keys_N in keys.items():
        for start, stop in list_cuts(list_starts(keys_N), PART_ROWS):
            yield Part(file, start, stop - start, first_row, source=file)
            first_row += stop - start


def _stamp(file: str) -> tuple[Any, ...]:
    """The size of a file, and its ETag at an object store or its time of change."""
    filesystem, path = url_to_fs(file)
    info = filesystem.info(path)
    return info["size"], info.get("ETag") or str(info.get("mtime"))


def _remote(location: str) -> list[str]:
    filesystem, path = url_to_fs(location)
    scheme = location.split("://", 1)[0]
    pattern = path if has_magic(path) else f"{path.rstrip('/')}/**"
    found = (
        [path]
        if filesystem.isfile(path)
        else sorted(file for file in filesystem.glob(pattern) if filesystem.isfile(file))
    )
    if not found:
        raise UserError(f"{location} is not there: give the address of a file, a folder or a glob that holds the rows.")
    return [f"{scheme}://{file}" for file in found]
