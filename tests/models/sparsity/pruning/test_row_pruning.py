"""What ranks the rows to prune, by what the optimizers of the tables keep."""

import pytest
import torch
from ranker_examples import SCHEMA

from data_pipelines.errors import UserError
from models.ranker import Ranker, RankerConfig
from models.sparsity.pruning.row_pruning import RowPruning, RowPruningConfig
from models.tables.lookup import SparseTables

STEPS = 10


def pruned_rows(config: RowPruningConfig) -> torch.Tensor:
    """(R,) whether each user is pruned, of tables that no fused Adagrad updates; the later half is nearest to OOV."""
    model = RankerConfig.model_validate({"dim": 4, "tower": {"kind": "mlp", "hidden": [8]}})
    ranker, lever = Ranker(model, SCHEMA, SparseTables(SCHEMA, model)), RowPruning(config)
    lever.build(ranker)
    lever.start(ranker, STEPS)
    with torch.no_grad():
        for name, weight in ranker.tables.named_parameters():
            if "user" in name:
                weight.fill_(0)
                weight[: len(weight) // 2 + 1] = 1
                weight[:2] = 0
    for step in range(STEPS):
        lever.after_step(ranker, step)
    return ~ranker.tables.keep["user"]


def test_without_sums_of_gradients_the_distance_to_the_oov_row_ranks() -> None:
    pruned_R = pruned_rows(RowPruningConfig(sparsity=0.4, tables=("user",)))
    assert pruned_R.any()
    assert not pruned_R[: len(pruned_R) // 2 + 1].any()
    assert torch.equal(pruned_R, pruned_rows(RowPruningConfig(sparsity=0.4, tables=("user",), by="distance")))


def test_asking_for_saliency_without_sums_of_gradients_is_refused() -> None:
    with pytest.raises(UserError, match="reads the sums of a fused Adagrad"):
        pruned_rows(RowPruningConfig(sparsity=0.4, by="saliency"))
