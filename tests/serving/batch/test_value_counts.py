"""How many values of scored rows are known: said in every result, warned about, and refused above a limit."""

import json
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.dataset.dataset import Dataset
from data_pipelines.errors import Notice, UserError
from serving.artifact.artifact import Artifact
from serving.batch.batch_job import run_job
from serving.batch.options import JobOptions
from serving.batch.value_counts import ValueCounts

COUNTS = st.dictionaries(st.sampled_from("abc"), st.integers(0, 5))


@pytest.fixture
def rows(trained: tuple[Dataset, Path]) -> pl.DataFrame:
    return trained[0].raw("test").drop(":row", strict=False)


def test_unknown_and_missing_values_are_counted(exported: Path, rows: pl.DataFrame, tmp_path: Path) -> None:
    half = pl.int_range(pl.len()) % 2 == 0
    rows = rows.with_columns(
        item=pl.when(half).then(pl.lit("never seen")).otherwise(pl.col("item").cast(pl.String)),
        device=pl.when(half).then(None).otherwise(pl.col("device")),
    )
    rows.write_parquet(tmp_path / "rows.parquet")
    result = run_job(Artifact.open(exported), str(tmp_path / "rows.parquet"), tmp_path / "scores")
    assert 0.3 < result.unknown["item"] < 0.8
    assert result.unknown["device"] < 0.1
    assert result.nulls["device"] == rows["device"].null_count() / len(rows)
    again = run_job(Artifact.open(exported), str(tmp_path / "rows.parquet"), tmp_path / "scores")
    assert (again.unknown, again.nulls) == (result.unknown, result.nulls)


def test_ids_that_training_never_saw_are_warned_about_and_refused(
    exported: Path, rows: pl.DataFrame, tmp_path: Path
) -> None:
    artifact, source, out = Artifact.open(exported), str(tmp_path / "rows.parquet"), tmp_path / "scores"
    pl.concat([rows] * (200 // len(rows) + 1)).with_columns(user=pl.lit("x17")).write_parquet(source)
    with pytest.raises(UserError, match=r"100\.0% of the values of feature 'user' were never seen.*--max-unknown"):
        run_job(artifact, source, out)
    assert not out.exists()
    with pytest.warns(Notice, match="feature 'user' were never seen"):
        result = run_job(artifact, source, out, JobOptions(max_unknown=1))
    assert result.rows_per_s is None  # nothing was scored again
    assert result.unknown["user"] == 1
    assert json.loads((out / "ledger.ndjson").read_text().splitlines()[1])["counts"]["unknown"]["user"] > 0


def test_limits_compare_with_training_and_need_enough_values() -> None:
    counts = ValueCounts(rows=200, values={"a": 200, "b": 99}, unknown={"a": 150, "b": 99}, nulls={"c": 200, "d": 200})
    assert list(counts.above(0.5, {})) == ["75.0% of the values of feature 'a' were never seen in training"]
    assert not list(counts.above(0.5, {"a": 0.7}))
    joined = ValueCounts(rows=200, nulls=counts.nulls, joined=("c",))
    assert list(joined.above(0.99, {})) == ["100.0% of the joined column 'c' is null"]


@given(st.lists(st.tuples(COUNTS, COUNTS), min_size=1, max_size=4))
def test_counts_of_parts_add_up(parts: list[tuple[dict[str, int], dict[str, int]]]) -> None:
    total = sum((ValueCounts(rows=1, nulls=nulls, values=values) for nulls, values in parts), ValueCounts())
    assert total.rows == len(parts)
    for name in "abc":
        assert total.nulls.get(name, 0) == sum(nulls.get(name, 0) for nulls, _ in parts)
        assert total.values.get(name, 0) == sum(values.get(name, 0) for _, values in parts)
