"""A first look at a log: what its columns seem to be, how they are distributed, and what is wrong with them.

Counts, cardinalities and frequencies are of the whole log, streamed; shapes of distributions and the test for leaks are
of an even sample of at most ``SAMPLE_ROWS`` rows.
"""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import polars as pl
from pydantic import Field

from data_pipelines.config.base import Config
from data_pipelines.errors import UserError
from data_pipelines.features.time_formats import HOUR, oddities
from data_pipelines.features.times import epoch
from data_pipelines.features.values import MICROSECONDS, label_value, number, text, texts
from data_pipelines.files.base import reading
from data_pipelines.files.find import find_files
from data_pipelines.files.formats import Format, format_of, scan_files
from data_pipelines.logs.outcomes import outcome_reason
from data_pipelines.names import ROW
from data_pipelines.profile.guessing import Role, Roles, guess_format, guess_roles, named_like_outcome
from data_pipelines.profile.leaks import alone_auc, joint_auc
from data_pipelines.profile.types import with_numbers, with_times
from data_pipelines.redaction import redact

SAMPLE_ROWS = 100_000
LEAK_AUC = 0.97
"""AUC from which a column that predicts the label alone is suspected to have been recorded after it."""

_BINS = 40
_FREQUENCIES = 200
_FITTED_RANKS = 1000
_DAY = 86_400 * MICROSECONDS


