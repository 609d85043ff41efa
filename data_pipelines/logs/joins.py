"""Joins of side tables to a log: by key, or by key as of each row's time."""

from collections.abc import Collection, Mapping

import numpy as np
import polars as pl

from data_pipelines.errors import UserError
from data_pipelines.features.raw_columns import RawColumns
from data_pipelines.features.time_formats import check_readable
from data_pipelines.files.side_tables import Join
from data_pipelines.hashing import key_of
from data_pipelines.timelines import bisect

_KEY, _TIME = ":key", ":as_of"
_LOOKED_AT = 10_000


def join(
    rows: pl.LazyFrame,
    table: pl.LazyFrame,
    side: Join,
    time: str | None,
    time_format: str | None = None,
    *,
    read: Collection[str] | None = None,
    filling: bool = False,
) -> pl.LazyFrame:
    """``rows``, in their order, with columns of ``table``; nulls where it has no such key (yet).

    Args:
        time: The column of ``rows`` that holds their time.
        time_format: How those times are written.
        read: Columns that will be read: others are not added. All are if absent.
        filling: Columns that ``rows`` already have are kept and not added. Otherwise they are refused.

    Raises:
        UserError: A column to join on or to add is missing, a column to add is there already, or a key of ``table`` has
            several rows.
    """
    left, right = rows.collect_schema(), table.collect_schema()
    for where, schema, names in (
        ("the log", left, side.keys),
        (side.table, right, side.table_keys),
        (side.table, right, side.columns or []),
    ):
        for name in names:
            if name not in schema:
                use = "to join on" if name in (*side.keys, *side.table_keys) else "to add"
                raise UserError(f"{where} has no column {name!r} {use}; it has {', '.join(schema.names())}.")
    added = {old: new for old, new in side.added(right.names()).items() if read is None or new in read}
    present = [old for old, new in added.items() if new in left]
    if present and not filling:
        both = ", ".join(repr(added[old]) for old in present)
        raise UserError(
            f"the side table {side.table} adds {both}, which the log or another side table has already: set `columns` "
            "(those to add) or `prefix` (put before their names) of this table in data.joins."
        )
    added = {old: new for old, new in added.items() if old not in present}
    if side.time is not None:
        assert time is not None
        return _as_of(rows, table, side, time, time_format, added)
    keys = [f"{_KEY}{i}" for i in range(len(side.keys))]
    rows, table = _spelled(rows, side.keys, keys, "the log"), _spelled(table, side.table_keys, keys, side.table)
    repeated = table.group_by(keys).agg(pl.len(), pl.col(side.table_keys).first()).filter(pl.col("len") > 1).head(1)
    found = repeated.collect(engine="streaming")
    if len(found):
        shown = ", ".join(f"{key} = {found[key][0]!r}" for key in side.table_keys)
        raise UserError(f"{side.table} has {found['len'][0]} rows for {shown}: a side table has one row per key.")
    chosen = table.select(*keys, *_renamed(added))
    return rows.join(chosen, on=keys, how="left", maintain_order="left").drop(keys)


def _renamed(added: Mapping[str, str]) -> list[pl.Expr]:
    return [pl.col(old).alias(new) for old, new in added.items()]


def _spelled(rows: pl.LazyFrame, keys: list[str], names: list[str], where: str) -> pl.LazyFrame:
    """``rows`` with the canonical texts of ``keys`` as ``names``."""
    raw = RawColumns(rows.collect_schema())
    reader = f"the join with {where}"
    return rows.with_columns(raw.text(reader, key).alias(name) for key, name in zip(keys, names, strict=True))


def _as_of(
    rows: pl.LazyFrame, table: pl.LazyFrame, side: Join, time: str, time_format: str | None, columns: Mapping[str, str]
) -> pl.LazyFrame:
    """The latest row of ``table`` with the key that is not later than the row: the table is held in memory, sorted."""
    assert side.time is not None
    some = table.select(side.time).head(_LOOKED_AT).collect()[side.time]
    check_readable(side.table, side.time, "data.joins.time_format", some, side.time_format)
    known = (
        _keyed(table, side.table_keys, side.time, side.time_format, side.table)
        .drop_nulls([_KEY, _TIME])
        .sort(_KEY, _TIME, maintain_order=True)
        .collect()
    )
    keys, times = known[_KEY].to_numpy(), known[_TIME].to_numpy()
    added = known.select(_renamed(columns))

    def attach(part: pl.DataFrame) -> pl.DataFrame:
        wanted = part.select(pl.col(_KEY).fill_null(0), pl.col(_TIME))
        key, now = wanted[_KEY].to_numpy(), wanted[_TIME].fill_null(-(2**62)).to_numpy()
        low = np.searchsorted(keys, key, side="left").astype(np.int64)
        high = np.searchsorted(keys, key, side="right").astype(np.int64)
        place = bisect(times, low, high, now + 1) - 1
        found = pl.Series(place).set(pl.Series(place < low), None).cast(pl.UInt32)
        return part.drop(_KEY, _TIME).hstack(added.select(pl.all().gather(found)))

    keyed = _keyed(rows, side.keys, time, time_format, "the log")
    schema = pl.Schema({**rows.collect_schema(), **added.schema})
    return keyed.map_batches(attach, schema=schema, streamable=True)


def _keyed(rows: pl.LazyFrame, keys: list[str], time: str, format: str | None, name: str) -> pl.LazyFrame:
    raw = RawColumns(rows.collect_schema())
    key = key_of([raw.text(f"the join with {name}", column) for column in keys])
    return rows.with_columns(key.alias(_KEY), raw.epoch(f"the join with {name}", time, format).alias(_TIME))
