"""Text that cannot be read as it stands: other encodings, lines with too few or too many fields, unreadable bytes."""

import codecs
import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from data_pipelines.errors import UserError
from data_pipelines.files.base import REFUSED

HEAD_BYTES = 1 << 16
_BLOCK_BYTES = 1 << 24
_LONGEST_SHOWN = 1000
_MOST_LINE_BREAKS = 1000
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


@dataclass(frozen=True)
class Dialect:
    """How lines are cut into fields.

    Attributes:
        names: Names of the columns, in order.
        header: Whether the first line names them, and is no row.
    """

    names: tuple[str, ...]
    delimiter: str
    quote: str | None
    header: bool


def open_bytes(path: str) -> pa.NativeFile:
    """The bytes of a file, decompressed as its suffix says."""
    return pa.input_stream(path, compression="detect", buffer_size=_BLOCK_BYTES)


def head_of(path: str) -> bytes:
    """The first bytes of a file, decompressed; empty where it holds nothing."""
    with open_bytes(path) as file:
        head: bytes = file.read(HEAD_BYTES)
    return head


def encoding_of(path: str, head: bytes, encoding: str) -> str:
    """The encoding of a file: ``encoding``, but UTF-16 where its first bytes say so.

    Raises:
        UserError: The encoding is unknown, or the file is of another one.
    """
    try:
        name = codecs.lookup(encoding).name
    except LookupError:
        raise UserError(
            f"format.encoding is {encoding!r}, which is not known: use one such as utf-8 or cp1252."
        ) from None
    if head.startswith(_UTF16):
        return "utf-16"
    if b"\0" in head and not name.startswith(("utf-16", "utf-32")):
        raise UserError(f"{path} is not {encoding}: it has NUL bytes; set the key format.encoding, such as utf-16-le.")
    return name


def first_record(path: str, head: bytes, encoding: str, delimiter: str, quote: str | None) -> list[str]:
    """The fields of the first line.

    Raises:
        UserError: It is not in the encoding.
    """
    try:
        # The last character may be cut in two.
        text = codecs.getincrementaldecoder(encoding)().decode(head).removeprefix("\ufeff")
    except UnicodeDecodeError:
        text = ""
    if not text:
        text = _first_line(path, head, encoding)
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if quote else csv.QUOTE_NONE
    return next(csv.reader(io.StringIO(text), delimiter=delimiter, quotechar=quote or '"', quoting=quoting), [])


def _first_line(path: str, head: bytes, encoding: str) -> str:
    line = head.split(b"\n", 1)[0]
    try:
        return line.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError:
        raise UserError(f"{path} is not {encoding}: set the key format.encoding, such as cp1252 or utf-16.") from None


def is_plain(path: str, dialect: Dialect) -> bool:
    """Whether the engine can read a UTF-8 file as it stands: every line has the right number of fields, none is quoted.

    The engine takes lines with too few fields for rows, and stumbles over a quote inside a field.
    """
    if dialect.quote is not None and _holds(path, dialect.quote.encode()):
        return False
    refused = False

    def note(row: pacsv.InvalidRow) -> str:
        nonlocal refused
        refused = True
        return "skip"

    try:
        for _ in _batches(path, dialect, "utf-8", note, pa.string(), threads=True, multiline=False):
            if refused:
                return False
    except pa.ArrowInvalid:
        return False
    return not refused


def _holds(path: str, mark: bytes) -> bool:
    with open_bytes(path) as file:
        while chunk := file.read(_BLOCK_BYTES):
            if mark in chunk:
                return True
    return False


def clean_copy(path: str, dialect: Dialect, encoding: str, out: Path) -> pl.DataFrame:
    """Write the rows of a file that can be read as Arrow IPC to ``out``; returns the lines that were refused.

    Raises:
        UserError: The file is not in the encoding, cannot be cut into fields, or a quote in it is never closed.
    """
    found: list[tuple[str, int | None, str, str]] = []
    expected = len(dialect.names)

    def refuse(row: pacsv.InvalidRow) -> str:
        reason = f"{row.actual_columns} fields instead of {expected}"
        found.append((path, row.number, row.text[:_LONGEST_SHOWN], reason))
        return "skip"

    schema = pa.schema([(str(i), pa.string()) for i in range(expected)])
    kind = pa.binary() if encoding == "utf-8" else pa.string()
    try:
        with pa.OSFile(str(out), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            for batch in _batches(path, dialect, encoding, refuse, kind, threads=False, multiline=True):
                readable = _readable(batch, schema, path, found)
                _refuse_unclosed(path, readable)
                writer.write_batch(readable)
    except UnicodeError:
        raise UserError(f"{path} is not {encoding}: set the key format.encoding to its encoding.") from None
    except pa.ArrowInvalid as error:
        raise UserError(
            f"{path} cannot be cut into {expected} fields per line: check format.quote ({error})."
        ) from None
    return pl.DataFrame(found, schema=REFUSED, orient="row")


def _refuse_unclosed(path: str, batch: pa.RecordBatch) -> None:
    for column in batch.columns:
        breaks = pc.count_substring(column, "\n")
        if (pc.max(breaks).as_py() or 0) > _MOST_LINE_BREAKS:
            value = column[pc.index(breaks, pc.max(breaks)).as_py()].as_py()
            lines = value.count("\n")
            raise UserError(
                f"{path}: the field that starts with {value[:40]!r} has {lines:,} line breaks, so its quote is "
                "probably never closed: fix that line, or set the key format.quote to null if quotes are text here."
            )


def _batches(
    path: str, dialect: Dialect, encoding: str, skip: object, kind: pa.DataType, *, threads: bool, multiline: bool
) -> Iterator[pa.RecordBatch]:
    names = [str(i) for i in range(len(dialect.names))]
    with open_bytes(path) as file:
        yield from pacsv.open_csv(
            file,
            pacsv.ReadOptions(
                use_threads=threads,
                block_size=_BLOCK_BYTES,
                column_names=names,
                skip_rows=int(dialect.header),
                encoding=encoding,
            ),
            pacsv.ParseOptions(
                delimiter=dialect.delimiter,
                quote_char=dialect.quote or False,
                newlines_in_values=multiline,
                invalid_row_handler=skip,
            ),
            pacsv.ConvertOptions(column_types=dict.fromkeys(names, kind), strings_can_be_null=True, null_values=[""]),
        )


def _readable(
    batch: pa.RecordBatch, schema: pa.Schema, path: str, found: list[tuple[str, int | None, str, str]]
) -> pa.RecordBatch:
    """``batch`` as text, without the rows that are not UTF-8, which are added to ``found``."""
    try:
        return batch.cast(schema)
    except pa.ArrowInvalid:
        pass
    kept = []
    for row, values in enumerate(zip(*(column.to_pylist() for column in batch.columns), strict=True)):
        line = b",".join(value or b"" for value in values)
        try:
            line.decode()
            kept.append(row)
        except UnicodeDecodeError:
            shown = line.decode(errors="replace")[:_LONGEST_SHOWN]
            found.append((path, None, shown, "not UTF-8 (set format.encoding if the whole file is not)"))
    return batch.take(pa.array(kept, pa.int64())).cast(schema)
