"""The first look at a log: how many rows it has, which are refused and why, and when they happened."""

from dataclasses import dataclass

import polars as pl

from data_pipelines.errors import UserError
from data_pipelines.features.plan import Plan
from data_pipelines.names import REASON, ROW, TIME, UNLABELLED
from data_pipelines.timelines import MINUTE

MOST_NUMBERED = (1 << 32) - 2
"""The most rows of one log: their numbers have 32 bits, and the last stands for no row."""


@dataclass(frozen=True)
class Survey:
    """Counts of a log.

    Attributes:
        rows: Rows that are not refused.
        refused: Rows that are, by reason.
        last_row: The largest row number.
        last: Time of the latest row in microseconds; ``None`` where the log has no time.
        minutes: ``minute`` (since 1970, ascending), ``n`` rows in it and the number of its ``last_row``, of the rows
        that
            are not refused.
    """

    rows: int
    refused: dict[str, int]
    last_row: int
    last: int | None
    minutes: pl.DataFrame

    @property
    def total(self) -> int:
        return self.rows + sum(self.refused.values())


def take_survey(plan: Plan, rows: pl.LazyFrame, location: str, lines: pl.DataFrame | None = None) -> Survey:
    """Look over checked rows once.

    Args:
        lines: Lines of text that were refused before they became rows (see :data:`data_pipelines.files.base.REFUSED`).

    Raises:
        UserError: No rows, more than can be numbered, or more refused than ``max_quarantined`` allows.
    """
    time = pl.col(TIME) if plan.time is not None else pl.lit(0, dtype=pl.Int64)
    good = pl.col(REASON).is_null()
    found = (
        rows.select(ROW, time=pl.when(good).then(time))
        .group_by(minute=pl.col("time") // MINUTE)
        .agg(n=pl.len().cast(pl.Int64), last=pl.col("time").max(), last_row=pl.col(ROW).max())
        .collect(engine="streaming")
        .sort("minute")
    )
    lines = pl.DataFrame({"reason": []}) if lines is None else lines
    total, accepted = int(found["n"].sum()) + len(lines), found.drop_nulls("minute")
    if total == 0:
        which = "" if plan.config.where is None else f" for which `data.where: {plan.config.where}` holds"
        raise UserError(f"{location} holds no rows{which}.")
    if total > MOST_NUMBERED:
        raise UserError(
            f"{location} has {total:,} rows, and one `recsys prepare` can number {MOST_NUMBERED:,}: "
            "prepare the first days, and add the others with `recsys prepare --extend`."
        )
    refused: dict[str, int] = {}
    if len(accepted) < len(found) or len(lines):
        refused = _refused(plan, rows.filter(~good), lines, total, location)
    if accepted.is_empty():
        raise UserError(f"{location}: every row is refused.")
    last = None if plan.time is None else int(accepted["last"].to_numpy().max())
    last_row = int(found["last_row"].to_numpy().max())
    return Survey(int(accepted["n"].sum()), refused, last_row, last, accepted.select("minute", "n", "last_row"))


def _refused(plan: Plan, rows: pl.LazyFrame, lines: pl.DataFrame, total: int, location: str) -> dict[str, int]:
    """Refused rows and lines by reason, in descending frequency order.

    Rows without a label are not at fault, and do not count for ``max_quarantined``.
    """
    row = "row {}" if plan.config.where is None else "row {} of those read"
    by_reason = rows.group_by(REASON).agg(n=pl.len(), where=pl.format(row, pl.col(ROW).min() + 1))
    counted = by_reason.collect(engine="streaming")
    if len(lines):
        line = pl.coalesce(pl.format("line {} of ", pl.col("line").first()), pl.lit("a line of "))
        where = pl.concat_str(line, pl.col("file").first())
        counted = pl.concat([counted, lines.group_by(pl.col("reason").alias(REASON)).agg(n=pl.len(), where=where)])
    bad = counted.sort("n", REASON, descending=[True, False])
    refused: dict[str, int] = dict(bad.select(REASON, "n").iter_rows())
    allowed = plan.config.max_quarantined
    faulty = bad.filter(pl.col(REASON) != UNLABELLED)
    faults = int(faulty["n"].sum())
    if faults > allowed * total:
        reasons = "; ".join(
            f"{reason} ({n:,} {'row' if n == 1 else 'rows'}, first {where})"
            for reason, n, where in faulty.head(3).iter_rows()
        )
        raise UserError(
            f"{location}: {faults:,} of {total:,} rows are refused, more than the share "
            f"{allowed} that `max_quarantined` allows: {reasons}."
        )
    return refused
