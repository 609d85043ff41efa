"""Hashes of canonical text that are the same in every process, version and machine."""

from collections.abc import Sequence

import numpy as np
import polars as pl
import polars_hash  # noqa: F401
import xxhash
from numpy.typing import NDArray

_MIX = 0x9E3779B97F4A7C15
_FEW = 1 << 9
_SPREAD = 2_654_435_761
"""2**32 divided by the golden ratio: its multiples are spread evenly, whatever the period of a pattern in the rows."""


def stable_hash(text: pl.Expr, seed: int = 0) -> pl.Expr:
    """XXH64 of text: the same in every process, version and machine. Null stays null."""
    hashed: pl.Expr = text.nchash.xxhash64(seed=seed)  # type: ignore[attr-defined]
    return hashed


def hashes(texts: pl.Series) -> NDArray[np.uint64]:
    """(N,) :func:`stable_hash` of each text of a column; 0 for null."""
    if len(texts) <= _FEW:  # by Polars they cost a query
        found = (0 if text is None else xxhash.xxh64_intdigest(text.encode()) for text in texts.to_list())
        return np.fromiter(found, np.uint64, len(texts))
    return texts.to_frame("text").select(stable_hash(pl.col("text")).fill_null(0)).to_series().to_numpy()


def key_of(texts: Sequence[pl.Expr]) -> pl.Expr:
    """UInt64 key of one value, or of several together; null where any is null."""
    key = stable_hash(texts[0])
    for text in texts[1:]:
        key = (key * pl.lit(_MIX, dtype=pl.UInt64)) ^ stable_hash(text)
    return key


def spread(row: pl.Expr, share: float) -> pl.Expr:
    """Whether the row with this number belongs to an even sample of about that ``share`` of all rows.

    Unlike a sample of every n-th row, it is not biased by rows that repeat a pattern, such as lists of 25 positions.
    """
    return row.cast(pl.UInt64) % (1 << 31) * _SPREAD % (1 << 32) < round(share * (1 << 32))
