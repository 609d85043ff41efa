"""Comparison of a model with simple models that were trained on the same rows.

Letters: N rows, R bootstrap draws.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from data_pipelines.dataset.dataset import Dataset
from data_pipelines.errors import UserError
from models.layers.heads import TaskKind
from recsys.evaluation.baselines.base import Fitted
from recsys.evaluation.baselines.measure import FITS
from recsys.evaluation.comparison import Measured, TestRows
from recsys.evaluation.evaluate import facts_of, mean_label
from recsys.evaluation.monitor import why_undefined
from recsys.metrics.arrays import Floats
from recsys.metrics.binary import LOG_LOSS
from recsys.metrics.bootstrap import interval
from recsys.metrics.metric import Metric
from recsys.metrics.registry import find_metric, main_metric
from serving.artifact.card import Value
from serving.columns import VALUES

BASE_RATE = "base_rate"
"""The baseline that predicts the mean label of the training rows for every row."""
QUICK = ("popularity", "linear", "lightgbm")
"""Baselines that are compared with unless others are asked for."""
MOST_ROWS = 2_000_000
"""Training rows up to which :data:`QUICK` baselines are trained without being asked for."""
_LEAST = 1e-12


class Difference(BaseModel):
    """A metric of a baseline, and the difference of the model to it.

    Attributes:
        baseline: The metric of the baseline.
        difference: The model's metric minus the baseline's.
        low, high: 95% interval of the difference, of draws that both share (a paired bootstrap over users).
        verdict: Whether the model is better or worse outside the interval, or level within it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    baseline: Value
    difference: Value
    low: Value
    high: Value
    verdict: Literal["better", "level", "worse"]


