"""Data sets: splits, what is fitted on train only, refusals, and directories that are complete or absent."""

import json
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from data_pipelines.dataset.dataset import Dataset, prepare
from data_pipelines.errors import UserError
from data_pipelines.features.config import DataConfig


def with_log(data: dict[str, Any], frame: pl.DataFrame, folder: Path, **keys: Any) -> DataConfig:
    frame.write_parquet(folder / "log.parquet", row_group_size=300)
    return DataConfig.model_validate({**data, "log": str(folder / "log.parquet"), **keys})


def times_of(dataset: Dataset, split: str) -> list[int]:
    return dataset.keys(split)["time"].to_list()


@pytest.mark.parametrize("ties", [1, 60, 100_000])
@pytest.mark.parametrize("refused", [None, 3, 1995])
@pytest.mark.parametrize("jitter", [0, 4, 2000])
def test_a_split_by_time_takes_exact_shares_with_ties_by_row(
    jitter: int, refused: int | None, ties: int, tiny_data: dict[str, Any], tmp_path: Path
) -> None:
    """Whether the log is in order of time, nearly so, or not at all, and whether rows of it are refused."""
    log = pl.read_parquet(tiny_data["log"]).sort("time").with_columns(pl.col("time") // ties * ties)
    place = np.arange(len(log)) + np.random.default_rng(0).integers(0, jitter + 1, len(log))
    log = log[np.argsort(place, kind="stable")].with_row_index("row")
    log = log.with_columns(pl.when(pl.col("row") != (-1 if refused is None else refused)).then(pl.col("click")))
    dataset = prepare(with_log(tiny_data, log.drop("row"), tmp_path), tmp_path / "dataset")
    order = log.drop_nulls("click").sort("time", "row")["row"].to_numpy()
    cuts = [round(len(order) * 0.8), round(len(order) * 0.9)]
    for split, rows in zip(("train", "valid", "test"), np.split(order, cuts), strict=True):
        found = dataset.frame(split).select(":row").collect()[":row"].to_list()
        assert found == sorted(rows), split


def test_a_split_by_dates_with_a_gap(tiny_data: dict[str, Any], tmp_path: Path) -> None:
    day = 86400
    split = {"by": "time", "valid": "2023-12-05", "test": "2023-12-12T00:00:00+00:00", "gap": 2 * day}
    dataset = prepare(DataConfig.model_validate({**tiny_data, "split": split}), tmp_path / "dataset")
    valid, test = 1_701_734_400, 1_702_339_200
    assert max(times_of(dataset, "train")) < valid - 2 * day
    assert valid <= min(times_of(dataset, "valid")) <= max(times_of(dataset, "valid")) < test - 2 * day
    assert test <= min(times_of(dataset, "test"))
    assert sum(dataset.splits.values()) < 2000


def test_the_last_rows_of_each_user(tiny_data: dict[str, Any], tmp_path: Path) -> None:
    split = {"by": "leave_last", "valid": 1, "test": 2}
    dataset = prepare(DataConfig.model_validate({**tiny_data, "split": split}), tmp_path / "dataset")
    log = pl.read_parquet(tiny_data["log"]).with_row_index(":row").sort("time", maintain_order=True)
    last = pl.int_range(pl.len()).reverse().over("user")
    for name, rows in (
        ("test", log.filter(last < 2)),
        ("valid", log.filter(last == 2)),
        ("train", log.filter(last > 2)),
    ):
        assert set(dataset.frame(name).select(":row").collect()[":row"]) == set(rows[":row"])


def test_a_random_split_and_one_by_column(tiny_data: dict[str, Any], tmp_path: Path) -> None:
    data = {**tiny_data, "split": {"by": "random", "valid": 0.2, "test": 0.3}}
    dataset = prepare(DataConfig.model_validate(data), tmp_path / "random")
    assert dataset.splits["valid"] == pytest.approx(400, abs=80)
    assert dataset.splits["test"] == pytest.approx(600, abs=80)
    log = pl.read_parquet(tiny_data["log"]).with_columns(
        part=pl.Series(["train"] * 1000 + ["valid"] * 400 + ["test"] * 500 + ["spare"] * 100)
    )
    config = with_log(tiny_data, log, tmp_path, split={"by": "column", "column": "part"})
    assert prepare(config, tmp_path / "column").splits == {"train": 1000, "valid": 400, "test": 500}


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 1000))
def test_rows_of_valid_and_test_decide_nothing(
    tiny_data: dict[str, Any], tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    """Whatever stands there, the vocabularies, normalisations, buckets and training rows are the same."""
    folder, rng = tmp_path_factory.mktemp("leak"), random.Random(seed)
    features = {
        **tiny_data["features"],
        "price": {"kind": "number", "transform": "standardize"},
        "bucket": {"kind": "number", "column": "price", "transform": "buckets", "buckets": 5},
    }
    log = pl.read_parquet(tiny_data["log"])
    held_out = pl.int_range(pl.len()) >= 1600
    changed = log.with_columns(
        pl.when(held_out).then(pl.lit(f"new {rng.random()}")).otherwise(pl.col("item")).alias("item"),
        pl.when(held_out).then(pl.lit(rng.gauss(0, 1e6))).otherwise(pl.col("price")).alias("price"),
        pl.when(held_out).then(pl.lit(["odd"])).otherwise(pl.col("tags")).alias("tags"),
        pl.when(held_out).then(1 - pl.col("click")).otherwise(pl.col("click")).alias("click"),
    )
    one, other = (
        prepare(with_log(tiny_data, frame, folder, features=features), folder / name)
        for name, frame in (("one", log), ("other", changed))
    )
    assert (one.path / "encoder.json").read_text().replace("one", "") == (
        other.path / "encoder.json"
    ).read_text().replace("other", "")
    for table in one.schema.tables:
        assert_frame_equal(one.encoder.vocabulary(table.name), other.encoder.vocabulary(table.name))
    assert_frame_equal(one.frame("train").collect(), other.frame("train").collect())


def test_refused_rows_are_kept_with_the_reason(tiny_data: dict[str, Any], tmp_path: Path) -> None:
    log = pl.read_parquet(tiny_data["log"]).with_columns(
        click=pl.when(pl.int_range(pl.len()) % 500 == 7).then(3).otherwise("click"),
        time=pl.when(pl.int_range(pl.len()) == 11).then(None).otherwise("time"),
    )
    dataset = prepare(with_log(tiny_data, log, tmp_path), tmp_path / "dataset")
    refused = pl.read_parquet(dataset.path / "quarantine.parquet")
    assert refused[":row"].to_list() == [7, 11, 507, 1007, 1507]
    assert refused["reason"].str.starts_with("time: ").sum() == 1
    assert sum(dataset.profile["refused"].values()) == 5
    assert sum(dataset.splits.values()) == 1995
    with pytest.raises(UserError, match=r"5 of 2,000 rows are refused.*click: a label that is not 0 or 1"):
        prepare(with_log(tiny_data, log, tmp_path, max_quarantined=0.001), tmp_path / "strict")


def test_a_label_in_words(tiny_data: dict[str, Any], tmp_path: Path) -> None:
    log = pl.read_parquet(tiny_data["log"])
    words = log.with_columns(click=pl.col("click").replace_strict({0: "no", 1: "yes"}))
    task = {"click": {"column": "click", "positive": ["yes", "of course"]}}
    dataset = prepare(with_log(tiny_data, words, tmp_path, tasks=task), tmp_path / "dataset")
    expected = log.sort("time", maintain_order=True)["click"][:1600].sum()
    assert dataset.labels("train").sum() == expected
    with pytest.raises(UserError, match=r"click: no number \(name the values that count with `positive`\)"):
        prepare(with_log(tiny_data, words, tmp_path), tmp_path / "unsaid")


def test_bags_and_vectors_that_make_no_sense_are_refused(tiny_data: dict[str, Any], tmp_path: Path) -> None:
    log = pl.DataFrame(
        {
            "time": range(8),
            "click": [0, 1] * 4,
            "tags": [["a"]] * 8,
            "weights": [[1.0], [-1.0], [1.0, 2.0], [None], [0.0], [1.0], [1.0], [1.0]],
            "image": [[1.0, 2.0]] * 5 + [[1.0], [float("nan"), 0.0], None],
        }
    )
    features = {"tags": {"kind": "bag", "weights": "weights"}, "image": {"kind": "vector", "width": 2}}
    keys = {"user": None, "keys": [], "features": features, "max_quarantined": 1.0}
    dataset = prepare(with_log(tiny_data, log, tmp_path, **keys), tmp_path / "dataset")
    refused = pl.read_parquet(dataset.path / "quarantine.parquet")
    assert dict(refused.select(":row", "reason").iter_rows()) == {
        1: "weights: a negative weight",
        2: "weights: not as many weights as tags has values",
        3: "weights: a weight that is not a number",
        5: "image: not 2 finite numbers",
        6: "image: not 2 finite numbers",
    }


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"log": "missing.parquet"}, "missing.parquet is not there"),
        ({"tasks": {"click": {"column": "rating"}}}, "not 0 or 1"),
        ({"tasks": {"click": {"column": "clicks"}}}, "'clicks', which is not there"),
        ({"time": "device"}, "which have no known format"),
        ({"keys": ["shop"]}, "shop"),
        ({"tasks": {"click": {"column": "click", "where": "price >"}}}, "not a SQL condition"),
        ({"split": {"by": "column", "column": "part"}}, "'part' is not there"),
        ({"split": {"by": "column", "column": "device"}}, "has no row called train"),
        ({"split": {"by": "time", "valid": "soon", "test": "later"}}, "'soon' is not a date"),
        ({"joins": [{"table": "items.parquet", "on": "item"}]}, "items.parquet is not there"),
    ],
)
def test_faults_of_the_user_are_one_sentence(
    tiny_data: dict[str, Any], tmp_path: Path, keys: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence) as caught:
        prepare(DataConfig.model_validate({**tiny_data, **keys}), tmp_path / "dataset")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_empty_and_damaged_logs(tiny_data: dict[str, Any], tmp_path: Path) -> None:
    log = Path(tiny_data["log"]).read_bytes()
    empty = with_log(tiny_data, pl.read_parquet(tiny_data["log"]).clear(), tmp_path)
    with pytest.raises(UserError, match="holds no rows"):
        prepare(empty, tmp_path / "dataset")
    for damaged in (b"", log[:100], log[: len(log) // 2], log[:-1]):
        Path(empty.log).write_bytes(damaged)
        with pytest.raises(UserError, match=r"log\.parquet cannot be read"):
            prepare(empty, tmp_path / "dataset")
    assert [path.name for path in tmp_path.iterdir()] == ["log.parquet"]


def test_a_killed_prepare_leaves_nothing_that_opens(tiny_data: dict[str, Any], tmp_path: Path) -> None:
    """Killed at the worst moment: everything is written, but the directory has not got its name."""
    script = (
        "import json, os, signal, sys; from pathlib import Path; from data_pipelines.dataset import dataset;"
        "from data_pipelines.disk import storage; from data_pipelines.features.config import DataConfig;"
        "storage.seal = lambda *_: os.kill(os.getpid(), signal.SIGKILL);"
        "dataset.prepare(DataConfig.model_validate(json.loads(sys.argv[1])), Path(sys.argv[2]))"
    )
    arguments = [sys.executable, "-c", script, json.dumps(tiny_data), str(tmp_path / "dataset")]
    assert subprocess.run(arguments, check=False, capture_output=True).returncode == -signal.SIGKILL
    with pytest.raises(UserError, match="is not a directory"):
        Dataset.open(tmp_path / "dataset")
    assert [path.name.startswith(".dataset.") for path in tmp_path.iterdir()] == [True]
    prepare(DataConfig.model_validate(tiny_data), tmp_path / "dataset")
    assert Dataset.open(tmp_path / "dataset").splits["train"] == 1600
    assert [path.name for path in tmp_path.iterdir()] == ["dataset"]


def test_damage_on_disk_is_noticed(tiny_data: dict[str, Any], tmp_path: Path) -> None:
    dataset = prepare(DataConfig.model_validate(tiny_data), tmp_path / "dataset")
    part = dataset.path / "splits" / "train" / "part-00000.arrow"
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(bytes(content))
    with pytest.raises(UserError, match=r"part-00000\.arrow is damaged"):
        Dataset.open(dataset.path)


def test_keys_labels_and_raw_rows(tiny_data: dict[str, Any], tmp_path: Path) -> None:
    dataset = prepare(DataConfig.model_validate(tiny_data), tmp_path / "dataset")
    log = pl.read_parquet(tiny_data["log"])
    assert_frame_equal(dataset.keys("valid"), log[1600:1800].select("user", "item", "time"))
    np.testing.assert_array_equal(dataset.labels("valid")[:, 0], log["click"].to_numpy()[1600:1800])
    raw = dataset.raw("test", [5, 0])
    assert_frame_equal(raw.select(log.columns), log[[1805, 1800]])


def test_many_parts_and_chunks_give_the_same_rows(
    tiny_data: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = prepare(DataConfig.model_validate(tiny_data), tmp_path / "whole")
    monkeypatch.setattr("data_pipelines.dataset.prepare.CHUNK_ROWS", 37)
    monkeypatch.setattr("data_pipelines.dataset.columns.PART_ROWS", 100)
    parted = prepare(DataConfig.model_validate(tiny_data), tmp_path / "parted")
    assert len(list((parted.path / "splits" / "train").iterdir())) > 5
    assert_frame_equal(whole.frame("train").collect(), parted.frame("train").collect())
