"""Arrow IPC files (Feather)."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import polars as pl

from data_pipelines.config.base import register
from data_pipelines.files.base import FileFormat, Scan, combine


@register
class IpcFormat(FileFormat):
    """Arrow IPC files, compressed or not."""

    suffixes: ClassVar[tuple[str, ...]] = (".arrow", ".ipc", ".feather")
    columnar: ClassVar[bool] = True
    kind: Literal["ipc"] = "ipc"

    def scan(self, location: str, paths: Sequence[str], needed: frozenset[str] | None = None) -> Scan:
        if "://" in paths[0]:
            return Scan(pl.scan_ipc(list(paths)))
        frames = [pl.scan_ipc(path, glob=False) for path in paths]
        schemas = [frame.collect_schema() for frame in frames] if len(frames) > 1 else []
        if all(schema == schemas[0] for schema in schemas[1:]):
            return Scan(pl.scan_ipc(list(paths), glob=False))
        return Scan(combine(location, list(zip(paths, frames, strict=True)), needed))
