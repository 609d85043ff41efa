"""Baselines of a ranker: popularity, a sparse linear model, an SVD, a factorization machine, boosted trees.

All use the ranker's data set: they are trained on its train split, tuned on its valid split, and measured like the
ranker.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from data_pipelines.dataset.dataset import Dataset
from data_pipelines.disk.storage import write_file
from recsys.evaluation.baselines.base import Fit, Fitted, labels_of
from recsys.evaluation.baselines.factorization_machine import fit_factorization_machine
from recsys.evaluation.baselines.linear import fit_decomposition, fit_linear, fit_popularity
from recsys.evaluation.baselines.trees import fit_gradient_boosting
from recsys.evaluation.evaluate import facts_of, task_metrics

BASELINES_FILE = "baselines.json"
"""Metrics of each baseline by split, in the run's folder."""

FITS: Mapping[str, Fit] = {
    "popularity": fit_popularity,
    "linear": fit_linear,
    "svd": fit_decomposition,
    "fm": fit_factorization_machine,
    "lightgbm": fit_gradient_boosting,
}
"""Every baseline by the name that reports give it."""


def measure_baseline(
    name: str, dataset: Dataset, split: str = "test", *, fitted: Fitted | None = None
) -> dict[str, float]:
    """Metrics on ``split`` of the baseline ``name``, one of :data:`FITS`, which is trained unless it is ``fitted``."""
    fitted = fitted or FITS[name](dataset, None)
    facts = facts_of(dataset, split, dataset.schema.tasks[0])
    metrics = task_metrics("binary", labels_of(dataset, split), fitted.logits(split), facts, thorough=True)
    return {**metrics, **fitted.facts}


BASELINES: Mapping[str, Callable[[Dataset, str], dict[str, float]]] = {
    name: partial(measure_baseline, name) for name in FITS
}
"""What measures each baseline on a split."""


def write_baselines(
    run: Path,
    dataset: Dataset,
    split: str,
    names: Iterable[str] = tuple(BASELINES),
    *,
    fitted: Mapping[str, Fitted] | None = None,
) -> dict[str, dict[str, float]]:
    """Measure the baselines ``names`` on ``split``, and store their metrics for the run's report.

    Baselines that are not installed are left out; those in ``fitted`` are not trained again.

    Example:
        >>> measured = rs.write_baselines(Path("run"), rs.Dataset.open(Path("dataset")), "test", ["popularity"])
        >>> 0 < measured["popularity"]["auc"] < 1
        True
    """
    measured = {}
    for name in names:
        if name != "lightgbm" or find_spec("lightgbm"):
            measured[name] = measure_baseline(name, dataset, split, fitted=(fitted or {}).get(name))
    write_file(run / BASELINES_FILE, json.dumps({split: measured}, indent=1))
    return measured
