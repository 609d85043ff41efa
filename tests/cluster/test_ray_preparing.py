"""Preparing on a Ray cluster: the content that one process makes."""

import threading
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from data_pipelines.dataset.dataset import Dataset, prepare
from data_pipelines.features.config import DataConfig
from recsys.cluster import preparing


@pytest.fixture
def config(tiny_data: dict[str, Any]) -> DataConfig:
    past = {
        "seen": {"kind": "history", "of": ["item", "tags"], "last": 5, "entity": "user", "age": True},
        "rate": {"kind": "statistic", "measure": "rate", "of": "click", "by": ["item"]},
    }
    crossed = {"both": {"kind": "cross", "of": ["user", "device"]}}
    return DataConfig.model_validate(tiny_data | {"features": tiny_data["features"] | past | crossed})


def content(dataset: Dataset) -> dict[str, pl.DataFrame]:
    frames = {f"split {split}": dataset.frame(split).collect() for split in dataset.splits}
    return frames | {f"table {t.name}": dataset.encoder.vocabulary(t.name) for t in dataset.schema.tables}


def assert_same(one: Dataset, other: Dataset) -> None:
    assert one.splits == other.splits
    mine, theirs = content(one), content(other)
    assert mine.keys() == theirs.keys()
    for name, frame in mine.items():
        assert_frame_equal(frame, theirs[name])
    events = sorted(path.relative_to(one.path) for path in one.path.glob("events/**/*") if path.is_file())
    assert events
    for name in events:
        assert (one.path / name).read_bytes() == (other.path / name).read_bytes()


@pytest.mark.parametrize("by", ["time", "random", "leave_last"])
def test_parts_of_a_log_make_the_data_set_of_the_whole(config, tiny_log, by, tmp_path):
    log = tmp_path / "log.parquet"
    frame = pl.read_parquet(tiny_log)
    frame[17, "click"] = 7
    frame.write_parquet(log, row_group_size=300)
    shares = {"valid": 1, "test": 1} if by == "leave_last" else {"valid": 0.1, "test": 0.2}
    config = DataConfig.model_validate(config.model_dump() | {"split": {"by": by, **shares}})

    def in_parts(rows, size, work):
        for start in range(0, size, 451):
            yield work(rows.slice(start, 451))

    whole = prepare(config, tmp_path / "whole", log=str(log))
    parts = prepare(config, tmp_path / "parts", log=str(log), engine=in_parts)
    assert sum(whole.splits.values()) == 1999
    assert_same(whole, parts)


def test_a_cluster_prepares_as_one_process_even_when_a_node_dies(two_nodes, config, tmp_path, monkeypatch):
    address, kill_second_node = two_nodes
    monkeypatch.setattr(preparing, "PART_ROWS", 100)
    here = prepare(config, tmp_path / "here")
    killer = threading.Thread(target=kill_second_node)
    parts_done: list[int] = []

    def kill_midway(rows: int) -> None:
        parts_done.append(rows)
        if len(parts_done) == 6:
            killer.start()

    there = prepare(config, tmp_path / "there", engine=preparing.ray_engine(address), progress=kill_midway)
    killer.join()
    assert len(parts_done) > 6
    assert_same(here, there)
