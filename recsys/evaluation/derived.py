"""What is measured besides the tasks: tasks given the one that they come after, and the order of the score.

Letters: N rows, T tasks.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from data_pipelines.config.learning import Task
from recsys.metrics.arrays import Floats
from recsys.metrics.binary import AUC
from recsys.metrics.metric import Metric, measure_all
from recsys.metrics.registry import metrics_of
from recsys.metrics.rows import GroupKind, RowFacts
from serving.artifact.outputs import Outputs
from serving.columns import CONDITIONAL
from serving.formula import SCORE, Formula

_OF_GAINS = ("ndcg", "recall", "list_ndcg", "list_recall")
"""The metrics that are meaningful for labels other than 0 and 1."""


@dataclass(frozen=True)
class Derived:
    """Labels, and what rows are judged by.

    Attributes:
        name: Of the entry beside the tasks.
        labels_N: NaN where a row does not count.
        outputs: From the logits (N, T) of the tasks to logits (N,) of a conditional probability, or to the score.
        facts: Users, lists and weights of the rows.
        metrics: What is measured.
    """

    name: str
    labels_N: Floats
    outputs: Callable[[Floats], Floats]
    facts: RowFacts
    metrics: Sequence[Metric]

    def measure(self, logits_NT: Floats) -> dict[str, float]:
        """The metrics by name; NaN if the score of a row is NaN or infinite."""
        outputs_N = self.outputs(logits_NT)
        if not np.isfinite(outputs_N).all():
            return {metric.name: float("nan") for metric in self.metrics}
        return measure_all(self.metrics, "binary", self.labels_N, outputs_N, self.facts)


def scores_of(tasks: Mapping[str, Task], logits_NT: Floats, score: Formula) -> Floats:
    """(N,) the score of rows by the predictions that their logits stand for, which are not calibrated."""
    return Outputs(tasks, {}, score=score)(logits_NT.astype(np.float32))[SCORE]


def derived_metrics(
    tasks: Mapping[str, Task], score: Formula | None, *, groups: Collection[GroupKind]
) -> dict[str, list[Metric]]:
    """What is measured besides the tasks: the metrics of each entry of :func:`derived`.

    Args:
        tasks: By name.
        score: The formula by which rows are ranked, if there is one.
        groups: What metrics can be computed within.
    """
    binary = metrics_of("binary", groups=groups)
    found = {f"{name}{CONDITIONAL}": binary for name, task in tasks.items() if task.after is not None}
    if score is None:
        return found
    order = [AUC, *(m for m in binary if m.within is not None)]
    found |= {f"{SCORE}/{name}": order for name, task in tasks.items() if task.kind == "binary"}
    of_gains = [m for m in binary if m.name.partition("@")[0] in _OF_GAINS]
    return found | ({SCORE: of_gains} if of_gains else {})


def derived(
    tasks: Mapping[str, Task], labels_NT: Floats, facts: Mapping[str, RowFacts], score: Formula | None
) -> Iterator[Derived]:
    """What is measured besides the tasks.

    A task with ``after`` is measured as ``<task>:conditional`` on the rows where the other one happened. With a formula
    the order of its score is measured against the labels of each binary task (``score/<task>``), and against what
    the formula gives for the labels themselves (``score``), where that is a gain: finite and not negative.

    Args:
        tasks: By name, in the order of the columns.
        labels_NT: Labels, NaN where a row has none.
        facts: Users, lists and weights of the rows, by task.
        score: The formula by which rows are ranked, if there is one.
    """
    metrics = derived_metrics(tasks, score, groups=next(iter(facts.values())).kinds)
    column = {name: labels_NT[:, t].astype(np.float64) for t, name in enumerate(tasks)}
    for name, task in tasks.items():
        entry = f"{name}{CONDITIONAL}"
        if task.after is not None:
            given_N = np.where(column[task.after] == 1, column[name], np.nan)
            at, first = list(tasks).index(name), list(tasks).index(task.after)
            yield Derived(entry, given_N, partial(_conditional, at, first), facts[name], metrics[entry])
    if score is None:
        return
    scores = partial(_scores, tasks, score)
    for name in tasks:
        if (entry := f"{SCORE}/{name}") in metrics:
            yield Derived(entry, column[name], scores, facts[name], metrics[entry])
    gains_N = score({name: column[name] for name in score.names}).astype(np.float64)
    there_N = np.logical_and.reduce([~np.isnan(column[name]) for name in score.names])
    if SCORE in metrics and np.isfinite(gains_N[there_N]).all() and (gains_N[there_N] >= 0).all():
        labels_N = np.where(there_N, gains_N, np.nan)
        yield Derived(SCORE, labels_N, scores, facts[score.names[0]], metrics[SCORE])


def _conditional(task: int, first: int, logits_NT: Floats) -> Floats:
    return conditional_logits(logits_NT[:, task], logits_NT[:, first])


def _scores(tasks: Mapping[str, Task], score: Formula, logits_NT: Floats) -> Floats:
    return scores_of(tasks, logits_NT, score).astype(np.float64)


def conditional_logits(logits_N: Floats, first_N: Floats) -> Floats:
    """(N,) logits of the probability of a task given the one it comes after, from their logits over all rows.

    With ``p = q r``, ``1 / r - 1 = (exp(-z) - exp(-a)) / (1 + exp(-a))`` for the logits ``z`` of ``p`` and ``a`` of
    ``q``. The inverse of :func:`models.layers.outcomes.chains.logit_of_product` in its first argument.
    """
    z_N, a_N = logits_N.astype(np.float64), first_N.astype(np.float64)
    ahead_N = np.maximum(a_N - z_N, 1e-7)
    return np.asarray(np.logaddexp(0, a_N) - (ahead_N + np.log(-np.expm1(-ahead_N))))
