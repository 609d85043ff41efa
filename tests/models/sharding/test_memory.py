"""The memory of tables on a GPU, planned without one."""

from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranker_examples import SCHEMA, random_batch
from torchrec.distributed.batched_embedding_kernel import BatchedFusedEmbedding, BatchedFusedEmbeddingBag

from data_pipelines.batch import Schema, SparseSpec, TableSpec
from data_pipelines.errors import UserError
from models.ranker import Ranker, RankerConfig
from models.sharding.planning import PaperPlan, draw_plan
from models.sharding.sharding import TableOptimizerConfig, shard
from models.tables.lookup import SparseTables
from models.tables.rows import local_rows, settle_caches, start_values

BIG = Schema(
    tables=(TableSpec(name="item", rows=1_000_000), TableSpec(name="user", rows=1000)),
    sparse=(SparseSpec(name="item", table="item", kind="id"), SparseSpec(name="user", table="user", kind="id")),
    dense=(),
    tasks=("click",),
)
WEIGHTS, WITH_STATE = 1_000_000 * 16 * 4, 1_000_000 * 17 * 4


def plan(memory: str = "auto", *, card: float = 1e9, device: str = "cuda", **item: Any) -> PaperPlan:
    config = RankerConfig.model_validate({"dim": 16, "tables": {"item": {"memory": memory, **item}}})
    return draw_plan(
        BIG,
        config,
        TableOptimizerConfig(),
        ranks=1,
        ranks_per_node=1,
        bytes_per_rank=int(card),
        device=device,
        batch_size=100,
        ids_per_row={"item": 1.0, "user": 1.0},
    )


@pytest.mark.parametrize(
    ("memory", "on_card"), [("hbm", WITH_STATE), ("cached", WEIGHTS // 5), ("host", 0), ("auto", WITH_STATE)]
)
def test_a_table_is_in_the_memory_that_the_config_names(memory: str, on_card: int):
    drawn = plan(memory)
    item, user = drawn.tables
    assert (item.memory, user.memory) == ("hbm" if memory == "auto" else memory, "hbm")
    assert item.card_bytes == (on_card,)
    assert item.rank_bytes == (WITH_STATE,)
    assert drawn.card_bytes[0] == drawn.dense_bytes + on_card + user.bytes
    assert not drawn.notes


def test_a_table_larger_than_the_card_is_cached_and_the_plan_says_so():
    drawn = plan(card=5e7)
    assert [table.memory for table in drawn.tables] == ["cached", "hbm"]
    (note,) = drawn.notes
    assert note.startswith("table 'item' (1,000,000 x 16) does not fit on the card")
    assert "with a cache on it (model.tables.item.memory)" in note


def test_a_table_that_must_be_on_the_card_and_does_not_fit_is_named():
    with pytest.raises(
        UserError, match=r"0\.04 GB each for tables; the largest is 'item' .*\.memory to auto or cached"
    ):
        plan("hbm", card=5e7)


def test_a_table_on_every_rank_cannot_be_off_the_card():
    with pytest.raises(UserError, match=r"model\.tables\.item\.memory: a data_parallel table is in the card's memory"):
        plan("cached", sharding="data_parallel")


def test_on_a_cpu_the_key_is_accepted_and_said_to_have_no_effect():
    drawn = plan("cached", device="cpu")
    assert {table.memory for table in drawn.tables} == {"host"}
    assert drawn.card_bytes == (0,)
    assert drawn.notes == ("model.tables.item.memory has no effect on a CPU: all tables are in the machine's memory.",)
    assert not plan(device="cpu").notes


def test_cached_rows_are_written_back_before_tables_are_read_or_written(
    one_rank: None, monkeypatch: pytest.MonkeyPatch
):
    config = RankerConfig.model_validate({"dim": 8, "pooling": {"likes": "attention"}})
    ranker = Ranker(config, SCHEMA, SparseTables(SCHEMA, config, device=torch.device("meta")))
    model = shard(ranker, TableOptimizerConfig(), torch.device("cpu"))
    model(random_batch(4))
    done: list[str] = []
    for kernel in (BatchedFusedEmbeddingBag, BatchedFusedEmbedding):
        for name in ("flush", "purge"):
            monkeypatch.setattr(kernel, name, lambda self, did=f"{kernel.__name__}.{name}": done.append(did))
    settle_caches(model)
    assert set(done) == {
        f"{kernel}.{name}"
        for kernel in ("BatchedFusedEmbeddingBag", "BatchedFusedEmbedding")
        for name in ("flush", "purge")
    }
    done.clear()
    next(iter(local_rows(model)))
    assert [did.partition(".")[2] for did in done] == ["flush", "purge"]


@pytest.mark.gpu
def test_start_values_on_a_gpu_depend_on_seed_and_table_only():
    layout = SparseTables(SCHEMA, RankerConfig(dim=6), device=torch.device("meta")).layouts[0]
    cuda = torch.device("cuda")
    before = torch.cuda.get_rng_state()
    first = start_values(layout, 50_000, "0/user/0", cuda)
    assert torch.equal(first, start_values(layout, 50_000, "0/user/0", cuda))
    assert not torch.equal(first, start_values(layout, 50_000, "1/user/0", cuda))
    assert torch.equal(torch.cuda.get_rng_state(), before)
    assert first.is_cuda
    assert not first[:, layout.dim :].any()
    assert float(first[:, : layout.dim].std()) == pytest.approx(layout.init_std, rel=0.02)


@pytest.mark.gpu
@pytest.mark.parametrize("memory", ["cached", "host"])
def test_a_table_off_the_card_trains_as_one_on_the_card(memory: str):
    cuda, rows = torch.device("cuda", 0), {}
    for name in ("hbm", memory):
        config = RankerConfig.model_validate({"dim": 8, "tables": {"user": {"memory": name}}})
        torch.manual_seed(0)
        dist.init_process_group("cpu:gloo,cuda:nccl", store=dist.HashStore(), rank=0, world_size=1)
        try:
            ranker = Ranker(config, SCHEMA, SparseTables(SCHEMA, config, device=torch.device("meta")))
            model = shard(ranker, TableOptimizerConfig(learning_rate=0.1), cuda)
            for step in range(5):
                model(random_batch(64, seed=step).to(cuda)).square().sum().backward()
            rows[name] = next(s.weight.cpu() for s in local_rows(model.module) if s.table == "user")
        finally:
            dist.destroy_process_group()
    torch.testing.assert_close(rows[memory], rows["hbm"], atol=1e-5, rtol=1e-4)
