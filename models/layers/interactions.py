"""Feature interactions between embeddings and tower.

Letters: B rows of a batch, F fields, d width of a field's embedding, D = F x d (and what else is concatenated).
"""

import torch
from torch import Tensor, nn


class CrossNet(nn.Module):
    """DCN-V2's cross layers, ``x_(l+1) = x_0 * (W_l x_l + b_l) + x_l`` (arXiv 2008.13535).

    With ``rank``, each W is the product of a (D, rank) and a (rank, D) matrix.
    """

    def __init__(self, width: int, layers: int, *, rank: int | None = None) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Linear(width, width)
            if rank is None
            else nn.Sequential(nn.Linear(width, rank, bias=False), nn.Linear(rank, width))
            for _ in range(layers)
        )
        self.width = width

    def forward(self, x_BD: Tensor) -> Tensor:
        """(B, D)."""
        crossed_BD = x_BD
        for layer in self.layers:
            crossed_BD = torch.addcmul(crossed_BD, x_BD, layer(crossed_BD).to(x_BD.dtype))
        return crossed_BD


class FactorizationMachine(nn.Module):
    """Sum over all pairs of fields of their products, by dimension (arXiv 1708.05027); its own sum is FM's."""

    def forward(self, fields_BFd: Tensor) -> Tensor:
        """(B, d)."""
        return 0.5 * (fields_BFd.sum(1).square() - fields_BFd.square().sum(1))


class DotInteraction(nn.Module):
    """Dot products of all pairs of fields (DLRM, arXiv 1906.00091)."""

    pairs: Tensor

    def __init__(self, fields: int) -> None:
        super().__init__()
        rows, columns = torch.triu_indices(fields, fields, offset=1)
        self.register_buffer("pairs", rows * fields + columns, persistent=False)
        self.width = len(self.pairs)

    def forward(self, fields_BFd: Tensor) -> Tensor:
        """(B, F (F - 1) / 2), pairs in the order (0, 1), (0, 2), ..., (F - 2, F - 1)."""
        return torch.bmm(fields_BFd, fields_BFd.transpose(1, 2)).flatten(1).index_select(1, self.pairs)


class MultiplicativeBlocks(nn.Module):
    """FinalNet's factorised interaction layers (SIGIR 2023, doi 10.1145/3539618.3591988).

    A layer maps its input linearly to a and b and gives ``a + a * b``: the degree doubles with each layer, so that
    ``layers`` of them reach every interaction up to order ``2 ** layers``.
    """

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, 2 * width) for _ in range(layers))
        self.width = width

    def forward(self, x_BD: Tensor) -> Tensor:
        """(B, D)."""
        for layer in self.layers:
            linear_BD, factor_BD = layer(x_BD).chunk(2, dim=1)
            x_BD = linear_BD + linear_BD * factor_BD
        return x_BD
