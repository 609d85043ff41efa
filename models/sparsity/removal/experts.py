"""Removing whole experts of a mixture: which of them are dead, and dropping them from the stack and the router.

Letters: E experts.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from models.weights import Weights


def mark_dead_experts(active_E: Tensor, factor_E: Tensor, norm_E: Tensor, top_k: int) -> None:
    """Mark experts whose factor has reached zero in ``active_E``, but never fewer than ``top_k`` remain active."""
    survivors = torch.where(factor_E > 0, norm_E, norm_E * 1e-6).topk(top_k).indices
    active_E &= factor_E > 0
    active_E[survivors] = True


def remove_dead_experts(weights: "Weights") -> None:
    """Drop experts that no row can choose from stacks and routers, and lower ``tower.experts``: logits stay the same.

    All mixtures keep as many experts as the one with the most.
    """
    with weights.narrowing() as ranker:
        ranker.tower.drop_inactive_experts()
