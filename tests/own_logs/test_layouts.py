"""One log in layouts put together at random, from formats, files, spellings, times and encodings, is one log."""

import gzip
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.features.config import DataConfig
from data_pipelines.features.plan import Plan
from data_pipelines.features.raw_columns import RawColumns
from data_pipelines.logs.sources import scan

LAYOUTS = 60
DATA: dict[str, Any] = {
    "time": "when",
    "tasks": {"buy": {"column": "bought"}},
    "features": {"user": {"kind": "id"}, "code": {"kind": "id"}, "city": {"kind": "id"}, "price": {"kind": "number"}},
}
TEXT = ("csv", "tsv", "semicolons")
TIMES: Mapping[str, tuple[Any, str | None]] = {
    "iso": (lambda t: t.strftime("%Y-%m-%dT%H:%M:%S"), None),
    "blank": (lambda t: t.strftime("%Y-%m-%d %H:%M:%S"), None),
    "utc": (lambda t: t.strftime("%Y-%m-%d %H:%M:%S UTC"), None),
    "slashes": (lambda t: t.strftime("%Y/%m/%d %H:%M:%S"), None),
    "offset": (lambda t: t.astimezone(timezone(timedelta(hours=5, minutes=30))).isoformat(), None),
    "fraction": (lambda t: t.strftime("%Y-%m-%d %H:%M:%S,000"), None),
    "german": (lambda t: t.strftime("%d.%m.%Y %H:%M:%S"), "%d.%m.%Y %H:%M:%S"),
    "american": (lambda t: t.strftime("%m/%d/%Y %I:%M:%S %p"), "%m/%d/%Y %I:%M:%S %p"),
    "digits": (lambda t: t.strftime("%Y%m%d%H%M%S"), "YYYYMMDDHHMMSS"),
    "seconds": (lambda t: int(t.timestamp()), None),
    "milliseconds": (lambda t: int(t.timestamp()) * 1000, None),
    "nanoseconds": (lambda t: int(t.timestamp()) * 10**9, None),
}
USERS: Mapping[str, Any] = {
    "whole": lambda n: n,
    "text": str,
    "float": float,
    "pandas": lambda n: f"{n}.0",
    "decimal": Decimal,
    "padded": lambda n: f" {n} ",
}
LABELS: Mapping[str, tuple[Any, Any]] = {"0/1": (0, 1), "text": ("0", "1"), "bool": (False, True), "float": (0.0, 1.0)}


@dataclass(frozen=True)
class Row:
    """A row of the log, in the types of Python."""

    when: datetime
    user: int | None
    code: str
    city: str | None
    price: float | None
    bought: int


@dataclass(frozen=True)
class Layout:
    """How a log is written."""

    container: str
    time: str
    user: str
    label: str
    parts: int
    gzipped: bool
    encoding: str
    decimal: str
    crlf: bool
    quoted: bool
    empty_file: bool
    turned: bool
    extra: bool
    null: str

    @property
    def is_text(self) -> bool:
        return self.container in TEXT


ROWS = st.lists(
    st.builds(
        Row,
        when=st.datetimes(datetime(2001, 10, 1), datetime(2026, 1, 1)).map(
            lambda t: t.replace(microsecond=0, tzinfo=UTC)
        ),
        user=st.none() | st.integers(0, 2**53),
        code=st.from_regex(r"0[0-9]{2,4}", fullmatch=True),
        city=st.sampled_from([None, "Köln", "Zürich", "São Paulo", "Ab, c", 'the "x"', "a;b", "two\nlines"]),
        price=st.none() | st.integers(-(10**6), 10**6).map(lambda cents: cents / 100),
        bought=st.integers(0, 1),
    ),
    min_size=3,
    max_size=6,
)
LAYOUT = st.builds(
    Layout,
    container=st.sampled_from([*TEXT, "ndjson", "parquet", "arrow"]),
    time=st.sampled_from(sorted(TIMES)),
    user=st.sampled_from(sorted(USERS)),
    label=st.sampled_from(sorted(LABELS)),
    parts=st.integers(1, 3),
    gzipped=st.booleans(),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "cp1252"]),
    decimal=st.sampled_from([".", ","]),
    crlf=st.booleans(),
    quoted=st.booleans(),
    empty_file=st.booleans(),
    turned=st.booleans(),
    extra=st.booleans(),
    null=st.sampled_from(["", "  "]),
)


