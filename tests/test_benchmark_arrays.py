"""What peers of a benchmark are given is what our models learn from."""

import json

import numpy as np
import polars as pl
import pytest
from benchmark_modules import benchmark_module

from data_pipelines.dataset.dataset import prepare
from data_pipelines.features.config import DataConfig

HISTORY = {"kind": "history", "of": ["item"], "where": "click = 1", "last": 4}


@pytest.fixture
def arrays():
    return benchmark_module("arrays")


def test_arrays_hold_ids_padded_bags_histories_and_labels(arrays, tiny_data, tmp_path):
    features = tiny_data["features"] | {"liked": HISTORY}
    dataset = prepare(DataConfig.model_validate(tiny_data | {"features": features}), tmp_path / "dataset")
    arrays.write_arrays(dataset, tmp_path / "arrays", ["train", "test"], without=["device"])

    description = json.loads((tmp_path / "arrays" / "features.json").read_text())
    assert list(description) == ["user", "item", "tags", "liked.item"]
    rows = dataset.schema.table("item").rows
    assert description["liked.item"] == {"kind": "history", "table": "item", "rows": rows, "width": 4}
    assert not (tmp_path / "arrays" / "valid").exists()
    for split in ("train", "test"):
        written = {path.stem: np.load(path) for path in (tmp_path / "arrays" / split).glob("*.npy")}
        assert written.keys() == {*description, "label"}
        np.testing.assert_array_equal(written["label"], dataset.labels(split)[:, 0])
        np.testing.assert_array_equal(written["item"], dataset.feature(split, "item").to_numpy())
        for ids, bag in zip(written["tags"], dataset.feature(split, "tags"), strict=True):
            np.testing.assert_array_equal(ids, [*bag, *[0] * (len(ids) - len(bag))])

    past = dataset.keys("train").with_columns(dataset.feature("train", "item"), click=dataset.labels("train")[:, 0])
    written = np.load(tmp_path / "arrays" / "train" / "liked.item.npy")
    for ids, row in list(zip(written, past.iter_rows(named=True), strict=True))[-50:]:
        earlier = past.filter(pl.col("user") == row["user"], pl.col("time") < row["time"], pl.col("click") == 1)
        liked = earlier["item"].tail(4).to_list()
        np.testing.assert_array_equal(ids, [*liked, *[0] * (4 - len(liked))])
