"""What is measured besides the tasks: tasks given the one that they come after, and the order of the score.

Letters: N rows, T tasks.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from data_pipelines.config.learning import Task
from recsys.metrics.arrays import Floats
from recsys.metrics.binary import AUC
from recsys.metrics.metric import Metric, measure_all
from recsys.metrics.registry import metrics_of
from recsys.metrics.rows import RowFacts
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
        outputs_N: Logits of a conditional probability, or the score.
        facts: Users, lists and weights of the rows.
        metrics: What is measured.
    """

    name: str
    labels_N: Floats
    outputs_N: Floats
    facts: RowFacts
    metrics: Sequence[Metric]

    def measure(self) -> dict[str, float]:
        """The metrics by name."""
        return measure_all(self.metrics, "binary", self.labels_N, self.outputs_N, self.facts)


def scores_of(tasks: Mapping[str, Task], logits_NT: Floats, score: Formula) -> Floats:
    """(N,) the score of rows by the predictions that their logits stand for, which are not calibrated."""
    return Outputs(tasks, {}, score=score)(logits_NT.astype(np.float32))[SCORE]


def derived(
    tasks: Mapping[str, Task],
    labels_NT: Floats,
    logits_NT: Floats,
    facts: Mapping[str, RowFacts],
    score: Formula | None,
) -> Iterator[Derived]:
    """What is measured besides the tasks.

    A task with ``after`` is measured as ``<task>:conditional`` on the rows where the other one happened. With a formula
    the order of its score is measured against the labels of each binary task (``score/<task>``), and against what
    the formula gives for the labels themselves (``score``), where that is a gain: finite and not negative.

    Args:
        tasks: By name, in the order of the columns.
        labels_NT: Labels, NaN where a row has none.
        logits_NT: The ranker's.
        facts: Users, lists and weights of the rows, by task.
        score: The formula by which rows are ranked, if there is one.
    """
    at = {name: t for t, name in enumerate(tasks)}
    for name, task in tasks.items():
        if task.after is not None:
            given_N = np.where(labels_NT[:, at[task.after]] == 1, labels_NT[:, at[name]], np.nan)
            logits_N = conditional_logits(logits_NT[:, at[name]], logits_NT[:, at[task.after]])
            metrics = metrics_of("binary", groups=facts[name].kinds)
            yield Derived(f"{name}{CONDITIONAL}", given_N, logits_N, facts[name], metrics)
    if score is None:
        return
    scores_N = scores_of(tasks, logits_NT, score).astype(np.float64)
    for name, task in tasks.items():
        if task.kind == "binary":
            order = [AUC, *(m for m in metrics_of("binary", groups=facts[name].kinds) if m.within is not None)]
            yield Derived(f"{SCORE}/{name}", labels_NT[:, at[name]].astype(np.float64), scores_N, facts[name], order)
    gains_N = score({name: labels_NT[:, at[name]] for name in score.names}).astype(np.float64)
    there_N = np.logical_and.reduce([~np.isnan(labels_NT[:, at[name]]) for name in score.names])
    if np.isfinite(gains_N[there_N]).all() and (gains_N[there_N] >= 0).all():
        own = facts[score.names[0]]
        of_gains = [m for m in metrics_of("binary", groups=own.kinds) if m.name.partition("@")[0] in _OF_GAINS]
        if of_gains:
            yield Derived(SCORE, np.where(there_N, gains_N, np.nan), scores_N, own, of_gains)


def conditional_logits(logits_N: Floats, first_N: Floats) -> Floats:
    """(N,) logits of the probability of a task given the one it comes after, from their logits over all rows.

    With ``p = q r``, ``1 / r - 1 = (exp(-z) - exp(-a)) / (1 + exp(-a))`` for the logits ``z`` of ``p`` and ``a`` of
    ``q``. The inverse of :func:`models.layers.chains.logit_of_product` in its first argument.
    """
    z_N, a_N = logits_N.astype(np.float64), first_N.astype(np.float64)
    ahead_N = np.maximum(a_N - z_N, 1e-7)
    return np.asarray(np.logaddexp(0, a_N) - (ahead_N + np.log(-np.expm1(-ahead_N))))
