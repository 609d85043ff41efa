"""All metrics by name. Evaluation, monitors, studies, baselines and reports read them from here."""

from collections.abc import Callable, Collection
from functools import partial

from data_pipelines.config.base import same_definition
from models.layers.heads import TaskKind
from recsys.metrics.binary import AUC, CALIBRATION, CALIBRATION_ERROR, LOG_LOSS, NORMALIZED_ENTROPY
from recsys.metrics.grouped import GAUC, LIST_METRICS, MRR, RANKING
from recsys.metrics.metric import Metric
from recsys.metrics.regression import POISSON_DEVIANCE, RMSE
from recsys.metrics.rows import GroupKind

EVERY: frozenset[GroupKind] = frozenset({"users", "lists"})
"""All that metrics may be computed within."""

_METRICS: dict[str, Metric] = {}


def register(metric: Metric) -> Metric:
    """Make ``metric`` known under its name: it is measured, can be monitored, and can be named by studies from then on.

    Call it before a config that names the metric is read.

    Raises:
        ValueError: A metric of another function has this name.

    Example:
        >>> import numpy as np
        >>> def hinge(labels_N, logits_N, weights_N=None):
        ...     return float(np.average(np.maximum(0, 1 - (2 * labels_N - 1) * logits_N), weights=weights_N))
        >>> rs.register_metric(rs.Metric("hinge", "hinge loss", {"binary"}, hinge, better="lower")).name
        'hinge'
    """
    known = _METRICS.get(metric.name, metric)
    if not same_definition(_function(known), _function(metric)):
        raise ValueError(f"a metric {metric.name!r} is registered already: give the new one another name")
    _METRICS[metric.name] = metric
    return metric


def _function(metric: Metric) -> Callable[..., float]:
    """The function of a metric, without arguments that are bound to it."""
    function = metric.value
    while isinstance(function, partial):
        function = function.func
    return function


def find_metric(name: str) -> Metric | None:
    """The metric of this name; ``None`` if there is none."""
    return _METRICS.get(name)


def get_metric(name: str) -> Metric:
    """The metric of this name.

    Raises:
        KeyError: There is none.
    """
    return _METRICS[name]


def metric_names() -> list[str]:
    """The names of all metrics, in the order of registration."""
    return list(_METRICS)


def metrics_of(kind: TaskKind, *, groups: Collection[GroupKind] = EVERY) -> list[Metric]:
    """The metrics of tasks of ``kind``, the main one first; of those within groups only the ones within ``groups``."""
    return [m for m in _METRICS.values() if kind in m.kinds and (m.within is None or m.within in groups)]


def headline_metrics(kind: TaskKind, *, groups: Collection[GroupKind] = EVERY) -> list[Metric]:
    """Those of :func:`metrics_of` that tables show."""
    return [metric for metric in metrics_of(kind, groups=groups) if metric.headline]


def main_metric(kind: TaskKind) -> Metric:
    """The metric by which models of a task of ``kind`` are chosen and ranked unless a config says otherwise.

    AUC of binary tasks, RMSE of regressions, Poisson deviance of counts.
    """
    return metrics_of(kind)[0]


for _metric in (
    AUC,
    GAUC,
    LOG_LOSS,
    NORMALIZED_ENTROPY,
    CALIBRATION,
    CALIBRATION_ERROR,
    MRR,
    *RANKING,
    *LIST_METRICS,
    POISSON_DEVIANCE,
    RMSE,
):
    register(_metric)
