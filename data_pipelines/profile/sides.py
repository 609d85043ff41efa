"""How side tables fit a log: which columns to join on, and which of their names the log has already."""

import re
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from data_pipelines.config.base import Config
from data_pipelines.errors import UserError
from data_pipelines.features.values import text
from data_pipelines.files.formats import scan_files
from data_pipelines.files.side_tables import Join
from data_pipelines.profile.formats import guess_format
from data_pipelines.profile.types import with_numbers

_MOST_SAMPLED = 10_000
_ENOUGH_MATCHED = 0.05
_FEW = 3
"""Distinct values, null among them, up to which a column matches numbers of another name by chance: zeros and ones."""


class SideTable(Config):
    """A side table that fits a log.

    Attributes:
        join: How to join it.
        added: The names that its columns have in the rows.
        unmatched: Share of the rows of a sample that have no row in it.
    """

    join: Join
    added: tuple[str, ...]
    unmatched: float


def fit_side(location: str, sample: pl.DataFrame) -> tuple[SideTable, pl.LazyFrame]:
    """How to join the table at ``location``, and its rows.

    The key is the column whose values are all different in the table and match those of a column of the log best; a
    column of the same name is preferred. Where there is none, the key is several columns of the same names in both,
    such as a place and an hour. A prefix is chosen where the log has columns of the same names.

    Args:
        sample: Rows of the log, with the columns of the side tables before this one.

    Raises:
        UserError: The table cannot be read, or none of its columns fits one of the log.
    """
    format = guess_format(location)
    table = with_numbers(scan_files(location, format).rows(location))
    on, share = _one_key(sample, table)
    if share < _ENOUGH_MATCHED:
        on, share = _several_keys(sample, table)
    if share < _ENOUGH_MATCHED:
        raise UserError(_why_no_key(location, sample, table))
    others = [name for name in table.collect_schema().names() if name not in on.values()]
    prefix = f"{_stem(location)}_" if set(others) & set(sample.columns) else ""
    join = Join(table=location, on=_shortest(on), prefix=prefix, format=format)
    added = join.added([*on.values(), *others]).values()
    return SideTable(join=join, added=tuple(added), unmatched=1 - share), table


def _one_key(sample: pl.DataFrame, table: pl.LazyFrame) -> tuple[dict[str, str], float]:
    """The log's column and the table's that match best, and the share of the rows of ``sample`` that match."""
    keys = [name for name in _singles(table) if _is_unique(table, [name])]
    several = [name for name in _singles(sample.lazy()) if sample[name].n_unique() > _FEW]
    pairs = [(own, key) for key in keys for own in _read_as_text(sample.schema) if own == key or own in several]
    shares = {(own, key): _matched(sample, table, {own: key}) for own, key in pairs}
    alike = {pair: share for pair, share in shares.items() if pair[0] == pair[1] and share >= _ENOUGH_MATCHED}
    (own, key), share = max((alike or shares).items(), key=lambda found: found[1], default=(("", ""), 0.0))
    return {own: key}, share


def _several_keys(sample: pl.DataFrame, table: pl.LazyFrame) -> tuple[dict[str, str], float]:
    """The fewest columns of the same names that are different in every row of the table, and how many rows match."""
    singles = _singles(sample.lazy())
    names = [name for name in _singles(table) if name in singles]
    if len(names) < 2 or not _is_unique(table, names):
        return {}, 0.0
    for name in list(names):
        fewer = [other for other in names if other != name]
        if _is_unique(table, fewer):
            names = fewer
    on = {name: name for name in names}
    return on, _matched(sample, table, on)


def _why_no_key(location: str, sample: pl.DataFrame, table: pl.LazyFrame) -> str:
    """What is wrong with the likeliest key of a table that does not fit the log, and what to do."""
    readable = _read_as_text(sample.schema)
    for name in _singles(table):
        if name in readable and not _is_unique(table, [name]) and _matched(sample, table, {name: name}):
            return (
                f"the side table {location} has several rows for one {name!r}, and no other column of it is a key of "
                f"the log: a side table has one row per key, so collect the values of each {name!r} in one row, in "
                "columns of lists."
            )
    bare = pl.selectors.string().str.strip_chars_start("0")
    on, share = _one_key(sample.with_columns(bare), table.with_columns(bare))
    if share >= _ENOUGH_MATCHED:
        (own, key), *_ = on.items()
        return (
            f"{key!r} of the side table {location} is {own!r} of the log, except for leading zeros, which make another "
            "value: write both in the same way."
        )
    return (
        f"no column of the side table {location} is a key of the log: it needs one whose values are all different "
        "there, and the same as those of a column of the log."
    )


def _shortest(on: dict[str, str]) -> str | list[str] | dict[str, str]:
    """The columns to join on, without what their names say already."""
    if any(own != key for own, key in on.items()):
        return on
    return list(on) if len(on) > 1 else next(iter(on))


def _stem(location: str) -> str:
    name = Path(location.rstrip("/*")).name.split(".")[0]
    return re.sub(r"\W+", "_", name).strip("_").lower() or "side"


def _read_as_text(schema: pl.Schema) -> list[str]:
    """Columns whose values can be compared as canonical text."""
    return [name for name, dtype in schema.items() if not dtype.is_nested() and dtype not in (pl.Binary, pl.Object)]


def _singles(frame: pl.LazyFrame) -> list[str]:
    """Columns that may be keys: floats only where they are whole, as integers with nulls become in other tools."""
    schema = frame.collect_schema()
    whole = frame.select(pl.selectors.float().round().eq(pl.selectors.float()).all()).collect(engine="streaming")
    return [
        name
        for name in _read_as_text(schema)
        if name
        and not schema[name].is_temporal()
        and (not schema[name].is_float() or whole[name].item())
        and schema[name] not in (pl.Null, pl.Boolean)
    ]


def _is_unique(table: pl.LazyFrame, names: Sequence[str]) -> bool:
    """Whether no two rows of ``table`` have the same values of ``names``."""
    found = _texts(table, names).select(n=pl.len(), distinct=pl.struct(pl.all()).n_unique()).collect(engine="streaming")
    n, distinct = found.row(0)
    return bool(n > 1 and n == distinct)


def _matched(sample: pl.DataFrame, table: pl.LazyFrame, on: dict[str, str]) -> float:
    """Share of the rows of ``sample`` whose values of the keys of ``on`` are among those of its values."""
    rows = sample.head(_MOST_SAMPLED)
    found = _texts(rows.lazy(), list(on)).join(
        _texts(table, list(on.values())), on=[f"key{i}" for i in range(len(on))], how="semi"
    )
    return float(found.select(pl.len()).collect(engine="streaming").item() / max(1, len(rows)))


def _texts(frame: pl.LazyFrame, names: Sequence[str]) -> pl.LazyFrame:
    """The canonical texts of some columns as ``key0``, ``key1``, ... where none is null."""
    schema = frame.collect_schema()
    values = [text(pl.col(name), schema[name]).alias(f"key{i}") for i, name in enumerate(names)]
    return frame.select(values).drop_nulls()
