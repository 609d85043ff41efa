"""The monitor of early stopping and searches: a weighted sum of metrics of the valid split."""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np

from data_pipelines.errors import UserError
from models.layers.heads import TaskKind
from recsys.evaluation.derived import Derived
from recsys.metrics.arrays import Floats
from recsys.metrics.metric import Metric
from recsys.metrics.registry import find_metric, metrics_of
from recsys.metrics.rows import GroupKind, RowFacts

Term = tuple[str, Metric]
"""A task, or an entry that is derived from tasks, and a metric of it."""


@dataclass(frozen=True)
class Monitor:
    """A weighted sum of metrics; larger is better.

    Attributes:
        weights: ``train.monitor``: weights by key.
        terms: By key, the metrics whose mean the key stands for.
    """

    weights: Mapping[str, float]
    terms: Mapping[str, tuple[Term, ...]]

    @staticmethod
    def of(
        weights: Mapping[str, float],
        kinds: Mapping[str, TaskKind],
        *,
        groups: Collection[GroupKind],
        besides: Mapping[str, Sequence[Metric]] = MappingProxyType({}),
    ) -> "Monitor":
        """The monitor that a config asks for.

        Args:
            weights: Weights by key: a metric (its mean over the tasks that have it), ``<task>/<metric>``, or
                ``<entry>/<metric>``.
            kinds: Kinds of the tasks by name.
            groups: What metrics can be computed within.
            besides: The metrics of what is derived from the tasks, by entry
                (:func:`~recsys.evaluation.derived.derived_metrics`).

        Raises:
            UserError: A key is not a metric of these tasks, or its weight has the wrong sign.
        """
        terms = {}
        for key, weight in weights.items():
            task, _, name = key.rpartition("/")
            metric = find_metric(name)
            wanted = {t: kind for t, kind in kinds.items() if task in ("", t)}
            tasks = [t for t, kind in wanted.items() if metric is not None and kind in metric.kinds]
            tasks += [entry for entry, metrics in besides.items() if entry == task and metric in metrics]
            if metric is None or not tasks:
                known = [f"{t}/{m.name}" for t, kind in kinds.items() for m in metrics_of(kind, groups=groups)]
                there = [(entry, m) for entry, metrics in besides.items() for m in metrics]
                known += [f"{entry}/{m.name}" for entry, m in there if missing_groups(m, groups) is None]
                raise UserError(f"train.monitor.{key}: there is no such metric; there are {', '.join(known)}.")
            if missing := missing_groups(metric, groups):
                raise UserError(f"train.monitor.{key}: {metric.label} needs {missing}: add it.")
            if (weight < 0) != (metric.better == "lower"):
                sign = "negative" if metric.better == "lower" else "positive"
                raise UserError(
                    f"train.monitor.{key} is {weight:g}: {metric.better} values of {metric.label} are better, and the "
                    f"largest monitored value wins: give it a {sign} weight."
                )
            terms[key] = tuple((t, metric) for t in tasks)
        return Monitor(weights, terms)

    @property
    def names(self) -> frozenset[str]:
        """The names of the metrics that have to be measured."""
        return frozenset(metric.name for terms in self.terms.values() for _, metric in terms)

    @property
    def entries(self) -> frozenset[str]:
        """The names of the tasks, and of what is derived from them, that are monitored."""
        return frozenset(task for terms in self.terms.values() for task, _ in terms)

    def defined_on(
        self,
        split: str,
        kinds: Mapping[str, TaskKind],
        labels_NT: Floats,
        facts: Mapping[str, RowFacts],
        besides: Iterable[Derived] = (),
    ) -> tuple["Monitor", list[str]]:
        """The monitor without metrics that are undefined on these rows, and one sentence about each.

        Args:
            split: The name of the rows, for the sentences.
            kinds: Kinds of the tasks by name, in the order of the columns of ``labels_NT``.
            labels_NT: Labels, NaN where a row has none.
            facts: Users, lists and weights by task.
            besides: What is derived from the tasks on these rows.

        Raises:
            UserError: Nothing would be left.
        """
        judged: dict[str, tuple[TaskKind, Floats, RowFacts]] = {
            task: (kind, labels_NT[:, t], facts.get(task, RowFacts())) for t, (task, kind) in enumerate(kinds.items())
        }
        judged |= {part.name: ("binary", part.labels_N, part.facts) for part in besides}
        notes: list[str] = []
        kept: dict[str, tuple[Term, ...]] = {}
        for key, terms in self.terms.items():
            defined = []
            for task, metric in terms:
                reason: str | None = "the formula of the labels is negative, NaN or infinite for a row"
                if task in judged:
                    reason = why_undefined(metric, *judged[task])
                whose = "task" if task in kinds else "entry"
                if reason is None:
                    defined.append((task, metric))
                else:
                    notes.append(
                        f"train.monitor.{key} leaves out {metric.label} of {whose} {task}, which is undefined on the "
                        f"{split} split: {reason}."
                    )
            if defined:
                kept[key] = tuple(defined)
        if not kept:
            raise UserError(
                f"{' '.join(notes)} Nothing is left to monitor: choose a metric that these rows define, such as "
                "logloss: -1, or a split with rows of both classes."
            )
        return replace(self, weights={key: self.weights[key] for key in kept}, terms=kept), notes

    def value(self, tasks: Mapping[str, Mapping[str, float]]) -> float:
        """The monitored value of these metrics (by task or entry, then by name); NaN if one of them is undefined."""
        total = 0.0
        for key, terms in self.terms.items():
            values = [
                tasks[task][m.name] if m.better != "closest to 1" else m.goodness(tasks[task][m.name])
                for task, m in terms
            ]
            total += self.weights[key] * float(np.mean(values))
        return total


