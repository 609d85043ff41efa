"""The kind ``number``: one number per row, unchanged, normalised, in buckets, or piecewise linear."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import reduce
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import polars as pl
from pydantic import Field, model_validator

from data_pipelines.batch import DenseSpec, SparseSpec
from data_pipelines.config.base import register
from data_pipelines.errors import UserError
from data_pipelines.features.kinds.base import Check, Feature, FeatureConfig, Fitted, Specs
from data_pipelines.features.raw_columns import RawColumns
from data_pipelines.features.values import unread

if TYPE_CHECKING:
    from data_pipelines.features.config import DataConfig

_LARGEST = 3.4028234663852886e38
"""The largest finite number in 32 bits: beyond it a number would be infinite, and so would the loss."""


@register
class NumberConfig(FeatureConfig):
    """A number. Null and NaN become 0 after the transform (with ``indicator``, a second number says so)."""

    kind: Literal["number"] = "number"
    column: str = Field(description="The column to read; by default the one with the feature's name.")
    transform: Literal["none", "log1p", "standardize", "buckets", "piecewise"] = Field(
        default="none",
        description="`log1p`: sign(x) log(1 + |x|). `standardize`: subtract the mean and divide by the standard "
        "deviation of the training split. `buckets`: the id of a bucket. Half of the edges are quantiles of the "
        "training rows, half of their distinct values, so that a number that is mostly zero has edges among the rest. "
        "`piecewise`: one number per bucket, the share of it that lies below the value, so that even a linear model "
        "bends at every edge (https://arxiv.org/abs/2203.05556).",
    )
    clip: tuple[float, float] | None = Field(
        default=None, description="`[low, high]`: numbers beyond are set to the nearer bound before the transform."
    )
    buckets: int = Field(default=32, ge=2, description="Buckets of the transforms `buckets` and `piecewise`.")
    indicator: bool = Field(default=False, description="Add a last number: 1 where the value is missing, else 0.")

    @model_validator(mode="after")
    def _ordered(self) -> "NumberConfig":
        if self.clip is not None and self.clip[0] >= self.clip[1]:
            raise ValueError(f"clip must be [low, high] with low below high, not {list(self.clip)}")
        if self.indicator and self.transform == "buckets":
            raise ValueError("buckets need no indicator: null has an id of its own")
        return self

    @classmethod
    def defaults(cls, name: str, data: Mapping[str, Any]) -> dict[str, Any]:
        return {"column": name}

    def build(self, name: str, data: "DataConfig") -> "NumberFeature":
        return NumberFeature(name, self)


class NumberFeature(Feature[NumberConfig]):
    """One number per row: as one number or one per bucket, with or without an indicator, or as the id of a bucket."""

    def columns(self) -> frozenset[str]:
        return frozenset({self.config.column})

    def specs(self) -> Specs:
        if self.config.transform == "buckets":
            spec = SparseSpec(name=self.name, table=self.name, kind="id")
            return Specs(sparse=[spec], slots={self.name: self.config.buckets})
        numbers = self.config.buckets if self.config.transform == "piecewise" else 1
        return Specs(dense=[DenseSpec(name=self.name, width=numbers + self.config.indicator)])

    def _clipped(self, raw: RawColumns) -> pl.Expr:
        value = raw.number(self.reader, self.config.column)
        return value if self.config.clip is None else value.clip(*self.config.clip)

    def summaries(self, raw: RawColumns, sample: Callable[[], pl.Expr]) -> dict[str, pl.Expr]:
        value = self._clipped(raw)
        if self.config.transform == "standardize":
            return {"mean": value.mean(), "deviation": value.std(ddof=0)}
        if self.config.transform in ("buckets", "piecewise"):
            sampled = value.filter(sample())
            by_rows = (self.config.buckets + 1) // 2
            by_values = self.config.buckets - by_rows + 1
            edges = {f"row {i}": sampled.quantile(i / by_rows) for i in range(1, by_rows)}
            edges |= {f"value {i}": sampled.unique().quantile(i / by_values) for i in range(1, by_values)}
            return edges if self.config.transform == "buckets" else edges | {"low": value.min(), "high": value.max()}
        return {}

    def fit(self, summary: Mapping[str, Any]) -> list[float]:
        """Mean and deviation, or the edges of the buckets in ascending order (of `piecewise` with both ends)."""
        if self.config.transform in ("buckets", "piecewise"):
            return sorted({edge for edge in summary.values() if edge is not None})
        numbers = [summary["mean"] or 0.0, summary["deviation"] or 1.0]
        if not all(map(math.isfinite, numbers)):
            raise UserError(
                f"{self.reader}: column {self.config.column!r} holds numbers too large to standardise; set `clip`, or "
                "`transform: log1p` or `buckets`."
            )
        return numbers

    def check_fitted(self, numbers: Sequence[float] | None) -> None:
        """Buckets beyond the last edge have rows, and the deviation to divide by is not zero."""
        transform = self.config.transform
        if transform == "buckets" and (numbers is None or len(numbers) >= self.config.buckets):
            raise ValueError(f"{self.reader} has no edges of buckets, or too many")
        if transform == "piecewise" and (numbers is None or len(numbers) > self.config.buckets + 1):
            raise ValueError(f"{self.reader} has no edges of its pieces, or too many")
        if transform == "piecewise" and any(high <= low for low, high in pairwise(numbers or ())):
            raise ValueError(f"{self.reader} has edges that do not ascend")
        if transform == "standardize" and (numbers is None or len(numbers) != 2 or numbers[1] == 0):
            raise ValueError(f"{self.reader} has no mean and deviation")

    def checks(self, raw: RawColumns) -> Iterator[Check]:
        read = raw.number(self.reader, self.config.column)
        if raw.schema[self.config.column] == pl.String:
            yield f"{self.config.column}: no number", unread(pl.col(self.config.column), read)

    def encode(self, spec: SparseSpec | DenseSpec, raw: RawColumns, fitted: Fitted) -> list[pl.Expr]:
        value = self._clipped(raw)
        if isinstance(spec, SparseSpec):
            zero: pl.Expr = pl.lit(0, dtype=pl.Int32)
            edges = fitted.numbers[self.name]
            bucket = reduce(lambda total, edge: total + (value >= edge).cast(pl.Int32), edges, zero)
            return [fitted.tables[spec.table].slot_ids(pl.when(value.is_not_null()).then(bucket)).alias(self.name)]
        missing = value.is_null()
        if self.config.transform == "log1p":
            value = value.sign() * value.abs().log1p()
        elif self.config.transform == "standardize":
            mean, deviation = fitted.numbers[self.name]
            value = (value - mean) / deviation
        piecewise = self.config.transform == "piecewise"
        parts = self._pieces(value, fitted.numbers[self.name]) if piecewise else [value.clip(-_LARGEST, _LARGEST)]
        numbers = [part.cast(pl.Float32).fill_null(0) for part in parts]
        if self.config.indicator:
            numbers.append(missing.cast(pl.Float32))
        return [(pl.concat_arr(numbers) if len(numbers) > 1 else numbers[0]).alias(self.name)]

    def _pieces(self, value: pl.Expr, edges: Sequence[float]) -> list[pl.Expr]:
        """For each bucket, the share of it below ``value``; 0 for those that training had no edges for."""
        pieces = [(value.clip(low, high) - low) / (high - low) for low, high in pairwise(edges)]
        return pieces + [value.clip(0, 0)] * (self.config.buckets - len(pieces))
