"""Whole rankers in int8 against float32."""

from dataclasses import replace

import pytest
import torch
from ranker_examples import SCHEMA, random_batch, take_rows

from data_pipelines.errors import UserError
from models.int8 import observe
from models.ranker import Ranker, RankerConfig
from models.sparsity.compression.precision import Quantization, QuantizationConfig
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
