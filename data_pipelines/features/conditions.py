"""SQL conditions (``where``): they see canonical values, so that a CSV and a Parquet file of one log agree."""

import re
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import product

import polars as pl

from data_pipelines.errors import UserError
from data_pipelines.features.values import canonical, number, text
from data_pipelines.names import OWN

_TOKEN = re.compile(
    r"(?P<text>'(?:[^']|'')*')|(?P<quoted>\"(?:[^\"]|\"\")*\")|(?P<word>[^\W\d]\w*)"
    r"|(?P<fraction>(?:\d+\.\d*|\.\d+)(?:[eE][+-]?\d+)?)"
)


def condition_columns(reader: str, sql: str) -> list[str]:
    """The columns that a SQL condition reads.

    Raises:
        UserError: It cannot be parsed.
    """
    return list(dict.fromkeys(_parsed(reader, sql).meta.root_names()))


def condition(reader: str, sql: str, schema: pl.Schema) -> pl.Expr:
    """A SQL condition over columns of the given types as an expression.

    A column takes the type of what it is compared with: ``stars >= 4`` reads numbers, ``vip = true`` truth values, and
    ``code = '5'`` canonical text (see :func:`data_pipelines.features.values.text`), whatever types the files give the
    columns. Text in quotes is canonical, too: ``'17.0'`` is ``'17'``.

    Raises:
        UserError: It cannot be parsed, a column is missing, or no types make it valid.
    """
    columns = condition_columns(reader, sql)
    for column in columns:
        if column not in schema:
            there = ", ".join(name for name in schema.names() if name not in OWN)
            raise UserError(
                f"{reader}: `where` reads {column!r}, which is not a column; there are {there or 'no columns'}."
            )
    empty = pl.DataFrame(schema={column: schema[column] for column in columns})
    readings = [list(enumerate(_readings(column, schema[column]))) for column in columns]
    typed = _parsed(reader, _renamed(sql, {column: f'"{i}"' for i, column in enumerate(columns)}))
    refused = ""
    for ranked in sorted(product(*readings), key=lambda choice: sum(rank for rank, _ in choice)):
        chosen = [reading.alias(str(i)) for i, (_, reading) in enumerate(ranked)]
        try:
            if empty.select(chosen).select(typed.alias("holds")).schema["holds"] not in (pl.Boolean, pl.Null):
                refused = refused or "it is neither true nor false"
                continue
        except pl.exceptions.PolarsError as error:
            refused = refused or str(error).splitlines()[0]
            continue
        if not columns:
            return typed
        return pl.struct(chosen).map_batches(partial(_holds, typed), return_dtype=pl.Boolean, is_elementwise=True)
    raise UserError(f"{reader}: `where: {sql}` does not fit the types of its columns: {refused}.")


def _holds(typed: pl.Expr, rows: pl.Series) -> pl.Series:
    return rows.struct.unnest().select(typed.cast(pl.Boolean).alias("holds")).to_series()


def _readings(column: str, dtype: pl.DataType) -> Iterator[pl.Expr]:
    """How a column of a condition can be read, the likeliest way first: as it is, as text, number or truth value."""
    raw = pl.col(column)
    if dtype.is_nested() or dtype in (pl.Binary, pl.Object):
        yield raw
        return
    textual = dtype == pl.String or isinstance(dtype, pl.Categorical | pl.Enum)
    value = number(raw.cast(pl.String), pl.String()) if textual else raw
    if dtype.is_float() or dtype.is_decimal():
        value = number(raw, dtype)
    if not textual:
        yield value
    yield text(raw, dtype)
    if textual:
        yield value
    if dtype == pl.Boolean:
        yield number(raw, dtype)
    elif not dtype.is_temporal():
        yield value.replace_strict([1, 0], [True, False], default=None, return_dtype=pl.Boolean)


def _renamed(sql: str, names: Mapping[str, str]) -> str:
    """``sql`` with its columns, quoted or not, renamed, and with the canonical form of text in single quotes."""

    def token(match: re.Match[str]) -> str:
        found = match[0]
        if match["text"]:
            value = canonical(pl.Series([found[1:-1].replace("''", "'")])).item()
            return found if value is None else "'" + value.replace("'", "''") + "'"
        name = found[1:-1].replace('""', '"') if match["quoted"] else found
        if name in names:
            return names[name]
        # without their types, the engine compares these literals with text, as text
        if match["fraction"]:
            return f"CAST({found} AS DOUBLE)"
        return f"CAST({found} AS BOOLEAN)" if found.upper() in ("TRUE", "FALSE") else found

    return _TOKEN.sub(token, sql)


def _parsed(reader: str, sql: str) -> pl.Expr:
    try:
        return pl.sql_expr(sql)
    except pl.exceptions.PolarsError as error:
        raise UserError(f"{reader}: `where` is not a SQL condition: {sql!r} ({str(error).splitlines()[0]}).") from None