class Standing(BaseModel):
    """Where a model stands on one split, by its first task.

    Attributes:
        split: The split.
        task: The task.
        main: Name of the metric that decides.
        against: Differences by baseline, then by metric, the main metric first.
        note: Which baselines are missing, and why; empty if none is.
        hint: What to do if the model loses to a baseline; otherwise empty.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    split: str
    task: str
    main: str
    against: dict[str, dict[str, Difference]]
    note: str = ""
    hint: str = ""

    @property
    def lost_to(self) -> list[str]:
        """Baselines that are better outside the interval, by the main metric or any other, the strongest first.

        Those that are better by the main metric come before all others.
        """
        lost = [name for name, figures in self.against.items() if "worse" in _verdicts(figures)]
        gaps = {name: self.against[name][self.main] for name in lost}
        return sorted(lost, key=lambda name: (gaps[name].verdict != "worse", -abs(gaps[name].difference)))

    def lines(self) -> dict[str, str]:
        """One sentence per baseline, and the hint."""
        said = {name: _sentence(figures) for name, figures in self.against.items()}
        return said | {key: text for key, text in (("note", self.note), ("hint", self.hint)) if text}


def _sentence(figures: Mapping[str, Difference]) -> str:
    parts = "; ".join(_figures(name, figure) for name, figure in figures.items())
    verdicts = _verdicts(figures)
    if len(set(verdicts)) == 1:
        return f"the model is {verdicts[0]}: {parts}"
    each = (f"{verdict} in {name}" for name, verdict in zip(figures, verdicts, strict=True))
    return f"the model is {', '.join(each)}: {parts}"


def _figures(name: str, figure: Difference) -> str:
    """The model's metric, the baseline's, and their difference with its interval."""
    metric = find_metric(name)
    better = " (less is better)" if metric is not None and metric.better == "lower" else ""
    return (
        f"{name}{better} {figure.baseline + figure.difference:.4f}, the baseline's {figure.baseline:.4f}, "
        f"difference {figure.difference:+.4f} (95% interval {figure.low:+.4f} to {figure.high:+.4f})"
    )


def _verdicts(figures: Mapping[str, Difference]) -> list[str]:
    """Of each metric, the main one first."""
    return [figure.verdict for figure in figures.values()]


def fit_baselines(
    dataset: Dataset, features: Sequence[str] | None = None, names: Iterable[str] | None = None
) -> tuple[dict[str, Fitted], str]:
    """Baselines of the first task, the base rate first, and a note on those that are missing.

    Args:
        dataset: Baselines learn from its train split.
        features: Features that they read; all if ``None``.
        names: Of :data:`~recsys.evaluation.baselines.measure.FITS`; if ``None``, the :data:`QUICK` ones, where the
            task is binary and the data not too large for them.

    Raises:
        UserError: ``names`` asks for a baseline, and the task is not binary.
    """
    found = {BASE_RATE: _base_rate(dataset)}
    if names is None and dataset.splits["train"] > MOST_ROWS:
        return found, f"more than {MOST_ROWS:,} training rows: other baselines are trained only with --baselines"
    wanted = list(QUICK if names is None else names)
    note = ""
    if "lightgbm" in wanted and find_spec("lightgbm") is None:
        wanted.remove("lightgbm")
        note = "LightGBM is not installed: pip install 'sparse-recsys[baselines]'"
    try:
        found |= {name: FITS[name](dataset, features) for name in wanted}
    except UserError as error:
        if names is not None:
            raise
        return {BASE_RATE: found[BASE_RATE]}, str(error)
    return found, note


def compare(
    dataset: Dataset, split: str, logits_N: Floats, others: Mapping[str, Floats], *, draws: int = 200, note: str = ""
) -> Standing:
    """The differences of a model to baselines on ``split``, by the first task, in the metrics that its rows define.

    Args:
        logits_N: The model's, in the order of the split.
        others: (N,) logits of each baseline.
        draws: Bootstrap draws, over users where there are any.
    """
    task, config = next(iter(dataset.config.tasks.items()))
    labels_N, facts = dataset.labels(split)[:, 0], facts_of(dataset, split, task)
    rows = TestRows.of(labels_N, facts, kind=config.kind, draws=draws)
    metrics = [main_metric(config.kind)] + ([LOG_LOSS] if config.kind == "binary" else [])
    missing = {metric.name: why_undefined(metric, config.kind, labels_N, facts) for metric in metrics}
    metrics = [metric for metric in metrics if missing[metric.name] is None]
    notes = [note] if note else []
    notes += [f"{name} is undefined on the {split} split: {reason}" for name, reason in missing.items() if reason]
    if not metrics:
        return Standing(split=split, task=task, main=next(iter(missing)), against={}, note="; ".join(notes))
    own = {metric.name: rows.measure(metric, logits_N) for metric in metrics}
    against = {
        name: {m.name: _difference(m, own[m.name], rows.measure(m, baseline_N)) for m in metrics}
        for name, baseline_N in others.items()
    }
    return Standing(split=split, task=task, main=metrics[0].name, against=against, note="; ".join(notes))


def _difference(metric: Metric, model: Measured, baseline: Measured) -> Difference:
    bounds = interval(model.draws_R - baseline.draws_R)
    sign = -1 if metric.better == "lower" else 1
    worst, best = sorted((sign * bounds.low, sign * bounds.high))
    verdict: Literal["better", "level", "worse"] = "better" if worst > 0 else "worse" if best < 0 else "level"
    return Difference(
        baseline=baseline.value,
        difference=model.value - baseline.value,
        low=bounds.low,
        high=bounds.high,
        verdict=verdict,
    )


def _base_rate(dataset: Dataset) -> Fitted:
    """Predicts the (weighted) mean label of the training rows."""
    task, config = next(iter(dataset.config.tasks.items()))
    kind: TaskKind = config.kind
    logit = mean_label(dataset.labels("train")[:, 0], dataset.weights("train", task))
    if kind not in VALUES:
        odds = logit / max(1 - logit, _LEAST) if kind == "binary" else logit
        logit = math.log(max(odds, _LEAST))
    return Fitted(lambda split: np.full(dataset.splits[split], logit))
