"""The training loop: one process or many, resumable at any step to the same weights.

Everything random is a function of (seed, step, rank), so a checkpoint needs no random state. Letters: T tasks.
"""

import json
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import xxhash
from torch import Tensor

from data_pipelines.batch import Batch
from data_pipelines.dataset.dataset import Dataset
from data_pipelines.dataset.loader import Loader
from data_pipelines.disk.object_store import fetched
from data_pipelines.disk.storage import intact
from data_pipelines.errors import UserError
from data_pipelines.locations import expand
from models.layers.heads import task_losses
from models.ranker import Ranker
from models.sharding.sharding import shard
from models.sparsity.config import build_levers
from models.tables.id_changes import IdChanges
from models.tables.lookup import SparseTables
from models.tables.unknown_ids import UnknownIds
from recsys.config.experiment import ExperimentConfig, chosen_features
from recsys.evaluation.evaluate import TaskMetrics, check_monitor, monitored, predict, task_metrics, users_of
from recsys.runs.checkpoints import FINAL, step_name
from recsys.runs.processes import Processes, process_group
from recsys.runs.run import Run, claim_run, finished_meta, run_at
from recsys.training.checkpoint_writer import CheckpointWriter
from recsys.training.faults import DivergedError, diverged, memory_guard, save_batch
from recsys.training.model_state import ModelState
from recsys.training.optimizers import schedule_factor
from recsys.training.svd_init import start_tables
from recsys.training.tracking import Tracker
from recsys.training.warm_start import start_from_run

LOG_EVERY = 50
"""Steps between entries of the training loss."""

Report = Callable[[int, str], None]
Watch = Callable[[int, float], None]
Stopped = Literal["patience", "epochs"]


class InterruptedTrainingError(Exception):
    """SIGTERM or SIGINT: the run is saved and can be resumed."""


@dataclass(frozen=True)
class Result:
    """How a training ended.

    Attributes:
        steps: Done in all; ``best_step`` is the one whose weights were kept.
        stopped: By early stop (``patience``), or after all ``epochs``.
        valid: Metrics of the final weights by task; empty without a valid split.
        value: The best monitored value; minus infinity if none was measured.
        samples_per_s: Rows trained on a second by all ranks, evaluation and checkpoints left out.
    """

    run: Path | str
    steps: int
    best_step: int
    stopped: Stopped
    valid: TaskMetrics
    value: float
    seconds: float
    samples_per_s: float


@dataclass
class _Position:
    """How far a training is: what a checkpoint holds beside tensors and the loader's position.

    ``losses`` are those of the steps that no entry of the log has yet.
    """

    step: int = 0
    epoch: int = 0
    best_step: int = 0
    best_value: float = float("-inf")
    worse: int = 0
    loss_mean: float = 0.0
    losses: list[float] = field(default_factory=list)


def train(
    config: ExperimentConfig,
    dataset: Dataset,
    run: Path | str,
    *,
    resume: bool = False,
    report: Report | None = None,
    watch: Watch | None = None,
) -> Result:
    """Train a ranker on ``dataset`` and leave a run directory; under ``torchrun`` every rank calls this.

    Args:
        run: A folder that all ranks see, or an address at an object store.
        resume: Go on from the last checkpoint of ``run`` to the same weights as without the interruption; start
            from the beginning if there is none. A finished run is left as it is.
        report: Called after every step with the rows it took (of all ranks) and a note.
        watch: Called after every evaluation with the step and the monitored value; what it raises ends the training.

    Raises:
        UserError: The config does not fit the data, ``run`` exists, or memory ran out.
        DivergedError: The loss is no number, or has exploded; the batch is saved.
        InterruptedTrainingError: SIGTERM or SIGINT came; a checkpoint was written.
    """
    place = run_at(run)
    if resume and (finished := finished_meta(place, config)):
        return Result(**(finished["result"] | {"run": run}))
    with process_group() as processes, memory_guard(config.train.batch_size):
        return Result(run=run, **_Training(config, dataset, place, processes, report, watch).complete(resume=resume))


