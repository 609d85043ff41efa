"""How well one column, or a few together, predict the label: near 1, they were probably recorded after it."""

from collections.abc import Iterator, Sequence
from itertools import combinations

import numpy as np
import numpy.typing as npt
import polars as pl
from sklearn.metrics import roc_auc_score
from sklearn.tree import DecisionTreeClassifier

LEAK_AUC = 0.97
"""AUC from which a column that predicts the label alone is suspected to have been recorded after it."""

_BUCKETS = 100
_SMOOTHING = 5.0
_NO_VALUE = -1e9
_COMBINED_AUC = 0.99
_FEW_ROWS = 20_000
_MOST_NUMBERS = 16
_TREE_COLUMNS = 3


def alone_auc(values: pl.Series, label: npt.NDArray[np.float64]) -> float | None:
    """AUC of the label's rate by value of ``values``, learned on the even rows and tested on the odd ones.

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


def joint_auc(frame: pl.DataFrame, label: npt.NDArray[np.float64], names: Sequence[str]) -> float | None:
    """AUC of a shallow tree of these columns, learned on the even rows and tested on the odd ones.

    Args:
        frame: (N, ...) values of the columns; text is read as codes by frequency, null as a value of its own.
        label: (N,) 0, 1 or NaN.

    Returns:
        ``None`` without columns, or where one of the halves lacks one of the classes.
    """
    fitted = _fit_tree(frame, label, names)
    return None if fitted is None else fitted[1]


def telling_combinations(
    sample: pl.DataFrame, label: npt.NDArray[np.float64], numbers: Sequence[str], others: Sequence[str]
) -> Iterator[str]:
    """Sentences on a few columns that tell the label together, though each alone does not.

    Two kinds are looked for: the difference of two numbers (a counter before and after), and what a shallow tree of
    up to three columns finds.

    Args:
        sample: (N, ...) rows of the log.
        label: (N,) 0, 1 or NaN.
        numbers: Columns of numbers, none of which tells the label alone.
        others: Other columns of single values, none of which tells the label alone.
    """
    few, known = sample.head(_FEW_ROWS), label[:_FEW_ROWS]
    for first, second in combinations(numbers[:_MOST_NUMBERS], 2):
        difference = few.select(pl.col(first).cast(pl.Float64) - pl.col(second).cast(pl.Float64)).to_series()
        found = alone_auc(difference, known)
        if found is not None and max(found, 1 - found) >= _COMBINED_AUC:
            yield f"the difference of {first!r} and {second!r} predicts the label (AUC {found:.3f})"
    names = [*numbers, *others]
    fitted = _fit_tree(sample, label, names)
    if fitted is None:
        return
    tree, found = fitted
    if found < _COMBINED_AUC:
        return
    chosen = [names[i] for i in np.argsort(-tree.feature_importances_)[:_TREE_COLUMNS]]
    again = joint_auc(sample, label, chosen)
    if again is not None and again >= _COMBINED_AUC:
        yield f"{', '.join(map(repr, chosen))} together predict the label (AUC {again:.3f})"


def _fit_tree(
    frame: pl.DataFrame, label: npt.NDArray[np.float64], names: Sequence[str]
) -> tuple[DecisionTreeClassifier, float] | None:
    """A shallow tree of these columns, and its AUC on rows that it has not learned from."""
    labelled = ~np.isnan(label)
    if not names or not labelled.any():
        return None
    inputs = np.column_stack([_codes(frame[name]) for name in names])[labelled]
    known = label[labelled]
    if min(len(np.unique(known[half::2])) for half in (0, 1)) < 2:
        return None
    tree = DecisionTreeClassifier(max_depth=6, min_samples_leaf=20, random_state=0).fit(inputs[::2], known[::2])
    return tree, float(roc_auc_score(known[1::2], tree.predict_proba(inputs[1::2])[:, 1]))


def _codes(values: pl.Series) -> npt.NDArray[np.float64]:
    if values.dtype.is_numeric() or values.dtype == pl.Boolean:
        return values.cast(pl.Float64).fill_nan(None).fill_null(_NO_VALUE).to_numpy()
    counts = values.cast(pl.String).value_counts(sort=True)
    order = pl.DataFrame({"value": counts.to_series(0), "code": np.arange(len(counts), dtype=np.float64)})
    frame = pl.DataFrame({"value": values.cast(pl.String)})
    coded = frame.join(order, on="value", how="left", nulls_equal=True, maintain_order="left")
    return coded["code"].to_numpy()


def _percentiles(numbers: pl.Series) -> pl.Series:
    """The percentile of each number; null stays null."""
    floats = numbers.cast(pl.Float64).fill_nan(None)
    edges = np.quantile(floats.drop_nulls().to_numpy(), np.linspace(0, 1, _BUCKETS + 1)[1:-1])
    bucket = np.searchsorted(np.unique(edges), floats.fill_null(0).to_numpy(), side="left")
    return pl.Series(bucket).set(floats.is_null(), None)
