"""The model in training (sharded ranker, optimizers, levers, averaged weights), and all of it as named tensors."""

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote, unquote

import torch
from torch import Tensor, nn
from torch.distributed._shard.sharded_tensor.api import ShardedTensor
from torch.distributed._shard.sharded_tensor.shard import Shard
from torchrec.distributed.model_parallel import DistributedModelParallel

from data_pipelines.batch import Schema
from data_pipelines.errors import UserError
from models.moe.expert_parallel import clip_gradients, place_like
from models.ranker import Ranker
from models.sharding.memory import memory_notes
from models.sharding.sharding import data_parallel_tables, dense_parameters, shard, table_optimizers
from models.sparsity.config import build_levers
from models.sparsity.lever import Lever
from models.tables.lookup import SparseTables
from models.tables.rows import local_rows, settle_caches
from recsys.config.experiment import ExperimentConfig, TrainConfig
from recsys.runs.checkpoints import EMA, LEVER, MODEL, OPTIMIZER, Tensors, load_checkpoint, stored_tensors
from recsys.runs.processes import Processes
from recsys.training.optimizers import AveragedWeights, make_optimizer


class ModelState:
    """Everything that a training step changes.

    Attributes:
        model: The ranker in ``DistributedModelParallel``, for the forward pass.
        ranker: The same ranker without the wrapper, for levers.
        levers: The levers that the config switches on.
    """

    def __init__(self, model: DistributedModelParallel, levers: Sequence[Lever], config: TrainConfig) -> None:
        self.model, self.ranker = model, cast(Ranker, model.module)
        self.levers = levers
        self._dense = dense_parameters(model)
        tables = data_parallel_tables(model)
        self._unfused = self._dense | tables
        self._clip_norm = config.dense.clip_norm
        self._optimizers = [
            make_optimizer(
                config.dense.optimizer,
                self._dense.values(),
                learning_rate=config.dense.learning_rate,
                weight_decay=config.dense.weight_decay,
            )
        ]
        if tables:
            self._optimizers += table_optimizers(model, config.tables)
        self._fused = model.fused_optimizer
        groups = [group for optimizer in (*self._optimizers, self._fused) for group in optimizer.param_groups]
        self._rates = [(group, group["lr"]) for group in groups]
        self._factor: float | None = None
        self._decay, self._average = config.ema, cast(AveragedWeights | None, None)

    def start_average(self) -> None:
        """Start the averaged weights, if there are any, from the current weights."""
        if self._decay is not None:
            self._average = AveragedWeights(self._live(), self._decay)

    def scale_rates(self, factor: float) -> None:
        """Multiply every configured learning rate by ``factor``; fused tables read it in the forward pass."""
        if factor == self._factor:
            return
        self._factor = factor
        for group, rate in self._rates:
            group["lr"] = rate * factor
        self._fused.zero_grad()  # passes the learning rate to the kernels

    def update(self, loss: Tensor, step: int) -> None:
        """Backward pass, optimizers and levers of one step."""
        for optimizer in self._optimizers:
            optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        for lever in self.levers:
            lever.after_backward(self.ranker, step)
        if self._clip_norm is not None:
            clip_gradients(self._dense.values(), self._clip_norm)
        for optimizer in self._optimizers:
            optimizer.step()
        self.ranker.update_routing()
        for lever in self.levers:
            lever.after_step(self.ranker, step)
        if self._decay is not None:
            self._average = self._average or AveragedWeights(self._live(), self._decay)
            self._average.update(self._live())

    def swap_average(self) -> None:
        """Exchange live and averaged weights, if there are averages; a second call undoes the first."""
        if self._average is not None:
            self._average.swap(self._live())

    def expert_shares(self, processes: Processes) -> dict[str, float]:
        """Share of the rows of each expert since the last call, over all ranks."""
        shares: dict[str, float] = {}
        for name, tokens_E in self.ranker.tokens_per_expert(reset=True).items():
            share_E = processes.mean(tokens_E.double().cpu())
            total = float(share_E.sum())
            shares |= {f"experts/{name}/{index}": float(rows) / total for index, rows in enumerate(share_E) if total}
        return shares

    def memory_notes(self) -> list[str]:
        """Sentences about tables that are not in the memory that one would expect."""
        layouts, device = cast(SparseTables, self.ranker.tables).layouts, self.model.device.type
        return list(memory_notes(self.model.plan, layouts, self.ranker.config, device))

    def task_weights(self) -> dict[str, float]:
        """The learned weights of the losses of tasks; empty if they are fixed."""
        learned = self.ranker.task_weights
        if learned is None:
            return {}
        return dict(
            zip((f"task_weights/{t}" for t in self.ranker.schema.tasks), learned.weights().tolist(), strict=True)
        )

    def tensors(self) -> Tensors:
        """All tensors of a checkpoint, by name."""
        tensors = self.model_tensors() | self._fused_state()
        for name, parameter in self._unfused.items():
            for optimizer in self._optimizers:
                for key, value in optimizer.state.get(parameter, {}).items():
                    tensors[f"{OPTIMIZER}{name}.{key}"] = value.reshape(1) if value.dim() == 0 else value
        for name, value in _leaves(self.levers):
            if isinstance(value, Tensor):
                tensors[name] = value
        if self._average is not None:
            self.swap_average()
            tensors |= {EMA + name.removeprefix(MODEL): copied(t) for name, t in self.model_tensors().items()}
            self.swap_average()
        return tensors

    def model_tensors(self) -> Tensors:
        """The ranker's parameters and buffers; writing to them before the next step changes the ranker."""
        settle_caches(self.ranker)
        return {MODEL + name: tensor for name, tensor in self.model.state_dict().items()}

    def numbers(self) -> dict[str, Any]:
        """The part of the levers' state that is not tensors, as JSON."""
        numbers = {name: value for name, value in _leaves(self.levers) if not isinstance(value, Tensor)}
        if self._average is not None:
            numbers["ema_updates"] = self._average.updates
        return numbers

    def load(self, path: Path) -> dict[str, Any]:
        """Load everything from a checkpoint, at any number of ranks and sharding; return its JSON state."""
        if self._decay is not None:
            load_checkpoint(path, self._named(EMA), verify=False)
            self._average = AveragedWeights(self._live(), self._decay)
        stored = stored_tensors(path)
        unfused: dict[str, Tensor] = {}
        levers: dict[str, Tensor] = {}
        tensors = self.model_tensors() | self._fused_state()
        for name, entry in stored.items():
            if name.startswith((OPTIMIZER, LEVER)) and name not in tensors:
                target = unfused if name.startswith(OPTIMIZER) else levers
                target[name] = torch.empty(entry.size, dtype=entry.properties.dtype)
        state = load_checkpoint(path, tensors | unfused | levers)
        self._load_unfused(unfused)
        self._load_levers(levers, state["numbers"])
        if self._average is not None:
            self._average.updates = state["numbers"]["ema_updates"]
        return state

    def load_final(self, path: Path) -> None:
        """Load the final weights (the averaged ones, if there are any) and the levers' state of a checkpoint."""
        stored = stored_tensors(path)
        levers = {
            name: torch.empty(entry.size, dtype=entry.properties.dtype)
            for name, entry in stored.items()
            if name.startswith(LEVER)
        }
        state = load_checkpoint(path, self._named(MODEL if self._decay is None else EMA) | levers)
        self._load_levers(levers, state["numbers"])

    def _named(self, prefix: str) -> Tensors:
        return {prefix + name.removeprefix(MODEL): tensor for name, tensor in self.model_tensors().items()}

    def _live(self) -> dict[str, Tensor]:
        """Views of every weight that this process updates, and of running statistics."""
        if self.model.device.type == "cuda":
            settle_caches(self.ranker)
        return self._views

    @cached_property
    def _views(self) -> dict[str, Tensor]:
        """The views of :meth:`_live`: all weights are changed in place, so that they are found once."""
        shards = {f"{s.table}@{s.row_offset},{s.col_offset}": s.weight for s in local_rows(self.ranker)}
        dense = self.ranker.dense_state()
        return {name: tensor for name, tensor in dense.items() if tensor.is_floating_point()} | shards

    def _fused_state(self) -> Tensors:
        state: Mapping[str, Mapping[str, Any]] = self._fused.state_dict()["state"]
        return {f"{OPTIMIZER}{name}.{key}": value for name, entry in state.items() for key, value in entry.items()}

    def _load_unfused(self, loaded: Mapping[str, Tensor]) -> None:
        owners: dict[nn.Parameter, tuple[torch.optim.Optimizer, bool]] = {
            parameter: (optimizer, bool(group.get("fused") or group.get("capturable")))
            for optimizer in self._optimizers
            for group in optimizer.param_groups
            for parameter in group["params"]
        }
        for name, value in loaded.items():
            parameter_name, _, key = name.removeprefix(OPTIMIZER).rpartition(".")
            parameter = self._unfused.get(parameter_name)
            if parameter is not None:
                optimizer, counts_on_device = owners[parameter]
                if key == "step":
                    placed = value.reshape(()).to(parameter.device if counts_on_device else "cpu")
                else:
                    placed = place_like(parameter, value)
                optimizer.state[parameter][key] = placed

    def _load_levers(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
        states: dict[str, dict[str, Any]] = {lever.name: {} for lever in self.levers}
        for name, value in (dict(numbers) | dict(tensors)).items():
            if name.startswith(LEVER):
                owner, *path = [unquote(part) for part in name.removeprefix(LEVER).split("/")]
                target = states[owner]
                for key in path[:-1]:
                    target = target.setdefault(key, {})
                target[path[-1]] = value
        for lever in self.levers:
            lever.load_state_dict(states[lever.name])


def build_state(config: ExperimentConfig, schema: Schema, device: torch.device) -> ModelState:
    """The model of ``config``, with random weights, sharded over the ranks.

    Raises:
        UserError: The config combines levers with expert parallelism.
    """
    torch.manual_seed(config.seed)
    levers = build_levers(config.sparsity)
    if levers and config.model.tower.shards_experts():
        raise UserError(
            "model.tower.expert_parallel leaves no rank with whole experts, which levers need: set it to false."
        )
    ranker = Ranker(config.model, schema, SparseTables(schema, config.model, device=torch.device("meta")))
    for lever in levers:
        lever.build(ranker)
    return ModelState(shard(ranker, config.train.tables, device, seed=config.seed), levers, config.train)


def _leaves(levers: Sequence[Lever]) -> Iterator[tuple[str, Any]]:
    """Every tensor and number in the levers' state, by a name that says where it belongs."""

    def walk(prefix: str, state: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
        for key, value in state.items():
            name = f"{prefix}/{quote(str(key), safe='')}"
            if isinstance(value, Mapping):
                yield from walk(name, value)
            else:
                yield name, value

    for lever in levers:
        yield from walk(LEVER + lever.name, lever.state_dict())


def copied(tensor: Any) -> Any:
    """A copy with the same sharding as ``tensor``."""
    if not isinstance(tensor, ShardedTensor):
        return tensor.detach().clone()
    shards = [Shard(shard.tensor.detach().clone(), shard.metadata) for shard in tensor.local_shards()]
    return ShardedTensor._init_from_local_shards_and_global_metadata(
        shards, tensor.metadata(), process_group=tensor._process_group
    )
