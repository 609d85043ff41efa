"""Ten logs of the shapes that people bring, and twenty ways to write each that mean the same.

A disguise writes a log in other files, types, spellings or time formats, and says which keys of the ``data:`` block a
user would set to read it. Times are whole minutes, so that every time format keeps them.
"""

import gzip
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

ROWS = 1500
_START = datetime(2024, 1, 5, tzinfo=UTC)
_CITIES = ("Köln", "Zürich", "São Paulo", 'Paris, "Centre"', "Bern")


@dataclass(frozen=True)
class Log:
    """A log and the ``data:`` block that reads it, without ``log``."""

    rows: pl.DataFrame
    data: dict[str, Any]


class _Columns:
    """Random columns of one log."""

    def __init__(self, seed: int, rows: int) -> None:
        self.random, self.rows = np.random.default_rng(seed), rows

    def zipf(self, size: int) -> np.ndarray:
        return np.minimum(self.random.zipf(1.3, self.rows), size)

    def words(self, size: int, pattern: str) -> list[str]:
        return [pattern.format(n) for n in self.zipf(size)]

    def of(self, *values: object) -> list[object]:
        return [values[n % len(values)] for n in self.zipf(50)]

    def numbers(self, *, nulls: float = 0.0) -> pl.Series:
        values = pl.Series(np.round(self.random.lognormal(3, 1, self.rows), 2))
        return values.set(pl.Series(self.random.random(self.rows) < nulls), None)

    def bags(self, size: int, pattern: str) -> list[list[str]]:
        lengths = self.random.integers(0, 4, self.rows)
        return [[pattern.format(n) for n in self.random.integers(1, size, length)] for length in lengths]

    def label(self) -> np.ndarray:
        return (self.random.random(self.rows) < 0.3).astype(np.int8)

    def times(self) -> pl.Series:
        minutes = np.sort(self.random.integers(0, 40 * 24 * 60, self.rows))
        return pl.Series([_START + timedelta(minutes=int(n)) for n in minutes], dtype=pl.Datetime("us"))


def logs(rows: int = ROWS) -> dict[str, Log]:
    """The logs by name."""
    return {name: _log(n, rows, columns) for n, (name, columns) in enumerate(_SHAPES.items())}


_SHAPES: dict[str, Callable[[_Columns], dict[str, Any]]] = {
    "news": lambda c: {"id:reader": c.zipf(300), "id:article": c.words(90, "a{}"), "bag:topics": c.bags(9, "t{}")},
    "films": lambda c: {"id:user": c.zipf(300), "id:film": c.zipf(200), "number:runtime": c.numbers(nulls=0.05)},
    "ads": lambda c: {"id:site": c.words(60, "{:08x}"), "id:wifi": c.of(True, False), "id:banner": c.zipf(7)},
    "shop": lambda c: {
        "id:customer": pl.Series(c.zipf(200)).set(pl.Series(c.random.random(c.rows) < 0.1), None),
        "id:sku": c.words(300, "{:05}"),
        "number:price": c.numbers(),
        "id:city": c.of(*_CITIES),
    },
    "music": lambda c: {"id:listener": c.words(90, "u-{}"), "id:track": c.zipf(99) + 2**52, "number:skips": c.zipf(9)},
    "jobs": lambda c: {"id:city": c.of(*_CITIES), "id:posting": c.zipf(400), "number:salary": c.numbers(nulls=0.2)},
    "games": lambda c: {"id:player": c.zipf(150), "number:score": c.random.normal(0, 9, c.rows).round(3)},
    "travel": lambda c: {
        "id:zip": c.of("01067", "80331", "00501"),
        "id:stars": c.zipf(5),
        "id:pool": c.of(True, False),
    },
    "loans": lambda c: {"number:age": c.zipf(80), "id:occupation": c.of("nurse", "cook", "Pfleger/in", "N-7")},
    "videos": lambda c: {
        "id:viewer": c.zipf(250),
        "id:video": c.of("🎬", "v1", "v2", "é"),
        "bag:tags": c.bags(6, "#{}"),
    },
}


def _log(seed: int, rows: int, shape: Callable[[_Columns], dict[str, Any]]) -> Log:
    columns = _Columns(seed, rows)
    made = {tuple(key.split(":")): values for key, values in shape(columns).items()}
    frame = pl.DataFrame({name: values for (_, name), values in made.items()})
    frame = frame.with_columns(time=columns.times(), label=pl.Series(columns.label()))
    features: dict[str, Any] = {name: {"kind": kind} for kind, name in made}
    for kind, name in made:
        if kind == "bag":
            features[name]["delimiter"] = "|"
    features["when"] = {"kind": "time"}
    return Log(frame, {"time": "time", "tasks": {"label": {"column": "label"}}, "features": features})


Write = Callable[[pl.DataFrame, Path], tuple[Path, Mapping[str, Any]]]
"""Writes a log below a folder; gives where it is, and the keys of ``data:`` that read it."""


def _flat(rows: pl.DataFrame) -> pl.DataFrame:
    """Lists as text, times as seconds: what a text file can hold."""
    lists = pl.col(pl.List(pl.String)).list.join("|")
    return rows.with_columns(lists, pl.selectors.datetime().dt.epoch("s"))


def _csv(rows: pl.DataFrame, folder: Path, name: str = "log.csv", **options: Any) -> Path:
    _flat(rows).write_csv(folder / name, **options)
    return folder / name


def _shown(pattern: str, format: str | None) -> Write:
    """Times as text of a pattern, which ``format`` reads."""

    def write(rows: pl.DataFrame, folder: Path) -> tuple[Path, Mapping[str, Any]]:
        shown = rows.with_columns(pl.col("time").dt.to_string(pattern))
        return _csv(shown, folder), {} if format is None else {"time_format": format}

    return write


