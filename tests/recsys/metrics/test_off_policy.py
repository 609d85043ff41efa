"""Estimators of what another policy would have earned, against a truth that is known."""

import numpy as np
import pytest

from data_pipelines.synthetic_lists import ListsConfig, draw_lists
from recsys.metrics.bootstrap import Resampling
from recsys.metrics.off_policy import ESTIMATORS, Decisions, effective_rows, estimate


def test_intervals_of_ips_and_snips_cover_the_true_value_of_the_best_order() -> None:
    config, covered = ListsConfig(lists=400), np.zeros(2)
    for repetition in range(100):
        drawn = draw_lists(config, repetition=repetition)
        chosen = (drawn.best == np.arange(config.size)).astype(float).ravel()
        lists = np.arange(config.lists).repeat(config.size)
        decisions = Decisions(drawn.clicked.ravel(), drawn.propensity.ravel(), chosen)
        _, found = estimate(decisions, Resampling(None, len(lists), lists_N=lists, draws=200))
        truth = drawn.value(drawn.best)
        covered += [found[name].interval.low <= truth <= found[name].interval.high for name in ("ips", "snips")]
    assert (covered >= 90).all(), covered


def test_estimators_are_their_formulas() -> None:
    rng = np.random.default_rng(0)
    n = 50
    rewards, chosen, propensities = rng.random(n), rng.random(n), rng.uniform(0.1, 1, n)
    predicted, expected = rng.random(n), rng.random(n)
    decisions = Decisions(rewards, propensities, chosen, predicted, expected)
    base, found = estimate(decisions, Resampling(None, n), clip=0.2)
    w = chosen / np.maximum(propensities, 0.2)
    assert found["ips"].value == pytest.approx((w * rewards).mean())
    assert found["snips"].value == pytest.approx((w * rewards).sum() / w.sum())
    assert found["dm"].value == pytest.approx(expected.mean())
    assert found["dr"].value == pytest.approx((expected + w * (rewards - predicted)).mean())
    assert base.value == pytest.approx(rewards.mean())
    assert found["dr"].change == pytest.approx(found["dr"].value - rewards.mean())
    assert effective_rows(w) == pytest.approx(w.sum() ** 2 / (w**2).sum())


def test_the_logged_policy_itself_is_estimated_without_a_change() -> None:
    rewards, propensities = np.array([1.0, 0, 0, 1]), np.array([0.5, 0.2, 1, 0.4])
    _, found = estimate(Decisions(rewards, propensities, propensities), Resampling(None, 4))
    assert found.keys() == ESTIMATORS.keys() - {"dm", "dr"}
    for one in found.values():
        assert (one.value, one.change, one.change_interval) == (0.5, 0.0, (0.0, 0.0))


def test_a_wrong_model_is_corrected_by_the_doubly_robust_estimate() -> None:
    rng = np.random.default_rng(1)
    n, rate = 20_000, np.array([0.2, 0.6])
    action = (rng.random(n) < 0.25).astype(int)
    rewards = (rng.random(n) < rate[action]).astype(float)
    propensities, chosen = np.where(action, 0.25, 0.75), action.astype(float)
    wrong = np.array([0.5, 0.3])
    decisions = Decisions(rewards, propensities, chosen, wrong[action], np.full(n, wrong[1]))
    _, found = estimate(decisions, Resampling(None, n))
    assert found["dm"].value == pytest.approx(0.3)
    assert found["dr"].value == pytest.approx(0.6, abs=0.02)
    assert found["dr"].interval.low < 0.6 < found["dr"].interval.high
