"""Strangers' logs at the first look: guesses that went wrong, and what a newcomer must be told about them."""

from datetime import date, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from look_examples import ROWS, log, looked_at, started, why

from data_pipelines.dataset.dataset import prepare
from data_pipelines.errors import UserError
from data_pipelines.profile.inspection import inspect_log
from data_pipelines.profile.starter.config import starter_config


def test_what_is_missing_with_the_label_was_recorded_with_it(tmp_path: Path, rng: np.random.Generator) -> None:
    unknown = rng.random(ROWS) < 0.05
    landed = pl.Series(rng.normal(100, 9, ROWS)).set(pl.Series(unknown), None)
    gate = pl.Series([f"g{n % 9}" for n in range(ROWS)]).set(pl.Series(unknown), "NA")
    planned = pl.Series(rng.normal(100, 9, ROWS)).set(pl.Series(rng.random(ROWS) < 0.05), None)
    for label in ((rng.random(ROWS) < 0.3).astype(int), rng.normal(5, 20, ROWS)):
        values = pl.Series(label).set(pl.Series(unknown), None)
        profile = looked_at(tmp_path, log(click=values, landed=landed, gate=gate, planned=planned), label="click")
        for name in ("landed", "gate"):
            assert "is missing where 'click' is, and nowhere else" in why(profile, name)
            assert name not in started(profile).data.features
        assert not why(profile, "planned")
        assert "of the rows have no label" in profile.label_note


def test_a_column_that_holds_another_again_is_left_out(tmp_path: Path) -> None:
    region = [float(n % 17) if n % 5 else None for n in range(ROWS)]
    profile = looked_at(tmp_path, log(region=region, region_copy=region, other=region[::-1], item_again=log()["item"]))
    assert why(profile, "region_copy") == "holds the same values as 'region'"
    assert why(profile, "item_again") == "holds the same values as 'item'"
    assert not why(profile, "region")
    assert not why(profile, "other")


def test_a_label_that_its_name_does_not_tell_is_said(tmp_path: Path) -> None:
    flags = pl.Series(["Y", "N"] * (ROWS // 2))
    told = looked_at(tmp_path, log(ok=flags).drop("click"))
    assert (told.label, told.label_note) == ("ok", "guessed: the only column of two values; --label names another")
    assert "--label names another" in starter_config(told)
    assert "--label" not in looked_at(tmp_path, log()).label_note
    several = log(ok=flags, paid=flags, mood=["like", "none", "dislike", "none"] * (ROWS // 4)).drop("click", "item")
    with pytest.raises(UserError, match="name it with --label, such as paid, ok; or"):
        starter_config(looked_at(tmp_path, several))
    with pytest.raises(UserError, match="name it with --label, such as mood; or"):
        starter_config(looked_at(tmp_path, several.drop("ok", "paid")))


def test_too_few_positives_are_said(tmp_path: Path) -> None:
    few = looked_at(tmp_path, log(click=[int(n == 7) for n in range(ROWS)]))
    assert few.label_note == "few rows are positive (1), so every metric is uncertain"


@pytest.mark.parametrize("name", ["userid", "USERID", "userID", "kundennr", "listener", "CustomerNo"])
def test_users_by_other_names(tmp_path: Path, name: str) -> None:
    profile = looked_at(tmp_path, log().rename({"user": name, "item": "artikelnr"}))
    assert (profile.user, profile.item) == (name, "artikelnr")


def test_times_without_a_telling_name(tmp_path: Path) -> None:
    frame = log().rename({"time": "t"})
    assert looked_at(tmp_path, frame).time == "t"
    assert looked_at(tmp_path, frame.with_columns(pl.col("t") * 1000)).time == "t"
    assert looked_at(tmp_path, frame.sample(fraction=1, shuffle=True, seed=0)).time is None
    assert looked_at(tmp_path, frame.with_columns(t=pl.int_range(pl.len()))).time is None
    assert looked_at(tmp_path, frame.rename({"t": "order_id"})).time is None


def test_dates_are_split_between_days(tmp_path: Path) -> None:
    frame = log(time=[date(2024, 1, 1) + timedelta(days=n // 100) for n in range(ROWS)])
    config = started(looked_at(tmp_path, frame)).data
    assert (config.split.valid, config.split.test) == ("2024-02-02", "2024-02-06")
    dataset = prepare(config, tmp_path / "dataset")
    assert dataset.splits == {"train": 3200, "valid": 400, "test": 400}
    assert started(looked_at(tmp_path, log())).data.split.test == 0.1


def test_pairs_that_share_an_id_are_lists(tmp_path: Path) -> None:
    won = [int(n % 2 == (n // 2 % 3 == 0)) for n in range(ROWS)]
    pairs = log(pair=[n // 2 for n in range(ROWS)], click=won, time=[1_700_000_000 + n // 2 * 600 for n in range(ROWS)])
    lists = looked_at(tmp_path, pairs).lists
    assert lists is not None
    assert (lists.keys, lists.size) == (("pair",), 2)


def test_weights_of_rows_are_pointed_out(tmp_path: Path, rng: np.random.Generator) -> None:
    profile = looked_at(tmp_path, log(sample_weight=rng.random(ROWS), weight=rng.random(ROWS)))
    commented = [line for line in starter_config(profile).splitlines() if line.startswith("  # weight: ")]
    assert [line.split()[2] for line in commented] == ["sample_weight"]


@pytest.mark.parametrize(("orders", "found"), [(3, "InvoiceNo"), (1, None)])
def test_orders_are_baskets(tmp_path: Path, orders: int, found: str | None) -> None:
    order = [n // orders for n in range(ROWS)]
    own = {
        "user": [f"u{n % 90}" for n in order],
        "time": [1_700_000_000 + n * 600 + i % 3 for i, n in enumerate(order)],
    }
    frame = log(InvoiceNo=[f"C{n}" for n in order], note_of_order=[f"x{n % 7}" for n in order], **own).drop("click")
    profile = looked_at(tmp_path, frame)
    assert profile.basket == found
    sampling = started(profile).data.sampling
    assert sampling is not None
    assert sampling.basket == ([found] if found else [])


def test_files_that_are_named_like_splits_are_said(tmp_path: Path) -> None:
    frame = log()
    frame.head(3000).write_parquet(tmp_path / "train.parquet")
    frame.tail(1000).drop("click").write_parquet(tmp_path / "test.parquet")
    profile = inspect_log(str(tmp_path))
    assert profile.split_files == ("test.parquet", "train.parquet")
    assert profile.label_note == "25.0% of the rows have no label"
    assert "# The files are named test.parquet, train.parquet, and read as one log." in starter_config(profile)
    (tmp_path / "test.parquet").rename(tmp_path / "more.parquet")
    assert inspect_log(str(tmp_path)).split_files == ()
