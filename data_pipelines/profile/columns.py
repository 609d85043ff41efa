"""What is known about one column of a log: counts and frequencies of all rows, shapes of an even sample."""

import numpy as np
import polars as pl

from data_pipelines.config.base import Config
from data_pipelines.features.times import epoch, to_text
from data_pipelines.features.values import number, text, texts
from data_pipelines.profile.roles import Role, Roles

_BINS = 40
_FREQUENCIES = 200
_FITTED_RANKS = 1000
_ATOM = 0.001
"""Share of the rows from which a value of a number is one that counts by itself, such as 0 of amounts."""


class Histogram(Config):
    """Counts between edges (one more edge than counts)."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]


class Column(Config):
    """What is known about one column.

    Attributes:
        role: What it seems to be, see :mod:`data_pipelines.profile.roles`.
        side: The side table that it comes from; ``None`` for a column of the log.
        nulls: Share of rows that are null (or NaN).
        distinct: Distinct values (of a list column: of its elements); estimated where there are many.
        unseen: Share of the values of the latest rows (see :mod:`data_pipelines.profile.unseen`) that no earlier row
            has; of numbers, share that is beyond the range of earlier rows.
        frequencies: (rank, count) of values in descending frequency order, at ranks spaced evenly on a logarithmic
            scale.
        zipf: Exponent of the power law that fits the first thousand of them.
        singletons: Share of the distinct values that one row has.
        atoms: Of numbers: share of rows whose value is that of at least 0.1% of the rows, such as 0.
        alone_auc: AUC of the label predicted from this column alone, out of fold.
        outcome: Why it looks like another outcome of the row, which new rows do not have, if it does.
        suspicions: Why it is no feature, or should not be one, one sentence each.
    """

    name: str
    type: str
    role: Role
    side: str | None = None
    nulls: float
    distinct: int | None = None
    unseen: float | None = None
    low: str = ""
    high: str = ""
    mean: float | None = None
    top: tuple[tuple[str, int], ...] = ()
    frequencies: tuple[tuple[int, int], ...] = ()
    singletons: float | None = None
    zipf: float | None = None
    atoms: float | None = None
    values: Histogram | None = None
    lengths: Histogram | None = None
    mean_length: float | None = None
    delimiter: str | None = None
    alone_auc: float | None = None
    outcome: str | None = None
    suspicions: tuple[str, ...] = ()


def figures(frame: pl.LazyFrame, sample: pl.DataFrame, name: str, roles: Roles, latest: pl.Expr) -> dict[str, object]:
    """Attributes of :class:`Column` that depend on this column alone.

    Args:
        latest: Whether a row of ``frame`` is among the latest.
    """
    dtype, role, column = sample.schema[name], roles.of[name], pl.col(name)
    missing = number(column, dtype).is_null() if role == "number" else column.is_null()
    nulls = float(frame.select(missing.mean()).collect(engine="streaming").item())
    found: dict[str, object] = {"name": name, "type": str(dtype), "role": role, "nulls": nulls}
    match role:
        case "id" | "user" | "item" | "label" | "constant" | "split":
            found |= _counted(frame.select(value=text(column, dtype), latest=latest))
        case "bag":
            delimiter = roles.delimiters.get(name)
            lists = texts(column, dtype, delimiter)
            found |= _counted(frame.select(value=lists, latest=latest).explode("value", empty_as_null=False))
            lengths = sample.select(lists.list.len()).to_series()
            found |= {"delimiter": delimiter, "lengths": _histogram(lengths), "mean_length": lengths.mean()}
        case "number":
            found |= _measured(frame, sample, name, latest)
        case "time":
            when = epoch(column, dtype)
            low, high = frame.select(low=when.min(), high=when.max()).collect(engine="streaming").row(0)
            found |= {"low": iso(low), "high": iso(high)}
        case "index" | "text" | "json":
            found["distinct"] = frame.select(column.n_unique()).collect(engine="streaming").item()
        case "vector":
            found["mean_length"] = sample.select(column.list.len().mean() if isinstance(dtype, pl.List) else 0).item()
    return found


def readable(column: str, sample: pl.DataFrame, role: Role) -> pl.Series:
    """The values of a column in the form that its role has: text, numbers, or microseconds since 1970."""
    dtype, value = sample.schema[column], pl.col(column)
    read = epoch(value, dtype) if role == "time" else number(value, dtype) if role == "number" else text(value, dtype)
    return sample.select(read).to_series()


def iso(microseconds: int | None) -> str:
    """A time as text, to the second; empty for none."""
    return "" if microseconds is None else to_text(microseconds)


def _counted(values: pl.LazyFrame) -> dict[str, object]:
    """How often each value occurs, and how much of the latest rows no earlier row has."""
    counts = (
        values.drop_nulls("value")
        .group_by("value")
        .agg(n=pl.len(), late=pl.col("latest").sum())
        .sort("n", "value", descending=[True, False])
        .collect(engine="streaming")
    )
    n = counts["n"].to_numpy()
    if not len(n):
        return {"distinct": 0}
    late = counts["late"].to_numpy().astype(np.int64)
    ranks = np.unique(np.geomspace(1, len(n), _FREQUENCIES).astype(np.int64))
    return {
        "distinct": len(n),
        "unseen": float(late[late == n].sum() / late.sum()) if late.sum() else None,
        "top": tuple((str(value), int(times)) for value, times in counts.select("value", "n").head(5).rows()),
        "frequencies": tuple((int(rank), int(n[rank - 1])) for rank in ranks),
        "singletons": float((n == 1).mean()),
        "zipf": _zipf(n),
    }


def _zipf(counts: np.ndarray) -> float | None:
    """Exponent s of count ~ rank ** -s over the first ranks, by least squares on logarithms."""
    head = counts[: min(_FITTED_RANKS, int((counts > 1).sum()))]
    if len(head) < 10:
        return None
    return float(-np.polyfit(np.log(np.arange(1, len(head) + 1)), np.log(head), 1)[0])


def _measured(frame: pl.LazyFrame, sample: pl.DataFrame, name: str, latest: pl.Expr) -> dict[str, object]:
    """Range, mean and shape of a column of numbers, and how much of the latest rows is beyond the earlier range."""
    value = number(pl.col(name), sample.schema[name])
    early = value.filter(~latest)
    row = frame.select(
        low=value.min(),
        high=value.max(),
        mean=value.mean(),
        distinct=value.approx_n_unique(),
        low_before=early.min(),
        high_before=early.max(),
    ).collect(engine="streaming")
    low, high, mean, distinct, low_before, high_before = row.row(0)
    beyond = frame.filter(latest).select(((value < low_before) | (value > high_before)).mean())
    values = sample.select(value).to_series()
    given = values.drop_nulls()
    counts = given.value_counts()["count"]
    return {
        "low": "" if low is None else f"{low:g}",
        "high": "" if high is None else f"{high:g}",
        "mean": mean,
        "distinct": distinct,
        "unseen": beyond.collect(engine="streaming").item(),
        "atoms": float(counts.filter(counts >= max(2, _ATOM * len(given))).sum() / len(given)) if len(given) else None,
        "values": _histogram(values),
    }


def _histogram(values: pl.Series) -> Histogram | None:
    """Counts in bins of equal width; values beyond the 0.5% and 99.5% quantiles are in the outermost bins."""
    array = values.drop_nulls().to_numpy().astype(np.float64)
    if not len(array):
        return None
    low, high = np.quantile(array, [0.005, 0.995])
    if values.dtype.is_integer() and high - low < _BINS:
        edges = np.arange(low, high + 2) - 0.5
    else:
        edges = np.linspace(low, high if high > low else low + 1, _BINS + 1)
    counts = np.histogram(np.clip(array, edges[0], edges[-1]), edges)[0]
    return Histogram(edges=tuple(edges.tolist()), counts=tuple(counts.tolist()))
