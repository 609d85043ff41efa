"""Events that are delivered twice."""

from pathlib import Path

import polars as pl
import pytest

from data_pipelines.dataset.dataset import prepare
from data_pipelines.errors import Notice, UserError
from data_pipelines.features.config import DataConfig


def test_a_day_delivered_twice_is_counted_once(tmp_path: Path) -> None:
    log = pl.DataFrame({"u": [row % 3 for row in range(60)], "t": [10**9 + row for row in range(60)], "y": [0, 1] * 30})
    log[:40].write_parquet(tmp_path / "monday.parquet")
    log[30:].write_parquet(tmp_path / "overlap.parquet")
    config = {
        "log": str(tmp_path / "monday.parquet"),
        "time": "t",
        "tasks": {"y": {"column": "y"}},
        "features": {"u": {"kind": "id"}, "n": {"kind": "statistic", "measure": "count", "by": ["u"]}},
    }
    state = prepare(DataConfig.model_validate(config), tmp_path / "dataset").state
    assert state is not None
    overlap = str(tmp_path / "overlap.parquet")
    with pytest.raises(UserError, match="has 10 events at or before"):
        state.update(overlap, tmp_path / "refused", late="refuse")
    assert not (tmp_path / "refused").exists()
    with pytest.warns(Notice, match="10 events"):
        once = state.update(overlap, tmp_path / "once", late="drop")
    frame = once.frame("n")
    assert frame.select(pl.col("before") + pl.col("at")).to_series().to_list() == [20, 20, 20]
    again = once.update(str(tmp_path / "monday.parquet"), tmp_path / "again", late="count").frame("n")
    assert again.select(pl.col("before") + pl.col("at")).sum().item() == 100
