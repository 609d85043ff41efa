"""The truncated singular value decomposition, the best approximation of its rank in squared error."""

import torch
from torch import Tensor


def truncated_svd(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The best ``(R, rank) @ (rank, d)`` approximation of an (R, d) matrix (Eckart & Young 1936).

    The right factor has orthonormal rows.
    """
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    return left[:, :rank] * values[:rank], right[:rank].contiguous()
