"""Group lasso by proximal steps: whole rows, dimensions, units and experts become zero, and are removed at export.

After a step on the loss, a group w of n numbers moves towards zero as a whole, ``w <- w max(0, 1 - t sqrt(n) / |w|)``
(Yuan & Lin 2006; Wen et al., 1608.03665). A group that has reached zero stays there.

- A *row* moves towards the OOV row, not towards zero: the ids of a pruned row mean OOV, so as soon as the two are equal
  the row can be dropped from the vocabulary and no score changes.
- A *dimension* is a column of a table; the table is stored without it.
- A *neuron* is a hidden unit with its incoming and outgoing weights; the matrices get narrower.
- An *expert* is the whole network; the router no longer offers it, and the stack gets shorter.

Letters: R rows, d embedding dimension, U units, E experts.
"""

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from data_pipelines.errors import UserError
from models.moe.experts import mixtures
from models.sparsity.lever import Count, Lever, Penalty, State, Strength, tensors
from models.sparsity.penalties.l1 import adaptivity
from models.sparsity.pruning.row_pruning import prepare_masks, redirect
from models.sparsity.removal.experts import mark_dead_experts, remove_dead_experts
from models.sparsity.removal.units import remove_dead_units
from models.sparsity.tables import chosen_tables, column_sums, reserved_rows, row, shards, squared_distance_to_oov
from models.tables.plan import OOV_ID

if TYPE_CHECKING:
    from models.ranker import Ranker
    from models.weights import Weights


class GroupConfig(Penalty):
    """Group lasso. A strength is how far a weight moves in one step: the learning rate times the weight of the penalty.

    Attributes:
        rows: Strength for embedding rows; under Adagrad divided by the root of the row's summed squared gradients.
        dims: Strength for embedding dimensions.
        neurons: Strength for hidden units.
        experts: Strength for experts.
        every: Steps between two sweeps over tables and groups; a sweep does the work of so many steps.
        tables: Names of the tables whose rows and dimensions are penalized; empty for all.
    """

    rows: Strength = 0.0
    dims: Strength = 0.0
    neurons: Strength = 0.0
    experts: Strength = 0.0
    every: Count = 20
    tables: tuple[str, ...] = ()


