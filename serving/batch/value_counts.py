"""Counts of null values by column, and by feature of values that training never saw."""

from collections.abc import Iterable, Iterator, Mapping

import polars as pl
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt

from data_pipelines.batch import NULL_ID, Batch, Schema

FEWEST = 100
"""How many values there must be for a share to be compared with a limit."""
_BEYOND_TRAINING = 0.1


class ValueCounts(BaseModel):
    """Counts of one or more parts of a job, or of one request.

    Attributes:
        rows: Rows that were scored.
        nulls: Rows without a value, by raw column that was read, columns of side tables included.
        joined: The columns that side tables added.
        values: Values that are not null, by feature with ids (for a bag or a history: its elements).
        unknown: How many of ``values`` are out of the vocabulary.
    """

    model_config = ConfigDict(extra="forbid")
    rows: NonNegativeInt = 0
    nulls: dict[str, NonNegativeInt] = Field(default={})
    joined: tuple[str, ...] = ()
    values: dict[str, NonNegativeInt] = Field(default={})
    unknown: dict[str, NonNegativeInt] = Field(default={})

    def observe_rows(self, rows: pl.DataFrame, columns: Iterable[str]) -> None:
        """Count the raw ``columns`` of rows."""
        self.rows += len(rows)
        for name in sorted({*columns} & {*rows.columns}):
            self.nulls[name] = self.nulls.get(name, 0) + rows[name].null_count()

    def observe(self, schema: Schema, batch: Batch) -> None:
        """Count the ids of encoded rows."""
        for feature in schema.sparse:
            ids = batch.bags(feature).values()
            given = int((ids != NULL_ID).sum())
            beyond = int((ids >= schema.table(feature.table).reserved).sum())
            self.values[feature.name] = self.values.get(feature.name, 0) + given
            self.unknown[feature.name] = self.unknown.get(feature.name, 0) + given - beyond

    def __add__(self, other: "ValueCounts") -> "ValueCounts":
        return ValueCounts(
            rows=self.rows + other.rows,
            nulls=_added(self.nulls, other.nulls),
            joined=tuple(sorted({*self.joined, *other.joined})),
            values=_added(self.values, other.values),
            unknown=_added(self.unknown, other.unknown),
        )

    @property
    def unknown_shares(self) -> dict[str, float]:
        """The share of unknown values by feature, for features that have values."""
        return {name: self.unknown[name] / n for name, n in self.values.items() if n}

    @property
    def null_shares(self) -> dict[str, float]:
        """The share of null rows by column."""
        return {name: n / self.rows for name, n in self.nulls.items() if self.rows}

    def above(self, limit: float, trained: Mapping[str, float]) -> Iterator[str]:
        """Shares above ``limit``, one clause each: of unknown values, and of nulls in columns of side tables.

        Features and columns with fewer than :data:`FEWEST` values are left out.

        Args:
            trained: Share of unknown values in training, by feature: a share near it is as expected.
        """
        for name, share in self.unknown_shares.items():
            expected = trained.get(name, 0.0) + _BEYOND_TRAINING
            if share > max(limit, expected) and self.values[name] >= FEWEST:
                yield f"{share:.1%} of the values of feature {name!r} were never seen in training"
        for name in self.joined:
            share = self.null_shares.get(name, 0.0)
            if share > limit and self.rows >= FEWEST:
                yield f"{share:.1%} of the joined column {name!r} is null"


def _added(one: Mapping[str, int], other: Mapping[str, int]) -> dict[str, int]:
    return {name: one.get(name, 0) + other.get(name, 0) for name in {**one, **other}}