def shown_value(weights: Mapping[str, float], value: float) -> str:
    """A monitored value as text: the metric itself where only one is monitored.

    Args:
        weights: ``train.monitor``.
        value: As :meth:`Monitor.value` gives it.

    Example:
        >>> shown_value({"logloss": -1}, -0.1269)
        'logloss 0.12690'
    """
    [(key, weight), *others] = weights.items()
    metric = find_metric(key.rpartition("/")[2])
    if others or metric is None or metric.better == "closest to 1":
        return f"monitored value {value:.5f}"
    return f"{key} {value / weight:.5f}"


def missing_groups(metric: Metric, groups: Collection[GroupKind]) -> str | None:
    """The key that the data lacks to compute ``metric`` within its groups; ``None`` if it lacks none."""
    if metric.within is None or metric.within in groups:
        return None
    return "data.user, the column of users" if metric.within == "users" else "data.group, the columns of a list"


def why_undefined(metric: Metric, kind: TaskKind, labels_N: Floats, facts: RowFacts) -> str | None:
    """Why ``metric`` is undefined on these rows; ``None`` if it is defined.

    Args:
        metric: Of a task of ``kind``.
        kind: Of the task.
        labels_N: Labels, NaN where a row has none.
        facts: Users, lists and weights of the rows.
    """
    labelled_N = ~np.isnan(labels_N)
    labels_N = labels_N[labelled_N]
    if not len(labels_N):
        return "no row has a label"
    facts = facts.take(labelled_N)
    if facts.weights_N is not None and not facts.weights_N.sum() > 0:
        return "the weights of its rows sum to 0"
    scores_N = np.random.default_rng(0).normal(size=len(labels_N))
    if not math.isnan(metric.measure(kind, labels_N, scores_N, facts.groups(metric.within), facts.weights_N)):
        return None
    if kind == "binary" and labels_N.min() == labels_N.max():
        return f"all {len(labels_N):,} labels are {labels_N[0]:g}"
    whose = {"users": "no user has rows of both classes", "lists": "no list has rows of both classes"}
    return "these labels do not define it" if metric.within is None else whose[metric.within]
