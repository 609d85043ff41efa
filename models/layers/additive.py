"""Additive terms of the logits: the effect of one feature, independent of the rest of the row.

Letters: B rows of a batch, d width of an embedding, T tasks.
"""

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn


class AdditiveTerms(nn.Module):
    """One linear map per feature from its pooled embedding to the logits.

    A feature that is known in training and fixed when serving, such as the position of a row in its list, must not
    interact with the others. The others then do not learn what it explains, and its fixed value shifts all scores by
    the same amount (Zhao et al., RecSys 2019, "Recommending what video to watch next"; PAL, Guo et al., RecSys 2019).

    Args:
        widths: The width of each feature's embedding, by name.
        tasks: T.
    """

    def __init__(self, widths: Mapping[str, int], tasks: int) -> None:
        super().__init__()
        self.terms = nn.ModuleDict({name: nn.Linear(width, tasks, bias=False) for name, width in widths.items()})

    def forward(self, pooled: Mapping[str, Tensor]) -> Tensor:
        """(B, T) the sum of the terms, in float32, of (B, d) pooled embeddings by feature."""
        return torch.stack([self.term(name, pooled[name]) for name in self.terms]).sum(0)

    def drop(self, names: Collection[str]) -> None:
        """Remove the terms of these features."""
        for name in set(names) & set(self.terms):
            del self.terms[name]

    def term(self, name: str, pooled_Bd: Tensor) -> Tensor:
        """(B, T) the term of one feature."""
        with torch.autocast(pooled_Bd.device.type, enabled=False):
            added_BT: Tensor = self.terms[name](pooled_Bd.float())
            return added_BT
