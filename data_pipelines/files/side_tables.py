"""Side tables: tables whose columns are added to the rows of a log."""

from pydantic import Field

from data_pipelines.config.base import Config
from data_pipelines.files.formats import Format
from data_pipelines.locations import Location


class Join(Config):
    """A side table, joined by key; as of each row's time where the table has a ``time`` of its own."""

    table: Location = Field(description="Path of a file or folder, a glob, or an object-store address.")
    on: str | list[str] = Field(description="The column, or columns, to join on.")
    time: str | None = Field(
        default=None,
        description="The table's column of time: each row of the log gets the latest row that is not later.",
    )
    time_format: str | None = Field(
        default=None, description="How the times of the table are written, as in `data.time_format`."
    )
    format: Format | None = Field(default=None, description="How to read the table; told by the suffix where absent.")

    @property
    def keys(self) -> list[str]:
        return [self.on] if isinstance(self.on, str) else self.on
