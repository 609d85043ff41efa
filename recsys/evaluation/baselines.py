"""Baselines of a ranker: popularity, a sparse linear model, an SVD, a factorization machine, boosted trees.

All use the ranker's data set: they are trained on its train split, tuned on its valid split, and measured like the
ranker. Letters: N rows, C columns of the bag-of-features matrix, L entries of a batch, k factors.
"""

import json
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import polars as pl
import scipy.sparse as sp
import torch
import torch.nn.functional as F
from scipy.sparse.linalg import svds
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from data_pipelines.batch import Schema
from data_pipelines.dataset.dataset import Dataset
from data_pipelines.dataset.matrices import blocks, to_csr
from data_pipelines.disk.storage import write_file
from data_pipelines.errors import UserError
from models.layers.normalization import squash
from recsys.evaluation.evaluate import facts_of, task_metrics
from recsys.metrics.arrays import Floats, weighted_mean
from recsys.metrics.binary import auc, log_loss

BASELINES_FILE = "baselines.json"
"""Metrics of each baseline by split, in the run's folder."""

SMOOTHING = 20.0
"""Pseudo-rows at the overall rate with which every value's rate is smoothed."""

_FLAGS = 64
"""Boosted trees see bags over at most this many values as one flag per value; larger ones by their length."""

_UNJUDGED_ROUNDS = 100
"""Rounds of boosted trees where no valid rows say when to stop."""


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


def fit_popularity(dataset: Dataset, features: Sequence[str] | None = None) -> Fitted:
    """The smoothed mean label of a feature's value in training, for the one feature that orders the valid rows best."""
    train, judged = (_Rows.of(dataset, name, features).labelled() for name in ("train", _judge(dataset)))
    rate = weighted_mean(train.labels_N, train.weights_N)

    def score(rows: _Rows, block: slice) -> Floats:
        seen, part = train.matrix[:, block], rows.matrix[:, block]
        counts_C = seen.T @ train.weights_N
        odds_C = _logit((seen.T @ (train.labels_N * train.weights_N) + SMOOTHING * rate) / (counts_C + SMOOTHING))
        return cast(Floats, (part @ odds_C) / np.maximum(np.asarray(part.sum(1)).ravel(), 1.0))

    schema = _schema(dataset, features)
    bags = {feature.name for feature in schema.sparse}
    columns = [block for name, block in blocks(schema).items() if name in bags]
    best = max(columns, key=lambda block: auc(judged.labels_N, score(judged, block), judged.weights_N))
    return Fitted(lambda split: score(_Rows.of(dataset, split, features), best))


_PENALTIES = ((1.0, "liblinear", (0.03, 0.3)), (0.0, "lbfgs", (0.03, 0.3, 3.0)))
"""The share of L1, the solver, and inverse strengths in ascending order; weaker L1 may take liblinear minutes."""


def fit_linear(dataset: Dataset, features: Sequence[str] | None = None) -> Fitted:
    """Logistic regression on the bag-of-features matrix, with an L1 or an L2 penalty.

    Both are fitted with weaker and weaker penalties until the log loss of the valid split rises, and the best of all is
    taken. Where values have few rows, a penalty that is too strong costs more than the choice of the penalty.
    """
    train, judged = (_Rows.of(dataset, name, features, scaled=True).labelled() for name in ("train", _judge(dataset)))
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
        return cast(Floats, predict(_Rows.of(dataset, split, features, scaled=True).matrix))

    return Fitted(logits, {"density": float((coefficients != 0).mean())})


