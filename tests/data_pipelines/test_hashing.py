"""Hashes of a column are those of its expression, for few and for many texts."""

import numpy as np
import polars as pl
import pytest

from data_pipelines.hashing import hashes, stable_hash


@pytest.mark.parametrize("copies", [0, 1, 1_000])
def test_hashes_of_a_column_are_stable_hashes(copies: int) -> None:
    texts = pl.Series(["a", None, "", "7", "\u00e9\u65e5\u672c" * 20] * copies, dtype=pl.String)
    expected = texts.to_frame("text").select(stable_hash(pl.col("text")).fill_null(0)).to_series()
    np.testing.assert_array_equal(hashes(texts), expected.to_numpy())
