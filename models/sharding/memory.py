"""Which memory a table is kept in on a GPU: that of the card, or that of the machine with or without a cache.

FBGEMM reads a table in the machine's memory through unified memory (UVM), over the bus. A cache on the card holds the
rows in use, which suits tables with few frequent ids.
"""

from collections.abc import Iterable, Iterator

import psutil
import torch
from torchrec.distributed.embedding_types import EmbeddingComputeKernel
from torchrec.distributed.planner import Topology
from torchrec.distributed.types import ParameterSharding, ShardingPlan

from models.sharding.quiet import quiet
from models.tables.config import Memory, TablesConfig
from models.tables.plan import TableLayout

RESERVED = 0.15
"""Share of a rank's memory that is reserved for batches, activations and the dense part."""

CACHED_SHARE = 0.2
"""Share of the rows that the cache of a ``cached`` table holds: the default of FBGEMM and of TorchRec's planner."""

_KERNELS: dict[Memory, EmbeddingComputeKernel] = {
    "hbm": EmbeddingComputeKernel.FUSED,
    "cached": EmbeddingComputeKernel.FUSED_UVM_CACHING,
    "host": EmbeddingComputeKernel.FUSED_UVM,
}


def kernels_of(memory: Memory, device: str) -> list[str] | None:
    """The kernels that the planner may choose for a table with a fused optimizer; ``None`` leaves it the choice.

    Args:
        device: ``cpu`` or ``cuda``. On a CPU there is one memory.
    """
    if device != "cuda":
        return None
    return [kernel.value for name, kernel in _KERNELS.items() if memory in ("auto", name)]


def memory_of(kernel: str, device: str) -> Memory:
    """The memory that a kernel of a plan keeps its table in; ``host`` on a CPU."""
    if device != "cuda":
        return "host"
    return next((memory for memory, known in _KERNELS.items() if known.value == kernel), "hbm")


def card_bytes(memory: Memory, weights: int, total: int) -> int:
    """Bytes on the card of a table: ``weights`` bytes of weights, ``total`` with the optimizer state."""
    return {"cached": int(weights * CACHED_SHARE), "host": 0}.get(memory, total)


def topology(world_size: int, device: str, ranks_per_node: int, bytes_per_rank: int) -> Topology:
    """``world_size`` equal ranks for the planner; tables may take all but the reserve.

    Args:
        bytes_per_rank: Memory of a rank: of its card with ``cuda``, which also takes its share of this machine's.
    """
    memory = int(bytes_per_rank * (1 - RESERVED))
    caps = {"ddr_cap": memory}
    if device == "cuda":
        host = int(memory_per_rank(torch.device("cpu"), ranks_per_node) * (1 - RESERVED))
        caps = {"hbm_cap": memory, "ddr_cap": host}
    with quiet():
        return Topology(world_size, device, local_world_size=ranks_per_node, **caps)


def memory_per_rank(device: torch.device, ranks_per_node: int) -> int:
    """Bytes that each of ``ranks_per_node`` ranks on a machine like this one has."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return int(psutil.virtual_memory().total) // ranks_per_node


def placements(plan: ShardingPlan) -> dict[str, ParameterSharding]:
    """How each table is sharded, by the table's key."""
    return {key: placed for module in plan.plan.values() for key, placed in dict(module).items()}


def memory_notes(
    plan: ShardingPlan, layouts: Iterable[TableLayout], config: TablesConfig, device: str
) -> Iterator[str]:
    """A sentence for every table that the planner keeps off the card, and one if ``memory`` is set without a card."""
    asked = {name for name, table in config.tables.items() if table.memory != "auto"}
    if device != "cuda":
        if asked:
            yield f"model.tables.{min(asked)}.memory has no effect on a CPU: all tables are in the machine's memory."
        return
    memories = {key: memory_of(placed.compute_kernel, device) for key, placed in placements(plan).items()}
    for layout in layouts:
        memory = memories.get(layout.key, "hbm")
        if memory in ("cached", "host") and layout.vocabulary not in asked:
            cache = ", with a cache on it" if memory == "cached" else ""
            yield (
                f"table {layout.name!r} ({layout.rows:,} x {layout.dim}) does not fit on the card with the other "
                f"tables: its rows are in the machine's memory{cache} (model.tables.{layout.vocabulary}.memory)."
            )