def _fit(model: LogisticRegression, matrix: sp.csr_matrix | Floats, rows: "_Rows") -> None:
    """Fit, quietly where the iterations do not suffice: the valid split judges such a model like any other."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(matrix, rows.labels_N, sample_weight=rows.weights_N)


def fit_decomposition(dataset: Dataset, features: Sequence[str] | None = None, *, width: int = 32) -> Fitted:
    """Logistic regression on the ``width`` strongest left singular vectors of the bag-of-features matrix."""
    train = _Rows.of(dataset, "train", features, scaled=True).labelled()
    rank = min(width, min(train.matrix.shape) - 1)
    _, _, right_kC = svds(train.matrix.astype(np.float32), k=rank, random_state=0)
    model = LogisticRegression(max_iter=200)
    _fit(model, train.matrix @ right_kC.T, train)

    def logits(split: str) -> Floats:
        rows = _Rows.of(dataset, split, features, scaled=True)
        return cast(Floats, model.decision_function(rows.matrix @ right_kC.T))

    return Fitted(logits)


def fit_factorization_machine(
    dataset: Dataset,
    features: Sequence[str] | None = None,
    *,
    factors: int = 16,
    epochs: int = 30,
    batch_size: int = 1024,
) -> Fitted:
    """A factorization machine (Rendle 2010) on the bag-of-features matrix; stops when the valid AUC falls."""
    train, judged = (_Rows.of(dataset, name, features, scaled=True).labelled() for name in ("train", _judge(dataset)))
    generator = torch.Generator().manual_seed(0)
    model = _Factors(
        train.matrix.shape[1], factors, float(_logit(weighted_mean(train.labels_N, train.weights_N))), generator
    )
    optimizer = torch.optim.SparseAdam([model.weights_C1, model.factors_Ck], lr=0.005)
    best = {name: value.clone() for name, value in model.state_dict().items()}
    best_auc = float("-inf")
    for _ in range(epochs):
        order_N = torch.randperm(len(train.labels_N), generator=generator).numpy()
        for start in range(0, len(order_N), batch_size):
            rows = order_N[start : start + batch_size]
            optimizer.zero_grad()
            logits = model(train.matrix[rows])
            labels = torch.from_numpy(train.labels_N[rows]).float()
            weights = torch.from_numpy(train.weights_N[rows]).float()
            F.binary_cross_entropy_with_logits(logits, labels, weights).backward()  # type: ignore[no-untyped-call]
            optimizer.step()  # type: ignore[no-untyped-call]
        reached = auc(judged.labels_N, model.score(judged.matrix), judged.weights_N)
        if reached <= best_auc:
            break
        best, best_auc = {name: value.clone() for name, value in model.state_dict().items()}, reached
    model.load_state_dict(best)
    return Fitted(lambda split: model.score(_Rows.of(dataset, split, features, scaled=True).matrix))


class _Factors(nn.Module):
    def __init__(self, columns: int, factors: int, bias: float, generator: torch.Generator) -> None:
        super().__init__()
        self.bias = bias
        self.weights_C1 = nn.Parameter(torch.zeros(columns, 1))
        self.factors_Ck = nn.Parameter(torch.randn(columns, factors, generator=generator) * 0.01)

    def forward(self, matrix: sp.csr_matrix) -> Tensor:
        columns_L, offsets = torch.from_numpy(matrix.indices).long(), torch.from_numpy(matrix.indptr).long()
        values_L1 = torch.from_numpy(matrix.data).float().unsqueeze(1)
        rows_Lk = F.embedding(columns_L, self.factors_Ck, sparse=True) * values_L1
        linear_L1 = F.embedding(columns_L, self.weights_C1, sparse=True) * values_L1
        terms = torch.cat([rows_Lk, rows_Lk.square(), linear_L1], 1)
        sums = torch.segment_reduce(terms, "sum", offsets=offsets, axis=0, initial=0)
        k = self.factors_Ck.shape[1]
        pairs = 0.5 * (sums[:, :k].square() - sums[:, k : 2 * k]).sum(1)
        return pairs + sums[:, -1] + self.bias

    @torch.no_grad()
    def score(self, matrix: sp.csr_matrix) -> Floats:
        parts = [self(matrix[start : start + 65536]) for start in range(0, matrix.shape[0], 65536)]
        return torch.cat(parts).numpy().astype(np.float64)


def fit_gradient_boosting(dataset: Dataset, features: Sequence[str] | None = None) -> Fitted:
    """LightGBM on ids (by frequency rank), numbers, statistics, and bags of few values as flags.

    Raises:
        UserError: LightGBM is not installed.
    """
    try:
        import lightgbm
    except ModuleNotFoundError:
        raise UserError("the boosted trees need LightGBM: pip install 'sparse-recsys[baselines]'.") from None
    judge = _judge(dataset)

    def rows(split: str) -> Any:
        labels_N = _labels(dataset, split)
        known_N = ~np.isnan(labels_N)
        matrix, weights_N = _tree_columns(dataset, split, features), _weights(dataset, split)
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
        return np.asarray(booster.predict(_tree_columns(dataset, split, features), raw_score=True))

    return Fitted(logits)


def _tree_columns(dataset: Dataset, split: str, features: Sequence[str] | None) -> npt.NDArray[np.float32]:
    matrix, _ = to_csr(dataset, split, features)
    schema = _schema(dataset, features)
    ids = [feature.name for feature in schema.sparse if feature.kind == "id"]
    frame = dataset.frame(split).select(ids).collect() if ids else pl.DataFrame()
    columns = [frame[name].to_numpy().astype(np.float32)[:, None] for name in ids]
    for name, block in blocks(schema).items():
        part = matrix[:, block]
        if name not in ids:
            few = part.shape[1] <= _FLAGS or name in {feature.name for feature in schema.dense}
            columns.append(part.toarray() if few else np.asarray(part.sum(1), np.float32))
    return np.hstack(columns)


FITS: Mapping[str, Fit] = {
    "popularity": fit_popularity,
    "linear": fit_linear,
    "svd": fit_decomposition,
    "fm": fit_factorization_machine,
    "lightgbm": fit_gradient_boosting,
}
"""Every baseline by the name that reports give it."""


def measure_baseline(
    name: str, dataset: Dataset, split: str = "test", *, fitted: Fitted | None = None
) -> dict[str, float]:
    """Metrics on ``split`` of the baseline ``name``, one of :data:`FITS`, which is trained unless it is ``fitted``."""
    fitted = fitted or FITS[name](dataset, None)
    facts = facts_of(dataset, split, dataset.schema.tasks[0])
    metrics = task_metrics("binary", _labels(dataset, split), fitted.logits(split), facts, thorough=True)
    return {**metrics, **fitted.facts}


BASELINES: Mapping[str, Callable[[Dataset, str], dict[str, float]]] = {
    name: partial(measure_baseline, name) for name in FITS
}
"""What measures each baseline on a split."""


def write_baselines(
    run: Path,
    dataset: Dataset,
    split: str,
    names: Iterable[str] = tuple(BASELINES),
    *,
    fitted: Mapping[str, Fitted] | None = None,
) -> dict[str, dict[str, float]]:
    """Measure baselines, of ``names`` those that are installed, on ``split``; keep the figures for the run's report.

    Those that are ``fitted`` are not trained again.

    Example:
        >>> measured = rs.write_baselines(Path("run"), rs.Dataset.open(Path("dataset")), "test", ["popularity"])
        >>> 0 < measured["popularity"]["auc"] < 1
        True
    """
    measured = {}
    for name in names:
        if name != "lightgbm" or find_spec("lightgbm"):
            measured[name] = measure_baseline(name, dataset, split, fitted=(fitted or {}).get(name))
    write_file(run / BASELINES_FILE, json.dumps({split: measured}, indent=1))
    return measured


class _Rows:
    """The rows of a split for the first task; labels are NaN where there are none."""

    def __init__(self, matrix: sp.csr_matrix, labels_N: Floats, weights_N: Floats) -> None:
        self.matrix, self.labels_N, self.weights_N = matrix, labels_N, weights_N

    @staticmethod
    def of(dataset: Dataset, split: str, features: Sequence[str] | None, *, scaled: bool = False) -> "_Rows":
        """Rows of ``split``; ``scaled`` squashes dense columns as the ranker does."""
        matrix, _ = to_csr(dataset, split, features)
        if scaled:
            schema = _schema(dataset, features)
            dense = {feature.name for feature in schema.dense}
            starts = [block.start for name, block in blocks(schema).items() if name in dense]
            own = matrix.indices >= min(starts, default=matrix.shape[1])
            matrix.data[own] = squash(torch.from_numpy(matrix.data[own])).numpy()
        return _Rows(matrix, _labels(dataset, split), _weights(dataset, split))

    def labelled(self) -> "_Rows":
        """The rows to learn from."""
        known_N = ~np.isnan(self.labels_N)
        return _Rows(self.matrix[known_N], self.labels_N[known_N], self.weights_N[known_N])


def _labels(dataset: Dataset, split: str) -> Floats:
    task = dataset.schema.tasks[0]
    labels_N: Floats = dataset.labels(split)[:, 0].astype(np.float64)
    if dataset.config.tasks[task].kind != "binary":
        raise UserError(f"baselines need a binary task, and {task!r}, the first, is not one.")
    return labels_N


def _weights(dataset: Dataset, split: str) -> Floats:
    """How much each row counts for the first task, with mean 1."""
    weights_N = dataset.weights(split, dataset.schema.tasks[0])
    if weights_N is None or not weights_N.sum() > 0:
        return np.ones(dataset.splits[split])
    return np.asarray(weights_N / weights_N.mean())


def _judge(dataset: Dataset) -> str:
    """The split to tune on: valid, unless it has no rows or only one class."""
    labels_N = _labels(dataset, "valid") if dataset.splits.get("valid") else np.empty(0)
    return "valid" if len(np.unique(labels_N[~np.isnan(labels_N)])) > 1 else "train"


def _schema(dataset: Dataset, features: Sequence[str] | None) -> Schema:
    return dataset.schema if features is None else dataset.encoder.select(features).schema


def _logit(rate: npt.ArrayLike) -> Floats:
    return cast(Floats, np.log(rate) - np.log1p(-np.asarray(rate)))
