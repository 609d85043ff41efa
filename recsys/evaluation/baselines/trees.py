"""Gradient-boosted trees as a baseline: LightGBM, where it is installed."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from data_pipelines.dataset.dataset import Dataset
from data_pipelines.dataset.matrices import blocks, to_csr
from data_pipelines.errors import UserError
from data_pipelines.features.kinds.number import NumberConfig
from recsys.evaluation.baselines.base import Fitted, judging_split, labels_of, schema_of, weights_of
from recsys.metrics.arrays import Floats

_FLAGS = 64
"""Bags over at most this many values are seen as one flag per value; larger ones by their length."""

_UNJUDGED_ROUNDS = 100
"""Rounds where no valid rows say when to stop."""


def fit_gradient_boosting(dataset: Dataset, features: Sequence[str] | None = None) -> Fitted:
    """LightGBM on ids (by frequency rank), numbers, statistics, and bags of few values as flags.

    Raises:
        UserError: LightGBM is not installed.
    """
    try:
        import lightgbm
    except ModuleNotFoundError:
        raise UserError("the boosted trees need LightGBM: pip install 'sparse-recsys[baselines]'.") from None
    judge = judging_split(dataset)

    def rows(split: str) -> Any:
        labels_N = labels_of(dataset, split)
        known_N = ~np.isnan(labels_N)
        matrix, weights_N = tree_columns(dataset, split, features), weights_of(dataset, split)
        return lightgbm.Dataset(matrix[known_N], labels_N[known_N], weight=weights_N[known_N])

    settings = {
        "objective": "binary",
        "learning_rate": 0.05,
        "num_leaves": 63,
        "min_data_in_leaf": 50,
        "deterministic": True,
        "verbosity": -1,
        "seed": 0,
    }
    judged: dict[str, Any] = {"num_boost_round": _UNJUDGED_ROUNDS}
    if judge != "train":
        stop = lightgbm.early_stopping(30, verbose=False)
        judged = {"num_boost_round": 500, "valid_sets": [rows(judge)], "callbacks": [stop]}
    booster = lightgbm.train(settings, rows("train"), **judged)

    def logits(split: str) -> Floats:
        return np.asarray(booster.predict(tree_columns(dataset, split, features), raw_score=True))

    return Fitted(logits)


def tree_columns(dataset: Dataset, split: str, features: Sequence[str] | None) -> npt.NDArray[np.float32]:
    """(N, D) what gradient boosting reads: numbers, ids in their order, flags of small bags, sizes of larger ones."""
    matrix, _ = to_csr(dataset, split, features)
    schema = schema_of(dataset, features)
    ids = [feature.name for feature in schema.sparse if feature.kind == "id"]
    frame = dataset.frame(split).select(ids).collect() if ids else pl.DataFrame()
    columns = [frame[name].to_numpy().astype(np.float32)[:, None] for name in ids]
    for name, block in blocks(schema).items():
        part = matrix[:, block]
        if name not in ids:
            few = part.shape[1] <= _FLAGS or name in {feature.name for feature in schema.dense}
            summed = _pieces(dataset, name) if few else part.shape[1]
            if summed:
                columns.append(np.asarray(part[:, :summed].sum(1), np.float32))
            columns.append(part[:, summed:].toarray())
    return np.hstack(columns)


def _pieces(dataset: Dataset, name: str) -> int:
    """How many columns are pieces of one number: trees read their sum, which orders the rows as the number does."""
    config = dataset.config.features.get(name)
    return config.buckets if isinstance(config, NumberConfig) and config.transform == "piecewise" else 0
