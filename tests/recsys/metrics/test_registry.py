"""Every registered metric keeps what the registry promises."""

import numpy as np
import pytest

from recsys.evaluation.comparison import TestRows
from recsys.metrics import registry
from recsys.metrics.metric import Metric


def _rows(kind: str, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    users = rng.integers(-1, 12, 200)
    logits = np.round(rng.normal(size=200), 1)
    labels = {
        "binary": (rng.random(200) < 1 / (1 + np.exp(-logits))).astype(float),
        "regression": logits + rng.normal(size=200),
        "count": rng.poisson(np.exp(logits)).astype(float),
    }[kind]
    return labels, logits, users


@pytest.mark.parametrize("kind", ["binary", "regression", "count"])
def test_a_better_model_is_better_by_every_metric(kind: str) -> None:
    labels, logits, users = _rows(kind)
    worse = logits + 2 + np.random.default_rng(1).normal(0, 2, 200)
    for metric in registry.metrics_of(kind):
        good, bad = (metric.goodness(metric.measure(kind, labels, values, users)) for values in (logits, worse))
        assert good > bad or good == bad == 1, metric.name  # hit rates of few rows are full


@pytest.mark.parametrize("kind", ["binary", "regression", "count"])
@pytest.mark.parametrize("weighted", [False, True])
def test_fast_draws_are_those_of_the_plain_bootstrap(kind: str, weighted: bool) -> None:
    labels, logits, users = _rows(kind, 2)
    lists = np.where(np.arange(200) % 9 == 0, -1, users * 3 + np.random.default_rng(3).integers(0, 3, 200))
    weights = np.random.default_rng(4).choice([0.0, 0.5, 1.0, 3.0], 200)
    rows = TestRows(
        labels,
        users,
        lists_N=np.where(users < 0, -1, lists),
        weights_N=weights if weighted else None,
        kind=kind,
        draws=8,
    )
    names = ("name", "label", "kinds", "value", "needs_groups", "groups", "reads")
    for metric in registry.metrics_of(kind):
        plain = Metric(**{name: getattr(metric, name) for name in names})
        fast, slow = rows.measure(metric, logits), rows.measure(plain, logits)
        assert fast.value == slow.value
        np.testing.assert_allclose(fast.draws_R, slow.draws_R, rtol=1e-5, err_msg=metric.name)


def test_the_main_metric_comes_first() -> None:
    main = {kind: registry.main_metric(kind).name for kind in ("binary", "regression", "count")}
    assert main == {"binary": "auc", "regression": "rmse", "count": "deviance"}


def test_two_metrics_of_one_name_are_refused() -> None:
    other = Metric("auc", "another", ("binary",), lambda labels, scores, weights: 0.0)
    with pytest.raises(ValueError, match="a metric 'auc' is registered already"):
        registry.register(other)
