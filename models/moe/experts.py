"""Towers: a dense MLP, and a sparse mixture of experts that computes only the experts it chooses.

Letters: N rows, D width of the model, C width of the router's context, H width of an expert's hidden layer, E experts,
K experts chosen for a row, T tasks.
"""

from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers.activations import activation
from models.moe.dispatch import Layout, from_slots, grouped_product, lay_out, to_slots

Gate = Literal["softmax", "sigmoid"]
Balance = Literal["loss", "bias", "none"]
_BIAS_RATE = 0.001


class Router(nn.Module):
    """Scores every expert for every row and chooses the best ``top_k``; always in float32.

    Gates are the chosen scores, divided by their sum where ``top_k`` > 1. ``softmax`` scores compete (Switch, arXiv
    2101.03961), ``sigmoid`` scores do not (DeepSeek-V3, arXiv 2412.19437). ``noise`` is the standard deviation of
    normal numbers added to the logits in training.

    With ``balance="loss"``, :meth:`auxiliary_loss` is E times the sum over experts of (share of choices x mean score),
    1 at perfect balance. With ``balance="bias"`` a bias that steers the choice, and not the gate, is moved by
    :meth:`update_bias` towards experts that were chosen too rarely (arXiv 2408.15664): no gradient, no loss.

    Experts whose ``alive_E`` is False are never chosen: pruned ones, until export takes them out of the stack.

    Args:
        tasks: With several, each routes its own copy of the rows with weights of its own (MMoE, KDD 2018).
        own_experts: Experts lie in ``tasks + 1`` groups by turns; a task chooses from the first group and from its own
            (PLE, RecSys 2020).

    Raises:
        ValueError: A row could not choose ``top_k`` different experts.
    """

    alive_E: Tensor
    allowed_ET: Tensor | None
    bias_E: Tensor
    load_E: Tensor
    since_update_E: Tensor

    def __init__(
        self,
        width: int,
        experts: int,
        top_k: int,
        *,
        gate: Gate = "softmax",
        noise: float = 0.0,
        balance: Balance = "loss",
        tasks: int = 1,
        own_experts: bool = False,
    ) -> None:
        super().__init__()
        group_E1, task_T = (torch.arange(experts) % (tasks + 1)).unsqueeze(1), torch.arange(tasks)
        allowed_ET = (group_E1 == 0) | (group_E1 == task_T + 1) if own_experts else None
        choice = experts if allowed_ET is None else int(allowed_ET.sum(0).min())
        if not 1 <= top_k <= choice:
            raise ValueError(
                f"top_k must lie between 1 and the number of experts to choose from ({choice}), not {top_k}"
            )
        self.top_k, self.gate, self.noise, self.balance = top_k, gate, noise, balance
        self.weight = nn.Parameter(torch.empty((experts, width) if tasks == 1 else (experts, tasks, width)))
        nn.init.normal_(self.weight, std=width**-0.5)
        self.register_buffer("alive_E", torch.ones(experts, dtype=torch.bool))
        self.register_buffer("allowed_ET", allowed_ET)
        self.register_buffer("bias_E", torch.zeros(experts) if balance == "bias" else None)
        self.register_buffer("load_E", torch.zeros(experts, dtype=torch.int64), persistent=False)
        self.register_buffer("since_update_E", torch.zeros(experts), persistent=False)
        self._auxiliary: tuple[Tensor, Tensor] | None = None

    def forward(self, context_NC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gates (N, K) float32, chosen experts (N, K) int64, and rows for each expert (E,) int32.

        With several tasks the context is (T, N, C), and the rows of the tasks follow each other: (T x N, K).
        """
        with torch.autocast(context_NC.device.type, enabled=False):
            closed_NE = self._closed(context_NC)
            logits_NE = self._logits(context_NC.float()) + closed_NE
            if self.training and self.noise:
                logits_NE = logits_NE + self.noise * torch.randn_like(logits_NE)
            scores_NE = logits_NE.softmax(1) if self.gate == "softmax" else logits_NE.sigmoid()
            ranked_NE = scores_NE + (self.bias_E + closed_NE) if self.balance == "bias" else logits_NE
            chosen_NK = ranked_NE.detach().topk(self.top_k, dim=1, sorted=False).indices
            gates_NK = scores_NE.gather(1, chosen_NK)
            if self.top_k > 1:
                gates_NK = gates_NK / gates_NK.sum(1, keepdim=True).clamp(min=1e-9)
        chosen_M = chosen_NK.flatten()
        counts_E = torch.zeros_like(self.load_E).scatter_add_(0, chosen_M, torch.ones_like(chosen_M))
        if self.training:
            self.load_E += counts_E
            if self.balance == "loss":
                share_E = counts_E / counts_E.sum().clamp(min=1)
                mean_E = scores_NE.mean(0) if self.gate == "softmax" else F.normalize(scores_NE, 1, 1).mean(0)
                balance = len(self.weight) * (share_E * mean_E).sum()
                self._auxiliary = balance, logits_NE.logsumexp(1).square().mean()
            elif self.balance == "bias":
                self.since_update_E += counts_E
        return gates_NK, chosen_NK, counts_E.int()

    def _logits(self, context_NC: Tensor) -> Tensor:
        if self.weight.dim() == 2:
            return F.linear(context_NC, self.weight)
        return torch.einsum("tnc,etc->tne", context_NC, self.weight).flatten(0, 1)

    def _closed(self, context_NC: Tensor) -> Tensor:
        """Minus infinity for experts that may not be chosen, 0 for others, to be added to (N, E)."""
        if self.allowed_ET is None:
            return torch.where(self.alive_E, 0.0, -torch.inf)
        closed_TE = torch.where(self.allowed_ET.T & self.alive_E, 0.0, -torch.inf)
        return closed_TE.repeat_interleave(context_NC.shape[1], 0)

    def auxiliary_loss(self) -> tuple[Tensor, Tensor] | None:
        """Balance loss and z-loss (ST-MoE, arXiv 2202.08906) of the last training batch; ``None`` before one."""
        return self._auxiliary

    @torch.no_grad()
    def update_bias(self) -> None:
        """Move the bias one step against the load since the last call, summed over all ranks."""
        if self.balance != "bias":
            return
        if dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(self.since_update_E)
        self.bias_E += _BIAS_RATE * torch.sign(self.since_update_E.mean() - self.since_update_E)
        self.since_update_E.zero_()


class Experts(nn.Module):
    """Two-layer ReLU networks without biases, computed as two grouped products over rows sorted by expert."""

    def __init__(self, width: int, hidden: int, experts: int, *, winners: float | None = None) -> None:
        super().__init__()
        self.activation = activation(hidden, winners)
        self.w1_EDH = nn.Parameter(torch.empty(experts, width, hidden))
        self.w2_EHD = nn.Parameter(torch.empty(experts, hidden, width))
        nn.init.normal_(self.w1_EDH, std=(2 / width) ** 0.5)
        nn.init.normal_(self.w2_EHD, std=(1 / hidden) ** 0.5)

    def layout(self, chosen_NK: Tensor, counts_E: Tensor) -> Layout:
        """Slots for the rows of each expert; some stay empty where the activation keeps no statistics of its rows."""
        return lay_out(chosen_NK, counts_E, pad=isinstance(self.activation, nn.ReLU))

    def forward(self, x_MD: Tensor, gates_M: Tensor, layout: Layout) -> Tensor:
        """(M, D) outputs of the rows in their slots, times the gates."""
        return self.compute(x_MD, gates_M, layout, self.w1_EDH, self.w2_EHD)

    def everyone(self, x_ND: Tensor) -> Tensor:
        """(N, D) outputs of a single expert for all rows."""
        return cast(Tensor, self.activation(x_ND @ self.w1_EDH[0]) @ self.w2_EHD[0])

    def compute(self, x_MD: Tensor, gates_M: Tensor, layout: Layout, w1_EDH: Tensor, w2_EHD: Tensor) -> Tensor:
        """:meth:`forward` with the weights given."""
        hidden_MH = self.activation(grouped_product(x_MD, w1_EDH, layout))
        return grouped_product(hidden_MH * gates_M.to(hidden_MH.dtype).unsqueeze(1), w2_EHD, layout)


def _working_dtype(x_ND: Tensor) -> torch.dtype:
    """What products are computed in: that of autocast where it is on."""
    device = x_ND.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x_ND.dtype


class MixtureOfExperts(nn.Module):
    """Sends each row to its ``top_k`` best experts, computes only those, and adds their outputs, weighted by the gates.

    No row is ever dropped and no expert has a capacity: rows are sorted by expert, and an expert's product is as tall
    as its share. ``shared`` adds one expert that sees every row (DeepSeekMoE, arXiv 2401.06066).

    Example:
        >>> moe = MixtureOfExperts(16, hidden=32, experts=8, top_k=2)
        >>> moe(torch.randn(100, 16)).shape
        torch.Size([100, 16])
    """

    def __init__(
        self,
        width: int,
        hidden: int,
        experts: int,
        top_k: int,
        *,
        context: int | None = None,
        shared: bool = False,
        gate: Gate = "softmax",
        noise: float = 0.0,
        balance: Balance = "loss",
        winners: float | None = None,
        tasks: int = 1,
        own_experts: bool = False,
    ) -> None:
        super().__init__()
        self.router = Router(
            context or width,
            experts,
            top_k,
            gate=gate,
            noise=noise,
            balance=balance,
            tasks=tasks,
            own_experts=own_experts,
        )
        self.experts = Experts(width, hidden, experts, winners=winners)
        self.shared = Experts(width, hidden, 1, winners=winners) if shared else None

    def forward(self, x_ND: Tensor, context_NC: Tensor | None = None) -> Tensor:
        """(N, D); the router reads ``context_NC`` where given, ``x_ND`` otherwise. With several tasks, (T, N, D)."""
        gates_NK, chosen_NK, counts_E = self.router(x_ND if context_NC is None else context_NC)
        if x_ND.dim() == 3:
            return self._mix(x_ND.flatten(0, 1), gates_NK, chosen_NK, counts_E).view_as(x_ND)
        return self._mix(x_ND, gates_NK, chosen_NK, counts_E)

    def _mix(self, x_ND: Tensor, gates_NK: Tensor, chosen_NK: Tensor, counts_E: Tensor) -> Tensor:
        x_ND = x_ND.to(_working_dtype(x_ND))
        layout = self.experts.layout(chosen_NK, counts_E)
        y_MD = self.experts(to_slots(x_ND, layout), layout.slots(gates_NK), layout)
        y_ND = from_slots(y_MD, layout)
        if self.shared is not None:
            y_ND = y_ND + self.shared.everyone(x_ND)
        return y_ND


class MixtureTower(nn.Module):
    """A stack of residual mixture blocks: ``x + dropout(mixture(norm(x)))``, with no norm where ``normalize`` is False.

    With several ``tasks``, each has its own residual stream (T, N, D) and its own routers over the same experts.
    """

    def __init__(
        self,
        width: int,
        *,
        blocks: int = 1,
        dropout: float = 0.0,
        tasks: int = 1,
        normalize: bool = True,
        **mixture: Any,
    ) -> None:
        super().__init__()
        self.tasks = tasks
        self.norms = nn.ModuleList(nn.LayerNorm(width) if normalize else nn.Identity() for _ in range(blocks))
        self.mixtures = nn.ModuleList(MixtureOfExperts(width, tasks=tasks, **mixture) for _ in range(blocks))
        self.dropout = nn.Dropout(dropout)
        self.width = width

    def forward(self, x_ND: Tensor, context_NC: Tensor | None = None) -> Tensor:
        """(N, D), or (T, N, D) with several tasks."""
        if self.tasks > 1:
            x_ND = x_ND.expand(self.tasks, -1, -1)
            context_NC = None if context_NC is None else context_NC.expand(self.tasks, -1, -1)
        for norm, mixture in zip(self.norms, self.mixtures, strict=True):
            x_ND = x_ND + self.dropout(mixture(norm(x_ND), context_NC))
        return x_ND


class DenseTower(nn.Module):
    """Linear, ReLU (or k-winners), dropout for each width of ``hidden``."""

    def __init__(
        self, width: int, hidden: Sequence[int], *, dropout: float = 0.0, winners: float | None = None
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for out in hidden:
            layers += [nn.Linear(width, out), activation(out, winners)]
            layers += [nn.Dropout(dropout)] if dropout else []
            width = out
        self.layers = nn.Sequential(*layers)
        self.width = width

    def forward(self, x_ND: Tensor, context_NC: Tensor | None = None) -> Tensor:
        return cast(Tensor, self.layers(x_ND))


def routers(module: nn.Module) -> dict[str, Router]:
    """Every router inside ``module`` by its path."""
    return {name: child for name, child in module.named_modules() if isinstance(child, Router)}
