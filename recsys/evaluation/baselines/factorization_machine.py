"""A factorization machine as a baseline.

Letters: N rows, C columns of the bag-of-features matrix, L entries of a batch, k factors.
"""

from collections.abc import Sequence

import numpy as np
import scipy.sparse as sp
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data_pipelines.dataset.dataset import Dataset
from recsys.evaluation.baselines.base import Fitted, Rows, logit, to_fit
from recsys.metrics.arrays import Floats, weighted_mean
from recsys.metrics.binary import auc


def fit_factorization_machine(
    dataset: Dataset,
    features: Sequence[str] | None = None,
    *,
    factors: int = 16,
    epochs: int = 30,
    batch_size: int = 1024,
) -> Fitted:
    """A factorization machine (Rendle 2010) on the bag-of-features matrix; stops when the valid AUC falls."""
    train, judged = to_fit(dataset, features, scaled=True)
    generator = torch.Generator().manual_seed(0)
    model = _Factors(
        train.matrix.shape[1], factors, float(logit(weighted_mean(train.labels_N, train.weights_N))), generator
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
    return Fitted(lambda split: model.score(Rows.of(dataset, split, features, scaled=True).matrix))


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
