"""What rows of a log of positives have to do with each other: which were taken together, and which are repeats.

Baskets are guessed from a column whose values are of one user and time.
"""

import polars as pl

from data_pipelines.features.time_formats import HOUR
from data_pipelines.features.times import epoch
from data_pipelines.profile import words
from data_pipelines.profile.roles import Roles

_SURE = 0.99
"""Share of the baskets that have one user, and rows within an hour."""
_SIZE = 1.2
"""Rows per basket, on average, from which a column names baskets and not single rows."""


def find_basket(frame: pl.LazyFrame, roles: Roles) -> str | None:
    """The column of orders, invoices or the like; ``None`` without one, or where the log has a label.

    The name is needed as well as the values: a column such as a user's address is of one user, too.
    """
    if roles.label is not None or roles.user is None or roles.time is None:
        return None
    named = [name for name in roles.columns("id", "number") if set(words.words(name)) & set(words.BASKETS)]
    return next((name for name in named if _is_basket(frame, roles.user, roles.time, name)), None)


def _is_basket(frame: pl.LazyFrame, user: str, time: str, name: str) -> bool:
    when = epoch(pl.col(time), frame.collect_schema()[time])
    baskets = frame.filter(pl.col(name).is_not_null()).group_by(name)
    of_one = (pl.col(user).n_unique() == 1) & (when.max() - when.min() <= HOUR)
    found = baskets.agg(n=pl.len(), one=of_one).select(pl.col("n", "one").mean())
    size, one = found.collect(engine="streaming").row(0)
    return size is not None and size >= _SIZE and one >= _SURE


def repeated_share(frame: pl.LazyFrame, roles: Roles) -> float | None:
    """Share of the rows whose user has another, earlier row with the same item; ``None`` where the log has a label."""
    if roles.label is not None or roles.user is None or roles.item is None:
        return None
    pairs = frame.select(roles.user, roles.item).drop_nulls()
    counts = pairs.group_by(roles.user, roles.item).len().select(pairs=pl.len(), rows=pl.col("len").sum())
    distinct, rows = counts.collect(engine="streaming").row(0)
    return 1 - distinct / rows if rows else None
