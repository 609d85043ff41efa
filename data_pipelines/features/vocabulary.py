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
from data_pipelines.disk.text_index import MappedTexts, TextIndex, index_of
from data_pipelines.features.values import canonical
from data_pipelines.hashing import stable_hash


class VocabularyConfig(Config):
    """Which values get an id of their own; the others share out-of-vocabulary ids by hash."""

    min_count: int = Field(
        default=1, ge=1, description="Values seen less often in the training split get no id of their own."
    )
    max_size: int | None = Field(
        default=None, ge=1, description="At most this many values, the most frequent ones, get an id of their own."
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
        frame = pl.concat([*pl.collect_all(first), _by_frequency(enough.collect())])
        if rule.max_size is not None:
            frame = frame.head(max(rule.max_size, 0 if known is None else len(known.values)))
        return Vocabulary(frame["value"], frame["count"], rule.oov_buckets)

    @property
    def reserved(self) -> int:
        return 1 + self.oov_buckets

    @property
    def rows(self) -> int:
        return self.reserved + len(self.values)

    def __getstate__(self) -> dict[str, object]:
        """Without the index, which cannot be pickled: the process that receives a vocabulary builds its own."""
        return {name: value for name, value in self.__dict__.items() if name != "_index"}

    def warm(self) -> None:
        """Build the index of values now, and not when the first row is encoded."""
        _ = self._index

    @cached_property
    def _index(self) -> TextIndex:
        return index_of(self.values)

    def ids(self, text: pl.Expr) -> pl.Expr:
        """Int32 ids of an expression of canonical text."""
        known = self._index.places(text) + self.reserved
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
        return self._index.places(text, self._ids_of_places)

    def _ids_of_places(self, texts: pl.Series, places: pl.Series) -> pl.Series:
        """Int32 ids of texts in any spelling, from the places that those have which are values."""
        ids = places + self.reserved
        if not ids.null_count():
            return ids
        unknown = np.flatnonzero(ids.is_null().to_numpy())
        given = texts[unknown]
        distinct = given.unique()
        found = pl.DataFrame({"text": distinct, "canonical": canonical(distinct)})
        found = found.select("text", id=self.ids(pl.col("canonical")))
        if len(found) > 1:
            found = given.to_frame("text").join(found, on="text", how="left", nulls_equal=True, maintain_order="left")
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


class MappedVocabulary(Vocabulary):
    """A vocabulary without counts whose values stay on disk until all of them are asked for."""

    _texts: MappedTexts

    def __init__(self, texts: MappedTexts, oov_buckets: int) -> None:
        self.__dict__.update(_texts=texts, oov_buckets=oov_buckets)

    def __reduce__(self) -> tuple[object, ...]:
        """Another process gets the values, as it may not have the file."""
        return Vocabulary, (self.values, self.counts, self.oov_buckets)

    @property
    def rows(self) -> int:
        return self.reserved + len(self._texts)

    @cached_property
    def values(self) -> pl.Series:
        return self._texts.texts

    @cached_property
    def counts(self) -> pl.Series:
        return pl.zeros(len(self._texts), dtype=pl.Int64, eager=True)

    @property
    def _index(self) -> TextIndex:
        return self._texts


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


def _by_frequency(counted: pl.DataFrame) -> pl.DataFrame:
    """``counted`` in descending order of ``count``, ties by ``value``.

    Comparing texts takes most of a sort. Their first 8 bytes behind what all have in common, read as a number, decide
    nearly all comparisons; rows that are equal in it are sorted again.
    """
    if counted.is_empty():
        return counted
    ends = [str(text).encode() for text in (counted["value"].min(), counted["value"].max())]
    shared = next((at for at, (low, high) in enumerate(zip(*ends, strict=False)) if low != high), min(map(len, ends)))
    first = (pl.col("value").cast(pl.Binary).bin.slice(shared, 8) + pl.lit(bytes(8))).bin.head(8)
    ranked = counted.with_columns(first=first.bin.reinterpret(dtype=pl.UInt64, endianness="big"))
    ranked = ranked.sort("first").sort("count", descending=True, maintain_order=True)  # faster than both at once
    same = pl.col("count").eq(pl.col("count").shift()) & pl.col("first").eq(pl.col("first").shift())
    tied = ranked.select((same | same.shift(-1)).fill_null(False)).to_series()
    ranked = ranked.select("value", "count")
    if tied.any():
        again = ranked.filter(tied).sort("count", "value", descending=[True, False])
        ranked = ranked.with_columns(value=ranked["value"].scatter(tied.arg_true(), again["value"]))
    return ranked


Table = Vocabulary | Slots


def spec(name: str, table: Table) -> TableSpec:
    """What models need to know about ``table``."""
    return TableSpec(name=name, rows=table.rows, oov_buckets=table.oov_buckets)
