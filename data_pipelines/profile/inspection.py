"""A first look at a log: what its columns seem to be, how they are distributed, and what is wrong with them.

Counts, cardinalities and frequencies are of the whole log, streamed; shapes of distributions and the test for leaks are
of an even sample of at most about ``SAMPLE_ROWS`` rows.
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
from data_pipelines.features.values import MICROSECONDS
from data_pipelines.files.base import reading
from data_pipelines.files.find import find_files
from data_pipelines.files.formats import Format, format_of, scan_files
from data_pipelines.hashing import spread
from data_pipelines.logs.joins import join
from data_pipelines.logs.outcomes import Labels
from data_pipelines.logs.splits import NAMED_SPLITS
from data_pipelines.names import ROW
from data_pipelines.profile.columns import Column, figures, iso, readable
from data_pipelines.profile.formats import guess_format
from data_pipelines.profile.labels import Label, LabelKind, guess_label
from data_pipelines.profile.leaks import alone_auc, joint_auc, telling_combinations
from data_pipelines.profile.roles import Role, Roles, guess_roles
from data_pipelines.profile.rows.baskets import find_basket, repeated_share
from data_pipelines.profile.rows.exclusions import Exclusion, find_exclusions
from data_pipelines.profile.rows.lists import ShownLists, find_lists
from data_pipelines.profile.sides import SideTable, fit_side
from data_pipelines.profile.suspicions import outcome_of, repeated_columns, repeats_time, suspicions
from data_pipelines.profile.types import with_numbers, with_times
from data_pipelines.profile.unseen import latest_rows, stretches
from data_pipelines.profile.wording import percent
from data_pipelines.redaction import redact

SAMPLE_ROWS = 100_000
_FEW_POSITIVE = 100
_DAY = 86_400 * MICROSECONDS


class LogProfile(Config):
    """What is known about a log.

    Attributes:
        columns: Those of the log, then those that side tables add.
        sides: The side tables.
        label_kind: What the label is, as a task says it.
        label_at_least: Where the label column holds ratings: from which on they count as positive.
        label_positive: Where it holds text: the values that count as positive.
        label_note: What was guessed about the label.
        label_rate: Share of the labelled rows that are positive; ``None`` where the label is not binary.
        label_mean: Mean of the labels.
        split: A column that says which rows are for training and which for the test.
        split_files: Names of the files, where they say which rows are for training and which for the test.
        basket: In a log of positives, the column that rows share that were taken together, such as an order.
        repeated: In a log of positives, the share of the rows whose user took the same item before.
        lists: Rows that seem to have been shown together; ``None`` where none do.
        latest: What the rows are called that unseen values are counted in.
        hours: Distinct hours of the day that the rows' times have.
        days: Rows and mean label (NaN without a label) of each day of the log: (ISO date, rows, mean).
        outcomes_auc: AUC of a shallow tree of the columns that look like outcomes; ``None`` if there are none.
        others_auc: AUC of a shallow tree of the other columns of single values.
        combinations: Sentences on a few columns that predict the label together, though none does alone.
        exclusions: Rows that may be returns, cancellations, bots or tests, which a condition leaves out.
        time_formats: By column of times that need the key ``time_format``: the formats that fit, the likeliest first.
        time_notes: What is implausible about the times of the log, one sentence each.
    """

    location: str
    format: Format | None
    rows: int
    columns: tuple[Column, ...]
    sides: tuple[SideTable, ...] = ()
    label: str | None
    label_kind: LabelKind = "binary"
    label_at_least: float | None
    label_positive: tuple[str, ...]
    label_note: str = ""
    label_rate: float | None
    label_mean: float | None = None
    time: str | None
    first: str | None
    last: str | None
    user: str | None
    item: str | None
    split: str | None = None
    split_files: tuple[str, ...] = ()
    basket: str | None = None
    repeated: float | None = None
    lists: ShownLists | None = None
    latest: str = "latest tenth"
    hours: int = 0
    days: tuple[tuple[str, int, float], ...]
    outcomes_auc: float | None = None
    others_auc: float | None = None
    combinations: tuple[str, ...] = ()
    exclusions: tuple[Exclusion, ...] = ()
    time_formats: dict[str, tuple[str, ...]] = Field(default={})
    time_notes: tuple[str, ...] = ()

    def of(self, *roles: Role) -> tuple[Column, ...]:
        """The columns of some roles."""
        return tuple(column for column in self.columns if column.role in roles)

    def column(self, name: str) -> Column:
        """The column of that name."""
        return next(column for column in self.columns if column.name == name)


def inspect_log(
    location: str,
    *,
    format: Format | None = None,
    label: str | None = None,
    time: str | None = None,
    user: str | None = None,
    item: str | None = None,
    positive: Sequence[str] = (),
    at_least: float | None = None,
    sides: Sequence[str] = (),
) -> LogProfile:
    """Look at the log at ``location``; ``label``, ``time``, ``user`` and ``item`` are guessed where they are not given.

    Args:
        positive: Values of the label that count as positive.
        at_least: From where on numbers of the label count as positive.
        sides: Side tables, whose keys are found.

    Raises:
        UserError: The log cannot be read or is empty, a given column is not there, a side table does not fit, or the
            label is text that says neither yes nor no, or has one class only.

    Example:
        >>> profile = rs.inspect_log("clicks.csv")
        >>> profile.rows, profile.label, profile.time
        (600, 'clicked', 'time')
    """
    format = format or guess_format(location)
    with reading(location), TemporaryDirectory() as scratch:
        frame = _columnar(location, format, Path(scratch))
        rows = int(frame.select(pl.len()).collect(engine="streaming").item())
        if rows == 0:
            raise UserError(f"{location} holds no rows.")
        frame, time_formats = with_times(frame, rows)
        frame, tables = _with_sides(frame.with_row_index(ROW), sides, rows)
        sample = _sample(frame, rows)
        roles = guess_roles(sample, rows, label=label, time=time, user=user, item=item)
        rule = None if roles.label is None else guess_label(frame, roles.label, positive, at_least)
        if rule is None and (positive or at_least is not None):
            raise UserError("--positive and --at-least say how to read the label: name it with --label.")
        view = _View(frame, sample, rows, roles, rule)
        origin = {name: table.join.table for table in tables for name in table.added}
        columns = tuple(view.column(name, origin.get(name)) for name in sample.columns)
        found = view.summary(columns)
    own: dict[str, object] = {"location": redact(location), "format": format, "rows": rows}
    own |= {"columns": columns, "sides": tables, "split_files": _split_files(location)}
    return LogProfile.model_validate(own | found | {"time_formats": time_formats})


def _split_files(location: str) -> tuple[str, ...]:
    """The names of the log's files, where they are those of splits: ``train.csv`` and ``test.csv``."""
    names = [] if "://" in location else [Path(file).name for file in find_files(location)]
    splits = {NAMED_SPLITS.get(name.split(".")[0].lower()) for name in names}
    return tuple(names) if "train" in splits and len(splits) > 1 and None not in splits else ()


