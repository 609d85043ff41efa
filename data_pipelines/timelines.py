"""Rows put in order by key and time, so that "strictly earlier, same key" is a range.

Keys are 64-bit hashes of canonical values: among a million keys, two collide about once in 40 million logs.

Letters: N rows of a timeline.
"""

from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import polars as pl

MINUTE = 60_000_000
"""Microseconds."""

Int64s = npt.NDArray[np.int64]
Keys = npt.NDArray[np.uint64]

Values = TypeVar("Values", bound=npt.NDArray[Any])


@dataclass(frozen=True)
class Timeline:
    """N rows sorted by (key, time, row).

    Attributes:
        order: (N,) the rows, in order.
        first: (N,) for each place in the order, the first place of the same key.
        tie: (N,) for each place, the first place of the same key and time: ``first:tie`` is strictly earlier.
        times: (N,) in order.
    """

    order: Int64s
    first: Int64s
    tie: Int64s
    times: Int64s

    @staticmethod
    def of(keys: Keys, times: Int64s) -> "Timeline":
        """The timeline of rows that come in the order of the log."""
        same = keys[1:] == keys[:-1]
        if np.all((keys[1:] > keys[:-1]) | (same & (times[1:] >= times[:-1]))):
            order = np.arange(len(keys))
        else:
            order = np.argsort(times, kind="stable")  # fast if the log is sorted by time
            order = order[_order(keys[order])]
            keys, times = keys[order], times[order]
        new_key = np.ones(len(order), bool)
        new_key[1:] = keys[1:] != keys[:-1]
        new_time = new_key.copy()
        new_time[1:] |= times[1:] != times[:-1]
        return Timeline(order, _last_true(new_key), _last_true(new_time), times)

    def arranged(self, rows: pl.DataFrame) -> pl.DataFrame:
        """``rows``, which come in the order of the log, in the order of the timeline."""
        places = np.arange(len(self.order))
        return rows if np.array_equal(self.order, places) else rows[self.order]

    def in_log_order(self, values: Values) -> Values:
        """(N,) ``values``, which are in the order of the timeline, in the order of the log."""
        rows: Values = np.empty_like(values)
        rows[self.order] = values
        return rows

    def until(self, delay: int) -> Int64s:
        """(N,) the first place of the same key that is not more than ``delay`` before the place: ``first:until`` is."""
        return self.tie if delay == 0 else bisect(self.times, self.first, self.tie, self.times - delay)

    def since(self, window: int) -> Int64s:
        """(N,) the first place of the same key whose time is at most ``window`` before that of the place."""
        return bisect(self.times, self.first, self.tie, self.times - window)

    def last_places(self) -> Int64s:
        """The last place of each key."""
        return np.flatnonzero(np.append(self.first[1:] != self.first[:-1], True)) if len(self.order) else self.order


def _order(keys: Keys) -> Int64s:
    """The positions of ``keys`` in sorted order; the sort is stable."""
    least, most = int(keys.min()), int(keys.max())
    leading = (keys - np.uint64(least)) >> np.uint64(max(0, (most - least).bit_length() - 16))
    order = np.argsort(leading.astype(np.uint16), kind="stable")  # NumPy uses a radix sort for 16 bits
    order = order[np.argsort(keys[order], kind="stable")]  # merges the few runs that are left
    return order


def _last_true(marks: npt.NDArray[np.bool_]) -> Int64s:
    """(N,) for each place, the last marked place at or before it; the first place is always marked."""
    marked = np.flatnonzero(marks)
    return np.repeat(marked, np.diff(marked, append=len(marks)))


def running(values: Int64s) -> Int64s:
    """(N + 1,) sums of all values before each place: the sum over places a:b is ``s[b] - s[a]``, exact in integers."""
    sums = np.zeros(len(values) + 1, np.int64)
    np.cumsum(values, out=sums[1:])
    return sums


def bisect(times: Int64s, low: Int64s, high: Int64s, bounds: Int64s) -> Int64s:
    """For each range ``low:high`` of ``times`` (rising inside it), the first place whose time is at least the bound."""
    low, high = low.copy(), high.copy()
    while (open_ := low < high).any():
        middle = (low + high) // 2
        earlier = open_ & (times[np.where(open_, middle, 0)] < bounds)
        low = np.where(earlier, middle + 1, low)
        high = np.where(open_ & ~earlier, middle, high)
    return low


def find(keys: Keys, wanted: Keys) -> tuple[Int64s, npt.NDArray[np.bool_]]:
    """The position of each wanted key in sorted distinct ``keys`` (0 if it is missing), and whether it is there."""
    places = np.minimum(np.searchsorted(keys, wanted), max(len(keys) - 1, 0))
    found = keys[places] == wanted if len(keys) else np.zeros(len(wanted), bool)
    return np.where(found, places, 0), found
