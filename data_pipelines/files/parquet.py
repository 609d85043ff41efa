"""Parquet files."""

import re
from collections.abc import Sequence
from typing import ClassVar, Literal

import polars as pl
from pydantic import Field

from data_pipelines.config.base import register
from data_pipelines.files.base import FileFormat, Scan, combine

_PARTITION = re.compile(r"/[^/=]+=[^/]*/")


@register
class ParquetFormat(FileFormat):
    """Parquet. Folders named ``column=value`` above the files become columns."""

    suffixes: ClassVar[tuple[str, ...]] = (".parquet", ".pq")
    columnar: ClassVar[bool] = True
    kind: Literal["parquet"] = "parquet"
    hive: bool = Field(default=False, description="Read ``column=value`` folders as columns even where no file shows.")

    def scan(self, location: str, paths: Sequence[str], needed: frozenset[str] | None = None) -> Scan:
        hive = self.hive or _PARTITION.search(paths[0]) is not None

        def read(files: list[str]) -> pl.LazyFrame:
            return pl.scan_parquet(files, hive_partitioning=hive, glob=_remote(files[0]))

        schemas = [read([path]).collect_schema() for path in paths] if len(paths) > 1 else []
        if all(schema == schemas[0] for schema in schemas[1:]):
            return Scan(read(list(paths)))
        return Scan(combine(location, [(path, read([path])) for path in paths], needed))


def _remote(path: str) -> bool:
    """Addresses of object stores may be folders or globs, which the engine expands."""
    return "://" in path
