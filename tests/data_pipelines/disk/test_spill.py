"""Rows dealt into files by key: the partitions are those of the whole, by any worker and in any number of parts."""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from data_pipelines.disk import spill
from data_pipelines.disk.spill import Division, partitions, read_span, write_spans


@pytest.fixture(autouse=True, scope="module")
def _few_rows_per_partition():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spill, "PARTITION_ROWS", 8)
        patch.setattr(spill, "MEMORY_ROWS", 64)
        yield


@settings(max_examples=40)
@given(
    rows=st.integers(1, 200),
    entities=st.integers(1, 50),
    part=st.integers(1, 90),
    span=st.integers(1, 300),
    seed=st.integers(0, 99),
)
def test_spans_of_parts_hold_the_partitions_of_the_whole(
    rows: int, entities: int, part: int, span: int, seed: int
) -> None:
    random = np.random.default_rng(seed)
    keys = random.integers(0, 1 << 64, entities, dtype=np.uint64)[random.integers(0, entities, rows)]
    names = [None if i % 5 == 0 else f"name {i}" for i in range(rows)]
    frame = pl.DataFrame({"key": keys, "row": np.arange(rows), "name": names})
    division = Division.of(rows, span)
    with TemporaryDirectory() as scratch:
        whole = list(partitions(frame.lazy(), rows, Path(scratch)))
        paths = [Path(scratch, f"{start}.arrow") for start in range(0, rows, part)]
        for path, piece in zip(paths, frame.iter_slices(part), strict=True):
            write_spans(piece, division, path)
        dealt = [
            held
            for number in range(division.spans)
            for held in division.within(number, read_span(paths, number), frame.clear())
        ]
    assert [(held.low, held.high) for held in dealt] == [(held.low, held.high) for held in whole]
    for one, other in zip(dealt, whole, strict=True):
        assert_frame_equal(one.rows, other.rows)
