"""A tower of sparse mixtures.

Letters: N rows, D width of the model, C width of the router's context, E experts, T tasks.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from data_pipelines.config.base import register
from data_pipelines.config.renames import accept_former_names
from data_pipelines.errors import UserError
from models.layers.activations import KWinners
from models.layers.heads import TaskRouting, TasksConfig
from models.layers.part import Component, Int8Input, UnitGroup, UnitSlice, module_components
from models.layers.towers import Tower, TowerConfig
from models.moe.experts import Experts, ExpertsConfig, MixtureOfExperts

_ONE_TASK = TaskRouting()


@register
class MixtureConfig(ExpertsConfig, TowerConfig):
    """A sparse mixture of experts (see :class:`~models.moe.experts.MixtureOfExperts`)."""

    kind: Literal["moe"] = "moe"
    balance_weight: float = Field(default=0.01, ge=0, description="Weight of the balance loss.")
    z_weight: float = Field(default=0.001, ge=0, description="Weight of the z-loss.")
    blocks: int = Field(default=1, ge=1, le=1000, description="Number of stacked mixtures.")
    normalize: bool = Field(default=True, description="A layer norm before each mixture.")
    expert_parallel: bool = Field(
        default=False,
        description="Shard the experts over the ranks (see `models.moe.expert_parallel.ExpertParallel`).",
    )
    dropout: float = Field(default=0.0, ge=0, lt=1, description="Share of a block's outputs dropped in training.")

    _former_names = model_validator(mode="before")(
        accept_former_names({"winners": "k_winners", "spread": "expert_parallel"})
    )

    @model_validator(mode="after")
    def _top_k_within_experts(self) -> Self:
        if self.top_k > self.experts:
            raise ValueError(f"top_k ({self.top_k}) must not exceed experts ({self.experts})")
        return self

    def build(self, width: int, *, context: int | None, sharing: TasksConfig, tasks: int) -> "MixtureTower":
        routing = sharing.routing(tasks)
        groups = routing.tasks + 1
        if routing.own_experts and self.experts // groups * 2 < self.top_k:
            raise UserError(
                f"model.tower.experts: {sharing.kind!r} divides {self.experts} experts into {groups} groups and a task "
                f"sees two, too few for top_k {self.top_k}; use at least {groups * -(-self.top_k // 2)}."
            )
        return MixtureTower(width, self, context=context, routing=routing)

    def experts_by_block(self) -> tuple[int, ...]:
        return (self.experts,) * self.blocks

    def shards_experts(self) -> bool:
        return self.expert_parallel


class MixtureTower(Tower):
    """A stack of residual mixture blocks: ``x + dropout(mixture(norm(x)))``, with no norm where ``normalize`` is False.

    With several tasks, each has its own residual stream (T, N, D) and its own routers over the same experts.

    Args:
        width: D.
        config: Blocks, and the mixture in each.
        context: C, if the routers read other columns than the rows.
        routing: How several tasks route.
    """

    config: MixtureConfig

    def __init__(
        self, width: int, config: MixtureConfig, *, context: int | None = None, routing: TaskRouting = _ONE_TASK
    ) -> None:
        super().__init__()
        self.config, self.tasks, self.out_width = config, routing.tasks, width
        self.norms = nn.ModuleList(
            nn.LayerNorm(width) if config.normalize else nn.Identity() for _ in range(config.blocks)
        )
        self.mixtures = nn.ModuleList(
            MixtureOfExperts(width, config, context=context, routing=routing) for _ in range(config.blocks)
        )
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_ND: Tensor, context_NC: Tensor | None = None) -> Tensor:
        """(N, D), or (T, N, D) with several tasks."""
        if self.tasks > 1:
            x_ND = x_ND.expand(self.tasks, -1, -1)
            context_NC = None if context_NC is None else context_NC.expand(self.tasks, -1, -1)
        for norm, mixture in zip(self.norms, self.mixtures, strict=True):
            x_ND = x_ND + self.dropout(mixture(norm(x_ND), context_NC))
        return x_ND

    def blocks(self) -> list[MixtureOfExperts]:
        """The mixtures, lowest first."""
        return [mixture for mixture in self.mixtures if isinstance(mixture, MixtureOfExperts)]

    def auxiliary_loss(self) -> Tensor | None:
        """Weighted balance and z losses of the last training batch, summed over mixtures; ``None`` without any."""
        parts = [loss for block in self.blocks() if (loss := block.router.auxiliary_loss()) is not None]
        if not parts:
            return None
        balance_weight, z_weight = self.config.balance_weight, self.config.z_weight
        return torch.stack([balance_weight * balance + z_weight * z for balance, z in parts]).sum()

    def after_step(self) -> None:
        """Move the biases of routers that balance without a loss."""
        for block in self.blocks():
            block.router.update_bias()

    def components(self, path: str) -> Iterator[Component]:
        for index, norm in enumerate(self.norms):
            yield from module_components(norm, f"{path}.norms.{index}")
        for index, block in enumerate(self.blocks()):
            yield from block.components(f"{path}.mixtures.{index}")

    @property
    def narrows_inputs(self) -> bool:
        return False  # columns of zeros change layer norms

    def _stacks(self, path: str) -> dict[str, Experts]:
        return {
            name: stack
            for index, block in enumerate(self.blocks())
            for name, stack in block.stacks(f"{path}.mixtures.{index}").items()
        }

    def unit_groups(self, path: str, readers: Sequence[UnitSlice]) -> list[UnitGroup]:
        """The hidden units of each expert; the tower's output is not a layer of units."""
        return [group for name, stack in self._stacks(path).items() for group in stack.unit_groups(name)]

    def narrow_units(self, alive: Sequence[Tensor]) -> None:
        """All experts keep the same width: that of the expert with the most living units."""
        hidden = max(int(alive_U.sum()) for alive_U in alive)
        left = list(alive)
        for stack in self._stacks("").values():
            count = len(stack.w1_EDH)
            stack.narrow_units(left[:count], hidden)
            left = left[count:]
        update: dict[str, float] = {"hidden": hidden}
        winners = self.blocks()[0].experts.activation
        if isinstance(winners, KWinners):
            update["k_winners"] = winners.density
        self.config = self.config.model_copy(update=update)

    def drop_inactive_experts(self) -> None:
        """All mixtures keep as many experts as the one with the most active experts."""
        active = [block.router.active_E for block in self.blocks()]
        count = max(int(active_E.sum()) for active_E in active)
        for block, active_E in zip(self.blocks(), active, strict=True):
            kept_E = active_E.int().argsort(descending=True, stable=True)[:count].sort().values
            block.experts.keep(kept_E)
            block.router.keep(kept_E)
        self.config = self.config.model_copy(update={"experts": count})

    def int8_inputs(self, path: str) -> list[Int8Input]:
        return []  # experts are computed in bfloat16

    def to_int8(self, path: str, grids: Mapping[str, Tensor], out_2O: Tensor | None = None) -> "MixtureTower":
        return self
