"""Delimited text."""

import json
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

import polars as pl
from pydantic import Field, field_validator, model_validator

from data_pipelines.config.base import register
from data_pipelines.errors import UserError
from data_pipelines.files.base import FileFormat, Scan, combine, no_lines
from data_pipelines.files.scratch import scratch_file
from data_pipelines.files.text import Dialect, clean_copy, encoding_of, first_record, head_of, is_plain

_TYPED = re.compile(r"(.+):(?:token|token_seq|float|float_seq)")
_OTHER_DELIMITERS = (";", "\t", "|", ",")
_READ_BY_ENGINE = ("", ".gz", ".zst", ".zlib")


@register
class CsvFormat(FileFormat):
    """Delimited text, compressed or not. Every column is read as text, exactly as it stands.

    Lines with too few or too many fields, and lines that are not in the encoding, are refused one by one. Blanks around
    the names of columns are dropped, and so are types in names such as ``user_id:token``.
    """

    suffixes: ClassVar[tuple[str, ...]] = (".csv", ".tsv", ".inter")
    textual: ClassVar[bool] = True
    kind: Literal["csv"] = "csv"
    delimiter: str = Field(default=",", description="The character between fields; blanks after it are dropped.")
    header: bool = Field(default=True, description="Whether the first line of each file names the columns.")
    columns: tuple[str, ...] | None = Field(
        default=None, description="Names of the columns where there is no header; by default column_1, column_2, …"
    )
    quote: str | None = Field(default='"', description="The character around fields that hold the delimiter, or null.")
    encoding: str = Field(default="utf-8", description="Encoding of the text, such as `cp1252` or `utf-16`.")
    decimal: Literal[".", ","] = Field(default=".", description="The decimal mark of numbers.")
    thousands: Literal[",", ".", " ", "'"] | None = Field(
        default=None,
        description="The mark that groups digits, as the comma in `1,234.50`; with decimal commas, the dot by default.",
    )

    @model_validator(mode="after")
    def _two_marks(self) -> "CsvFormat":
        if self.thousands == self.decimal:
            raise ValueError(f"`thousands` and `decimal` are both {self.decimal!r}: a number needs two different marks")
        return self

    @field_validator("delimiter")
    @classmethod
    def _one_character(cls, value: str) -> str:
        bare = value.strip(" ") or value[:1]
        if len(bare.encode()) != 1:
            raise ValueError(f"a delimiter must be one character, not {value!r}")
        return bare

    def scan(self, location: str, paths: Sequence[str], needed: frozenset[str] | None = None) -> Scan:
        if "://" in paths[0]:
            return Scan(self._decimals(self._lazy(list(paths), glob=True)))
        files = [file for path in paths if (file := self._open(path)) is not None]
        if not files:
            raise UserError(f"{location} holds no rows: every file of it is empty.")
        if needed is not None:
            self._check_delimiter(location, files[0].names, needed)
        alike = all(file.copy is None and file.names == files[0].names for file in files)
        if alike:
            frame = self._lazy([file.path for file in files], files[0].names)
        else:
            frame = combine(location, [(file.path, self._rows(file)) for file in files], needed)
        return Scan(self._decimals(frame), pl.concat([file.refused for file in files]))

    def _check_delimiter(self, location: str, names: tuple[str, ...], needed: frozenset[str]) -> None:
        """Refuse a header that is one column, which nobody needs and another delimiter would divide."""
        mark = next((mark for mark in _OTHER_DELIMITERS if mark in names[0]), None)
        if len(names) == 1 and mark is not None and names[0] not in needed:
            raise UserError(
                f"{location}: with the delimiter {self.delimiter!r}, its lines are one column, {names[0]!r}: set the "
                f"key `format: {{kind: csv, delimiter: {json.dumps(mark)}}}`."
            )

    def _open(self, path: str) -> "_File | None":
        """The file as it can be read: as it stands, or a clean copy; ``None`` where it is empty."""
        stat = Path(path).stat()
        return _opened(self, path, stat.st_size, stat.st_mtime_ns)

    def _rows(self, file: "_File") -> pl.LazyFrame:
        if file.copy is None:
            return self._lazy([file.path], file.names)
        return pl.scan_ipc(file.copy, glob=False).rename(lambda position: file.names[int(position)])

    def _lazy(self, paths: list[str], names: Sequence[str] | None = None, *, glob: bool = False) -> pl.LazyFrame:
        return pl.scan_csv(
            paths,
            separator=self.delimiter,
            has_header=self.header,
            with_column_names=lambda found: list(names or _plain_names(found)),
            quote_char=self.quote,
            infer_schema=False,
            glob=glob,
        )

    def _decimals(self, frame: pl.LazyFrame) -> pl.LazyFrame:
        """With decimal commas, ``1.234,5`` becomes ``1234.5`` wherever a whole field is such a number."""
        group = self.thousands or ("." if self.decimal == "," else None)
        if group is None:
            return frame
        value, number = pl.all(), rf"^\s*{grouped_number(group, self.decimal)}\s*$"
        plain = value.str.replace_all(group, "", literal=True).str.replace(self.decimal, ".", literal=True)
        return frame.with_columns(pl.when(value.str.contains(number)).then(plain).otherwise(value))


def grouped_number(group: str, decimal: str) -> str:
    """A regular expression of numbers whose digits may be in groups of three, with these two marks."""
    return rf"[+-]?(\d{{1,3}}({re.escape(group)}\d{{3}})+|\d+)({re.escape(decimal)}\d+)?"


class _File(NamedTuple):
    """A file of text, the names of its columns, a clean copy where it needs one, and the lines that were refused."""

    path: str
    names: tuple[str, ...]
    copy: Path | None
    refused: pl.DataFrame


@lru_cache(maxsize=4096)
def _opened(format: CsvFormat, path: str, size: int, changed: int) -> _File | None:
    # Size and time of change are part of the key: a file that was written again is looked at again.
    head = head_of(path)
    if not head.strip():
        return None
    encoding = encoding_of(path, head, format.encoding)
    first = first_record(path, head, encoding, format.delimiter, format.quote)
    names = _plain_names(first) if format.header else _given_names(format, path, len(first))
    dialect = Dialect(names, format.delimiter, format.quote, format.header)
    if encoding == "utf-8" and _compression(path) in _READ_BY_ENGINE and is_plain(path, dialect):
        return _File(path, names, None, no_lines())
    copy = scratch_file(".arrow")
    return _File(path, names, copy, clean_copy(path, dialect, encoding, copy))


def _plain_names(fields: Sequence[str]) -> tuple[str, ...]:
    """Names without blanks around them and without types, each once: a second ``a`` is ``a_duplicated_0``."""
    names: list[str] = []
    for field in fields:
        bare = field.strip()
        typed = _TYPED.fullmatch(bare)
        name = typed[1] if typed else bare
        times = sum(other == name or other.startswith(f"{name}_duplicated_") for other in names)
        names.append(f"{name}_duplicated_{times - 1}" if name in names else name)
    return tuple(names)


def _given_names(format: CsvFormat, path: str, fields: int) -> tuple[str, ...]:
    names = format.columns or [f"column_{i}" for i in range(1, fields + 1)]
    if len(names) != fields:
        raise UserError(
            f"{path} has {fields} fields in a line, and format.columns names {len(names)}: name each field."
        )
    return tuple(names)


def _compression(path: str) -> str:
    suffix = Path(path).suffix
    return suffix if suffix in (".gz", ".zst", ".zlib", ".bz2") else ""
