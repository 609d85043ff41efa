"""How much of a split is null, or unknown because training did not see it."""

import polars as pl

from data_pipelines.batch import NULL_ID, Schema, SparseSpec


def unseen_shares(
    schema: Schema, frame: pl.LazyFrame, *, known: Schema | None = None
) -> dict[str, tuple[float, float]]:
    """By id and bag feature, the share of a split's ids that are null, and the share that have no id of their own.

    The latter are values that the training rows do not have, or that ``min_count`` or ``max_size`` left out. Bags have
    no nulls. Features of the past are left out: their ids are of earlier events.

    Args:
        frame: Encoded rows of a split.
        known: The schema of a data set that this one extends: values that were appended since are unknown, too.
    """
    chosen = [feature for feature in schema.sparse if feature.kind != "history"]
    if not chosen:
        return {}
    counts = frame.select(
        pl.struct(n=ids.len(), null=(ids == NULL_ID).sum(), unknown=_unknown(schema, feature, ids, known)).alias(
            feature.name
        )
        for feature in chosen
        for ids in (_ids(feature),)
    ).collect(engine="streaming")
    found = {}
    for feature in chosen:
        row = counts[feature.name][0]
        found[feature.name] = (row["null"] / max(row["n"], 1), row["unknown"] / max(row["n"], 1))
    return found


def _ids(feature: SparseSpec) -> pl.Expr:
    ids = pl.col(feature.name)
    return ids if feature.kind == "id" else ids.explode(empty_as_null=False)


def _unknown(schema: Schema, feature: SparseSpec, ids: pl.Expr, known: Schema | None) -> pl.Expr:
    unknown = (ids > NULL_ID) & (ids < schema.table(feature.table).reserved)
    return (unknown if known is None else unknown | (ids >= known.table(feature.table).rows)).sum()
