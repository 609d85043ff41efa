"""A ranker sharded over ranks: the plan of its tables, their optimizers, and ``DistributedModelParallel`` around it."""

import os
from collections.abc import Iterable
from typing import Any, Literal

import torch
import torch.distributed as dist
from pydantic import Field
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.model_parallel import DefaultDataParallelWrapper, DistributedModelParallel
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.distributed.planner.types import PlannerError
from torchrec.distributed.types import ShardingPlan
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

from data_pipelines.config.base import Config
from data_pipelines.errors import UserError
from models.moe.expert_parallel import shard_experts
from models.moe.experts import mixtures
from models.ranker import Ranker
from models.sharding.memory import kernels_of, memory_per_rank, topology
from models.sharding.quiet import quiet
from models.tables.config import TableConfig, TablesConfig
from models.tables.lazy_adam import LazyAdam
from models.tables.lookup import SparseTables
from models.tables.plan import TableLayout
from models.tables.rows import initialise_tables, table_names

TableOptimizer = Literal["rowwise_adagrad", "adagrad", "sgd", "adam", "adamw", "lazy_adam"]
_EPS = 1e-8
_OPTIMIZERS: dict[TableOptimizer, type[torch.optim.Optimizer]] = {
    "rowwise_adagrad": RowWiseAdagrad,
    "adagrad": torch.optim.Adagrad,
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "lazy_adam": LazyAdam,
}
_FUSED = ("rowwise_adagrad", "adagrad", "sgd")


class TableRule(Config):
    """The optimizer of a table.

    ``rowwise_adagrad``, ``adagrad`` and ``sgd`` are fused: a row is updated in the backward pass, and only where the
    batch has its id. The others keep tables data-parallel, with a dense gradient, for small tables: ``adam`` and
    ``adamw`` move (and decay) every row at every step, ``lazy_adam`` only rows that the batch has.
    """

    optimizer: TableOptimizer = "rowwise_adagrad"
    learning_rate: float = Field(default=0.05, ge=0)
    weight_decay: float = Field(default=0.0, ge=0)

    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """The same update as a plain optimizer, for data-parallel tables (see :func:`table_optimizers`)."""
        return _OPTIMIZERS[self.optimizer](list(parameters), **self.arguments())

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of the optimizer's class."""
        arguments: dict[str, Any] = {"lr": self.learning_rate, "weight_decay": self.weight_decay}
        return arguments if self.optimizer == "sgd" else arguments | {"eps": _EPS}


class TableOptimizerConfig(TableRule):
    """The optimizers of tables: ``train.tables``."""

    only: dict[str, TableRule] = Field(
        default={}, description="Exceptions by table name, such as Adam for a small one."
    )

    wide: TableRule | None = Field(
        default=None,
        description="The optimizer of the wide part, for all tables; that of its tables if absent. With "
        "`learning_rate: 0` it keeps its start values (see `train.start`).",
    )

    def of(self, layout: TableLayout) -> TableRule:
        """The rule of a table."""
        return self.wide if layout.wide and self.wide is not None else self.only.get(layout.vocabulary, self)


class _BagSharder(EmbeddingBagCollectionSharder):  # type: ignore[misc]
    """TorchRec's own sharder leaves out row-wise sharding on CPU, although it works there."""

    def sharding_types(self, compute_device_type: str) -> list[str]:
        types: list[str] = super().sharding_types(compute_device_type)
        return [*types, *(cut for cut in ("row_wise", "table_row_wise") if cut not in types)]


def sharders() -> list[Any]:
    """One sharder for each kind of collection in :class:`SparseTables`."""
    return [_BagSharder(), EmbeddingCollectionSharder()]


