"""A sparse mixture of experts that computes only the experts it chooses.

Letters: N rows, D width of the model, C width of the router's context, H width of an expert's hidden layer, E experts,
K experts chosen for a row, M slots.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from data_pipelines.config.renames import accept_former_names
from models.layers.activations import KWinners, activation
from models.layers.heads import TaskRouting
from models.layers.part import Component, UnitGroup, UnitSlice, module_components, own_tensors
from models.moe.dispatch import DispatchPlan, combine, dispatch, plan_dispatch
from models.moe.fused import can_fuse, fused_experts, product
from models.moe.router import Router, RouterConfig
from models.products import linear

_ONE_TASK = TaskRouting()


class ExpertsConfig(RouterConfig):
    """A mixture of experts (see :class:`MixtureOfExperts`).

    Example:
        >>> rs.ExpertsConfig(experts=8, top_k=2).hidden
        256
    """

    hidden: int = Field(default=256, ge=1, description="Width of an expert's hidden layer.")
    shared: bool = Field(default=False, description="Add an expert that computes every row.")
    k_winners: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Share of an expert's hidden units that pass (k-winners); ReLU where absent.",
    )

    _former_names = model_validator(mode="before")(accept_former_names({"winners": "k_winners"}))


class Experts(nn.Module):
    """Two-layer ReLU networks without biases, computed as two grouped products over rows sorted by expert.

    On a GPU, Triton kernels gather, gate and rectify within the products (see :mod:`models.moe.fused`).
    """

    def __init__(self, width: int, hidden: int, experts: int, *, k_winners: float | None = None) -> None:
        super().__init__()
        self.activation = activation(hidden, k_winners)
        self.w1_EDH = nn.Parameter(torch.empty(experts, width, hidden))
        self.w2_EHD = nn.Parameter(torch.empty(experts, hidden, width))
        nn.init.normal_(self.w1_EDH, std=(2 / width) ** 0.5)
        nn.init.normal_(self.w2_EHD, std=(1 / hidden) ** 0.5)

    def plan(self, chosen_NK: Tensor, counts_E: Tensor) -> DispatchPlan:
        """Slots for the rows of each expert; some may stay empty if the activation keeps no statistics of its rows."""
        return plan_dispatch(chosen_NK, counts_E, pad=isinstance(self.activation, nn.ReLU))

    def forward(self, x_ND: Tensor, gates_NK: Tensor, plan: DispatchPlan) -> Tensor:
        """(N, D) the sum over each row's experts of gate x output."""
        return self.compute(x_ND, gates_NK, plan, self.w1_EDH, self.w2_EHD)

    def forward_dense(self, x_ND: Tensor) -> Tensor:
        """(N, D) outputs of a single expert for all rows."""
        return linear(self.activation(linear(x_ND, self.w1_EDH[0].t())), self.w2_EHD[0].t())

    def compute(self, x_ND: Tensor, gates_NK: Tensor, plan: DispatchPlan, w1_EDH: Tensor, w2_EHD: Tensor) -> Tensor:
        """:meth:`forward` with the weights given."""
        watched = bool(self.activation._forward_hooks)  # such as `measure_activity`: hooks need a module call
        if can_fuse(x_ND) and isinstance(self.activation, nn.ReLU) and not watched:
            return fused_experts(x_ND, gates_NK, w1_EDH, w2_EHD, plan)
        hidden_MH = self.activation(product(dispatch(x_ND, plan), w1_EDH, plan))
        gates_M1 = plan.slots(gates_NK).to(hidden_MH.dtype).unsqueeze(1)
        return combine(product(hidden_MH * gates_M1, w2_EHD, plan), plan)

    def components(self, path: str) -> Iterator[Component]:
        """One component per expert, as if every row used it, and one for the parameters that experts share."""
        for e in range(len(self.w1_EDH)):
            stacks = {name: stack[e] for name, stack in own_tensors(self, path).items()}
            yield Component(f"{path}.{e}", "expert", stacks, 2 * sum(stack.numel() for stack in stacks.values()))
        yield from module_components(self.activation, f"{path}.activation")

    def unit_groups(self, path: str) -> list[UnitGroup]:
        """The hidden units of each expert."""
        return [
            UnitGroup(
                f"{path}.{e}",
                self.w1_EDH.shape[2],
                (UnitSlice(self, "w1_EDH", 1, expert=e),),
                (UnitSlice(self, "w2_EHD", 0, expert=e),),
            )
            for e in range(len(self.w1_EDH))
        ]

    def narrow_units(self, alive: Sequence[Tensor], hidden: int) -> None:
        """Keep the living units of each expert, and dead ones where an expert has fewer than ``hidden``."""
        orders = [alive_U.int().argsort(descending=True, stable=True)[:hidden] for alive_U in alive]
        first_EDH, second_EHD = self.w1_EDH.detach(), self.w2_EHD.detach()
        self.w1_EDH = nn.Parameter(torch.stack([w[:, order] for w, order in zip(first_EDH, orders, strict=True)]))
        self.w2_EHD = nn.Parameter(torch.stack([w[order] for w, order in zip(second_EHD, orders, strict=True)]))
        if isinstance(self.activation, KWinners):
            self.activation = self.activation.narrowed(hidden)

    def keep(self, kept_E: Tensor) -> None:
        """Keep only the experts at these positions."""
        self.w1_EDH = nn.Parameter(self.w1_EDH.detach().index_select(0, kept_E))
        self.w2_EHD = nn.Parameter(self.w2_EHD.detach().index_select(0, kept_E))

    def norms(self) -> tuple[Tensor, int]:
        """(E,) norm of all of an expert's numbers, and how many they are."""
        stacks = [stack.detach().flatten(1) for stack in (self.w1_EDH, self.w2_EHD)]
        squares_E = torch.stack([stack.float().square().sum(1) for stack in stacks]).sum(0)
        return squares_E.sqrt(), sum(stack.shape[1] for stack in stacks)

    @torch.no_grad()
    def scale_(self, factor_E: Tensor) -> None:
        """Multiply each expert by its factor."""
        for stack in (self.w1_EDH, self.w2_EHD):
            stack.mul_(factor_E.to(stack)[:, None, None])


