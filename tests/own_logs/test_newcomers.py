"""What stopped newcomers with logs of a ticket office, an app store and a music service."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from look_examples import ROWS, column, log, looked_at, started
from polars.testing import assert_frame_equal

from data_pipelines.dataset.dataset import prepare
from data_pipelines.errors import UserError
from data_pipelines.features.config import DataConfig
from data_pipelines.features.plan import Plan
from data_pipelines.features.time_formats import formats_of
from data_pipelines.logs.sources import join_sides
from data_pipelines.profile.inspection import inspect_log
from data_pipelines.profile.starter.config import starter_config

START = datetime(2024, 3, 30, 22, 11, 5, tzinfo=UTC)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_digits_with_leading_zeros_are_codes_and_no_quantities(kind: str, tmp_path: Path) -> None:
    frame = log(show=[f"{n % 40:04d}" for n in range(ROWS)], seats=[str(n * 7 % 90) for n in range(ROWS)])
    {"csv": frame.write_csv, "parquet": frame.write_parquet}[kind](tmp_path / f"log.{kind}")
    profile = inspect_log(str(tmp_path / f"log.{kind}"))
    assert (column(profile, "show").role, column(profile, "seats").role) == ("id", "number")


@pytest.mark.parametrize(
    ("pattern", "format"),
    [("%d.%m.%Y %H:%M:%S", "%d.%m.%Y %H:%M:%S"), ("%d.%m.%Y %H:%M:%S.%f", "%d.%m.%Y %H:%M:%S%.f")],
)
def test_a_fraction_of_seconds_is_no_second_reading_of_a_time(pattern: str, format: str) -> None:
    times = [START + timedelta(hours=7 * n, milliseconds=250) for n in range(200)]
    assert formats_of(pl.Series([time.strftime(pattern) for time in times])) == [format]


def with_labels_aside(folder: Path) -> str:
    """Writes tickets, and who came, by ticket; gives the path of the latter."""
    tickets = log(ticket=[f"T{n:06d}" for n in range(ROWS)])
    tickets.drop("click").write_parquet(folder / "log.parquet")
    tickets.select("ticket", came="click").write_parquet(folder / "came.parquet")
    return str(folder / "came.parquet")


def test_a_side_table_that_only_gives_the_label_is_not_read_to_score(tmp_path: Path) -> None:
    side = with_labels_aside(tmp_path)
    profile = inspect_log(str(tmp_path / "log.parquet"), sides=[side])
    assert profile.label == "came"
    data = started(profile).data
    assert data.joins[0].columns == ["came"]
    dataset = prepare(data, tmp_path / "dataset")
    served = dataset.encoder.served
    assert served.row_joins == []
    Path(side).unlink()
    rows = pl.LazyFrame({"user": ["u1"], "item": ["i1"], "time": [1_800_000_000]})
    assert_frame_equal(join_sides(served, rows, filling=True).collect(), rows.collect())


def test_side_tables_that_new_rows_need_are_read_with_those_that_give_their_keys(tmp_path: Path) -> None:
    joins = [
        {"table": "shops.parquet", "on": "item", "columns": ["shop"]},
        {"table": "labels.parquet", "on": "ticket", "columns": ["click"]},
        {"table": "cities.parquet", "on": "shop", "columns": ["city"], "prefix": "shop_"},
        {"table": "everything.parquet", "on": "user"},
    ]
    keys = {"tasks": {"click": {"column": "click"}}, "features": {"shop_city": {"kind": "id"}}}
    plan = Plan.of(DataConfig.model_validate({"log": "log.parquet", "joins": joins, **keys}))
    assert [join.table for join in plan.row_joins] == ["shops.parquet", "cities.parquet", "everything.parquet"]


def test_a_column_that_may_hold_users_is_named_where_no_name_says_so(tmp_path: Path) -> None:
    frame = log(**{"device.id": [f"{n * 31 % 80:08d}" for n in range(ROWS)]}).drop("user")
    text = starter_config(looked_at(tmp_path, frame))
    assert '  # user: "device.id"' in text
    assert "  # user:" not in starter_config(looked_at(tmp_path, log()))


def test_the_values_that_count_as_zero_are_named(tmp_path: Path, rng: np.random.Generator) -> None:
    events = rng.choice(["impression", "install", "open", "uninstall"], ROWS, p=[0.6, 0.2, 0.15, 0.05])
    frame = log(event=events).drop("click")
    profile = looked_at(tmp_path, frame, label="event", positive=["install"])
    assert "impression, open, uninstall count as 0" in profile.label_note
    kept = looked_at(
        tmp_path, frame.filter(~pl.col("event").is_in(["open", "uninstall"])), label="event", positive=["install"]
    )
    assert "count as 0" not in kept.label_note
    with pytest.raises(UserError, match="--positive 'instal' is not a value of the label 'event'"):
        looked_at(tmp_path, frame, label="event", positive=["instal"])
