"""A sharding plan computed before training: how tables are sharded, and the bytes that each rank stores and sends.

Letters: R ranks, B rows of a rank's batch, L ids of a row, d width of an embedding.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torchrec.distributed.types import ParameterSharding

from data_pipelines.batch import Schema
from models.ranker import Ranker, RankerConfig
from models.sharding.memory import card_bytes, memory_notes, memory_of, placements, topology
from models.sharding.sharding import TableOptimizerConfig, TableRule, choose_plan, constraints
from models.tables.config import Memory
from models.tables.lookup import SparseTables
from models.tables.plan import TableLayout

_ID_BYTES = 8
_LENGTH_BYTES = 4
_FLOAT_BYTES = 4


@dataclass(frozen=True)
class PlacedTable:
    """One table of a plan.

    Attributes:
        bytes: Weights and optimizer state, over all ranks.
        memory: Where they are; on a CPU ``host``.
        rank_bytes: ``bytes`` by rank (R entries).
        card_bytes: Those of them that are on each rank's GPU (R entries), a cache included.
        rank_traffic: Bytes that each rank sends for it in a training step (R entries).
    """

    name: str
    rows: int
    dim: int
    sharding: str
    memory: Memory
    bytes: int
    rank_bytes: tuple[int, ...]
    card_bytes: tuple[int, ...]
    rank_traffic: tuple[int, ...]

    @property
    def ranks(self) -> int:
        """The number of ranks that store a part of it."""
        return sum(held > 0 for held in self.rank_bytes)


@dataclass(frozen=True)
class PaperPlan:
    """Tables and where they are; totals by rank include the dense part (its gradients are summed over the ranks).

    Attributes:
        notes: Sentences about the memory of tables (:func:`models.sharding.memory.memory_notes`).
    """

    tables: tuple[PlacedTable, ...]
    dense_bytes: int
    rank_bytes: tuple[int, ...]
    card_bytes: tuple[int, ...]
    rank_traffic: tuple[int, ...]
    notes: tuple[str, ...]


def draw_plan(
    schema: Schema,
    config: RankerConfig,
    optimizer: TableOptimizerConfig,
    *,
    ranks: int,
    ranks_per_node: int,
    bytes_per_rank: int,
    device: str,
    batch_size: int,
    ids_per_row: Mapping[str, float],
) -> PaperPlan:
    """The plan that a training on ``ranks`` processes would use; needs neither them nor a process group.

    Args:
        bytes_per_rank: Memory of each rank: of its GPU if ``device`` is ``cuda``.
        batch_size: Rows of a step on each rank.
        ids_per_row: Mean length of each sparse feature's bags.

    Raises:
        UserError: The tables do not fit, or the config asks for an impossible plan.
    """
    ranker = Ranker(config, schema, SparseTables(schema, config, device=torch.device("meta")))
    tables = ranker.tables
    assert isinstance(tables, SparseTables)
    limits = constraints(tables.layouts, config, optimizer, ranks, device)
    plan = choose_plan(ranker, limits, topology(ranks, device, ranks_per_node, bytes_per_rank))
    placed_by_key = placements(plan)
    placed = [
        _place(layout, placed_by_key[layout.key], optimizer.of(layout), ranks, device, batch_size, ids_per_row)
        for layout in tables.layouts
    ]
    dense = sum(p.numel() for name, p in ranker.named_parameters() if not name.startswith("tables."))
    dense_traffic = _all_reduce(dense * _FLOAT_BYTES, ranks)
    dense_bytes = dense * 4 * _FLOAT_BYTES
    return PaperPlan(
        tables=tuple(placed),
        dense_bytes=dense_bytes,
        rank_bytes=tuple(dense_bytes + sum(t.rank_bytes[r] for t in placed) for r in range(ranks)),
        card_bytes=tuple(
            (dense_bytes if device == "cuda" else 0) + sum(t.card_bytes[r] for t in placed) for r in range(ranks)
        ),
        rank_traffic=tuple(dense_traffic + sum(t.rank_traffic[r] for t in placed) for r in range(ranks)),
        notes=tuple(memory_notes(plan, tables.layouts, config, device)),
    )


def _all_reduce(size: int, ranks: int) -> int:
    """Bytes that each rank sends in a ring all-reduce of ``size`` bytes."""
    return 2 * size * (ranks - 1) // ranks


def _place(
    layout: TableLayout,
    placement: ParameterSharding,
    rule: TableRule,
    ranks: int,
    device: str,
    batch_size: int,
    ids_per_row: Mapping[str, float],
) -> PlacedTable:
    sharding, memory = placement.sharding_type, memory_of(placement.compute_kernel, device)
    weights = [0] * ranks
    if sharding == "data_parallel":
        size = _stored_bytes(layout.rows, layout.stored_dim, rule) + layout.rows * layout.stored_dim * _FLOAT_BYTES
        held = [size] * ranks
        sent = [_all_reduce(layout.rows * layout.stored_dim * _FLOAT_BYTES, ranks)] * ranks
    else:
        assert placement.sharding_spec is not None
        held, columns = [0] * ranks, [0] * ranks
        for part in placement.sharding_spec.shards:
            rows, width = part.shard_sizes
            held[part.placement.rank()] += _stored_bytes(rows, width, rule)
            weights[part.placement.rank()] += rows * width * _FLOAT_BYTES
            columns[part.placement.rank()] += width
        sent = _traffic(
            layout, sharding, columns, ranks, batch_size, sum(ids_per_row[name] for name in layout.features)
        )
    on_card = [card_bytes(memory, size, total) for size, total in zip(weights, held, strict=True)]
    return PlacedTable(
        layout.name, layout.rows, layout.dim, sharding, memory, sum(held), tuple(held), tuple(on_card), tuple(sent)
    )


def _stored_bytes(rows: int, width: int, rule: TableRule) -> int:
    """Bytes of a shard's weights and optimizer state."""
    state = {"sgd": 0, "rowwise_adagrad": 1, "adagrad": width}.get(rule.optimizer, 2 * width)
    return rows * (width + state) * _FLOAT_BYTES


