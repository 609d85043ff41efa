"""The distribution that negatives are drawn from: uniform, by popularity, or by popularity at the time of the row.

Letters: N draws, C candidates, E pairs of a period and a candidate.
"""

import numpy as np
import numpy.typing as npt
import polars as pl

from data_pipelines.config.learning import Sampling
from data_pipelines.errors import UserError
from data_pipelines.features.values import MICROSECONDS

_OVERALL = 0.1
"""Share of the draws that ignore the period, so that every candidate can be drawn at any time."""

Ids = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


class Popularity:
    """Chances of candidates to be drawn.

    With ``sampling.window``, a row draws from the latest period that has training rows and ended before the row's own
    period began.

    Args:
        config: The key ``data.sampling``.
        train: ``item`` of each training row that has one; with ``sampling.window`` also ``time`` in microseconds.

    Attributes:
        candidates: ``item``, its ``count`` in training, and ``log_q``: the log of its chance to be drawn, whatever the
            time. In descending order of the count.

    Raises:
        UserError: There are fewer than two candidates.
    """

    def __init__(self, config: Sampling, train: pl.LazyFrame) -> None:
        self._exponent = config.exponent if config.by == "popularity" else 0.0
        counts = train.group_by("item").agg(count=pl.len()).collect(engine="streaming")
        counts = counts.sort("count", "item", descending=[True, False])
        if counts.height < 2:
            raise UserError("`sampling` needs at least two distinct items in the training split.")
        weight_C = counts["count"].to_numpy().astype(np.float64) ** self._exponent
        self._chance_C = weight_C / weight_C.sum()
        self._cumulative_C = np.cumsum(weight_C)
        self.candidates = counts.with_columns(log_q=pl.Series(np.log(self._chance_C)))
        self._codes = counts.select("item", code=pl.int_range(pl.len(), dtype=pl.Int64))
        self._window = None if config.window is None else max(1, round(config.window * MICROSECONDS))
        if self._window is not None:
            self._count_periods(train, self._window)

    def _count_periods(self, train: pl.LazyFrame, window: int) -> None:
        counts = (
            train.group_by("item", period=pl.col("time") // window)
            .agg(count=pl.len())
            .join(self._codes.lazy(), on="item")
            .sort("period", "code")
            .collect(engine="streaming")
        )
        weight_E = counts["count"].to_numpy().astype(np.float64) ** self._exponent
        period_E = counts["period"].to_numpy()
        self._code_E = counts["code"].to_numpy()
        self._periods, starts = np.unique(period_E, return_index=True)
        self._starts = np.append(starts, len(period_E))
        self._sums_E = np.concatenate([[0.0], np.cumsum(weight_E)])
        self._pair_E = np.searchsorted(self._periods, period_E) * len(self._codes) + self._code_E

    def codes(self, items: pl.Series) -> Ids:
        """(N,) positions among the candidates; -1 for items that are not candidates."""
        found = items.alias("item").to_frame().join(self._codes, on="item", how="left", maintain_order="left")
        return found["code"].fill_null(-1).to_numpy()

    def periods(self, times: pl.Series | None) -> Ids | None:
        """(N,) the period that rows at these times draw from, -1 where there is none; ``None`` without a window."""
        if self._window is None:
            return None
        assert times is not None
        own_N = times.to_numpy() // self._window
        return np.searchsorted(self._periods, own_N).astype(np.int64) - 1

    def draw(self, uniform_N: Floats, period_N: Ids | None) -> Ids:
        """(N,) codes of candidates.

        Args:
            uniform_N: Numbers in [0, 1).
            period_N: As :meth:`periods` gives them.
        """
        if period_N is None:
            return self._draw_overall(uniform_N)
        overall_N = (uniform_N < _OVERALL) | (period_N < 0)
        within_N = np.where(uniform_N < _OVERALL, uniform_N / _OVERALL, (uniform_N - _OVERALL) / (1 - _OVERALL))
        codes_N = np.empty(len(uniform_N), np.int64)
        codes_N[overall_N] = self._draw_overall(within_N[overall_N])
        period = period_N[~overall_N]
        first, last = self._starts[period], self._starts[period + 1]
        low, high = self._sums_E[first], self._sums_E[last]
        place = np.searchsorted(self._sums_E, low + within_N[~overall_N] * (high - low), side="right") - 1
        codes_N[~overall_N] = self._code_E[np.clip(place, first, last - 1)]
        return codes_N

    def _draw_overall(self, uniform_N: Floats) -> Ids:
        found: Ids = np.searchsorted(self._cumulative_C, uniform_N * self._cumulative_C[-1], side="right")
        return found

    def log_q(self, code_N: Ids, period_N: Ids | None) -> npt.NDArray[np.float32]:
        """(N,) the log of how many times as likely as by a uniform draw each item is drawn.

        An item that is not a candidate counts as the least likely one.
        """
        known_N = code_N >= 0
        chance_N = np.where(known_N, self._chance_C[np.maximum(code_N, 0)], self._chance_C.min())
        if period_N is not None:
            pair_N = np.where(known_N & (period_N >= 0), period_N * len(self._codes) + code_N, -1)
            place_N = np.minimum(np.searchsorted(self._pair_E, pair_N), len(self._pair_E) - 1)
            sums_N = self._sums_E[self._starts[period_N + 1]] - self._sums_E[self._starts[np.maximum(period_N, 0)]]
            weight_N = np.where(self._pair_E[place_N] == pair_N, np.diff(self._sums_E)[place_N], 0.0)
            within_N = np.divide(weight_N, sums_N, out=np.zeros(len(code_N)), where=sums_N > 0)
            chance_N = np.where(period_N < 0, chance_N, _OVERALL * chance_N + (1 - _OVERALL) * within_N)
        relative_N: npt.NDArray[np.float32] = np.log(chance_N * len(self._codes)).astype(np.float32)
        return relative_N
