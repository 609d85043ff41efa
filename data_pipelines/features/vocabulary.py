"""Id spaces: how the values of a table become row numbers, and how rows are pruned from it.

Ids are 0 for null, then the OOV buckets, then the vocabulary in descending frequency order (ties by value): ids are
stable, frequent rows are adjacent, and the n most frequent values are a prefix. Appending never renumbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl
import polars_hash  # noqa: F401  (registers the expression namespace `nchash`)
from pydantic import Field

from data_pipelines.batch import NULL_ID, TableSpec
from data_pipelines.config.base import Config
from data_pipelines.errors import UserError
from data_pipelines.features.values import canonical
from data_pipelines.hashing import stable_hash


class VocabularyConfig(Config):
    """Which values get an id of their own; the others share out-of-vocabulary ids by hash."""

    min_count: int = Field(
        default=1, ge=1, description="Values seen less often in the training split get no id of their own."
    )
    max_size: int | None = Field(
        default=None, ge=1, description="Only so many values get an id of their own, the most frequent ones."
    )
    oov_buckets: int = Field(default=1, ge=1, description="Ids that all other values share, by hash.")
    table: str = Field(
        description="The table of its ids; by default one of its own. Features that name the same table share it."
    )


@dataclass(frozen=True)
class Vocabulary:
    """A table whose rows are values: ``values[i]`` has the id ``1 + oov_buckets + i``.

    Attributes:
        values: Distinct canonical texts, in the order of their ids.
        counts: How often each was seen in the training split.
    """

    values: pl.Series
    counts: pl.Series
    oov_buckets: int = 1

    @staticmethod
    def fit(counted: Sequence[pl.DataFrame], rule: VocabularyConfig, known: "Vocabulary | None" = None) -> "Vocabulary":
        """The vocabulary of counted values: frames of ``value`` (text, null ignored) and ``count``.

        With a ``known`` vocabulary its values come first, in their order and whatever their count, and new ones after.
        """
        counts = pl.concat(counted).cast({"count": pl.Int64}).lazy().drop_nulls("value")
        counts = counts.group_by("value").sum() if len(counted) > 1 else counts
        first: list[pl.LazyFrame] = []
        if known is not None:
            values = pl.LazyFrame({"value": known.values, "before": known.counts})
            seen = values.join(counts, on="value", how="left", maintain_order="left")
            first = [seen.select("value", count=pl.col("before") + pl.col("count").fill_null(0))]
            counts = counts.join(values, on="value", how="anti")
        enough = counts.filter(pl.col("count") >= rule.min_count)
        frame = pl.concat([*first, enough.sort("count", "value", descending=[True, False])]).collect()
        if rule.max_size is not None:
            # Inside the query Polars would make it a top-k, which takes twice as long as the sort.
            frame = frame.head(max(rule.max_size, 0 if known is None else len(known.values)))
        return Vocabulary(frame["value"], frame["count"], rule.oov_buckets)

    @property
    def reserved(self) -> int:
        return 1 + self.oov_buckets

    @property
    def rows(self) -> int:
        return self.reserved + len(self.values)

    def __getstate__(self) -> dict[str, object]:
        """Without the index, which Polars cannot pickle: who receives a vocabulary builds its own."""
        return {name: value for name, value in self.__dict__.items() if name != "_categories"}

    def warm(self) -> None:
        """Build the index of values now, and not when the first row is encoded."""
        _ = self._categories

    @cached_property
    def _categories(self) -> pl.DataTypeExpr:
        """Their type, of an empty column that keeps the index: Polars builds a bare Enum's for every expression."""
        try:
            return pl.dtype_of(pl.lit(pl.Series(dtype=pl.Enum(self.values))))
        except (ValueError, pl.exceptions.PolarsError) as error:
            raise UserError(f"a vocabulary is damaged ({error}): make the data set or artifact again.") from None

    def ids(self, text: pl.Expr) -> pl.Expr:
        """Int32 ids of an expression of canonical text."""
        known = self._known(text)
        if self.oov_buckets == 1:
            unknown: pl.Expr = pl.lit(NULL_ID + 1, dtype=pl.Int32)
        else:
            unknown = (stable_hash(text) % self.oov_buckets).cast(pl.Int32) + 1
        return pl.when(text.is_null()).then(pl.lit(NULL_ID, dtype=pl.Int32)).otherwise(known.fill_null(unknown))

    def ids_of_text(self, text: pl.Expr) -> pl.Expr:
        """Int32 ids of an expression of text in any spelling: those of its canonical text.

        Text that is among the values is canonical, and so only the rest is brought into that form: a look at every text
        would take as long as its lookup.
        """
        looked_up = pl.struct(text.alias("text"), self._known(text).alias("id"))
        return looked_up.map_batches(self._spelled_otherwise, return_dtype=pl.Int32, is_elementwise=True)

    def _known(self, text: pl.Expr) -> pl.Expr:
        """Int32 ids of the texts that are values; null for the rest."""
        return text.cast(self._categories, strict=False).to_physical().cast(pl.Int32) + self.reserved

    def _spelled_otherwise(self, looked_up: pl.Series) -> pl.Series:
        ids = looked_up.struct.field("id")
        if not ids.null_count():
            return ids
        unknown = ids.is_null().arg_true()
        given = looked_up.struct.field("text").gather(unknown)
        distinct = given.unique()
        found = pl.DataFrame({"text": distinct, "canonical": canonical(distinct)})
        found = found.select("text", id=self.ids(pl.col("canonical")))
        if len(found) > 1:
            found = given.to_frame().join(found, on="text", how="left", nulls_equal=True, maintain_order="left")
        return ids.clone().scatter(unknown, found["id"])

    def slot_ids(self, slot: pl.Expr) -> pl.Expr:
        """Ids of whole numbers, where this table was pruned from :class:`Slots`."""
        return self.ids(slot.cast(pl.String))

    def prune(self, keep: np.ndarray) -> "Vocabulary":
        """The vocabulary of the values that are true in ``keep`` (bool, one per row of the table); others are OOV."""
        kept = pl.Series(keep[self.reserved :])
        return Vocabulary(self.values.filter(kept), self.counts.filter(kept), self.oov_buckets)

    def frame(self) -> pl.DataFrame:
        """``value``, ``id``, ``count``."""
        ids = pl.int_range(self.reserved, self.rows, dtype=pl.Int32, eager=True)
        return pl.DataFrame({"value": self.values, "id": ids, "count": self.counts})