def _typed(*changes: pl.Expr) -> Write:
    def write(rows: pl.DataFrame, folder: Path) -> tuple[Path, Mapping[str, Any]]:
        rows.with_columns(*changes).write_parquet(folder / "log.parquet")
        return folder / "log.parquet", {}

    return write


def _gzipped(path: Path) -> Path:
    packed = path.with_name(f"{path.name}.gz")
    packed.write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    return packed


def _ndjson(rows: pl.DataFrame, folder: Path) -> Path:
    rows.with_columns(pl.selectors.datetime().dt.epoch("ms")).write_ndjson(folder / "log.ndjson")
    return folder / "log.ndjson"


def _arrow(rows: pl.DataFrame, folder: Path) -> tuple[Path, Mapping[str, Any]]:
    rows.write_ipc(folder / "log.arrow", compression="zstd")
    return folder / "log.arrow", {}


def _days(rows: pl.DataFrame, folder: Path) -> tuple[Path, Mapping[str, Any]]:
    """Files whose integers have other widths, and one that has a column that nobody reads."""
    (folder / "days").mkdir()
    third = len(rows) // 3
    small = pl.col("label").cast(pl.Int64)
    for n, part in enumerate((rows[:third], rows[third : 2 * third].with_columns(small), rows[2 * third :])):
        part = part.with_columns(extra=pl.lit("x")) if n == 2 else part
        part.write_parquet(folder / "days" / f"{n}.parquet")
    return folder / "days", {}


def _csv_parts(rows: pl.DataFrame, folder: Path) -> tuple[Path, Mapping[str, Any]]:
    """CSV files with their columns in other orders, and an empty one."""
    (folder / "parts").mkdir()
    half = len(rows) // 2
    _csv(rows[:half], folder / "parts", "0.csv")
    (folder / "parts" / "1.csv").touch()
    _csv(rows[half:].select(reversed(rows.columns)), folder / "parts", "2.csv")
    return folder / "parts", {}


def _shuffled(rows: pl.DataFrame, folder: Path) -> tuple[Path, Mapping[str, Any]]:
    extra = rows.with_columns(__index=pl.int_range(pl.len()), note=pl.lit("?"))
    return _typed()(extra.select(sorted(extra.columns)), folder)


def _pandas(rows: pl.DataFrame, folder: Path) -> tuple[Path, Mapping[str, Any]]:
    """As pandas writes a frame whose integers have met a null: ``17.0``, ``True``."""
    truth = pl.when(pl.selectors.boolean()).then(pl.lit("True")).otherwise(pl.lit("False")).name.keep()
    floats = pl.selectors.integer().exclude("label", "time").cast(pl.Float64)
    return _csv(_flat(rows).with_columns(floats, truth), folder), {}


def _blanks(rows: pl.DataFrame, folder: Path) -> tuple[Path, Mapping[str, Any]]:
    """Blanks around every text and number, and truth values in capitals."""
    flat = _flat(rows)
    truth = pl.selectors.boolean().cast(pl.String).str.to_uppercase()
    padded = flat.with_columns(truth).with_columns(pl.format(" {} ", pl.all().exclude("time")).name.keep())
    return _csv(padded, folder), {}


def _excel(rows: pl.DataFrame, folder: Path) -> tuple[Path, Mapping[str, Any]]:
    """As Excel saves a German sheet: UTF-16, semicolons, decimal commas."""
    path = _csv(rows, folder, separator=";", decimal_comma=True)
    path.write_bytes(path.read_text("utf-8").encode("utf-16"))
    return path, {"format": {"kind": "csv", "delimiter": ";", "decimal": ","}}


def _latin(rows: pl.DataFrame, folder: Path) -> tuple[Path, Mapping[str, Any]]:
    path = _csv(rows, folder)
    encoding = "cp1252" if "🎬" not in path.read_text("utf-8") else "utf-16-le"
    path.write_bytes(path.read_text("utf-8").encode(encoding))
    return path, {"format": {"kind": "csv", "encoding": encoding}}


_TEXT = pl.selectors.integer() | pl.selectors.float() | pl.selectors.boolean()

DISGUISES: Mapping[str, Write] = {
    "CSV": lambda rows, folder: (_csv(rows, folder), {}),
    "CSV, gzip": lambda rows, folder: (_gzipped(_csv(rows, folder)), {}),
    "TSV": lambda rows, folder: (_csv(rows, folder, "log.tsv", separator="\t"), {}),
    "NDJSON": lambda rows, folder: (_ndjson(rows, folder), {}),
    "NDJSON, gzip": lambda rows, folder: (_gzipped(_ndjson(rows, folder)), {}),
    "Arrow, zstd": _arrow,
    "days of Parquet": _days,
    "parts of CSV": _csv_parts,
    "columns in another order": _shuffled,
    "pandas' CSV": _pandas,
    "blanks and capitals": _blanks,
    "all text": _typed(_TEXT.cast(pl.String)),
    "decimals": _typed(pl.selectors.integer().cast(pl.Decimal(38, 0))),
    "categoricals": _typed(pl.selectors.string().cast(pl.Categorical)),
    "American times": _shown("%m/%d/%Y %I:%M %p", "%m/%d/%Y %I:%M %p"),
    "German times": _shown("%d.%m.%Y %H:%M", "%d.%m.%Y %H:%M"),
    "digits": _shown("%Y%m%d%H%M%S", "YYYYMMDDHHMMSS"),
    "time zone": _typed(pl.col("time").dt.replace_time_zone("UTC").dt.convert_time_zone("Europe/Berlin")),
    "UTF-16, decimal commas": _excel,
    "Windows' encoding": _latin,
}
"""The ways to write a log, by name."""
