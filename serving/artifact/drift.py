"""Drift: how much the rows that are scored differ from the rows that the model was trained on.

Every feature and every score has a histogram over bins that hold about equal shares of the training rows;
two histograms are compared by the population stability index (:func:`data_pipelines.dataset.drift.psi`).
"""

import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

from data_pipelines.batch import NULL_ID, Batch, Schema
from data_pipelines.dataset.drift import psi
from data_pipelines.disk.damage import intact, read_json

_BINS = 10
_SAMPLE = 4096


class Histogram(BaseModel):
    """Shares of values between ``edges``; bin i holds ``edges[i - 1] <= value < edges[i]``."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    edges: list[FiniteFloat]
    shares: list[Annotated[float, Field(ge=0, le=1)]]

    @model_validator(mode="after")
    def _bins(self) -> "Histogram":
        if len(self.shares) != len(self.edges) + 1 or self.edges != sorted(self.edges):
            raise ValueError("a histogram has edges in ascending order, and one share more than it has edges")
        return self

    @classmethod
    def fit(cls, values: NDArray[np.float32], *, fixed: Iterable[float] = ()) -> "Histogram":
        """Bins of about equal shares; ``fixed`` edges are always kept."""
        quantiles = np.quantile(values, np.linspace(0, 1, _BINS + 1)[1:-1]) if len(values) else np.empty(0)
        edges = np.unique(np.concatenate([np.asarray(list(fixed), float), np.nan_to_num(quantiles).astype(float)]))
        if fixed:
            edges = edges[edges >= min(fixed)]
        counts = _count(values, edges)
        return cls(edges=edges.tolist(), shares=(counts / max(counts.sum(), 1)).tolist())

    def count(self, values: NDArray[np.float32]) -> NDArray[np.int64]:
        """How many of ``values`` fall into each bin."""
        return _count(values, np.asarray(self.edges))

    def psi(self, counts: NDArray[np.int64]) -> float:
        """Population stability index of ``counts`` against the training shares, taken as those of 4096 rows."""
        return psi(np.asarray(self.shares) * _SAMPLE, counts)


def _count(values: NDArray[np.float32], edges: NDArray[np.float64]) -> NDArray[np.int64]:
    bins = np.searchsorted(edges, values, side="right")
    return np.bincount(bins, minlength=len(edges) + 1).astype(np.int64)


class Reference(BaseModel):
    """Histograms of the training rows: one per feature (ids by null, OOV and range) and one per task's score."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    features: dict[str, Histogram]
    scores: dict[str, Histogram]
    oov: dict[str, float]
    """Share of ids that were OOV, by sparse feature."""

    @classmethod
    def read(cls, path: Path, schema: Schema) -> "Reference | None":
        """The reference in a file, of rows of ``schema``; ``None`` if there is no file.

        Raises:
            UserError: It is damaged, or describes other features.
        """
        if not path.is_file():
            return None
        reference = read_json(path, cls)
        with intact(path):
            reference.check(schema)
        return reference

    def check(self, schema: Schema) -> None:
        """Compare the names with those of ``schema``.

        Raises:
            ValueError: A feature of ``schema`` is missing, or a feature is not in ``schema``.
        """
        ids = {feature.name for feature in schema.sparse}
        if self.features.keys() != set(schema.feature_names) or self.oov.keys() != ids:
            raise ValueError("it describes other features than the artifact reads")


def fit_reference(schema: Schema, batch: Batch, scores: Mapping[str, NDArray[np.float32]]) -> Reference:
    """The histograms of one large batch of encoded rows and their scores."""
    features, oov = {}, {}
    for name, values in _columns(schema, batch):
        reserved = _reserved(schema, name)
        if reserved is None:
            features[name] = Histogram.fit(values)
        else:
            features[name] = Histogram.fit(values, fixed=(NULL_ID + 1, reserved))
            oov[name] = _oov_share(values, reserved)
    return Reference(
        features=features, scores={task: Histogram.fit(values) for task, values in scores.items()}, oov=oov
    )


class DriftMonitor:
    """Counts scored rows and compares them with a reference. It reads up to 4096 rows of every batch."""

    def __init__(self, schema: Schema, reference: Reference) -> None:
        self._schema = schema
        self._reference = reference
        self._features = {name: np.zeros(len(h.shares), np.int64) for name, h in reference.features.items()}
        self._scores = {name: np.zeros(len(h.shares), np.int64) for name, h in reference.scores.items()}
        self._counting = threading.Lock()
        self._oov = {name: np.zeros(2) for name in reference.oov}

    def observe(self, batch: Batch, scores: Mapping[str, NDArray[np.float32]]) -> None:
        """Count one scored batch; several threads may do so at once."""
        with self._counting:
            for name, values in _columns(self._schema, batch):
                sample = values[:_SAMPLE]
                self._features[name] += self._reference.features[name].count(sample)
                reserved = _reserved(self._schema, name)
                if reserved is not None:
                    self._oov[name] += (_oov_share(sample, reserved) * len(sample), len(sample))
            for task, values in scores.items():
                if task in self._scores:
                    self._scores[task] += self._reference.scores[task].count(values[:_SAMPLE])

    def report(self) -> dict[str, dict[str, float]]:
        """``features`` and ``scores`` (PSI), ``oov`` (share of ids) and ``oov_training`` (that share in training)."""
        return {
            "features": self.feature_psi(),
            "scores": self.score_psi(),
            "oov": self.oov_rate(),
            "oov_training": dict(self._reference.oov),
        }

    def feature_psi(self) -> dict[str, float]:
        """PSI by feature, for features that have been counted."""
        return {
            name: self._reference.features[name].psi(counts) for name, counts in self._features.items() if counts.any()
        }

    def score_psi(self) -> dict[str, float]:
        """PSI by task, for tasks that have been counted."""
        return {name: self._reference.scores[name].psi(counts) for name, counts in self._scores.items() if counts.any()}

    def oov_rate(self) -> dict[str, float]:
        """Share of ids that were OOV, by sparse feature that has been counted."""
        return {name: float(hits / seen) for name, (hits, seen) in self._oov.items() if seen}


def _columns(schema: Schema, batch: Batch) -> Iterable[tuple[str, NDArray[np.float32]]]:
    for feature in schema.sparse:
        yield feature.name, batch.bags(feature).values().numpy()
    for name, columns in schema.dense_columns.items():
        yield name, batch.dense[:, columns].numpy().ravel()


def _reserved(schema: Schema, feature: str) -> int | None:
    table = next((f.table for f in schema.sparse if f.name == feature), None)
    return None if table is None else schema.table(table).reserved


def _oov_share(ids: NDArray[np.float32], reserved: int) -> float:
    return float(((ids > NULL_ID) & (ids < reserved)).mean()) if len(ids) else 0.0
