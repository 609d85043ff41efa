"""Times in the forms that strangers' logs have: read as what they are, or refused with the key to set."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from data_pipelines.config.learning import Split
from data_pipelines.dataset.dataset import Dataset, prepare
from data_pipelines.errors import Notice, UserError
from data_pipelines.features.config import DataConfig
from data_pipelines.features.time_formats import check_readable, formats_of, oddities
from data_pipelines.features.times import epoch
from data_pipelines.files.side_tables import Join
from data_pipelines.logs.joins import join
from data_pipelines.profile.inspection import inspect_log
from data_pipelines.profile.starter.config import starter_config

START = datetime(2024, 1, 5, tzinfo=UTC)
TIMES = [START + timedelta(minutes=61 * n) for n in range(600)]
EXCEL_0 = datetime(1899, 12, 30, tzinfo=UTC)
PLAIN: dict[str, Callable[[datetime], object]] = {
    "iso": lambda t: t.strftime("%Y-%m-%dT%H:%M:%S"),
    "zulu": lambda t: t.strftime("%Y-%m-%dT%H:%M:%SZ"),
    "offset": lambda t: t.astimezone().strftime("%Y-%m-%d %H:%M:%S%z"),
    "bigquery": lambda t: t.strftime("%Y-%m-%d %H:%M:%S UTC"),
    "fraction": lambda t: t.strftime("%Y-%m-%d %H:%M:%S.%f UTC"),
    "comma": lambda t: t.strftime("%Y-%m-%d %H:%M:%S,000"),
    "slashes": lambda t: t.strftime("%Y/%m/%d %H:%M:%S"),
    "12-hour": lambda t: t.strftime("%Y-%m-%d %I:%M %p"),
    "seconds": lambda t: int(t.timestamp()),
    "milliseconds as text": lambda t: str(int(t.timestamp() * 1000)),
}
KEYED: dict[str, Callable[[datetime], object]] = {
    "%m/%d/%Y %H:%M": lambda t: f"{t.month}/{t.day}/{t.year} {t.hour}:{t.minute:02}",
    "%d/%m/%Y %H:%M": lambda t: t.strftime("%d/%m/%Y %H:%M"),
    "%d.%m.%Y %H:%M": lambda t: t.strftime("%d.%m.%Y %H:%M"),
    "%m/%d/%Y %I:%M %p": lambda t: t.strftime("%m/%d/%Y %I:%M %p"),
    "%d/%b/%Y:%H:%M:%S %z": lambda t: t.strftime("%d/%b/%Y:%H:%M:%S %z"),
    "YYYYMMDDHHMM": lambda t: int(t.strftime("%Y%m%d%H%M")),
    "YYYYMMDDHHMMSS": lambda t: t.strftime("%Y%m%d%H%M%S"),
    "excel": lambda t: (t - EXCEL_0).total_seconds() / 86400,
}
COARSE: dict[str, tuple[str, timedelta]] = {
    "YYYYMMDD": ("%Y%m%d", timedelta(days=1)),
    "YYMMDDHH": ("%y%m%d%H", timedelta(hours=1)),
    "YYYYMMDDHH": ("%Y%m%d%H", timedelta(hours=1)),
}


def read(values: pl.Series, format: str | None = None) -> list[datetime | None]:
    micros = values.to_frame("x").select(epoch(pl.col("x"), values.dtype, format)).to_series()
    return [None if m is None else datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=m) for m in micros]


@pytest.mark.parametrize("show", PLAIN.values(), ids=PLAIN)
def test_times_with_one_meaning_are_read_without_a_key(show: Callable[[datetime], object]) -> None:
    values = pl.Series([show(time) for time in TIMES])
    assert read(values) == TIMES
    assert formats_of(values) == []
    check_readable("log.csv", "time", "data.time_format", values, None)


@pytest.mark.parametrize("format", KEYED)
def test_other_times_are_refused_with_the_format_that_reads_them(format: str) -> None:
    values = pl.Series([KEYED[format](time) for time in TIMES])
    assert formats_of(values) == [format]
    assert read(values, format) == TIMES
    with pytest.raises(UserError, match=r"log\.csv: 'time' holds times such as .*set `data\.time_format: ") as error:
        check_readable("log.csv", "time", "data.time_format", values, None)
    assert format in str(error.value)
    assert repr(values[0]) in str(error.value)


@pytest.mark.parametrize("name", COARSE)
@pytest.mark.parametrize("dtype", [pl.String, pl.Int64, pl.Float64])
def test_digits_of_a_calendar_are_never_counts_of_seconds(name: str, dtype: type[pl.DataType]) -> None:
    pattern, step = COARSE[name]
    times = [START + step * n for n in range(100)]
    values = pl.Series([time.strftime(pattern) for time in times]).cast(dtype)
    assert formats_of(values) == [name]
    assert read(values, name) == times
    if name != "YYMMDDHH":  # which only a whole column tells from seconds
        assert read(values) == [None] * len(times)
    with pytest.raises(UserError, match=f"look like {name}.*set `data.time_format: {name}`"):
        check_readable("log", "time", "data.time_format", values, None)


@given(st.datetimes(datetime(1970, 1, 2), datetime(2032, 12, 31)))
def test_a_count_is_read_alike_in_every_unit_and_type(moment: datetime) -> None:
    moment = moment.replace(tzinfo=UTC, microsecond=0)
    seconds = int(moment.timestamp())
    for format, scale in {"unix_s": 1, "unix_ms": 10**3, "unix_us": 10**6, "unix_ns": 10**9}.items():
        for values in (pl.Series([seconds * scale]), pl.Series([str(seconds * scale)])):
            assert read(values, format) == [moment]
    assert read(pl.Series([float(seconds)]), "unix_s") == [moment]


def test_two_orders_of_day_and_month_are_not_guessed_silently() -> None:
    values = pl.Series([f"{1 + n % 12}/{1 + n % 11}/2024" for n in range(50)])
    assert set(formats_of(values)) == {"%m/%d/%Y", "%d/%m/%Y"}
    with pytest.raises(UserError, match="whichever order of day and month is right"):
        check_readable("log", "time", "data.time_format", values, None)


def test_a_year_of_two_digits_is_no_year_of_four() -> None:
    assert read(pl.Series(["1/5/24"]), "%m/%d/%Y") == [None]


@pytest.mark.parametrize("format", ["soon", "%Y-%m-%d %H:%M %Z", "%"])
def test_a_format_that_reads_nothing_is_refused(format: str) -> None:
    with pytest.raises(ValidationError, match="time_format"):
        config(time_format=format)


def test_what_is_implausible_about_times_is_said() -> None:
    day, hour = 86_400_000_000, 3_600_000_000
    start = 1_700_000_000_000_000 // day * day
    assert "1970" in next(oddities(1_000_000, 2_000_000, pl.Series([0]).to_numpy()))
    assert "2611" in next(oddities(start, 20_236_000_000_000_000, pl.Series([1, 2]).to_numpy()))
    hours = (start + pl.arange(0, 20, eager=True).to_numpy() * 7 * day) // hour
    found = list(oddities(start, start + 20 * 7 * day, hours))
    assert len(found) == 2
    assert "hour 0" in found[0]
    assert "Tuesday" in found[1]


def config(**data: object) -> DataConfig:
    features = data.pop("features", {"item": {"kind": "id"}, "when": {"kind": "time"}})
    return DataConfig.model_validate(
        {"log": "log.csv", "time": "time", "tasks": {"click": {"column": "click"}}, "features": features, **data}
    )


def log(path: Path, times: list[object]) -> Path:
    n = len(times)
    columns = {"time": times, "item": [i % 7 for i in range(n)], "click": [i % 3 == 0 for i in range(n)]}
    pl.DataFrame(columns, strict=False).with_columns(pl.col("click").cast(pl.Int8)).write_csv(path)
    return path


def prepared(path: Path, out: Path, **data: object) -> pl.DataFrame:
    dataset = Dataset.open(prepare(config(log=str(path), **data), out).path)
    return pl.concat([dataset.frame(split).collect() for split in ("train", "valid", "test")])


def test_a_log_with_a_format_is_the_data_set_of_the_log_without(tmp_path: Path) -> None:
    plain = prepared(log(tmp_path / "plain.csv", [int(t.timestamp()) for t in TIMES]), tmp_path / "plain")
    american = log(tmp_path / "us.csv", [KEYED["%m/%d/%Y %H:%M"](t) for t in TIMES])
    with pytest.raises(UserError, match=r"us\.csv: 'time' holds times such as '1/5/2024 0:00'.*data\.time_format"):
        prepare(config(log=str(american)), tmp_path / "none")
    same = prepared(american, tmp_path / "us", time_format="%m/%d/%Y %H:%M")
    assert same.select("when.hour", "when.weekday", "item").equals(plain.select("when.hour", "when.weekday", "item"))


def test_dates_of_the_split_are_read_as_yaml_and_as_the_log_write_them(tmp_path: Path) -> None:
    path = log(tmp_path / "log.csv", [int(t.strftime("%Y%m%d%H")) for t in TIMES])
    for n, dates in enumerate(("valid: 2024-01-20, test: 2024-01-25", "valid: 2024012000, test: '2024012500'")):
        split = yaml.safe_load(f"{{by: time, {dates}}}")
        dataset = prepare(config(log=str(path), split=split, time_format="YYYYMMDDHH"), tmp_path / str(n))
        expected = [sum(a <= t.day + 31 * (t.month - 1) < b for t in TIMES) for a, b in ((0, 20), (20, 25), (25, 99))]
        assert [dataset.profile["splits"][name] for name in ("train", "valid", "test")] == expected
    assert Split.model_validate({"valid": 0.2, "test": 0.2}).valid == 0.2


def test_hours_are_those_of_a_time_zone(tmp_path: Path) -> None:
    features = {"here": {"kind": "time", "zone": "Europe/Berlin"}, "utc": {"kind": "time"}}
    summer = [datetime(2024, 7, 1, tzinfo=UTC) + timedelta(hours=n) for n in range(40)]
    frame = prepared(log(tmp_path / "l.csv", [int(t.timestamp()) for t in summer]), tmp_path / "d", features=features)
    assert ((frame["here.hour"] - frame["utc.hour"]) % 24 == 2).all()
    with pytest.raises(ValidationError, match="Europe/Berlin"):
        config(features={"when": {"kind": "time", "zone": "Berlin"}})


def test_an_unreadable_time_of_a_feature_is_refused_and_a_missing_one_is_null(tmp_path: Path) -> None:
    frame = pl.DataFrame({"time": TIMES[:200], "item": [1] * 200, "click": [0, 1] * 100})
    frame = frame.with_columns(born=pl.Series(["2020-01-01", "NA", None, "soon"] + ["2021-02-03"] * 196))
    frame.write_parquet(tmp_path / "log.parquet")
    features = {"item": {"kind": "id"}, "born": {"kind": "time", "column": "born", "parts": ["month"]}}
    dataset = prepare(config(log=str(tmp_path / "log.parquet"), features=features), tmp_path / "d")
    refused = pl.read_parquet(dataset.path / "quarantine.parquet")
    assert refused["born"].to_list() == ["soon"]
    assert "data.features.born.time_format" in refused["reason"][0]


def test_the_times_of_a_side_table_have_a_format_of_their_own() -> None:
    rows = pl.LazyFrame({"item": [1, 1], "time": [1_704_400_000, 1_707_000_000]})
    table = pl.LazyFrame({"item": [1, 1], "since": ["01.01.2024", "01.02.2024"], "price": [5, 6]})
    with pytest.raises(UserError, match=r"prices: 'since' holds .* '01\.01\.2024'.*data\.joins\.time_format"):
        join(rows, table, Join(table="prices", on="item", time="since"), "time").collect()
    side = Join(table="prices", on="item", time="since", time_format="%d.%m.%Y")
    assert join(rows, table, side, "time").collect()["price"].to_list() == [5, 6]


def test_prepare_says_that_times_begin_in_1970(tmp_path: Path) -> None:
    path = log(tmp_path / "log.csv", list(range(300)))
    with pytest.warns(Notice, match=r"log\.csv: time: the times begin in 1970"):
        prepare(config(log=str(path)), tmp_path / "d")


@pytest.mark.parametrize("format", ["%m/%d/%Y %H:%M", "%d.%m.%Y %H:%M", "YYYYMMDDHHMM"])
def test_init_writes_the_format_that_it_guessed(format: str, tmp_path: Path) -> None:
    path = log(tmp_path / "log.csv", [KEYED[format](time) for time in TIMES])
    profile = inspect_log(str(path), label="click")
    assert (profile.time, profile.time_formats) == ("time", {"time": (format,)})
    written = yaml.safe_load(starter_config(profile))["data"]
    assert written["time_format"] == format
    assert written["split"]["by"] == "time"


def test_init_says_that_another_order_of_day_and_month_fits(tmp_path: Path) -> None:
    path = log(tmp_path / "log.csv", [f"{1 + n // 40}/{1 + n % 11}/2024" for n in range(400)])
    profile = inspect_log(str(path), label="click")
    assert profile.time_formats["time"] == ("%m/%d/%Y", "%d/%m/%Y")
    assert '"%d/%m/%Y" fits as well' in starter_config(profile)
    assert any("hour 0" in note for note in profile.time_notes)
