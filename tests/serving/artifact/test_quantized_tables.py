"""Lookups over mapped bytes give what plain tables give, whatever the bits, the pooling and the mix of features."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchrec import KeyedJaggedTensor

from data_pipelines.batch import Batch, DenseSpec, Schema, SparseSpec, TableSpec
from models.codecs.quantization import dequantize_rows, quantize_rows
from models.tables.config import TableConfig, TablesConfig
from models.tables.lookup import SparseTables
from models.tables.plain import PlainTables
from models.tables.plan import lookup_plan
from serving.artifact.quantized_tables import MappedTable, QuantizedTables, TableStorage

SCHEMA = Schema(
    tables=(TableSpec(name="user", rows=11), TableSpec(name="tag", rows=7), TableSpec(name="item", rows=9)),
    sparse=(
        SparseSpec(name="user", table="user", kind="id"),
        SparseSpec(name="tags", table="tag", kind="bag"),
        SparseSpec(name="seen", table="item", kind="bag", weighted=True),
        SparseSpec(name="item", table="item", kind="id"),
        SparseSpec(name="likes.item", table="item", kind="history", sequence="likes"),
        SparseSpec(name="friend", table="user", kind="id"),
    ),
    dense=(DenseSpec(name="price", width=1),),
    tasks=("click",),
)
CPU = torch.device("cpu")
POOLINGS = [
    {},
    {"tags": "sum"},
    {"likes": "attention"},
    {"likes": "last", "seen": "sum"},
    {"likes": "sum", "tags": "sum"},
]


def random_batch(rows: int, generator: torch.Generator) -> Batch:
    def bags(weighted: bool) -> KeyedJaggedTensor:
        specs = [spec for spec in SCHEMA.sparse if spec.weighted is weighted]
        lengths = [
            torch.ones(rows, dtype=torch.int32)
            if spec.kind == "id"
            else torch.randint(0, 4, (rows,), generator=generator, dtype=torch.int32)
            for spec in specs
        ]
        values = [
            torch.randint(0, SCHEMA.table(spec.table).rows, (int(n.sum()),), generator=generator, dtype=torch.int32)
            for spec, n in zip(specs, lengths, strict=True)
        ]
        weights = torch.rand(sum(map(len, values)), generator=generator) + 0.1 if weighted else None
        return KeyedJaggedTensor(
            [s.name for s in specs], torch.cat(values), weights=weights, lengths=torch.cat(lengths)
        )

    return Batch(bags(False), bags(True), torch.zeros(rows, 1), None, torch.arange(rows))


def random_tables(config: TablesConfig, generator: torch.Generator) -> dict[str, torch.Tensor]:
    return {t.name: torch.randn(t.rows, t.dim, generator=generator) for t in lookup_plan(SCHEMA, config).tables}


def quantized(
    config: TablesConfig,
    tables: dict[str, torch.Tensor],
    bits: dict[str, int],
    device: torch.device | None = None,
) -> QuantizedTables:
    """Tables of the bytes of an artifact, or of their copy for a device."""
    storage, mapped = [torch.zeros(13, dtype=torch.uint8)], {}
    for name, table in tables.items():
        mapped[name] = MappedTable(len(table), table.shape[1], bits[name], sum(map(len, storage)))
        storage.append(quantize_rows(table, bits[name]).flatten())
    stored = TableStorage(torch.cat(storage), mapped)
    return QuantizedTables(SCHEMA, config, stored.aligned(device) if device is not None else stored, {})


def assert_same(actual, expected) -> None:
    for part in ("pooled", "wide"):
        assert getattr(actual, part).keys() == getattr(expected, part).keys()
        for name, value in getattr(expected, part).items():
            torch.testing.assert_close(getattr(actual, part)[name], value, msg=lambda m, name=name: f"{name}: {m}")
    assert actual.sequences.keys() == expected.sequences.keys()
    for name, (values, offsets) in expected.sequences.items():
        torch.testing.assert_close(actual.sequences[name][0], values)
        assert actual.sequences[name][1].tolist() == offsets.tolist()


@settings(deadline=None, max_examples=25)
@given(
    pooling=st.sampled_from(POOLINGS),
    bits=st.tuples(*[st.sampled_from([32, 16, 8, 4, 2])] * 3),
    dims=st.tuples(*[st.integers(1, 20)] * 3),
    wide=st.booleans(),
    rows=st.integers(1, 5),
    seed=st.integers(0, 2**31),
)
def test_mapped_lookups_equal_plain_ones(pooling, bits, dims, wide, rows, seed):
    generator = torch.Generator().manual_seed(seed)
    names = [table.name for table in SCHEMA.tables]
    config = TablesConfig(
        tables={name: TableConfig(dim=dim) for name, dim in zip(names, dims, strict=True)}, pooling=pooling, wide=wide
    )
    tables = random_tables(config, generator)
    by_name = dict(zip(names, bits, strict=True))
    bits = {name: by_name[name.removeprefix("wide ")] for name in tables}
    seen = {
        name: dequantize_rows(quantize_rows(table, bits[name]), bits[name], table.shape[1])
        for name, table in tables.items()
    }
    batch = random_batch(rows, generator)
    expected = PlainTables(SCHEMA, config, seen, {}, {})(batch)
    assert_same(quantized(config, tables, bits)(batch), expected)
    assert_same(quantized(config, tables, bits, CPU)(batch), expected)


def test_the_copy_for_a_gpu_takes_the_bytes_that_it_says():
    tables = {"a": MappedTable(3, 5, 8, 7), "b": MappedTable(2, 4, 32, 34)}
    content = torch.arange(66, dtype=torch.uint8)
    stored = TableStorage(content, tables)
    copy = stored.aligned(CPU)
    assert (copy.alignment, len(copy.content), stored.aligned_bytes) == (16, 256, 256)
    assert {name: table.offset for name, table in copy.tables.items()} == {"a": 0, "b": 128}
    assert copy.content[16:25].tolist() == content[16:25].tolist()
    assert copy.content[144:160].tolist() == content[50:66].tolist()
    assert not copy.content[25:32].any()


@pytest.mark.gpu
@pytest.mark.parametrize("bits", [32, 16, 8, 4, 2])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_lookups_on_a_gpu_equal_those_on_a_cpu(pooling, bits):
    generator = torch.Generator().manual_seed(bits)
    dims = {"user": TableConfig(dim=7), "tag": TableConfig(dim=16), "item": TableConfig(dim=33)}
    config = TablesConfig(tables=dims, pooling=pooling, wide=True)
    tables = random_tables(config, generator)
    batch, every = random_batch(64, generator), dict.fromkeys(tables, bits)
    expected = quantized(config, tables, every)(batch)
    found = quantized(config, tables, every, torch.device("cuda", 0))(batch.to(torch.device("cuda", 0)))
    for part in (found.pooled, found.wide):
        part.update({name: value.cpu() for name, value in part.items()})
    found.sequences.update({name: (v.cpu(), offsets.cpu()) for name, (v, offsets) in found.sequences.items()})
    assert_same(found, expected)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_plain_tables_equal_the_tables_of_training(pooling):
    generator = torch.Generator().manual_seed(5)
    config = TablesConfig(dim=4, pooling=pooling, wide=True)
    trained = SparseTables(SCHEMA, config)
    trained.set_keep("item", torch.arange(9) % 3 > 0)
    tables = random_tables(config, generator)
    plain = PlainTables(SCHEMA, config, tables, trained.keep, {})
    from models.tables.rows import local_rows

    for shard in local_rows(trained):
        shard.weight.copy_(tables[shard.table])
    batch = random_batch(8, generator)
    assert_same(plain(batch), trained(batch))


def test_a_narrow_table_is_widened_by_its_factor():
    generator = torch.Generator().manual_seed(1)
    config = TablesConfig(dim=8)
    tables = random_tables(config, generator)
    factors = {"item": torch.randn(3, 8, generator=generator)}
    narrow = tables | {"item": torch.randn(9, 3, generator=generator)}
    batch = random_batch(6, generator)
    wide = PlainTables(SCHEMA, config, tables | {"item": narrow["item"] @ factors["item"]}, {}, {})(batch)
    assert_same(PlainTables(SCHEMA, config, narrow, {}, factors)(batch), wide)
    mapped = quantized(config, narrow, dict.fromkeys(narrow, 32))
    mapped._factors = factors
    assert_same(mapped(batch), wide)
