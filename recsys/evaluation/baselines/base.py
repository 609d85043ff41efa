"""What all baselines read and return: rows of the bag-of-features matrix with labels and weights of the first task.

Letters: N rows, C columns of the bag-of-features matrix.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
import torch

from data_pipelines.batch import Schema
from data_pipelines.dataset.dataset import Dataset
from data_pipelines.dataset.matrices import blocks, to_csr
from data_pipelines.errors import UserError
from models.layers.normalization import squash
from recsys.metrics.arrays import Floats


@dataclass(frozen=True)
class Fitted:
    """A baseline that has learned from the train split.

    Attributes:
        logits: (N,) of a split's rows, by the name of the split.
        facts: Facts about the fit, besides its metrics.
    """

    logits: Callable[[str], Floats]
    facts: Mapping[str, float] = field(default_factory=dict)


Fit = Callable[[Dataset, Sequence[str] | None], Fitted]
"""Fits a baseline on the train split of a data set: on some of its features, on all where ``None``."""


@dataclass(frozen=True)
class Rows:
    """The rows of a split for the first task.

    Attributes:
        matrix: (N, C) bag of features.
        labels_N: NaN where a row has no label.
        weights_N: How much each row counts, with mean 1.
    """

    matrix: sp.csr_matrix
    labels_N: Floats
    weights_N: Floats

    @staticmethod
    def of(dataset: Dataset, split: str, features: Sequence[str] | None, *, scaled: bool = False) -> "Rows":
        """Rows of ``split``; ``scaled`` squashes dense columns as the ranker does."""
        matrix, _ = to_csr(dataset, split, features)
        if scaled:
            schema = schema_of(dataset, features)
            dense = {feature.name for feature in schema.dense}
            starts = [block.start for name, block in blocks(schema).items() if name in dense]
            own = matrix.indices >= min(starts, default=matrix.shape[1])
            matrix.data[own] = squash(torch.from_numpy(matrix.data[own])).numpy()
        return Rows(matrix, labels_of(dataset, split), weights_of(dataset, split))

    def labelled(self) -> "Rows":
        """The rows to learn from."""
        known_N = ~np.isnan(self.labels_N)
        return Rows(self.matrix[known_N], self.labels_N[known_N], self.weights_N[known_N])


def to_fit(dataset: Dataset, features: Sequence[str] | None, *, scaled: bool = False) -> tuple[Rows, Rows]:
    """The labelled rows to learn from, and those that judge what was learned."""
    train, judging = (Rows.of(dataset, split, features, scaled=scaled) for split in ("train", judging_split(dataset)))
    return train.labelled(), judging.labelled()


def labels_of(dataset: Dataset, split: str) -> Floats:
    """The labels of the first task, NaN where a row has none.

    Raises:
        UserError: The task is not binary.
    """
    task = dataset.schema.tasks[0]
    labels_N: Floats = dataset.labels(split)[:, 0].astype(np.float64)
    if dataset.config.tasks[task].kind != "binary":
        raise UserError(f"baselines need a binary task, and {task!r}, the first, is not one.")
    return labels_N


def weights_of(dataset: Dataset, split: str) -> Floats:
    """How much each row counts for the first task, with mean 1."""
    weights_N = dataset.weights(split, dataset.schema.tasks[0])
    if weights_N is None or not weights_N.sum() > 0:
        return np.ones(dataset.splits[split])
    return np.asarray(weights_N / weights_N.mean())


def judging_split(dataset: Dataset) -> str:
    """The split to tune on: valid, unless it has no rows or only one class."""
    labels_N = labels_of(dataset, "valid") if dataset.splits.get("valid") else np.empty(0)
    return "valid" if len(np.unique(labels_N[~np.isnan(labels_N)])) > 1 else "train"


def schema_of(dataset: Dataset, features: Sequence[str] | None) -> Schema:
    """The schema of ``features``, of all where ``None``."""
    return dataset.schema if features is None else dataset.encoder.select(features).schema


def logit(rate: npt.ArrayLike) -> Floats:
    """The log odds of a rate."""
    return cast(Floats, np.log(rate) - np.log1p(-np.asarray(rate)))
