"""Expert parallelism: each rank holds some experts, and rows are sent to their experts and back.

Letters: M rows, once per chosen expert, D width of the model, H hidden width, E experts of all ranks, e experts of one
rank, R ranks.
"""

from collections.abc import Iterable
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed._functional_collectives import all_to_all_single_autograd
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from models.moe.dispatch import DispatchPlan, combine, dispatch, plan_dispatch
from models.moe.experts import Experts, MixtureOfExperts


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] * ctx.factor, None


class ExpertParallel(Experts):
    """The experts of one mixture; rank r holds the r-th of R equal shares (GShard, arXiv 2006.16668).

    Parameters are ``DTensor`` sharded by expert, under the names they have on one rank: a checkpoint holds whole
    stacks and loads at any number of ranks. An expert sees the rows of all ranks, each with the gradient of its own
    rank's mean loss; like the replicated parameters, which ``DistributedDataParallel`` averages, it takes their mean.

    Args:
        experts: The experts to shard, equal on all ranks.
        mesh: One dimension, over the ranks.

    Raises:
        ValueError: The experts cannot be sharded evenly.
    """

    def __init__(self, experts: Experts, mesh: DeviceMesh) -> None:
        nn.Module.__init__(self)
        count = len(experts.w1_EDH)
        if count % mesh.size():
            raise ValueError(f"{count} experts cannot be sharded evenly over {mesh.size()} ranks")
        self.mesh = mesh
        self.activation = experts.activation
        self.w1_EDH = nn.Parameter(distribute_tensor(experts.w1_EDH.detach(), mesh, [Shard(0)]))
        self.w2_EHD = nn.Parameter(distribute_tensor(experts.w2_EHD.detach(), mesh, [Shard(0)]))

    def plan(self, chosen_NK: Tensor, counts_E: Tensor) -> DispatchPlan:
        """Rows sorted by expert, without empty slots, which would be sent too."""
        return plan_dispatch(chosen_NK, counts_E)

    def forward(self, x_ND: Tensor, gates_NK: Tensor, plan: DispatchPlan) -> Tensor:
        """(N, D) the sum over each row's experts of gate x output, wherever the experts are."""
        x_MD, gates_M = dispatch(x_ND, plan), plan.slots(gates_NK)
        ranks, group = self.mesh.size(), self.mesh.get_group()
        counts_Re = plan.ends_E.diff(prepend=plan.ends_E.new_zeros(1)).view(ranks, -1)
        arriving_Re = torch.empty_like(counts_Re)
        dist.all_to_all_single(arriving_Re, counts_Re.contiguous(), group=group)
        sent, received = counts_Re.sum(1).tolist(), arriving_Re.sum(1).tolist()
        came_MD = all_to_all_single_autograd(x_MD, received, sent, group)
        gates_M1 = all_to_all_single_autograd(gates_M.unsqueeze(1), received, sent, group)
        # Rows arrive ordered by rank; products need them ordered by expert.
        local = arriving_Re.shape[1]
        expert_M = torch.arange(local, device=x_MD.device).repeat(ranks)
        expert_M = expert_M.repeat_interleave(arriving_Re.flatten(), output_size=sum(received))
        here = super().plan(expert_M.unsqueeze(1), arriving_Re.sum(0))
        w1_eDH, w2_eHD = (self._local(weight) for weight in (self.w1_EDH, self.w2_EHD))
        y_MD = self.compute(came_MD, gates_M1, here, w1_eDH, w2_eHD)
        return combine(all_to_all_single_autograd(y_MD, sent, received, group), plan)

    def _local(self, weight: nn.Parameter) -> Tensor:
        local = cast(DTensor, weight).to_local()
        return cast(Tensor, _ScaleGradient.apply(local, 1 / self.mesh.size()))  # type: ignore[no-untyped-call]


def shard_experts(module: nn.Module, mesh: DeviceMesh) -> list[str]:
    """Shard the routed experts of every mixture in ``module``; names of the parameters that differ by rank."""
    names = []
    for path, mixture in list(module.named_modules()):
        if isinstance(mixture, MixtureOfExperts):
            mixture.experts = ExpertParallel(mixture.experts, mesh)
            names += [f"{path}.experts.{name}" for name, _ in mixture.experts.named_parameters()]
    return names


def by_placement(parameters: Iterable[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Replicated and sharded parameters in separate lists: fast paths of optimizers do not accept both at once."""
    groups: dict[bool, list[nn.Parameter]] = {}
    for parameter in parameters:
        groups.setdefault(isinstance(parameter, DTensor), []).append(parameter)
    return list(groups.values())


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> None:
    """Scale gradients so that their norm over all parameters, sharded ones included, is at most ``max_norm``."""
    groups = by_placement(parameter for parameter in parameters if parameter.grad is not None)
    norms = [nn.utils.get_total_norm([cast(Tensor, parameter.grad) for parameter in group]) for group in groups]
    whole = [norm.full_tensor() if isinstance(norm, DTensor) else norm for norm in norms]
    total = torch.stack(whole).norm()
    for group in groups:
        nn.utils.clip_grads_with_norm_(group, max_norm, total)


def place_like(parameter: nn.Parameter, whole: Tensor) -> Tensor:
    """``whole`` on the device of ``parameter``; where the parameter is sharded, this rank's part of it."""
    whole = whole.to(parameter.device)
    if not isinstance(parameter, DTensor):
        return whole
    return distribute_tensor(whole, parameter.device_mesh, parameter.placements)