def _traffic(
    layout: TableLayout, sharding: str, columns: list[int], ranks: int, batch_size: int, ids_per_row: float
) -> list[int]:
    """Bytes each rank sends in a step: ids and lengths to owners, embeddings back, gradients to owners.

    There is one vector per bag if the lookup pools, otherwise one per id. A rank that holds only some rows of a table
    returns a partial sum for every bag, or just the rows it has. For a table that is sharded over one node, the partial
    sums are added inside the node; each of its ranks then sends one whole vector to its counterpart on every other
    node.
    """
    ids = batch_size * ids_per_row
    bags = batch_size * len(layout.features)
    vectors = ids if layout.route == "rows" else bags
    sent = []
    for rank in range(ranks):
        others = [held for r, held in enumerate(columns) if r != rank]
        if sharding == "row_wise":
            share = (ranks - 1) / ranks
            inputs = ids * _ID_BYTES * share + bags * _LENGTH_BYTES * (ranks - 1)
            returned = vectors * layout.stored_dim * _FLOAT_BYTES * (share if layout.route == "rows" else ranks - 1)
            gradients = returned
        elif sharding == "table_row_wise":
            node = sum(held > 0 for held in columns)
            nodes = ranks // node
            vector = vectors * layout.stored_dim * _FLOAT_BYTES
            if columns[rank]:
                inputs = ids * _ID_BYTES * (node - 1) / node + bags * _LENGTH_BYTES * (node - 1)
                returned = vector * (nodes * (node - 1) + nodes - 1)
                gradients = vector * nodes * (node - 1)
            else:
                inputs, returned, gradients = ids * _ID_BYTES + bags * _LENGTH_BYTES * node, 0, vector
        else:
            owners = sum(held > 0 for held in others)
            inputs = (ids * _ID_BYTES + bags * _LENGTH_BYTES) * owners
            returned = vectors * columns[rank] * _FLOAT_BYTES * (ranks - 1)
            gradients = vectors * sum(others) * _FLOAT_BYTES
        sent.append(int(inputs + returned + gradients))
    return sent
