"""What the training split decides: vocabularies, means and deviations, bucket edges."""

import math
from collections.abc import Sequence
from itertools import chain

import polars as pl

from data_pipelines.errors import UserError
from data_pipelines.features.compiling import Fitted, Values, specs
from data_pipelines.features.config import BagFeature, CrossFeature, DataConfig, NumberFeature, VocabularyConfig
from data_pipelines.features.vocabulary import Slots, Table, Vocabulary
from data_pipelines.names import ROW

_QUANTILE_ROWS = 1 << 20


def count(config: DataConfig, train: pl.LazyFrame) -> list[pl.DataFrame]:
    """``value`` and ``count`` of every feature with a vocabulary, in the order in which :func:`fit` takes them."""
    counting = _counting(config, Values(config, train.collect_schema()), train)
    return pl.collect_all([frame for table in counting.values() for frame in table], engine="streaming")


def fit(
    config: DataConfig,
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
    values = Values(config, train.collect_schema())
    counting = _counting(config, values, train)
    numbers = {} if earlier is not None else _summaries(config, values, train)
    frames = [frame for table in counting.values() for frame in table] if counted is None else []
    if numbers:
        frames.append(train.select(**numbers))
    # A scan shared by several queries would be held in memory for the slowest of them.
    separate = pl.QueryOptFlags(comm_subplan_elim=False)
    collected = chain(counted or (), pl.collect_all(frames, engine="streaming", optimizations=separate))

    tables: dict[str, Table] = {}
    for table, queries in counting.items():
        rule = next(f for f in config.features.values() if isinstance(f, VocabularyConfig) and f.table == table)
        known = None if earlier is None else earlier.tables[table]
        assert not isinstance(known, Slots)
        tables[table] = Vocabulary.fit([next(collected) for _ in queries], rule, known)
    for table, size in specs(config).slots.items():
        tables[table] = Slots(size)
    if earlier is not None:
        return Fitted(tables, earlier.numbers)
    return Fitted(tables, _numbers(config, next(collected)) if numbers else {})


def _counting(config: DataConfig, values: Values, train: pl.LazyFrame) -> dict[str, list[pl.LazyFrame]]:
    counting: dict[str, list[pl.LazyFrame]] = {}
    for name, feature in config.features.items():
        if not isinstance(feature, VocabularyConfig):
            continue
        value = values.of(name)
        bag = isinstance(feature, BagFeature) or (
            isinstance(feature, CrossFeature)
            and any(isinstance(config.features[part], BagFeature) for part in feature.of)
        )
        if bag:
            value = value.explode(empty_as_null=False)
        counted = train.select(value=value).group_by("value").agg(count=pl.len())
        counting.setdefault(feature.table, []).append(counted)
    return counting


def _summaries(config: DataConfig, values: Values, train: pl.LazyFrame) -> dict[str, pl.Expr]:
    sampled = _sample(config, train)
    summaries: dict[str, pl.Expr] = {}
    for name, feature in config.features.items():
        if not isinstance(feature, NumberFeature):
            continue
        value = values.number(f"feature {name!r}", feature.column)
        value = value if feature.clip is None else value.clip(*feature.clip)
        if feature.transform == "standardize":
            summaries[f"{name}:mean"] = value.mean()
            summaries[f"{name}:deviation"] = value.std(ddof=0)
        elif feature.transform == "buckets":
            for i in range(1, feature.buckets):
                summaries[f"{name}:{i}"] = value.filter(sampled).quantile(i / feature.buckets)
    return summaries


def _sample(config: DataConfig, train: pl.LazyFrame) -> pl.Expr:
    """Every n-th row of the log, so that quantiles, which need their values in memory, see about a million."""
    bucketed = any(isinstance(f, NumberFeature) and f.transform == "buckets" for f in config.features.values())
    if not bucketed or ROW not in train.collect_schema():
        return pl.lit(True)
    rows: int = train.select(pl.len()).collect(engine="streaming").item()
    return (pl.col(ROW) % (rows // _QUANTILE_ROWS + 1)).eq(0)


def _numbers(config: DataConfig, summary: pl.DataFrame) -> dict[str, list[float]]:
    numbers: dict[str, list[float]] = {}
    for name, feature in config.features.items():
        if not isinstance(feature, NumberFeature):
            continue
        if feature.transform == "standardize":
            numbers[name] = [summary[f"{name}:mean"][0] or 0.0, summary[f"{name}:deviation"][0] or 1.0]
            if not all(map(math.isfinite, numbers[name])):
                raise UserError(
                    f"feature {name!r}: column {feature.column!r} holds numbers too large to standardise; set `clip`, "
                    "or `transform: log1p` or `buckets`."
                )
        elif feature.transform == "buckets":
            edges = {summary[f"{name}:{i}"][0] for i in range(1, feature.buckets)}
            numbers[name] = sorted(edge for edge in edges if edge is not None)
    return numbers
