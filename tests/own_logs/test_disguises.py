"""The same log in twenty disguises gives the same data set."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest
from benchmark_modules import benchmark_module

from data_pipelines.dataset.dataset import Dataset, prepare
from data_pipelines.features.config import DataConfig

DISGUISED = benchmark_module("disguised_logs")
SHOP = DISGUISED.logs(300)["shop"]


def checksums(log: Path, folder: Path, keys: dict[str, Any]) -> list[object]:
    """Of the encoded rows and the vocabularies; keys of rows are left out, which a data set holds as they are."""
    dataset: Dataset = prepare(DataConfig.model_validate({**SHOP.data, "log": str(log), **keys}), folder)
    encoded = pl.selectors.exclude(pl.selectors.starts_with("key:"))
    frames = [dataset.frame(split).select(encoded).collect() for split in ("train", "valid", "test")]
    tables = [dataset.encoder.vocabulary(table) for table in sorted(dataset.encoder.tables)]
    labels = [dataset.labels(split).tobytes() for split in ("train", "valid", "test")]
    return [*(frame.hash_rows(seed=1).to_list() for frame in (*frames, *tables)), *labels]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    folder = tmp_path_factory.mktemp("plain")
    SHOP.rows.write_parquet(folder / "log.parquet")
    return checksums(folder / "log.parquet", folder / "dataset", {})


@pytest.mark.parametrize("name", DISGUISED.DISGUISES)
def test_a_disguised_log_gives_the_data_set_of_the_plain_one(name: str, plain: list[object], tmp_path: Path) -> None:
    location, keys = DISGUISED.DISGUISES[name](SHOP.rows, tmp_path)
    assert checksums(location, tmp_path / "dataset", keys) == plain


def test_logs_differ() -> None:
    logs = DISGUISED.logs(20)
    assert len(logs) == 10
    assert len({str(log.rows.schema) for log in logs.values()}) == 10
    assert all(isinstance(log.rows["time"].dtype, pl.Datetime) for log in logs.values())