def constraints(
    layouts: Iterable[TableLayout],
    config: TablesConfig,
    optimizer: TableOptimizerConfig,
    world_size: int,
    device: str = "cpu",
) -> dict[str, ParameterConstraints]:
    """What the planner may do with each table.

    Args:
        device: ``cpu`` or ``cuda``.

    Raises:
        UserError: A table would have more shards than rows, or than groups of four columns; or an exception names a
            table that does not exist.
    """
    limits, layouts = {}, tuple(layouts)
    unknown = sorted(set(optimizer.only) - {layout.vocabulary for layout in layouts})
    if unknown:
        names = ", ".join(sorted({layout.vocabulary for layout in layouts}))
        raise UserError(f"train.tables.only.{unknown[0]}: there is no table {unknown[0]!r}; the tables are {names}.")
    for layout in layouts:
        table = config.tables.get(layout.vocabulary, TableConfig())
        sharding = table.sharding
        if sharding == "row_wise" and layout.rows < world_size:
            raise UserError(
                f"model.tables.{layout.vocabulary}.sharding: row_wise cannot cut {layout.rows} rows into {world_size} "
                "shards; use table_wise or data_parallel."
            )
        types = ["table_wise", "row_wise"] if 1 < world_size <= layout.rows else ["table_wise"]
        if optimizer.of(layout).optimizer not in _FUSED:
            types = ["data_parallel"]
            if sharding not in ("auto", "data_parallel"):
                raise UserError(
                    f"model.tables.{layout.vocabulary}.sharding: {sharding} needs a fused optimizer; set "
                    f"train.tables.optimizer to one of {', '.join(_FUSED)}, or the sharding to data_parallel."
                )
        elif sharding == "column_wise":
            types = ["column_wise"] if layout.stored_dim % (4 * world_size) == 0 else ["table_wise"]
            if types != ["column_wise"] and not layout.wide:
                raise UserError(
                    f"model.tables.{layout.vocabulary}.sharding: column_wise over {world_size} ranks needs a dim that "
                    f"is a multiple of {4 * world_size}, not {layout.dim}."
                )
        elif sharding == "table_row_wise":
            types = ["row_wise" if layout.route == "rows" else sharding]
        elif sharding != "auto":
            types = [sharding]
        replicated = types == ["data_parallel"]
        if replicated and not layout.wide and device == "cuda" and table.memory in ("cached", "host"):
            raise UserError(
                f"model.tables.{layout.vocabulary}.memory: a data_parallel table is in the card's memory; set memory "
                f"to hbm, or the sharding to auto and train.tables.optimizer to one of {', '.join(_FUSED)}."
            )
        limits[layout.key] = ParameterConstraints(
            sharding_types=types,
            compute_kernels=None if replicated else kernels_of(table.memory, device),
            min_partition=max(4, layout.stored_dim // world_size),
            pooling_factors=[1.0] * len(layout.features),
            is_weighted=layout.route == "weighted",
        )
    return limits


def shard(
    ranker: Ranker,
    optimizer: TableOptimizerConfig,
    device: torch.device,
    *,
    seed: int = 0,
    plan: ShardingPlan | None = None,
) -> DistributedModelParallel:
    """``ranker`` with its tables sharded over the ranks of the default process group, ready to train.

    Start values of tables depend on ``seed`` and their names, not on the plan (:func:`initialise_tables`); dense
    parameters start with the values of rank 0. The global random state does not change.

    Args:
        ranker: Moved to ``device``; its tables preferably on the meta device.
        device: Of this rank.
        plan: How each table is sharded; the planner chooses if absent.

    Raises:
        UserError: The config asks for an impossible plan, or the tables do not fit.
    """
    tables = ranker.tables
    assert isinstance(tables, SparseTables)
    world_size = dist.get_world_size()
    limits = constraints(tables.layouts, ranker.config, optimizer, world_size, device.type)
    if plan is None:
        nodes = int(os.environ.get("LOCAL_WORLD_SIZE", world_size))
        ranks = topology(world_size, device.type, nodes, memory_per_rank(device, nodes))
        plan = choose_plan(ranker, limits, ranks)
    # At one rank nothing below moves the dense part; tables on the meta device are allocated where they are sharded.
    ranker._apply(lambda each: each if each.is_meta else each.to(device))  # type: ignore[no-untyped-call]
    sharded = _shard_experts(ranker, device, world_size)
    with quiet(), torch.random.fork_rng(devices=[]):
        parallel = [key for key, limit in limits.items() if limit.sharding_types == ["data_parallel"]]
        layouts = {layout.key: layout for layout in tables.layouts}
        for name, parameter in tables.named_parameters():
            if name.split(".")[-2] not in parallel:
                rule = optimizer.of(layouts[name.split(".")[-2]])
                apply_optimizer_in_backward(_OPTIMIZERS[rule.optimizer], [parameter], rule.arguments())
        for layout in tables.layouts:
            if layout.route == "rows" and layout.key in parallel:
                # FBGEMM's dense kernel cannot look up single rows on CPU (it pools them): the collection stays plain.
                plan.plan.pop(f"tables.rows.{layout.key}", None)
        dmp = DistributedModelParallel(
            ranker,
            device=device,
            plan=plan,
            sharders=sharders(),
            data_parallel_wrapper=DefaultDataParallelWrapper(params_to_ignore=sharded),
            init_data_parallel=world_size > 1,  # a single rank does not average gradients
        )
    initialise_tables(dmp, seed)
    return dmp


def _shard_experts(ranker: Ranker, device: torch.device, world_size: int) -> list[str]:
    """Shard the experts over the ranks where the config says so; names of parameters that are not replicated."""
    if not ranker.config.tower.shards_experts() or world_size == 1:
        return []
    counts = {len(mixture.router.active_E) for mixture in mixtures(ranker.tower).values()}
    if uneven := [count for count in counts if count % world_size]:
        raise UserError(
            f"model.tower.expert_parallel: {uneven[0]} experts cannot be sharded evenly over {world_size} ranks; make "
            "model.tower.experts a multiple of the ranks, or set expert_parallel to false."
        )
    names = shard_experts(ranker.tower, init_device_mesh(device.type, (world_size,)))
    return [f"tower.{name}" for name in names]


def choose_plan(ranker: Ranker, limits: dict[str, ParameterConstraints], ranks: Topology) -> ShardingPlan:
    """Where TorchRec's planner puts each table; rank 0 decides if there is a process group.

    Raises:
        UserError: The tables do not fit; the sentence names the largest and says what to change.
    """
    tables = ranker.tables
    assert isinstance(tables, SparseTables)
    with quiet(), torch.random.fork_rng(devices=[]):
        planner = EmbeddingShardingPlanner(
            topology=ranks,
            constraints=limits,
            storage_reservation=FixedPercentageStorageReservation(0.0),
            debug=False,
        )
        try:
            if dist.is_initialized():
                return planner.collective_plan(ranker, sharders(), dist.GroupMember.WORLD)
            return planner.plan(ranker, sharders())
        except PlannerError:
            pass
    raise UserError(_too_large(tables, ranks))


def _too_large(tables: SparseTables, ranks: Topology) -> str:
    """What to change if the tables do not fit."""
    largest = max(tables.layouts, key=lambda layout: layout.rows * layout.stored_dim)
    size = largest.rows * largest.stored_dim * 4
    on_gpu = ranks.compute_device == "cuda"
    room = max(device.storage.hbm if on_gpu else device.storage.ddr for device in ranks.devices)
    key = f"model.tables.{largest.vocabulary}"
    elsewhere = f"set {key}.memory to auto or cached, to keep its rows in the machine's memory, or " if on_gpu else ""
    return (
        f"The tables do not fit on {ranks.world_size} rank(s) with {room / 1e9:.2f} GB each for tables; the largest is "
        f"{largest.name!r} ({largest.rows:,} x {largest.dim}, {size / 1e9:.2f} GB): {elsewhere}set {key}.sharding to "
        "row_wise, lower its dim or its rows (data.features: max_size, min_count), or use more ranks."
    )


def data_parallel_tables(dmp: nn.Module) -> dict[str, nn.Parameter]:
    """The tables that every rank holds whole, by parameter name: those that need a plain optimizer."""
    parameters = dict(dmp.named_parameters())
    return {name: parameters[name] for name in table_names(parameters) if not _is_fused(parameters[name])}


def table_optimizers(dmp: nn.Module, optimizer: TableOptimizerConfig) -> list[torch.optim.Optimizer]:
    """The plain optimizers of the tables that have no fused one: one optimizer per rule."""
    rules = {t.name: optimizer.of(t) for m in dmp.modules() if isinstance(m, SparseTables) for t in m.layouts}
    parameters = data_parallel_tables(dmp)
    names = table_names(parameters)
    groups: dict[int, list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        groups.setdefault(id(rules[names[name]]), []).append(parameter)
    by_id = {id(rule): rule for rule in rules.values()}
    return [by_id[key].build(group) for key, group in groups.items()]


def dense_parameters(dmp: nn.Module) -> dict[str, nn.Parameter]:
    """All parameters that are not tables, by name."""
    parameters = dict(dmp.named_parameters())
    tables = table_names(parameters)
    return {name: parameter for name, parameter in parameters.items() if name not in tables}


def _is_fused(parameter: nn.Parameter) -> bool:
    return hasattr(parameter, "_in_backward_optimizers")
