"""Copies of a log that are cheap to read again, whole or part by part.

Several passes go over a log: parsing text, joining or filtering again in each would cost more than a copy of the
columns in use. With an engine its workers make the copies: of text file by file, of joins and accepted rows part by
part.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import polars as pl

from data_pipelines.disk.parallel import Engine, Part, left_at, parts_of
from data_pipelines.features.plan import Plan
from data_pipelines.files.base import FileFormat, Scan, combine, flat, no_lines, roots
from data_pipelines.files.find import find_files
from data_pipelines.files.formats import format_of, scan_files
from data_pipelines.files.text import head_of
from data_pipelines.logs import sources
from data_pipelines.logs.validation import checked
from data_pipelines.names import REASON, ROW, TIME

JOINED_ROWS = 1 << 22
"""Rows that are joined by one worker: each reads the side tables once for them."""


@dataclass(frozen=True)
class StagedLog(Scan):
    """A log that is cheap to read again.

    Attributes:
        left_out: Rows that `data.where` leaves out.
    """

    left_out: int = 0


def staged_log(plan: Plan, location: str, scratch: Path, engine: Engine | None, *, drawn: bool = False) -> StagedLog:
    """The rows of the log at ``location`` and ``:row``: the log itself where it is cheap to read again.

    Args:
        scratch: The folder of copies.
        drawn: As for :func:`data_pipelines.logs.sources.scan`.

    Raises:
        UserError: The log or a side table cannot be read as the config says.
    """
    files = find_files(location)
    format = plan.config.format or format_of(location, files)
    found = None
    if engine is not None and not format.columnar and "://" not in location:
        found = _rewritten(engine, plan, location, files, format, scratch)
    cheap = (format.columnar or found is not None) and not plan.config.joins
    found = found or scan_files(location, format, needed=plan.log_columns, files=files)
    left_out = 0 if drawn else sources.count_left_out(plan, found.frame, location)
    if engine is None or (cheap and plan.config.where is None):
        rows = sources.scan(plan, location, drawn=drawn, found=found).frame
        if not cheap:
            copy = scratch / "log.arrow"
            _used(plan, rows).sink_ipc(copy)
            rows = pl.scan_ipc(copy, glob=False)
        return StagedLog(rows, found.refused, left_out)
    size = found.frame.clone().select(pl.len()).collect(engine="streaming").item()
    copies = engine(partial(_chosen, plan, location, found.frame, scratch), parts_of(size, JOINED_ROWS))
    return StagedLog(_scanned(copies).with_row_index(ROW), found.refused, left_out)


def accepted(plan: Plan, source: pl.LazyFrame, scratch: Path, engine: Engine | None) -> pl.LazyFrame:
    """The rows of ``source`` that are not refused.

    With an engine they are copied: a part of filtered rows is found only by reading all rows before it.
    """
    if engine is None:
        return checked(plan, source).filter(pl.col(REASON).is_null())
    size = source.select(pl.len()).collect(engine="streaming").item()
    return _scanned(engine(partial(_accepted, plan, source, scratch), parts_of(size)))


def copied(rows: pl.LazyFrame, path: Path, engine: Engine | None) -> pl.LazyFrame:
    """``rows``, which were filtered: with an engine a copy at ``path``, as :func:`accepted` says."""
    if engine is None:
        return rows
    rows.sink_ipc(path)
    return pl.scan_ipc(path, glob=False)


def _chosen(plan: Plan, location: str, log: pl.LazyFrame, scratch: Path, part: Part) -> Path:
    path = scratch / f"chosen-{part.number:06d}.arrow"
    with left_at(path) as made:
        _used(plan, sources.rows_of(plan, part.of(log), location)).sink_ipc(made)
    return path


def _accepted(plan: Plan, source: pl.LazyFrame, scratch: Path, part: Part) -> Path:
    path = scratch / f"accepted-{part.number:06d}.arrow"
    rows = checked(plan, part.of(source)).filter(pl.col(REASON).is_null())
    if plan.config.drawing is None:  # otherwise the negatives get all columns
        rows = _used(plan, rows, TIME, REASON)
    with left_at(path) as made:
        rows.sink_ipc(made)
    return path


def _used(plan: Plan, rows: pl.LazyFrame, *added: str) -> pl.LazyFrame:
    used = plan.log_columns.union(added)
    return rows.select(name for name in rows.collect_schema().names() if name in used)


def _scanned(copies: Iterable[Path]) -> pl.LazyFrame:
    return pl.scan_ipc(list(copies), glob=False)


def _rewritten(
    engine: Engine, plan: Plan, location: str, files: list[str], format: FileFormat, scratch: Path
) -> Scan | None:
    """The columns in use of a log of text, each of its files copied by a worker; ``None`` if all files are empty."""
    work = partial(_rewritten_file, format, location, roots(plan.log_columns), scratch)
    made = [(file, found) for file, found in zip(files, engine(work, list(enumerate(files))), strict=True) if found]
    if not made:
        return None
    frames = [(file, pl.scan_ipc(path, glob=False)) for file, (path, _) in made]
    refused = pl.concat([no_lines(), *(lines for _, (_, lines) in made)])
    return Scan(flat(combine(location, frames, roots(plan.log_columns))), refused)


def _rewritten_file(
    format: FileFormat, location: str, needed: frozenset[str], scratch: Path, file: tuple[int, str]
) -> tuple[Path, pl.DataFrame] | None:
    """The copy of a file and its refused lines; ``None`` if it is empty."""
    number, name = file
    if not head_of(name).strip():
        return None
    scan = format.scan(location, [name], needed)
    path = scratch / f"text-{number:06d}.arrow"
    with left_at(path) as made:
        there = scan.frame.clone().collect_schema().names()
        scan.frame.select(column for column in there if column in needed).sink_ipc(made)
    return path, scan.refused
