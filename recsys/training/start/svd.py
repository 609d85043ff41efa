"""Truncated SVD of the bag matrix: start values for embedding tables.

Letters: N rows, M columns of the bag matrix (ids of all features), k factors, R rows of a table, d its width.
"""

import numpy as np
import torch
from scipy.sparse.linalg import svds
from torch import Tensor, nn

from data_pipelines.dataset.dataset import Dataset
from data_pipelines.dataset.matrices import blocks, to_csr
from models.tables.lookup import SparseTables
from models.tables.rows import fill_tables

START_SCALE = 0.03
"""Root mean square of start values, of the magnitude of random ones: larger ones are hard to unlearn."""


def bag_factors(data: Dataset, features: tuple[str, ...], width: int) -> dict[str, Tensor]:
    """(R, width) by vocabulary: factors of the co-occurrence of ids in the train split.

    The right singular vectors of the (N, M) matrix times the roots of their singular values; an id of several features
    gets the mean of its columns. Ids that never occur are zero.
    """
    matrix, _ = to_csr(data, "train", features)
    schema = data.encoder.select(features).schema
    scale = 1 / np.sqrt(np.maximum(np.asarray(matrix.multiply(matrix).sum(0)).ravel(), 1))
    rank = min(width, min(matrix.shape) - 1)
    _, values, right_kM = svds(matrix.multiply(scale).tocsr(), k=rank, random_state=0)
    vectors_Mk = np.zeros((matrix.shape[1], width), np.float32)
    vectors_Mk[:, :rank] = (right_kM * np.sqrt(values)[:, None]).T[:, ::-1]
    where, found = blocks(schema), {}
    for table in schema.tables:
        readers = [vectors_Mk[where[feature.name]] for feature in schema.sparse if feature.table == table.name]
        rows_Rd = torch.from_numpy(np.mean(readers, axis=0))
        found[table.name] = rows_Rd * START_SCALE / rows_Rd.square().mean().sqrt().clamp_min(1e-12)
    return found


def start_tables(model: nn.Module, data: Dataset, features: tuple[str, ...]) -> None:
    """Write the factors of the bag matrix into the tables of ``model``, sharded in any way, but not into wide parts."""
    tables = next(module for module in model.modules() if isinstance(module, SparseTables))
    layouts = {layout.name: layout for layout in tables.layouts if not layout.wide}
    factors = bag_factors(data, features, max(layout.dim for layout in layouts.values()))
    fill_tables(model, {name: factors[layout.vocabulary] for name, layout in layouts.items()})
