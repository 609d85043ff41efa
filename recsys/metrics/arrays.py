"""Array types and sums that every metric uses.

Letters: N rows.
"""

import numpy as np
import numpy.typing as npt
import polars as pl

Floats = npt.NDArray[np.floating]
Groups = npt.NDArray[np.generic]
Indices = npt.NDArray[np.int64]
Positions = npt.NDArray[np.intp]


def group_codes(values: pl.Series) -> Indices:
    """(N,) a number per distinct value, in sorted order; -1 for null, which belongs to no group."""
    return (values.rank("dense").cast(pl.Int64) - 1).fill_null(-1).to_numpy()


def in_a_group(groups_N: Groups) -> npt.NDArray[np.bool_]:
    """(N,) which rows belong to a group: all but those of a negative code (see :func:`group_codes`)."""
    if np.issubdtype(groups_N.dtype, np.signedinteger):
        return np.greater_equal(groups_N.astype(np.int64), 0)
    return np.ones(len(groups_N), dtype=np.bool_)


def row_weights(labels_N: Floats, weights_N: Floats | None) -> Floats:
    """``weights_N`` in float64; ones where it is ``None``."""
    return np.ones(len(labels_N)) if weights_N is None else weights_N.astype(np.float64)


def weighted_mean(values: Floats, weights: Floats) -> float:
    """The weighted mean; NaN where no weight is left."""
    total = float(weights.sum())
    return float(weights @ values) / total if total > 0 else float("nan")


def run_starts(sorted_values: Groups) -> Positions:
    """Where runs of equal values begin."""
    if len(sorted_values) == 0:
        return np.empty(0, np.intp)
    return np.flatnonzero(np.concatenate(([True], sorted_values[1:] != sorted_values[:-1])))
