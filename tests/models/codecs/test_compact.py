"""The dense part of an artifact: fewer bytes, and the same numbers but for rounding."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.codecs.compact import Precision, compress, decompress, stored_bytes

STEPS = {"fp32": 0.0, "bf16": 2**-8, "int8": 0.5 / 127, "int4": 0.5 / 7}


@settings(max_examples=40, deadline=None)
@given(
    shape=st.lists(st.integers(1, 9), min_size=2, max_size=3),
    density=st.floats(0, 1),
    precision=st.sampled_from(sorted(STEPS)),
)
def test_what_is_unpacked_is_what_was_packed_but_for_rounding(
    shape: list[int], density: float, precision: Precision
) -> None:
    tensor = torch.randn(*shape) * (torch.rand(*shape) < density)
    dense = {"tower.weight": tensor, "tower.bias": torch.randn(3), "alive_E": torch.tensor([True, False])}
    back = decompress(compress(dense, precision))
    assert back.keys() == dense.keys()
    exactly = 0 if precision == "fp32" else 2**-8
    assert torch.allclose(back["tower.bias"], dense["tower.bias"], rtol=exactly, atol=0)
    assert torch.equal(back["alive_E"], dense["alive_E"])
    error = (back["tower.weight"] - tensor).abs()
    assert bool((error <= 1.01 * STEPS[precision] * tensor.abs().amax(-1, keepdim=True)).all())
    assert bool((back["tower.weight"][tensor == 0] == 0).all())


@pytest.mark.parametrize(("precision", "bits"), [("fp32", 32), ("bf16", 16), ("int8", 8), ("int4", 4)])
def test_a_zero_costs_a_bit_and_a_number_its_precision(precision: Precision, bits: int) -> None:
    tensor = torch.randn(256, 256) * (torch.rand(256, 256) < 0.1)
    alive = int((tensor != 0).sum())
    scales = 256 * 4 if bits <= 8 else 0
    assert stored_bytes({"w": tensor}, precision)["w"] <= alive * bits / 8 + tensor.numel() / 8 + scales + 32


def test_a_matrix_on_one_grid_is_half_a_step_off_at_most() -> None:
    tensor = torch.randn(40, 30)
    packed = compress({"w": tensor}, "int8", 0.5)
    assert packed["w:scale"].numel() == 1
    step = 0.5 * tensor.square().mean().sqrt()
    assert float((decompress(packed)["w"] - tensor).abs().max()) <= 0.5001 * step


def test_routers_are_never_rounded() -> None:
    router = {"tower.mixtures.0.router.weight": torch.randn(4, 8)}
    assert torch.equal(decompress(compress(router, "int4"))["tower.mixtures.0.router.weight"], *router.values())
