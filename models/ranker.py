"""The ranker: encoded rows in, one logit for each task out.

Letters: B rows of a batch, D width of what tower and head read, F fields, d width of a field, T tasks.
"""

from typing import Annotated, Literal, cast

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from data_pipelines.batch import Batch, Schema
from data_pipelines.errors import UserError
from models.layers.gates import FeatureGates
from models.layers.heads import Heads, TasksConfig
from models.layers.interactions import CrossNet, DotInteraction, FactorizationMachine, MultiplicativeBlocks
from models.layers.normalization import Standardize
from models.layers.row_norm import RowNorm
from models.layers.sequence import Histories
from models.moe.experts import Balance, DenseTower, Gate, MixtureTower, routers
from models.tables.layout import TablesConfig
from models.tables.lookup import Embedded, SparseTables
from models.tables.managed_ids import ManagedIds


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class InteractionConfig(_Part):
    """How features meet before the tower.

    Attributes:
        layers: Of ``cross`` and ``multiplicative``.
        rank: Of each cross layer's matrix; full where absent.
    """

    kind: Literal["cross", "fm", "dot", "multiplicative", "none"] = "cross"
    layers: int = Field(default=3, ge=1, le=1000)
    rank: int | None = Field(default=None, ge=1)


class DenseTowerConfig(_Part):
    kind: Literal["mlp"] = "mlp"
    hidden: tuple[Annotated[int, Field(ge=1)], ...] = Field(default=(400, 400), max_length=1000)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    winners: float | None = Field(default=None, gt=0, le=1)


class MixtureConfig(_Part):
    """Sparse mixture of experts (see :class:`models.moe.experts.MixtureOfExperts`).

    Attributes:
        experts: How many there are; ``top_k`` of them see a row.
        hidden: Width of an expert's hidden layer.
        gate: ``softmax`` scores of experts compete, ``sigmoid`` scores do not.
        noise: Standard deviation of what is added to the router's logits in training.
        shared: One more expert that sees every row.
        balance: ``loss`` adds ``balance_weight`` x balance loss + ``z_weight`` x z-loss; ``bias`` needs no loss.
        blocks: Mixtures on top of each other.
        normalize: A layer norm before each mixture.
        spread: Spread the experts over the ranks (see :class:`models.moe.expert_parallel.SpreadExperts`).
    """

    kind: Literal["moe"] = "moe"
    experts: int = Field(default=8, ge=1, le=1 << 20)
    top_k: int = Field(default=2, ge=1)
    hidden: int = Field(default=256, ge=1)
    shared: bool = False
    gate: Gate = "softmax"
    noise: float = Field(default=0.0, ge=0)
    balance: Balance = "loss"
    balance_weight: float = Field(default=0.01, ge=0)
    z_weight: float = Field(default=0.001, ge=0)
    blocks: int = Field(default=1, ge=1, le=1000)
    normalize: bool = True
    spread: bool = False
    dropout: float = Field(default=0.0, ge=0, lt=1)
    winners: float | None = Field(default=None, gt=0, le=1)

    @model_validator(mode="after")
    def _top_k_within_experts(self) -> "MixtureConfig":
        if self.top_k > self.experts:
            raise ValueError(f"top_k ({self.top_k}) must not exceed experts ({self.experts})")
        return self


TowerConfig = Annotated[MixtureConfig | DenseTowerConfig, Field(discriminator="kind")]


class RankerConfig(TablesConfig):
    """The ``model`` block.

    Attributes:
        context: Features whose embeddings the router reads; all that the tower reads where empty.
        gates: Multiply each feature by a learned gate (see :class:`models.layers.gates.FeatureGates`).
        batch_norm: Normalise the row before the interaction (see :class:`models.layers.row_norm.RowNorm`).
    """

    context: tuple[str, ...] = ()
    interaction: InteractionConfig = InteractionConfig()
    tower: TowerConfig = MixtureConfig()
    tasks: TasksConfig = TasksConfig()
    gates: bool = False
    batch_norm: bool = False