def spelled(rows: list[Row], layout: Layout) -> list[dict[str, Any]]:
    """The rows as values of the layout."""
    show, _ = TIMES[layout.time]
    return [
        {
            "when": show(row.when),
            "user": None if row.user is None else USERS[layout.user](row.user),
            "code": row.code,
            "city": row.city,
            "price": row.price,
            "bought": LABELS[layout.label][row.bought],
        }
        for row in rows
    ]


def write(rows: list[dict[str, Any]], layout: Layout, path: Path) -> None:
    if layout.turned:
        rows = [dict(reversed(row.items())) for row in rows]
    if layout.is_text:
        text = delimited(rows, layout)
        content = text.encode(layout.encoding)
    elif layout.container == "ndjson":
        content = "".join(json.dumps(row, default=float) + "\n" for row in rows).encode()
    else:
        frame = pl.DataFrame(rows, infer_schema_length=None)
        {"parquet": frame.write_parquet, "arrow": frame.write_ipc}[layout.container](path)
        return
    path.write_bytes(gzip.compress(content) if layout.gzipped else content)


def delimited(rows: list[dict[str, Any]], layout: Layout) -> str:
    mark = {"csv": ",", "tsv": "\t", "semicolons": ";"}[layout.container]
    end = "\r\n" if layout.crlf else "\n"

    def field(value: Any, column: str) -> str:
        text = layout.null if value is None else str(value)
        if column == "price" and layout.decimal == ",":
            text = text.replace(".", ",")
        plain = not layout.quoted and not any(letter in text for letter in f'{mark}"\n')
        return text if plain else '"' + text.replace('"', '""') + '"'

    lines = [mark.join(rows[0]), *(mark.join(field(value, name) for name, value in row.items()) for row in rows)]
    return "".join(line + end for line in lines)


def keys(layout: Layout) -> dict[str, Any]:
    """What a user would set to read the layout."""
    found: dict[str, Any] = {"time_format": TIMES[layout.time][1]}
    if layout.is_text:
        format: dict[str, Any] = {"kind": "csv", "decimal": layout.decimal}
        format["delimiter"] = {"csv": ",", "tsv": "\t", "semicolons": ";"}[layout.container]
        if layout.encoding == "cp1252":
            format["encoding"] = "cp1252"
        found["format"] = format
    return found


def read_back(rows: list[Row], layout: Layout, folder: Path) -> pl.DataFrame:
    """What `prepare` makes of the rows, before they are encoded."""
    suffix = {"tsv": ".tsv", "ndjson": ".ndjson", "parquet": ".parquet", "arrow": ".arrow"}.get(
        layout.container, ".csv"
    )
    packed = layout.gzipped and (layout.is_text or layout.container == "ndjson")
    size = -(-len(rows) // layout.parts)
    for number, start in enumerate(range(0, len(rows), size)):
        part = spelled(rows[start : start + size], layout)
        if layout.extra and number == 0:
            part = [{**row, "nobody reads": {"a": [1]} if layout.container == "ndjson" else 7} for row in part]
        write(part, layout, folder / f"part-{number}{suffix}{'.gz' * packed}")
    if layout.empty_file and layout.is_text:
        (folder / f"part-9{suffix}{'.gz' * packed}").write_bytes(gzip.compress(b"") if packed else b"")
    plan = Plan.of(DataConfig.model_validate({**DATA, "log": str(folder), **keys(layout)}))
    found = scan(plan)
    assert not len(found.refused)
    raw = RawColumns(found.frame.collect_schema())
    return found.frame.select(
        when=plan.when(raw),
        user=raw.text("a test", "user"),
        code=raw.text("a test", "code"),
        city=raw.text("a test", "city"),
        price=raw.number("a test", "price"),
        bought=plan.label("buy", raw).cast(pl.Int8),
    ).collect(engine="streaming")


def expected(rows: list[Row]) -> list[tuple[Any, ...]]:
    return [
        (
            int(row.when.timestamp()) * 10**6,
            None if row.user is None else str(row.user),
            row.code,
            row.city,
            row.price,
            row.bought,
        )
        for row in rows
    ]


@settings(max_examples=LAYOUTS, deadline=None, derandomize=True, database=None)
@given(ROWS, LAYOUT)
def test_a_log_is_the_same_in_every_layout(rows: list[Row], layout: Layout) -> None:
    with TemporaryDirectory() as folder:
        assert read_back(rows, layout, Path(folder)).rows() == expected(rows)
