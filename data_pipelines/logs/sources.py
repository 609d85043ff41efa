"""Where rows come from: files, folders, globs and object stores of any common format, as one lazy frame."""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from glob import glob
from pathlib import Path

import polars as pl
import pyarrow as pa

from data_pipelines.errors import UserError, disk_fault
from data_pipelines.features.config import (
    CsvFormat,
    DataConfig,
    DeltaFormat,
    Format,
    HistoryFeature,
    IpcFormat,
    LibsvmFormat,
    NdjsonFormat,
    ParquetFormat,
    StatisticFeature,
)
from data_pipelines.features.values import condition
from data_pipelines.locations import expand
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

Find = Callable[[str], list[str]]
"""Gives the files of a path, a folder, a glob or an address, or refuses it with :class:`UserError`."""


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


def scan(config: DataConfig, path: str | None = None) -> pl.LazyFrame:
    """The log of ``config`` (or the one at ``path``) with its side tables joined, and the row number ``__row``.

    Raises:
        UserError: Nothing there, an unknown format, a file that cannot be read, or a column of a join that is missing.
    """
    frame = scan_files(path or expand(config.log), config.format, text=text_columns(config))
    if config.sampling is not None and POSITIVE not in frame.collect_schema():
        frame = frame.with_columns(pl.lit(1, dtype=pl.Int8).alias(POSITIVE))
    return join_sides(config, frame.with_row_index(ROW))


def join_sides(config: DataConfig, frame: pl.LazyFrame, find: Find | None = None) -> pl.LazyFrame:
    """``frame`` with the side tables of ``config`` joined, rows in their order.

    Args:
        find: Gives the files of a side table, or refuses it; :func:`find_files` if absent.

    Raises:
        UserError: A side table cannot be read, or a column to join on is missing.
    """
    for side in config.joins:
        location = expand(side.table)
        files = (find or find_files)(location)
        table = scan_files(location, side.format, text=text_columns(config), files=files)
        with reading(side.table):
            frame = join(frame, table, side, config.time)
    return frame


def text_columns(config: DataConfig) -> frozenset[str]:
    """Columns that are read as they stand (``007``) from text files: all but those of conditions, which need types."""
    return used_columns(config) - _columns_of_conditions(config)


def used_columns(config: DataConfig) -> frozenset[str]:
    """Every column that ``config`` reads, and those the product adds itself."""
    names = {ROW, POSITIVE, "__split", config.time, config.user, config.split.column, *config.keys}
    names.update(key for join in config.joins for key in (*join.keys, join.time))
    names.update(task.column for task in config.tasks.values())
    for feature in config.features.values():
        names.update((getattr(feature, "column", None), getattr(feature, "weights", None)))
        match feature:
            case StatisticFeature():
                names.update((feature.of, *feature.by))
            case HistoryFeature():
                names.add(feature.entity)
    return _columns_of_conditions(config) | frozenset(name for name in names if name is not None)


def _columns_of_conditions(config: DataConfig) -> frozenset[str]:
    conditions = [task.where for task in config.tasks.values()]
    conditions += [feature.where for feature in config.features.values() if isinstance(feature, HistoryFeature)]
    read = [condition("`where`", where) for where in conditions if where is not None]
    return frozenset(name for expression in read for name in expression.meta.root_names())


def scan_files(
    location: str,
    format: Format | None,
    *,
    text: frozenset[str] = frozenset(),
    files: Sequence[str] | None = None,
) -> pl.LazyFrame:
    """A lazy frame over one file, a folder, a glob or an object-store address.

    Args:
        format: How to read it; ``None`` to go by the suffix.
        text: Columns to read as text, where the format has no types of its own.
        files: The files at ``location``, where they have been found already.
    """
    paths = find_files(location) if files is None else list(files)
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
        if disk_fault(error) is not None:
            raise  # What was read is being written somewhere: that is at fault.
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
        found = of_folder(str(p) for p in path.rglob("*") if p.is_file())
    else:
        found = sorted(glob(location, recursive=True)) if not path.is_file() else [location]
    if not found:
        raise UserError(f"{location} is not there: give the path of a file, a folder or a glob that holds the log.")
    return found


def of_folder(files: Iterable[str]) -> list[str]:
    """Which of the ``files`` below a folder are data: of a known suffix if any is, and not hidden (``.``, ``_``)."""
    shown = sorted(file for file in files if not Path(file).name.startswith((".", "_")))
    return [file for file in shown if _suffix(file)] or shown


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