@dataclass(frozen=True)
class Slots:
    """A table whose rows are the whole numbers below ``size`` (buckets, hours, hashes): no values to store."""

    size: int
    oov_buckets: int = 1

    @property
    def reserved(self) -> int:
        return 1 + self.oov_buckets

    @property
    def rows(self) -> int:
        return self.reserved + self.size

    def slot_ids(self, slot: pl.Expr) -> pl.Expr:
        """Int32 ids of an expression of slots; null has the id of null."""
        return (slot.cast(pl.Int32) + self.reserved).fill_null(NULL_ID)

    def prune(self, keep: np.ndarray) -> "Vocabulary | Slots":
        """The slots that ``keep`` spares, as a vocabulary of their numbers; the rest become OOV."""
        if keep[self.reserved :].all():
            return self
        kept = pl.Series("value", np.flatnonzero(keep[self.reserved :])).cast(pl.String)
        return Vocabulary(kept, pl.zeros(len(kept), dtype=pl.Int64, eager=True), self.oov_buckets)

    def frame(self) -> pl.DataFrame:
        """``value`` (the slot's number as text), ``id``, ``count`` (not kept: 0)."""
        slots = pl.int_range(0, self.size, dtype=pl.Int32, eager=True)
        return pl.DataFrame(
            {
                "value": slots.cast(pl.String),
                "id": slots + self.reserved,
                "count": pl.zeros(self.size, dtype=pl.Int64, eager=True),
            }
        )


Table = Vocabulary | Slots


def spec(name: str, table: Table) -> TableSpec:
    """What models need to know about ``table``."""
    return TableSpec(name=name, rows=table.rows, oov_buckets=table.oov_buckets)
