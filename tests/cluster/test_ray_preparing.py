"""Preparing on a Ray cluster: the content that one process makes."""

import threading
from typing import Any

import polars as pl
import pytest

from data_pipelines.dataset import staging
from data_pipelines.dataset.dataset import Dataset, prepare
from data_pipelines.disk import parallel, spill
from data_pipelines.features.config import DataConfig
from recsys.cluster import preparing


@pytest.fixture
def config(tiny_data: dict[str, Any]) -> DataConfig:
    """Features of three entities: a user, an item and a user with a tag."""
    past = {
        "seen": {"kind": "history", "of": ["item", "tags"], "last": 5, "entity": "user", "age": True},
        "rate": {"kind": "statistic", "measure": "rate", "of": "click", "by": ["item"]},
        "tried": {"kind": "statistic", "measure": "count", "by": ["user", "tags"], "window": 86400.0},
        "again": {"kind": "recency", "by": ["user", "tags"], "where": "click = 1"},
    }
    crossed = {"both": {"kind": "cross", "of": ["user", "device"]}}
    return DataConfig.model_validate(tiny_data | {"features": tiny_data["features"] | past | crossed})


@pytest.fixture
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of 500 rows, keys of several spans, and spans of several partitions."""
    monkeypatch.setattr(parallel, "PART_ROWS", 500)
    monkeypatch.setattr(spill, "PARTITION_ROWS", 120)
    monkeypatch.setattr(staging, "JOINED_ROWS", 900)


def assert_same(one: Dataset, other: Dataset) -> None:
    """Every file has the same bytes."""
    assert one.manifest.files == other.manifest.files
    assert one.splits == other.splits


@pytest.mark.usefixtures("_small_parts")
@pytest.mark.parametrize("by", ["time", "random", "leave_last"])
def test_parts_of_a_log_make_the_data_set_of_the_whole(config, tiny_log, by, tmp_path):
    log = tmp_path / "log.parquet"
    frame = pl.read_parquet(tiny_log)
    frame[17, "click"] = 7
    frame.write_parquet(log, row_group_size=300)
    shares = {"valid": 1, "test": 1} if by == "leave_last" else {"valid": 0.1, "test": 0.2}
    config = DataConfig.model_validate(config.model_dump() | {"split": {"by": by, **shares}})

    whole = prepare(config, tmp_path / "whole", log=str(log))
    parts = prepare(config, tmp_path / "parts", log=str(log), engine=map)
    assert sum(whole.splits.values()) == 1999
    assert_same(whole, parts)


@pytest.mark.usefixtures("_small_parts")
@pytest.mark.parametrize("suffix", ["csv", "ndjson"])
def test_files_of_text_and_side_tables_in_parts_make_the_data_set_of_the_whole(config, tiny_log, suffix, tmp_path):
    """One file lacks a column, one has lines that are no rows, one is empty; a column comes from a side table."""
    rows = pl.read_parquet(tiny_log).with_columns(pl.col("tags").list.join("|"))
    folder = tmp_path / "log"
    folder.mkdir()
    (folder / f"0.{suffix}").touch()
    for number, part in enumerate([rows[:700], rows[700:1400].drop("device"), rows[1400:]], 1):
        path = folder / f"{number}.{suffix}"
        part.write_csv(path) if suffix == "csv" else part.write_ndjson(path)
    with (folder / f"2.{suffix}").open("a") as file:
        file.write("one,two\n")
    items = rows.select("item").unique().sort("item").with_row_index("shelf")
    items.write_parquet(tmp_path / "items.parquet")
    content = config.model_dump()
    content["features"] |= {"shelf": {"kind": "id"}, "tags": {"kind": "bag", "delimiter": "|"}}
    joins = [{"table": str(tmp_path / "items.parquet"), "on": "item"}]
    config = DataConfig.model_validate(content | {"joins": joins, "max_quarantined": 0.1})
    whole = prepare(config, tmp_path / "whole", log=str(folder))
    parts = prepare(config, tmp_path / "parts", log=str(folder), engine=map)
    assert sum(whole.profile["refused"].values()) == 1
    assert_same(whole, parts)


@pytest.mark.usefixtures("_small_parts")
def test_parts_extend_a_data_set_as_the_whole_does(config, tiny_log, tmp_path):
    rows = pl.read_parquet(tiny_log)
    rows[:1500].write_parquet(tmp_path / "first.parquet")
    rows[1500:].write_parquet(tmp_path / "next.parquet")
    first = prepare(config, tmp_path / "first", log=str(tmp_path / "first.parquet"))
    log = str(tmp_path / "next.parquet")
    whole = prepare(config, tmp_path / "whole", log=log, extend=first.path)
    parts = prepare(config, tmp_path / "parts", log=log, extend=first.path, engine=map)
    assert_same(whole, parts)


@pytest.mark.usefixtures("_small_parts")
def test_a_cluster_prepares_as_one_process_even_when_a_node_dies(two_nodes, config, tmp_path):
    address, kill_second_node = two_nodes
    here = prepare(config, tmp_path / "here")
    done: list[object] = []
    killer = threading.Thread(target=kill_second_node)
    with preparing.ray_engine(address) as cluster:

        def engine(work, items):
            for result in cluster(work, items):
                done.append(result)
                if len(done) == 13:  # amid the spans of the first entity
                    killer.start()
                yield result

        there = prepare(config, tmp_path / "there", engine=engine)
    killer.join()
    assert len(done) > 30
    assert_same(here, there)
