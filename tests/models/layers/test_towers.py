"""The dense tower against its products written out."""

import torch

from models.layers.towers import DenseTower, DenseTowerConfig


def test_a_dense_tower_is_linear_relu_linear_relu():
    tower = DenseTower(6, DenseTowerConfig(hidden=(5, 4)))
    x_ND = torch.randn(7, 6)
    first, _, second, _ = tower.layers
    expected = (second.weight @ (first.weight @ x_ND.T + first.bias[:, None]).relu() + second.bias[:, None]).relu().T
    torch.testing.assert_close(tower(x_ND), expected)
    assert tower.out_width == 4
