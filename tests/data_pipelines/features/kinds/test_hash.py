"""The kind ``hash``: ids without a vocabulary."""

import polars as pl
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.features.config import DataConfig
from data_pipelines.features.encoder import Encoder
from data_pipelines.features.plan import Plan
from data_pipelines.features.values import canonical


@settings(max_examples=40, deadline=None)
@given(
    values=st.lists(st.one_of(st.none(), st.text(max_size=6)), min_size=1, max_size=8),
    rows=st.integers(1, 1000),
    hashes=st.integers(1, 3),
)
def test_ids_are_the_hashes_of_the_text(values: list[str | None], rows: int, hashes: int) -> None:
    feature = {"kind": "hash", "rows": rows, "hashes": hashes}
    data = {"log": "unused", "tasks": {"y": {"column": "y"}}, "features": {"x": feature}}
    frame = pl.LazyFrame({"x": values}, schema={"x": pl.String})
    encoder = Encoder.fit(Plan.of(DataConfig.model_validate(data)), frame)
    expected = [
        [0 if value is None else 2 + xxhash.xxh64_intdigest(value.encode(), seed) % rows for seed in range(hashes)]
        for value in canonical(pl.Series(values, dtype=pl.String))
    ]
    encoded = encoder.encode(frame).collect()["x"].to_list()
    assert encoded == ([ids[0] for ids in expected] if hashes == 1 else expected)
    assert encoder.schema.table("x").rows == 2 + rows
