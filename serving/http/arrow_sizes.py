"""The memory that an Arrow IPC stream needs, added up from its messages before Arrow reads any of them.

A stream of a few kilobytes may declare gigabytes: compressed buffers of zeros, arrays without buffers, millions of
fields that share one name. Arrow allocates such memory while it reads, so the sizes are read here first, from the
flatbuffers that frame the stream (https://arrow.apache.org/docs/format/Columnar.html). Only sizes are checked here;
Arrow decides whether the stream is valid.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

_VERSION_5 = 4
_SCHEMA, _DICTIONARY, _BATCH = 1, 2, 3
_TIMESTAMP = 10
_TEXTS = frozenset({5, 20, 24})
"""Type codes of utf8, large_utf8 and utf8_view."""
_REFUSED = {14: "union", 17: "map", 22: "run_end_encoded", 23: "binary_view", 25: "list_view", 26: "large_list_view"}
_NUMBERS = {"u1": "<B", "i2": "<h", "i4": "<i", "u2": "<H", "u4": "<I", "i8": "<q"}
_EXTENSION = b"ARROW:extension:name"


class StreamError(ValueError):
    """The stream is damaged, or holds types that scoring does not read. The message is one sentence."""


class StreamTooLargeError(StreamError):
    """The stream declares more than the limits allow. The message is one sentence."""


@dataclass(frozen=True)
class StreamLimits:
    """Limits of what a stream may declare.

    Attributes:
        rows: Over all batches.
        bytes: Of all buffers, decompressed.
        columns: Fields of the schema, those inside lists and structs counted too.
        depth: Levels of lists and structs.
        values: Lengths of all arrays, those inside lists and dictionaries counted too.
        arrays: Number of arrays over all batches.
        text: Bytes of names and metadata.
    """

    rows: int
    bytes: int
    columns: int = 1000
    depth: int = 4
    values: int = 2_000_000
    arrays: int = 50_000
    text: int = 1 << 20


class _Table:
    """A table of a flatbuffer. Offsets are untrusted: each is compared with the buffer before it is followed."""

    def __init__(self, content: memoryview, at: int) -> None:
        self._content, self._at = content, at
        self._fields = at - _number(content, at, "i4")
        self._fields_bytes = _number(content, self._fields, "u2")

    @classmethod
    def root(cls, content: memoryview) -> "_Table":
        return cls(content, _number(content, 0, "u4"))

    def number(self, field: int, kind: str) -> int:
        at = self._place(field)
        return 0 if at is None else _number(self._content, at, kind)

    def table(self, field: int) -> "_Table | None":
        at = self._followed(field)
        return None if at is None else _Table(self._content, at)

    def tables(self, field: int) -> Iterator["_Table"]:
        start, count = self._vector(field, 4)
        for at in range(start, start + 4 * count, 4):
            yield _Table(self._content, at + _number(self._content, at, "u4"))

    def pairs(self, field: int, most: int) -> Iterator[tuple[int, int]]:
        """A vector of structs of two int64."""
        start, count = self._vector(field, 16)
        if count > most:
            raise StreamTooLargeError(f"a batch of the stream has {count:,} arrays: send at most {most:,}")
        yield from struct.iter_unpack("<qq", self._content[start : start + 16 * count])

    def text(self, field: int) -> memoryview:
        start, count = self._vector(field, 1)
        return self._content[start : start + count]

    def _place(self, field: int) -> int | None:
        entry = 4 + 2 * field
        if entry + 2 > self._fields_bytes:
            return None
        offset = _number(self._content, self._fields + entry, "u2")
        return self._at + offset if offset else None

    def _followed(self, field: int) -> int | None:
        at = self._place(field)
        return None if at is None else at + _number(self._content, at, "u4")

    def _vector(self, field: int, item_bytes: int) -> tuple[int, int]:
        """Where the items of a vector start, and how many there are."""
        at = self._followed(field)
        if at is None:
            return 0, 0
        count = _number(self._content, at, "u4")
        if at + 4 + item_bytes * count > len(self._content):
            raise _damaged()
        return at + 4, count


class _Totals:
    """The sums over the messages so far, checked against the limits."""

    def __init__(self, limits: StreamLimits) -> None:
        self._limits = limits
        self._rows = self._bytes = self._columns = self._values = self._arrays = self._text = 0

    def schema(self, schema: _Table) -> None:
        self._metadata(schema, 2)
        waiting = [(field, 1) for field in self._fields(schema, 1)]
        while waiting:
            field, depth = waiting.pop()
            if depth > self._limits.depth:
                raise StreamTooLargeError(f"a column nests more than {self._limits.depth} levels: send it flat")
            self._field(field, depth)
            waiting += [(child, depth + 1) for child in self._fields(field, 5)]

    def batch(self, batch: _Table, body: memoryview, *, dictionary: bool) -> None:
        rows = batch.number(0, "i8")
        if rows < 0:
            raise _damaged()
        self._arrays += 1
        if not dictionary:
            self._rows += rows
            if self._rows > self._limits.rows:
                raise StreamTooLargeError(f"{self._rows} rows are more than {self._limits.rows}: submit a job instead")
        for length, _ in batch.pairs(1, self._limits.arrays):
            if length < 0:
                raise _damaged()
            self._arrays += 1
            self._values += length
        compressed = batch.table(3) is not None
        for offset, length in batch.pairs(2, 4 * self._limits.arrays):
            self._bytes += _buffer_bytes(body, offset, length, compressed)
        limits = self._limits
        if self._bytes > limits.bytes:
            raise StreamTooLargeError(
                f"the stream decompresses to more than {limits.bytes} bytes: submit a job instead"
            )
        if self._values > limits.values or self._arrays > limits.arrays:
            raise StreamTooLargeError(
                f"the stream has more than {limits.values:,} values or {limits.arrays:,} arrays: submit a job instead"
            )

    def message(self, message: _Table) -> None:
        self._metadata(message, 4)

    def _fields(self, parent: _Table, field: int) -> Iterator[_Table]:
        for child in parent.tables(field):
            self._columns += 1
            if self._columns > self._limits.columns:
                raise StreamTooLargeError(f"the stream has more than {self._limits.columns} columns: send fewer")
            yield child

    def _field(self, field: _Table, depth: int) -> None:
        self._read(field.text(0))
        self._metadata(field, 6)
        kind = field.number(2, "u1")
        if kind in _REFUSED:
            raise StreamError(
                f"a column is of the type {_REFUSED[kind]}, which scoring does not read: send a plain one"
            )
        if kind == _TIMESTAMP and (timestamp := field.table(3)) is not None:
            self._read(timestamp.text(1))
        if field.table(4) is not None and (depth > 1 or kind not in _TEXTS):
            raise StreamError("a dictionary column has other values than strings, or is in a list: send plain values")

    def _metadata(self, table: _Table, field: int) -> None:
        for entry in table.tables(field):
            if self._read(entry.text(0)) == _EXTENSION:
                raise StreamError("a column is of an extension type: send its storage type")
            self._read(entry.text(1))

    def _read(self, text: memoryview) -> memoryview:
        self._text += len(text) + 16
        if self._text > self._limits.text:
            raise StreamTooLargeError(f"names and metadata of the stream are more than {self._limits.text} bytes")
        return text


def check_stream(content: bytes, limits: StreamLimits) -> None:
    """Add up what the messages of an Arrow IPC stream declare; nothing is decompressed or copied.

    Raises:
        StreamTooLargeError: It declares more than ``limits``.
        StreamError: Its framing is damaged, it is of a version before Arrow 1.0, or a column's type is not read.
    """
    totals = _Totals(limits)
    seen_schema = False
    for header, body in _messages(memoryview(content)):
        if header.number(0, "i2") != _VERSION_5:
            raise StreamError("the stream is of a version before Arrow 1.0: write it with a newer one")
        totals.message(header)
        kind, inner = header.number(1, "u1"), header.table(2)
        if inner is None or (kind == _SCHEMA) == seen_schema:
            raise _damaged()
        if kind == _SCHEMA:
            totals.schema(inner)
            seen_schema = True
        elif kind == _BATCH:
            totals.batch(inner, body, dictionary=False)
        elif kind == _DICTIONARY and (data := inner.table(1)) is not None:
            totals.batch(data, body, dictionary=True)
        else:
            raise _damaged()
    if not seen_schema:
        raise _damaged()


def _messages(content: memoryview) -> Iterator[tuple[_Table, memoryview]]:
    """Header and body of each message, to the end of the stream."""
    at = 0
    while at < len(content):
        if _number(content, at, "u4") != 0xFFFFFFFF:
            raise _damaged()
        size = _number(content, at + 4, "i4")
        if size == 0:
            return
        start, end = at + 8, at + 8 + size
        if size < 0 or end > len(content):
            raise _damaged()
        header = _Table.root(content[start:end])
        body_bytes = header.number(3, "i8")
        if not 0 <= body_bytes <= len(content) - end:
            raise _damaged()
        yield header, content[end : end + body_bytes]
        at = end + body_bytes


def _buffer_bytes(body: memoryview, offset: int, length: int, compressed: bool) -> int:
    """Bytes of a buffer once it is decompressed. A compressed buffer starts with that number, or with -1."""
    if offset < 0 or length < 0 or offset + length > len(body):
        raise _damaged()
    if not compressed or length == 0:
        return length
    declared = _number(body, offset, "i8")
    if declared < -1:
        raise _damaged()
    return length if declared == -1 else declared


def _number(content: memoryview, at: int, kind: str) -> int:
    """A little-endian number. ``struct`` counts a negative place from the end, so that is refused here."""
    if at < 0:
        raise _damaged()
    try:
        return int(struct.unpack_from(_NUMBERS[kind], content, at)[0])
    except struct.error:
        raise _damaged() from None


def _damaged() -> StreamError:
    return StreamError("the body is not an Arrow IPC stream of rows")
