"""What each user took before a split began and in the split: the queries and answers of a ranking.

Letters: U users asked, V users of the past, C candidates, M items taken in the split.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import polars as pl
import scipy.sparse as sp

from data_pipelines.dataset.columns import KEY, LABEL
from data_pipelines.dataset.dataset import Dataset
from data_pipelines.errors import UserError
from data_pipelines.logs.splits import SPLITS
from data_pipelines.names import TIME
from recsys.metrics.arrays import Floats, Indices


@dataclass(frozen=True)
class Catalog:
    """Users to rank candidates for, as of the begin of a split.

    Attributes:
        user, item: The columns.
        begin: When the split begins, in microseconds since 1970. The past is strictly earlier.
        users: (U,) the users that took something in the split.
        items: (C,) what was taken before the split began, the most popular first.
        past: (V, C) how often each user took each candidate; the first U rows are those of ``users``.
        recent_C: How often each candidate was taken recently: in as long a time as the split covers.
        taken_M: ``user * C + item`` of what was taken in the split, ascending; of candidates only.
        repeated_M: Whether the user had taken it before.
        wanted_U: How many items each user took in the split; those that are no candidates included.
    """

    user: str
    item: str
    begin: int
    users: pl.Series
    items: pl.Series
    past: sp.csr_matrix
    recent_C: Indices
    taken_M: Indices
    repeated_M: npt.NDArray[np.bool_]
    wanted_U: Indices

    @staticmethod
    def of(dataset: Dataset, split: str, *, item: str | None = None, users: int = 10_000) -> "Catalog":
        """The catalog of a data set that is split by time; positives are rows with the label 1 of the first task.

        Args:
            item: The column of items, one of ``data.keys``; by default that of ``sampling``, or the one key that is not
                the user.
            users: Ask for at most so many users, drawn evenly.

        Raises:
            UserError: The split is not by time or has no positives, or it is not known what an item is.
        """
        user, item = dataset.config.user, item or _item_of(dataset)
        keys = dataset.encoder.plan.keys
        if user is None or item is None or item not in keys:
            raise UserError(
                f"{dataset.path}: a ranking needs the keys `user` and `item` of the data block: set `user`, and list "
                f"the column of items in `keys` (there are {', '.join(keys) or 'none'}), or name it with --item."
            )
        if dataset.config.split.by != "time":
            raise UserError(
                f"{dataset.path}: a ranking is of what comes after the past, so it needs `split: {{by: time}}`; "
                f"the split is by {dataset.config.split.by}."
            )
        now = _positives(dataset, split, user, item)
        begin = dataset.frame(split).select(pl.col(TIME).min()).collect().item()
        earlier = [_positives(dataset, name, user, item) for name in SPLITS[: SPLITS.index(split)]]
        past = pl.concat([now.clear(), *earlier]).filter(pl.col("time") < begin)
        if not len(now) or not len(past):
            raise UserError(
                f"{dataset.path}: {split!r} and what precedes it must both hold positives to rank: check `split`."
            )
        return _catalog(past, now, user, item, begin, users)

    @cached_property
    def popularity(self) -> Floats:
        """Candidates by recent popularity, ties by all popularity: from just under 1 down to 0."""
        order_C = np.argsort(-self.recent_C, kind="stable")
        value_C = np.empty(len(order_C))
        value_C[order_C] = 1 - np.arange(1, len(order_C) + 1) / len(order_C)
        return value_C

    @cached_property
    def taken_by(self) -> sp.csr_matrix:
        """(C, V) 1 for each user who took a candidate."""
        return self.past.sign().T.tocsr()

    @cached_property
    def weighted(self) -> sp.csr_matrix:
        """(V, C) 1 for what each user took, divided by the norm of the candidate's column."""
        known = self.past.sign()
        norm_C = np.sqrt(np.asarray(known.sum(0)).ravel())
        return known.multiply(1 / norm_C[None, :]).tocsr()


def _item_of(dataset: Dataset) -> str | None:
    config = dataset.config
    if config.sampling is not None:
        return config.sampling.item
    others = [key for key in config.keys if key != config.user]
    return others[0] if len(others) == 1 else None


def _positives(dataset: Dataset, split: str, user: str, item: str) -> pl.DataFrame:
    task = dataset.schema.tasks[0]
    columns = [pl.col(KEY + user).alias("user"), pl.col(KEY + item).alias("item"), pl.col(TIME).alias("time")]
    return dataset.frame(split).filter(pl.col(LABEL + task) > 0.5).select(columns).drop_nulls().collect()


def _catalog(past: pl.DataFrame, now: pl.DataFrame, user: str, item: str, begin: int, most: int) -> Catalog:
    asked = now["user"].unique().sort()
    if len(asked) > most:
        asked = asked.gather(np.linspace(0, len(asked) - 1, most).astype(np.int64))
    now = now.filter(pl.col("user").is_in(asked.implode()))
    recent_since = 2 * begin - now.select(pl.col("time").max()).item()
    counted = past.group_by("item").agg(n=pl.len(), recent=(pl.col("time") >= recent_since).sum())
    counted = counted.sort("n", "item", descending=[True, False])
    others = past.filter(~pl.col("user").is_in(asked.implode()))["user"].unique().sort()
    users, items = _numbered(pl.concat([asked, others]), "user"), _numbered(counted["item"], "item")
    pairs = past.group_by("user", "item").len().join(users, on="user").join(items, on="item")
    shape = (len(users), len(items))
    matrix = sp.csr_matrix((pairs["len"].to_numpy(), (pairs["user:code"], pairs["item:code"])), shape, np.float64)
    wanted = now.select("user", "item").unique().join(users, on="user").join(items, on="item", how="left")
    candidates = wanted.drop_nulls("item:code")
    taken_M = np.sort(candidates["user:code"].to_numpy() * len(items) + candidates["item:code"].to_numpy())
    before_M = pairs["user:code"].to_numpy() * len(items) + pairs["item:code"].to_numpy()
    return Catalog(
        user=user,
        item=item,
        begin=begin,
        users=asked,
        items=counted["item"],
        past=matrix,
        recent_C=counted["recent"].to_numpy().astype(np.int64),
        taken_M=taken_M,
        repeated_M=np.isin(taken_M, before_M),
        wanted_U=np.bincount(wanted["user:code"].to_numpy(), minlength=len(asked)),
    )


def _numbered(values: pl.Series, name: str) -> pl.DataFrame:
    return pl.DataFrame({name: values, f"{name}:code": np.arange(len(values))})


def baselines(catalog: Catalog, first: int, last: int) -> dict[str, Floats]:
    """(u, C) scores of the users ``first:last`` by each baseline that a ranker must beat.

    ``popularity``: what was taken most often. ``recent_popularity``: most often recently. ``own_repeats``: what the
    user took most often, then what is popular recently. ``item_cosine``: cosine similarity of items by who took them,
    summed over what the user took (Sarwar et al., WWW 2001).
    """
    users, candidates = last - first, len(catalog.items)
    recent_C, own, weighted = catalog.popularity, catalog.past[first:last], catalog.weighted
    similar = np.asarray((weighted[first:last] @ catalog.taken_by @ weighted).todense())
    return {
        "popularity": np.broadcast_to(-np.arange(candidates, dtype=np.float64), (users, candidates)),
        "recent_popularity": np.broadcast_to(recent_C, (users, candidates)),
        "own_repeats": np.asarray(own.todense()) + recent_C,
        "item_cosine": similar + 1e-9 * recent_C,
    }
