"""Where rows come from: file formats and side tables."""

from typing import Annotated, Literal

from pydantic import Field

from data_pipelines.config.base import Config


class ParquetFormat(Config):
    """Parquet files."""

    kind: Literal["parquet"] = "parquet"
    hive: bool = Field(
        default=False,
        description="Read columns from folder names such as `day=1`, even where the path does not look like it.",
    )


class CsvFormat(Config):
    """Delimited text, compressed or not."""

    kind: Literal["csv"] = "csv"
    delimiter: str = Field(default=",", description="The character between two values.")
    header: bool = Field(default=True, description="Whether the first line holds the names of the columns.")
    columns: list[str] | None = Field(default=None, description="Names of the columns where there is no header.")
    quote: str | None = Field(default='"', description="The character around values that hold a delimiter.")


class NdjsonFormat(Config):
    """One JSON object per line."""

    kind: Literal["ndjson"] = "ndjson"


class IpcFormat(Config):
    """Arrow IPC (Feather) files."""

    kind: Literal["ipc"] = "ipc"


class DeltaFormat(Config):
    """A Delta Lake table."""

    kind: Literal["delta"] = "delta"
    version: int | None = Field(default=None, description="The version to read; the latest where absent.")


class LibsvmFormat(Config):
    """Lines ``label index:value ...`` (libsvm) or ``label field:index:value ...`` (libffm).

    They become the columns ``label``, ``features`` (list of text: ``index``, or ``field:index``) and ``values``.
    """

    kind: Literal["libsvm"] = "libsvm"


Format = Annotated[
    ParquetFormat | CsvFormat | NdjsonFormat | IpcFormat | DeltaFormat | LibsvmFormat, Field(discriminator="kind")
]


class Join(Config):
    """A side table, joined by key; as of each row's time where the table has a ``time`` of its own."""

    table: str = Field(description="Path of a file or folder, a glob, or an object-store address.")
    on: str | list[str] = Field(description="The column, or columns, to join on.")
    time: str | None = Field(
        default=None,
        description="The table's column of time: each row of the log gets the latest row that is not later.",
    )
    format: Format | None = Field(default=None, description="How to read the table; told by the suffix where absent.")

    @property
    def keys(self) -> list[str]:
        return [self.on] if isinstance(self.on, str) else self.on
