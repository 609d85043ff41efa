"""Where rows come from: the log of a plan with its side tables joined, as one lazy frame."""

from collections.abc import Iterable

import polars as pl

from data_pipelines.errors import UserError
from data_pipelines.features.plan import Plan
from data_pipelines.files.base import Scan, reading
from data_pipelines.files.find import find_files
from data_pipelines.files.formats import Find, scan_files
from data_pipelines.locations import expand
from data_pipelines.logs.joins import join
from data_pipelines.names import OWN, POSITIVE, ROW


def scan(plan: Plan, path: str | None = None, *, drawn: bool = False) -> Scan:
    """The log of ``plan`` (or the one at ``path``) with its side tables joined, and the row number ``:row``.

    Args:
        drawn: The log is one that :func:`data_pipelines.logs.negatives.write_with_negatives` wrote.

    Raises:
        UserError: Nothing there, an unknown format, a file that cannot be read, a column of a join that is missing, or
            a column with a name of the product's own.
    """
    config = plan.config
    found = scan_files(path or expand(config.log), config.format, needed=plan.log_columns)
    frame = found.frame
    if not drawn:
        _check_names(path or config.log, frame.collect_schema().names())
    if config.drawing is not None and not drawn:
        if POSITIVE in frame.collect_schema():
            raise UserError(
                f"{path or config.log} has a column {POSITIVE!r}, which `sampling` adds: rename it in the log, or "
                "remove `sampling` if the log holds negatives already."
            )
        frame = frame.with_columns(pl.lit(1, dtype=pl.Int8).alias(POSITIVE))
    return Scan(join_sides(plan, frame.with_row_index(ROW)), found.refused)


def join_sides(plan: Plan, frame: pl.LazyFrame, find: Find | None = None) -> pl.LazyFrame:
    """``frame`` with the side tables of ``plan`` joined, rows in their order.

    Args:
        find: Gives the files of a side table, or refuses it; :func:`data_pipelines.files.find.find_files` if absent.

    Raises:
        UserError: A side table cannot be read, or a column to join on is missing.
    """
    for side in plan.config.joins:
        location = expand(side.table)
        files = (find or find_files)(location)
        table = scan_files(location, side.format, needed=plan.log_columns, files=files).rows(side.table)
        with reading(side.table):
            frame = join(frame, table, side, plan.time, plan.config.time_format)
    return frame


def _check_names(location: str, columns: Iterable[str]) -> None:
    """Refuse a log with a column that is named like one of the product's own."""
    for name in columns:
        if name in OWN:
            raise UserError(f"{location} has a column {name!r}, a name that recsys uses itself: rename it in the log.")
