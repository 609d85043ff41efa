"""Columns of any type in the forms the encoder knows: text, texts and numbers.

The text of a value is its one canonical form, so that a log, a request in JSON and a file of another format agree: the
integer ``7``, the float ``7.0``, the decimal ``7.00`` and the texts ``"7"``, ``"7.0"`` and ``" 7 "`` are one value.
"""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import polars as pl

MICROSECONDS = 1_000_000
BLANKS = " \t\r\n\u00a0"
"""What may stand around a text without being part of its value; the last is the no-break space."""
_TRUTH_VALUES = {"True": "true", "TRUE": "true", "False": "false", "FALSE": "false"}
_WHOLE = r"^(?:(-?[1-9][0-9]*)|-?(0))\.0+$"


def text(column: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    """``column`` as canonical text; NaN and empty text are null.

    Text loses the blanks around it and, where it is a whole number, its zeros after the point; ``True`` and ``TRUE``
    become ``true``. Text with leading zeros (``017``) and numbers that are not whole (``1.10``) stay as they are.

    Raises:
        TypeError: Values of ``dtype`` (lists, structs, bytes) have no such form.
    """
    if dtype == pl.String:
        return _canonical(column)
    if isinstance(dtype, pl.Categorical | pl.Enum):
        return _canonical(column.cast(pl.String))
    if dtype.is_float():
        whole = column.is_finite() & (column == column.round()) & (column.abs() < 2**53)
        return (
            pl.when(column.is_nan())
            .then(None)
            .when(whole)
            .then(column.cast(pl.Int64, strict=False).cast(pl.String))
            .otherwise(column.cast(pl.String))
        )
    if dtype.is_nested() or dtype in (pl.Binary, pl.Object):
        raise TypeError(f"{dtype} is no single value")
    written = column.cast(pl.String)
    if isinstance(dtype, pl.Decimal) and dtype.scale:
        return written.str.strip_chars_end("0").str.strip_chars_end(".")
    return written


def _canonical(column: pl.Expr) -> pl.Expr:
    return column.map_batches(canonical, return_dtype=pl.String, is_elementwise=True)


def canonical(values: pl.Series) -> pl.Series:
    """Canonical text of a column of text.

    Nearly all text is canonical already, and looking at whole values would take longer than encoding them: the few
    that may not be are found by their first and last bytes. (A method of a series that is an expression is a query of
    its own, which a request of a few rows would wait for.)
    """
    content = pl.col("text").cast(pl.Binary).bin
    ends = [content.get(place, null_on_oob=True).fill_null(0).alias(name) for name, place in _PLACES.items()]
    first, last = (end.to_numpy() for end in values.to_frame("text").select(ends))
    suspects = np.flatnonzero(_ENDS[first, last])
    if not len(suspects):
        return values
    found = values[suspects]
    has_point = pl.col("text").str.contains(".", literal=True).fill_null(False)
    with_point = found.to_frame("text").select(has_point).to_series().to_numpy()
    likely = (last[suspects] != ord("0")) | with_point | _BLANK_FIRST[first[suspects]]
    if not likely.any():
        return values
    suspects, found = suspects[likely], found.filter(likely)
    changed = _rewritten(found)
    return values if found.equals(changed) else values.clone().scatter(suspects, changed)


def _bytes(characters: bytes) -> np.ndarray:
    """(256,) which bytes are among ``characters``."""
    return np.isin(np.arange(256), list(characters))


_PLACES = {"first": 0, "last": -1}
_BLANK_FIRST = _bytes(bytes(range(33)) + "\u00a0".encode()[:1])
_ENDS = (
    _BLANK_FIRST[:, None] | _bytes(b"0" + BLANKS.encode())[None, :] | (_bytes(b"TF")[:, None] & _bytes(b"eE")[None, :])
)
"""(256, 256) by first and last byte: those of blanks, of nothing, of numbers that end with 0, and of truth values."""


def _rewritten(values: pl.Series) -> pl.Series:
    """Canonical text of values that may need a change."""
    end = values.str.ends_with
    odd = (values < "!") | end(".0") | end("00") | values.is_in(list(_TRUTH_VALUES)) | values.str.starts_with("\u00a0")
    for blank in BLANKS:
        odd |= end(blank)
    if not odd.any():
        return values
    found = values.filter(odd).str.strip_chars(BLANKS).str.replace(_WHOLE, "${1}${2}").replace(_TRUTH_VALUES)
    return values.clone().scatter(odd.arg_true(), found.set(found == "", None))


def texts(column: pl.Expr, dtype: pl.DataType, delimiter: str | None) -> pl.Expr:
    """``column`` as a list of canonical texts: a list as it is, text cut at ``delimiter`` or read as a list literal.

    A null, an empty text and an empty list are all the empty list. A null or an empty text inside a list is a null;
    between two delimiters of a text it is left out.

    Raises:
        TypeError: The column is neither a list nor text.
    """
    if isinstance(dtype, pl.List | pl.Array):
        inner = pl.DataType.from_python(object) if dtype.inner is None else dtype.inner
        assert isinstance(inner, pl.DataType)
        lists = column.arr.to_list() if isinstance(dtype, pl.Array) else column
        lists = lists.cast(pl.List(pl.String)) if inner == pl.Null else lists.list.eval(text(pl.element(), inner))
    elif dtype == pl.String:
        if delimiter is None:
            inside = column.str.strip_chars().str.strip_chars("[]()")
            lists = inside.str.split(",").list.eval(pl.element().str.strip_chars(" \t\r\n'\""))
        else:
            lists = column.str.split(delimiter)
        value = text(pl.element(), pl.String())
        lists = lists.list.eval(value.filter(value.is_not_null()))
    elif dtype == pl.Null:
        lists = column.cast(pl.List(pl.String))
    else:
        raise TypeError(f"{dtype} is neither a list nor text")
    return lists.fill_null(pl.lit([], dtype=pl.List(pl.String)))


MISSING = ("", "nan", "null", "na", "n/a", "none", "-", "inf", "-inf")
"""Texts that mean null in a column of numbers, in lower case."""
NO_LABEL = ("", "nan", "null", "na", "n/a")
"""Texts that mean null in a column of labels, in lower case; ``none`` may be the name of a class."""

TextT = TypeVar("TextT", pl.Expr, pl.Series)


def is_missing(texts: TextT, words: Sequence[str] = MISSING) -> TextT:
    """Whether texts say that there is no value, by one of ``words``; null where a text is null."""
    return texts.str.strip_chars().str.to_lowercase().is_in(words)


def unread(column: pl.Expr, read: pl.Expr) -> pl.Expr:
    """Where a column of text has a value that was not read: ``read`` is null."""
    return column.is_not_null() & ~is_missing(column) & read.is_null()


def number(column: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    """``column`` as Float64; a value that is not a finite number is null. Truth values, as text too, are 1 and 0.

    Raises:
        TypeError: Values of ``dtype`` are no numbers.
    """
    if dtype.is_numeric() or dtype in (pl.Boolean, pl.Null):
        value = column.cast(pl.Float64)
    elif dtype == pl.String:
        value = column.map_batches(_numbers, return_dtype=pl.Float64, is_elementwise=True)
    elif isinstance(dtype, pl.Duration):
        value = column.dt.total_microseconds() / MICROSECONDS
    else:
        raise TypeError(f"{dtype} is not a number")
    return pl.when(value.is_finite()).then(value)


def _numbers(texts: pl.Series) -> pl.Series:
    found = texts.str.strip_chars().cast(pl.Float64, strict=False)
    rest = (found.is_null() & texts.is_not_null()).arg_true()
    if not len(rest):
        return found
    truth = canonical(texts.gather(rest)).replace_strict(["true", "false"], [1.0, 0.0], default=None)
    return found if truth.null_count() == len(truth) else found.scatter(rest, truth)


def label_value(
    column: pl.Expr, dtype: pl.DataType, *, at_least: float | None = None, positive: Sequence[str] = ()
) -> pl.Expr:
    """``column`` as Float64 labels: its numbers, or 0 and 1 by ``at_least``, or by the text that is ``positive``.

    Text such as ``NA`` means that a row has no label, and is read as null, unless it is among ``positive``.

    Raises:
        TypeError: Values of ``dtype`` are no numbers (with ``positive``: no single values).
    """
    if positive:
        wanted, value = canonical(pl.Series(positive)).to_list(), text(column, dtype)
        given = value.is_in(wanted) | ~value.str.to_lowercase().is_in(NO_LABEL)
        return pl.when(given).then(value.is_in(wanted).cast(pl.Float64))
    value = number(column, dtype)
    return value if at_least is None else (value >= at_least).cast(pl.Float64)
