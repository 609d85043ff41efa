"""Int8 layers: the kernel against plain sums, sums against the float layer's, and whole rankers."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ranker_examples import SCHEMA, random_batch, take_rows

from data_pipelines.errors import UserError
from models.int8 import observe
from models.layers.int8 import Int8Linear
from models.ranker import Ranker, RankerConfig
from models.sparsity.precision import Quantization, QuantizationConfig
from models.tables.plain import PlainTables
from models.tables.plan import lookup_plan
from models.weights import Weights

MODELS = {
    "cross, mlp": {"tower": {"kind": "mlp", "hidden": [24, 12], "dropout": 0.1}},
    "cross of low rank, mlp": {"interaction": {"kind": "cross", "rank": 3}, "tower": {"kind": "mlp", "hidden": [16]}},
    "multiplicative, moe": {"interaction": {"kind": "multiplicative", "layers": 2}},
    "none, k-winners": {"interaction": {"kind": "none"}, "tower": {"kind": "mlp", "hidden": [16, 8], "k_winners": 0.5}},
    "dot, mlp": {"interaction": {"kind": "dot"}, "tower": {"kind": "mlp", "hidden": [16]}},
}


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


def random_weights(model: dict[str, object]) -> Weights:
    config = RankerConfig.model_validate({"dim": 6, "pooling": {"genres": "sum", "tags": "mean"}} | model)
    tables = {layout.name: torch.randn(layout.rows, layout.dim) * 0.3 for layout in lookup_plan(SCHEMA, config).tables}
    ranker = Ranker(config, SCHEMA, PlainTables(SCHEMA, config, tables, {}, {}))
    return Weights(config, SCHEMA, tables, {name: tensor.clone() for name, tensor in ranker.dense_state().items()})


@pytest.mark.parametrize("name", sorted(MODELS))
def test_a_ranker_in_int8_scores_as_in_float32(name: str) -> None:
    weights, batch = random_weights(MODELS[name]), random_batch(200)
    grids = observe(weights.to_ranker(), [take_rows(batch, 0, 100), take_rows(batch, 100, 200)])
    ranker = replace(weights, grids=grids).to_ranker()
    with torch.inference_mode():
        expected_BT, logits_BT = weights.to_ranker()(batch), ranker(batch)
        alone_BT = torch.cat([ranker(take_rows(batch, row, row + 1)) for row in range(5)])
    error_BT = (logits_BT - expected_BT).abs()
    # a k-winners unit or an expert may be chosen otherwise where two score alike: hence most rows, not all
    assert float(error_BT.median()) < 0.07 * float(expected_BT.std())
    assert float(error_BT.max()) > 0
    torch.testing.assert_close(alone_BT, logits_BT[:5], atol=1e-5, rtol=1e-5)


def test_the_lever_fixes_the_grids_by_the_rows_it_is_shown() -> None:
    weights, batch = random_weights(MODELS["cross, mlp"]), random_batch(64)
    lever = Quantization(QuantizationConfig(dense="int8", activations="int8"))
    lever.calibrate(weights, [batch], ["binary", "binary"])
    lever.shrink(weights)
    layers = {f"interaction.layers.{i}" for i in range(3)} | {"tower.layers.0", "tower.layers.3", "heads.linear"}
    assert set(weights.grids) == layers
    low_D, step_D = weights.grids["heads.linear"]
    assert bool((low_D >= 0).all()), "what ReLU gives is never negative"
    assert bool((step_D > 0).all())


def test_a_model_without_dense_layers_is_refused() -> None:
    weights = random_weights({"interaction": {"kind": "dot"}, "tower": {"kind": "moe", "experts": 2, "top_k": 1}})
    lever = Quantization(QuantizationConfig(dense="int8", activations="int8"))
    with pytest.raises(UserError, match=r"sparsity\.quantization\.activations.*leave the key out"):
        lever.calibrate(weights, [random_batch(8)], ["binary", "binary"])
