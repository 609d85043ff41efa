"""FTRL-proximal for the wide linear part (McMahan et al., "Ad click prediction", KDD 2013).

Each weight is a closed form of two running sums, z and n, so that most weights of a wide part are exactly zero:
``w = 0 if |z| <= l1 else -(z - sign(z) l1) / ((beta + sqrt(n)) / alpha + l2)``.

Every rank stores all sums (two numbers per id); the wide tables may be sharded in any way. The closed form overwrites
what their fused optimizer did to a row.
"""

from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.distributed as dist
from fbgemm_gpu.split_table_batched_embeddings_ops_common import PoolingMode
from torch import Tensor, nn

from data_pipelines.errors import UserError
from models.sparsity.lever import Lever, LeverConfig, Rate, State, Strength, tensors
from models.sparsity.tables import shards
from models.tables.id_changes import IdChanges
from models.tables.lookup import Embedded, SparseTables
from models.tables.plan import TableLayout

if TYPE_CHECKING:
    from models.ranker import Ranker


class FtrlConfig(LeverConfig):
    """FTRL-proximal for the wide part; needs ``model.wide``.

    Attributes:
        alpha: Learning rate.
        beta: Smoothing of the per-weight rate.
        l1: Weights whose |z| stays below it are exactly zero.
        l2: Ridge.
    """

    alpha: Rate = 0.05
    beta: Strength = 1.0
    l1: Strength = 1e-4
    l2: Strength = 0.0


class Ftrl(Lever):
    """Updates the wide tables by FTRL-proximal instead of their fused optimizer."""

    name: ClassVar[str] = "ftrl"

    def __init__(self, config: FtrlConfig) -> None:
        self.config = config
        self._sums: dict[str, Tensor] = {}
        self._batch: tuple[IdChanges, Embedded] | None = None

    def build(self, ranker: "Ranker") -> None:
        if not ranker.config.wide:
            raise UserError("sparsity.ftrl trains the wide part: set model.wide to true, or leave sparsity.ftrl out.")

    def start(self, ranker: "Ranker", total_steps: int) -> None:
        assert isinstance(ranker.tables, SparseTables)
        self._layouts = [layout for layout in ranker.tables.layouts if layout.wide]
        for layout in self._layouts:
            self._sums.setdefault(layout.name, torch.zeros(2, layout.rows))
        self._write(ranker)
        ranker.tables.register_forward_hook(self._remember, with_kwargs=False)

    def _remember(self, module: nn.Module, args: tuple[Any, ...], output: Embedded) -> None:
        if not torch.is_grad_enabled():
            return
        for value in output.wide.values():
            value.retain_grad()
        self._batch = (IdChanges.of(args[0]), output)

    @torch.no_grad()
    def after_backward(self, ranker: "Ranker", step: int) -> None:
        assert self._batch is not None, "no forward pass with gradients since the last step"
        batch, output = self._batch
        self._batch = None
        for layout in self._layouts:
            gradient = self._row_gradient(ranker, layout, batch, output)
            z, n = self._sums[layout.name]
            rate_change = ((n + gradient.square()).sqrt() - n.sqrt()) / self.config.alpha
            z += gradient - rate_change * self.closed_form(z, n)
            n += gradient.square()

    def after_step(self, ranker: "Ranker", step: int) -> None:
        self._write(ranker)

    def _row_gradient(self, ranker: "Ranker", layout: TableLayout, batch: IdChanges, output: Embedded) -> Tensor:
        """(R,) gradient of the loss by wide weight, mean over ranks."""
        assert isinstance(ranker.tables, SparseTables)
        gradient = torch.zeros(layout.rows)
        for lookup in layout.lookups:
            value_B1 = output.wide[lookup.feature].grad
            if value_B1 is None:
                continue
            ids = batch.ids(lookup.feature).long()
            lengths, weights = batch.lengths_and_weights(lookup.feature)
            share = torch.ones(len(ids), device=ids.device) if weights is None else weights.float()
            if lookup.pooling is PoolingMode.MEAN or lookup.feature in ranker.tables.lookup_plan.mean_weighted:
                totals = torch.segment_reduce(share, "sum", lengths=lengths.long(), initial=0, unsafe=True)
                totals = totals.clamp(min=torch.finfo(share.dtype).tiny)
                share = share / totals.repeat_interleave(lengths, output_size=len(ids))
            contribution = value_B1.squeeze(1).repeat_interleave(lengths, output_size=len(ids)) * share
            gradient.index_add_(0, ids.cpu(), contribution.cpu())
        if dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(gradient)
            gradient /= dist.get_world_size()
        return gradient

    def closed_form(self, z: Tensor, n: Tensor) -> Tensor:
        """The weights that follow from the sums ``z`` and ``n``."""
        settings = self.config
        step = (settings.beta + n.sqrt()) / settings.alpha + settings.l2
        return torch.where(z.abs() <= settings.l1, 0.0, -(z - z.sign() * settings.l1) / step)

    @torch.no_grad()
    def _write(self, ranker: "Ranker") -> None:
        for layout, shard in shards(ranker.tables, self._layouts):
            z, n = self._sums[layout.name][:, shard.row_offset : shard.row_offset + len(shard.weight)]
            shard.weight.copy_(self.closed_form(z, n).unsqueeze(1))

    def state_dict(self) -> State:
        return tensors(self._sums)

    def load_state_dict(self, state: State) -> None:
        self._sums = dict(state)
