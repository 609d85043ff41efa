"""Dense features on one scale."""

import pytest
import torch

from models.layers.normalization import Standardize, squash


def learned(dense_BD: torch.Tensor) -> Standardize:
    small_BD, standardize = squash(dense_BD).double(), Standardize(dense_BD.shape[1])
    standardize.learn(small_BD.mean(0), small_BD.square().mean(0))
    return standardize


@pytest.mark.parametrize("unit", [1e-3, 1.0, 1e6])
def test_training_rows_have_mean_0_and_deviation_1(unit: float) -> None:
    dense_BD = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)) * unit + unit
    scaled_BD = learned(dense_BD)(dense_BD)
    torch.testing.assert_close(scaled_BD.mean(0), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(scaled_BD.std(0, correction=0), torch.ones(3), atol=1e-3, rtol=0)


def test_a_constant_gives_no_infinities() -> None:
    constant_B1 = torch.full((10, 1), 7.3)
    assert learned(constant_B1)(constant_B1).isfinite().all()
