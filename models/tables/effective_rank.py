"""The effective rank of a table: how many dimensions its embeddings really use.

Letters: R rows of a table, d width of an embedding.
"""

import math

import torch
from torch import Tensor

_ROWS = 1 << 16


@torch.no_grad()
def effective_rank(weight_Rd: Tensor, count_R: Tensor | None = None) -> float:
    """The exponential of the entropy of the singular values, divided by their sum (Roy and Vetterli, EUSIPCO 2007).

    Between 1 and d: d if all directions are used alike, 1 if all embeddings are multiples of one. Embeddings of
    recommenders tend to use few of their dimensions (arXiv 2310.04400). The singular values come from the (d, d) matrix
    of products, so a table of any length needs only one pass.

    Args:
        count_R: How often each row counts, such as how often training saw it; all alike if absent.

    Returns:
        0 for a table of zeros, NaN for one with numbers that are not finite.

    Example:
        >>> effective_rank(torch.eye(3))
        3.0
        >>> round(effective_rank(torch.tensor([[1.0, 2.0], [2.0, 4.0]])), 3)
        1.0
    """
    width = weight_Rd.shape[1]
    products_dd = torch.zeros(width, width, dtype=torch.float64)
    for start in range(0, len(weight_Rd), _ROWS):
        rows = weight_Rd[start : start + _ROWS].double()
        counted = rows if count_R is None else rows * count_R[start : start + _ROWS].double().unsqueeze(1)
        products_dd += rows.T @ counted
    if not products_dd.isfinite().all():
        return math.nan
    singular_d = torch.linalg.eigvalsh(products_dd).clamp(min=0).sqrt()
    singular_d = singular_d[singular_d > 0]
    if not len(singular_d):
        return 0.0
    share_d = singular_d / singular_d.sum()
    return math.exp(-float((share_d * share_d.log()).sum()))
