"""Why a column of a log should not be a feature, in sentences that follow its name."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import polars as pl

from data_pipelines.features.values import MICROSECONDS, MISSING
from data_pipelines.logs.outcomes import later_than_row, outcome_reason
from data_pipelines.profile.labels import named_like_outcome
from data_pipelines.profile.leaks import LEAK_AUC
from data_pipelines.profile.roles import Roles, role_reason
from data_pipelines.profile.types import SURE_SHARE
from data_pipelines.profile.unseen import MOST_UNSEEN
from data_pipelines.profile.wording import percent

_MOST_NULLS = 0.95
_DAY = 86_400 * MICROSECONDS


def outcome_of(
    name: str, values: pl.Series, label: npt.NDArray[np.float64] | None, times: pl.Series | None, roles: Roles
) -> str | None:
    """Why a column looks like another outcome of the row, if it does.

    Args:
        values: (N,) its values in the form that its role has.
        label: (N,) labels, NaN where there is none; ``None`` without a label.
        times: (N,) times of the rows in microseconds; ``None`` in a log without a time.
    """
    if name in (roles.user, roles.item, roles.time, roles.label):
        return None
    if roles.of[name] == "time" and times is not None:
        reason = later_than_row(values, times, str(roles.time))
        if reason is not None:
            return reason
    if label is None or roles.label is None:
        return None
    reason = outcome_reason(values, label, roles.label)
    if reason is None and named_like_outcome(values):
        reason = f"is named like an outcome of the row, and {roles.label!r} is the label"
    return reason


def repeats_time(values: pl.Series, times: pl.Series) -> bool:
    """Whether a column holds the time of the row again, or its day.

    Args:
        values: (N,) microseconds since 1970.
        times: (N,) times of the rows, likewise.
    """
    same = ((values - times).abs() <= _DAY).drop_nulls()
    share = same.mean()
    return isinstance(share, float) and share >= SURE_SHARE


def repeated_columns(sample: pl.DataFrame, roles: Roles) -> dict[str, str]:
    """By column of ids or numbers, the name of a column before it that holds the same values in ``sample``."""
    found, firsts = {}, dict[tuple[str, int], str]()
    for values in sample.select(roles.columns("user", "item", "id", "number")):
        fingerprint = (str(values.dtype), int(values.hash(0).cast(pl.Float64).sum()))
        first = firsts.setdefault(fingerprint, values.name)
        if first != values.name and roles.of[values.name] in ("id", "number") and sample[first].equals(values):
            found[values.name] = first
    return found


def suspicions(
    column: dict[str, object],
    rows: int,
    latest: str,
    *,
    in_stretches: bool = False,
    same_time: bool = False,
    same: str | None = None,
) -> Iterator[str]:
    """What is odd about a column.

    Args:
        column: Attributes of a :class:`~data_pipelines.profile.columns.Column`.
        latest: What the latest rows are called.
        in_stretches: Whether each of its values occurs in one stretch of time.
        same_time: Whether it holds the time of the row again.
        same: A column before it that holds the same values.
    """
    role, nulls, distinct, unseen = column["role"], column["nulls"], column.get("distinct"), column.get("unseen")
    assert isinstance(nulls, float)
    top: tuple[tuple[str, int], ...] = column.get("top", ())  # type: ignore[assignment]
    reason = role_reason(role, empty=all(value.lower() in MISSING for value, _ in top))  # type: ignore[arg-type]
    keyed = role in ("id", "item", "user")
    if reason is not None:
        yield reason
    elif same is not None:
        yield f"holds the same values as {same!r}"
    elif same_time:
        yield "holds the time of the row again, or its day"
    elif keyed and distinct == rows > 1:
        yield "is different in every row: nothing can be learned about a value"
    elif isinstance(unseen, float) and unseen > MOST_UNSEEN and role in ("id", "item", "user", "bag"):
        yield f"is new in {percent(unseen)} of the {latest}: what is learned about a value is of no use for new rows"
    elif isinstance(unseen, float) and unseen > MOST_UNSEEN and role == "number":
        yield f"is beyond its earlier range in {percent(unseen)} of the {latest}: it grows or falls with time"
    elif in_stretches:
        yield "has each of its values in one stretch of time only: it tells the time, and new rows have new values"
    if nulls > _MOST_NULLS and distinct != 0:
        yield f"is null in {percent(nulls)} of the rows"
    if column.get("outcome"):
        yield str(column["outcome"])
    auc = column.get("alone_auc")
    if isinstance(auc, float) and auc >= LEAK_AUC and role != "label":
        yield f"predicts the label alone (AUC {auc:.3f}), as if recorded after it"
