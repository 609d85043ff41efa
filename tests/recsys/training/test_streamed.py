"""A training on a data set at an object store, which is read file by file."""

from pathlib import Path
from typing import Any

import pytest
from training_examples import assert_same, configure, final_tensors

from data_pipelines.dataset import columns, prepare
from data_pipelines.dataset.dataset import Dataset
from data_pipelines.dataset.dataset import prepare as prepare_dataset
from data_pipelines.disk import object_store
from recsys.evaluation.evaluate import dataset_of
from recsys.training.train import train


def test_a_streamed_training_ends_with_the_weights_of_a_local_one(
    experiment: dict[str, Any], bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(columns, "PART_ROWS", 200)
    monkeypatch.setattr(prepare, "CHUNK_ROWS", 200)
    model = {"dim": 4, "wide": True, "tower": {"kind": "mlp", "hidden": [8]}}
    config = configure(
        experiment, model=model, train__epochs=2, train__start="linear", train__mix_shards=2, train__batch_size=256
    )
    local = prepare_dataset(config.data, tmp_path / "dataset")
    object_store.push(local.path, f"{bucket}/dataset")

    expected = train(config, local, tmp_path / "local")
    streamed = Dataset.stream(f"{bucket}/dataset")
    found = train(config, streamed, tmp_path / "streamed")

    assert_same(final_tensors(tmp_path / "streamed"), final_tensors(tmp_path / "local"))
    assert found.valid == expected.valid
    assert [note for note in found.notes if "each rank fetched" in note] == [
        f"bytes of the data set that each rank fetched: {streamed.fetched:,}, of "
        f"{sum(entry.bytes for entry in local.manifest.files.values()):,}."
    ]
    assert not (streamed.path / "splits/test/part-00000.arrow").exists()
    assert Dataset.open(dataset_of(tmp_path / "streamed")).manifest == local.manifest
