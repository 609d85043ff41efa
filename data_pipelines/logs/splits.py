"""Which rows are for training, validation and test."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from data_pipelines.config.learning import Split
from data_pipelines.disk.spill import KEY, partitions
from data_pipelines.errors import Notice, UserError
from data_pipelines.features.plan import Plan
from data_pipelines.features.raw_columns import RawColumns
from data_pipelines.features.times import epoch, to_text
from data_pipelines.features.values import MICROSECONDS
from data_pipelines.hashing import stable_hash
from data_pipelines.logs.keys import keyed
from data_pipelines.logs.row_counts import Survey
from data_pipelines.names import LIST, ROW, SPLIT, TIME
from data_pipelines.timelines import MINUTE, Timeline

_FEW_TIED, _MOSTLY_APART = 30, 0.001
"""Rows of one time, and their share of the log, from which it matters that they are in two splits."""
SPLITS = ("train", "valid", "test")
NAMED_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("valid", "validation", "val", "dev", "eval"), "valid"),
    **dict.fromkeys(("test", "testing", "holdout"), "test"),
}
"""What a column that holds the split may call it, in lower case."""


def assign(plan: Plan, rows: pl.LazyFrame, survey: Survey, scratch: Path) -> pl.LazyFrame:
    """Accepted ``rows`` with the column ``:split``.

    Raises:
        UserError: A date of the split cannot be read, or its column is missing.
    """
    split = plan.config.split
    match split.by:
        case "time":
            code = _by_time(plan, rows, survey)
        case "random":
            code = _by_hash(split, _list_text(plan, rows))
        case "column":
            code = _by_column(plan, rows)
        case "leave_last":
            code = _by_user(plan, rows, survey, scratch)
    rows = rows.with_columns(code.cast(pl.Int8).alias(SPLIT))
    return rows if plan.config.group is None or split.by == "random" else _whole_lists(plan, rows)


def _list_text(plan: Plan, rows: pl.LazyFrame) -> pl.Expr:
    """The value that decides the split of a row: its list, or its own number."""
    number = pl.col(ROW).cast(pl.String)
    if plan.config.group is None:
        return number
    key = plan.list_key(RawColumns(rows.collect_schema()))
    return pl.when(key == 0).then(number).otherwise(pl.format("list {}", key))


def _whole_lists(plan: Plan, rows: pl.LazyFrame) -> pl.LazyFrame:
    """``rows`` with every list in one split: the earliest that one of its rows is in.

    Memory holds one entry per list.
    """
    key = plan.list_key(RawColumns(rows.collect_schema()))
    keyed_rows = rows.select(SPLIT, key.alias(LIST)).filter(pl.col(LIST) != 0)
    divided = (
        keyed_rows.group_by(LIST)
        .agg(first=pl.col(SPLIT).min(), last=pl.col(SPLIT).max(), dropped=pl.col(SPLIT).is_null().any())
        .filter((pl.col("first") != pl.col("last")) | (pl.col("dropped") & pl.col("first").is_not_null()))
        .collect(engine="streaming")
    )
    if divided.is_empty():
        return rows
    if plan.config.split.by == "column":
        raise UserError(
            f"the split's column {plan.config.split.column!r} divides {len(divided):,} lists of `group` between "
            "splits: give all rows of a list the same split."
        )
    whole = key.replace_strict(divided[LIST], divided["first"], default=pl.col(SPLIT), return_dtype=pl.Int8)
    return rows.with_columns(whole.alias(SPLIT))


def _by_user(plan: Plan, rows: pl.LazyFrame, survey: Survey, scratch: Path) -> pl.Expr:
    user, split = plan.config.user, plan.config.split
    assert user is not None
    test, valid = int(split.test), int(split.valid)
    code = np.zeros(survey.last_row + 1, np.int8)
    frame = keyed(plan, [user], rows, [pl.col(TIME).alias("time"), pl.col(ROW).alias("row")])
    for part in partitions(frame, survey.rows, scratch):
        line = Timeline.of(part.rows[KEY].to_numpy(), part.rows["time"].to_numpy())
        ends = line.last_places()
        from_end = np.repeat(ends, np.diff(ends, prepend=-1)) - np.arange(len(part.rows))
        row = part.rows["row"].to_numpy()[line.order]
        code[row] = np.select([from_end < test, from_end < test + valid], [2, 1], 0)
    return pl.lit(pl.Series(code)).gather(pl.col(ROW))


def _by_hash(split: Split, text: pl.Expr) -> pl.Expr:
    assert isinstance(split.valid, float | int)
    assert isinstance(split.test, float | int)
    share = _hashed(split, text)
    train = 1 - split.valid - split.test
    return pl.when(share < train).then(0).when(share < train + split.valid).then(1).otherwise(2)


def _by_column(plan: Plan, rows: pl.LazyFrame) -> pl.Expr:
    """The split that a column names; where it names no valid rows, a share of the training rows by hash."""
    split = plan.config.split
    assert split.column is not None
    names = rows.collect_schema().names()
    if split.column not in names:
        raise UserError(f"the split's column {split.column!r} is not there; there are {', '.join(names)}.")
    text = RawColumns(rows.collect_schema()).text("`split`", split.column)
    counts = rows.group_by(value=text).agg(n=pl.len()).collect(engine="streaming").drop_nulls()
    found = {value: NAMED_SPLITS.get(value.lower()) for value in counts.sort("n", descending=True)["value"].to_list()}
    if "train" not in found.values():
        raise UserError(
            f"the split's column {split.column!r} has no row called train: its values are {', '.join(list(found)[:5])}."
        )
    others = [value for value, name in found.items() if name is None]
    if others:
        warnings.warn(
            f"the split's column {split.column!r} holds {', '.join(map(repr, others[:5]))}, which are none of "
            f"{', '.join(NAMED_SPLITS)}: these rows are left out.",
            Notice,
            stacklevel=2,
        )
    codes = {value: SPLITS.index(name) for value, name in found.items() if name is not None}
    code = text.replace_strict(list(codes), list(codes.values()), default=None, return_dtype=pl.Int8)
    if "valid" in found.values() or not isinstance(split.valid, float) or split.valid == 0:
        return code
    return pl.when((code == 0) & (_hashed(split, _list_text(plan, rows)) < split.valid)).then(1).otherwise(code)


def _hashed(split: Split, text: pl.Expr) -> pl.Expr:
    """A number from 0 to 1 that a text determines."""
    return stable_hash(text, split.seed) / 2.0**64


def _by_time(plan: Plan, rows: pl.LazyFrame, survey: Survey) -> pl.Expr:
    split = plan.config.split
    if isinstance(split.valid, str):
        assert isinstance(split.test, str)
        valid, test = (_Cut(_microseconds(date, plan.config.time_format), -1) for date in (split.valid, split.test))
        if valid.time > test.time:
            raise UserError(
                f"split: valid begins at {split.valid}, after test at {split.test}: valid rows come before test rows, "
                "so give `valid` the earlier date."
            )
    else:
        assert not isinstance(split.test, str)
        held_out = [round(survey.rows * share) for share in (split.valid + split.test, split.test)]
        valid, test = _cuts(rows, survey, [survey.rows - n for n in held_out])
        if plan.config.group is None:
            _warn_of_ties(plan, survey, valid, test)
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
    """A place in the order of (time, row).

    Attributes:
        in_place: The rows before it in that order are those before it in the log.
        tied: Rows of exactly this time.
        tied_before: Those of them that are before it in that order.
    """

    time: int
    row: int
    in_place: bool = False
    tied: int = 0
    tied_before: int = 0

    def reached(self) -> pl.Expr:
        if self.in_place:  # rows can be divided without reading their time
            return pl.col(ROW) >= self.row
        time = pl.col(TIME)
        return (time > self.time) | ((time == self.time) & (pl.col(ROW) >= self.row))


def _cuts(rows: pl.LazyFrame, survey: Survey, ranks: Sequence[int]) -> list[_Cut]:
    """The rows of those ranks (from 0) in the order of (time, row): exact, and in little memory.

    The survey says in which minutes they lie, and only the rows of those minutes are sorted.
    """
    assert survey.last is not None
    end = pl.col("n").cum_sum()
    # So many rows up to the end of a minute, none of a higher number: those of later minutes all come after them.
    in_place = pl.col("last_row").cum_max() + 1 == end
    minutes = survey.minutes.select(
        "n", "minute", before=end - pl.col("n"), in_place=in_place & in_place.shift(fill_value=True)
    )
    cuts = []
    for rank in ranks:
        place = minutes.filter(pl.col("before") <= rank).row(-1, named=True)
        if rank >= survey.rows:
            cuts.append(_Cut(survey.last + 1, 0))
            continue
        minute = pl.col(TIME) // MINUTE == place["minute"]
        inside = rows.slice(place["before"], place["n"]) if place["in_place"] else rows.filter(minute)
        around = inside.select(TIME, ROW).collect(engine="streaming").sort(TIME, ROW)
        near = around[: rank - place["before"] + 1]
        time, row = near.row(-1)
        tied, tied_before = (int((part[TIME] == time).sum()) for part in (around, near[:-1]))
        cuts.append(_Cut(time, row, place["in_place"] and near[ROW].max() == row == rank, tied, tied_before))
    return cuts


def _warn_of_ties(plan: Plan, survey: Survey, valid: _Cut, test: _Cut) -> None:
    """Say (:class:`Notice`) if many rows of one time are on both sides of a border, told apart by their order only."""
    if valid.tied == survey.rows > 1:
        warnings.warn(
            f"`split`: every row has the time {to_text(valid.time)} ({plan.time}), so only the order of the rows "
            "divides them: set data.time to a column that tells rows apart, or data.split to {by: random}.",
            Notice,
            stacklevel=2,
        )
        return
    for name, cut in {"valid": valid, "test": test}.items():
        if cut.tied_before and cut.tied >= max(_FEW_TIED, _MOSTLY_APART * survey.rows):
            warnings.warn(
                f"`split`: {name} begins among {cut.tied:,} rows of the time {to_text(cut.time)} ({plan.time}), of "
                f"which {cut.tied_before:,} are in the split before it: to keep rows with the same time together, "
                f"set dates, such as `{name}: {to_text(cut.time)}`.",
                Notice,
                stacklevel=2,
            )


def warn_of_empty(plan: Plan, splits: Mapping[str, int], survey: Survey) -> None:
    """Say (:class:`Notice`) that valid or test has no rows where the config asks for some.

    Args:
        splits: The rows of each split.
    """
    split = plan.config.split
    asked = {"valid": split.valid, "test": 1 if split.by == "column" else split.test}
    empty = [name for name in ("valid", "test") if splits[name] == 0 and asked[name] != 0]
    if not empty:
        return
    what = {
        "valid": "without valid rows, training cannot choose its best weights or stop early",
        "test": "without test rows, there is nothing to evaluate on",
    }
    if split.by == "column":
        remedy = f"the column {split.column!r} names none"
    elif isinstance(split.valid, str):
        assert survey.last is not None
        first = to_text(survey.minutes.select(pl.col("minute").min()).item() * MINUTE)
        remedy = f"the times of the log go from {first} to {to_text(survey.last)}: set data.split to dates between them"
    else:
        remedy = f"of {survey.rows:,} rows: set data.split to larger shares, such as valid: 0.1 and test: 0.1"
    warnings.warn(
        f"`split`: no row is in {' and '.join(empty)} ({'; '.join(what[name] for name in empty)}); {remedy}.",
        Notice,
        stacklevel=2,
    )


def _microseconds(date: str, format: str | None) -> int:
    """A date of the split: as the log's times are written, or in ISO 8601."""
    for way in dict.fromkeys((format, "iso")):
        found = pl.select(epoch(pl.lit(date), pl.String(), way)).item()
        if found is not None:
            return int(found)
    raise UserError(
        f"split: {date!r} is not a date: write it as 2024-01-31 or 2024-01-31 12:00:00, or as data.time_format says."
    )
