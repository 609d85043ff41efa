"""What experts are said to have learned, where it is planted."""

import math

import pytest
import torch
from ranker_examples import SCHEMA, random_batch

from models.interpretation import Trait, expert_affinities, expert_swaps
from models.moe.router import routers
from models.ranker import Ranker, RankerConfig
from models.tables.lookup import SparseTables
from models.tables.rows import local_rows

ROUTER = "tower.mixtures.0.router"


def _ranker(**tower: object) -> Ranker:
    torch.manual_seed(5)
    config = RankerConfig.model_validate(
        {"dim": 4, "context": ["items"], "tower": {"kind": "moe", "experts": 3, "top_k": 1, "hidden": 8, **tower}}
    )
    return Ranker(config, SCHEMA, SparseTables(SCHEMA, config)).eval()


def _routed_by_item() -> Ranker:
    """Expert 1 serves the rows whose items include 5."""
    ranker = _ranker()
    for table in local_rows(ranker):
        if table.table == "items":
            table.weight.zero_()
            table.weight[5, 0] = 1.0
    with torch.no_grad():
        ranker.tower.mixtures[0].router.weight.zero_()
        ranker.tower.mixtures[0].router.weight[1, 0] = 10.0
    return ranker


def test_an_expert_is_known_by_the_value_that_is_routed_to_it():
    batches = [random_batch(200, seed) for seed in range(3)]
    found = expert_affinities(_routed_by_item(), batches, top=2)
    best = max((a for a in found if a.expert == 1), key=lambda affinity: affinity.score)
    assert (best.router, best.trait, best.value) == (ROUTER, "items", 5)
    assert best.share == 1.0
    assert best.lift > 2
    assert best.rows == sum(int((batch.sparse["items"].values() == 5).sum()) for batch in batches)


def test_the_score_is_the_signed_root_of_the_deviance():
    def read(batch):
        return torch.arange(len(batch)), (batch.sparse["items"].lengths() > 0).long()

    batches = [random_batch(300, seed) for seed in range(2)]
    ranker = _routed_by_item()
    found = [a for a in expert_affinities(ranker, batches, [Trait("has items", 2, read)]) if a.expert == 1]
    assert [a.value for a in found] == [1]
    n = found[0].rows
    served = round(found[0].share * n)
    chance = found[0].share / found[0].lift
    deviance = served * math.log(served / (n * chance)) + (n - served) * math.log((n - served) / (n * (1 - chance)))
    assert found[0].score == pytest.approx(math.sqrt(2 * deviance))


def test_chance_names_no_expert():
    """Values that have nothing to do with the routing, among them a value per row, which a normal score would list."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(0, 40, (2000,), generator=generator)
    traits = [
        Trait("random", 40, lambda batch: (torch.arange(len(batch)), values[: len(batch)])),
        Trait("own", 2000, lambda batch: (torch.arange(len(batch)), batch.rows)),
    ]
    assert expert_affinities(_routed_by_item(), [random_batch(2000)], traits) == []


@pytest.mark.parametrize("tower", [{}, {"top_k": 2}, {"top_k": 2, "blocks": 2}, {"balance": "bias", "gate": "sigmoid"}])
def test_rows_of_an_expert_are_scored_as_if_it_were_not_there(tower: dict[str, object]):
    ranker, batches = _ranker(**tower), [random_batch(60, seed) for seed in range(2)]
    batches[1].rows += 60
    swaps = expert_swaps(ranker, batches)
    with torch.no_grad():
        own_NT = torch.cat([ranker(batch) for batch in batches])
    served = dict.fromkeys(routers(ranker), 0)
    for swap in swaps:
        with routers(ranker)[swap.router].without(swap.expert), torch.no_grad():
            without_NT = torch.cat([ranker(batch) for batch in batches])
        torch.testing.assert_close(swap.logits_NT, own_NT[swap.rows_N])
        torch.testing.assert_close(swap.without_NT, without_NT[swap.rows_N])
        if tower:  # with one expert per row, a gate is a softmax over all experts, of which there is one less
            others = torch.ones(120, dtype=torch.bool)
            others[swap.rows_N] = False
            torch.testing.assert_close(without_NT[others], own_NT[others])
        served[swap.router] += len(swap.rows_N)
    assert set(served.values()) == {120 * tower.get("top_k", 1)}


def test_each_task_has_rows_of_its_own_where_tasks_route_themselves():
    ranker = Ranker(
        config := RankerConfig.model_validate(
            {"dim": 4, "tasks": {"kind": "mmoe"}, "tower": {"kind": "moe", "experts": 4, "top_k": 2, "hidden": 8}}
        ),
        SCHEMA,
        SparseTables(SCHEMA, config),
    ).eval()
    swaps = expert_swaps(ranker, [random_batch(80)])
    assert sum(swap.served_NT.sum(0) for swap in swaps).tolist() == [160, 160]
    for swap in swaps:
        unserved = ~swap.served_NT
        torch.testing.assert_close(swap.logits_NT[unserved], swap.without_NT[unserved])


def test_the_only_expert_is_left_out_of_no_row():
    assert expert_swaps(_ranker(experts=1), [random_batch(20)]) == []
