"""The ranker: it maps encoded rows to one logit per task.

Letters: B rows of a batch, D width of the row that tower and heads read, F fields, d width of a field, T tasks.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from data_pipelines.batch import Batch, Schema
from data_pipelines.errors import UserError
from models.layers.additive import AdditiveTerms
from models.layers.batch_norm import BatchNorm
from models.layers.gates import FeatureGates
from models.layers.heads import Heads, TasksConfig
from models.layers.histories import Histories
from models.layers.interactions import AnyInteraction, CrossConfig, Fields, Interaction
from models.layers.normalization import Standardize
from models.layers.outcomes.chains import logits_over_all_rows
from models.layers.outcomes.ordinal import OrdinalTasks
from models.layers.outcomes.task_weights import UncertaintyWeights
from models.layers.part import Component, Int8Input, Part, UnitGroup, module_components, own_tensors
from models.layers.towers import AnyTower, Tower
from models.layers.wide import Wide
from models.moe.router import routers
from models.moe.tower import MixtureConfig
from models.tables.config import TablesConfig
from models.tables.id_changes import IdChanges
from models.tables.lookup import Embedded, SparseTables
from models.tables.managed_ids import ManagedIds

_FORMER_DENSE_FIELD = "dense_field."
"""Where rankers of earlier versions stored the projection of dense features of an interaction of pairs."""

_FORMER_WIDE_BIAS = "wide_bias"
"""The wide part of earlier versions: a bias, and no weights of numbers."""


class RankerConfig(TablesConfig):
    """The ``model`` block."""

    context: tuple[str, ...] = Field(
        default=(), description="Features whose embeddings the router reads; if empty, all that the tower reads."
    )
    interaction: AnyInteraction = Field(default=CrossConfig(), description="How features are combined.")
    tower: AnyTower = Field(default=MixtureConfig(), description="The layers between interaction and heads.")
    tasks: TasksConfig = Field(default=TasksConfig(), description="How several tasks share the tower.")
    gates: bool = Field(
        default=False,
        description="Multiply each feature by a learned gate (see `models.layers.gates.FeatureGates`).",
    )
    batch_norm: bool = Field(
        default=False,
        description="Normalise the row before the interaction (see `models.layers.batch_norm.BatchNorm`).",
    )


class LookedUp(NamedTuple):
    """The features of a batch as :meth:`Ranker.rank` reads them."""

    pooled: dict[str, Tensor]
    dense_BD: Tensor
    wide: dict[str, Tensor]

    def take(self, rows: Tensor) -> "LookedUp":
        """The features of the rows at these positions."""
        pooled, wide = ({name: part[rows] for name, part in parts.items()} for parts in (self.pooled, self.wide))
        return LookedUp(pooled, self.dense_BD[rows], wide)


class Ranker(nn.Module):
    """Embeddings, interaction, tower, heads.

    The pooled embeddings and the dense features are concatenated to one row (B, D); the interaction enriches it, the
    tower reads the enriched row, and the heads read both. Each is a :class:`~models.layers.part.Part`, to which the
    ranker passes on what levers, int8 and the size report ask for.

    Args:
        config: The ``model`` block.
        schema: The encoded features.
        tables: Any module whose ``forward(batch)`` gives :class:`~models.tables.lookup.Embedded`: sharded tables in
            training, quantized ones when serving.

    Raises:
        UserError: ``config`` does not fit ``schema``; the sentence names the key.

    Example:
        >>> dataset, ranker = rs.Dataset.open(Path("dataset")), rs.load_weights(Path("run")).to_ranker()
        >>> ranker(next(iter(rs.Loader(dataset, "test", batch_size=32)))).shape
        torch.Size([32, 1])
    """

    interaction: Interaction
    tower: Tower
    heads: Part

    def __init__(self, config: RankerConfig, schema: Schema, tables: nn.Module) -> None:
        super().__init__()
        if not (schema.sparse or schema.dense):
            raise UserError("data.features is empty: a ranker needs at least one feature.")
        if config.gates and config.batch_norm:
            raise UserError("model.batch_norm undoes what gates do to the size of a feature: set one of them to false.")
        self.config, self.schema, self.tables = config, schema, tables
        self.managed_ids = ManagedIds(schema, config) if any(t.rows for t in config.tables.values()) else None
        self.histories = Histories(schema, config)
        self.standardize = Standardize(schema.dense_width)
        self.gates = FeatureGates(schema) if config.gates else None
        self.fields = [feature.name for feature in schema.sparse if not feature.additive]
        if not (self.fields or schema.dense):
            raise UserError("every feature of data.features has `serve`: a ranker needs one that is read when scoring.")
        widths = feature_widths(config, schema)
        fields = Fields(tuple(widths[name] for name in self.fields), schema.dense_width, config.dim)
        self.interaction = config.interaction.build(fields)
        self.norm = BatchNorm(self.interaction.in_width) if config.batch_norm else None
        enriched, tasks = self.interaction.out_width, len(schema.tasks)
        context = _context_width(config, widths)
        self.tower = config.tower.build(enriched, context=context, sharing=config.tasks, tasks=tasks)
        self.heads = Heads(enriched, self.tower.out_width, tasks)
        added = {f.name: config.table_dim(f.table) for f in schema.sparse if f.additive}
        self.additive = AdditiveTerms(added, tasks) if added else None
        self.wide = Wide(schema.dense_width, tasks) if config.wide else None
        levels = {t: schema.levels[name] for t, name in enumerate(schema.tasks) if name in schema.levels}
        self.ordinal = OrdinalTasks(levels) if levels else None
        self.task_weights = UncertaintyWeights(tasks) if config.tasks.weights == "uncertainty" else None
        self.apply(_start_linear)
        if self.wide is not None:
            self.wide.start_at_zero()

    def forward(self, batch: Batch | IdChanges) -> Tensor:
        """Logits (B, T), float32, in the order of the schema's tasks.

        That of a task that happens only after another one is of its probability over all rows
        (:func:`models.layers.outcomes.chains.logits_over_all_rows`). The column of an ordinal task holds latent scores
        in training mode and expected levels in evaluation mode (:class:`models.layers.outcomes.ordinal.OrdinalTasks`).
        """
        return self.rank(*self.look_up(batch))

    def look_up(self, batch: Batch | IdChanges) -> LookedUp:
        """The features of a batch, looked up and pooled."""
        ids = IdChanges.of(batch)
        if self.managed_ids is not None:
            for vocabulary, rows in self.managed_ids(ids).items():
                cast(SparseTables, self.tables).restart_rows(vocabulary, rows, self.managed_ids.steps)
        embedded: Embedded = self.tables(ids)
        return LookedUp(embedded.pooled | self.histories(embedded), ids.dense, embedded.wide)

    def rank(self, pooled: dict[str, Tensor], dense_BD: Tensor, wide: dict[str, Tensor]) -> Tensor:
        """Logits (B, T) of rows whose features are looked up and pooled: everything after the embedding lookup.

        Args:
            pooled: (B, d) of every sparse feature.
            dense_BD: The dense features of :class:`~data_pipelines.batch.Batch`.
            wide: (B, 1) of every sparse feature where the config asks for the wide part.
        """
        dense_BD = self.standardize(dense_BD)
        if self.gates is not None:
            pooled, dense_BD, wide = self.gates(pooled, dense_BD, wide)
        x_BD = self.interaction.row([pooled[name] for name in self.fields], dense_BD)
        x_BD = self.interaction(x_BD if self.norm is None else self.norm(x_BD))
        context_BC = self._context(pooled, dense_BD) if self.config.context else None
        logits_BT = self.heads(x_BD, self.tower(x_BD, context_BC))
        if self.additive is not None and len(self.additive.terms):
            logits_BT = logits_BT + self.additive(pooled)
        if self.wide is not None:
            logits_BT = logits_BT + self.wide(wide, dense_BD)
        logits_BT = logits_over_all_rows(cast(Tensor, logits_BT), self.schema.chains)
        return logits_BT if self.ordinal is None or self.training else self.ordinal(logits_BT)

    def _context(self, pooled: dict[str, Tensor], dense_BD: Tensor) -> Tensor:
        widths = [feature.width for feature in self.schema.dense]
        names = (feature.name for feature in self.schema.dense)
        dense = dict(zip(names, torch.split(dense_BD, widths, 1), strict=True)) if widths else {}
        return torch.cat([(pooled | dense)[name] for name in self.config.context], 1)

    def auxiliary_loss(self) -> Tensor | None:
        """What the tower adds to the loss of the last training batch; ``None`` if nothing."""
        return self.tower.auxiliary_loss()

    def update_routing(self) -> None:
        """After each optimizer step: move the biases of routers that balance without a loss."""
        self.tower.after_step()

    def tokens_per_expert(self, *, reset: bool = False) -> dict[str, Tensor]:
        """Rows sent to each expert (E,) in training by this process since the last reset, by router."""
        counts = {name: router.tokens_per_expert_E.clone() for name, router in routers(self).items()}
        if reset:
            for router in routers(self).values():
                router.tokens_per_expert_E.zero_()
        return counts

    def parts(self) -> dict[str, Part]:
        """The parts between lookup and logits, by their names in the state dict."""
        return {name: child for name, child in self.named_children() if isinstance(child, Part)}

    def components(self) -> Iterator[Component]:
        """Every tensor of the dense part, each in exactly one component.

        Raises:
            UserError: The work of a part's matrix is unknown, or a part leaves a tensor out.
        """
        missing = set(self.dense_state())
        for component in self._components():
            missing -= set(component.tensors)
            yield component
        if missing:
            name = min(missing)
            raise UserError(f"{name!r} is in no component of the size report: let components() of its part list it.")

    def _components(self) -> Iterator[Component]:
        yield from (Component(name, "other", {name: tensor}) for name, tensor in own_tensors(self, "").items())
        for name, child in self.named_children():
            if isinstance(child, Part):
                yield from child.components(name)
            elif child is not self.tables:
                yield from module_components(child, name)

    def unit_groups(self) -> list[UnitGroup]:
        """The groups of hidden units of the tower and its experts."""
        return self.tower.unit_groups("tower", cast(Heads, self.heads).tower_readers())

    def narrow_units(self, alive: Sequence[Tensor]) -> None:
        """Remove the units that are False in ``alive``, (U,) of each of :meth:`unit_groups`."""
        cast(Heads, self.heads).narrow(tower=self.tower.narrow_units(alive))

    @property
    def narrows_inputs(self) -> bool:
        """Whether removing columns of zeros from the row, and from all matrices that read it, keeps all logits."""
        between = [part for part in (self.norm, self.interaction, self.tower) if part is not None]
        return all(part.narrows_inputs for part in between)

    def narrow_inputs(self, kept_D: Tensor) -> None:
        """Keep only the columns ``kept_D`` (positions) of the row that the interaction reads; sparse ones come first.

        Columns of dense features are removed from their standardization too.
        """
        first_dense = self.interaction.in_width - self.standardize.out_width
        kept_dense_D = kept_D[kept_D >= first_dense] - first_dense
        self.standardize.narrow_inputs(kept_dense_D)
        if self.wide is not None:
            self.wide.narrow_inputs(kept_dense_D)
        enriched = self.interaction.narrow_inputs(kept_D)
        tower = None if enriched is None else self.tower.narrow_inputs(enriched)
        cast(Heads, self.heads).narrow(features=enriched, tower=tower)

    def int8_inputs(self) -> list[Int8Input]:
        """Every input that :meth:`to_int8` needs a grid of; empty for a model without dense layers."""
        found = [*self.interaction.int8_inputs("interaction"), *self.tower.int8_inputs("tower")]
        return [*found, *self.heads.int8_inputs("heads")] if self.tower.writes_codes else found

    def to_int8(self, grids: dict[str, Tensor]) -> None:
        """Compute dense layers in int8, for inference only.

        Args:
            grids: (2, D) ``low`` and ``step`` of each of :meth:`int8_inputs` by name.
        """
        read_by_heads = self.heads.int8_inputs("heads")[0].name if self.tower.writes_codes else None
        self.interaction.to_int8("interaction", grids)
        self.tower.to_int8("tower", grids, None if read_by_heads is None else grids[read_by_heads])
        if read_by_heads is not None:
            self.heads = self.heads.to_int8("heads", grids)

    def narrowed_config(self) -> RankerConfig:
        """``config`` with the current configs of interaction and tower."""
        return self.config.model_copy(update={"interaction": self.interaction.config, "tower": self.tower.config})

    def dense_state(self) -> dict[str, Tensor]:
        """The state dict without the tables."""
        return {name: tensor for name, tensor in self.state_dict().items() if not name.startswith("tables.")}

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name in [name for name in state_dict if name.startswith(f"{prefix}{_FORMER_DENSE_FIELD}")]:
            state_dict[f"{prefix}interaction.{name.removeprefix(prefix)}"] = state_dict.pop(name)
        if self.wide is not None and (bias := state_dict.pop(f"{prefix}{_FORMER_WIDE_BIAS}", None)) is not None:
            own = self.wide.state_dict(prefix=f"{prefix}wide.")
            state_dict |= {name: torch.zeros_like(tensor) for name, tensor in own.items()}
            state_dict[f"{prefix}wide.bias"] = bias
        super()._load_from_state_dict(state_dict, prefix, *args)


def feature_widths(config: RankerConfig, schema: Schema) -> dict[str, int]:
    """Columns of every feature in the row that the interaction reads, sparse features first."""
    sparse = {feature.name: config.table_dim(feature.table) for feature in schema.sparse if not feature.additive}
    return sparse | {feature.name: feature.width for feature in schema.dense}


def _context_width(config: RankerConfig, widths: dict[str, int]) -> int | None:
    for name in config.context:
        if name not in widths:
            raise UserError(f"model.context: there is no feature {name!r}; the features are {', '.join(widths)}.")
    return sum(widths[name] for name in config.context) if config.context else None


def _start_linear(module: nn.Module) -> None:
    """Weights of variance 2 / (inputs + outputs) (Glorot and Bengio, AISTATS 2010), biases of zero.

    With PyTorch's default, of variance 1 / (3 x inputs), the signal of the tables fades from layer to layer.
    """
    if isinstance(module, nn.Linear):
        nn.init.xavier_normal_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
