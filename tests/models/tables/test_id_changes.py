"""Changes of ids: one after the other, and one rebuild of the bags per step however many there are."""

from typing import Any

import pytest
import torch
from ranker_examples import SCHEMA, random_batch

from models.ranker import Ranker, RankerConfig
from models.tables import id_changes
from models.tables.id_changes import IdChanges
from models.tables.lookup import SparseTables
from models.tables.unknown_ids import UnknownIds


def test_changes_apply_one_after_the_other_and_leave_the_batch_as_it_is():
    batch = random_batch(20)
    before = batch.sparse.values().clone()
    ids = IdChanges(batch).change({"user": lambda ids_L: ids_L + 1}).change({"user": lambda ids_L: ids_L * 2})
    changed = ids.batch()
    assert torch.equal(changed.sparse["user"].values(), (batch.sparse["user"].values() + 1) * 2)
    assert torch.equal(changed.sparse["movie"].values(), batch.sparse["movie"].values())
    assert torch.equal(batch.sparse.values(), before)
    assert changed.weighted is batch.weighted


def test_a_batch_without_changes_is_handed_on():
    batch = random_batch(5)
    assert IdChanges(batch).change({"stranger": lambda ids_L: ids_L + 1}).batch() is batch


def test_weights_are_divided_by_their_sum_where_the_plan_says_so():
    batch = random_batch(30)
    weighted = IdChanges(batch).batch(["tags"]).weighted
    assert weighted is not None
    sums = torch.segment_reduce(weighted["tags"].weights(), "sum", lengths=weighted["tags"].lengths().long(), initial=0)
    filled = weighted["tags"].lengths() > 0
    torch.testing.assert_close(sums[filled], torch.ones(int(filled.sum())))


@pytest.mark.parametrize("managed", [False, True])
def test_unknown_managed_and_pruned_ids_rebuild_the_bags_once_a_step(managed: bool, monkeypatch: pytest.MonkeyPatch):
    rebuilt: list[tuple[str, ...]] = []

    class Counted(id_changes.KeyedJaggedTensor):  # type: ignore[misc,name-defined]
        def __init__(self, keys: list[str], **rest: Any) -> None:
            rebuilt.append(tuple(keys))
            super().__init__(keys=keys, **rest)

    rows = {"movie": {"rows": 8}} if managed else {}
    config = RankerConfig.model_validate({"dim": 4, "tables": rows, "tower": {"kind": "mlp", "hidden": [4]}})
    ranker = Ranker(config, SCHEMA, SparseTables(SCHEMA, config))
    users = SCHEMA.table("user").rows
    ranker.tables.set_keep("user", torch.rand(users) < 0.5)
    batch = random_batch(12)
    monkeypatch.setattr(id_changes, "KeyedJaggedTensor", Counted)
    ids = IdChanges(batch)
    UnknownIds({"user": 0.3, "movie": 0.3, "tags": 0.3}, SCHEMA)(ids)
    ranker(ids).sum().backward()
    assert sorted(rebuilt) == sorted([tuple(batch.sparse.keys()), tuple(batch.weighted.keys())])
