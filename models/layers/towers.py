"""Towers, the layers between interaction and heads; here the dense multi-layer perceptron.

Letters: N rows, D width of the enriched row, W width of the tower's output.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, cast

from pydantic import Field, PlainValidator, SerializeAsAny, model_validator
from torch import Tensor, nn

from data_pipelines.config.base import Family, register
from data_pipelines.config.renames import accept_former_names
from data_pipelines.errors import UserError
from models.layers.activations import KWinners, activation
from models.layers.heads import TasksConfig
from models.layers.int8 import fuse
from models.layers.part import Int8Input, Part, UnitGroup, UnitSlice, linear_inputs, narrow_linear
from models.products import Linear


class TowerConfig(Family):
    """The layers between interaction and heads: ``model.tower``."""

    kind: str

    @abstractmethod
    def build(self, width: int, *, context: int | None, sharing: TasksConfig, tasks: int) -> "Tower":
        """The tower over rows of ``width`` columns.

        Args:
            context: Columns of ``model.context``; ``None`` where it is empty.
            sharing: How the tasks share the tower.
            tasks: How many there are.

        Raises:
            UserError: The kind does not support the context or the sharing.
        """

    def experts_by_block(self) -> tuple[int, ...]:
        """How many experts each block can route to; empty for a tower without a router."""
        return ()

    def shards_experts(self) -> bool:
        """Whether the ranks of a training hold different experts."""
        return False


AnyTower = Annotated[SerializeAsAny[TowerConfig], PlainValidator(TowerConfig.parse)]
"""The type of a config's field that holds any registered kind of tower."""


class Tower(Part):
    """Base of towers: ``forward(x_ND, context_NC)`` gives (N, W), or (T, N, W) where each of T tasks has its own rows.

    Attributes:
        config: What it was built from.
        writes_codes: Whether its last layer can write the int8 codes that heads read.
    """

    config: TowerConfig
    writes_codes: bool = False

    def auxiliary_loss(self) -> Tensor | None:
        """What the last training batch adds to the loss; ``None`` if nothing."""
        return None

    def after_step(self) -> None:
        """After each optimizer step."""

    def drop_inactive_experts(self) -> None:
        """Remove the experts that no row can choose."""
        self.refuse("drop_inactive_experts", "remove experts")


@register
class DenseTowerConfig(TowerConfig):
    """A multi-layer perceptron (see :class:`DenseTower`)."""

    kind: Literal["mlp"] = "mlp"
    hidden: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        default=(400, 400), max_length=1000, description="Units of each layer."
    )
    dropout: float = Field(default=0.0, ge=0, lt=1, description="Share of units dropped in training.")
    k_winners: float | None = Field(
        default=None, gt=0, le=1, description="Share of a layer's units that pass (k-winners); ReLU where absent."
    )

    _former_names = model_validator(mode="before")(accept_former_names({"winners": "k_winners"}))

    def build(self, width: int, *, context: int | None, sharing: TasksConfig, tasks: int) -> "DenseTower":
        if context is not None:
            raise UserError("only routers read model.context: set model.tower.kind to 'moe', or remove the key.")
        if sharing.routes_by_task:
            raise UserError(f"model.tasks.kind {sharing.kind!r} is built on experts: set model.tower.kind to 'moe'.")
        return DenseTower(width, self)


class DenseTower(Tower):
    """Linear, ReLU (or k-winners), dropout for each width of ``config.hidden``.

    Args:
        width: D.
        config: Widths, dropout and activation of the layers.
    """

    config: DenseTowerConfig
    writes_codes = True

    def __init__(self, width: int, config: DenseTowerConfig) -> None:
        super().__init__()
        self.config = config
        layers: list[nn.Module] = []
        for out in config.hidden:
            layers += [Linear(width, out), activation(out, config.k_winners)]
            layers += [nn.Dropout(config.dropout)] if config.dropout else []
            width = out
        self.layers = nn.Sequential(*layers)
        self.out_width = width

    def forward(self, x_ND: Tensor, context_NC: Tensor | None = None) -> Tensor:
        """(N, W)."""
        return cast(Tensor, self.layers(x_ND))

    def _linears(self) -> list[tuple[str, nn.Linear]]:
        return [(name, layer) for name, layer in self.layers.named_children() if isinstance(layer, nn.Linear)]

    @property
    def narrows_inputs(self) -> bool:
        return True

    def narrow_inputs(self, kept_D: Tensor) -> Tensor | None:
        linears = self._linears()
        if not linears:
            self.out_width = len(kept_D)
            return kept_D
        narrow_linear(linears[0][1], inputs=kept_D)
        return None

    def unit_groups(self, path: str, readers: Sequence[UnitSlice]) -> list[UnitGroup]:
        if self.config.k_winners is not None and len(self.config.hidden) > 1:
            raise UserError(
                "model.tower.k_winners is one share for all layers, which no longer fits once layers lose units: give "
                "model.tower.hidden one layer, or leave k-winners or the pruning of units out."
            )
        linears = self._linears()
        outgoing = [(UnitSlice(layer, "weight", 1),) for _, layer in linears[1:]] + [tuple(readers)]
        return [
            UnitGroup(
                f"{path}.layers.{name}",
                layer.out_features,
                (UnitSlice(layer, "weight", 0), UnitSlice(layer, "bias", 0)),
                readers_of_layer,
            )
            for (name, layer), readers_of_layer in zip(linears, outgoing, strict=False)
        ]

    def narrow_units(self, alive: Sequence[Tensor]) -> Tensor | None:
        kept: Tensor | None = None
        for (name, layer), alive_U in zip(self._linears(), alive, strict=True):
            before, kept = kept, alive_U.nonzero().squeeze(1)
            narrow_linear(layer, outputs=kept, inputs=before)
            following = str(int(name) + 1)
            winners = self.layers.get_submodule(following)
            if isinstance(winners, KWinners):
                narrow = winners.narrowed(len(kept))
                self.layers.register_module(following, narrow)
                self.config = self.config.model_copy(update={"k_winners": narrow.density})
        hidden = tuple(layer.out_features for _, layer in self._linears())
        self.config = self.config.model_copy(update={"hidden": hidden})
        self.out_width = hidden[-1] if hidden else self.out_width
        return kept

    def int8_inputs(self, path: str) -> list[Int8Input]:
        return linear_inputs(self, path)

    def to_int8(self, path: str, grids: Mapping[str, Tensor], out_2O: Tensor | None = None) -> "DenseTower":
        self.layers = fuse(f"{path}.layers", self.layers, grids, out_2O=out_2O)
        return self
