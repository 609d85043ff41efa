"""Sharded tables against plain ones: same start, same updates, same logits under every plan."""

from pathlib import Path

import pytest
import torch
from ranker_examples import SCHEMA, on_ranks, random_batch, take_rows
from torch import Tensor
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.types import ShardingPlan

from data_pipelines.errors import UserError
from models.layers.heads import task_losses
from models.moe.expert_parallel import by_placement
from models.ranker import Ranker, RankerConfig
from models.sharding import sharding
from models.sharding.sharding import (
    TableOptimizerConfig,
    TableRule,
    constraints,
    data_parallel_tables,
    dense_parameters,
    shard,
    table_optimizers,
)
from models.tables.lookup import SparseTables
from models.tables.rows import local_rows, table_weights

CPU = torch.device("cpu")
ROWS = 16
PLANS = ["auto", "table_wise", "row_wise", "column_wise", "data_parallel"]


def make_config(sharding: str = "auto", *, spread: bool = False) -> RankerConfig:
    return RankerConfig.model_validate(
        {
            "dim": 16,
            "wide": True,
            "pooling": {"likes": "attention"},
            "tables": {table.name: {"sharding": sharding} for table in SCHEMA.tables},
            "interaction": {"kind": "cross", "layers": 1},
            "tower": {"kind": "moe", "hidden": 8, "experts": 4, "expert_parallel": spread},
        }
    )


def make_sharded(sharding: str, optimizer: str, *, spread: bool = False) -> DistributedModelParallel:
    torch.manual_seed(0)
    config = make_config(sharding, spread=spread)
    ranker = Ranker(config, SCHEMA, SparseTables(SCHEMA, config, device=torch.device("meta")))
    return shard(ranker, TableOptimizerConfig(optimizer=optimizer, learning_rate=0.1), CPU, seed=3)


