"""The router of a sparse mixture: which experts see a row.

Letters: N rows, C width of the router's context, E experts, K experts chosen for a row, T tasks, M = N x K.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from data_pipelines.config.base import Config
from models.layers.heads import TaskRouting
from models.layers.part import Component, own_tensors
from models.products import linear

Gate = Literal["softmax", "sigmoid"]
Balance = Literal["loss", "bias", "none"]
_BIAS_RATE = 0.001
_MOST_MARKED = 1024
_ONE_TASK = TaskRouting()


class RouterConfig(Config):
    """How rows choose experts (see :class:`Router`)."""

    experts: int = Field(default=8, ge=1, le=1 << 20, description="Number of experts.")
    top_k: int = Field(default=2, ge=1, description="Experts that see a row.")
    gate: Gate = Field(default="softmax", description="Scores of experts compete (`softmax`), or do not (`sigmoid`).")
    noise: float = Field(
        default=0.0, ge=0, description="Standard deviation of the noise on the router's logits in training."
    )
    balance: Balance = Field(
        default="loss",
        description="`loss` adds balance_weight x balance loss + z_weight x z-loss; `bias` needs no loss.",
    )


class Router(nn.Module):
    """Scores every expert for every row and chooses the best ``top_k``; always in float32.

    Gates are the chosen scores, divided by their sum if ``top_k`` > 1. ``softmax`` scores compete (Switch, arXiv
    2101.03961), ``sigmoid`` scores do not (DeepSeek-V3, arXiv 2412.19437). ``noise`` is the standard deviation of
    normal numbers added to the logits in training.

    With ``balance="loss"``, :meth:`auxiliary_loss` is E times the sum over experts of (share of choices x mean score),
    1 at perfect balance. With ``balance="bias"``, :meth:`update_bias` moves a bias towards experts that were chosen too
    rarely; it changes the choice but not the gate, and needs no gradient and no loss (arXiv 2408.15664).

    Experts whose ``active_E`` is False are never chosen: pruned experts, until export removes them from the stack.

    Args:
        width: C.
        config: Experts and how they are chosen.
        routing: Of several tasks.

    Raises:
        ValueError: A row could not choose ``top_k`` different experts.
    """

    active_E: Tensor
    allowed_ET: Tensor | None
    bias_E: Tensor
    tokens_per_expert_E: Tensor
    tokens_per_expert_since_update_E: Tensor

    def __init__(self, width: int, config: RouterConfig, routing: TaskRouting = _ONE_TASK) -> None:
        super().__init__()
        experts, tasks, top_k = config.experts, routing.tasks, config.top_k
        group_E1, task_T = (torch.arange(experts) % (tasks + 1)).unsqueeze(1), torch.arange(tasks)
        allowed_ET = (group_E1 == 0) | (group_E1 == task_T + 1) if routing.own_experts else None
        sizes = [len(range(group, experts, tasks + 1)) for group in range(tasks + 1)]
        choice = experts if allowed_ET is None else sizes[0] + min(sizes[1:])
        if not 1 <= top_k <= choice:
            raise ValueError(
                f"top_k must be between 1 and the number of experts to choose from ({choice}), not {top_k}"
            )
        self.top_k, self.gate, self.noise, self.balance = top_k, config.gate, config.noise, config.balance
        self.weight = nn.Parameter(torch.empty((experts, width) if tasks == 1 else (experts, tasks, width)))
        nn.init.normal_(self.weight, std=width**-0.5)
        self.register_buffer("active_E", torch.ones(experts, dtype=torch.bool))
        self.register_buffer("allowed_ET", allowed_ET)
        self.register_buffer("bias_E", torch.zeros(experts) if self.balance == "bias" else None)
        self.register_buffer("tokens_per_expert_E", torch.zeros(experts, dtype=torch.int64), persistent=False)
        self.register_buffer("tokens_per_expert_since_update_E", torch.zeros(experts), persistent=False)
        self._auxiliary: tuple[Tensor, Tensor] | None = None

    def forward(self, context_NC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gates (N, K) float32, chosen experts (N, K) int64, and rows for each expert (E,) int32.

        With several tasks the context is (T, N, C), and the rows of the tasks follow each other: (T x N, K).
        """
        with torch.autocast(context_NC.device.type, enabled=False):
            mask_NE = self._mask(context_NC)
            logits_NE = self._logits(context_NC.float()) + mask_NE
            if self.training and self.noise:
                logits_NE = logits_NE + self.noise * torch.randn_like(logits_NE)
            scores_NE = logits_NE.softmax(1) if self.gate == "softmax" else logits_NE.sigmoid()
            ranked_NE = scores_NE + (self.bias_E + mask_NE) if self.balance == "bias" else logits_NE
            chosen_NK = ranked_NE.detach().topk(self.top_k, dim=1, sorted=False).indices
            gates_NK = scores_NE.gather(1, chosen_NK)
            if self.top_k > 1:
                gates_NK = gates_NK / gates_NK.sum(1, keepdim=True).clamp(min=1e-9)
        counts_E = _count(chosen_NK, len(self.tokens_per_expert_E))
        if self.training:
            self.tokens_per_expert_E += counts_E
            if self.balance == "loss":
                share_E = counts_E / counts_E.sum().clamp(min=1)
                mean_E = scores_NE.mean(0) if self.gate == "softmax" else F.normalize(scores_NE, 1, 1).mean(0)
                balance = len(self.weight) * (share_E * mean_E).sum()
                self._auxiliary = balance, logits_NE.logsumexp(1).square().mean()
            elif self.balance == "bias":
                self.tokens_per_expert_since_update_E += counts_E
        return gates_NK, chosen_NK, counts_E.int()

    def _logits(self, context_NC: Tensor) -> Tensor:
        if self.weight.dim() == 2:
            return linear(context_NC, self.weight)
        return torch.einsum("tnc,etc->tne", context_NC, self.weight).flatten(0, 1)

    def _mask(self, context_NC: Tensor) -> Tensor:
        """A mask to add to (N, E): minus infinity for experts that may not be chosen, 0 for others."""
        if self.allowed_ET is None:
            return torch.where(self.active_E, 0.0, -torch.inf)
        mask_TE = torch.where(self.allowed_ET.T & self.active_E, 0.0, -torch.inf)
        return mask_TE.repeat_interleave(context_NC.shape[1], 0)

    def auxiliary_loss(self) -> tuple[Tensor, Tensor] | None:
        """Balance loss and z-loss (ST-MoE, arXiv 2202.08906) of the last training batch; ``None`` before one."""
        return self._auxiliary

    def forget_batch(self) -> None:
        """Drop the losses of the last training batch, and with them its autograd graph."""
        self._auxiliary = None

    @torch.no_grad()
    def update_bias(self) -> None:
        """Move the bias one step against the load since the last call, summed over all ranks."""
        if self.balance != "bias":
            return
        if dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(self.tokens_per_expert_since_update_E)
        tokens_E = self.tokens_per_expert_since_update_E
        self.bias_E += _BIAS_RATE * torch.sign(tokens_E.mean() - tokens_E)
        tokens_E.zero_()

    def component(self, path: str) -> Component:
        """The router in the size report."""
        return Component(path, "router", own_tensors(self, path), 2 * self.weight.numel())

    def can_leave_out(self, expert: int) -> bool:
        """Whether every task could still choose an expert if ``expert`` were not there."""
        others_E = self.active_E.clone()
        others_E[expert] = False
        choices_E1 = others_E.unsqueeze(1) if self.allowed_ET is None else self.allowed_ET & others_E.unsqueeze(1)
        return bool(choices_E1.any(0).all())

    @contextmanager
    def without(self, expert: int) -> Iterator[None]:
        """While the block runs, rows that would choose ``expert`` take their next best choice.

        Raises:
            ValueError: A task would have no expert left.
        """
        if not self.can_leave_out(expert):
            raise ValueError(f"without expert {expert} some rows would have no expert")
        before = bool(self.active_E[expert])
        self.active_E[expert] = False
        try:
            yield
        finally:
            self.active_E[expert] = before

    def keep(self, kept_E: Tensor) -> None:
        """Keep only the experts at these positions."""
        self.weight = nn.Parameter(self.weight.detach().index_select(0, kept_E))
        for name, buffer in list(self.named_buffers(recurse=False)):
            self.register_buffer(
                name, buffer.index_select(0, kept_E), persistent=name not in self._non_persistent_buffers_set
            )

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        former = f"{prefix}alive_E"
        if former in state_dict:
            state_dict[f"{prefix}active_E"] = state_dict.pop(former)
        super()._load_from_state_dict(state_dict, prefix, *args)


def _count(chosen_NK: Tensor, experts: int) -> Tensor:
    """(E,) int64: how many rows chose each expert."""
    if chosen_NK.is_cuda and experts <= _MOST_MARKED:
        marked_NE = torch.zeros(len(chosen_NK), experts, dtype=torch.bool, device=chosen_NK.device)
        return marked_NE.scatter_(1, chosen_NK, True).sum(0)  # avoids atomic additions to a few numbers
    chosen_M = chosen_NK.flatten()
    return chosen_M.new_zeros(experts).scatter_add_(0, chosen_M, torch.ones_like(chosen_M))


def routers(module: nn.Module) -> dict[str, Router]:
    """Every router inside ``module`` by its path."""
    return {name: child for name, child in module.named_modules() if isinstance(child, Router)}
