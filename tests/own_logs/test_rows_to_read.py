"""`data.where` leaves rows of a log out, alike in every verb and format that reads one, and says how many."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from data_pipelines.dataset.dataset import Dataset, prepare
from data_pipelines.errors import Notice, UserError
from data_pipelines.features.config import DataConfig
from data_pipelines.logs.validation import checked
from data_pipelines.past.state import State

N = 240
LOG = pl.DataFrame(
    {
        "time": [1_700_000_000 + 600 * n for n in range(N)],
        "user": [f"u{n * 7 % 13}" for n in range(N)],
        "item": [f"i{n * 5 % 11}" for n in range(N)],
        "quantity": [-2 if n % 6 == 0 else None if n % 17 == 0 else n % 4 + 1 for n in range(N)],
        "click": [int(n % 3 == 0) for n in range(N)],
    }
)
BOUGHT = LOG.filter(pl.col("quantity") > 0)
DATA: dict[str, Any] = {
    "time": "time",
    "user": "user",
    "tasks": {"click": {"column": "click"}},
    "keys": ["user", "item"],
    "features": {
        "user": {"kind": "id"},
        "item": {"kind": "id"},
        "past": {"kind": "history", "of": ["item"], "where": "click = 1", "last": 5},
        "bought": {"kind": "statistic", "measure": "count", "by": ["user"]},
    },
}


def config(log: Path, **keys: Any) -> DataConfig:
    return DataConfig.model_validate({**DATA, "log": str(log), **keys})


def rows_of(dataset: Dataset) -> list[pl.DataFrame]:
    return [dataset.frame(split).collect() for split in dataset.splits]


def assert_same(found: Dataset, expected: Dataset) -> None:
    for ours, theirs in zip(rows_of(found), rows_of(expected), strict=True):
        assert_frame_equal(ours, theirs)
    assert found.encoder.vocabulary("user").equals(expected.encoder.vocabulary("user"))


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The data set of a log that holds only what was bought."""
    folder = tmp_path_factory.mktemp("bought")
    BOUGHT.write_parquet(folder / "log.parquet")
    return prepare(config(folder / "log.parquet"), folder / "dataset")


@pytest.mark.parametrize("kind", ["parquet", "csv", "ndjson", "arrow"])
def test_a_log_with_a_condition_is_the_log_of_the_rows_that_meet_it(
    tmp_path: Path, expected: Dataset, kind: str
) -> None:
    log = tmp_path / f"log.{kind}"
    write = {"parquet": LOG.write_parquet, "csv": LOG.write_csv, "ndjson": LOG.write_ndjson, "arrow": LOG.write_ipc}
    write[kind](log)  # type: ignore[operator]
    left_out = N - len(BOUGHT)
    with pytest.warns(Notice, match=rf"{left_out} of {N} rows \(2\d\.\d%\) are left out by `data.where: quantity > 0`"):
        found = prepare(config(log, where="quantity > 0"), tmp_path / "dataset")
    keys = "key:time" if kind in ("csv", "ndjson") else ()
    for ours, theirs in zip(rows_of(found), rows_of(expected), strict=True):
        assert_frame_equal(ours.drop(keys), theirs.drop(keys))
    assert found.profile["left_out"] == left_out
    assert found.profile["rows"] == len(BOUGHT)


