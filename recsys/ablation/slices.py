"""Parts of the test rows that a study judges separately: rare and frequent users and items, periods."""

import numpy as np
import polars as pl
from numpy.typing import NDArray

from data_pipelines.dataset.dataset import Dataset
from data_pipelines.errors import UserError
from recsys.config.study import SliceConfig, StudyConfig

_RARE = 0.2
_FREQUENT = 0.8
_COUNT = "__count"


def slice_masks(study: StudyConfig, dataset: Dataset) -> dict[str, NDArray[np.bool_]]:
    """(N,) boolean masks of the test rows by name of the slice.

    Raises:
        UserError: A slice names a column that the data set does not carry, or its condition cannot be read.
    """
    if study.slices is None:
        return _default_masks(dataset)
    return {name: _mask(name, rule, dataset) for name, rule in study.slices.items()}


def _mask(name: str, rule: SliceConfig, dataset: Dataset) -> NDArray[np.bool_]:
    keys = dataset.keys("test")
    if rule.where is not None:
        try:
            kept = keys.select(pl.sql_expr(rule.where).fill_null(False).cast(pl.Boolean)).to_series()
        except pl.exceptions.PolarsError as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"ablation.slices.{name}.where cannot be read ({reason}): the columns are {', '.join(keys.columns)}."
            ) from None
        return kept.to_numpy()
    assert rule.column is not None
    if rule.column not in keys.columns:
        raise UserError(
            f"ablation.slices.{name}: there is no key column `{rule.column}`; there are {', '.join(keys.columns)} "
            "(see data.keys)."
        )
    count_N = _seen(dataset, rule.column)
    low = rule.seen_at_least if rule.seen_at_least is not None else 0
    high = rule.seen_at_most if rule.seen_at_most is not None else np.inf
    return (count_N >= low) & (count_N <= high)


def _seen(dataset: Dataset, column: str) -> NDArray[np.int64]:
    """How often each test row's value of ``column`` occurs in the training split."""
    counts = dataset.keys("train").group_by(column).agg(pl.len().alias(_COUNT))
    joined = dataset.keys("test").select(column).join(counts, on=column, how="left", maintain_order="left")
    return joined[_COUNT].fill_null(0).cast(pl.Int64).to_numpy()


def _default_masks(dataset: Dataset) -> dict[str, NDArray[np.bool_]]:
    """The rows whose user (or other key) is seen least and most in training, a fifth each; halves of the test time."""
    masks = {}
    time, keys = dataset.config.time, dataset.keys("test")
    for column in keys.columns:
        if column == time:
            continue
        count_N = _seen(dataset, column)
        rare, frequent = np.quantile(count_N, [_RARE, _FREQUENT], method="inverted_cdf")
        if rare < frequent:
            masks[f"{column} seen ≤ {rare:,} times"] = count_N <= rare
            masks[f"{column} seen ≥ {frequent:,} times"] = count_N >= frequent
    if time is not None and keys[time].n_unique() > 1:
        later_N = np.arange(len(keys)) >= len(keys) // 2
        order_N = keys[time].arg_sort().to_numpy()
        late_N = np.empty(len(keys), dtype=bool)
        late_N[order_N] = later_N
        masks |= {"earlier half": ~late_N, "later half": late_N}
    return masks
