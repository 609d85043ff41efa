"""Demo logs: the same bytes from the same seed, and a truth that is what it claims to be."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from pydantic import ValidationError
from sklearn.metrics import roc_auc_score

from data_pipelines.synthetic import NOISE, SIGNAL, DemoConfig, Planted, demo_experiment, generate

ROWS = 60_000


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Planted]:
    log = tmp_path_factory.mktemp("demo") / "log.parquet"
    return log, generate(DemoConfig(rows=ROWS, seed=3), log)


def test_same_seed_same_bytes(demo: tuple[Path, Planted], tmp_path: Path) -> None:
    log, planted = demo
    assert generate(DemoConfig(rows=ROWS, seed=3), tmp_path / "again.parquet") == planted
    assert (tmp_path / "again.parquet").read_bytes() == log.read_bytes()
    assert generate(DemoConfig(rows=1000, seed=4), tmp_path / "other.parquet") != planted
    assert json.loads((log.parent / "planted.json").read_text()) == planted.model_dump(mode="json")


def test_rows_in_order_of_time_over_the_days_asked_for(demo: tuple[Path, Planted]) -> None:
    frame = pl.read_parquet(demo[0])
    assert frame.height == ROWS
    assert frame["timestamp"].is_sorted()
    assert frame.null_count().sum_horizontal().item() == 0
    assert (frame["timestamp"].max() - frame["timestamp"].min()).days == 27  # type: ignore[operator, union-attr]
    assert (frame["timestamp"].dt.hour() == frame["hour"]).all()
    assert frame["tags"].list.len().is_between(1, 4).all()
    assert (frame["tags"].list.n_unique() == frame["tags"].list.len()).all()


def test_users_and_items_fall_off_as_zipf_says(demo: tuple[Path, Planted]) -> None:
    counts = pl.read_parquet(demo[0])["item_id"].value_counts(sort=True)["count"].to_numpy()[:100]
    slope = np.polyfit(np.log(np.arange(1, 101)), np.log(counts), 1)[0]
    assert slope == pytest.approx(-0.9, abs=0.1)


def test_signal_is_ordered_by_what_its_loss_costs(demo: tuple[Path, Planted]) -> None:
    planted = demo[1]
    effects = [planted.effects[name] for name in planted.signal]
    assert sorted(planted.signal) == sorted(SIGNAL)
    assert effects == sorted(effects, reverse=True)
    assert all(small < 0.95 * large for large, small in pairwise(effects))
    assert effects[-1] > 0.004


def test_noise_says_nothing_and_a_popular_item_little(demo: tuple[Path, Planted]) -> None:
    frame, planted = pl.read_parquet(demo[0]), demo[1]
    clicked = frame["clicked"].to_numpy()
    assert planted.noise == NOISE
    assert roc_auc_score(clicked, frame["noise_number"]) == pytest.approx(0.5, abs=0.015)
    rate = pl.col("clicked").mean()
    assert frame.group_by("noise_id").agg(rate, pl.len()).filter(pl.col("len") > 1000)["clicked"].std() < 0.02  # type: ignore[operator]
    of_item = frame.select(((pl.col("clicked").sum() + 4) / (pl.len() + 10)).over("item_id")).to_series()
    assert 0.55 < roc_auc_score(clicked, of_item) < planted.auc_ceiling - 0.15


def test_a_lookup_of_the_truth_in_a_segment_comes_near_the_ceiling(demo: tuple[Path, Planted]) -> None:
    """Surfaces of one segment agree on what a tag is worth, and those of different segments do not."""
    frame, planted = pl.read_parquet(demo[0]), demo[1]
    segment = pl.col("surface").replace_strict(planted.segments, return_dtype=pl.Int8).alias("segment")
    tags = frame.select("surface", segment, "tags", "clicked").explode("tags")
    worth = tags.group_by("surface", "segment", "tags").agg(pl.col("clicked").mean()).pivot(on="tags", values="clicked")
    matrix = worth.select(pl.exclude("surface", "segment")).to_numpy()
    alike = np.corrcoef(matrix)
    same = np.equal.outer(worth["segment"].to_numpy(), worth["segment"].to_numpy())
    np.fill_diagonal(same, False)
    assert alike[same].mean() > 0.6
    assert abs(alike[~same & ~np.eye(len(same), dtype=bool)].mean()) < 0.25


def test_its_experiment_names_every_feature() -> None:
    experiment = demo_experiment("log.parquet")
    assert set(experiment["data"]["features"]) == {*SIGNAL, *NOISE}


def test_refuses_a_shape_that_is_none() -> None:
    with pytest.raises(ValidationError, match="greater than or equal"):
        DemoConfig(rows=10)
