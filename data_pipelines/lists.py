"""Columns of lists, made from their values and lengths."""

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa


def lists(name: str, values: pl.Series, lengths: npt.NDArray[np.int64]) -> pl.Series:
    """``values``, cut one after the other into lists of the given lengths."""
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    flat = values.to_arrow(compat_level=pl.CompatLevel.oldest())
    return pl.Series(name, pa.LargeListArray.from_arrays(pa.array(offsets), flat))
