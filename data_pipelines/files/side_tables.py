"""Side tables: tables whose columns are added to the rows of a log."""

from collections.abc import Iterable

from pydantic import Field

from data_pipelines.config.base import Config
from data_pipelines.files.formats import Format
from data_pipelines.locations import Location


class Join(Config):
    """A side table, joined by key; as of each row's time where the table has a ``time`` of its own."""

    table: Location = Field(description="Path of a file or folder, a glob, or an object-store address.")
    on: str | list[str] | dict[str, str] = Field(
        description="The column, or columns, to join on; `{item: sku}` where the log's `item` is the table's `sku`."
    )
    columns: list[str] | None = Field(
        default=None, min_length=1, description="Columns of the table to add; all that the config reads if absent."
    )
    prefix: str = Field(
        default="", description="Prefix of the names of the added columns: with `item_`, `year` becomes `item_year`."
    )
    time: str | None = Field(
        default=None,
        description="The table's column of time: each row of the log gets the latest row that is not later.",
    )
    time_format: str | None = Field(
        default=None, description="How the times of the table are written, as in `data.time_format`."
    )
    format: Format | None = Field(default=None, description="Format of the table; by default, that of its suffix.")

    @property
    def keys(self) -> list[str]:
        """The log's columns to join on."""
        return [self.on] if isinstance(self.on, str) else list(self.on)

    @property
    def table_keys(self) -> list[str]:
        """The table's columns to join on, in the order of :attr:`keys`."""
        return list(self.on.values()) if isinstance(self.on, dict) else self.keys

    def added(self, there: Iterable[str]) -> dict[str, str]:
        """The columns to add of a table that has the columns ``there``: its name of each, and the name in the rows."""
        own = {*self.table_keys, self.time}
        names = self.columns if self.columns is not None else [name for name in there if name not in own]
        return {name: self.prefix + name for name in names}

    def needed(self, read: Iterable[str]) -> frozenset[str]:
        """The table's columns that are read where rows need the columns ``read``."""
        inside = {name.removeprefix(self.prefix) for name in read if name.startswith(self.prefix)}
        return frozenset({*self.table_keys, *([self.time] if self.time else []), *inside})