def train(model: torch.nn.Module, optimizer: str, steps: int = 3) -> Tensor:
    """Train on this rank's share of each batch; logits of one whole batch afterwards."""
    rank, ranks = 0, 1
    if torch.distributed.is_initialized():
        rank, ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
    tables = data_parallel_tables(model)
    groups = [{"params": group} for group in by_placement(dense_parameters(model).values())]
    optimizers = [torch.optim.SGD(groups, lr=0.1)]
    if tables:
        optimizers.append(TableOptimizerConfig(optimizer=optimizer, learning_rate=0.1).build(tables.values()))
    for step in range(steps):
        batch = take_rows(random_batch(ROWS, step), rank * ROWS // ranks, (rank + 1) * ROWS // ranks)
        for each in optimizers:
            each.zero_grad()
        task_losses(model(batch), batch.labels, ["binary", "binary"]).sum().backward()
        for each in optimizers:
            each.step()
    return model(random_batch(ROWS, 99)).detach()


def train_under_every_plan(cases: list[tuple[str, str]]) -> dict[str, Tensor]:
    logits = {
        f"{sharding} {optimizer}": train(make_sharded(sharding, optimizer), optimizer) for sharding, optimizer in cases
    }
    return logits | {"experts_spread sgd": train(make_sharded("auto", "sgd", spread=True), "sgd")}


def test_at_one_rank_the_dense_part_is_moved_to_the_device(one_rank: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sharding, "DistributedModelParallel", lambda ranker, **_: ranker)
    monkeypatch.setattr(sharding, "initialise_tables", lambda ranker, seed: None)
    config = make_config()
    ranker = Ranker(config, SCHEMA, SparseTables(SCHEMA, config, device=torch.device("meta")))
    ranker.tables.set_keep("user", torch.ones(50, dtype=torch.bool))
    elsewhere = torch.device("meta")
    sharding.shard(ranker, TableOptimizerConfig(), elsewhere, plan=ShardingPlan({}))
    assert {tensor.device for tensor in (*ranker.parameters(), *ranker.buffers())} == {elsewhere}


# Row-wise Adagrad keeps one statistic for each shard of a row, so cutting columns changes its steps by design.
CASES = [(sharding, "sgd") for sharding in PLANS]
CASES += [(sharding, "rowwise_adagrad") for sharding in PLANS if sharding != "column_wise"]


def test_two_ranks_train_to_the_logits_of_one_under_every_plan(one_rank: None, tmp_path: Path):
    expected = {name: train(make_sharded("table_wise", name), name) for name in ("sgd", "rowwise_adagrad")}
    (tmp_path / "two").mkdir()
    first, second = on_ranks(2, tmp_path / "two", train_under_every_plan, CASES)
    for name, logits in first.items():
        torch.testing.assert_close(logits, expected[name.split()[1]], atol=1e-5, rtol=1e-4, msg=name)
        torch.testing.assert_close(second[name], logits, atol=1e-6, rtol=1e-5, msg=name)


def test_a_table_cut_over_one_node_of_two_trains_to_the_logits_of_one_rank(one_rank: None, tmp_path: Path):
    expected = train(make_sharded("table_wise", "rowwise_adagrad"), "rowwise_adagrad")
    (tmp_path / "nodes").mkdir()
    for rank in on_ranks(4, tmp_path / "nodes", train_over_one_node_each, nodes=2):
        torch.testing.assert_close(rank["logits"], expected, atol=1e-5, rtol=1e-4)
        assert rank["ranks with rows of user"].tolist() in ([0, 1], [2, 3])


def train_over_one_node_each() -> dict[str, Tensor]:
    model = make_sharded("table_row_wise", "rowwise_adagrad")
    logits = train(model, "rowwise_adagrad")
    here = any(len(shard.weight) for shard in local_rows(model.module) if shard.table == "user")
    holders: list[bool] = [False] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(holders, here)
    return {"logits": logits, "ranks with rows of user": torch.tensor(holders).nonzero().flatten()}


@pytest.mark.parametrize("optimizer", ["rowwise_adagrad", "adagrad", "sgd"])
def test_fused_optimizers_agree_with_plain_ones(one_rank: None, optimizer: str):
    fused = make_sharded("table_wise", optimizer)
    start = table_weights(whole(fused), SCHEMA, make_config())
    plain = make_sharded("data_parallel", optimizer)
    assert data_parallel_tables(fused) == {}
    assert len(data_parallel_tables(plain)) == 2 * len(SCHEMA.tables)
    torch.testing.assert_close(train(fused, optimizer), train(plain, optimizer), atol=1e-5, rtol=1e-4)
    trained = table_weights(whole(fused), SCHEMA, make_config())
    for name, weight in table_weights(whole(plain), SCHEMA, make_config()).items():
        torch.testing.assert_close(trained[name], weight, atol=1e-5, rtol=1e-4)
        assert not torch.equal(start[name], weight)


def whole(model: torch.nn.Module) -> dict[str, Tensor]:
    """The state dict with whole tables, at one rank."""
    state = {}
    for name, tensor in model.state_dict().items():
        shards = tensor.local_shards() if hasattr(tensor, "local_shards") else None
        state[name] = (tensor if shards is None else shards[0].tensor).clone()
    return state


def test_adam_trains_data_parallel_tables(one_rank: None):
    model = make_sharded("auto", "adam")
    assert len(data_parallel_tables(model)) == 2 * len(SCHEMA.tables)
    before = whole(model)
    train(model, "adam", steps=1)
    changed = [name for name, tensor in whole(model).items() if not torch.equal(tensor, before[name])]
    assert {name for name in before if "embedding" in name} <= set(changed)


def test_one_table_may_learn_by_another_rule(one_rank: None):
    config = make_config()
    ranker = Ranker(config, SCHEMA, SparseTables(SCHEMA, config, device=torch.device("meta")))
    rules = TableOptimizerConfig(only={"user": TableRule(optimizer="adam", learning_rate=0.01)})
    model = shard(ranker, rules, CPU)
    (optimizer,) = table_optimizers(model, rules)
    assert isinstance(optimizer, torch.optim.Adam)
    assert optimizer.param_groups[0]["lr"] == 0.01
    assert len(data_parallel_tables(model)) == len(optimizer.param_groups[0]["params"]) == 2
    with pytest.raises(UserError, match=r"train\.tables\.only\.usr: there is no table 'usr'"):
        constraints(ranker.tables.layouts, config, TableOptimizerConfig(only={"usr": TableRule()}), 1)


def test_sharding_leaves_the_global_random_state_alone(one_rank: None):
    config = make_config()
    ranker = Ranker(config, SCHEMA, SparseTables(SCHEMA, config, device=torch.device("meta")))
    before = torch.random.get_rng_state()
    shard(ranker, TableOptimizerConfig(), CPU)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_local_rows_are_views_that_reach_the_kernels(one_rank: None):
    model = make_sharded("auto", "sgd")
    batch = random_batch(4)
    before = model(batch)
    for table in local_rows(model.module):
        table.weight.zero_()
    assert not torch.equal(model(batch), before)
    assert all(not weight.any() for weight in table_weights(whole(model), SCHEMA, make_config()).values())


@pytest.mark.parametrize(
    ("sharding", "optimizer", "ranks", "sentence"),
    [
        ("row_wise", "sgd", 64, r"model\.tables\.user\.sharding: row_wise cannot cut 50 rows into 64 shards"),
        ("column_wise", "sgd", 8, r"model\.tables\.user\.sharding: column_wise over 8 ranks needs a dim"),
        ("row_wise", "adam", 2, r"model\.tables\.user\.sharding: row_wise needs a fused optimizer"),
    ],
)
def test_impossible_plans_are_refused_with_the_key_named(sharding, optimizer, ranks, sentence):
    config = make_config(sharding)
    layouts = SparseTables(SCHEMA, config, device=torch.device("meta")).layouts
    with pytest.raises(UserError, match=sentence):
        constraints(layouts, config, TableOptimizerConfig(optimizer=optimizer), ranks)
