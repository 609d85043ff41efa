"""A guess at how a text file is written: delimiter, header, encoding, decimal comma and grouped digits."""

import codecs
import csv
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from data_pipelines.files.base import FileFormat
from data_pipelines.files.csv import CsvFormat, grouped_number
from data_pipelines.files.find import find_files
from data_pipelines.files.formats import Format, by_suffix, format_of
from data_pipelines.files.text import head_of

_TEXT = (".txt", ".dat")
_DECIMAL_COMMA = re.compile(grouped_number(".", ","))
_GROUPED = re.compile(grouped_number(",", "."))
_SHORT_GROUP = re.compile(r"[+-]?\d{1,2},\d{3}")
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def guess_format(location: str, kind: str | None = None) -> Format | None:
    """The format of a log to write into its config; ``None`` where the name of the file is enough.

    Args:
        kind: The kind of format, where it is known: then only how its text is delimited is guessed.

    Raises:
        UserError: There is no file, or its format cannot be recognised.
        ValidationError: There is no format of that ``kind``.
    """
    if kind not in (None, "csv"):
        return FileFormat.parse({"kind": kind})
    if "://" in location:
        return None if kind is None else CsvFormat()
    files = find_files(location)
    named = by_suffix(files[0])
    if kind is None and not isinstance(named, CsvFormat) and Path(files[0]).suffix not in _TEXT:
        found = None if named is not None else format_of(location, files)
        if not isinstance(found, CsvFormat):
            return None
    guessed = _guess_csv(head_of(files[0]))
    return None if guessed == named else guessed


def _guess_csv(head: bytes) -> CsvFormat | None:
    encoding = _encoding(head)
    lines = head.decode(encoding, errors="replace").removeprefix("\ufeff").splitlines()
    if not lines:
        return None
    delimiter = max(",\t;|", key=lambda character: (lines[0].count(character), character == ","))
    fields, *rows = csv.reader(lines if len(lines) == 1 else lines[:-1], delimiter=delimiter)
    comma = delimiter != "," and any(_has_decimal_comma(values) for values in _columns(rows, len(fields)))
    header = len(set(fields)) == len(fields) and not any(_is_number(name) for name in fields)
    return CsvFormat(
        delimiter=delimiter,
        header=header,
        encoding="utf-8" if encoding == "utf-16" else encoding,  # which is recognized by its first bytes
        decimal="," if comma else ".",
        thousands="," if not comma and _groups_digits(_columns(rows, len(fields))) else None,
    )


def _encoding(head: bytes) -> str:
    if head.startswith(_UTF16):
        return "utf-16"
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)  # whose last character may be cut in two
    except UnicodeDecodeError:
        return "cp1252"
    return "utf-8"


def _columns(rows: Sequence[Sequence[str]], width: int) -> Iterator[list[str]]:
    """The values of each column that are not empty."""
    for values in zip(*(row for row in rows if len(row) == width), strict=True):
        yield [value.strip() for value in values if value.strip()]


def _has_decimal_comma(values: Sequence[str]) -> bool:
    """Whether all values of a column are numbers, and most have a comma before their fraction."""
    with_commas = sum("," in value for value in values)
    return with_commas > len(values) / 2 and all(_DECIMAL_COMMA.fullmatch(value) for value in values)


def _groups_digits(columns: Iterable[Sequence[str]]) -> bool:
    """Whether commas group digits: in at least one column, and in none that may hold lists of codes.

    Codes of three digits with commas between them look like numbers, but the first group of a number is often shorter.
    """
    found = [values for values in columns if any("," in value and _GROUPED.fullmatch(value) for value in values)]
    return bool(found) and all(
        all(_GROUPED.fullmatch(value) for value in values) and any(_SHORT_GROUP.match(value) for value in values)
        for values in found
    )


def _is_number(field: str) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return True
