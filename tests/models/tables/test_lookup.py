"""Table lookups against loops over bags, and every way to reach the rows."""

import pytest
import torch
from fbgemm_gpu.split_table_batched_embeddings_ops_common import PoolingMode
from hypothesis import given, settings
from hypothesis import strategies as st
from ranker_examples import SCHEMA, bags, random_batch

from data_pipelines.batch import Batch, Schema, SparseSpec, TableSpec
from data_pipelines.errors import UserError
from models.tables.config import TableConfig, TablesConfig
from models.tables.lookup import SparseTables
from models.tables.plan import lookup_plan
from models.tables.rows import grow_table, initialise_tables, local_rows, table_weights


def randomise(tables: SparseTables) -> dict[str, torch.Tensor]:
    """Fill tables with distinct numbers; they are returned by table name."""
    for shard in local_rows(tables):
        shard.weight.normal_()
    return {shard.table: shard.weight for shard in local_rows(tables)}


def loop_reference(batch: Batch, spec: SparseSpec, config: TablesConfig, weight_Rd: torch.Tensor) -> torch.Tensor:
    column = batch.bags(spec)
    weights = column.weights() if spec.weighted else torch.ones(len(column.values()))
    rows = []
    for start, stop in zip(column.offsets()[:-1], column.offsets()[1:], strict=True):
        weighted = [weights[i] * weight_Rd[column.values()[i]] for i in range(start, stop)]
        total_d = torch.stack(weighted).sum(0) if weighted else torch.zeros(weight_Rd.shape[1])
        mean = config.pooling_of(spec) == "mean" and spec.kind != "id"
        rows.append(total_d / weights[start:stop].sum() if mean and weighted else total_d)
    return torch.stack(rows)


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 9),
    seed=st.integers(0, 999),
    dim=st.integers(1, 9),
    pooling=st.fixed_dictionaries({name: st.sampled_from(["sum", "mean"]) for name in ("genres", "tags", "likes")}),
    wide=st.booleans(),
)
def test_pooled_embeddings_equal_a_loop_over_bags(rows, seed, dim, pooling, wide):
    config = TablesConfig(dim=dim, pooling=pooling, wide=wide, tables={"user": TableConfig(dim=3)})
    tables = SparseTables(SCHEMA, config)
    weights = randomise(tables)
    batch = random_batch(rows, seed)
    embedded = tables(batch)
    assert not embedded.sequences
    for spec in SCHEMA.sparse:
        expected = loop_reference(batch, spec, config, weights[spec.table])
        torch.testing.assert_close(embedded.pooled[spec.name], expected, atol=1e-5, rtol=1e-4)
        if wide:
            expected = loop_reference(batch, spec, config, weights[f"wide {spec.table}"])
            torch.testing.assert_close(embedded.wide[spec.name], expected, atol=1e-5, rtol=1e-4)


def test_sequences_keep_every_event_in_order():
    tables = SparseTables(SCHEMA, TablesConfig(dim=5, pooling={"likes": "attention"}))
    weights = randomise(tables)
    batch = random_batch(6)
    values_Ld, offsets = tables(batch).sequences["likes.movie"]
    column = batch.sparse["likes.movie"]
    assert torch.equal(values_Ld, weights["movie"][column.values().long()])
    assert torch.equal(offsets.long(), column.offsets().long())


def test_tables_choose_their_lookup_by_what_their_features_need():
    plan = lookup_plan(SCHEMA, TablesConfig(pooling={"likes": "last"}))
    routes = {table.name: (table.route, table.pooling) for table in plan.tables}
    assert routes["movie"][0] == routes["genres"][0] == routes["likes.age"][0] == "rows"
    assert routes["items"] == ("pooled", PoolingMode.MEAN)
    assert routes["tags"] == ("weighted", PoolingMode.SUM)
    differing = lookup_plan(SCHEMA, TablesConfig(pooling={"genres": "sum"})).tables
    assert {t.name: t.route for t in differing}["genres"] == "rows"