class _Training:
    def __init__(
        self,
        config: ExperimentConfig,
        dataset: Dataset,
        run: Run,
        processes: Processes,
        report: Report | None,
        watch: Watch | None,
    ) -> None:
        self.config, self.dataset, self.run, self.processes = config, dataset, run, processes
        self.report = report or (lambda rows, note: None)
        self.watch = watch or (lambda step, value: None)
        self.features = chosen_features(config, dataset)
        self.loader = self._loader("train", config.train.batch_size, shuffle=True)
        self.unknown = UnknownIds(config.train.unknown, self.loader.schema)
        tasks = dataset.config.tasks.values()
        self.kinds = [task.kind for task in tasks]
        check_monitor(config.train.monitor, dataset)
        self.task_weights_T = torch.tensor([task.weight for task in tasks], device=processes.device)
        torch.manual_seed(config.seed)
        self.levers = build_levers(config.sparsity)
        if self.levers and config.model.tower.shards_experts():
            raise UserError(
                "model.tower.expert_parallel leaves no rank with whole experts, which levers need: set it to false."
            )
        ranker = Ranker(
            config.model,
            self.loader.schema,
            SparseTables(self.loader.schema, config.model, device=torch.device("meta")),
        )
        for lever in self.levers:
            lever.build(ranker)
        sharded = shard(ranker, config.train.tables, processes.device, seed=config.seed)
        self.state = ModelState(sharded, self.levers, config.train)
        self.total_steps = config.train.epochs * len(self.loader)
        self.position = _Position()
        self.valid: TaskMetrics = {}
        self.tracker: Tracker | None = None
        settings = config.train
        self.writer = CheckpointWriter(run, processes, keep=settings.keep_checkpoints, aside=settings.checkpoint_aside)
        self.rows, self.seconds = 0, 0.0

    def _loader(self, split: str, batch_size: int, *, shuffle: bool = False) -> Loader:
        return Loader(
            self.dataset,
            split,
            batch_size=batch_size,
            shuffle=shuffle,
            seed=self.config.seed,
            rank=self.processes.rank,
            world_size=self.processes.world_size,
            features=self.features,
            threads=self.config.train.loader_threads,
        )

    def complete(self, *, resume: bool) -> dict[str, Any]:
        """Train to the end; the fields of the result, but where the run lies."""
        began = time.perf_counter()
        resume_step = self._open_run(resume)
        if resume_step is None:
            self._start()
        for lever in self.levers:
            lever.start(self.state.ranker, self.total_steps)
        with ExitStack() as stack:
            stack.enter_context(self.writer)
            if self.processes.is_main:
                parameters = self.config.model_dump(mode="json", exclude={"data"})
                mlflow = self.config.train.mlflow
                self.tracker = stack.enter_context(
                    Tracker(self.run.folder, resume_step=resume_step, mlflow=mlflow, parameters=parameters)
                )
            stopped = self._fit()
            self._finish()
        result = {
            "steps": self.position.step,
            "best_step": self.position.best_step,
            "stopped": stopped,
            "valid": self.valid,
            "value": self.position.best_value,
            "seconds": time.perf_counter() - began,
            "samples_per_s": self.rows / self.seconds if self.seconds else float("nan"),
        }
        if self.processes.is_main:
            self.run.seal(self._about() | {"result": result})
        self.processes.barrier()
        return result

    def _start(self) -> None:
        """Weights before the first step, where they are not to be random."""
        start, schema = self.config.train.start, self.loader.schema
        if start not in ("random", "svd"):
            start_from_run(self.state, fetched(expand(start)), self.dataset)
            return
        if start == "svd":
            start_tables(self.state.model, self.dataset, schema.feature_names)
        if schema.dense:
            numbers = [feature.name for feature in schema.dense]
            parts = Loader(self.dataset, "train", batch_size=1 << 16, features=numbers)
            self.state.ranker.standardize.fit(part.dense for part in parts)

    def _open_run(self, resume: bool) -> int | None:
        """Make the run's folder, or go on in it; the step that it was resumed at.

        Rank 0 looks and tells the others, who may come when its folder is already there.
        """
        found: dict[str, Any] = {}
        if self.processes.is_main:
            try:
                found = {"step": claim_run(self.run, self.config, self.loader.schema, resume=resume)}
            except UserError as error:
                found = {"refused": str(error)}
        found = json.loads(self.processes.broadcast(json.dumps(found)))
        if "refused" in found:
            raise UserError(found["refused"])
        if found["step"] is None:
            return None
        self._restore(self.run.checkpoint(step_name(found["step"])))
        return self.position.step

    def _restore(self, path: Path) -> None:
        state = self.state.load(path)
        if state["dataset"] != self.dataset.manifest.fingerprint:
            raise UserError(f"{self.dataset.path} is not the data set that {self.run} was started with: give that one.")
        with intact(path):
            self.position = _Position(**state["position"])
            self.loader.load_state_dict(state["loader"])

    def _about(self) -> dict[str, object]:
        return {
            "name": self.config.name,
            "seed": self.config.seed,
            "dataset": str(self.dataset.path.resolve()),
            "dataset_fingerprint": self.dataset.manifest.fingerprint,
        }

    def _fit(self) -> Stopped:
        position, settings = self.position, self.config.train
        while position.epoch < settings.epochs:
            for batch in self.loader:
                self._step(batch)
                if settings.evaluate_every and position.step % settings.evaluate_every == 0:
                    self._evaluate()
                if self.processes.stop_requested:
                    self._save()
                    raise InterruptedTrainingError(f"stopped at step {position.step}; go on with --resume")
                if position.step % settings.checkpoint_every == 0:
                    self._save()
                if position.worse >= settings.patience:
                    return "patience"
            position.epoch += 1
            if not settings.evaluate_every:
                self._evaluate()
            if position.worse >= settings.patience:
                return "patience"
        return "epochs"

    def _step(self, batch: Batch) -> None:
        began = time.perf_counter()
        position = self.position
        torch.manual_seed(_seed(self.config.seed, position.step, self.processes.rank))
        schedule = self.config.train.schedule
        self.state.scale_rates(schedule_factor(schedule.kind, position.step, schedule.warmup_steps, self.total_steps))
        loss = self._loss(batch)
        values = torch.tensor([float(loss.detach()), float(self.processes.stop_requested)], dtype=torch.float64)
        mean_loss, stops = self.processes.mean(values).tolist()
        self.processes.stop_requested = stops > 0
        if diverged(mean_loss, position.loss_mean):
            path = self.run.folder / f"failed-batch-rank{self.processes.rank}.safetensors"
            save_batch(batch, path)
            raise DivergedError(
                f"the loss became {mean_loss:.4g} at step {position.step}: the batch is saved in {path}; lower "
                "train.dense.learning_rate or train.tables.learning_rate, or set train.dense.clip_norm."
            )
        self.state.update(loss, position.step)
        position.step += 1
        position.loss_mean += (mean_loss - position.loss_mean) / min(position.step, 100)
        rows = len(batch) * self.processes.world_size
        self.rows, self.seconds = self.rows + rows, self.seconds + time.perf_counter() - began
        position.losses.append(mean_loss)
        if position.step % LOG_EVERY == 0:
            recent = sum(position.losses) / len(position.losses)
            self._log("train", {"loss": recent, "samples_per_s": self.rows / self.seconds})
            position.losses.clear()
        self.report(rows, f"epoch {position.epoch + 1} loss {position.loss_mean:.4f}")

    def _loss(self, batch: Batch) -> Tensor:
        device = self.processes.device
        batch = batch.to(device)
        assert batch.labels is not None
        ids = IdChanges(batch)
        self.unknown(ids)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.config.train.precision == "bf16"):
            logits_BT = self.state.model(ids)
        loss = task_losses(logits_BT, batch.labels, self.kinds) @ self.task_weights_T
        ranker = self.state.ranker
        for extra in (ranker.auxiliary_loss(), *(lever.loss(ranker) for lever in self.levers)):
            if extra is not None:
                loss = loss + extra
        return loss

    def _evaluate(self) -> None:
        """Measure the valid split, and save the weights if they are the best so far."""
        self.state.swap_average()
        tasks = self._measure_valid()
        self.state.swap_average()
        position = self.position
        self._log("train", self._expert_shares())
        if not tasks or not all(lever.settled(position.step) for lever in self.levers):
            return
        value = monitored(self.config.train.monitor, tasks)
        if value > position.best_value:
            position.best_value, position.best_step, position.worse = value, position.step, 0
            self._save()
        else:
            position.worse += 1
        self.watch(position.step, value)

    def _measure_valid(self) -> TaskMetrics:
        """Metrics of the valid split by task, the same on every rank; empty without valid rows."""
        if not self.dataset.splits.get("valid"):
            return {}
        loader = self._loader("valid", self.config.train.eval_batch_size)
        rows, logits_NT = predict(self.state.model, loader, self.processes.device)
        rows, logits_NT = self.processes.gather(rows), self.processes.gather(logits_NT)
        logits, labels = logits_NT[rows.argsort()].numpy(), self.dataset.labels("valid")
        users = users_of(self.dataset, "valid")
        names = self.loader.schema.tasks
        tasks = {
            name: task_metrics(kind, labels[:, index], logits[:, index], users)
            for index, (name, kind) in enumerate(zip(names, self.kinds, strict=True))
        }
        for name, values in tasks.items():
            self._log("valid", {f"{name}/{metric}": value for metric, value in values.items()})
        if self.tracker is not None:
            self.tracker.flush()
        return tasks

    def _expert_shares(self) -> dict[str, float]:
        """Share of the rows that each expert was given since the last evaluation, over all ranks."""
        shares: dict[str, float] = {}
        for name, tokens_E in self.state.ranker.tokens_per_expert(reset=True).items():
            share_E = self.processes.mean(tokens_E.double().cpu())
            total = float(share_E.sum())
            shares |= {f"experts/{name}/{index}": float(rows) / total for index, rows in enumerate(share_E) if total}
        return shares

    def _log(self, split: str, values: dict[str, float]) -> None:
        if self.tracker is not None:
            self.tracker.log(self.position.step, self.position.epoch, split, values)

    def _save(self) -> None:
        """Write a checkpoint of this step."""
        if self.tracker is not None:
            self.tracker.flush()
        state = {
            "step": self.position.step,
            "position": asdict(self.position),
            "loader": self.loader.state_dict(),
            "dataset": self.dataset.manifest.fingerprint,
            "numbers": self.state.numbers(),
        }
        name = step_name(self.position.step)
        self.writer.save(name, self.state.tensors(), state, best=self.position.best_step)

    def _finish(self) -> None:
        """Keep the best weights (the last ones, if nothing was measured) as the run's final checkpoint."""
        if self.position.best_value == float("-inf"):
            self.position.best_step = self.position.step
            self._save()
        self.writer.wait()
        self.state.load_final(self.run.checkpoint(step_name(self.position.best_step)))
        for lever in self.levers:
            lever.finish(self.state.ranker)
        self.valid = self._measure_valid()
        state = {"step": self.position.best_step, "dataset": self.dataset.manifest.fingerprint}
        self.writer.save(FINAL, self.state.model_tensors(), state)


def _seed(*parts: int) -> int:
    return xxhash.xxh3_64_intdigest("/".join(map(str, parts)).encode()) >> 1
