"""Where rows come from: files, folders, globs and object stores of any common format, as one lazy frame."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from glob import glob
from pathlib import Path

import polars as pl
import pyarrow as pa

from data_pipelines.config.base import expand
from data_pipelines.config.log import (
    CsvFormat,
    DeltaFormat,
    Format,
    IpcFormat,
    LibsvmFormat,
    NdjsonFormat,
    ParquetFormat,
)
from data_pipelines.errors import UserError
from data_pipelines.features.plan import Plan
from data_pipelines.logs.joins import join
from data_pipelines.names import POSITIVE, ROW

# By default Polars decodes so many row groups ahead of a slow query that they take twice the memory of the query, and
# counts in tables so small that what does not fit, rows and rows of it, waits in memory for the end.
# Not asked of Polars, how many threads it has: that would start them, and they do not survive a fork.
ENGINE_SETTINGS = {
    "POLARS_ROW_GROUP_PREFETCH_SIZE": str(os.cpu_count()),
    "POLARS_PARQUET_DECODE_TARGET_VALUES_PER_THREAD": "100000",
    "POLARS_MAX_HOT_TABLE_SIZE": str(1 << 18),
}
for _name, _value in ENGINE_SETTINGS.items():
    os.environ.setdefault(_name, _value)


_SUFFIXES: dict[str, Format] = {
    ".parquet": ParquetFormat(),
    ".pq": ParquetFormat(),
    ".csv": CsvFormat(),
    ".tsv": CsvFormat(delimiter="\t"),
    ".ndjson": NdjsonFormat(),
    ".jsonl": NdjsonFormat(),
    ".arrow": IpcFormat(),
    ".ipc": IpcFormat(),
    ".feather": IpcFormat(),
    ".svm": LibsvmFormat(),
    ".libsvm": LibsvmFormat(),
    ".ffm": LibsvmFormat(),
    ".libffm": LibsvmFormat(),
}
_COMPRESSED = (".gz", ".zst", ".zlib")
_HIVE = re.compile(r"/[^/=]+=[^/]*/")
# A damaged file can make the engine panic, which is no ordinary exception.
_UNREADABLE = (pl.exceptions.PolarsError, pl.exceptions.PanicException, pa.ArrowException, OSError)


def scan(plan: Plan, path: str | None = None) -> pl.LazyFrame:
    """The log of ``plan`` (or the one at ``path``) with its side tables joined, and the row number ``__row``.

    Raises:
        UserError: Nothing there, an unknown format, a file that cannot be read, or a column of a join that is missing.
    """
    config = plan.config
    frame = scan_files(path or config.log, config.format, text=plan.text_columns)
    if config.sampling is not None and POSITIVE not in frame.collect_schema():
        frame = frame.with_columns(pl.lit(1, dtype=pl.Int8).alias(POSITIVE))
    return join_sides(plan, frame.with_row_index(ROW))


def join_sides(plan: Plan, frame: pl.LazyFrame) -> pl.LazyFrame:
    """``frame`` with the side tables of ``plan`` joined, rows in their order.

    Raises:
        UserError: A side table cannot be read, or a column to join on is missing.
    """
    for side in plan.config.joins:
        table = scan_files(side.table, side.format, text=plan.text_columns)
        with reading(side.table):
            frame = join(frame, table, side, plan.time)
    return frame


def scan_files(location: str, format: Format | None, *, text: frozenset[str] = frozenset()) -> pl.LazyFrame:
    """A lazy frame over one file, a folder, a glob or an object-store address.

    Args:
        format: How to read it; ``None`` to go by the suffix.
        text: Columns to read as text, where the format has no types of its own.
    """
    location = expand(location)
    paths = find_files(location)
    format = format or format_of(location, paths)
    with reading(location):
        match format:
            case ParquetFormat():
                frame = pl.scan_parquet(paths, hive_partitioning=format.hive or _HIVE.search(paths[0]) is not None)
            case CsvFormat():
                frame = _scan_csv(paths, format, text)
            case NdjsonFormat():
                frame = pl.scan_ndjson(paths, infer_schema_length=10_000)
            case IpcFormat():
                frame = pl.scan_ipc(paths)
            case DeltaFormat():
                frame = pl.scan_delta(location, version=format.version)
            case LibsvmFormat():
                frame = _scan_libsvm(paths)
        # Of a copy: a scan that knows its schema can no longer take up row numbers, and slices behind them.
        frame.clone().collect_schema()
    return frame


@contextmanager
def reading(location: str) -> Iterator[None]:
    """Turn the engine's errors about damaged or mixed files into one sentence that names ``location``."""
    try:
        yield
    except _UNREADABLE as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UserError(f"{location} cannot be read: {reason}") from error


def find_files(location: str) -> list[str]:
    """The files of a path, a folder or a glob, sorted; an object-store address as it is.

    Raises:
        UserError: Nothing is there.
    """
    if "://" in location:
        return [location]
    path = Path(location)
    if path.is_dir():
        files = sorted(str(p) for p in path.rglob("*") if p.is_file() and not p.name.startswith((".", "_")))
        found = [name for name in files if _suffix(name)] or files
    else:
        found = sorted(glob(location, recursive=True)) if not path.is_file() else [location]
    if not found:
        raise UserError(f"{location} is not there: give the path of a file, a folder or a glob that holds the log.")
    return found


def _suffix(name: str) -> str | None:
    path = Path(name)
    while path.suffix in _COMPRESSED:
        path = path.with_suffix("")
    return path.suffix if path.suffix in _SUFFIXES else None


def format_of(location: str, paths: list[str]) -> Format:
    """The format that the suffixes of ``paths`` tell.

    Raises:
        UserError: They tell none, or several.
    """
    if Path(location, "_delta_log").is_dir():
        return DeltaFormat()
    suffixes = {_suffix(path.split("?")[0]) for path in paths}
    if len(suffixes) != 1 or None in suffixes:
        raise UserError(
            f"{location}: the format cannot be told from the file name; set the key `format`, such as {{kind: csv}}."
        )
    return _SUFFIXES[str(suffixes.pop())]


def _scan_csv(paths: list[str], format: CsvFormat, text: frozenset[str]) -> pl.LazyFrame:
    """All columns as text, but numbers for those that look so and are not in ``text``; what is none becomes null."""

    def read(*, infer: bool) -> pl.LazyFrame:
        return pl.scan_csv(
            paths,
            separator=format.delimiter,
            has_header=format.header,
            new_columns=format.columns,
            quote_char=format.quote,
            infer_schema=infer,
            infer_schema_length=10_000,
        )

    looks = read(infer=True).collect_schema()
    numbers = [pl.col(n).cast(t, strict=False) for n, t in looks.items() if t.is_numeric() and n not in text]
    return read(infer=False).with_columns(numbers)


def _scan_libsvm(paths: list[str]) -> pl.LazyFrame:
    line = pl.col("line").str.split("#").list.first().str.strip_chars()
    words = line.str.replace_all(r"\s+", " ").str.split(" ")
    return (
        pl.scan_lines(paths, name="line")
        .filter(line != "")
        .select(
            label=words.list.first(),
            features=words.list.slice(1).list.eval(pl.element().str.extract(r"^(.*):[^:]*$")),
            values=words.list.slice(1).list.eval(pl.element().str.extract(r"([^:]*)$").cast(pl.Float32, strict=False)),
        )
    )
