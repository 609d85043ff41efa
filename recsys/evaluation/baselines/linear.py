"""Baselines that are linear in a row of the bag-of-features matrix: popularity, logistic regression, an SVD.

Letters: N rows, C columns of the bag-of-features matrix, k singular vectors.
"""

import warnings
from collections.abc import Sequence
from typing import cast

import numpy as np
import scipy.sparse as sp
from scipy.sparse.linalg import svds
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from data_pipelines.dataset.dataset import Dataset
from data_pipelines.dataset.matrices import blocks
from recsys.evaluation.baselines.base import Fitted, Rows, logit, schema_of, to_fit
from recsys.metrics.arrays import Floats, weighted_mean
from recsys.metrics.binary import auc, log_loss

SMOOTHING = 20.0
"""Pseudo-rows at the overall rate with which every value's rate is smoothed."""


def fit_popularity(dataset: Dataset, features: Sequence[str] | None = None) -> Fitted:
    """The smoothed mean label of a feature's value in training, for the one feature that orders the valid rows best."""
    train, judged = to_fit(dataset, features)
    rate = weighted_mean(train.labels_N, train.weights_N)

    def score(rows: Rows, block: slice) -> Floats:
        seen, part = train.matrix[:, block], rows.matrix[:, block]
        counts_C = seen.T @ train.weights_N
        odds_C = logit((seen.T @ (train.labels_N * train.weights_N) + SMOOTHING * rate) / (counts_C + SMOOTHING))
        return cast(Floats, (part @ odds_C) / np.maximum(np.asarray(part.sum(1)).ravel(), 1.0))

    schema = schema_of(dataset, features)
    bags = {feature.name for feature in schema.sparse}
    columns = [block for name, block in blocks(schema).items() if name in bags]
    best = max(columns, key=lambda block: auc(judged.labels_N, score(judged, block), judged.weights_N))
    return Fitted(lambda split: score(Rows.of(dataset, split, features), best))


_PENALTIES = ((1.0, "liblinear", (0.03, 0.3)), (0.0, "lbfgs", (0.03, 0.3, 3.0)))
"""The share of L1, the solver, and inverse strengths in ascending order; weaker L1 may take liblinear minutes."""


def fit_linear(dataset: Dataset, features: Sequence[str] | None = None) -> Fitted:
    """Logistic regression on the bag-of-features matrix, with an L1 or an L2 penalty.

    Both are fitted with weaker and weaker penalties until the log loss of the valid split rises, and the best of all is
    taken. Where values have few rows, a penalty that is too strong costs more than the choice of the penalty.
    """
    train, judged = to_fit(dataset, features, scaled=True)
    best, least = None, float("inf")
    for l1_ratio, solver, strengths in _PENALTIES:
        before = float("inf")
        for strength in strengths:
            model = LogisticRegression(
                l1_ratio=l1_ratio, C=strength, solver=solver, tol=1e-3, max_iter=60, random_state=0
            )
            _fit(model, train.matrix, train)
            loss = log_loss(judged.labels_N, model.decision_function(judged.matrix), judged.weights_N)
            if best is None or loss < least:
                best, least = model, loss
            if loss > before:
                break
            before = loss
    assert best is not None
    coefficients, predict = best.coef_, best.decision_function

    def logits(split: str) -> Floats:
        return cast(Floats, predict(Rows.of(dataset, split, features, scaled=True).matrix))

    return Fitted(logits, {"density": float((coefficients != 0).mean())})


def _fit(model: LogisticRegression, matrix: sp.csr_matrix | Floats, rows: "Rows") -> None:
    """Fit, quietly where the iterations do not suffice: the valid split judges such a model like any other."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(matrix, rows.labels_N, sample_weight=rows.weights_N)


def fit_decomposition(dataset: Dataset, features: Sequence[str] | None = None, *, width: int = 32) -> Fitted:
    """Logistic regression on the ``width`` strongest left singular vectors of the bag-of-features matrix."""
    train = Rows.of(dataset, "train", features, scaled=True).labelled()
    rank = min(width, min(train.matrix.shape) - 1)
    _, _, right_kC = svds(train.matrix.astype(np.float32), k=rank, random_state=0)
    model = LogisticRegression(max_iter=200)
    _fit(model, train.matrix @ right_kC.T, train)

    def logits(split: str) -> Floats:
        rows = Rows.of(dataset, split, features, scaled=True)
        return cast(Floats, model.decision_function(rows.matrix @ right_kC.T))

    return Fitted(logits)
