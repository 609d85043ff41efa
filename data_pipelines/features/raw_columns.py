"""The raw columns of rows, read in the canonical forms of :mod:`data_pipelines.features.values`."""

import polars as pl

from data_pipelines.errors import UserError
from data_pipelines.features.times import epoch
from data_pipelines.features.values import number, text, unread
from data_pipelines.names import OWN

SINGLE = "single values (kind bag reads lists)"


class RawColumns:
    """Columns of rows with the given schema.

    Every method takes ``reader``, which names in errors what reads the column, such as ``feature 'price'``.

    Attributes:
        schema: Names and types of the columns.
    """

    def __init__(self, schema: pl.Schema) -> None:
        self.schema = schema

    def column(self, reader: str, column: str) -> tuple[pl.Expr, pl.DataType]:
        """The column and its type.

        Raises:
            UserError: There is no such column.
        """
        if column not in self.schema:
            there = ", ".join(name for name in self.schema.names() if name not in OWN)
            raise UserError(
                f"{reader} reads the column {column!r}, which is not there; there are {there or 'no columns'}."
            )
        return pl.col(column), self.schema[column]

    def number(self, reader: str, column: str) -> pl.Expr:
        """The column as Float64; what is not a finite number is null.

        Raises:
            UserError: There is no such column, or its type holds no numbers.
        """
        expression, dtype = self.column(reader, column)
        try:
            return number(expression, dtype)
        except TypeError:
            raise wrong_type(reader, column, dtype, "numbers") from None

    def epoch(self, reader: str, column: str, format: str | None = None) -> pl.Expr:
        """The column as Int64 microseconds since 1970 (UTC); an unparsable time is null.

        Args:
            format: How its times are written (see :func:`data_pipelines.features.times.epoch`).

        Raises:
            UserError: There is no such column, or its type holds no times.
        """
        expression, dtype = self.column(reader, column)
        try:
            return epoch(expression, dtype, format)
        except TypeError:
            raise wrong_type(reader, column, dtype, "times") from None

    def unreadable_time(self, reader: str, column: str, format: str | None = None) -> pl.Expr:
        """Where the column holds a value that is not read as a time.

        Raises:
            UserError: There is no such column, or its type holds no times.
        """
        read = self.epoch(reader, column, format)
        given, dtype = self.column(reader, column)
        if dtype == pl.String:
            return unread(given, read)
        if dtype.is_float():
            return given.is_not_null() & given.is_not_nan() & read.is_null()
        return given.is_not_null() & read.is_null()

    def text(self, reader: str, column: str) -> pl.Expr:
        """The column as canonical text.

        Raises:
            UserError: There is no such column, or its type holds no single values.
        """
        expression, dtype = self.column(reader, column)
        try:
            return text(expression, dtype)
        except TypeError:
            raise wrong_type(reader, column, dtype, SINGLE) from None


def unreadable(column: str, key: str, format: str | None) -> str:
    """The reason to refuse a row for a time that cannot be read.

    Args:
        key: The key of the config that says how the times of ``column`` are written.
        format: What it says.
    """
    if format is None:
        return f"{column}: neither an ISO 8601 time nor a count from 1970 (see the key {key})"
    return f"{column}: not a time of the format {format} ({key})"


def wrong_type(reader: str, column: str, dtype: pl.DataType, wanted: str) -> UserError:
    """The error of a column whose type ``reader`` cannot read."""
    return UserError(f"{reader} reads the column {column!r}, which is {dtype}, where it needs {wanted}.")
