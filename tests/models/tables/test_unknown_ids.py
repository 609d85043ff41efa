"""Ids that training reads as unknown."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ranker_examples import SCHEMA, random_batch

from data_pipelines.batch import Batch
from data_pipelines.errors import UserError
from models.tables.id_changes import IdChanges
from models.tables.unknown_ids import UnknownIds

RESERVED = {spec.name: SCHEMA.table(spec.table).reserved for spec in SCHEMA.sparse}


def with_unknown(batch: Batch, unknown: UnknownIds) -> Batch:
    ids = IdChanges(batch)
    unknown(ids)
    return ids.batch()


def test_a_share_of_known_ids_becomes_unknown_and_nothing_else_changes():
    torch.manual_seed(0)
    batch = random_batch(4000)
    assert batch.weighted is not None
    changed = with_unknown(batch, UnknownIds({"user": 0.3, "likes.movie": 0.1, "tags": 0.5}, SCHEMA))
    assert changed.weighted is not None
    for before, after in ((batch.sparse, changed.sparse), (batch.weighted, changed.weighted)):
        assert torch.equal(before.lengths(), after.lengths())
        for name, bags in before.to_dict().items():
            old, new = bags.values(), after[name].values()
            moved = old != new
            assert (new[moved] == 1).all()
            assert (old[moved] >= RESERVED[name]).all()
            share = float(moved.sum() / (old >= RESERVED[name]).sum())
            assert share == pytest.approx({"user": 0.3, "likes.movie": 0.1, "tags": 0.5}.get(name, 0), abs=0.03)
    assert torch.equal(batch.weighted.weights(), changed.weighted.weights())
    assert torch.equal(batch.dense, changed.dense)


@settings(max_examples=20, deadline=None)
@given(buckets=st.integers(1, 5))
def test_unknown_ids_spread_over_all_buckets(buckets: int):
    tables = tuple(t.model_copy(update={"oov_buckets": buckets}) for t in SCHEMA.tables)
    batch = random_batch(500)
    changed = with_unknown(batch, UnknownIds({"user": 0.999}, SCHEMA.model_copy(update={"tables": tables})))
    known = batch.sparse["user"].values() > buckets
    assert set(changed.sparse["user"].values()[known].tolist()) <= {*range(1, 1 + buckets), *range(1 + buckets, 50)}
    assert set(range(1, 1 + buckets)) <= set(changed.sparse["user"].values()[known].tolist())


def test_features_that_are_not_there_are_named():
    with pytest.raises(UserError, match=r"train\.unknown: there is no sparse feature 'year', only user, movie"):
        UnknownIds({"year": 0.1}, SCHEMA)
