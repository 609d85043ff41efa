"""Which logs hold rows that were shown together, and what a starter config makes of them."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml

from data_pipelines.dataset.dataset import prepare
from data_pipelines.features.config import DataConfig
from data_pipelines.profile.inspection import LogProfile, inspect_log
from data_pipelines.profile.starter.config import starter_config

LISTS, SIZE = 120, 8
ROWS = LISTS * SIZE
DAY = 86_400


def impressions(**columns: Any) -> pl.DataFrame:
    """Lists of eight items, one of them clicked; columns that are given replace those of the same name."""
    rng = np.random.default_rng(0)
    shown = np.repeat(np.arange(LISTS), SIZE)
    items = np.concatenate([rng.choice(60, SIZE, replace=False) for _ in range(LISTS)])
    clicked = (np.arange(SIZE) == rng.integers(0, SIZE, (LISTS, 1))).ravel()
    frame = pl.DataFrame(
        {
            "user_id": rng.integers(0, 40, LISTS)[shown],
            "timestamp": 1_700_000_000 + shown * 977,
            "item": items,
            "price": rng.random(ROWS).round(3) * 100,
            "budget": rng.random(LISTS)[shown],
            "clicked": clicked.astype(np.int8),
        }
    )
    return frame.with_columns(**{name: pl.Series(values) for name, values in columns.items()})


def looked_at(folder: Path, frame: pl.DataFrame, **options: Any) -> LogProfile:
    frame.write_parquet(folder / "log.parquet")
    return inspect_log(str(folder / "log.parquet"), **options)


def test_rows_of_a_user_at_one_time_are_a_list(tmp_path: Path) -> None:
    lists = looked_at(tmp_path, impressions()).lists
    assert lists is not None
    assert lists.keys == ("user_id", "timestamp")
    assert (lists.share, lists.size, lists.varying) == (1.0, SIZE, ("price",))


def test_the_config_compares_prices_and_the_past_of_items_within_lists_and_runs(tmp_path: Path) -> None:
    text = starter_config(looked_at(tmp_path, impressions()))
    written = yaml.safe_load(text)
    assert written["data"]["group"] == ["user_id", "timestamp"]
    assert "loss" not in written["train"]
    relative = {name: keys for name, keys in written["data"]["features"].items() if keys["kind"] == "relative"}
    assert set(relative) == {"price_in_list", "rate_of_item_in_list", "count_of_item_in_list"}
    assert "100% of the rows are\n" in text
    assert "the median list has 8 rows" in text
    dataset = prepare(DataConfig.model_validate(written["data"]), tmp_path / "dataset")
    ranks = dataset.frame("train").select("price_in_list.rank").collect().to_series()
    assert (ranks.min(), ranks.max()) == (0.0, 1.0)


@pytest.mark.parametrize("name", ["session_id", "visit"])
def test_a_session_stands_for_a_user(tmp_path: Path, name: str) -> None:
    sessions = np.repeat([f"s{i % 90}" for i in range(LISTS)], SIZE)
    lists = looked_at(tmp_path, impressions().drop("user_id").with_columns(pl.Series(name, sessions))).lists
    assert lists is not None
    assert lists.keys == (name, "timestamp")


def test_the_id_of_a_request_says_it_best_even_where_times_are_cut_to_the_day(tmp_path: Path) -> None:
    requests = np.repeat([f"r{i}" for i in range(LISTS)], SIZE)
    days = 1_700_006_400 + np.repeat(np.arange(LISTS), SIZE) // 10 * DAY
    for frame in (impressions(request_id=requests), impressions(request_id=requests, timestamp=days)):
        lists = looked_at(tmp_path, frame).lists
        assert lists is not None
        assert lists.keys == ("request_id",)


def test_rows_without_a_user_are_in_no_list(tmp_path: Path) -> None:
    users = [None if i < ROWS // 4 else user for i, user in enumerate(impressions()["user_id"])]
    lists = looked_at(tmp_path, impressions(user_id=users)).lists
    assert lists is not None
    assert lists.share == 0.75


_SHOWN = np.repeat(np.arange(LISTS), SIZE)
_LABELS = np.random.default_rng(1)
_NO_LISTS: dict[str, dict[str, Any]] = {
    "times are cut to the day": {"timestamp": 1_700_006_400 + _SHOWN // 10 * DAY},
    "times are cut to the hour": {"timestamp": 1_700_006_400 + _SHOWN * 3600},
    "every row has its own time": {"timestamp": 1_700_000_000 + np.arange(ROWS) * 61},
    "pairs of events": {"timestamp": 1_700_000_000 + np.arange(ROWS) // 2 * 61},
    "few rows share a time": {"timestamp": 1_700_000_000 + np.where(_SHOWN < 55, _SHOWN, np.arange(ROWS)) * 61},
    "one item per list": {"item": _SHOWN % 60},
    "baskets, bought or not as a whole": {"clicked": (_SHOWN % 5 == 0).astype(np.int8)},
    "mostly positives": {"clicked": (_LABELS.random(ROWS) < 0.7).astype(np.int8)},
    "ratings at one time": {"clicked": _LABELS.integers(1, 6, ROWS)},
    "a label that is an amount": {"clicked": _LABELS.random(ROWS)},
    "a split that divides lists": {"fold": np.array(["train", "train", "train", "test"] * (ROWS // 4))},
    "search words that come again": {"user_id": np.arange(ROWS), "query": _SHOWN % 30},
}


@pytest.mark.parametrize("case", _NO_LISTS)
def test_rows_that_were_not_shown_together_get_no_group(tmp_path: Path, case: str) -> None:
    profile = looked_at(tmp_path, impressions(**_NO_LISTS[case]), label="clicked")
    assert profile.lists is None
    data = yaml.safe_load(starter_config(profile))["data"]
    assert "group" not in data
    assert all(keys["kind"] != "relative" for keys in data["features"].values())


def test_a_log_of_positives_has_no_lists_of_what_was_shown(tmp_path: Path) -> None:
    assert looked_at(tmp_path, impressions().drop("clicked")).lists is None


def test_a_few_lists_are_no_evidence(tmp_path: Path) -> None:
    assert looked_at(tmp_path, impressions().head(40 * SIZE)).lists is None
