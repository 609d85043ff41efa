"""Towers of mixtures against a loop over rows."""

import pytest
import torch
import torch.nn.functional as F
from moe_examples import loop_reference

from models.moe.router import routers
from models.moe.tower import MixtureConfig, MixtureTower


def test_the_router_can_read_a_context_of_its_own():
    tower = MixtureTower(16, MixtureConfig(hidden=8, experts=4, top_k=1, blocks=2), context=3)
    x_ND, context_NC = torch.randn(30, 16), torch.randn(30, 3)
    moe = tower.mixtures[0]
    torch.testing.assert_close(moe(x_ND, context_NC), loop_reference(moe, x_ND, context_NC), atol=1e-5, rtol=1e-4)
    assert tower(x_ND, context_NC).shape == (30, 16)
    assert list(routers(tower)) == ["mixtures.0.router", "mixtures.1.router"]


@pytest.mark.parametrize("normalize", [True, False])
def test_a_mixture_tower_adds_each_block_to_its_normalized_input(normalize):
    tower = MixtureTower(16, MixtureConfig(hidden=8, experts=4, top_k=2, blocks=2, normalize=normalize))
    x_ND = torch.randn(30, 16)
    expected_ND = x_ND
    for moe in tower.mixtures:
        read_ND = F.layer_norm(expected_ND, (16,)) if normalize else expected_ND
        expected_ND = expected_ND + loop_reference(moe, read_ND, read_ND)
    torch.testing.assert_close(tower(x_ND), expected_ND, atol=1e-5, rtol=1e-4)
