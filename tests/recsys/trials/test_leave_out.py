"""Leaving out one expert of a trained mixture."""

import pytest
import torch
from ranker_examples import SCHEMA, random_batch

from models.interpretation import rows_per_expert
from models.moe.router import routers
from models.ranker import Ranker, RankerConfig
from models.tables.lookup import SparseTables
from recsys.trials.leave_out import leave_out_expert


def _ranker(blocks: int) -> Ranker:
    torch.manual_seed(3)
    tower = {"kind": "moe", "experts": 4, "top_k": 1, "hidden": 8, "blocks": blocks}
    config = RankerConfig.model_validate({"dim": 4, "tower": tower})
    return Ranker(config, SCHEMA, SparseTables(SCHEMA, config)).eval()


@pytest.mark.parametrize("place", range(4))
def test_experts_are_left_out_by_their_load(place: int) -> None:
    ranker, batches = _ranker(2), [random_batch(100, seed) for seed in range(2)]
    name = "tower.mixtures.1.router"
    before_E = rows_per_expert(ranker, batches)[name]
    assert before_E.sum() == 200
    note = leave_out_expert(ranker, batches, f"1/{place}")
    gone = int(before_E.argsort(descending=True, stable=True)[place])
    after_E = rows_per_expert(ranker, batches)[name]
    assert after_E[gone] == 0
    assert after_E.sum() == 200
    assert note == f"expert {gone}, {before_E[gone] / 200:.1%} of the routed test rows"
    assert routers(ranker)["tower.mixtures.0.router"].active_E.all()


def test_experts_that_a_lever_removed_cannot_be_left_out() -> None:
    ranker, batches = _ranker(1), [random_batch(100)]
    router = routers(ranker)["tower.mixtures.0.router"]
    router.active_E[:] = torch.tensor([False, True, False, True])
    with torch.no_grad():
        before = ranker(batches[0])
    assert "all but 2 experts" in leave_out_expert(ranker, batches, "0/2")
    with torch.no_grad():
        assert torch.equal(ranker(batches[0]), before)
    router.active_E[1] = False
    assert "no other expert" in leave_out_expert(ranker, batches, "0/0")
