"""Hashes of canonical text that are the same in every process, version and machine."""

from collections.abc import Sequence

import polars as pl
import polars_hash  # noqa: F401

_MIX = 0x9E3779B97F4A7C15
_SPREAD = 2_654_435_761
"""2**32 divided by the golden ratio: its multiples are spread evenly, whatever the period of a pattern in the rows."""


def stable_hash(text: pl.Expr, seed: int = 0) -> pl.Expr:
    """XXH64 of text: the same in every process, version and machine. Null stays null."""
    hashed: pl.Expr = text.nchash.xxhash64(seed=seed)  # type: ignore[attr-defined]
    return hashed


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