def _columnar(location: str, format: Format | None, scratch: Path) -> pl.LazyFrame:
    """The log; text as a columnar copy in ``scratch``, because it is read once per column."""
    frame = scan_files(location, format).rows(location)
    format = format or format_of(location, find_files(location))
    if format.columnar:
        return frame
    frame.sink_parquet(scratch / "log.parquet")
    copy = pl.scan_parquet(scratch / "log.parquet", glob=False)
    return with_numbers(copy) if format.textual else copy


def _with_sides(frame: pl.LazyFrame, sides: Sequence[str], rows: int) -> tuple[pl.LazyFrame, tuple[SideTable, ...]]:
    """``frame`` with the columns of all side tables."""
    found: list[SideTable] = []
    for location in sides:
        with reading(location):
            side, table = fit_side(location, _sample(frame, rows))
            frame = join(frame, table, side.join, None)
        found.append(side)
    return frame, tuple(found)


def _sample(frame: pl.LazyFrame, rows: int) -> pl.DataFrame:
    part = spread(pl.col(ROW), min(1.0, SAMPLE_ROWS / rows))
    return frame.filter(part).drop(ROW).collect(engine="streaming")


class _View:
    """A log under inspection: its rows, a sample of them, and the roles of its columns.

    Attributes:
        label: (N,) labels of the sample, NaN where there is none; ``None`` without a label.
        classes: The same where they are binary; else ``None``.
        times: (N,) times of the sample in microseconds; ``None`` without a time.
    """

    def __init__(self, frame: pl.LazyFrame, sample: pl.DataFrame, rows: int, roles: Roles, rule: Label | None) -> None:
        self.frame, self.sample, self.rows, self.roles, self.rule = frame, sample, rows, roles, rule
        self.label: Labels | None = None
        if rule is not None:
            labels = sample.select(rule.value(sample.schema)).to_series()
            self.label = labels.fill_null(float("nan")).to_numpy()
        self.classes = self.label if rule is not None and rule.kind == "binary" else None
        self.times = None if roles.time is None else readable(roles.time, sample, "time")
        self.latest, self.latest_name = latest_rows(frame, roles)
        self.repeated = repeated_columns(sample, roles)

    def column(self, name: str, side: str | None) -> Column:
        """What is known about one column."""
        role = self.roles.of[name]
        found = figures(self.frame, self.sample, name, self.roles, self.latest) | {"side": side}
        in_stretches = same_time = False
        if role in ("id", "user", "item", "number", "constant", "time"):
            values = readable(name, self.sample, role)
            if self.classes is not None and name != self.roles.time:
                found["alone_auc"] = alone_auc(values, self.classes)
            found["outcome"] = outcome_of(name, values, self.label, self.times, self.roles)
            if self.times is not None and name != self.roles.time:
                in_stretches = stretches(values, self.times)
                same_time = role == "time" and repeats_time(values, self.times)
        elif role in ("text", "json") and self.classes is not None:
            found["outcome"] = outcome_of(name, self.sample[name].is_null(), self.classes, None, self.roles)
        same = self.repeated.get(name)
        sentences = suspicions(
            found, self.rows, self.latest_name, in_stretches=in_stretches, same_time=same_time, same=same
        )
        return Column.model_validate({**found, "suspicions": tuple(sentences)})

    def summary(self, columns: Sequence[Column]) -> dict[str, object]:
        """Attributes of :class:`LogProfile` that are not those of single columns."""
        roles, rule = self.roles, self.rule
        mean = None if self.label is None else float(np.nanmean(self.label))
        span = next((column for column in columns if column.name == roles.time), None)
        outcomes_auc, others_auc, combinations = self._together(columns)
        return {
            "label": roles.label,
            "label_kind": "binary" if rule is None else rule.kind,
            "label_at_least": None if rule is None else rule.at_least,
            "label_positive": () if rule is None else rule.positive,
            "label_note": self._label_note(),
            "label_rate": mean if self.classes is not None else None,
            "label_mean": mean,
            "time": roles.time,
            "first": span.low if span else None,
            "last": span.high if span else None,
            "user": roles.user,
            "item": roles.item,
            "split": roles.split,
            "basket": find_basket(self.frame, roles),
            "repeated": repeated_share(self.frame, roles),
            "lists": find_lists(self.frame, roles, rule, SAMPLE_ROWS / self.rows),
            "latest": self.latest_name,
            "hours": 0 if self.times is None else (self.times // HOUR % 24).drop_nulls().n_unique(),
            "days": self._days(),
            "time_notes": self._time_notes(),
            "outcomes_auc": outcomes_auc,
            "others_auc": others_auc,
            "combinations": combinations,
            "exclusions": find_exclusions(self.frame, self.sample, roles),
        }

    def _label_note(self) -> str:
        """What was guessed about the label, and how many rows have none or are positive, where these are few."""
        if self.rule is None or self.label is None:
            return ""
        notes = [self.roles.label_note, self.rule.note]
        value = self.rule.value(self.frame.collect_schema())
        counts = self.frame.select(missing=value.is_null().mean(), positive=(value > 0).sum())
        missing, positive = counts.collect(engine="streaming").row(0)
        if missing > 0:
            notes.append(f"{percent(missing)} of the rows have no label")
        if self.rule.kind == "binary" and positive < _FEW_POSITIVE:
            notes.append(f"few rows are positive ({positive:,}), so every metric is uncertain")
        return "; ".join(note for note in notes if note)

    def _days(self) -> tuple[tuple[str, int, float], ...]:
        """Rows and mean label day by day."""
        if self.roles.time is None:
            return ()
        schema = self.frame.collect_schema()
        day = epoch(pl.col(self.roles.time), schema[self.roles.time]) // _DAY
        label = pl.lit(float("nan")) if self.rule is None else self.rule.value(schema)
        table = self.frame.group_by(day=day).agg(rows=pl.len(), mean=label.mean()).drop_nulls("day")
        return tuple(
            (iso(day * _DAY)[:10], rows, float("nan") if mean is None else mean)
            for day, rows, mean in table.collect(engine="streaming").sort("day").rows()
        )

    def _time_notes(self) -> tuple[str, ...]:
        """What is implausible about the times of the log."""
        if self.roles.time is None:
            return ()
        time = epoch(pl.col(self.roles.time), self.frame.collect_schema()[self.roles.time])
        first, last = self.frame.select(first=time.min(), last=time.max()).collect(engine="streaming").row(0)
        hours = self.frame.select(hour=time // HOUR).unique().drop_nulls().collect(engine="streaming")["hour"].sort()
        return () if first is None else tuple(oddities(first, last, hours.to_numpy()))

    def _together(self, columns: Sequence[Column]) -> tuple[float | None, float | None, tuple[str, ...]]:
        """AUC of the columns that look like outcomes, and of the others, each taken together; telling combinations."""
        if self.classes is None:
            return None, None, ()
        honest = [c for c in columns if c.role in ("id", "user", "item", "number") and not c.suspicions]
        numbers = [c.name for c in honest if c.role == "number"]
        others = [c.name for c in honest if c.role != "number"]
        outcomes = [c.name for c in columns if c.outcome]
        telling = tuple(telling_combinations(self.sample, self.classes, numbers, others))
        if not outcomes:
            return None, None, telling
        return (
            joint_auc(self.sample, self.classes, outcomes),
            joint_auc(self.sample, self.classes, [*numbers, *others]),
            telling,
        )
