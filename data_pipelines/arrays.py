"""Arrow and NumPy helpers that files, features and batches share."""

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa


def lists(name: str, values: pl.Series, lengths: npt.NDArray[np.int64]) -> pl.Series:
    """``values`` as a column of consecutive lists of the given lengths."""
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    flat = values.to_arrow(compat_level=pl.CompatLevel.oldest())
    return pl.Series(name, pa.LargeListArray.from_arrays(pa.array(offsets), flat))


def to_arrow(frame: pl.DataFrame) -> pa.Table:
    """``frame`` in types that every Arrow reader knows (no string views)."""
    return frame.to_arrow(compat_level=pl.CompatLevel.oldest())


def to_batch(frame: pl.DataFrame) -> pa.RecordBatch:
    """``frame`` as one record batch, even without rows, in types that every Arrow reader knows."""
    table = to_arrow(frame.rechunk())
    return pa.RecordBatch.from_arrays([column.combine_chunks() for column in table.columns], schema=table.schema)


def spans(starts: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Concatenated ranges: ``starts[i], starts[i] + 1, ...``, each of ``lengths[i]`` positions."""
    before = np.cumsum(lengths) - lengths
    return np.repeat(starts - before, lengths) + np.arange(int(lengths.sum()))


def age_bucket(microseconds: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
    """floor(log2(1 + seconds)) of ages: the slot of the age table."""
    seconds = np.maximum(microseconds, 0) // 1_000_000
    exponent: npt.NDArray[np.int32] = np.frexp((seconds + 1).astype(np.float64))[1] - 1
    return np.minimum(exponent, 32)
