"""The kind ``time``: parts of a time."""

import datetime as dt
import math

import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.features.config import DataConfig
from data_pipelines.features.encoder import Encoder
from data_pipelines.features.plan import Plan

TIMES = st.datetimes(dt.datetime(1971, 1, 1), dt.datetime(2100, 1, 1))


@settings(max_examples=40, deadline=None)
@given(now=TIMES, born=st.one_of(st.none(), TIMES))
def test_parts_are_those_of_the_calendar(now: dt.datetime, born: dt.datetime | None) -> None:
    parts = ["hour", "weekday", "day", "month", "cyclic"]
    features = {"now": {"kind": "time", "parts": parts}, "born": {"kind": "time", "column": "born", "parts": ["age"]}}
    data = {"log": "unused", "time": "t", "tasks": {"y": {"column": "y"}}, "features": features}
    rows = pl.LazyFrame({"t": [now], "born": [born]}, schema={"t": pl.Datetime("us"), "born": pl.Datetime("us")})
    encoder = Encoder.fit(Plan.of(DataConfig.model_validate(data)), rows)
    (row,) = encoder.encode(rows).collect().to_dicts()
    assert row["now.hour"] == 2 + now.hour
    assert row["now.weekday"] == 2 + now.weekday()
    assert row["now.day"] == 2 + now.day - 1
    assert row["now.month"] == 2 + now.month - 1
    day = (now - dt.datetime.combine(now, dt.time())) / dt.timedelta(days=1)
    week = (now.weekday() + day) / 7
    waves = [wave(turn * 2 * math.pi) for turn in (day, week) for wave in (math.sin, math.cos)]
    assert all(math.isclose(a, b, abs_tol=1e-5) for a, b in zip(row["now.cyclic"], waves, strict=True))
    days = 0.0 if born is None else max((now - born) / dt.timedelta(days=1), 0.0)
    assert math.isclose(row["born.age"], math.log1p(days), rel_tol=1e-5)
