"""The conditions under which a day, or the model of a day, is refused."""

from collections.abc import Iterator, Sequence

import numpy as np
import polars as pl

from data_pipelines.dataset.dataset import Dataset
from data_pipelines.dataset.unseen import unseen_shares
from data_pipelines.errors import UserError
from data_pipelines.logs.splits import SPLITS
from data_pipelines.names import TIME
from recsys.config.daily import DailyConfig
from recsys.evaluation.standing import Difference
from recsys.exporting.export import Verification
from recsys.metrics.metric import Metric


def times_of(data: Dataset) -> pl.DataFrame | None:
    """The column ``:time`` of all rows of a data set; ``None`` where its log has no time."""
    if data.config.time is None:
        return None
    return _all_rows(data, [TIME]).collect()


def _all_rows(data: Dataset, columns: Sequence[str]) -> pl.LazyFrame:
    return pl.concat([data.frame(split).select(columns) for split in SPLITS if data.splits.get(split)])


def check_day(
    config: DailyConfig,
    log: str,
    data: Dataset,
    times: pl.DataFrame | None,
    before: Dataset | None,
    latest: int | None,
) -> int:
    """Refuse a day whose rows cannot be used; the number of its rows that are late.

    Args:
        config: The limits.
        log: The log, for messages.
        data: The data set of the day.
        times: Its :func:`times_of`.
        before: The data set that it extends.
        latest: Time of the last row of the days before, in microseconds since 1970.

    Raises:
        UserError: The day has no test rows, too many late rows, or a feature with too many values that no day before
            had.
    """
    if not data.splits.get("test"):
        raise UserError(
            f"{log}: no row of the day falls into the test split, on which today's model is compared with "
            "yesterday's: set data.split.test to a share such as 0.1, or give a longer day."
        )
    late, rows = 0, sum(data.splits.values())
    if latest is not None and times is not None:
        late = int((times[TIME] <= latest).sum())
        if late > config.max_late * rows:
            end = np.datetime64(latest, "us")
            raise UserError(
                f"{log}: {late:,} of {rows:,} rows are at or before {end}, the last row of the days before, more than "
                f"the share {config.max_late} that daily.max_late allows: leave them out of the log, or set a larger "
                "share to use them."
            )
    if before is not None:
        _check_known(config, log, data, before)
    return late


def _check_known(config: DailyConfig, log: str, data: Dataset, before: Dataset) -> None:
    rows = _all_rows(data, [feature.name for feature in data.schema.sparse if feature.kind != "history"])
    shares = unseen_shares(data.schema, rows, known=before.schema)
    above = {name: share for name, (_, share) in shares.items() if share > config.max_unknown}
    if above:
        found = ", ".join(f"{share:.1%} of {name}" for name, share in above.items())
        raise UserError(
            f"{log}: no earlier day had {found}, more than the share {config.max_unknown} that daily.max_unknown "
            "allows: they may be spelled differently, or be of another column; if this is right, set a larger share."
        )


def reasons_against(
    config: DailyConfig, metric: Metric, verified: Verification, difference: Difference | None
) -> Iterator[str]:
    """Why the model of a day should not become the current one; nothing if it should.

    Args:
        config: The limits.
        metric: The main metric of the first task.
        verified: The day's artifact compared with its run.
        difference: The day's artifact compared with yesterday's, if there is one.
    """
    if not np.isfinite(verified.max_difference):
        yield "the artifact or its run gives scores that are NaN or infinite"
    run, artifact = (next(iter(tasks.values()))[metric.name] for tasks in (verified.run, verified.artifact))
    lost = metric.goodness(run) - metric.goodness(artifact)
    if lost > config.max_export_loss:
        yield (
            f"the artifact has {metric.label} {artifact:.4f} and its run {run:.4f}, a larger difference than "
            f"daily.max_export_loss ({config.max_export_loss}) allows"
        )
    if difference is not None and difference.verdict == "worse" and abs(difference.difference) > config.max_worse:
        yield (
            f"{metric.label} is {difference.baseline + difference.difference:.4f} on today's test rows, and "
            f"{difference.baseline:.4f} with yesterday's artifact (difference {difference.difference:+.4f}, 95% "
            f"interval {difference.low:+.4f} to {difference.high:+.4f}), worse than daily.max_worse "
            f"({config.max_worse}) allows"
        )
