"""The raw columns of rows, read in the canonical forms of :mod:`data_pipelines.features.values`."""

import polars as pl

from data_pipelines.errors import UserError
from data_pipelines.features.times import epoch
from data_pipelines.features.values import number, text
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
            raise UserError(f"{reader} reads the column {column!r}, which is not there; there are {there}.")
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

    def epoch(self, reader: str, column: str) -> pl.Expr:
        """The column as Int64 microseconds since 1970 (UTC); an unparsable time is null.

        Raises:
            UserError: There is no such column, or its type holds no times.
        """
        expression, dtype = self.column(reader, column)
        try:
            return epoch(expression, dtype)
        except TypeError:
            raise wrong_type(reader, column, dtype, "times") from None

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


def wrong_type(reader: str, column: str, dtype: pl.DataType, wanted: str) -> UserError:
    """The error of a column whose type ``reader`` cannot read."""
    return UserError(f"{reader} reads the column {column!r}, which is {dtype}, where it needs {wanted}.")
