"""Which rows of a log were shown together: guessed from columns whose values several rows share."""

from collections.abc import Iterator, Sequence

import numpy as np
import polars as pl

from data_pipelines.config.base import Config
from data_pipelines.features.time_formats import HOUR
from data_pipelines.features.times import epoch
from data_pipelines.features.values import number, text
from data_pipelines.hashing import key_of
from data_pipelines.profile import words
from data_pipelines.profile.labels import Label
from data_pipelines.profile.roles import Roles

_LEAST_SHARE = 0.5
"""Share of the rows that must be in lists of at least two."""
_SIZES = (3, 200)
"""Median sizes of lists. Two events at the same time are often chance, or one event that was recorded twice; two rows
that share the id of a list are a list."""
_FEWEST = 50
_MOST = 0.9
_MOSTLY = 0.5
_MOST_POSITIVE = 0.5
"""Share of the rows of lists that may be positive: lists hold what was not chosen, too."""
_FEWEST_MINUTES = 12
"""Distinct times within the hour up to which times are cut: to the hour, or to a few minutes."""


class ShownLists(Config):
    """Rows that seem to have been shown together.

    Attributes:
        keys: The columns that the rows of a list share.
        share: Share of the rows that are in lists of at least two.
        size: Median size of these lists.
        varying: The columns of numbers that differ within most of them.
    """

    keys: tuple[str, ...]
    share: float
    size: float
    varying: tuple[str, ...]


def find_lists(frame: pl.LazyFrame, roles: Roles, label: Label | None, share: float) -> ShownLists | None:
    """The lists of a log; ``None`` where no rows seem to have been shown together.

    Rows are of one list if they share the id of a list, such as a request; or a user or session, and the time. Such
    rows are a list only if most rows are in one, its items differ, and it also holds what was not chosen. Baskets
    and logs of positives hold chosen items only, and several ratings at the same time were all given by the user.

    Args:
        label: How labels are read; ``None`` in a log of positives.
        share: Share of the lists that are looked at.
    """
    if label is None or label.kind != "binary":
        return None
    found = (_lists(frame, roles, label, keys, share) for keys in _candidates(frame, roles, label))
    return next((lists for lists in found if lists is not None), None)


def _candidates(frame: pl.LazyFrame, roles: Roles, label: Label) -> Iterator[tuple[str, ...]]:
    """Columns that the rows of a list may share, those that say it best first."""
    ids = [name for name in roles.columns("id", "user", "number") if name not in (roles.item, roles.label)]
    named = [name for name in ids if words.named([name], words.LISTS, exact=True)]
    yield from ((name,) for name in named)
    if roles.time is None or label.at_least is not None:
        return
    when = epoch(pl.col(roles.time), frame.collect_schema()[roles.time])
    if frame.select((when % HOUR).n_unique()).collect(engine="streaming").item() <= _FEWEST_MINUTES:
        return
    sessions = [name for name in ids if words.named([name], words.SESSIONS, exact=True)]
    users = [] if roles.user is None else [roles.user]
    yield from ((name, roles.time) for name in dict.fromkeys([*users, *sessions]))


def _lists(frame: pl.LazyFrame, roles: Roles, label: Label, keys: Sequence[str], share: float) -> ShownLists | None:
    """The rows that share ``keys``, if they look like lists."""
    lists = _counted(frame, roles, label, keys, share)
    several = lists.filter(pl.col("rows") > 1)
    if len(several) < _FEWEST:
        return None
    sizes, positives, items = (several[name].to_numpy() for name in ("rows", "positives", "items"))
    in_lists = float(sizes.sum() / lists["rows"].to_numpy().sum()) * _known(frame, keys)
    size = float(np.median(sizes))
    chosen = positives > 0
    shown = (
        in_lists >= _LEAST_SHARE
        and (2 if len(keys) == 1 else _SIZES[0]) <= size <= _SIZES[1]
        and items.sum() >= _MOST * sizes.sum()
        and positives.sum() <= _MOST_POSITIVE * sizes.sum()
        and chosen.any()
        and (positives < sizes)[chosen].mean() >= _MOST
        and several["together"].to_numpy().mean() >= _MOST
        and several["whole"].all()
    )
    if not shown:
        return None
    varying = [name for name in roles.columns("number") if several[f"differs:{name}"].to_numpy().mean() >= _MOSTLY]
    return ShownLists(keys=tuple(keys), share=in_lists, size=size, varying=tuple(varying))


def _known(frame: pl.LazyFrame, keys: Sequence[str]) -> float:
    """Share of the rows that have a value in each of ``keys``: the others are in no list."""
    known = pl.all_horizontal(pl.col(name).is_not_null() for name in keys)
    return float(frame.select(known.mean()).collect(engine="streaming").item())


def _counted(frame: pl.LazyFrame, roles: Roles, label: Label, keys: Sequence[str], share: float) -> pl.DataFrame:
    """One row per list: its ``rows`` and ``positives``, its distinct ``items``, whether it is ``together`` in time and
    ``whole`` in one split, and which numbers differ.

    Without an item, every row counts as another one. Where a column says the split, all lists are counted: ``prepare``
    refuses a single one that is divided.
    """
    schema = frame.collect_schema()
    list_key = key_of([text(pl.col(name), schema[name]) for name in keys])
    if roles.split is None and share < 1:
        frame = frame.filter(list_key < int(share * 2**64))
    one = pl.lit(True)
    time = None if roles.time is None else epoch(pl.col(roles.time), schema[roles.time])
    numbers = {name: number(pl.col(name), schema[name]) for name in roles.columns("number")}
    return (
        frame.group_by(list_key.alias("list"))
        .agg(
            rows=pl.len(),
            positives=label.value(schema).fill_null(0).sum(),
            items=pl.len() if roles.item is None else pl.col(roles.item).n_unique(),
            together=one if time is None else (time.max() - time.min() <= HOUR).fill_null(True),
            whole=one if roles.split is None else pl.col(roles.split).n_unique() == 1,
            **{f"differs:{name}": (value.min() < value.max()).fill_null(False) for name, value in numbers.items()},
        )
        .drop_nulls("list")
        .collect(engine="streaming")
    )
