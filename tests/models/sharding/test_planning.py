"""Plans on paper: bytes and traffic against arithmetic, and tables that do not fit."""

import pytest
from ranker_examples import SCHEMA

from data_pipelines.batch import Schema, SparseSpec, TableSpec
from data_pipelines.errors import UserError
from models.ranker import RankerConfig
from models.sharding.planning import PaperPlan, draw_plan
from models.sharding.sharding import TableOptimizerConfig

BIG = Schema(
    tables=(TableSpec(name="item", rows=1_000_000), TableSpec(name="user", rows=1000)),
    sparse=(
        SparseSpec(name="item", table="item", kind="id"),
        SparseSpec(name="seen", table="item", kind="bag"),
        SparseSpec(name="user", table="user", kind="id"),
    ),
    dense=(),
    tasks=("click",),
)


def plan(ranks: int, *, sharding: str = "auto", optimizer: str = "rowwise_adagrad", memory: float = 8e9) -> PaperPlan:
    config = RankerConfig.model_validate({"dim": 16, "tables": {"item": {"sharding": sharding}}})
    return draw_plan(
        BIG,
        config,
        TableOptimizerConfig(optimizer=optimizer),
        ranks=ranks,
        ranks_per_node=min(ranks, 8),
        bytes_per_rank=int(memory),
        device="cpu",
        batch_size=100,
        ids_per_row={"item": 1.0, "seen": 5.0, "user": 1.0},
    )


def test_one_rank_holds_everything_and_sends_nothing():
    drawn = plan(1)
    item = drawn.tables[0]
    assert item.bytes == 1_000_000 * (16 + 1) * 4
    assert drawn.rank_bytes[0] == drawn.dense_bytes + sum(table.bytes for table in drawn.tables)
    assert drawn.rank_traffic == (0,)


def test_rows_cut_over_64_ranks_weigh_a_64th_on_each():
    item = plan(64, sharding="row_wise").tables[0]
    assert item.ranks == 64
    assert max(item.rank_bytes) == pytest.approx(1_000_000 / 64 * 17 * 4, rel=0.01)


def test_a_table_cut_over_one_node_sends_whole_vectors_only_to_the_other_nodes():
    item = plan(16, sharding="table_row_wise").tables[0]
    owners = [rank for rank in range(16) if item.rank_bytes[rank]]
    assert owners in (list(range(8)), list(range(8, 16)))
    ids, vectors = 600 * 8, 200 * 16 * 4
    for rank, sent in enumerate(item.rank_traffic):
        if rank in owners:
            assert sent == ids * 7 // 8 + 200 * 4 * 7 + vectors * (2 * 7 + 1) + vectors * 2 * 7
        else:
            assert sent == ids + 200 * 4 * 8 + vectors


def test_two_ranks_send_ids_one_way_and_vectors_both_ways():
    item = plan(2, sharding="table_wise").tables[0]
    owner, other = (0, 1) if item.rank_bytes[0] else (1, 0)
    vectors = 200 * 16 * 4
    assert item.rank_traffic[owner] == vectors
    assert item.rank_traffic[other] == 600 * 8 + 200 * 4 + vectors


def test_a_data_parallel_table_is_everywhere_with_its_gradient():
    item = plan(4, sharding="data_parallel", optimizer="adam").tables[0]
    assert item.rank_bytes == (1_000_000 * 16 * 4 * 4,) * 4
    assert item.rank_traffic == (2 * 1_000_000 * 16 * 4 * 3 // 4,) * 4


def test_tables_that_do_not_fit_are_named_with_what_to_change():
    with pytest.raises(UserError, match=r"largest is 'item' .* set model\.tables\.item\.sharding to row_wise"):
        plan(2, sharding="table_wise", memory=5e7)
    assert plan(4, sharding="row_wise", memory=5e7).tables[0].ranks == 4


def test_every_route_of_a_table_can_be_planned():
    config = RankerConfig.model_validate({"pooling": {"likes": "attention"}, "wide": True})
    drawn = draw_plan(
        SCHEMA,
        config,
        TableOptimizerConfig(),
        ranks=3,
        ranks_per_node=3,
        bytes_per_rank=10**9,
        device="cpu",
        batch_size=10,
        ids_per_row={feature.name: 2.0 for feature in SCHEMA.sparse},
    )
    assert len(drawn.tables) == 2 * len(SCHEMA.tables)
    assert min(drawn.rank_traffic) > 0