def test_table_names_may_hold_any_character():
    names = ("a.b", "a%2Eb", "items", "type", "Ürün/kod", "a b")
    schema = Schema(
        tables=tuple(TableSpec(name=name, rows=4) for name in names),
        sparse=tuple(SparseSpec(name=name, table=name, kind="id") for name in names),
        dense=(),
        tasks=("click",),
    )
    config = TablesConfig(dim=4)
    tables = SparseTables(schema, config)
    assert set(table_weights(tables.state_dict(), schema, config)) == set(names)
    batch = Batch(bags({name: [[1], [2]] for name in names}), None, torch.zeros(2, 0), None, torch.arange(2))
    assert set(tables(batch).pooled) == set(names)


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"tables": {"movies": {"dim": 4}}}, r"model\.tables\.movies: there is no table 'movies'"),
        ({"pooling": {"genre": "sum"}}, r"model\.pooling\.genre: there is no bag or history 'genre'"),
        ({"pooling": {"genres": "last"}}, r"model\.pooling\.genres: 'last' needs a history"),
        ({"pooling": {"likes.movie": "attention"}}, r"reads a whole history; set model\.pooling\.likes"),
    ],
)
def test_names_that_do_not_exist_are_refused(config, sentence):
    with pytest.raises(UserError, match=sentence):
        SparseTables(SCHEMA, TablesConfig.model_validate(config))


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 999), pooling=st.sampled_from(["sum", "mean", "attention"]))
def test_dropped_rows_are_looked_up_as_oov(seed, pooling):
    torch.manual_seed(seed)
    tables = SparseTables(SCHEMA, TablesConfig(dim=4, pooling={"likes": pooling}, wide=True))
    randomise(tables)
    batch = random_batch(5, seed)
    keeps = {spec.name: torch.rand(spec.rows) < 0.5 for spec in SCHEMA.tables}
    for keep in keeps.values():
        keep[:2] = True

    def redirected(kjt):
        columns = {key: kjt[key] for key in kjt.keys()}  # noqa: SIM118
        ids = {key: column.values().long() for key, column in columns.items()}
        table = {spec.name: spec.table for spec in SCHEMA.sparse}
        ids = {key: torch.where(keeps[table[key]][value], value, 1) for key, value in ids.items()}
        rows = {key: [b.tolist() for b in ids[key].split(column.lengths().tolist())] for key, column in columns.items()}
        return bags(rows, None if kjt.weights_or_none() is None else kjt.weights().tolist())

    expected = tables(Batch(redirected(batch.sparse), redirected(batch.weighted), batch.dense, None, batch.rows))
    for name, keep in keeps.items():
        tables.set_keep(name, keep)
    actual = tables(batch)
    for name, value in expected.pooled.items():
        assert torch.equal(actual.pooled[name], value)
    for name, (values, _) in expected.sequences.items():
        assert torch.equal(actual.sequences[name][0], values)
    assert {name: keep.tolist() for name, keep in tables.keep.items()} == {n: k.tolist() for n, k in keeps.items()}


def test_start_values_depend_on_seed_and_table_only():
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    whole = SparseTables(SCHEMA, TablesConfig(dim=6))
    assert torch.equal(torch.random.get_rng_state(), before)
    fewer = Schema(tables=SCHEMA.tables[1:], sparse=SCHEMA.sparse[1:], dense=(), tasks=("like",))
    part = SparseTables(fewer, TablesConfig(dim=6, pooling={"likes": "last"}))
    first = {shard.table: shard.weight.clone() for shard in local_rows(whole)}
    for shard in local_rows(part):
        assert torch.equal(shard.weight, first[shard.table])
    assert not torch.equal(first["user"][:20], first["genres"])
    small = SparseTables(SCHEMA, TablesConfig(dim=6, init_std=1e-4, wide=True))
    for shard in local_rows(small):
        expected = torch.zeros_like(shard.weight) if shard.table.startswith("wide ") else first[shard.table] / 100
        torch.testing.assert_close(shard.weight, expected)
    initialise_tables(whole, seed=1)
    assert not torch.equal(next(iter(local_rows(whole))).weight, first["user"])


def test_grown_rows_start_where_their_values_were_looked_up_before():
    weight_Rd = torch.randn(6, 3)
    grown_Rd = grow_table(weight_Rd, 9, reserved=3)
    assert torch.equal(grown_Rd[:6], weight_Rd)
    torch.testing.assert_close(grown_Rd[6:], weight_Rd[1:3].mean(0).expand(3, 3))
    with pytest.raises(ValueError, match="cannot grow"):
        grow_table(weight_Rd, 5, reserved=2)
