"""The rows of a scoring request, from JSON or an Arrow IPC stream; memory is bounded before it is allocated."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Annotated, Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from fastapi import HTTPException
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, FailFast, Field, StringConstraints, ValidationError

from serving.http.arrow_sizes import StreamError, StreamLimits, StreamTooLargeError, check_stream

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]

_ROW_DEPTH, _DEPTH = 3, 4
"""Levels of brackets around the fields of a row, and around the items of a list in it."""
_COLUMNS = 1000
_CELLS = 1_000_000
_JSON_VALUES = 300_000
"""Python and Polars take up to 220 bytes for each of them at a time."""
_DECOMPRESSED = 8 << 20
"""Bytes of an Arrow stream, decompressed, beyond those that were sent."""
_TOP_KEYS = 16
_PIECE = 1 << 20
_MOST_BITS = 128
_LONGEST_KEY = 200
_KEY = re.compile(rb'"([^"]*)"\s*:[\s\[]*\Z')


@dataclass(frozen=True)
class Limits:
    """Limits of requests.

    Attributes:
        body_bytes: Of a ``/v1/score`` request. Other bodies: :attr:`small_body_bytes`.
        small_body_bytes: Of any other request.
        rows: Of one ``/v1/score`` request; more is a job.
        seconds: Of one ``/v1/score`` request; and for a body to arrive.
        held_bytes: Of all bodies together that wait or are processed.
    """

    body_bytes: int = 16 << 20
    small_body_bytes: int = 64 << 10
    rows: int = 10_000
    seconds: float = 30.0
    held_bytes: int = 256 << 20


class _LongNumberError(ValueError):
    """A whole number whose text would take long to write; ``row`` says where."""

    def __init__(self, row: int) -> None:
        self.row = row


class ScoreRows(BaseModel):
    """Raw rows as objects."""

    model_config = ConfigDict(extra="forbid")
    rows: Annotated[list[dict[str, Any]], FailFast()]
    artifact: Name | None = Field(None, description="Name; the live one if absent.")
    logits: bool = False


def read_json(content: bytes, limits: Limits) -> tuple[ScoreRows, pl.DataFrame]:
    """A JSON body, and its rows as a frame.

    Raises:
        HTTPException: 422 names the key or column at fault; 413 the limit that is passed.
    """
    _scan_json(content)
    try:
        asked = ScoreRows.model_validate_json(content)
    except ValidationError as error:
        raise HTTPException(422, one_sentence(error.errors(include_url=False, include_input=False))) from None
    rows = asked.rows
    if len(rows) > limits.rows:
        raise HTTPException(413, f"{len(rows)} rows are more than {limits.rows}: submit a job instead")
    names: dict[str, None] = {}
    for row in rows:
        names.update(dict.fromkeys(row))
        if len(names) > _COLUMNS:
            raise HTTPException(413, f"rows: more than {_COLUMNS} columns: send those that the artifact reads")
    if len(names) * len(rows) > _CELLS:
        raise HTTPException(413, f"rows: more than {_CELLS:,} cells (rows times columns): submit a job instead")
    if rows and not names:
        raise HTTPException(422, 'rows: no row has a column: send what the artifact reads, such as {"user": 7}')
    frame = pl.DataFrame({name: _column(name, [row.get(name) for row in rows]) for name in names})
    return asked, frame


def read_arrow(content: bytes, limits: Limits) -> pl.DataFrame:
    """The rows of an Arrow IPC stream; columns of a dictionary become plain strings.

    Raises:
        HTTPException: 400 for what is not such a stream; 413 for a limit that is passed.
    """
    most_bytes = len(content) + _DECOMPRESSED
    try:
        check_stream(content, StreamLimits(rows=limits.rows, bytes=most_bytes))
        table = pa.ipc.open_stream(pa.py_buffer(content)).read_all()
        table.validate(full=True)
        if len(set(table.column_names)) != table.num_columns:
            raise StreamError("two columns of the stream have the same name")
        plain = [_without_dictionary(column, most_bytes) for column in table.columns]
        frame = pl.from_arrow(pa.Table.from_arrays(plain, names=table.column_names))
        assert isinstance(frame, pl.DataFrame)
        _refuse_long_strings(sum(_string_bytes(column) for column in frame), most_bytes)
    except StreamTooLargeError as error:
        raise HTTPException(413, str(error)) from None
    except StreamError as error:
        raise HTTPException(400, str(error)) from None
    except (
        pa.ArrowException,
        pl.exceptions.PolarsError,
        pl.exceptions.PanicException,
        OSError,
        ValueError,
        TypeError,
        OverflowError,
    ):
        raise HTTPException(400, "the body is not an Arrow IPC stream of rows") from None
    return frame


def one_sentence(faults: Any) -> str:
    """Place and message of pydantic's first fault. The client's input is not repeated."""
    fault = faults[0]
    where = ".".join(map(str, fault["loc"])) or "the body"
    return f"{where}: {fault['msg']}".encode("utf-8", "replace").decode()[:500]


def _column(name: str, values: Sequence[Any]) -> pl.Series:
    """One column of a JSON body: plain values, or lists of them.

    Polars keeps all other threads waiting while it reads Python's objects, and takes long for lists: so one column at a
    time, and lists as one column of all their items.
    """
    lists = any(isinstance(value, list) for value in values)
    if lists:
        values = [_as_list(name, row, value) for row, value in enumerate(values)]
    try:
        column = _lists(values) if lists else _plain(values)
    except _LongNumberError as error:
        beyond = f"{name} is a whole number beyond {_MOST_BITS} bits: send it as text"
        raise HTTPException(422, f"rows: {beyond}" if lists else f"rows[{error.row}]: {beyond}") from None
    except (pl.exceptions.PolarsError, TypeError, ValueError, OverflowError, pl.exceptions.PanicException):
        raise HTTPException(422, f"rows: the values of {name!r} are of several types") from None
    items = column.explode() if column.dtype == pl.List else column
    if items.dtype.is_float() and not items.is_finite().all():
        raise HTTPException(422, f"rows: {name!r} holds NaN or a number too large: send null instead")
    return column.alias(name)


def _as_list(name: str, row: int, value: Any) -> list[Any] | None:
    """The value of a row of a column that has lists in other rows: an empty text is an empty list."""
    if value is None or isinstance(value, list):
        return value
    if isinstance(value, str) and not value.strip():
        return []
    raise HTTPException(
        422, f"rows[{row}]: {name} is {str(value)[:80]!r}, and other rows have lists there: send a list in every row"
    )


def _lists(values: Sequence[Any]) -> pl.Series:
    """Lists of plain values, some of them null."""
    items = _plain([item for value in values if value is not None for item in value])
    ends = np.cumsum([0, *(len(value or ()) for value in values)])
    missing = pa.array([value is None for value in values])
    series = pl.from_arrow(pa.LargeListArray.from_arrays(ends, items.to_arrow(), mask=missing))
    assert isinstance(series, pl.Series)
    return series


def _plain(values: Sequence[Any]) -> pl.Series:
    """Plain values: of one type, or of types that have a common one. Numbers beside text become text, and so do whole
    numbers beyond 64 bits, up to 128: as ids and as numbers they are read alike.
    """
    kinds = set(map(type, values)) - {type(None)}
    if str in kinds and kinds <= {str, int, float, bool}:
        return pl.Series([value if value is None or isinstance(value, str) else _text(value) for value in values])
    if kinds <= {int}:
        try:
            return pl.Series(values, dtype=pl.Int64 if kinds else pl.Null)
        except (OverflowError, TypeError):
            for row, value in enumerate(values):
                if value is not None and value.bit_length() > _MOST_BITS:
                    raise _LongNumberError(row) from None
            return pl.Series([None if value is None else str(value) for value in values])
    elif len(kinds) == 1:
        return pl.Series(values)
    return pl.from_dicts([{"": value} for value in values], infer_schema_length=None).to_series()


def _text(value: int | float | bool) -> str:
    """The text of a number or a truth value beside texts; NaN and infinities are refused."""
    if isinstance(value, float) and not isfinite(value):
        raise ValueError(value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def _scan_json(content: bytes) -> None:
    """Refuse JSON whose objects in Python would take many times its size.

    Values are counted by the characters outside strings, a megabyte at a time: an upper bound that needs no parser.
    """
    plain = content.replace(b"\\\\", b"__").replace(b'\\"', b"__") if b"\\" in content else content
    characters = np.frombuffer(plain, np.uint8)
    inside, depth, values, top_keys = False, 0, 0, 0
    for start in range(0, len(characters), _PIECE):
        piece = characters[start : start + _PIECE]
        outside = _outside_strings(piece, inside)
        inside ^= bool(np.count_nonzero(piece == ord('"')) & 1)
        structure = piece[outside]
        opened = (structure == ord("{")) | (structure == ord("["))
        closed = (structure == ord("}")) | (structure == ord("]"))
        depths = depth + np.cumsum(opened.astype(np.int32) - closed.astype(np.int32), dtype=np.int32)
        inner = (structure == ord("{")) & (depths > _ROW_DEPTH)
        if np.any(inner):
            name = _key_before(plain, start + int(np.flatnonzero(outside)[inner.argmax()]))
            raise HTTPException(422, f"rows: {name} is an object: send its fields as columns, such as user.id")
        if np.any(depths > _DEPTH):
            raise HTTPException(422, "rows: a list inside a list: send lists of plain values")
        depth = int(depths[-1]) if len(depths) else depth
        values += int(np.count_nonzero(opened) + np.count_nonzero(structure == ord(",")))
        top_keys += int(np.count_nonzero((structure == ord(":")) & (depths == 1)))
        if values > _JSON_VALUES:
            raise HTTPException(413, f"rows: more than {_JSON_VALUES:,} values: send an Arrow stream, or submit a job")
        if top_keys > _TOP_KEYS:
            raise HTTPException(422, "the body: unknown keys beside rows, artifact and logits")


def _key_before(content: bytes, place: int) -> str:
    """The key whose value holds the bracket at ``place``, in quotes."""
    found = _KEY.search(content[max(0, place - _LONGEST_KEY) : place])
    return repr(found[1].decode("utf-8", "replace")) if found else "a value"


def _outside_strings(piece: NDArray[np.uint8], inside: bool) -> NDArray[np.bool_]:
    """Which characters are outside strings; ``inside`` if the piece starts within one."""
    quotes = np.cumsum(piece == ord('"'), dtype=np.uint8)  # wraps at 256, which keeps it even or odd
    outside: NDArray[np.bool_] = (quotes & 1) == int(inside)
    return outside


def _without_dictionary(column: pa.ChunkedArray, most_bytes: int) -> pa.ChunkedArray:
    """Plain strings instead of a dictionary, each of whose strings may occur in every row."""
    if not pa.types.is_dictionary(column.type):
        return column
    total, plain = 0, []
    for chunk in column.chunks:
        words = chunk.dictionary.cast(pa.large_string())
        total += pc.sum(pc.binary_length(words).take(chunk.indices)).as_py() or 0
        _refuse_long_strings(total, most_bytes)
        plain.append(words.take(chunk.indices))
    return pa.chunked_array(plain, pa.large_string())


def _string_bytes(column: pl.Series) -> int:
    """Bytes of the strings in a column: views may share theirs."""
    while isinstance(column.dtype, pl.List | pl.Array):
        column = column.explode()
    if isinstance(column.dtype, pl.Struct):
        return sum(_string_bytes(field) for field in column.struct.unnest())
    return int(column.str.len_bytes().sum()) if column.dtype == pl.String else 0


def _refuse_long_strings(total: int, most: int) -> None:
    if total > most:
        raise HTTPException(413, f"the strings of the stream are more than {most} bytes: submit a job instead")