def test_an_engine_leaves_out_the_same_rows(tmp_path: Path, expected: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_pipelines.dataset.staging.JOINED_ROWS", 50)
    monkeypatch.setattr("data_pipelines.disk.parallel.PART_ROWS", 64)
    LOG.write_parquet(tmp_path / "log.parquet")
    with pytest.warns(Notice, match="are left out"):
        found = prepare(config(tmp_path / "log.parquet", where="quantity > 0"), tmp_path / "dataset", engine=map)
    assert_same(found, expected)


def test_a_condition_may_read_a_side_table(tmp_path: Path, expected: Dataset) -> None:
    LOG.drop("quantity").with_row_index("order").write_parquet(tmp_path / "log.parquet")
    LOG.select("quantity").with_row_index("order").write_parquet(tmp_path / "orders.parquet")
    joins = [{"table": str(tmp_path / "orders.parquet"), "on": "order"}]
    for engine in (None, map):
        with pytest.warns(Notice, match="are left out"):
            found = prepare(
                config(tmp_path / "log.parquet", where="quantity > 0", joins=joins),
                tmp_path / f"dataset-{engine}",
                engine=engine,
            )
        assert_same(found, expected)


def test_extending_and_updating_a_state_leave_the_same_rows_out(tmp_path: Path, expected: Dataset) -> None:
    LOG[:160].write_csv(tmp_path / "first.csv")
    LOG[160:].write_csv(tmp_path / "second.csv")
    data = config(tmp_path / "first.csv", where="quantity > 0")
    with pytest.warns(Notice, match="first.csv: .* are left out"):
        first = prepare(data, tmp_path / "first")
    with pytest.warns(Notice, match="second.csv: .* are left out"):
        second = prepare(data, tmp_path / "second", log=str(tmp_path / "second.csv"), extend=tmp_path / "first")
    assert first.state is not None
    assert second.state is not None
    assert expected.state is not None
    with pytest.warns(Notice, match="second.csv: .* are left out"):
        updated = first.state.update(str(tmp_path / "second.csv"), tmp_path / "state")
    asked = pl.LazyFrame({"user": [f"u{n}" for n in range(13)], "item": "i1", "time": 1_800_000_000})
    for state in (second.state, updated, State.open(tmp_path / "state")):
        assert_frame_equal(state.attach(asked).collect(), expected.state.attach(asked).collect())


def test_rows_of_the_log_can_be_read_again(tmp_path: Path) -> None:
    LOG.write_parquet(tmp_path / "log.parquet")
    with pytest.warns(Notice, match="are left out"):
        dataset = prepare(config(tmp_path / "log.parquet", where="quantity > 0"), tmp_path / "dataset")
    raw = pl.concat([dataset.raw(split).select(LOG.columns) for split in dataset.splits])
    assert_frame_equal(raw.sort("time"), BOUGHT)


def test_negatives_are_drawn_for_the_rows_that_are_read(tmp_path: Path) -> None:
    LOG.write_parquet(tmp_path / "log.parquet")
    BOUGHT.write_parquet(tmp_path / "bought.parquet")
    keys: dict[str, Any] = {
        "tasks": {"bought": {"column": "positive"}},
        "sampling": {"item": "item", "negatives": 2},
        "features": {"user": {"kind": "id"}, "item": {"kind": "id"}},
    }
    theirs = prepare(config(tmp_path / "bought.parquet", **keys), tmp_path / "theirs")
    with pytest.warns(Notice, match="are left out"):
        ours = prepare(config(tmp_path / "log.parquet", where="quantity > 0", **keys), tmp_path / "ours")
    assert_same(ours, theirs)


def test_rows_to_score_need_not_meet_the_condition(tmp_path: Path) -> None:
    LOG.write_parquet(tmp_path / "log.parquet")
    with pytest.warns(Notice, match="are left out"):
        dataset = prepare(config(tmp_path / "log.parquet", where="quantity > 0"), tmp_path / "dataset")
    plan = dataset.encoder.served
    assert "quantity" not in plan.row_columns
    state = dataset.state
    assert state is not None
    asked = checked(plan, LOG.drop("quantity", "click").lazy(), labelled=False)
    assert len(dataset.encoder.encode(state.attach(asked)).collect()) == N


@pytest.mark.parametrize(
    ("where", "sentence"),
    [
        ("amount > 0", "`where` reads 'amount', which is not a column; there are .*quantity"),
        ("quantity >", "is not a SQL condition: 'quantity >'"),
        ("item + 1", "does not fit the types of its columns"),
        ("quantity > 100", r"holds no rows for which `data.where: quantity > 100` holds"),
    ],
)
def test_a_condition_that_cannot_be_right_is_refused(tmp_path: Path, where: str, sentence: str) -> None:
    LOG.with_columns(quantity=pl.col("quantity") + 0.5).write_parquet(tmp_path / "log.parquet")
    with pytest.raises(UserError, match=sentence):
        prepare(config(tmp_path / "log.parquet", where=where), tmp_path / "dataset")
    assert not (tmp_path / "dataset").exists()
