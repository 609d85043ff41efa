"""Schedules and averaged weights by their definitions."""

import pytest
import torch

from recsys.training.optimizers import AveragedWeights, schedule_factor


def test_schedules_warm_up_then_stay_or_fall_to_zero() -> None:
    assert [schedule_factor("constant", step, 4, 10) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    linear = [schedule_factor("linear", step, 0, 4) for step in range(5)]
    assert linear == pytest.approx([1.0, 0.75, 0.5, 0.25, 0.0])
    cosine = [schedule_factor("cosine", step, 0, 4) for step in range(5)]
    assert cosine == pytest.approx([1.0, 0.8535534, 0.5, 0.1464466, 0.0])


def test_averages_follow_and_swapping_twice_changes_nothing() -> None:
    live = {"w": torch.zeros(2)}
    averaged = AveragedWeights(live, decay=0.5)
    for _ in range(100):
        live["w"].fill_(1.0)
        averaged.update(live)
    torch.testing.assert_close(averaged.average["w"], torch.ones(2))
    live["w"].fill_(3.0)
    averaged.swap(live)
    torch.testing.assert_close(live["w"], torch.ones(2))
    averaged.swap(live)
    torch.testing.assert_close(live["w"], torch.full((2,), 3.0))


def test_early_averages_forget_the_start() -> None:
    live = {"w": torch.zeros(1)}
    averaged = AveragedWeights(live, decay=0.999)
    live["w"].fill_(1.0)
    for _ in range(20):
        averaged.update(live)
    assert float(averaged.average["w"]) > 0.99
