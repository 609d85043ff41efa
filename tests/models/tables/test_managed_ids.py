"""Rows for ids that cannot be enumerated: no collisions, eviction, the same on every rank and after loading."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from ranker_examples import bags, on_ranks
from torch import Tensor

from data_pipelines.batch import Batch, Schema, SparseSpec, TableSpec
from data_pipelines.errors import UserError
from models.ranker import Ranker, RankerConfig
from models.tables.lookup import SparseTables
from models.tables.managed_ids import ManagedRows
from models.tables.rows import local_rows

SCHEMA = Schema(
    tables=(TableSpec(name="url", rows=2_000_000_000), TableSpec(name="user", rows=9)),
    sparse=(
        SparseSpec(name="url", table="url", kind="id"),
        SparseSpec(name="seen", table="url", kind="bag"),
        SparseSpec(name="user", table="user", kind="id"),
    ),
    dense=(),
    tasks=("click",),
)


def make_ranker(rows: int = 8) -> Ranker:
    torch.manual_seed(0)
    tower = {"kind": "mlp", "hidden": [4]}
    config = RankerConfig.model_validate({"dim": 4, "tables": {"url": {"rows": rows}}, "tower": tower})
    return Ranker(config, SCHEMA, SparseTables(SCHEMA, config))


def make_batch(urls: list[int], seen: list[list[int]] | None = None) -> Batch:
    seen = seen or [[] for _ in urls]
    sparse = bags({"url": [[url] for url in urls], "seen": seen, "user": [[2] for _ in urls]})
    return Batch(sparse, None, torch.zeros(len(urls), 0), None, torch.arange(len(urls)))


def test_different_ids_never_share_a_row_while_there_are_rows():
    rows = ManagedRows(12, reserved=2)
    ids = torch.tensor([1_999_999_999, 7, 123_456_789, 7, 0, 1, 2])
    assert rows(ids).tolist() == [1, 1, 1, 1, 0, 1, 1]
    changed = rows.admit(ids)
    found = rows(ids).tolist()
    assert found[4:6] == [0, 1]
    assert found[1] == found[3]
    assert len({*found[:4], found[6]}) == 4
    assert sorted(changed.tolist()) == sorted({*found[:4], found[6]})
    assert min(found[0], found[1], found[2], found[6]) >= 2
    assert max(found) < 12
    assert rows(torch.tensor([555])).tolist() == [1]


def test_rows_that_were_moved_to_a_device_are_assigned_as_before():
    stayed, moved = ManagedRows(4, reserved=2), ManagedRows(4, reserved=2)
    moved._apply(torch.clone)  # what `.to(device)` does to buffers: new tensors in their place
    for ids in ([10, 10, 20], [30, 30, 30], [10]):
        assert moved.admit(torch.tensor(ids)).tolist() == stayed.admit(torch.tensor(ids)).tolist()
    for name, buffer in stayed.state_dict().items():
        assert torch.equal(moved.state_dict()[name], buffer), name


def test_ids_gone_cold_lose_their_rows_to_new_ones():
    rows = ManagedRows(4, reserved=2)
    rows.admit(torch.tensor([10, 10, 10, 20]))
    for _ in range(5):
        rows.admit(torch.tensor([10, 10]))
    before = rows(torch.tensor([10, 20])).tolist()
    changed = rows.admit(torch.tensor([10, 30, 30]))
    assert rows(torch.tensor([10, 20, 30])).tolist() == [before[0], 1, before[1]]
    assert changed.tolist() == [before[1]]


def test_a_ranker_counts_in_training_only_and_new_owners_start_anew():
    ranker = make_ranker()
    assert [layout.rows for layout in ranker.tables.layouts] == [8, 9]
    ranker.eval()
    batch = make_batch([1_000_000_007, 5], [[5, 3], []])
    unseen = ranker(batch)
    assert torch.equal(unseen[0], ranker(make_batch([77, 5], [[6, 8], []]))[0])
    table = next(shard.weight for shard in local_rows(ranker) if shard.table == "url")
    table[2:].fill_(9.0)
    ranker.train()
    ranker(batch)
    restarted = ranker.managed_ids.managed[0](torch.tensor([1_000_000_007, 5, 3]))
    assert table[restarted].abs().max() < 1
    untouched = [row for row in range(2, 8) if row not in restarted.tolist()]
    assert (table[untouched] == 9.0).all()


def test_the_state_survives_saving_and_loading():
    ranker = make_ranker()
    for start in (10, 20, 30):
        ranker(make_batch([start, start + 1, start + 2]))
    again = make_ranker()
    again.load_state_dict(ranker.state_dict())
    for step in range(3):
        batch = make_batch([30 + step, 40 + step, 31])
        assert torch.equal(again(batch), ranker(batch))
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in ranker.state_dict().items())


def admit_share() -> dict[str, Tensor]:
    rows = ManagedRows(6, reserved=2)
    own = [[11, 12, 12], [12, 13]][dist.get_rank()]
    rows.admit(torch.tensor(own))
    rows.admit(torch.tensor([14, 15, 16][dist.get_rank() :]))
    return {"rows": rows(torch.arange(10, 20))}


def test_ranks_agree_on_rows_whatever_each_has_seen(tmp_path: Path):
    first, second = on_ranks(2, tmp_path, admit_share)
    assert torch.equal(first["rows"], second["rows"])
    alone = ManagedRows(6, reserved=2)
    alone.admit(torch.tensor([11, 12, 12, 12, 13]))
    alone.admit(torch.tensor([14, 15, 16, 15, 16]))
    assert torch.equal(first["rows"], alone(torch.arange(10, 20)))


def test_senseless_numbers_of_rows_are_refused_and_pruning_too():
    with pytest.raises(UserError, match=r"model\.tables\.url\.rows must be between 3 and 1999999999"):
        make_ranker(rows=2)
    with pytest.raises(UserError, match=r"model\.tables\.url\.rows: ids of 'url' share rows over time"):
        make_ranker().tables.set_keep("url", torch.ones(100, dtype=torch.bool))
