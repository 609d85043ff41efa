"""How side tables fit a log: which columns to join on, and which of their names the log has already."""

import re
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
    column of the same name is preferred. A prefix is chosen where the log has columns of the same names.

    Args:
        sample: Rows of the log, with the columns of the side tables before this one.

    Raises:
        UserError: The table cannot be read, or none of its columns fits one of the log.
    """
    format = guess_format(location)
    table = with_numbers(scan_files(location, format).rows(location))
    schema = table.collect_schema()
    keys = [name for name in _singles(schema) if _is_unique(table, name, schema[name])]
    pairs = [(own, key) for key in keys for own in _singles(sample.schema)]
    shares = {(own, key): _matched(sample, own, table, key) for own, key in pairs}
    alike = {pair: share for pair, share in shares.items() if pair[0] == pair[1] and share >= _ENOUGH_MATCHED}
    (own, key), share = max((alike or shares).items(), key=lambda found: found[1], default=(("", ""), 0.0))
    if share < _ENOUGH_MATCHED:
        raise UserError(
            f"no column of the side table {location} is a key of the log: it needs one whose values are all different "
            "there, and the same as those of a column of the log."
        )
    others = [name for name in schema.names() if name != key]
    clash = [name for name in others if name in sample.columns]
    prefix = f"{_stem(location)}_" if clash else ""
    join = Join(table=location, on=key if own == key else {own: key}, prefix=prefix, format=format)
    return SideTable(join=join, added=tuple(join.added(schema.names()).values()), unmatched=1 - share), table


def _stem(location: str) -> str:
    name = Path(location.rstrip("/*")).name.split(".")[0]
    return re.sub(r"\W+", "_", name).strip("_").lower() or "side"


def _singles(schema: pl.Schema) -> list[str]:
    """Columns that may be keys."""
    return [
        name
        for name, dtype in schema.items()
        if name
        and not dtype.is_nested()
        and not dtype.is_temporal()
        and not dtype.is_float()
        and dtype not in (pl.Binary, pl.Object, pl.Null, pl.Boolean)
    ]


def _is_unique(table: pl.LazyFrame, name: str, dtype: pl.DataType) -> bool:
    value = text(pl.col(name), dtype)
    found = table.select(n=value.count(), distinct=value.drop_nulls().n_unique()).collect(engine="streaming")
    n, distinct = found.row(0)
    return bool(n > 1 and n == distinct)


def _matched(sample: pl.DataFrame, own: str, table: pl.LazyFrame, key: str) -> float:
    """Share of the rows of ``sample`` whose value of ``own`` is among those of ``key``."""
    values = sample.head(_MOST_SAMPLED).lazy().select(value=text(pl.col(own), sample.schema[own]))
    keys = table.select(value=text(pl.col(key), table.collect_schema()[key])).drop_nulls().unique()
    found = values.join(keys, on="value", how="semi").select(pl.len()).collect(engine="streaming").item()
    return float(found / max(1, min(len(sample), _MOST_SAMPLED)))
