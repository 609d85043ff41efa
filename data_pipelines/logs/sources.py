"""Where rows come from: the log of a plan with its side tables joined, as one lazy frame."""

import warnings
from collections.abc import Iterable

import polars as pl

from data_pipelines.errors import Notice, UserError
from data_pipelines.features.plan import Plan
from data_pipelines.features.raw_columns import RawColumns
from data_pipelines.files.base import Scan, reading
from data_pipelines.files.find import find_files
from data_pipelines.files.formats import Find, scan_files
from data_pipelines.locations import expand
from data_pipelines.logs.joins import join
from data_pipelines.names import OWN, POSITIVE, ROW

_MOST_UNMATCHED = 0.5


def scan(plan: Plan, path: str | None = None, *, drawn: bool = False, found: Scan | None = None) -> Scan:
    """The log of ``plan`` (or the one at ``path``) as :func:`rows_of` gives it, with the row number ``:row``.

    Args:
        drawn: The log is one that :func:`data_pipelines.logs.negatives.write_with_negatives` wrote.
        found: The log itself, where it has been read already.

    Raises:
        UserError: Nothing there, an unknown format, or a file that cannot be read; or as :func:`rows_of` does.
    """
    config = plan.config
    found = found or scan_files(path or expand(config.log), config.format, needed=plan.log_columns)
    rows = join_sides(plan, found.frame) if drawn else rows_of(plan, found.frame, path or config.log)
    return Scan(rows.with_row_index(ROW), found.refused)


def rows_of(plan: Plan, log: pl.LazyFrame, location: str) -> pl.LazyFrame:
    """The rows of ``log`` with their side tables joined, without those that ``data.where`` leaves out.

    Args:
        location: What to call the log in messages.

    Raises:
        UserError: A column of a join or of the condition is missing, or a column has a name of the product's own.
    """
    names = log.collect_schema().names()
    _check_names(location, names)
    if plan.config.drawing is not None:
        if POSITIVE in names:
            raise UserError(
                f"{location} has a column {POSITIVE!r}, which `sampling` adds: rename it in the log, or "
                "remove `sampling` if the log holds negatives already."
            )
        log = log.with_columns(pl.lit(1, dtype=pl.Int8).alias(POSITIVE))
    rows = join_sides(plan, log)
    return rows if plan.config.where is None else rows.filter(plan.is_read(RawColumns(rows.collect_schema())))


def count_left_out(plan: Plan, log: pl.LazyFrame, location: str) -> int:
    """Rows of ``log`` that ``data.where`` leaves out; a :class:`Notice` says how many.

    Raises:
        UserError: A column of the condition or of a join that it needs is missing.
    """
    if plan.config.where is None:
        return 0
    if not {*plan.where_columns} <= {*log.collect_schema().names()}:
        log = join_sides(plan, log)
    is_read = plan.is_read(RawColumns(log.collect_schema()))
    total, read = log.select(pl.len(), read=is_read.sum()).collect(engine="streaming").row(0)
    left_out = int(total - (read or 0))
    share = f" ({left_out / total:.1%})" if left_out else ""
    warnings.warn(
        f"{location}: {left_out:,} of {total:,} rows{share} are left out by `data.where: {plan.config.where}`.",
        Notice,
        stacklevel=2,
    )
    return left_out


def join_sides(
    plan: Plan, frame: pl.LazyFrame, find: Find | None = None, *, filling: bool = False, partial: bool = False
) -> pl.LazyFrame:
    """``frame`` with the columns of side tables that ``plan`` reads, rows in their order.

    Args:
        filling: The rows are new ones: only side tables that they need are read, and columns that ``frame`` already has
            are kept. Otherwise they are refused.
        partial: Skip side tables of a time, and those on columns that ``frame`` lacks.
        find: Gives the files of a side table, or refuses it; :func:`data_pipelines.files.find.find_files` if absent.

    Raises:
        UserError: A side table cannot be read, a column to join on is missing, or one to add is there already.
    """
    for side in plan.row_joins if filling else plan.config.joins:
        if partial and (side.time is not None or not {*side.keys} <= {*frame.collect_schema().names()}):
            continue
        location = expand(side.table)
        files = (find or find_files)(location)
        needed = side.needed(plan.log_columns)
        table = scan_files(location, side.format, needed=needed, files=files).rows(side.table)
        with reading(side.table):
            frame = join(frame, table, side, plan.time, plan.config.time_format, read=plan.log_columns, filling=filling)
    return frame


def unmatched_shares(plan: Plan, rows: pl.LazyFrame) -> dict[str, float]:
    """By side table, the share of ``rows`` that have no row in it: those in which all its columns are null.

    A :class:`Notice` names a table that most rows have no row in.
    """
    columns = rows.collect_schema().names()
    joined, empty = [], list[pl.Expr]()
    for side in plan.config.joins:
        there = scan_files(expand(side.table), side.format).frame.collect_schema().names()
        added = plan.log_columns.intersection(side.added(there).values(), columns)
        if added:
            joined.append(side)
            nulls = pl.all_horizontal(pl.col(name).is_null() for name in sorted(added))
            empty.append(nulls.mean().alias(str(len(empty))))
    if not joined:
        return {}
    shares = [float(share or 0.0) for share in rows.select(empty).collect(engine="streaming").row(0)]
    for side, share in zip(joined, shares, strict=True):
        if share > _MOST_UNMATCHED:
            warnings.warn(
                f"the side table {side.table} has no row for {share:.1%} of the rows: compare the values of its key, "
                f"{', '.join(side.table_keys)}, with those of {', '.join(side.keys)} in the log.",
                Notice,
                stacklevel=2,
            )
    return {side.table: share for side, share in zip(joined, shares, strict=True)}


def _check_names(location: str, columns: Iterable[str]) -> None:
    """Refuse a log with a column that is named like one of the product's own."""
    for name in columns:
        if name in OWN:
            raise UserError(f"{location} has a column {name!r}, a name that recsys uses itself: rename it in the log.")
