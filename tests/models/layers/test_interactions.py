"""Interactions against sums over pairs written out."""

import itertools

import pytest
import torch

from models.layers.interactions import (
    CrossConfig,
    CrossNet,
    DotConfig,
    FactorizationMachineConfig,
    Fields,
    MultiplicativeBlocks,
    MultiplicativeConfig,
)

FIELDS_BFD = torch.randn(7, 5, 4, generator=torch.Generator().manual_seed(0))

FIELDS = Fields(widths=(4,) * 5, dense=0, dim=16)


def test_factorization_machine_is_the_sum_of_products_of_pairs():
    pairs = [FIELDS_BFD[:, i] * FIELDS_BFD[:, j] for i, j in itertools.combinations(range(5), 2)]
    torch.testing.assert_close(
        FactorizationMachineConfig().build(FIELDS).products(FIELDS_BFD), torch.stack(pairs).sum(0)
    )


def test_dot_interaction_lists_every_pair_once_in_order():
    pairs = [(FIELDS_BFD[:, i] * FIELDS_BFD[:, j]).sum(1) for i, j in itertools.combinations(range(5), 2)]
    dot = DotConfig().build(FIELDS)
    torch.testing.assert_close(dot.products(FIELDS_BFD), torch.stack(pairs, 1))
    assert dot.out_width == 20 + 10


@pytest.mark.parametrize("rank", [None, 3])
def test_cross_layers_follow_the_formula_of_dcn_v2(rank):
    cross = CrossNet(20, CrossConfig(layers=2, rank=rank))
    x0_BD = FIELDS_BFD.flatten(1)
    x_BD = x0_BD
    for layer in cross.layers:
        if rank is None:
            matrix, bias = layer.weight, layer.bias
        else:
            matrix, bias = layer[1].weight @ layer[0].weight, layer[1].bias
        x_BD = x0_BD * (x_BD @ matrix.T + bias) + x_BD
    torch.testing.assert_close(cross(x0_BD), x_BD)


def test_multiplicative_blocks_double_the_degree_with_each_layer():
    blocks = MultiplicativeBlocks(3, MultiplicativeConfig(layers=2))
    with torch.no_grad():
        for layer in blocks.layers:
            layer.bias.zero_()
    x_BD = torch.randn(4, 3, dtype=torch.float64)
    blocks.double()
    at = torch.stack([blocks(t * x_BD) for t in torch.linspace(-1, 1, 9, dtype=torch.float64)])
    fifth_difference = torch.diff(at, n=5, dim=0)
    assert torch.diff(at, n=4, dim=0).abs().max() > 1e-6
    torch.testing.assert_close(fifth_difference, torch.zeros_like(fifth_difference), atol=1e-9, rtol=0)
