"""Nested objects of NDJSON and Parquet are columns, named ``object.field``."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from data_pipelines.dataset.dataset import prepare
from data_pipelines.features.config import DataConfig
from data_pipelines.features.plan import Plan
from data_pipelines.files.base import flat
from data_pipelines.profile.inspection import inspect_log
from serving.batch.inputs import Input

ROWS: list[dict[str, Any]] = [
    {
        "user": {"id": n % 7, "geo": {"country": ["FR", "DE"][n % 2]}},
        "items": [{"sku": n % 5}, {"sku": 9}] if n % 3 else [],
        "click": n * 31 % 7 < 2,
    }
    for n in range(400)
]


@pytest.mark.parametrize("suffix", ["ndjson", "parquet"])
def test_fields_of_objects_are_columns(suffix: str, tmp_path: Path) -> None:
    log = tmp_path / f"log.{suffix}"
    getattr(pl.DataFrame(ROWS), f"write_{suffix}")(log)
    features = {
        "user": {"kind": "id", "column": "user.id"},
        "country": {"kind": "id", "column": "user.geo.country"},
        "skus": {"kind": "bag", "column": "items.sku"},
    }
    data = {"log": str(log), "tasks": {"click": {"column": "click"}}, "features": features}
    profile = inspect_log(str(log))
    assert {c.name: c.role for c in profile.columns} == {
        "user.id": "user",
        "user.geo.country": "id",
        "items.sku": "bag",
        "click": "label",
    }
    dataset = prepare(DataConfig.model_validate(data), tmp_path / "dataset")
    assert sorted(dataset.encoder.vocabulary("skus")["value"]) == ["0", "1", "2", "3", "4", "9"]
    plan = Plan.of(dataset.config)
    [part] = Input.find(str(log), plan).parts(tmp_path / "stage", plan)
    asked = pl.DataFrame(
        {
            "user.id": [row["user"]["id"] for row in ROWS],
            "user.geo.country": [row["user"]["geo"]["country"] for row in ROWS],
            "items.sku": [[item["sku"] for item in row["items"]] for row in ROWS],
        }
    )
    encoded = dataset.encoder.encode(part.scan()).collect()
    assert encoded.equals(dataset.encoder.encode(asked.lazy()).collect())
    assert encoded["country"].n_unique() == 2


def test_an_object_beside_a_column_with_the_name_of_its_field_stays_as_it_is() -> None:
    frame = pl.LazyFrame({"a": [{"b": 1}], "a.b": [2], "c": [{"d": {"e": 3}}]})
    assert flat(frame).collect().to_dicts() == [{"a": {"b": 1}, "a.b": 2, "c.d.e": 3}]
