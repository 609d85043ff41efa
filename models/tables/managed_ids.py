"""Zero-collision hashing: rows for ids that cannot be enumerated, allocated on demand and evicted when ids go cold.

Letters: L ids of a batch, M distinct ids of a step on all ranks.
"""

from collections.abc import Callable, Mapping
from typing import Any, Self, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torchrec.modules.mc_modules import DistanceLFU_EvictionPolicy, MCHManagedCollisionModule
from torchrec.sparse.jagged_tensor import JaggedTensor

from data_pipelines.batch import Schema
from data_pipelines.errors import UserError
from models.tables.config import TablesConfig
from models.tables.id_changes import IdChanges
from models.tables.plan import OOV_ID


class ManagedRows(nn.Module):
    """Assigns the rows of a small table to ids of a large space, with TorchRec's managed collision module.

    Every id of a training step gets a row. If none is left, the ids with the lowest ratio of uses to steps since their
    last use are evicted. Ids without a row are looked up as OOV. The state is the same on all ranks, and
    buffers hold all of it, so that it survives checkpoint and export with the rest of the ranker.

    Args:
        rows: Rows of the table.
        reserved: Rows (null, OOV) at its start, whose ids are never reassigned.
    """

    def __init__(self, rows: int, reserved: int) -> None:
        super().__init__()
        self.reserved = reserved
        self._no_row = rows
        self.slots = MCHManagedCollisionModule(
            zch_size=rows - reserved + 1,
            device=torch.device("cpu"),
            eviction_policy=DistanceLFU_EvictionPolicy(),
            eviction_interval=1,
            output_global_offset=reserved,
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move the buffers; TorchRec's module keeps a second reference to those of its eviction policy."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        slots: Any = self.slots
        slots._mch_metadata = {name: getattr(slots, f"_mch_{name}") for name in slots._mch_metadata}
        return self

    def forward(self, ids_L: Tensor) -> Tensor:
        """(L,) rows."""
        bag = JaggedTensor(values=ids_L.long(), lengths=ids_L.new_tensor([len(ids_L)]))
        rows_L: Tensor = self.slots.remap({"": bag})[""].values()
        # Row numbers from a file must be inside the table.
        rows_L = torch.where((rows_L < self.reserved) | (rows_L >= self._no_row), OOV_ID, rows_L)
        return torch.where(ids_L < self.reserved, ids_L, rows_L).to(ids_L.dtype)

    @torch.no_grad()
    def admit(self, ids_L: Tensor) -> Tensor:
        """Count the ids of all ranks in this step, and give rows to new ones; returns the reassigned rows."""
        ids_M, counts_M = torch.unique(_on_all_ranks(ids_L[ids_L >= self.reserved].long()), return_counts=True)
        self.slots._current_iter_tensor += 1
        # The module's own profile() keeps a history that checkpoints do not hold; one step at a time needs none.
        self.slots._current_iter = int(self.slots._current_iter_tensor)
        last_use_M = torch.full_like(ids_M, self.slots._current_iter)
        self.slots._update_and_evict(ids_M, counts_M, {"last_access_iter": last_use_M})
        changed: Tensor | None = self.slots.evict()
        return ids_M[:0] if changed is None else changed


def _on_all_ranks(ids_L: Tensor) -> Tensor:
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return ids_L
    lengths = [ids_L.new_zeros(1) for _ in range(dist.get_world_size())]
    dist.all_gather(lengths, ids_L.new_tensor([len(ids_L)]))
    longest = int(max(lengths))
    parts = [ids_L.new_zeros(longest) for _ in lengths]
    dist.all_gather(parts, nn.functional.pad(ids_L, (0, longest - len(ids_L))))
    return torch.cat([part[: int(length)] for part, length in zip(parts, lengths, strict=True)])


class ManagedIds(nn.Module):
    """Replaces the ids of managed tables by rows, in a whole batch.

    Raises:
        UserError: A table would have more rows than ids, or no row besides the reserved ones.
    """

    def __init__(self, schema: Schema, config: TablesConfig) -> None:
        super().__init__()
        self.tables = [name for name, table in config.tables.items() if table.rows is not None]
        self._table_of = {spec.name: spec.table for spec in schema.sparse if spec.table in self.tables}
        self.managed = nn.ModuleList()
        for name in self.tables:
            rows, spec = config.table_rows(schema.table(name)), schema.table(name)
            if not spec.reserved < rows < spec.rows:
                raise UserError(
                    f"model.tables.{name}.rows must be between {spec.reserved + 1} and {spec.rows - 1} (the table has "
                    f"{spec.rows} ids), not {rows}; leave it out to keep a row for each id."
                )
            self.managed.append(ManagedRows(rows, spec.reserved))

    @property
    def steps(self) -> int:
        """Training batches seen so far."""
        return int(cast(ManagedRows, self.managed[0]).slots._current_iter_tensor)

    def forward(self, ids: IdChanges) -> Mapping[str, Tensor]:
        """Replace ids by rows; returns the reassigned rows of each table while training."""
        reassigned = {}
        for name, managed in zip(self.tables, self.managed, strict=True):
            if self.training:
                asked = [ids.ids(feature) for feature, table in self._table_of.items() if table == name]
                reassigned[name] = cast(ManagedRows, managed).admit(torch.cat(asked))
        rows = dict(zip(self.tables, self.managed, strict=True))
        ids.change({feature: rows[table] for feature, table in self._table_of.items()})
        return reassigned
