"""Which histories are pooled, and what serves as their candidate."""

import pytest
from ranker_examples import SCHEMA

from data_pipelines.batch import Schema
from data_pipelines.errors import UserError
from models.layers.histories import Histories
from models.tables.config import TablesConfig


def test_the_candidate_of_a_column_is_the_feature_that_shares_its_table():
    histories = Histories(SCHEMA, TablesConfig(pooling={"likes": "attention"}))
    assert histories.columns == {"likes": ["likes.movie", "likes.genres", "likes.age"]}
    assert histories.candidates == {"likes": ["movie", "genres"]}


@pytest.mark.parametrize("pooling", ["attention", "hstu", "bst"])
def test_a_pooling_that_compares_is_refused_without_a_candidate(pooling):
    sparse = tuple(spec for spec in SCHEMA.sparse if spec.name not in ("movie", "genres"))
    schema = Schema(tables=SCHEMA.tables, sparse=sparse, dense=(), tasks=("like",))
    with pytest.raises(UserError, match=rf"model\.pooling\.likes: {pooling} needs a candidate"):
        Histories(schema, TablesConfig(pooling={"likes": pooling}))


@pytest.mark.parametrize("pooling", ["attention", "convolution", "hstu", "bst"])
def test_work_is_counted_for_a_history_of_full_length(pooling):
    sparse = [spec.model_copy(update={"max_length": 50 if spec.sequence else None}) for spec in SCHEMA.sparse]
    histories = Histories(SCHEMA.model_copy(update={"sparse": tuple(sparse)}), TablesConfig(pooling={"likes": pooling}))
    (pool,) = histories.pools.values()
    assert histories.flops(3) == 3 * sum(pool.work(50).values())
    assert histories.flops(1) > 20 * sum(pool.work(1).values())
