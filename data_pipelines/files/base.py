"""What every file format has in common: its config, its suffixes, and how its files become one lazy frame."""

import warnings
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate
from typing import ClassVar

import polars as pl
import pyarrow as pa

from data_pipelines.config.base import Family
from data_pipelines.errors import Notice, UserError, disk_fault

# A damaged file can make the engine panic, which is not an ordinary exception.
_UNREADABLE = (
    pl.exceptions.PolarsError,
    pl.exceptions.PanicException,
    pa.ArrowException,
    OSError,
    UnicodeDecodeError,
)
REFUSED = {"file": pl.String, "line": pl.Int64, "text": pl.String, "reason": pl.String}
"""Columns of refused lines: the file, the line number (counted from 1), its text, and why it was refused."""


class FileFormat(Family):
    """Base of all formats: a config block, and how to read files of the format.

    Attributes:
        suffixes: File suffixes, without those of compression, that stand for the format.
        columnar: Reading single columns again is cheap; other logs are copied once before several passes.
        textual: Values have no types of their own: every column is read as text.
    """

    suffixes: ClassVar[tuple[str, ...]] = ()
    columnar: ClassVar[bool] = False
    textual: ClassVar[bool] = False

    @abstractmethod
    def scan(self, location: str, paths: Sequence[str], needed: frozenset[str] | None = None) -> "Scan":
        """One lazy frame over ``paths``, in their order.

        Args:
            location: What the user gave, for messages.
            needed: Columns that will be read; of others, files may disagree on the type. All columns if absent.

        Raises:
            UserError: A file cannot be read, or columns of the same name have types that do not fit together.
        """


def no_lines() -> pl.DataFrame:
    """Refused lines of a file that has none."""
    return pl.DataFrame(schema=REFUSED)


@dataclass(frozen=True)
class Scan:
    """A lazy frame over files, and the lines of them that were refused.

    Attributes:
        frame: The rows.
        refused: Lines that are not rows, with the columns of :data:`REFUSED`; empty for most logs.
    """

    frame: pl.LazyFrame
    refused: pl.DataFrame = field(default_factory=no_lines)

    def rows(self, location: str) -> pl.LazyFrame:
        """The rows, for readers that keep no record of refused lines: a :class:`Notice` says how many there are."""
        if len(self.refused):
            first = self.refused.row(0, named=True)
            place = first["file"] if first["line"] is None else f"line {first['line']:,} of {first['file']}"
            warnings.warn(
                f"{location}: {len(self.refused):,} lines are left out because they are not rows; the first is {place} "
                f"({first['reason']}).",
                Notice,
                stacklevel=2,
            )
        return self.frame


@contextmanager
def reading(location: str) -> Iterator[None]:
    """Turn the engine's errors about damaged files into one sentence that names ``location``.

    Raises:
        UserError: Instead of whatever the engine raised.
    """
    try:
        yield
    except _UNREADABLE as error:
        if disk_fault(error) is not None:
            raise  # the disk that the rows are written to is at fault, not the file
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UserError(
            f"{location} cannot be read: it is damaged, or not of the format that its name or the key `format` says; "
            f"write it again or leave it out ({reason})"
        ) from error


def combine(
    location: str, frames: Sequence[tuple[str, pl.LazyFrame]], needed: frozenset[str] | None = None
) -> pl.LazyFrame:
    """The rows of several files one after the other, columns matched by name.

    A column that a file lacks is null in its rows. Types are widened: whole numbers to Int64, or to Float64 beside
    fractions; whatever stands beside text becomes text; dates beside times become times.

    Args:
        frames: The name of each file and its rows.
        needed: Columns that will be read: others are left out where their types do not fit together.

    Raises:
        UserError: Types of a column do not fit together, such as lists beside numbers.
    """
    columns: dict[str, pl.DataType] = {}
    dropped: set[str] = set()
    origin: dict[str, str] = {}
    schemas = [(file, frame.collect_schema()) for file, frame in frames]
    for file, schema in schemas:
        for name, dtype in schema.items():
            wider = dtype if name not in columns else _widened(columns[name], dtype)
            if wider is None and needed is not None and name not in needed:
                dropped.add(name)
                continue
            if wider is None:
                raise UserError(
                    f"{location}: the column {name!r} is {columns[name]} in {origin[name]} and {dtype} in {file}: "
                    "write one of the files again, or leave it out."
                )
            if name not in columns or wider != columns[name]:
                origin[name] = file
            columns[name] = wider
    aligned = [
        frame.select(
            (pl.col(name).cast(dtype) if name in schema else pl.lit(None, dtype=dtype)).alias(name)
            for name, dtype in columns.items()
            if name not in dropped
        )
        for (_, frame), (_, schema) in zip(frames, schemas, strict=True)
    ]
    return aligned[0] if len(aligned) == 1 else pl.concat(aligned, how="vertical")


def _widened(a: pl.DataType, b: pl.DataType) -> pl.DataType | None:
    """The type that holds values of both; ``None`` where there is none."""
    if a == b:
        return a
    if pl.Null in (a, b):
        return b if a == pl.Null else a
    if isinstance(a, pl.List) and isinstance(b, pl.List):
        inner = _widened(_inner(a), _inner(b))
        return None if inner is None else pl.List(inner)
    if a.is_nested() or b.is_nested() or pl.Binary in (a, b):
        return None
    if pl.Boolean not in (a, b) and a.is_numeric() and b.is_numeric():
        if not (a.is_integer() and b.is_integer()):
            return pl.Float64()
        return pl.Int128() if pl.UInt64 in (a, b) else pl.Int64()
    if a.is_temporal() and b.is_temporal() and pl.Time not in (a, b) and pl.Duration not in (a, b):
        zones = {dtype.time_zone for dtype in (a, b) if isinstance(dtype, pl.Datetime)}
        return pl.Datetime("us", zones.pop()) if len(zones) == 1 else None
    return pl.String()


def _inner(dtype: pl.List) -> pl.DataType:
    assert isinstance(dtype.inner, pl.DataType)
    return dtype.inner


def flat(frame: pl.LazyFrame) -> pl.LazyFrame:
    """``frame`` with the fields of nested objects as columns (``user.id``), those of lists of objects as lists.

    An object stays as it is if a column with the name of one of its fields is there already.

    Example:
        >>> flat(pl.LazyFrame({"user": [{"id": 7}], "items": [[{"sku": 1}, {"sku": 2}]]})).collect().to_dicts()
        [{'user.id': 7, 'items.sku': [1, 2]}]
    """
    while True:
        schema = frame.clone().collect_schema()
        taken, columns = set(schema), list[pl.Expr]()
        for name, dtype in schema.items():
            inner = dtype.inner if isinstance(dtype, pl.List) else dtype
            fields = {f"{name}.{part.name}": part.name for part in inner.fields} if isinstance(inner, pl.Struct) else {}
            if not fields or taken & fields.keys():
                columns.append(pl.col(name))
                continue
            taken |= fields.keys()
            for added, part in fields.items():
                if isinstance(dtype, pl.List):
                    value = pl.col(name).list.eval(pl.element().struct.field(part))
                else:
                    value = pl.col(name).struct.field(part)
                columns.append(value.alias(added))
        if len(columns) == len(schema) and taken == set(schema):
            return frame
        frame = frame.select(columns)


def roots(names: frozenset[str]) -> frozenset[str]:
    """``names``, and the columns of nested objects that they may be fields of: ``a`` and ``a.b`` for ``a.b.c``."""
    return names.union(*(accumulate(name.split("."), "{}.{}".format) for name in names))
