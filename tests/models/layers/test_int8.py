"""Int8 layers: the kernel against plain sums, and sums against the float layer's."""

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.layers.int8 import Int8Linear


def grid(width: int, *, positive: bool = False) -> torch.Tensor:
    low_D = torch.zeros(width) if positive else torch.randn(width) - 1
    return torch.stack([low_D, (torch.rand(width) + 0.1) / 50])


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(0, 70),
    inputs=st.integers(1, 130),
    outputs=st.integers(1, 40),
    relu=st.booleans(),
    codes=st.booleans(),
    bias=st.booleans(),
    seed=st.integers(0, 999),
)
def test_the_kernel_gives_the_plain_sums(
    rows: int, inputs: int, outputs: int, relu: bool, codes: bool, bias: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    out_2O = grid(outputs, positive=relu) * torch.tensor([[1.0], [20.0]]) if codes else None
    bias_O = torch.randn(outputs) if bias else None
    layer = Int8Linear(torch.randn(outputs, inputs), bias_O, grid(inputs), relu=relu, out_2O=out_2O)
    codes_BD = torch.randint(0, 256, (rows, inputs), dtype=torch.uint8)
    plain_BO, kernel_BO = layer.plain(codes_BD), layer(codes_BD)
    assert kernel_BO.dtype == (torch.uint8 if codes else torch.float32)
    if codes:  # where a sum lies between two codes, the last digit decides
        assert int((plain_BO.int() - kernel_BO.int()).abs().amax() if rows else 0) <= 1
        assert float((plain_BO != kernel_BO).float().mean() if rows else 0) < 0.01
    else:
        torch.testing.assert_close(kernel_BO, plain_BO, rtol=1e-5, atol=1e-4)


@settings(max_examples=40, deadline=None)
@given(inputs=st.integers(1, 130), outputs=st.integers(1, 40), seed=st.integers(0, 999))
def test_a_product_of_codes_is_the_float_layer_within_half_a_step_of_each_number(
    inputs: int, outputs: int, seed: int
) -> None:
    torch.manual_seed(seed)
    weight_OD, bias_O, grid_2D = torch.randn(outputs, inputs), torch.randn(outputs), grid(inputs)
    x_BD = grid_2D[0] + 255 * grid_2D[1] * torch.rand(50, inputs)
    layer = Int8Linear(weight_OD, bias_O, grid_2D)
    codes_BD = layer.encode(x_BD)
    of_inputs_O = 0.5 * (weight_OD * grid_2D[1]).abs().sum(1)
    of_weights_BO = 0.5 * layer.scale_O * codes_BD.float().sum(1, keepdim=True)
    error_BO = (layer(x_BD) - torch.nn.functional.linear(x_BD, weight_OD, bias_O)).abs()
    assert bool((error_BO <= 1.01 * (of_inputs_O + of_weights_BO) + 1e-3).all())


def test_what_is_beyond_the_grid_is_cut_off() -> None:
    layer = Int8Linear(torch.eye(2), None, torch.tensor([[-1.0, 0.0], [2 / 255, 1 / 255]]))
    y_BO = layer(torch.tensor([[-5.0, -5.0], [5.0, 5.0], [torch.inf, -torch.inf], [0.0, 0.25]]))
    expected_BO = torch.tensor([[-1.0, 0.0], [1.0, 1.0], [1.0, 0.0], [0.0, 0.25]])
    torch.testing.assert_close(y_BO, expected_BO, atol=0.02, rtol=0)


_SUMS = """
import torch
from models.layers.int8 import Int8Linear
layer = Int8Linear(torch.ones(16, 64), None, torch.stack([torch.zeros(64), torch.ones(64)]))
with torch.autocast("cpu", torch.bfloat16):
    print(layer(torch.full((4, 64), 251.0)).unique().tolist())
"""


@pytest.mark.parametrize("instructions", ["AVX2", "AVX512_CORE"])
def test_a_processor_without_whole_sums_of_int8_gives_the_same_numbers(instructions: str) -> None:
    command = [sys.executable, "-c", _SUMS]
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": instructions}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert float(done.stdout.strip("[]\n")) == pytest.approx(64 * 251)
