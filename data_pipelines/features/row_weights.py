"""How much rows count: how weights and propensities are read, and which cannot be used."""

from collections.abc import Iterator, Sequence

import polars as pl

from data_pipelines.config.learning import RowWeight
from data_pipelines.features.raw_columns import RawColumns
from data_pipelines.hashing import stable_hash
from data_pipelines.names import ROW


def row_weight(weight: RowWeight, raw: RawColumns) -> pl.Expr:
    """Float64 weights of rows.

    Raises:
        UserError: The column is missing or holds no numbers.
    """
    value = raw.number("`weight`", weight.read_column)
    return value if weight.inverse is None else 1.0 / pl.max_horizontal(value, pl.lit(weight.clip))


def weight_checks(weight: RowWeight, raw: RawColumns) -> Iterator[tuple[str, pl.Expr]]:
    """Reasons to refuse a row because of its weight, and where each holds (null counts as false)."""
    column = weight.read_column
    value = raw.number("`weight`", column)
    if weight.inverse is None:
        yield f"{column}: no weight (missing, or not a finite number)", value.is_null()
        yield f"{column}: a weight below 0", value < 0
    else:
        yield f"{column}: no propensity (missing, or not a finite number)", value.is_null()
        yield f"{column}: a propensity that is not above 0 and at most 1", (value <= 0) | (value > 1)


def negative(labels: Sequence[pl.Expr]) -> pl.Expr:
    """Whether all labels of a row are 0 or missing."""
    return pl.all_horizontal(label.fill_null(0) == 0 for label in labels)


def thinned_out(is_negative: pl.Expr, share: float, seed: int) -> pl.Expr:
    """Whether a row is a negative outside the ``share`` that is kept: a function of its number only."""
    # the text differs from that of the random split, so that the two choices are independent
    chance = stable_hash(pl.format("thin {}", pl.col(ROW)), seed).cast(pl.Float64) / 2.0**64
    return is_negative & (chance >= share)
