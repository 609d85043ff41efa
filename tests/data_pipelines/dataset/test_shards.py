"""Data sets whose files are fetched from an S3 server on loopback when a loader reads them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.batch import Batch
from data_pipelines.dataset import columns, epoch_order, prepare
from data_pipelines.dataset.dataset import Dataset
from data_pipelines.dataset.dataset import prepare as prepare_dataset
from data_pipelines.dataset.epoch_order import ShuffledRows
from data_pipelines.dataset.loader import Loader
from data_pipelines.dataset.summary import SUMMARY, Summary
from data_pipelines.disk import object_store
from data_pipelines.errors import UserError
from data_pipelines.features.config import DataConfig

SHARD_ROWS = 200


@pytest.fixture(scope="module")
def local(tiny_data: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """1,600 training rows in eight files, with a history and weights."""
    past = {"kind": "history", "of": ["item"], "last": 5}
    task = {"column": "click", "row_weight": "rating"}
    data = {**tiny_data, "tasks": {"click": task}, "features": {**tiny_data["features"], "past": past}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(columns, "PART_ROWS", SHARD_ROWS)
        patch.setattr(prepare, "CHUNK_ROWS", SHARD_ROWS)
        return prepare_dataset(DataConfig.model_validate(data), tmp_path_factory.mktemp("data") / "dataset")


@pytest.fixture
def address(local: Dataset, bucket: str) -> str:
    object_store.push(local.path, f"{bucket}/dataset")
    return f"{bucket}/dataset"


@pytest.fixture(autouse=True)
def small_windows() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(epoch_order, "WINDOW_ROWS", 300)
        patch.setattr(epoch_order, "BLOCK_ROWS", 32)
        yield


def loader(dataset: Dataset, **options: Any) -> Loader:
    return Loader(dataset, "train", batch_size=64, shuffle=True, seed=4, **{"mix_shards": 2, **options})


def assert_same(found: list[Batch], expected: list[Batch]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.rows, other.rows)
        assert torch.equal(one.sparse.values(), other.sparse.values())
        assert torch.equal(one.sparse.lengths(), other.sparse.lengths())
        assert torch.equal(one.dense, other.dense)
        assert one.labels is not None
        assert other.labels is not None
        assert torch.equal(one.labels, other.labels)


def shards_there(dataset: Dataset) -> set[int]:
    """Numbers of the training files that have been fetched."""
    return {int(path.stem.removeprefix("part-")) for path in (dataset.path / "splits/train").glob("part-*.arrow")}


def shards_of(batches: list[Batch]) -> set[int]:
    return {int(row) // SHARD_ROWS for batch in batches for row in batch.rows}


@settings(max_examples=30)
@given(
    shards=st.lists(st.integers(0, 90), min_size=1, max_size=6),
    mixed=st.integers(1, 10),
    epoch=st.integers(0, 3),
    window=st.integers(1, 200),
)
def test_an_order_has_every_row_once_and_few_shards_in_a_window(
    shards: list[int], mixed: int, epoch: int, window: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(epoch_order, "WINDOW_ROWS", window)
        patch.setattr(epoch_order, "BLOCK_ROWS", 16)
        order = ShuffledRows(shards, 1, epoch, mixed)
    owner = np.repeat(np.arange(len(shards)), shards)
    rows = []
    for number in range(len(order.windows) - 1):
        own = [row for start, stop in order.ranges(number) for row in range(start, stop)]
        assert len(own) == order.windows[number + 1] - order.windows[number]
        assert len(set(owner[own])) <= mixed
        rows += own
    assert sorted(rows) == list(range(sum(shards)))


def test_a_rank_gets_the_batches_of_the_folder_and_fetches_only_their_files(local: Dataset, address: str) -> None:
    expected = [list(loader(local, rank=rank, world_size=2)) for rank in range(2)]
    dataset = Dataset.stream(address)
    assert shards_there(dataset) == set()
    before = dataset.fetched
    assert before is not None
    assert_same(list(loader(dataset, rank=0, world_size=2)), expected[0])
    assert shards_there(dataset) == shards_of(expected[0])
    assert len(shards_there(dataset)) == 4
    sizes = [dataset.manifest.files[f"splits/train/part-{shard:05d}.arrow"].bytes for shard in shards_there(dataset)]
    assert dataset.fetched == before + sum(sizes)
    assert_same(list(loader(Dataset.stream(address), rank=1, world_size=2)), expected[1])


def test_it_resumes_in_the_middle_of_an_epoch(local: Dataset, address: str) -> None:
    whole = list(loader(local))
    first = loader(local)
    for _ in zip(range(9), first, strict=False):
        pass
    resumed = loader(Dataset.stream(address))
    resumed.load_state_dict(first.state_dict())
    assert_same(list(resumed), whole[9:])


def test_epochs_have_their_own_order_of_shards(local: Dataset) -> None:
    both = loader(local)
    first = [int(batch.rows[0]) for batch in both]
    both.set_epoch(1)
    assert first != [int(batch.rows[0]) for batch in both]


def test_the_disk_holds_no_more_than_the_limit(local: Dataset, address: str) -> None:
    size = local.manifest.files["splits/train/part-00000.arrow"].bytes
    dataset = Dataset.stream(address, cache_bytes=3 * size + size // 2)
    rows = 0
    for batch in loader(dataset, threads=0):
        rows += len(batch)
        assert len(shards_there(dataset)) <= 4  # one more while it arrives
    assert rows == local.splits["train"]
    assert_same(list(loader(dataset)), list(loader(local)))  # what was removed is fetched again


def test_other_splits_and_whole_columns_are_fetched_when_they_are_read(local: Dataset, address: str) -> None:
    dataset = Dataset.stream(address)
    assert np.array_equal(dataset.labels("valid"), local.labels("valid"))
    assert shards_there(dataset) == set()
    assert dataset.frame("train").collect().equals(local.frame("train").collect())
    assert dataset.state is not None


def test_a_file_that_arrives_damaged_is_refused(address: str) -> None:
    dataset = Dataset.stream(address)
    fsspec.filesystem("s3").pipe_file(f"{address}/splits/train/part-00003.arrow", b"damaged")
    with pytest.raises(UserError, match=r"part-00003\.arrow"):
        list(loader(dataset))
    assert 3 not in shards_there(dataset)


def test_what_cannot_be_streamed_is_refused(local: Dataset, bucket: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not an address"):
        Dataset.stream(str(local.path))
    with pytest.raises(UserError, match="nothing complete is there"):
        Dataset.stream(f"{bucket}/nothing")
    with pytest.raises(UserError, match="mix_shards"):
        loader(local, lists=True)


def test_the_summary_is_that_of_the_rows(local: Dataset) -> None:
    frame = local.frame("train").collect()
    summary = Summary.model_validate_json((local.path / SUMMARY).read_text())
    assert summary == Summary.of(local.path, local.schema, list(local.splits))
    assert summary.parts["train"] == [SHARD_ROWS] * 8
    labels, weights = local.labels("train")[:, 0], local.weights("train", "click")
    task = summary.tasks["click"]
    assert weights is not None
    assert (task.labelled, task.low, task.high) == (len(frame), labels.min(), labels.max())
    assert task.mean_weight == pytest.approx(weights.mean())
    small = np.log1p(np.abs(frame["price"].to_numpy())) * np.sign(frame["price"].to_numpy())
    mean, square = summary.moments(local.encoder.select(["price"]).schema)
    assert mean[:1] == pytest.approx(small.mean(), rel=1e-6)
    assert square[:1] == pytest.approx(np.square(small).mean(), rel=1e-6)
    assert pl.Series(summary.parts["valid"]).sum() == local.splits["valid"]