class GroupLasso(Lever):
    """Structured sparsity over any of rows, dimensions, neurons and experts."""

    name: ClassVar[str] = "group"
    _KEY = "sparsity.group"

    def __init__(self, config: GroupConfig) -> None:
        self.config = config
        self._dead: dict[str, Tensor] = {}

    def build(self, ranker: "Ranker") -> None:
        layouts = chosen_tables(ranker.tables, self.config.tables, f"{self._KEY}.tables")
        if self.config.rows:
            prepare_masks(ranker, {layout.vocabulary for layout in layouts}, self._KEY)
        if self.config.neurons and not ranker.unit_groups():
            raise UserError(f"{self._KEY}.neurons: model.tower has no hidden units; leave the key out.")
        if self.config.experts and not mixtures(ranker):
            raise UserError(
                f"{self._KEY}.experts: model.tower has no experts; leave the key out, or set kind to 'moe'."
            )

    def start(self, ranker: "Ranker", total_steps: int) -> None:
        self._settle = self.config.settle * total_steps
        layouts = chosen_tables(ranker.tables, self.config.tables, f"{self._KEY}.tables")
        self._layouts = [layout for layout in layouts if not layout.wide]
        self._reserved = {name: reserved_rows(ranker.schema.tables, name) for name in {t.vocabulary for t in layouts}}

    def settled(self, step: int) -> bool:
        return step >= self._settle

    @torch.no_grad()
    def after_step(self, ranker: "Ranker", step: int) -> None:
        due = (step + 1) % self.config.every == 0
        if due and self.config.rows:
            self._shrink_rows(ranker)
        if self.config.dims:
            self._shrink_dims(ranker, due)
        if self.config.neurons:
            self._shrink_units(ranker, due)
        if self.config.experts:
            self._shrink_experts(ranker, due)

    def finish(self, ranker: "Ranker") -> None:
        if self.config.dims:
            self._shrink_dims(ranker, due=False)
        if self.config.neurons:
            self._shrink_units(ranker, due=False)
        if self.config.experts:
            self._shrink_experts(ranker, due=False)

    def _shrink_rows(self, ranker: "Ranker") -> None:
        oov = row(ranker.tables, self._layouts, OOV_ID)
        distances = {
            name: square.sqrt() for name, square in squared_distance_to_oov(ranker.tables, self._layouts).items()
        }
        arrived: dict[str, Tensor] = {}
        for layout, shard in shards(ranker.tables, self._layouts):
            held = slice(shard.row_offset, shard.row_offset + len(shard.weight))
            distance_R = distances[layout.name][held]
            rate = adaptivity(shard)
            rate_R = rate if isinstance(rate, float) else rate.mean(1).cpu()
            left_R = shrunk(distance_R, self.config.every * self.config.rows * rate_R, layout.dim)
            left_R[: max(self._reserved[layout.vocabulary] - shard.row_offset, 0)] = 1
            target = oov[layout.name][shard.col_offset : shard.col_offset + shard.weight.shape[1]].to(shard.weight)
            shard.weight.sub_(target).mul_(left_R.to(shard.weight)[:, None]).add_(target)
        for name, square in squared_distance_to_oov(ranker.tables, self._layouts).items():
            vocabulary = next(layout.vocabulary for layout in self._layouts if layout.name == name)
            arrived[vocabulary] = square > 1e-12
            arrived[vocabulary][: self._reserved[vocabulary]] = True
        redirect(ranker, arrived)

    def _shrink_dims(self, ranker: "Ranker", due: bool) -> None:
        factors = self._factors(ranker) if due else {name: (~dead).float() for name, dead in self._dead.items()}
        for layout, shard in shards(ranker.tables, self._layouts):
            if layout.name in factors:
                factor_d = factors[layout.name][shard.col_offset : shard.col_offset + shard.weight.shape[1]]
                if not bool((factor_d == 1).all()):
                    shard.weight.mul_(factor_d.to(shard.weight))

    def _factors(self, ranker: "Ranker") -> dict[str, Tensor]:
        """(d,) the factor of each dimension in this sweep; dimensions that reach zero are recorded."""
        factors = {}
        squares = column_sums(ranker.tables, self._layouts, torch.Tensor.square)
        for layout in self._layouts:
            norm_d = squares[layout.name].sqrt()
            factors[layout.name] = shrunk(norm_d, self.config.every * self.config.dims, layout.rows)
            self._dead[layout.name] = factors[layout.name] == 0
        return factors

    def _shrink_units(self, ranker: "Ranker", due: bool) -> None:
        for group in ranker.unit_groups():
            dead = self._dead.setdefault(group.name, torch.zeros(group.units, dtype=torch.bool))
            factor_U = (~dead).float()
            if due:
                norm_U = torch.stack(group.squares()).sum(0).sqrt().cpu()
                factor_U *= shrunk(norm_U, self.config.every * self.config.neurons, group.numbers)
                self._dead[group.name] = factor_U == 0
            if due or bool(dead.any()):
                group.scale_(factor_U)

    def _shrink_experts(self, ranker: "Ranker", due: bool) -> None:
        for mixture in mixtures(ranker).values():
            active_E = mixture.router.active_E
            factor_E = active_E.float()
            if due:
                norm_E, numbers = mixture.experts.norms()
                factor_E *= shrunk(norm_E, self.config.every * self.config.experts, numbers)
                mark_dead_experts(active_E, factor_E, norm_E, mixture.router.top_k)
            if due or not bool(active_E.all()):
                factor_E = torch.where(factor_E > 0, factor_E, 1.0) * active_E
                mixture.experts.scale_(factor_E)

    def shrink(self, weights: "Weights") -> None:
        if self.config.dims:
            remove_dead_dims(weights)
        if self.config.neurons:
            remove_dead_units(weights)
        if self.config.experts:
            remove_dead_experts(weights)

    def state_dict(self) -> State:
        return tensors(self._dead)

    def load_state_dict(self, state: State) -> None:
        self._dead = {name: mask.bool() for name, mask in state.items()}


def shrunk(norm_G: Tensor, threshold: Tensor | float, numbers: int) -> Tensor:
    """(G,) the factors of groups of ``numbers`` numbers with these norms; 0 for norms below the threshold."""
    left_G: Tensor = 1 - threshold * numbers**0.5 / norm_G.clamp_min(1e-12)
    return left_G.clamp_(min=0)


def remove_dead_dims(weights: "Weights") -> None:
    """Store tables without columns that are zero in every row; a 0/1 factor widens them again after the lookup."""
    for name, table_Rd in weights.tables.items():
        alive_d = (table_Rd != 0).any(0)
        alive_d[0] |= not bool(alive_d.any())
        if not bool(alive_d.all()):
            factor_dD = weights.factors.get(name, torch.eye(table_Rd.shape[1]))
            weights.tables[name] = table_Rd[:, alive_d].contiguous()
            weights.factors[name] = factor_dD[alive_d].contiguous()