class Histogram(Config):
    """Counts between edges (one more edge than counts)."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]


class Column(Config):
    """What is known about one column.

    Attributes:
        role: What it seems to be, see :mod:`data_pipelines.profile.guessing`.
        nulls: Share of rows that are null (or NaN).
        distinct: Distinct values (of a list column: of its elements); estimated where there are many.
        frequencies: (rank, count) of values by falling count, at ranks spaced evenly on a logarithmic scale.
        zipf: Exponent of the power law that fits the first thousand of them.
        alone_auc: AUC of the label predicted from this column alone, out of fold.
        outcome: Why it looks like another outcome of the row, which new rows do not have, if it does.
        suspicions: What is odd about it, one sentence each.
    """

    name: str
    type: str
    role: Role
    nulls: float
    distinct: int | None = None
    low: str = ""
    high: str = ""
    mean: float | None = None
    top: tuple[tuple[str, int], ...] = ()
    frequencies: tuple[tuple[int, int], ...] = ()
    singletons: float | None = None
    zipf: float | None = None
    values: Histogram | None = None
    lengths: Histogram | None = None
    mean_length: float | None = None
    delimiter: str | None = None
    alone_auc: float | None = None
    outcome: str | None = None
    suspicions: tuple[str, ...] = ()


class LogProfile(Config):
    """What is known about a log.

    Attributes:
        days: Rows and label rate (NaN without a label) of each day of the log: (ISO date, rows, rate).
        label_at_least: Where the label column holds ratings: from which on they count as positive.
        label_positive: Where it holds text: the values that count as positive.
        outcomes_auc: AUC of a shallow tree of the columns that look like outcomes; ``None`` where there are none.
        others_auc: AUC of a shallow tree of the other columns of single values.
        time_formats: By column of times that need the key ``time_format``: the formats that fit, the likeliest first.
        time_notes: What is implausible about the times of the log, one sentence each.
    """

    location: str
    format: Format | None
    rows: int
    columns: tuple[Column, ...]
    label: str | None
    label_at_least: float | None
    label_positive: tuple[str, ...]
    label_rate: float | None
    time: str | None
    first: str | None
    last: str | None
    user: str | None
    item: str | None
    days: tuple[tuple[str, int, float], ...]
    outcomes_auc: float | None = None
    others_auc: float | None = None
    time_formats: dict[str, tuple[str, ...]] = Field(default={})
    time_notes: tuple[str, ...] = ()

    def of(self, *roles: Role) -> tuple[Column, ...]:
        """The columns of some roles."""
        return tuple(column for column in self.columns if column.role in roles)


def inspect_log(
    location: str,
    *,
    format: Format | None = None,
    label: str | None = None,
    time: str | None = None,
    user: str | None = None,
    positive: Sequence[str] = (),
) -> LogProfile:
    """Look at the log at ``location``; ``label``, ``time`` and ``user`` are guessed where they are not given.

    Args:
        positive: Values of the label that count as positive, where it is text.

    Raises:
        UserError: The log cannot be read or is empty, a given column is not there, or the label is text that says
            neither yes nor no.
    """
    format = format or guess_format(location)
    with reading(location), TemporaryDirectory() as scratch:
        frame = _columnar(location, format, Path(scratch))
        rows = int(frame.select(pl.len()).collect(engine="streaming").item())
        if rows == 0:
            raise UserError(f"{location} holds no rows.")
        frame, time_formats = with_times(frame, rows)
        sample = _sample(frame, rows)
        for name in (label, time, user):
            if name is not None and name not in sample.columns:
                raise UserError(f"{location} has no column {name!r}; it has {', '.join(sample.columns)}.")
        roles = guess_roles(sample, rows, label=label, time=time, user=user)
        roles.positive = tuple(positive) or roles.positive
        target = _label(sample, location, roles)
        columns = tuple(_column(frame, sample, name, roles, rows, target) for name in sample.columns)
        days = _days(frame, roles)
        notes = _time_notes(frame, roles)
        outcomes_auc, others_auc = _joint_aucs(sample, columns, target)
    span = next((column for column in columns if column.name == roles.time), None)
    return LogProfile(
        location=redact(location),
        format=format,
        rows=rows,
        columns=columns,
        label=roles.label,
        label_at_least=roles.at_least,
        label_positive=roles.positive,
        label_rate=None if target is None else float(np.nanmean(target)),
        time=roles.time,
        first=span.low if span else None,
        last=span.high if span else None,
        user=roles.user,
        item=roles.item,
        days=days,
        outcomes_auc=outcomes_auc,
        others_auc=others_auc,
        time_formats=time_formats,
        time_notes=notes,
    )


def _columnar(location: str, format: Format | None, scratch: Path) -> pl.LazyFrame:
    """The log; text as a columnar copy in ``scratch``, because it is read once a column."""
    frame = scan_files(location, format).rows(location)
    format = format or format_of(location, find_files(location))
    if format.columnar:
        return frame
    frame.sink_parquet(scratch / "log.parquet")
    copy = pl.scan_parquet(scratch / "log.parquet")
    return with_numbers(copy) if format.textual else copy


def _sample(frame: pl.LazyFrame, rows: int) -> pl.DataFrame:
    step = -(-rows // SAMPLE_ROWS)
    return frame.with_row_index(ROW).filter(pl.col(ROW) % step == 0).drop(ROW).collect(engine="streaming")


def _label(sample: pl.DataFrame, location: str, roles: Roles) -> np.ndarray | None:
    """(N,) labels of the sample, NaN where there is none."""
    if roles.label is None:
        return None
    labels = sample.select(_label_value(sample.schema, roles)).to_series()
    if labels.null_count() == len(labels):
        values = ", ".join(sample[roles.label].cast(pl.String).value_counts(sort=True)[roles.label].head(3))
        raise UserError(
            f"{location}: the label {roles.label!r} holds text ({values} ...): name the values that count as positive, "
            "each with --positive."
        )
    return labels.fill_null(float("nan")).to_numpy()


def _label_value(schema: pl.Schema, roles: Roles) -> pl.Expr:
    """Float64 label of a row."""
    assert roles.label is not None
    return label_value(pl.col(roles.label), schema[roles.label], at_least=roles.at_least, positive=roles.positive)


def _column(
    frame: pl.LazyFrame, sample: pl.DataFrame, name: str, roles: Roles, rows: int, label: np.ndarray | None
) -> Column:
    dtype, role, column = sample.schema[name], roles.of[name], pl.col(name)
    missing = number(column, dtype).is_null() if role == "number" else column.is_null()
    nulls = float(frame.select(missing.mean()).collect(engine="streaming").item())
    found: dict[str, object] = {"name": name, "type": str(dtype), "role": role, "nulls": nulls}
    match role:
        case "id" | "user" | "item" | "label" | "constant":
            found |= _counted(frame.select(value=text(column, dtype)))
        case "bag":
            delimiter = roles.delimiters.get(name)
            lists = texts(column, dtype, delimiter)
            found |= _counted(frame.select(value=lists.explode(empty_as_null=False)))
            lengths = sample.select(lists.list.len()).to_series()
            found |= {"delimiter": delimiter, "lengths": _histogram(lengths), "mean_length": lengths.mean()}
        case "number":
            found |= _measured(frame, sample, name)
        case "time":
            when = epoch(column, dtype)
            low, high = frame.select(low=when.min(), high=when.max()).collect(engine="streaming").row(0)
            found |= {"low": _iso(low), "high": _iso(high)}
        case "index" | "text":
            found["distinct"] = frame.select(column.n_unique()).collect(engine="streaming").item()
        case "vector":
            found["mean_length"] = sample.select(column.list.len().mean() if isinstance(dtype, pl.List) else 0).item()
    if label is not None and role in ("id", "user", "item", "number", "constant", "time"):
        value = (
            epoch(column, dtype)
            if role == "time"
            else number(column, dtype)
            if role == "number"
            else text(column, dtype)
        )
        values = sample.select(value).to_series()
        found["alone_auc"] = alone_auc(values, label)
        found["outcome"] = _outcome(values, label, name, roles)
    return Column.model_validate({**found, "suspicions": tuple(_suspicions(found, rows))})


def _outcome(values: pl.Series, label: np.ndarray, name: str, roles: Roles) -> str | None:
    """Why a column looks like another outcome of the row, if it does."""
    if name in (roles.user, roles.item, roles.time):
        return None
    assert roles.label is not None
    reason = outcome_reason(values, label, roles.label)
    if reason is None and named_like_outcome(values):
        reason = f"is named like an outcome of the row, and {roles.label!r} is the label"
    return reason


def _counted(values: pl.LazyFrame) -> dict[str, object]:
    """How often each value occurs."""
    counts = (
        values.drop_nulls().group_by("value").agg(n=pl.len()).sort("n", "value", descending=[True, False])
    ).collect(engine="streaming")
    n = counts["n"].to_numpy()
    top = tuple((str(value), int(times)) for value, times in counts.head(5).rows())
    if not len(n):
        return {"distinct": 0}
    ranks = np.unique(np.geomspace(1, len(n), _FREQUENCIES).astype(np.int64))
    return {
        "distinct": len(n),
        "top": top,
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


def _measured(frame: pl.LazyFrame, sample: pl.DataFrame, name: str) -> dict[str, object]:
    """Range, mean and shape of a column of numbers."""
    value = number(pl.col(name), sample.schema[name])
    row = frame.select(low=value.min(), high=value.max(), mean=value.mean(), distinct=value.approx_n_unique()).collect(
        engine="streaming"
    )
    low, high, mean, distinct = row.row(0)
    return {
        "low": "" if low is None else f"{low:g}",
        "high": "" if high is None else f"{high:g}",
        "mean": mean,
        "distinct": distinct,
        "values": _histogram(sample.select(value).to_series()),
    }


def _histogram(values: pl.Series) -> Histogram | None:
    """Counts between equally wide bins; what lies beyond the 0.5% and 99.5% quantiles is in the outermost ones."""
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


def _days(frame: pl.LazyFrame, roles: Roles) -> tuple[tuple[str, int, float], ...]:
    """Rows and label rate day by day."""
    if roles.time is None:
        return ()
    schema = frame.collect_schema()
    day = epoch(pl.col(roles.time), schema[roles.time]) // _DAY
    rate: pl.Expr = pl.lit(float("nan"))
    if roles.label is not None:
        rate = _label_value(schema, roles)
    table = frame.group_by(day=day).agg(rows=pl.len(), rate=rate.mean()).drop_nulls("day").collect(engine="streaming")
    return tuple(
        (_iso(day * _DAY)[:10], rows, float("nan") if rate is None else rate)
        for day, rows, rate in table.sort("day").rows()
    )


def _time_notes(frame: pl.LazyFrame, roles: Roles) -> tuple[str, ...]:
    """What is implausible about the times of the log."""
    if roles.time is None:
        return ()
    time = epoch(pl.col(roles.time), frame.collect_schema()[roles.time])
    first, last = frame.select(first=time.min(), last=time.max()).collect(engine="streaming").row(0)
    hours = frame.select(hour=time // HOUR).unique().drop_nulls().collect(engine="streaming")["hour"].sort()
    return () if first is None else tuple(oddities(first, last, hours.to_numpy()))


def _joint_aucs(
    sample: pl.DataFrame, columns: Sequence[Column], label: np.ndarray | None
) -> tuple[float | None, float | None]:
    """AUC of the columns that look like outcomes, and of the others, each taken together."""
    outcomes = [column.name for column in columns if column.outcome]
    if label is None or not outcomes or not np.isin(label[~np.isnan(label)], (0.0, 1.0)).all():
        return None, None
    others = [c.name for c in columns if c.role in ("id", "user", "item", "number") and not c.suspicions]
    return joint_auc(sample, label, outcomes), joint_auc(sample, label, others)


def _iso(microseconds: int | None) -> str:
    if microseconds is None:
        return ""
    return str(np.datetime64(microseconds, "us").astype("datetime64[s]")).replace("T", " ")


def _suspicions(column: dict[str, object], rows: int) -> Sequence[str]:
    """What is odd about a column."""
    found = []
    role, nulls, distinct = column["role"], column["nulls"], column.get("distinct")
    assert isinstance(nulls, float)
    if role == "index":
        found.append("counts the rows: an index, which says nothing of a new row")
    elif role == "constant":
        found.append("has one value only: no model can learn from it")
    elif role in ("id", "item", "user", "text") and distinct == rows > 1:
        found.append("is different in every row: nothing can be learnt about a value")
    if nulls > 0.95:
        found.append(f"is null in {nulls:.1%} of the rows")
    if column.get("outcome"):
        found.append(str(column["outcome"]))
    auc = column.get("alone_auc")
    if isinstance(auc, float) and auc >= LEAK_AUC and role != "label":
        found.append(f"predicts the label alone (AUC {auc:.3f}), as if recorded after it")
    return found
