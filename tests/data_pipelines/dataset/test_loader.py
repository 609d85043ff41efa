"""Batches: whole epochs, shards, exact resume, and how well blocks shuffle."""

import threading
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.batch import Batch
from data_pipelines.dataset import epoch_order
from data_pipelines.dataset.dataset import Dataset, prepare
from data_pipelines.dataset.loader import Loader, collate
from data_pipelines.errors import UserError
from data_pipelines.features.config import DataConfig


@pytest.fixture(scope="module")
def dataset(tiny_data: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    data = {**tiny_data, "split": {"by": "random", "valid": 0.1, "test": 0.1}}
    data["features"] = {
        **tiny_data["features"],
        "marks": {"kind": "bag", "column": "tags", "weights": "marks", "table": "tags"},
        "hour": {"kind": "time", "parts": ["hour", "cyclic"]},
    }
    folder = tmp_path_factory.mktemp("dataset")
    log = pl.read_parquet(tiny_data["log"])
    log.with_columns(marks=pl.col("tags").list.eval(pl.element().str.len_chars() / 2)).write_parquet(
        folder / "log.parquet"
    )
    return prepare(DataConfig.model_validate({**data, "log": str(folder / "log.parquet")}), folder / "dataset")


def rows_of(batches: list[Batch]) -> list[int]:
    return torch.cat([batch.rows for batch in batches]).tolist() if batches else []


def same(one: Batch, other: Batch) -> bool:
    assert one.weighted is not None
    assert other.weighted is not None
    pairs = [
        (one.sparse.values(), other.sparse.values()),
        (one.sparse.lengths(), other.sparse.lengths()),
        (one.weighted.values(), other.weighted.values()),
        (one.weighted.weights(), other.weighted.weights()),
        (one.dense, other.dense),
        (one.rows, other.rows),
    ]
    return all(torch.equal(a, b) for a, b in pairs) and one.sparse.keys() == other.sparse.keys()


@settings(max_examples=30, deadline=None)
@given(
    batch_size=st.integers(1, 400),
    world_size=st.integers(1, 5),
    shuffle=st.booleans(),
    max_rows=st.one_of(st.none(), st.integers(5, 900)),
    window=st.sampled_from([10, 100, 1 << 17]),
    block=st.sampled_from([1, 7, 512]),
)
def test_ranks_see_every_row_once(
    dataset: Dataset, batch_size: int, world_size: int, shuffle: bool, max_rows: int | None, window: int, block: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(epoch_order, "WINDOW_ROWS", window)
        patch.setattr(epoch_order, "BLOCK_ROWS", block)
        loaders = [
            Loader(dataset, "train", batch_size=batch_size, shuffle=shuffle, rank=rank, world_size=world_size,
                   max_rows=max_rows, threads=0)
            for rank in range(world_size)
        ]  # fmt: skip
        shards = [list(loader) for loader in loaders]
    assert {len(shard) for shard in shards} == {len(loader) for loader in loaders}
    assert all(len(batch) in range(1, batch_size + 2) for shard in shards for batch in shard)
    rows = [row for shard in shards for row in rows_of(shard)]
    total = min(dataset.splits["train"], max_rows or dataset.splits["train"])
    assert sorted(rows) == list(range(total))
    if not shuffle:
        assert rows == sorted(rows)


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_batches_are_the_encoded_rows(dataset: Dataset, threads: int) -> None:
    encoded = dataset.frame("train").collect()
    for batch in Loader(dataset, "train", batch_size=100, shuffle=True, threads=threads):
        rows = batch.rows.numpy()
        assert same(batch, collate(dataset.schema, encoded[rows], rows))
        assert batch.labels is not None
        np.testing.assert_array_equal(batch.labels.numpy(), dataset.labels("train")[rows])


def test_epochs_have_orders_of_their_own_and_a_seed_repeats_them(dataset: Dataset) -> None:
    def epoch(number: int, seed: int = 0) -> list[int]:
        loader = Loader(dataset, "train", batch_size=64, shuffle=True, seed=seed)
        loader.set_epoch(number)
        return rows_of(list(loader))

    assert epoch(0) == epoch(0)
    assert len({tuple(order) for order in (epoch(0), epoch(1), epoch(0, seed=1))}) == 3


@settings(max_examples=15, deadline=None)
@given(stop=st.integers(0, 12), epoch=st.integers(0, 2), shuffle=st.booleans())
def test_resumes_at_the_exact_batch(dataset: Dataset, stop: int, epoch: int, shuffle: bool) -> None:
    def loader() -> Loader:
        return Loader(dataset, "train", batch_size=128, shuffle=shuffle, seed=5)

    whole, cut, resumed = loader(), loader(), loader()
    whole.set_epoch(epoch)
    cut.set_epoch(epoch)
    batches, iterator = list(whole), iter(cut)
    for _ in range(min(stop, len(batches))):
        next(iterator)
    resumed.load_state_dict(cut.state_dict())
    resumed.set_epoch(epoch)
    rest = list(resumed)
    assert len(rest) == len(batches) - min(stop, len(batches))
    assert all(same(a, b) for a, b in zip(rest, batches[stop:], strict=True))
    resumed.set_epoch(epoch + 1)
    assert sorted(rows_of(list(resumed))) == list(range(dataset.splits["train"]))


@settings(max_examples=15, deadline=None)
@given(before=st.integers(1, 4), after=st.integers(1, 4), steps=st.integers(0, 3), batch_size=st.integers(20, 90))
def test_resumes_at_another_number_of_ranks(
    dataset: Dataset, before: int, after: int, steps: int, batch_size: int
) -> None:
    seen: list[int] = []
    state: dict[str, Any] = {}
    for rank in range(before):
        loader = Loader(dataset, "train", batch_size=90, shuffle=True, rank=rank, world_size=before)
        iterator = iter(loader)
        seen += rows_of([next(iterator) for _ in range(steps)])
        assert state in ({}, loader.state_dict())
        state = loader.state_dict()
    for rank in range(after):
        loader = Loader(dataset, "train", batch_size=batch_size, shuffle=True, rank=rank, world_size=after)
        loader.load_state_dict(state)
        batches = list(loader)
        seen += rows_of(batches)
    size = dataset.splits["train"]
    assert len(seen) == len(set(seen))
    assert size - len(seen) < after


def test_features_are_read_on_their_own(dataset: Dataset) -> None:
    loader = Loader(dataset, "train", batch_size=256, features=["item", "price"])
    batch = next(iter(loader))
    assert loader.schema.feature_names == ("item", "price")
    assert batch.sparse.keys() == ["item"]
    assert batch.weighted is None
    assert batch.dense.shape == (256, 1)


def test_blocks_shuffle_nearly_as_well_as_a_global_shuffle(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """With windows of a quarter of the rows, a batch's rows spread over the split as those of a global shuffle do."""
    monkeypatch.setattr(epoch_order, "WINDOW_ROWS", 400)
    monkeypatch.setattr(epoch_order, "BLOCK_ROWS", 8)
    size = dataset.splits["train"]
    spreads = []
    for epoch in range(20):
        loader = Loader(dataset, "train", batch_size=50, shuffle=True, threads=0)
        loader.set_epoch(epoch)
        spreads += [np.std(batch.rows.numpy()) / size for batch in loader if len(batch) == 50]
    assert np.mean(spreads) == pytest.approx(1 / np.sqrt(12), rel=0.03)


def test_too_few_rows_for_the_ranks(dataset: Dataset) -> None:
    with pytest.raises(UserError, match="too few for 3 ranks"):
        Loader(dataset, "train", batch_size=1, world_size=3, max_rows=2)
    with pytest.raises(UserError, match="no split 'other'"):
        Loader(dataset, "other", batch_size=1)


def test_an_abandoned_epoch_leaves_no_thread(dataset: Dataset) -> None:
    before = threading.active_count()
    iterator = iter(Loader(dataset, "train", batch_size=10))
    next(iterator)
    assert threading.active_count() == before + 1
    iterator.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before
