"""Side tables at the first look: which columns they are joined by, and what is said where none fits."""

from pathlib import Path

import polars as pl
import pytest
from look_examples import ROWS, log, looked_at, started

from data_pipelines.dataset.dataset import prepare
from data_pipelines.errors import UserError


def test_several_columns_may_be_the_key(tmp_path: Path) -> None:
    """Such as the weather, which has one row per place and hour, beside measures that the log has, too."""
    places = [f"p{n % 3}" for n in range(ROWS)]
    frame = log(place=places, hour=[n // 50 % 24 for n in range(ROWS)], wind=1.5)
    hours = [(place, hour) for place in ("p0", "p1", "p2") for hour in range(24)]
    weather = {"place": [p for p, _ in hours], "hour": [h for _, h in hours], "wind": [h / 4 for _, h in hours]}
    pl.DataFrame(weather).write_csv(tmp_path / "weather.csv")
    profile = looked_at(tmp_path, frame, sides=[str(tmp_path / "weather.csv")])
    assert (profile.sides[0].join.on, profile.sides[0].unmatched) == (["place", "hour"], 0)
    config = started(profile)
    assert "weather_wind" in config.data.features
    assert prepare(config.data, tmp_path / "dataset").profile["side_tables"] == {str(tmp_path / "weather.csv"): 0}


def test_whole_floats_are_keys(tmp_path: Path) -> None:
    users = pl.DataFrame({"user": [float(n) for n in range(90)], "height": [1.5 + n / 90 for n in range(90)]})
    users.write_parquet(tmp_path / "users.parquet")
    frame = log(user=[n % 90 for n in range(ROWS)])
    side = looked_at(tmp_path, frame, sides=[str(tmp_path / "users.parquet")]).sides[0]
    assert (side.join.on, side.unmatched) == ("user", 0)


def test_a_key_of_the_same_name_as_a_list_of_the_log_is_no_key(tmp_path: Path) -> None:
    items = pl.DataFrame({"item": [f"i{n}" for n in range(40)], "tags": [f"t{n}" for n in range(40)]})
    items.write_parquet(tmp_path / "items.parquet")
    frame = log(item=[f"i{n % 40}" for n in range(ROWS)], tags=[["a", "b"]] * ROWS)
    side = looked_at(tmp_path, frame, sides=[str(tmp_path / "items.parquet")]).sides[0]
    assert (side.join.on, side.added) == ("item", ("items_tags",))


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ({"item": [f"i{n // 2}" for n in range(80)], "tag": ["a", "b"] * 40}, "has several rows for one 'item'"),
        ({"item": list(range(40)), "tag": ["a", "b"] * 20}, "except for leading zeros"),
        ({"item": [f"x{n}" for n in range(40)], "tag": ["a", "b"] * 20}, "is a key of the log"),
    ],
)
def test_why_a_table_has_no_key(tmp_path: Path, table: dict[str, list[object]], sentence: str) -> None:
    pl.DataFrame(table).write_csv(tmp_path / "items.csv")
    items = [f"{n % 40:05d}" if isinstance(table["item"][0], int) else f"i{n % 40}" for n in range(ROWS)]
    with pytest.raises(UserError, match=sentence):
        looked_at(tmp_path, log(item=items), sides=[str(tmp_path / "items.csv")])
