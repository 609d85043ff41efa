"""Mixtures of experts for tests, and their reference: row by row, expert by expert."""

import torch
from torch import Tensor

from models.layers.heads import TaskRouting
from models.moe.experts import ExpertsConfig, MixtureOfExperts
from models.moe.router import Router, RouterConfig


def make_router(width: int, experts: int, top_k: int, **settings: object) -> Router:
    return Router(width, RouterConfig.model_validate({"experts": experts, "top_k": top_k, **settings}))


def make_moe(
    width: int, hidden: int, experts: int, top_k: int, *, routing: TaskRouting | None = None, **settings: object
) -> MixtureOfExperts:
    sizes = {"hidden": hidden, "experts": experts, "top_k": top_k}
    return MixtureOfExperts(width, ExpertsConfig.model_validate(sizes | settings), routing=routing or TaskRouting())


def loop_reference(moe: MixtureOfExperts, x_ND: Tensor, context_NC: Tensor | None = None) -> Tensor:
    """Row by row, expert by expert."""
    gates_NK, chosen_NK, _ = moe.router(x_ND if context_NC is None else context_NC)
    rows = []
    for x_D, gates_K, chosen_K in zip(x_ND, gates_NK, chosen_NK, strict=True):
        y_D = torch.zeros_like(x_D)
        for gate, e in zip(gates_K, chosen_K.tolist(), strict=True):
            y_D = y_D + gate * ((x_D @ moe.experts.w1_EDH[e]).relu() @ moe.experts.w2_EHD[e])
        if moe.shared is not None:
            y_D = y_D + (x_D @ moe.shared.w1_EDH[0]).relu() @ moe.shared.w2_EHD[0]
        rows.append(y_D)
    return torch.stack(rows) if rows else torch.zeros_like(x_ND)
