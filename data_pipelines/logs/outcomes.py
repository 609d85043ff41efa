"""Columns that hold another outcome of the row, such as ``is_like`` next to the label ``is_click``.

An outcome is known only after the row, so a model that reads it is useless where it is needed. Each column alone may
predict the label badly; what gives it away is implication: a like happens only where a click does.
"""

import warnings
from collections.abc import Collection

import numpy as np
import numpy.typing as npt
import polars as pl

from data_pipelines.errors import Notice
from data_pipelines.features.kinds.time import TimeConfig
from data_pipelines.features.plan import Plan
from data_pipelines.features.raw_columns import RawColumns
from data_pipelines.features.values import is_missing
from data_pipelines.hashing import spread
from data_pipelines.names import ROW, TIME

SAMPLE_ROWS = 50_000
_SURE = 0.995
"""Share of rows for which an implication must hold; a few labels may be damaged."""
_ENOUGH = 30
_CHANCE = 1e-9
"""Probability below which so pure a value is not an accident."""
_FEW_VALUES = 100
_COMMON_LABEL = 0.8
_RARE_FLAG = 0.1
_MOSTLY = 0.5

Labels = npt.NDArray[np.float64]


def outcome_reason(values: pl.Series, labels: Labels, label: str) -> str | None:
    """Why a column looks like an outcome of the row; ``None`` where nothing says so.

    A column that is missing where the label is, and hardly anywhere else, was recorded with it, whatever the label is.
    Otherwise three implications are tested, on rows with a binary label. Whatever differs from the most frequent value
    (or null) occurs only with a positive label; or it is a flag, and every positive label has it, or none. Or one of a
    few values occurs only with a positive label. That a value never occurs with a positive label is no evidence where
    it is not a rare flag: where positives are rare, honest columns have many such values.

    Args:
        values: (N,) values of the column, as text or numbers.
        labels: (N,) labels, NaN where there is none.
        label: Name of the label, for the sentence.

    Example:
        >>> clicks = np.array([0.0, 1.0] * 500)
        >>> outcome_reason(pl.Series([0, 0, 0, 1] * 250), clicks, "is_click")
        "is set only where 'is_click' is positive, as if recorded after it"
    """
    labelled = ~np.isnan(labels)
    if _is_missing_with_label(values, labelled):
        return f"is missing where {label!r} is, and nowhere else, as if recorded with it"
    frame = pl.DataFrame({"value": values, "label": labels}).filter(pl.Series(labelled))
    if frame.is_empty() or not frame["label"].is_in([0.0, 1.0]).all():
        return None
    rate = frame["label"].mean()
    assert isinstance(rate, float)
    if not 0 < rate <= _COMMON_LABEL:
        return None
    usual = frame["value"].value_counts(sort=True)["value"][0]
    set_N = frame.select(pl.col("value").ne_missing(pl.lit(usual, dtype=frame["value"].dtype))).to_series().to_numpy()
    positive_N = frame["label"].to_numpy() == 1
    return _of_flag(set_N, positive_N, rate, label, _is_flag(frame["value"])) or _of_values(frame, rate, label)


def _is_missing_with_label(values: pl.Series, labelled_N: npt.NDArray[np.bool_]) -> bool:
    """Whether a column is missing in the rows without a label, of which there are enough, and in hardly any other."""
    if len(labelled_N) - labelled_N.sum() < _ENOUGH or not labelled_N.any():
        return False
    missing = is_missing(values).fill_null(True) if values.dtype == pl.String else values.is_null()
    missing_N = missing.to_numpy()
    return bool(missing_N[~labelled_N].mean() >= _SURE and missing_N[labelled_N].mean() <= 1 - _SURE)


def later_than_row(values: pl.Series, times: pl.Series, time: str) -> str | None:
    """Why a column of times looks as if it was recorded after the row; ``None`` where most are not later than the row.

    Args:
        values: (N,) microseconds since 1970.
        times: (N,) times of the rows, likewise.
        time: Name of the column of ``times``, for the sentence.
    """
    later = (values > times).drop_nulls()
    share = later.mean()
    if len(later) < _ENOUGH or not isinstance(share, float) or share < _MOSTLY:
        return None
    return f"is later than {time!r} in most rows that have it: recorded after the row, unless it was planned before"


