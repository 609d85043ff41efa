"""What the values of a category add to a logit, with intervals that cover the truth."""

import numpy as np
import pytest

from recsys.metrics.level_effects import LevelEffects, level_effects

TRUTH = np.array([0.0, -0.7, -1.2])


def drawn(seed: int, rows: int = 1500, *, confounded: float = 1.0) -> LevelEffects:
    """Rows with a high score tend to have a low level, and the score is twice as sure as it should be."""
    rng = np.random.default_rng(seed)
    score = rng.normal(0, 1, rows)
    level = np.clip(np.round(1 - confounded * score + rng.normal(0, 0.7, rows)), 0, 2).astype(int)
    labels = (rng.random(rows) < 1 / (1 + np.exp(-(score + TRUTH[level])))).astype(float)
    return level_effects(labels, 2 * score, level, np.arange(rows), base=0, levels=3)


def test_intervals_cover_the_truth() -> None:
    covered = np.zeros(2)
    for seed in range(100):
        found = drawn(seed)
        covered += ((found.low <= TRUTH) & (found.high >= TRUTH))[1:]
    assert (covered >= 88).all(), covered


def test_the_base_has_no_effect_and_more_rows_give_narrower_intervals() -> None:
    few, many = drawn(0), drawn(0, 20_000)
    assert (few.value[0], few.low[0], few.high[0]) == (0.0, 0.0, 0.0)
    np.testing.assert_allclose(many.value, TRUTH, atol=0.2)
    assert ((many.high - many.low)[1:] < (few.high - few.low)[1:]).all()


def test_rows_of_one_cluster_count_once() -> None:
    rng = np.random.default_rng(0)
    score, level = rng.normal(0, 1, 600), rng.integers(0, 3, 600)
    labels = (rng.random(600) < 1 / (1 + np.exp(-(score + TRUTH[level])))).astype(float)
    once = level_effects(labels, score, level, np.arange(600), base=0, levels=3)
    copies = (np.tile(values, 9) for values in (labels, score, level, np.arange(600)))
    np.testing.assert_allclose(level_effects(*copies, base=0, levels=3), once, rtol=1e-6)


def test_weights_are_copies_of_rows() -> None:
    rng = np.random.default_rng(0)
    score, level, weights = rng.normal(0, 1, 600), rng.integers(0, 3, 600), rng.integers(1, 4, 600)
    labels = (rng.random(600) < 1 / (1 + np.exp(-(score + TRUTH[level])))).astype(float)
    weighted = level_effects(labels, score, level, np.arange(600), base=0, levels=3, weights_N=weights)
    copies = (values.repeat(weights) for values in (labels, score, level, np.arange(600)))
    np.testing.assert_allclose(level_effects(*copies, base=0, levels=3), weighted, rtol=1e-6)


@pytest.mark.parametrize("labels", [np.zeros(40), np.r_[np.ones(4), np.zeros(36)]])
def test_too_few_rows_give_no_interval(labels: np.ndarray) -> None:
    level = np.tile([0, 1], 20)
    found = level_effects(labels, np.zeros(40), level, np.arange(40), base=0, levels=2)
    assert np.isnan(found.value).all()
    assert np.isnan(found.low).all()
