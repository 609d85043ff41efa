"""What each user took before a moment: negatives that the user knows.

Letters: N rows, P distinct pairs of a user and a candidate.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from data_pipelines.logs.popularity import Popularity
from data_pipelines.timelines import find

Ids = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Known:
    """The candidates that the users of N rows took before.

    Attributes:
        users: (N,) positions among the users.
        moments: (N,) positions among the times of events.
        first, count: (N,) where they are in :class:`Repeats`, and how many.
    """

    users: Ids
    moments: Ids
    first: Ids
    count: Ids

    def __getitem__(self, rows: Ids) -> "Known":
        return Known(self.users[rows], self.moments[rows], self.first[rows], self.count[rows])


class Repeats:
    """The distinct candidates of each user, by the time of the user's first row with each.

    Args:
        positives: ``user`` (UInt64), ``item`` and ``time`` (microseconds) of every row of the log. Rows without a user,
            an item or a time belong to nobody's past. Memory: 32 bytes per distinct pair of a user and an item.
        popularity: The candidates.
    """

    def __init__(self, positives: pl.LazyFrame, popularity: Popularity) -> None:
        rows = positives.drop_nulls(["user", "item", "time"])
        pairs = rows.group_by("user", "item").agg(pl.col("time").min()).collect(engine="streaming")
        codes_P = popularity.codes(pairs["item"])
        self._users, users_P = np.unique(pairs["user"].to_numpy(), return_inverse=True)
        self._times, moments_P = np.unique(pairs["time"].to_numpy(), return_inverse=True)
        self._candidates = len(popularity.candidates)
        candidate_P = codes_P >= 0
        users_P, moments_P, codes_P = users_P[candidate_P], moments_P[candidate_P], codes_P[candidate_P]
        in_time = np.lexsort((codes_P, moments_P, users_P))
        self._codes = codes_P[in_time]
        self._order = self._ordered(users_P, moments_P)[in_time]
        pair_P = users_P * self._candidates + codes_P
        by_pair = np.argsort(pair_P)
        self._pair, self._since = pair_P[by_pair], moments_P[by_pair]

    def _ordered(self, users: Ids, moments: Ids) -> Ids:
        """Numbers that order pairs by their user, then by their time."""
        return np.asarray(users * (len(self._times) + 1) + moments, np.int64)

    def known(self, users: pl.Series, times: pl.Series) -> Known:
        """What the users of N rows took strictly before these times; nothing where one of both is null."""
        given_N = (users.is_not_null() & times.is_not_null()).to_numpy()
        user_N, time_N = users.fill_null(0).to_numpy(), times.fill_null(0).to_numpy()
        place_N, found_N = find(self._users, user_N)
        moment_N = np.searchsorted(self._times, time_N)
        first_N = np.searchsorted(self._order, self._ordered(place_N, np.zeros_like(moment_N)))
        end_N = np.searchsorted(self._order, self._ordered(place_N, moment_N))
        return Known(place_N, moment_N, first_N, np.where(found_N & given_N, end_N - first_N, 0))

    def draw(self, uniform_N: Floats, known: Known) -> Ids:
        """(N,) codes of candidates, each of those known as likely as the others; every row must know some.

        Args:
            uniform_N: Numbers in [0, 1).
        """
        drawn_N = known.first + np.minimum((uniform_N * known.count).astype(np.int64), known.count - 1)
        return np.asarray(self._codes[drawn_N], np.int64)

    def holds(self, code_N: Ids, known: Known) -> npt.NDArray[np.bool_]:
        """(N,) whether each row knows its candidate; false for a code of -1."""
        if not len(self._pair):
            return np.zeros(len(code_N), bool)
        pair_N = np.where(code_N >= 0, known.users * self._candidates + code_N, -1)
        place_N = np.minimum(np.searchsorted(self._pair, pair_N), len(self._pair) - 1)
        earlier_N = self._since[place_N] < known.moments
        return np.asarray((self._pair[place_N] == pair_N) & earlier_N & (known.count > 0))