def warn_of_outcomes(plan: Plan, train: pl.LazyFrame, rows: int) -> dict[str, str]:
    """Warn (:class:`Notice`) of each input that reads a task's column, or what looks like another outcome.

    Args:
        train: Rows of the training split; an even sample of about ``SAMPLE_ROWS`` of them is looked at.
        rows: How many rows the log has.

    Returns:
        The reason for each of these inputs, by its name.
    """
    found: dict[str, str] = {}
    tasks = {task.column: name for name, task in plan.tasks.items()}
    reads = {
        name: sorted(plan.features[name].columns())
        for name in plan.config.inputs
        if name in plan.features and name not in plan.past
    }
    for name, columns in reads.items():
        for column in sorted(set(columns) & tasks.keys()):
            found[name] = _warn(name, column, f"is the label of the task {tasks[column]!r}")
    if plan.config.drawing is not None:
        return found
    reasons = _reasons(plan, train, {column for columns in reads.values() for column in columns} - tasks.keys(), rows)
    for column, reason in reasons.items():
        for name in (name for name, columns in reads.items() if column in columns):
            found[name] = _warn(name, column, reason)
    return found


def _reasons(plan: Plan, train: pl.LazyFrame, columns: Collection[str], rows: int) -> dict[str, str]:
    """Why columns look like outcomes, by their names."""
    raw = RawColumns(train.collect_schema())
    chosen = sorted(column for column in columns if column in raw.schema and _is_single(raw.schema[column]))
    times = sorted({column for column in columns if column in raw.schema and _holds_times(plan, column, raw.schema)})
    labels = [plan.label(task, raw).cast(pl.Float64).alias(f":label{i}") for i, task in enumerate(plan.tasks)]
    own = [plan.when(raw).alias(TIME)] if times else []
    formats = {column: format for column, (_, format) in plan.times.items()}
    read = [raw.epoch("a feature", column, formats.get(column)).alias(column) for column in times]
    plain = [pl.col(column) for column in chosen if column not in times]
    part = spread(pl.col(ROW), min(1.0, SAMPLE_ROWS / max(rows, 1)))
    sample = train.filter(part).select(*labels, *own, *plain, *read).collect(engine="streaming")
    found: dict[str, str] = {}
    for column in [*times, *(column for column in chosen if column not in times)]:
        reason = later_than_row(sample[column], sample[TIME], str(plan.time)) if column in times else None
        for i, task in enumerate(plan.tasks.values()):
            if reason is None and task.kind == "binary":
                labels_N = sample[f":label{i}"].fill_null(float("nan")).to_numpy()
                reason = outcome_reason(sample[column], labels_N, task.column)
        if reason is not None:
            found[column] = reason
    return found


def _warn(feature: str, column: str, reason: str) -> str:
    warnings.warn(
        f"feature {feature!r}: the column {column!r} {reason}: remove the feature if new rows do not have it yet.",
        Notice,
        stacklevel=3,
    )
    return reason


def _is_single(dtype: pl.DataType) -> bool:
    return not dtype.is_nested() and dtype not in (pl.Binary, pl.Object)


def _holds_times(plan: Plan, column: str, schema: pl.Schema) -> bool:
    """Whether a column holds times other than that of the row: by its type, or because a feature reads its age."""
    if plan.time is None or column == plan.time:
        return False
    aged = any(isinstance(f.config, TimeConfig) and f.config.column == column for f in plan.features.values())
    return aged or isinstance(schema[column], pl.Datetime | pl.Date)


def _of_flag(
    set_N: npt.NDArray[np.bool_], positive_N: npt.NDArray[np.bool_], rate: float, label: str, flag: bool
) -> str | None:
    times, both = int(set_N.sum()), int((set_N & positive_N).sum())
    if _pure(both, times, rate):
        return f"is set only where {label!r} is positive, as if recorded after it"
    if flag and set_N.mean() <= _RARE_FLAG and _pure(times - both, times, 1 - rate):
        return f"is set only where {label!r} is not positive, as if recorded after it"
    if flag and set_N.mean() <= 0.5 and _pure(both, int(positive_N.sum()), float(set_N.mean())):
        return f"is set wherever {label!r} is positive, as if both were outcomes"
    return None


def _of_values(frame: pl.DataFrame, rate: float, label: str) -> str | None:
    dtype = frame["value"].dtype
    if not (dtype == pl.String or dtype.is_integer()) or not 2 < frame["value"].n_unique() <= _FEW_VALUES:
        return None
    counts = frame.group_by("value").agg(n=pl.len(), both=pl.col("label").sum()).drop_nulls("value").sort("value")
    pure = [value for value, n, both in counts.iter_rows() if _pure(int(both), n, rate, values=len(counts))]
    if not pure:
        return None
    return f"has the value {pure[0]!r} only where {label!r} is positive, as if recorded after it"


def _pure(holds: int, times: int, chance: float, values: int = 1) -> bool:
    """Whether something that holds by ``chance`` holds for so many of so many rows that it must be a rule."""
    return times >= _ENOUGH and holds >= _SURE * times and values * chance**holds < _CHANCE


def _is_flag(values: pl.Series) -> bool:
    """Whether a column holds two values (0 and 1, yes and no), or one and null."""
    return values.n_unique() == 2
