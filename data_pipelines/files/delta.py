"""Delta tables."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import polars as pl
from pydantic import Field

from data_pipelines.config.base import register
from data_pipelines.files.base import FileFormat, Scan


@register
class DeltaFormat(FileFormat):
    """A Delta table: a folder with a ``_delta_log``."""

    columnar: ClassVar[bool] = True
    kind: Literal["delta"] = "delta"
    version: int | None = Field(default=None, description="Version of the table; the latest where absent.")

    def scan(self, location: str, paths: Sequence[str], needed: frozenset[str] | None = None) -> Scan:
        return Scan(pl.scan_delta(location, version=self.version))
