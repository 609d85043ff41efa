"""Keys of logs of positives that make no sense, each refused in a sentence that names the key."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest
from pydantic import ValidationError

from data_pipelines.dataset.dataset import prepare
from data_pipelines.errors import UserError
from data_pipelines.features.config import DataConfig

SAMPLING = {"item": "i", "by": "popularity"}
LATE = {"late": {"column": "kept", "label_delay": 60}}


def block(**keys: Any) -> dict[str, Any]:
    return {
        "log": "log.parquet",
        "time": "t",
        "user": "u",
        "keys": ["u", "i"],
        "tasks": {"chosen": {"column": "positive"}},
        "sampling": SAMPLING,
        "features": {"i": {"kind": "id"}},
        **keys,
    }


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"sampling": {"item": "i", "window": 60}}, "`window` is only for by: popularity"),
        ({"sampling": {**SAMPLING, "window": 60}, "time": None}, "`sampling.window` needs the key `time`"),
        ({"sampling": {**SAMPLING, "window": 0}}, "greater than 0"),
        ({"sampling": {**SAMPLING, "negatives": 0}}, "greater than or equal to 1"),
        ({"sampling": {**SAMPLING, "exclude": "baskets"}}, "'basket', 'past' or 'none'"),
        ({"sampling": {**SAMPLING, "exclude": "past", "basket": ["o"]}}, "only for exclude: basket"),
        ({"user": None, "keys": ["i"]}, "`sampling` needs the key `user`"),
        ({"group": ["o"]}, "`sampling` draws rows that never were: remove one"),
        ({"features": {"r": {"kind": "recency", "by": []}}}, "at least 1 item"),
        ({"features": {"r": {"kind": "recency", "by": ["i"]}}, "time": None}, "a recency needs the key `time`"),
        ({"features": {"r": {"kind": "recency", "by": ["i"], "where": "kept = 1"}}, "tasks": LATE}, "does not wait"),
        ({"tasks": {"chosen": {"column": "positive", "label_delay": -1}}}, "greater than or equal to 0"),
        ({"event_key": ["id"], "time": None, "sampling": None}, "`event_key` needs the key `time`"),
        ({"event_window": -1}, "greater than or equal to 0"),
    ],
)
def test_a_key_without_a_meaning_is_refused(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        DataConfig.model_validate(block(**keys))


def test_columns_that_are_not_there_are_named(tmp_path: Path) -> None:
    log = pl.DataFrame({"u": [1, 2] * 20, "i": list(range(40)), "t": [10**9 + n for n in range(40)]})
    log.write_parquet(tmp_path / "log.parquet")
    for keys, said in [
        ({"event_key": ["id"]}, "`event_key`.* 'id'"),
        ({"sampling": {**SAMPLING, "basket": ["order"]}}, "no column 'order' for `sampling`"),
    ]:
        config = DataConfig.model_validate(block(log=str(tmp_path / "log.parquet"), **keys))
        with pytest.raises(UserError, match=said):
            prepare(config, tmp_path / "dataset")
        assert not (tmp_path / "dataset").exists()
