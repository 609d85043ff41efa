"""What the training split decides: vocabularies, means and deviations, bucket edges."""

from collections.abc import Sequence
from functools import cache
from itertools import chain
from typing import Any

import polars as pl

from data_pipelines.errors import UserError
from data_pipelines.features.kinds.base import Fitted
from data_pipelines.features.kinds.categorical import CategoricalFeature
from data_pipelines.features.plan import Plan
from data_pipelines.features.raw_columns import RawColumns
from data_pipelines.features.values import canonical
from data_pipelines.features.vocabulary import Slots, Table, Vocabulary
from data_pipelines.names import ROW

_QUANTILE_ROWS = 1 << 20
_COUNTED_BYTES, _INDEXED_BYTES = 103, 67
"""What a distinct value of about 15 characters takes in memory to be counted, and to be indexed beside that."""


def check_room(plan: Plan, train: pl.LazyFrame, rows: int) -> None:
    """Refuse a table whose vocabulary would not fit into the memory of this machine, before it is counted.

    A log is looked at only if so many rows could have too many values. Values are counted roughly, in little memory.

    Args:
        train: The training rows.
        rows: Rows of the log.

    Raises:
        UserError: There is such a table; the sentence says its size and what to set.
    """
    import psutil  # here, because scoring imports this module

    free = psutil.virtual_memory().available
    if rows * len(plan.categorical) * (_COUNTED_BYTES + _INDEXED_BYTES) < free:
        return
    raw = RawColumns(train.collect_schema())
    for name, feature in plan.categorical.items():
        distinct = int(train.select(_written(feature, raw).approx_n_unique()).collect(engine="streaming").item())
        indexed = min(distinct, feature.config.max_size or distinct)
        needed = distinct * _COUNTED_BYTES + indexed * _INDEXED_BYTES
        if needed > free:
            raise UserError(
                f"feature {name!r} has about {distinct:,} distinct values, whose vocabulary needs about "
                f"{needed / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are free: give it the kind hash, which "
                f"needs no vocabulary (data.features.{name}: {{kind: hash, rows: {_rows_to_hash_into(distinct)}}}), or "
                "prepare on a machine with more memory."
            )


def _rows_to_hash_into(distinct: int) -> int:
    """A power of two that is about twice as many as the values, so that most of them have a row of their own."""
    return min(1 << distinct.bit_length() + 1, 1 << 30)


def count(plan: Plan, train: pl.LazyFrame) -> list[pl.DataFrame]:
    """``value`` and ``count`` of every feature with a vocabulary, in the order in which :func:`fit` takes them.

    Values may be in any spelling, as :meth:`CategoricalFeature.written` gives them.
    """
    counting = _counting(plan, train)
    return pl.collect_all([frame for table in counting.values() for frame in table], engine="streaming")


def fit(
    plan: Plan,
    train: pl.LazyFrame,
    earlier: Fitted | None = None,
    counted: Sequence[pl.DataFrame] | None = None,
) -> Fitted:
    """Fit everything in one pass over the training rows.

    Args:
        counted: What :func:`count` gives for ``train``, where that was worked out elsewhere.
        earlier: Keep its numbers, and its values with their ids; new values are appended to them.

    Raises:
        UserError: A column is missing, or of a type its feature cannot read, or has no finite mean and deviation.
    """
    counting = _counting(plan, train)
    summaries = {} if earlier is not None else _summaries(plan, train)
    frames = [frame for table in counting.values() for frame in table] if counted is None else []
    if summaries:
        named = {f"{name}:{key}": value for name, own in summaries.items() for key, value in own.items()}
        frames.append(train.select(**named))
    # A scan shared by several queries would be held in memory for the slowest of them.
    separate = pl.QueryOptFlags(comm_subplan_elim=False)
    collected = chain(counted or (), pl.collect_all(frames, engine="streaming", optimizations=separate))

    tables: dict[str, Table] = {}
    for table, queries in counting.items():
        rule = next(f.config for f in plan.categorical.values() if f.config.table == table)
        known = None if earlier is None else earlier.tables[table]
        assert not isinstance(known, Slots)
        tables[table] = Vocabulary.fit([_canonical(next(collected)) for _ in queries], rule, known)
    for table, size in plan.specs.slots.items():
        tables[table] = Slots(size)
    for feature in plan.features.values():
        feature.check_tables(tables)
    if earlier is not None:
        return Fitted(tables, earlier.numbers)
    row = next(collected).row(0, named=True) if summaries else {}
    numbers = {
        name: plan.features[name].fit({key: row[f"{name}:{key}"] for key in own}) for name, own in summaries.items()
    }
    return Fitted(tables, numbers)


def _canonical(counted: pl.DataFrame) -> pl.DataFrame:
    """Counts of the canonical text of ``value``: distinct values are few, so that they are brought into it last."""
    written = counted["value"]
    values = canonical(written)  # the same object where nothing changes
    if values is written:
        return counted
    return counted.with_columns(value=values).group_by("value").agg(pl.col("count").sum())


def _counting(plan: Plan, train: pl.LazyFrame) -> dict[str, list[pl.LazyFrame]]:
    """By table, the queries that count the values of each feature."""
    raw = RawColumns(train.collect_schema())
    counting: dict[str, list[pl.LazyFrame]] = {}
    for feature in plan.categorical.values():
        counted = train.select(value=_written(feature, raw)).group_by("value").agg(count=pl.len())
        counting.setdefault(feature.config.table, []).append(counted)
    return counting


def _written(feature: CategoricalFeature[Any], raw: RawColumns) -> pl.Expr:
    """The values of a feature as they are written, one per row, or per element of a bag."""
    value = feature.written(raw)
    return value.explode(empty_as_null=False) if feature.is_bag else value


def _summaries(plan: Plan, train: pl.LazyFrame) -> dict[str, dict[str, pl.Expr]]:
    """The aggregations of the features that have any."""
    raw = RawColumns(train.collect_schema())

    @cache
    def sample() -> pl.Expr:
        """Every n-th row of the log, so that quantiles, which need their values in memory, see about a million."""
        if ROW not in raw.schema:
            return pl.lit(True)
        rows: int = train.select(pl.len()).collect(engine="streaming").item()
        return (pl.col(ROW) % (rows // _QUANTILE_ROWS + 1)).eq(0)

    found = {name: feature.summaries(raw, sample) for name, feature in plan.features.items()}
    return {name: own for name, own in found.items() if own}
