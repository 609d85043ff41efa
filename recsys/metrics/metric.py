"""Metrics: one object per metric, which every table, monitor, study and report reads.

Letters: N rows, R bootstrap draws.
"""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy.special import expit

from models.layers.heads import TaskKind
from recsys.metrics.arrays import Floats, Groups
from recsys.metrics.bootstrap import Resampling
from recsys.metrics.rows import GroupKind, RowFacts
from serving.columns import VALUES

Better = Literal["higher", "lower", "closest to 1"]
"""Which values of a metric are better."""

Influence = tuple[float, Floats]
"""A metric's value, and (N,) how much each row moves it."""


@dataclass(frozen=True)
class Metric:
    """A metric of the rows of one task.

    Only ``name``, ``label``, ``kinds`` and ``value`` are needed. Without ``draws`` the bootstrap calls ``value`` once
    per draw; a metric that is a ratio of sums gets there with one matrix product
    (:meth:`~recsys.metrics.bootstrap.Resampling.ratio`).

    Args:
        name: Its key in configs, JSON and tables, such as ``auc``.
        label: Its name in pages and tables, such as ``AUC``.
        kinds: The kinds of tasks it is for: ``binary``, ``regression``, ``count``, ``duration``, ``ordinal``.
        value: ``value(labels_N, outputs_N, weights_N)``, or with ``needs_groups``
            ``value(labels_N, outputs_N, groups_N, weights_N)``. ``weights_N`` (or ``None``) counts a row that many
            times. NaN where the metric is undefined: one class only, no rows.
        better: Which values are better.
        needs_groups: Whether it is computed within groups of rows.
        groups: Which groups those are: the rows of each of the ``users``, or the ``lists`` of ``data.group``.
        reads: What ``outputs_N`` is: the ``logits`` that the ranker gives, or ``predictions``: probabilities of binary
            tasks, values of regressions, rates of counts, expected levels of ordinal ones.
        routine: Measured at every evaluation during training. Others are measured there only if ``train.monitor``
            names them, and by ``recsys evaluate`` always.
        headline: Shown in tables that compare models.
        draws: ``draws(labels_N, outputs_N, resampling)``, (R,) values under the bootstrap.
        influence: ``influence(labels_N, outputs_N, weights_N)``, the value and (N,) influence of each row, from which a
            closed form gives the variance.

    Example:
        >>> import numpy as np
        >>> def brier(labels_N, probabilities_N, weights_N=None):
        ...     return float(np.average((probabilities_N - labels_N) ** 2, weights=weights_N))
        >>> metric = Metric("brier", "Brier score", {"binary"}, brier, better="lower", reads="predictions")
        >>> metric.measure("binary", np.array([0.0, 1.0]), np.array([0.0, 0.0]))
        0.25
    """

    name: str
    label: str
    kinds: Collection[TaskKind]
    value: Callable[..., float]
    better: Better = "higher"
    needs_groups: bool = False
    groups: GroupKind = "users"
    reads: Literal["logits", "predictions"] = "logits"
    routine: bool = True
    headline: bool = False
    draws: Callable[[Floats, Floats, Resampling], Floats] | None = None
    influence: Callable[[Floats, Floats, Floats | None], Influence] | None = None

    @property
    def within(self) -> GroupKind | None:
        """The groups that it is computed within; ``None`` if it needs none."""
        return self.groups if self.needs_groups else None

    def measure(
        self,
        kind: TaskKind,
        labels_N: Floats,
        logits_N: Floats,
        groups_N: Groups | None = None,
        weights_N: Floats | None = None,
    ) -> float:
        """The metric of a task of ``kind``; NaN where it is undefined.

        Raises:
            ValueError: It needs groups, and there are none.
        """
        outputs_N = self.outputs(kind, logits_N)
        if not self.needs_groups:
            return self.value(labels_N, outputs_N, weights_N)
        if groups_N is None:
            raise ValueError(f"{self.label} needs groups")
        return self.value(labels_N, outputs_N, groups_N, weights_N)

    def resample(self, kind: TaskKind, labels_N: Floats, logits_N: Floats, resampling: Resampling) -> Floats:
        """(R,) the metric under each draw of ``resampling``; NaN where a draw leaves it undefined."""
        outputs_N = self.outputs(kind, logits_N)
        if self.draws is not None:
            return self.draws(labels_N, outputs_N, resampling)
        groups: list[Any] = [resampling.groups(self.groups)] if self.needs_groups else []
        return resampling.apply(lambda weights_N: self.value(labels_N, outputs_N, *groups, weights_N))

    def outputs(self, kind: TaskKind, logits_N: Floats) -> Floats:
        """What the metric reads: the logits, or the predictions they stand for."""
        return logits_N if self.reads == "logits" else predictions_of(kind, logits_N)

    def goodness(self, value: float) -> float:
        """``value`` on a scale on which larger is better: to choose, to rank, to stop by."""
        if self.better == "closest to 1":
            return -abs(value - 1)
        return -value if self.better == "lower" else value


def measure_all(
    metrics: Iterable[Metric], kind: TaskKind, labels_N: Floats, logits_N: Floats, facts: RowFacts
) -> dict[str, float]:
    """Metrics of one task by name, over the rows that have a label (others hold NaN)."""
    labelled_N = ~np.isnan(labels_N)
    labels_N, logits_N, facts = labels_N[labelled_N], logits_N[labelled_N], facts.take(labelled_N)
    return {m.name: m.measure(kind, labels_N, logits_N, facts.groups(m.within), facts.weights_N) for m in metrics}


def predictions_of(kind: TaskKind, logits_N: Floats) -> Floats:
    """(N,) the predictions that logits stand for: probabilities, rates of counts, or values and expected levels."""
    if kind in VALUES:
        return logits_N
    return np.asarray(expit(logits_N.astype(np.float64)) if kind == "binary" else np.exp(logits_N))
