"""JSON objects, one per line."""

import io
import json
from collections.abc import Sequence
from functools import lru_cache
from glob import escape
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

import polars as pl

from data_pipelines.config.base import register
from data_pipelines.errors import UserError
from data_pipelines.files.base import REFUSED, FileFormat, Scan, combine, no_lines
from data_pipelines.files.scratch import scratch_file
from data_pipelines.files.text import head_of, open_bytes

_LONGEST_SHOWN = 1000


@register
class NdjsonFormat(FileFormat):
    """JSON objects, one per line, compressed or not.

    Columns and their types are those of the whole file: keys may come late, numbers beside text become text.
    """

    suffixes: ClassVar[tuple[str, ...]] = (".ndjson", ".jsonl")
    kind: Literal["ndjson"] = "ndjson"

    def scan(self, location: str, paths: Sequence[str], needed: frozenset[str] | None = None) -> Scan:
        if "://" in paths[0]:
            return Scan(pl.scan_ndjson(list(paths), infer_schema_length=None))
        files = []
        for path in paths:
            stat = Path(path).stat()
            file = _opened(path, stat.st_size, stat.st_mtime_ns)
            files += [] if file is None else [file]
        if not files:
            raise UserError(f"{location} holds no rows: every file of it is empty.")
        frame = combine(location, [(file.path, file.rows) for file in files], needed)
        return Scan(frame, pl.concat([file.refused for file in files]))


class _File(NamedTuple):
    path: str
    rows: pl.LazyFrame
    refused: pl.DataFrame


@lru_cache(maxsize=4096)
def _opened(path: str, size: int, changed: int) -> _File | None:
    if not head_of(path).strip():
        return None
    try:
        rows = _lazy(path)
        return _File(path, rows, no_lines())
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException):
        copy = scratch_file(".ndjson")
        refused = _clean_copy(path, copy)
        return _File(path, _lazy(str(copy)), refused)


def _lazy(path: str) -> pl.LazyFrame:
    rows = pl.scan_ndjson(escape(path), infer_schema_length=None)
    schema = rows.clone().collect_schema()
    return pl.scan_ndjson(escape(path), schema=schema)


def _clean_copy(path: str, out: Path) -> pl.DataFrame:
    """Write the lines that are JSON objects to ``out``; returns those that are not."""
    found, kept = [], 0
    with open_bytes(path) as source, out.open("wb") as sink:
        for number, line in enumerate(io.BufferedReader(source), 1):
            try:
                reason = None if isinstance(json.loads(line), dict) else "not a JSON object"
            except UnicodeDecodeError:
                reason = "not UTF-8"
            except ValueError as error:
                reason = f"not JSON ({error})"
            if not line.strip():
                continue
            if reason is None:
                sink.write(line.rstrip(b"\r\n") + b"\n")
                kept += 1
            else:
                found.append((path, number, line.decode(errors="replace").strip()[:_LONGEST_SHOWN], reason))
    if not kept:
        raise UserError(f"{path} holds no line that is a JSON object: its first line is {found[0][2][:80]!r}.")
    return pl.DataFrame(found, schema=REFUSED, orient="row")
