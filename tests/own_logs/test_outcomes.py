"""Columns that are outcomes of the row, as ``inspect``, ``init`` and ``prepare`` find them."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from look_examples import ROWS, log, looked_at, started, why

from data_pipelines.dataset.dataset import prepare
from data_pipelines.errors import Notice
from data_pipelines.features.config import DataConfig
from data_pipelines.profile.starter.config import starter_config


def test_sibling_outcomes_are_commented_out_with_the_reason(tmp_path: Path, rng: np.random.Generator) -> None:
    click = rng.random(ROWS) < 0.3
    siblings = {
        "is_like": (click & (rng.random(ROWS) < 0.2)).astype(int),
        "is_hate": (~click & (rng.random(ROWS) < 0.05)).astype(int),
        "seconds": np.where(click, rng.random(ROWS), np.nan),
        "left_at": np.where(click, 1_700_000_100.0 + np.arange(ROWS) * 864, np.nan),
        "state": np.where(click & (rng.random(ROWS) < 0.4), 2, rng.integers(0, 2, ROWS)),
    }
    profile = looked_at(tmp_path, log(click=click.astype(int), **siblings))
    assert {c.name for c in profile.columns if c.outcome} == set(siblings)
    assert not siblings.keys() & started(profile).data.features.keys()
    assert "    # is_like: {kind: id}" in starter_config(profile)


def test_times_after_the_event_are_left_out_and_times_before_become_ages(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    time = pl.Series(1_700_000_000 + np.arange(ROWS) * 864).cast(pl.Int64)
    days = pl.Series(rng.integers(5, 400, ROWS) * 86_400)
    when = {
        "delivered": pl.from_epoch(time + days),
        "registered": pl.from_epoch(time - days),
        "day": pl.from_epoch(time).dt.date(),
    }
    profile = looked_at(tmp_path, log(time=pl.from_epoch(time), **when))
    assert profile.time == "time"
    assert "is later than 'time'" in why(profile, "delivered")
    assert "holds the time of the row again" in why(profile, "day")
    features = started(profile).data.features
    assert "registered_age" in features
    assert not {"delivered_age", "day_age"} & features.keys()


def test_a_label_in_sorted_files_hides_no_outcome(tmp_path: Path, rng: np.random.Generator) -> None:
    """A log sorted by its label: the first rows have one class only."""
    click = (np.arange(120_000) >= 100_000).astype(int)
    frame = pl.DataFrame(
        {
            "user": rng.integers(0, 90, len(click)),
            "click": click,
            "bought": (click & (rng.random(len(click)) < 0.3)).astype(int),
        }
    )
    frame.write_parquet(tmp_path / "log.parquet")
    data = {
        "log": str(tmp_path / "log.parquet"),
        "tasks": {"click": {"column": "click"}},
        "features": {"user": {"kind": "id"}, "bought": {"kind": "id"}},
    }
    with pytest.warns(Notice, match="'bought' is set only where 'click' is positive"):
        dataset = prepare(DataConfig.model_validate(data), tmp_path / "dataset")
    assert set(dataset.profile["outcomes"]) == {"bought"}


def test_two_columns_that_tell_the_label_together_are_named(tmp_path: Path, rng: np.random.Generator) -> None:
    before, click = rng.integers(0, 500, ROWS), rng.random(ROWS) < 0.3
    counters = {"count_before": before, "count_after": before + click, "price": rng.random(ROWS)}
    profile = looked_at(tmp_path, log(click=click.astype(int), **counters))
    assert "the difference of 'count_before' and 'count_after'" in profile.combinations[0]
    assert "# Look at this: the difference" in starter_config(profile)


@pytest.mark.parametrize("seed", range(5))
def test_honest_logs_accuse_nothing(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows, rate = 20_000, [0.5, 0.1, 0.01, 0.003, 0.8][seed]
    quality = rng.normal(size=300)
    item = rng.zipf(1.3, rows) % 300
    odds = np.log(rate / (1 - rate)) + quality[item]
    frame = pl.DataFrame(
        {
            "time": 1_700_000_000 + np.sort(rng.integers(0, 30 * 86_400, rows)),
            "user": rng.zipf(1.2, rows) % 1000,
            "item": item,
            "price": rng.lognormal(2, 1, rows) * (rng.random(rows) < 0.2),
            "is_mobile": rng.random(rows) < 0.3,
            "is_vip": (rng.random(rows) < 0.01).astype(int),
            "quality": quality[item] + rng.normal(size=rows),
            "coupon": [f"c{n}" if n % 7 == 0 else None for n in item.tolist()],
            "click": (rng.random(rows) < 1 / (1 + np.exp(-odds))).astype(int),
        }
    )
    profile = looked_at(tmp_path, frame)
    assert {c.name: c.suspicions for c in profile.columns if c.suspicions} == {}
    assert profile.combinations == ()
