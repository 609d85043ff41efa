"""Events that are delivered twice are counted once: by the key of an event, and by the time of the latest event."""

import warnings
from dataclasses import dataclass
from typing import Literal, Protocol

import polars as pl

from data_pipelines.errors import Notice, UserError
from data_pipelines.features.kinds.past import happened
from data_pipelines.features.plan import Plan
from data_pipelines.features.raw_columns import RawColumns
from data_pipelines.features.values import MICROSECONDS
from data_pipelines.hashing import key_of
from data_pipelines.names import ROW, TIME

Late = Literal["refuse", "drop", "count"]


class Counted(Protocol):
    """What is known of the events that were counted before (:class:`data_pipelines.past.state.State`)."""

    latest: int

    @property
    def delivered(self) -> pl.DataFrame | None: ...


@dataclass(frozen=True)
class Fresh:
    """The events of a log that were not counted before.

    Attributes:
        rows: They themselves, in their order.
        duplicates: Rows that repeat the key of an earlier row, or of an event that was counted before.
        dropped: Rows left out because they are not later than the latest event.
    """

    rows: pl.LazyFrame
    duplicates: int = 0
    dropped: int = 0


def fresh_events(plan: Plan, rows: pl.LazyFrame, log: str, before: Counted | None, late: Late) -> Fresh:
    """``rows`` without the events that were delivered twice.

    With ``data.event_key``, rows with a key that came before are left out, and late rows whose key is new are counted
    as far back as keys are remembered (``data.event_window``). Without it, or further back, ``late`` decides.

    Args:
        rows: Accepted rows of a log.
        log: What to call the log in messages.
        before: What was counted before; ``None`` for nothing.
        late: What to do with rows that are not later than the latest event, and may be counted already: ``refuse`` the
            log, ``drop`` the rows, or ``count`` them.

    Raises:
        UserError: There are late rows and ``late`` is ``refuse``, or a column of the key is missing.
    """
    duplicates = 0
    if plan.config.event_key:
        repeated = _repeated(_keys(plan, rows), None if before is None else before.delivered)
        duplicates = len(repeated)
        if duplicates:
            rows = rows.join(repeated.lazy(), on=ROW, how="anti", maintain_order="left")
            warnings.warn(f"{log}: {duplicates:,} events were delivered twice and count once.", Notice, stacklevel=3)
    if before is None or late == "count":
        return Fresh(rows, duplicates)
    unknown = pl.col(TIME) <= before.latest
    if plan.config.event_key:
        unknown &= pl.col(TIME) < before.latest - _window(plan)
    old = rows.filter(unknown).select(pl.len()).collect(engine="streaming").item()
    if not old:
        return Fresh(rows, duplicates)
    what = f"{log} has {old:,} events at or before the latest event that was counted"
    if late == "refuse":
        raise UserError(f"{what}: if they were counted, give `--late drop`; if not, `--late count`.")
    warnings.warn(f"{what}: they are left out.", Notice, stacklevel=3)
    return Fresh(rows.filter(~unknown), duplicates, old)


def remembered(plan: Plan, rows: pl.LazyFrame, before: Counted | None, latest: int) -> pl.DataFrame | None:
    """``key`` and ``time`` of the events that can still be delivered again; ``None`` without ``data.event_key``."""
    if not plan.config.event_key:
        return None
    keys = _keys(plan, rows).select("key", "time")
    if before is not None and before.delivered is not None:
        keys = pl.concat([before.delivered.lazy(), keys])
    return keys.filter(pl.col("time") >= latest - _window(plan)).unique("key").sort("key").collect(engine="streaming")


def _keys(plan: Plan, rows: pl.LazyFrame) -> pl.LazyFrame:
    """``:row``, ``key`` and ``time`` of the rows of a log whose key has no null."""
    raw = RawColumns(rows.collect_schema())
    key = key_of([raw.text("`event_key`", column) for column in plan.config.event_key])
    return rows.filter(happened(raw)).select(ROW, key=key, time=pl.col(TIME)).drop_nulls("key")


def _repeated(keys: pl.LazyFrame, delivered: pl.DataFrame | None) -> pl.DataFrame:
    repeats = pl.col(ROW) > pl.col(ROW).min().over("key")
    if delivered is not None:
        repeats |= pl.col("key").is_in(delivered["key"].implode())
    return keys.filter(repeats).select(ROW).collect()


def _window(plan: Plan) -> int:
    return round(plan.config.event_window * MICROSECONDS)
