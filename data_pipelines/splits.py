"""Which rows are for training, validation and test."""

from dataclasses import dataclass
from datetime import UTC, datetime

import polars as pl

from data_pipelines.errors import UserError
from data_pipelines.expressions import MICROSECONDS
from data_pipelines.features import DataConfig, Split
from data_pipelines.sources import ROW
from data_pipelines.validation import REASON, TIME
from data_pipelines.vocabulary import stable_hash

SPLITS = ("train", "valid", "test")
SPLIT = "__split"
"""Position of a row's split in ``SPLITS``; null for rows of a gap."""

_BINS = 1 << 16


@dataclass(frozen=True)
class Survey:
    """What is known of a log before it is split: rows that were not refused, and their times in microseconds."""

    rows: int
    first: int | None
    last: int | None


def assign(config: DataConfig, rows: pl.LazyFrame, survey: Survey) -> pl.LazyFrame:
    """``rows`` (checked, numbered) with the column ``__split``.

    Raises:
        UserError: The split has no row for training, or its column is missing.
    """
    split = config.split
    match split.by:
        case "time":
            code = _by_time(split, rows, survey)
        case "random":
            code = _by_hash(split)
        case "column":
            code = _by_column(split, rows)
        case "leave_last":
            raise UserError("split by leave_last is not there yet.")
    return rows.with_columns(code.cast(pl.Int8).alias(SPLIT))


def _by_hash(split: Split) -> pl.Expr:
    assert isinstance(split.valid, float | int)
    assert isinstance(split.test, float | int)
    share = stable_hash(pl.col(ROW).cast(pl.String), split.seed) / 2.0**64
    train = 1 - split.valid - split.test
    return pl.when(share < train).then(0).when(share < train + split.valid).then(1).otherwise(2)


def _by_column(split: Split, rows: pl.LazyFrame) -> pl.Expr:
    assert split.column is not None
    names = rows.collect_schema().names()
    if split.column not in names:
        raise UserError(f"the split's column {split.column!r} is not there; there are {', '.join(names)}.")
    name = pl.col(split.column).cast(pl.String)
    return pl.when(name == "train").then(0).when(name == "valid").then(1).when(name == "test").then(2)


def _by_time(split: Split, rows: pl.LazyFrame, survey: Survey) -> pl.Expr:
    if isinstance(split.valid, str):
        assert isinstance(split.test, str)
        valid, test = (_Cut(_microseconds(date), -1) for date in (split.valid, split.test))
    else:
        assert not isinstance(split.test, str)
        held_out = [round(survey.rows * split.test), round(survey.rows * (split.valid + split.test))]
        test, valid = (_cut(rows, survey, survey.rows - n) for n in held_out)
    gap = round(split.gap * MICROSECONDS)
    time = pl.col(TIME)
    return (
        pl.when(test.reached())
        .then(2)
        .when(time >= test.time - gap if gap else pl.lit(False))
        .then(None)
        .when(valid.reached())
        .then(1)
        .when(time >= valid.time - gap if gap else pl.lit(False))
        .then(None)
        .otherwise(0)
    )


@dataclass(frozen=True)
class _Cut:
    """A place in the order of (time, row)."""

    time: int
    row: int

    def reached(self) -> pl.Expr:
        time = pl.col(TIME)
        return (time > self.time) | ((time == self.time) & (pl.col(ROW) >= self.row))


def _cut(rows: pl.LazyFrame, survey: Survey, rank: int) -> _Cut:
    """The row of that rank (from 0) in the order of (time, row): exact, and in little memory.

    A histogram finds the narrow span of time the row lies in, and only the rows of that span are sorted.
    """
    assert survey.first is not None
    assert survey.last is not None
    if rank >= survey.rows:
        return _Cut(survey.last + 1, 0)
    accepted = rows.filter(pl.col(REASON).is_null()).select(TIME, ROW)
    width = (survey.last - survey.first) // _BINS + 1
    bin_of = (pl.col(TIME) - survey.first) // width
    histogram = (
        accepted.select(bin=bin_of).group_by("bin").agg(n=pl.len()).collect(engine="streaming").sort("bin")
    ).with_columns(before=pl.col("n").cum_sum() - pl.col("n"))
    bin_, before = histogram.filter(pl.col("before") <= rank).select("bin", "before").row(-1)
    span = accepted.filter(bin_of == bin_).collect(engine="streaming").sort(TIME, ROW)
    time, row = span.row(rank - before)
    return _Cut(time, row)


def _microseconds(date: str) -> int:
    try:
        when = datetime.fromisoformat(date)
    except ValueError:
        raise UserError(f"split: {date!r} is no date such as 2024-01-31 or 2024-01-31T12:00:00.") from None
    return round((when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp() * MICROSECONDS)