def _working_dtype(x_ND: Tensor) -> torch.dtype:
    """The dtype of products: that of autocast if it is on."""
    device = x_ND.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x_ND.dtype


class MixtureOfExperts(nn.Module):
    """Sends each row to its ``top_k`` best experts, computes only those, and adds their outputs, weighted by the gates.

    No row is dropped and experts have no capacity: rows are sorted by expert, and each expert multiplies exactly its
    rows. ``shared`` adds one expert that sees every row (DeepSeekMoE, arXiv 2401.06066).

    Args:
        width: D.
        config: Number, size and choice of the experts.
        context: C, if the router reads other columns than the rows.
        routing: How several tasks route.

    Example:
        >>> moe = MixtureOfExperts(16, ExpertsConfig(hidden=32, experts=8, top_k=2))
        >>> moe(torch.randn(100, 16)).shape
        torch.Size([100, 16])
    """

    def __init__(
        self, width: int, config: ExpertsConfig, *, context: int | None = None, routing: TaskRouting = _ONE_TASK
    ) -> None:
        super().__init__()
        self.router = Router(context or width, config, routing)
        self.experts = Experts(width, config.hidden, config.experts, k_winners=config.k_winners)
        self.shared = Experts(width, config.hidden, 1, k_winners=config.k_winners) if config.shared else None

    def forward(self, x_ND: Tensor, context_NC: Tensor | None = None) -> Tensor:
        """(N, D); the router reads ``context_NC`` where given, ``x_ND`` otherwise. With several tasks, (T, N, D)."""
        gates_NK, chosen_NK, counts_E = self.router(x_ND if context_NC is None else context_NC)
        if x_ND.dim() == 3:
            return self._mix(x_ND.flatten(0, 1), gates_NK, chosen_NK, counts_E).view_as(x_ND)
        return self._mix(x_ND, gates_NK, chosen_NK, counts_E)

    def _mix(self, x_ND: Tensor, gates_NK: Tensor, chosen_NK: Tensor, counts_E: Tensor) -> Tensor:
        x_ND = x_ND.to(_working_dtype(x_ND))
        plan = self.experts.plan(chosen_NK, counts_E)
        y_ND: Tensor = self.experts(x_ND, gates_NK, plan)
        if self.shared is not None:
            y_ND = y_ND + self.shared.forward_dense(x_ND)
        return y_ND

    def components(self, path: str) -> Iterator[Component]:
        """The router, each expert by its share of the rows, and the shared expert."""
        yield self.router.component(f"{path}.router")
        share = self.router.top_k / len(self.router.active_E)
        for part in self.experts.components(f"{path}.experts"):
            yield replace(part, flops=part.flops * share)
        if self.shared is not None:
            yield from self.shared.components(f"{path}.shared")

    def stacks(self, path: str) -> dict[str, Experts]:
        """The routed experts and, if there is one, the shared expert by path."""
        found = {f"{path}.experts": self.experts}
        return found if self.shared is None else found | {f"{path}.shared": self.shared}


def mixtures(module: nn.Module) -> dict[str, MixtureOfExperts]:
    """Every mixture inside ``module`` by its path."""
    return {name: child for name, child in module.named_modules() if isinstance(child, MixtureOfExperts)}
