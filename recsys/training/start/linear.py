"""Linear or logistic regression on the bag matrix: start values for the wide part.

Letters: N rows, C weights (one per row of a wide table, then one per dense column, then the bias), R rows of a table.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import cast

import numpy as np
import scipy.sparse as sp
import torch
from fbgemm_gpu.split_table_batched_embeddings_ops_common import PoolingMode
from scipy.optimize import minimize
from scipy.special import expit
from torch import Tensor

from data_pipelines.batch import Batch, Schema
from data_pipelines.dataset.dataset import Dataset
from data_pipelines.dataset.loader import Loader
from data_pipelines.dataset.matrices import batch_to_csr, blocks
from data_pipelines.errors import UserError
from models.layers.heads import Heads, TaskKind
from models.layers.normalization import Standardize
from models.tables.lookup import SparseTables
from models.tables.rows import fill_tables
from recsys.metrics.arrays import Floats
from recsys.training.model_state import ModelState

_ROWS, _ENTRIES = 1 << 20, 1 << 25
"""The most rows (drawn from the whole split) and the most ids and numbers that are fitted; they take 400 MB."""

_PENALTIES = (100.0, 30.0, 10.0, 3.0, 1.0, 0.3)
_ITERATIONS = 60
_WORSE = 1.002
"""The search ends at a penalty whose valid loss is this many times the best one: weaker ones overfit more."""

_BATCH_ROWS = 1 << 14


@dataclass(frozen=True)
class _Link:
    """The loss of rows by their linear predictor, up to a constant, and the mean that it predicts."""

    loss: Callable[[Floats, Floats], Floats]
    mean: Callable[[Floats], Floats]
    inverse: Callable[[float], float]


def _log_mean(mean: float) -> float:
    return float(np.log(max(mean, 1e-9)))


_LINKS: dict[TaskKind, _Link] = {
    "binary": _Link(lambda z, y: np.logaddexp(0, z) - y * z, expit, lambda mean: float(np.log(mean / (1 - mean)))),
    "regression": _Link(lambda z, y: 0.5 * np.square(z - y), lambda z: z, lambda mean: mean),
    "count": _Link(lambda z, y: np.exp(z) - y * z, np.exp, _log_mean),
    "duration": _Link(lambda z, y: y * np.logaddexp(0, -z) + np.logaddexp(0, z), np.exp, _log_mean),
}


def start_wide(
    state: ModelState, dataset: Dataset, schema: Schema, *, weighted: bool = True, mix_shards: int | None = None
) -> None:
    """Fit the wide part alone, with an L2 penalty, and write it into the model, whose heads then start from zero.

    The ranker then starts as this linear model. The penalty is chosen by the loss of the valid split. Dense features
    must be standardized before.

    Args:
        weighted: Whether rows count by their weights.
        mix_shards: As ``train.mix_shards``: files whose rows are shuffled together before the rows to fit are taken.

    Raises:
        UserError: There is no wide part, there are several tasks or an ordinal one, or ids have no rows of their own.
    """
    ranker = state.ranker
    if ranker.wide is None or len(schema.tasks) > 1 or ranker.managed_ids is not None:
        raise UserError(
            "train.start: linear fits the wide part to one task: set model.wide to true, keep one task, and leave "
            "model.tables.<table>.rows out; or start from random."
        )
    assert isinstance(ranker.tables, SparseTables)
    design = _Design(schema, ranker.tables, ranker.standardize, weighted=weighted)
    kind = dataset.config.tasks[schema.tasks[0]].kind
    if kind not in _LINKS:
        raise UserError(f"train.start: linear fits no task of kind {kind}: start from random.")
    train = design.rows(dataset, "train", mix_shards)
    valid = design.rows(dataset, "valid", mix_shards) if dataset.splits.get("valid") else None
    weights_C = _fit(train, valid, _LINKS[kind])
    fill_tables(state.model, {name: _column(weights_C[at]) for name, at in design.tables.items()})
    with torch.no_grad():
        if ranker.wide.linear is not None:
            ranker.wide.linear.weight.copy_(torch.from_numpy(weights_C[design.dense]))
        ranker.wide.bias.fill_(float(weights_C[-1]))
    cast(Heads, ranker.heads).start_at_zero()


def _column(weights_R: Floats) -> Tensor:
    return torch.from_numpy(weights_R.astype(np.float32)).unsqueeze(1)


@dataclass(frozen=True)
class _Rows:
    """Rows that are fitted; ``offset_N`` is added to the linear predictor and is not learned."""

    matrix_NC: sp.csr_matrix
    labels_N: Floats
    weights_N: Floats
    offset_N: Floats

    def predictor(self, weights_C: Floats) -> Floats:
        """(N,) the linear predictor of weights and bias."""
        predictor_N: Floats = self.matrix_NC @ weights_C[:-1] + weights_C[-1] + self.offset_N
        return predictor_N


class _Design:
    """Rows as the wide part reads them: one column per row of a wide table, which features may share."""

    def __init__(self, schema: Schema, tables: SparseTables, standardize: Standardize, *, weighted: bool) -> None:
        self._schema, self._standardize, self._weighted = schema, standardize, weighted
        layouts = [layout for layout in tables.layouts if layout.wide]
        stops = np.cumsum([layout.rows for layout in layouts]).tolist()
        places = zip(layouts, stops, strict=True)
        self.tables = {layout.name: slice(stop - layout.rows, stop) for layout, stop in places}
        self.dense = slice(stops[-1] if stops else 0, (stops[-1] if stops else 0) + schema.dense_width)
        own, of = blocks(schema), {lookup.feature: lookup.table for layout in layouts for lookup in layout.lookups}
        self._column_of = np.concatenate(
            [np.arange(self.tables[of[name]].start, self.tables[of[name]].stop) for name in own if name in of]
            or [np.empty(0, np.int64)]
        )
        self._starts = np.array([own[feature.name].start for feature in schema.sparse])
        means = [
            lookup.feature
            for layout in layouts
            for lookup in layout.lookups
            if lookup.pooling is PoolingMode.MEAN or lookup.feature in tables.lookup_plan.mean_weighted
        ]
        self._mean_F = np.array([feature.name in means for feature in schema.sparse], bool)

    def rows(self, dataset: Dataset, split: str, mix_shards: int | None = None) -> _Rows:
        """The rows of a split that have a label and count, or a part of them; weights have the mean 1."""
        parts = list(self._parts(dataset, split, mix_shards))
        matrices, *facts = zip(*parts, strict=True)
        labels_N, weights_N, offset_N = (np.concatenate(fact).astype(np.float64) for fact in facts)
        used_N = ~np.isnan(labels_N) & (weights_N > 0)
        weights_N = weights_N[used_N] / weights_N[used_N].mean()
        return _Rows(sp.vstack(matrices, format="csr")[used_N], labels_N[used_N], weights_N, offset_N[used_N])

    def _parts(
        self, dataset: Dataset, split: str, mix_shards: int | None
    ) -> Iterator[tuple[sp.csr_matrix, Floats, Floats, Floats]]:
        rows, entries, features = 0, 0, self._schema.feature_names
        loader = Loader(dataset, split, batch_size=_BATCH_ROWS, shuffle=True, features=features, mix_shards=mix_shards)
        for batch in loader:
            assert batch.labels is not None
            matrix = self._matrix(batch)
            counted = None if batch.weights is None or not self._weighted else batch.weights[:, 0].numpy()
            weights_N = np.ones(len(batch)) if counted is None else counted
            offset_N = batch.of_sample(torch.zeros_like(batch.labels))[:, 0].numpy()
            yield matrix, batch.labels[:, 0].numpy(), weights_N, offset_N
            rows, entries = rows + len(batch), entries + matrix.nnz
            if rows >= _ROWS or entries >= _ENTRIES:
                return

    def _matrix(self, batch: Batch) -> sp.csr_matrix:
        bags = batch_to_csr(batch, self._schema)[:, : len(self._column_of)].tocoo()
        feature_L = np.searchsorted(self._starts, bags.col, side="right") - 1
        bag_L = bags.row * len(self._starts) + feature_L
        total_L = np.bincount(bag_L, weights=bags.data)[bag_L] if len(bag_L) else bags.data
        values_L = np.where(
            self._mean_F[feature_L] & (total_L != 0), bags.data / np.where(total_L, total_L, 1), bags.data
        )
        shape = (len(batch), self.dense.start)
        sparse = sp.csr_matrix((values_L, (bags.row, self._column_of[bags.col])), shape=shape)
        dense = self._standardize(batch.dense.to(self._standardize.mean_D.device)).cpu().double().numpy()
        return sp.hstack([sparse, sp.csr_matrix(dense)], format="csr")


def _fit(train: _Rows, valid: _Rows | None, link: _Link) -> Floats:
    """(C + 1,) weights and bias, from the strongest penalty to weaker ones as long as the valid loss falls."""
    weights_C = np.zeros(train.matrix_NC.shape[1] + 1)
    weights_C[-1] = link.inverse(float(np.average(train.labels_N, weights=train.weights_N)))
    judged = train if valid is None or not len(valid.labels_N) else valid
    best, best_loss = weights_C, _loss(judged, weights_C, link)
    for penalty in _PENALTIES if judged is valid else _PENALTIES[:3]:
        objective = partial(_objective, train, link, penalty)
        options = {"maxiter": _ITERATIONS, "ftol": 1e-7}
        weights_C = minimize(objective, weights_C, jac=True, method="L-BFGS-B", options=options).x
        loss = _loss(judged, weights_C, link)
        if loss < best_loss:
            best, best_loss = weights_C, loss
        elif loss > best_loss * _WORSE:
            break
    return best


def _objective(rows: _Rows, link: _Link, penalty: float, weights_C: Floats) -> tuple[float, Floats]:
    """The penalised mean loss and its gradient; the bias is not penalised."""
    own_C, count = weights_C[:-1], len(rows.labels_N)
    predictor_N = rows.predictor(weights_C)
    residual_N = rows.weights_N * (link.mean(predictor_N) - rows.labels_N)
    value = rows.weights_N @ link.loss(predictor_N, rows.labels_N) + 0.5 * penalty * (own_C @ own_C)
    gradient_C = np.append(rows.matrix_NC.T @ residual_N + penalty * own_C, residual_N.sum())
    return float(value / count), gradient_C / count


def _loss(rows: _Rows, weights_C: Floats, link: _Link) -> float:
    losses_N = link.loss(rows.predictor(weights_C), rows.labels_N)
    return float(np.average(losses_N, weights=rows.weights_N))
