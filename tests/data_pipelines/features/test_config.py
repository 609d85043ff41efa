"""The data block of a config: defaults, and what is refused before any data is read."""

from typing import Any

import pytest
from pydantic import ValidationError

from data_pipelines.errors import UserError
from data_pipelines.features.config import DataConfig
from data_pipelines.locations import expand


def make(**keys: Any) -> DataConfig:
    base: dict[str, Any] = {"log": "log.parquet", "tasks": {"y": {"column": "y"}}, "features": {"u": {"kind": "id"}}}
    return DataConfig.model_validate({**base, **keys})


def test_defaults_are_written_out() -> None:
    config = make(
        time="t",
        user="u",
        features={
            "u": {"kind": "id"},
            "when": {"kind": "time"},
            "seen": {"kind": "history", "of": ["u"]},
        },
    )
    assert config.split.by == "time"
    resolved = config.model_dump()["features"]
    assert (resolved["u"]["column"], resolved["u"]["table"]) == ("u", "u")
    assert resolved["when"]["column"] == "t"
    assert resolved["seen"]["entity"] == "u"
    assert DataConfig.model_validate(config.model_dump()) == config
    assert make().split.by == "random"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"split": {"by": "time"}}, "needs the key `time`"),
        ({"split": {"by": "leave_last", "valid": 1, "test": 1}}, "needs the keys `user` and `time`"),
        ({"split": {"by": "column"}}, "needs the key `column`"),
        ({"split": {"by": "random", "valid": 0.6, "test": 0.4}}, "leave a part for training"),
        ({"split": {"by": "random", "gap": 5}}, "only for a split by time"),
        ({"split": {"by": "time", "valid": "2024-01-01", "test": 0.1}, "time": "t"}, "both dates"),
        ({"features": {"a.b": {"kind": "id"}}}, "no `.`"),
        ({"features": {"x": {"kind": "id", "min_count": 0}}}, "greater than or equal to 1"),
        ({"features": {"x": {"kind": "number", "clip": [2, 1]}}}, "low below high"),
        ({"features": {"x": {"kind": "history", "of": ["u"], "entity": "u"}}}, "not an id or bag feature"),
        ({"features": {"u": {"kind": "id"}, "c": {"kind": "cross", "table": "c", "of": ["u", "v"]}}}, "`v`"),
        ({"features": {"u": {"kind": "id"}, "h": {"kind": "history", "of": ["u"], "entity": "u"}}}, "key `time`"),
        ({"features": {"r": {"kind": "statistic", "measure": "rate", "by": ["u"]}}}, "needs the key `of`"),
        (
            {"time": "t", "features": {"r": {"kind": "statistic", "measure": "rate", "of": "z", "by": ["u"]}}},
            "`z` is not one",
        ),
        (
            {"features": {"a": {"kind": "id", "table": "t"}, "b": {"kind": "id", "table": "t", "min_count": 2}}},
            "share the table `t`",
        ),
        ({"groups": {"all": ["u", "v"]}}, "`v`, which is not there"),
        ({"featuers": {}}, "Extra inputs"),
    ],
)
def test_faults_are_named(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message.replace(".", r"\.")):
        make(**keys)


def test_environment_variables_are_read_where_a_place_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGS", "s3://bucket")
    assert expand("${LOGS}/day=1") == "s3://bucket/day=1"
    assert make(log="${LOGS}/a.parquet").log == "${LOGS}/a.parquet"
    monkeypatch.delenv("LOGS")
    with pytest.raises(UserError, match=r"\$\{LOGS\}/a needs the environment variable LOGS, which is not set"):
        expand("${LOGS}/a")