class Ranker(nn.Module):
    """Embeddings, interaction, tower, heads.

    Every pooled embedding and the dense features make one row (B, D); the interaction enriches it, the tower reads the
    enriched row, and the heads read both.

    Args:
        config: The ``model`` block.
        schema: What the encoded rows hold.
        tables: Any module whose ``forward(batch)`` gives :class:`~models.tables.lookup.Embedded`: sharded tables in
            training, quantized ones when serving.

    Raises:
        UserError: ``config`` does not fit ``schema``; the sentence names the key.
    """

    def __init__(self, config: RankerConfig, schema: Schema, tables: nn.Module) -> None:
        super().__init__()
        self.config, self.schema, self.tables = config, schema, tables
        self.managed_ids = ManagedIds(schema, config) if any(t.rows for t in config.tables.values()) else None
        self.histories = Histories(schema, config)
        self.standardize = Standardize(schema.dense_width)
        self.gates = FeatureGates(schema) if config.gates else None
        dims = {feature.name: config.table_dim(feature.table) for feature in schema.sparse}
        self.fields = [feature.name for feature in schema.sparse]
        self._dims = dims
        self.context = self._context_features()
        kind = config.interaction.kind
        width = sum(dims.values())
        self.dense_field: nn.Module | None = None
        if kind in ("fm", "dot"):
            field = self._common_dim(kind)
            if schema.dense_width:
                self.dense_field = nn.Linear(schema.dense_width, field)
            fields = len(self.fields) + (schema.dense_width > 0)
            self.interaction: nn.Module = FactorizationMachine() if kind == "fm" else DotInteraction(fields)
            width = fields * field
            enriched = width + (field if kind == "fm" else cast(DotInteraction, self.interaction).width)
        else:
            width += schema.dense_width
            self.interaction = self._flat_interaction(width)
            enriched = width
        if not width:
            raise UserError("data.features is empty: a ranker needs at least one feature.")
        if config.gates and config.batch_norm:
            raise UserError("model.batch_norm undoes what gates do to the size of a feature: set one of them to false.")
        self.norm = RowNorm(width) if config.batch_norm else None
        self.tower = self._tower(enriched)
        self.heads: nn.Module = Heads(enriched, self.tower.width, len(schema.tasks))
        self.wide_bias = nn.Parameter(torch.zeros(len(schema.tasks))) if config.wide else None
        self.apply(_start_linear)

    def _context_features(self) -> tuple[str, ...]:
        for name in self.config.context:
            if name not in self.schema.feature_names:
                names = ", ".join(self.schema.feature_names)
                raise UserError(f"model.context: there is no feature {name!r}; the features are {names}.")
        if self.config.context and self.config.tower.kind != "moe":
            raise UserError("model.context steers a router: set model.tower.kind to 'moe', or leave it out.")
        return self.config.context

    def _common_dim(self, kind: str) -> int:
        if len(set(self._dims.values())) > 1:
            raise UserError(f"model.interaction.kind {kind!r} multiplies embeddings: give all tables the same dim.")
        return next(iter(self._dims.values()), self.config.dim)

    def _flat_interaction(self, width: int) -> nn.Module:
        settings = self.config.interaction
        if settings.kind == "cross":
            return CrossNet(width, settings.layers, rank=settings.rank)
        if settings.kind == "multiplicative":
            return MultiplicativeBlocks(width, settings.layers)
        return nn.Identity()

    def _tower(self, width: int) -> MixtureTower | DenseTower:
        tower = self.config.tower
        if isinstance(tower, DenseTowerConfig):
            if self.config.tasks.kind != "shared":
                raise UserError(
                    f"model.tasks.kind {self.config.tasks.kind!r} is built on experts: set model.tower.kind to 'moe'."
                )
            return DenseTower(width, tower.hidden, dropout=tower.dropout, winners=tower.winners)
        several = self._task_routing(tower)
        dense = {feature.name: feature.width for feature in self.schema.dense}
        context = sum((self._dims | dense)[name] for name in self.context)
        return MixtureTower(
            width,
            blocks=tower.blocks,
            dropout=tower.dropout,
            normalize=tower.normalize,
            hidden=tower.hidden,
            experts=tower.experts,
            top_k=tower.top_k,
            context=context or None,
            shared=tower.shared,
            gate=tower.gate,
            noise=tower.noise,
            balance=tower.balance,
            winners=tower.winners,
            tasks=len(self.schema.tasks) if several else 1,
            own_experts=self.config.tasks.kind == "ple",
        )

    def _task_routing(self, tower: MixtureConfig) -> bool:
        """Whether each task routes by itself; refuses what cannot be."""
        kind, tasks = self.config.tasks.kind, len(self.schema.tasks)
        if kind == "shared":
            return False
        if tasks == 1:
            raise UserError(
                f"model.tasks.kind {kind!r} is for several tasks and data.tasks has one: set it to 'shared'."
            )
        fewest = tower.experts // (tasks + 1) * 2
        if kind == "ple" and fewest < tower.top_k:
            raise UserError(
                f"model.tower.experts: 'ple' cuts {tower.experts} experts into {tasks + 1} groups and a task sees two, "
                f"too few for top_k {tower.top_k}; use at least {(tasks + 1) * -(-tower.top_k // 2)}."
            )
        return True

    def forward(self, batch: Batch) -> Tensor:
        """Logits (B, T), float32, in the order of the schema's tasks."""
        if self.managed_ids is not None:
            batch = self._exchange_ids(self.managed_ids, batch)
        embedded: Embedded = self.tables(batch)
        return self.rank(embedded.pooled | self.histories(embedded), batch.dense, embedded.wide)

    def rank(self, pooled: dict[str, Tensor], dense_BD: Tensor, wide: dict[str, Tensor]) -> Tensor:
        """Logits (B, T) of rows whose features are looked up and pooled: all that remains once tables have spoken.

        Args:
            pooled: (B, d) of every sparse feature.
            dense_BD: The dense features of :class:`~data_pipelines.batch.Batch`.
            wide: (B, 1) of every sparse feature where the config asks for the wide part.
        """
        dense_BD = self.standardize(dense_BD)
        if self.gates is not None:
            pooled, dense_BD, wide = self.gates(pooled, dense_BD, wide)
        x_BD = self._interact([pooled[name] for name in self.fields], dense_BD)
        context_BC = self._context(pooled, dense_BD) if self.context else None
        logits_BT = self.heads(x_BD, self.tower(x_BD, context_BC))
        if self.wide_bias is not None:
            logits_BT = logits_BT + torch.cat(list(wide.values()), 1).sum(1, keepdim=True) + self.wide_bias
        return cast(Tensor, logits_BT)

    def _exchange_ids(self, managed: ManagedIds, batch: Batch) -> Batch:
        batch, changed = managed(batch)
        for vocabulary, rows in changed.items():
            cast(SparseTables, self.tables).restart_rows(vocabulary, rows, managed.steps)
        return batch

    def _interact(self, fields: list[Tensor], dense_BD: Tensor) -> Tensor:
        multiplies_fields = self.config.interaction.kind in ("fm", "dot")
        if multiplies_fields and self.dense_field is not None:
            dense_BD = self.dense_field(dense_BD).float()
            fields = [*fields, dense_BD]
        x_BD = torch.cat(fields if multiplies_fields else [*fields, dense_BD], 1)
        if self.norm is not None:
            x_BD = self.norm(x_BD)
        if not multiplies_fields:
            return cast(Tensor, self.interaction(x_BD))
        products = self.interaction(x_BD.view(len(x_BD), len(fields), -1))
        return torch.cat([x_BD, products.to(x_BD.dtype)], 1)

    def _context(self, pooled: dict[str, Tensor], dense_BD: Tensor) -> Tensor:
        widths = [feature.width for feature in self.schema.dense]
        names = (feature.name for feature in self.schema.dense)
        dense = dict(zip(names, torch.split(dense_BD, widths, 1), strict=True)) if widths else {}
        return torch.cat([(pooled | dense)[name] for name in self.context], 1)

    def auxiliary_loss(self) -> Tensor | None:
        """Weighted balance and z losses of the last training batch, summed over mixtures; ``None`` without any."""
        tower = self.config.tower
        if not isinstance(tower, MixtureConfig):
            return None
        parts = [loss for router in routers(self).values() if (loss := router.auxiliary_loss()) is not None]
        if not parts:
            return None
        return torch.stack([tower.balance_weight * balance + tower.z_weight * z for balance, z in parts]).sum()

    def update_routing(self) -> None:
        """After each optimizer step: move the biases of routers that balance without a loss."""
        for router in routers(self).values():
            router.update_bias()

    def expert_load(self, *, reset: bool = False) -> dict[str, Tensor]:
        """Rows sent to each expert (E,) in training by this process since the last reset, by router."""
        loads = {name: router.load_E.clone() for name, router in routers(self).items()}
        if reset:
            for router in routers(self).values():
                router.load_E.zero_()
        return loads

    def dense_state(self) -> dict[str, Tensor]:
        """The state dict without the tables."""
        return {name: tensor for name, tensor in self.state_dict().items() if not name.startswith("tables.")}


def _start_linear(module: nn.Module) -> None:
    """Weights of variance 2 / (inputs + outputs) (Glorot and Bengio, AISTATS 2010), biases of zero.

    PyTorch's own start, of variance 1 / (3 x inputs), lets what tables say fade from layer to layer.
    """
    if isinstance(module, nn.Linear):
        nn.init.xavier_normal_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
