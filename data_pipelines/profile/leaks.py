"""How well one column alone predicts the label: near 1, it was probably recorded after it."""

import numpy as np
import numpy.typing as npt
import polars as pl
from sklearn.metrics import roc_auc_score

_BUCKETS = 100
_SMOOTHING = 5.0


def alone_auc(values: pl.Series, label: npt.NDArray[np.float64]) -> float | None:
    """AUC of the label's rate by value of ``values``, learnt on the even rows and tested on the odd ones.

    Numbers are cut at their percentiles first; null is a value like any other. Values that only the odd rows have get
    the overall rate, so that a column of distinct values does not look as if it knew the label.

    Args:
        label: (N,) 0, 1 or NaN (no label).

    Returns:
        ``None`` where one of the halves lacks one of the classes, or labels are not binary.
    """
    labelled = ~np.isnan(label)
    if not np.isin(label[labelled], (0.0, 1.0)).all():
        return None
    if values.dtype.is_numeric() and values.null_count() < len(values):
        values = _percentiles(values)
    frame = pl.DataFrame({"value": values, "label": label}).with_row_index("row").filter(pl.Series(labelled))
    learn, test = (frame.filter(pl.col("row") % 2 == half) for half in (0, 1))
    if min(part["label"].n_unique() for part in (learn, test)) < 2:
        return None
    overall = learn["label"].mean()
    rates = learn.group_by("value").agg(
        rate=(pl.col("label").sum() + _SMOOTHING * overall) / (pl.len() + _SMOOTHING)  # type: ignore[operator]
    )
    scored = test.join(rates, on="value", how="left", nulls_equal=True).with_columns(pl.col("rate").fill_null(overall))
    return float(roc_auc_score(scored["label"], scored["rate"]))


def _percentiles(numbers: pl.Series) -> pl.Series:
    """The percentile of each number; null stays null."""
    floats = numbers.cast(pl.Float64).fill_nan(None)
    edges = np.quantile(floats.drop_nulls().to_numpy(), np.linspace(0, 1, _BUCKETS + 1)[1:-1])
    bucket = np.searchsorted(np.unique(edges), floats.fill_null(0).to_numpy(), side="left")
    return pl.Series(bucket).set(floats.is_null(), None)
