"""Whole experts of a mixture: their norms, and taking them out of the stack and out of the router.

Letters: E experts, D width of the tower, H hidden width, C width of what the router reads.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from models.weights import Weights

_ROUTED = re.compile(r"(tower\.mixtures\.\d+)\.experts\.w1_EDH")


@dataclass(frozen=True)
class ExpertLayer:
    """The routed experts of one mixture: their stacked parameters, and the path of their router."""

    router: str
    parameters: tuple[str, str]

    def norms(self, parameters: Mapping[str, Tensor]) -> tuple[Tensor, int]:
        """(E,) norm of all of an expert's numbers, and how many they are."""
        stacks = [parameters[name].detach().flatten(1) for name in self.parameters]
        return torch.stack([stack.float().square().sum(1) for stack in stacks]).sum(0).sqrt(), sum(
            stack.shape[1] for stack in stacks
        )

    @torch.no_grad()
    def scale_(self, parameters: Mapping[str, Tensor], factor_E: Tensor) -> None:
        """Multiply each expert by its factor."""
        for name in self.parameters:
            parameters[name].mul_(factor_E.to(parameters[name])[:, None, None])


def expert_layers(parameters: Mapping[str, Tensor]) -> list[ExpertLayer]:
    """The mixtures of the ranker whose parameters these are."""
    matches = [match for name in sorted(parameters) if (match := _ROUTED.fullmatch(name))]
    return [
        ExpertLayer(f"{match[1]}.router", (f"{match[1]}.experts.w1_EDH", f"{match[1]}.experts.w2_EHD"))
        for match in matches
    ]


def mark_dead_experts(alive_E: Tensor, factor_E: Tensor, norm_E: Tensor, top_k: int) -> None:
    """Mark experts whose factor has reached zero in ``alive_E``, but never fewer than ``top_k`` remain alive."""
    survivors = torch.where(factor_E > 0, norm_E, norm_E * 1e-6).topk(top_k).indices
    alive_E &= factor_E > 0
    alive_E[survivors] = True


def remove_dead_experts(weights: "Weights") -> None:
    """Drop experts that no row can choose from stacks and routers, and lower ``tower.experts``: logits stay the same.

    All mixtures keep as many experts as the one with most.
    """
    layers = expert_layers(weights.dense)
    if not layers:
        return
    alive = {layer.router: weights.dense[f"{layer.router}.alive_E"] for layer in layers}
    count = max(int(mask.sum()) for mask in alive.values())
    for layer in layers:
        kept = alive[layer.router].int().argsort(descending=True, stable=True)[:count].sort().values
        of_router = (f"{layer.router}.{part}" for part in ("weight", "bias_E", "alive_E", "allowed_ET"))
        for name in filter(weights.dense.__contains__, (*layer.parameters, *of_router)):
            weights.dense[name] = weights.dense[name].index_select(0, kept)
    assert weights.config.tower.kind == "moe"
    weights.config = weights.config.model_copy(
        update={"tower": weights.config.tower.model_copy(update={"experts": count})}
    )
