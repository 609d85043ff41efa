"""Raw rows in, ids and numbers out: the encoder of a portable artifact.

Letters: B rows, L ids of all rows, d width of an embedding.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.portable.files import Floats, PortableError
from serving.portable.values import bag_values, canonical, number

Row = Mapping[str, Any]
NULL, UNKNOWN = 0, 1
"""The ids of no value and of a value out of the vocabulary; ids of values follow."""
_LARGEST = 3.4028234663852886e38


Bags = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Ids of all rows, one row after the other, and (B + 1,) where the ids of each row begin."""


class Sparse:
    """A feature with ids: what ``model.json`` says of it, and the ids of its values."""

    def __init__(self, spec: Mapping[str, Any], values: Sequence[str] | None) -> None:
        self.name, self.spec = str(spec["name"]), spec
        self._ids = {value: UNKNOWN + 1 + at for at, value in enumerate(values or ())}
        self._is_slots = values is None

    @property
    def largest_id(self) -> int:
        """The largest id that a value may have."""
        return UNKNOWN + (len(self.spec["numbers"]) + 1 if self._is_slots else len(self._ids))

    def encode(self, rows: Sequence[Row]) -> Bags:
        """The ids of the feature in each row."""
        read: Callable[[Any], list[int]] = {"id": self._id, "bag": self._bag, "bucket": self._bucket}[self.spec["kind"]]
        found = [read(value) for value in _column(rows, self.spec)]
        starts = np.cumsum([0, *map(len, found)])
        return np.fromiter((id for ids in found for id in ids), np.int64, int(starts[-1])), starts

    def _look_up(self, text: str | None) -> int:
        return NULL if text is None else self._ids.get(text, UNKNOWN)

    def _id(self, value: Any) -> list[int]:
        return [self._look_up(canonical(value))]

    def _bag(self, value: Any) -> list[int]:
        return [self._look_up(text) for text in bag_values(value, self.spec["delimiter"])[: self.spec["max_length"]]]

    def _bucket(self, value: Any) -> list[int]:
        found = _clipped(number(value), self.spec["clip"])
        if math.isnan(found):
            return [NULL]
        bucket = sum(found >= edge for edge in self.spec["numbers"])
        return [UNKNOWN + 1 + bucket if self._is_slots else self._look_up(str(bucket))]


class Dense:
    """A feature that is one number per row, or one per piece; and whether it is missing, if that is asked for."""

    def __init__(self, spec: Mapping[str, Any]) -> None:
        self.name, self.spec = str(spec["name"]), spec

    def encode(self, rows: Sequence[Row]) -> Floats:
        """(B, numbers) float32: one, or one per piece, and one more with an indicator."""
        raw_B = np.array([number(value) for value in _column(rows, self.spec)], np.float64).reshape(-1)
        missing_B = np.isnan(raw_B)
        value_B = raw_B if self.spec["clip"] is None else np.clip(raw_B, *self.spec["clip"])
        if self.spec["transform"] == "log1p":
            value_B = np.sign(value_B) * np.log1p(np.abs(value_B))
        elif self.spec["transform"] == "standardize":
            mean, deviation = self.spec["numbers"]
            value_B = (value_B - mean) / deviation
        parts = self._pieces(value_B) if self.spec["transform"] == "piecewise" else [value_B]
        columns = [np.where(missing_B, 0.0, np.clip(part_B, -_LARGEST, _LARGEST)) for part_B in parts]
        return np.stack([*columns, missing_B] if self.spec["indicator"] else columns, 1).astype(np.float32)

    def _pieces(self, value_B: NDArray[np.float64]) -> list[NDArray[np.float64]]:
        edges = self.spec["numbers"]
        pieces = [(np.clip(value_B, low, high) - low) / (high - low) for low, high in pairwise(edges)]
        return pieces + [np.zeros_like(value_B)] * (self.spec["pieces"] - len(pieces))


def _column(rows: Sequence[Row], spec: Mapping[str, Any]) -> Iterator[Any]:
    if spec.get("value") is not None:
        yield from [spec["value"]] * len(rows)
        return
    for at, row in enumerate(rows):
        if spec["column"] not in row:
            raise PortableError(
                f"rows[{at}]: feature {spec['name']!r} reads the column {spec['column']!r}, which is not there; there "
                f"are {', '.join(map(str, row)) or 'no columns'}."
            )
        yield row[spec["column"]]


def _clipped(value: float, clip: Sequence[float] | None) -> float:
    return value if clip is None or math.isnan(value) else min(max(value, clip[0]), clip[1])


def pool(rows_Ld: Floats, starts: NDArray[np.int64], pooling: str) -> Floats:
    """(B, d) the sum or the mean of the rows of each bag; zeros for an empty bag."""
    sums = np.zeros((len(starts) - 1, rows_Ld.shape[1]), np.float32)
    lengths = np.diff(starts)
    filled = lengths > 0
    if filled.any():
        sums[filled] = np.add.reduceat(rows_Ld, starts[:-1][filled], axis=0)
    return sums if pooling == "sum" else np.asarray(sums / np.maximum(lengths, 1)[:, None], np.float32)
