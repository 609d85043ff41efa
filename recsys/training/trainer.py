"""The training loop: one process or many, resumable at any step to the same weights.

Everything random is a function of (seed, step, rank), so a checkpoint needs no random state. Letters: T tasks.
"""

import math
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

from data_pipelines.batch import Batch
from data_pipelines.dataset.dataset import Dataset
from data_pipelines.dataset.loader import Loader
from data_pipelines.disk.damage import intact
from data_pipelines.errors import UserError
from recsys.config.experiment import ExperimentConfig, chosen_features, resolve_monitor
from recsys.evaluation.evaluate import TaskMetrics
from recsys.runs.checkpoints import FINAL, step_name
from recsys.runs.processes import process_group
from recsys.runs.run import claim_run, run_at
from recsys.training.checkpoint_writer import CheckpointWriter
from recsys.training.device.batches import DeviceBatches
from recsys.training.faults import InterruptedTrainingError
from recsys.training.losses import Losses
from recsys.training.model_state import build_state
from recsys.training.objective import Objective, seed_step
from recsys.training.optimizers import schedule_factor
from recsys.training.results import Result, Stopped, TrainState
from recsys.training.run_log import RunLog
from recsys.training.start.first_weights import set_first_weights
from recsys.training.validation import SPLIT, Validation, check_train_labels

OnStep = Callable[[int, str], None]
OnEval = Callable[[int, float], None]


class Trainer:
    """A training that can be stepped; :func:`recsys.training.train.train` is one call of :meth:`fit`.

    A trainer joins the process group that ``torchrun`` describes, or forms one of a single process, and leaves it when
    it is closed: use it in a ``with`` block. Until then SIGTERM and SIGINT ask for a checkpoint instead of killing.

    Args:
        config, dataset, run, on_step, on_eval: As in :func:`recsys.training.train.train`. The first step makes the
            run's folder.

    Attributes:
        loader: The batches of the current epoch, of this rank.
        state: Ranker, optimizers and levers.
        train_state: Step, epoch, and the best evaluation so far.

    Raises:
        UserError: The config does not fit the data, a task has one class in the train split, or the valid split defines
            no monitored metric.

    Example:
        >>> config, dataset = rs.load_config("experiment.yaml"), rs.Dataset.open(Path("dataset"))
        >>> with rs.Trainer(config, dataset, "stepped") as trainer:
        ...     for batch in trainer.loader:
        ...         loss = trainer.train_step(batch)
        ...     auc = trainer.evaluate()["clicked"]["auc"]
        ...     result = trainer.finish()
        >>> result.steps == len(trainer.loader)
        True
    """

    def __init__(
        self,
        config: ExperimentConfig,
        dataset: Dataset,
        run: Path | str,
        *,
        on_step: OnStep | None = None,
        on_eval: OnEval | None = None,
    ) -> None:
        self.config, self.dataset, self.location = resolve_monitor(config), dataset, run
        self.run = run_at(run)
        self.on_step = on_step or (lambda rows, note: None)
        self.on_eval = on_eval or (lambda step, value: None)
        self.train_state = TrainState()
        self._started, self._began = False, 0.0
        self._open = ExitStack()
        with ExitStack() as stack:
            self.processes = stack.enter_context(process_group(config.train.device, tf32=config.train.tf32))
            self._build()
            self._joined = stack.pop_all()

    def _build(self) -> None:
        config, settings, processes = self.config, self.config.train, self.processes
        self._loader = partial(
            Loader,
            self.dataset,
            seed=config.seed,
            rank=processes.rank,
            world_size=processes.world_size,
            features=chosen_features(config, self.dataset),
            threads=settings.loader_threads,
        )
        self._log = RunLog(is_main=processes.is_main)
        lists, aside = settings.loss.needs_lists, settings.checkpoint_aside
        if aside is None:
            aside = processes.device.type == "cuda"
        self.loader = self._loader(
            "train", batch_size=settings.batch_size, shuffle=True, lists=lists, mix_shards=settings.mix_shards
        )
        self._batches = DeviceBatches(self.loader, processes.device)
        self._losses = Losses(processes, self._log, self.run.folder)
        check_train_labels(self.dataset)
        assert settings.monitor is not None
        self._validation = Validation(self.dataset, settings.monitor, processes, score=self.config.formula)
        self.state = build_state(config, self.loader.schema, processes.device)
        self.total_steps = settings.epochs * len(self.loader)
        self._writer = CheckpointWriter(self.run, processes, keep=settings.keep_checkpoints, aside=aside)
        self._objective = Objective(
            settings,
            self.dataset,
            self.loader.schema,
            self.state,
            processes.device,
            before_capture=self._writer.wait,  # a checkpoint that is written aside is copied from the GPU
        )

    def fit(self, *, resume: bool = False) -> Result:
        """Train to the end: until all epochs are done, or early stopping.

        Args:
            resume: Continue from the last checkpoint of the run, if there is one.

        Raises:
            UserError, DivergedError, InterruptedTrainingError: As :func:`recsys.training.train.train` does.
        """
        self.start(resume=resume)
        return self.finish(self._run_epochs())

    def start(self, *, resume: bool = False) -> None:
        """Make the run's folder and set the first weights, or restore a checkpoint; only the first call does anything.

        Raises:
            UserError: The run exists and is not resumed, or is of another config.
        """
        if self._started:
            return
        self._began = time.perf_counter()
        resume_step = claim_run(self.run, self.config, self.loader.schema, self.processes, resume=resume)
        if resume_step is None:
            set_first_weights(self.state, self.config.train, self.dataset, self.loader.schema)
        else:
            self._restore(self.run.checkpoint(step_name(resume_step)))
        for lever in self.state.levers:
            lever.start(self.state.ranker, self.total_steps)
        self._open.enter_context(self._writer)
        self._log.open(self._open, self.run.folder, self.config, resume_step=resume_step)
        self._started = True
        for note in (*self._validation.notes, *self.state.memory_notes()):
            self._log.note(note)

    def train_step(self, batch: Batch) -> float:
        """One step of all optimizers and levers on ``batch``; the mean loss over the ranks.

        Args:
            batch: Of :attr:`loader`, so that a checkpoint knows which rows are left.

        Raises:
            DivergedError: The loss is NaN or infinite, or has diverged; the batch is saved.
        """
        self._step(batch)
        self._losses.read(self.train_state)
        return self._losses.mean

    def _step(self, batch: Batch) -> None:
        """One step, whose loss is not read yet: on a GPU, reading it would wait for the step to end."""
        self.start()
        state = self.train_state
        self._losses.step_begins()
        seed_step(self.config.seed, state.step, self.processes.rank, self.processes.device)
        schedule = self.config.train.schedule
        self.state.scale_rates(schedule_factor(schedule.kind, state.step, schedule.warmup_steps, self.total_steps))
        loss = self._objective.loss(batch)
        self.state.update(loss, state.step)
        self._losses.add(batch, loss)
        state.step += 1
        self.on_step(len(batch) * self.processes.world_size, f"epoch {state.epoch + 1} loss {state.loss_mean:.4f}")

    def evaluate(self) -> TaskMetrics:
        """Metrics of the valid split by task, with the averaged weights where ``train.ema`` asks for them.

        They are logged, and the same on every rank; empty without valid rows.
        """
        self.start()
        self.state.swap_average()
        tasks = self._measure_valid()
        self.state.swap_average()
        return tasks

    def finish(self, stopped: Stopped = "epochs") -> Result:
        """Make the best weights (the last ones, if nothing was measured) the run's final checkpoint, and seal the run.

        Args:
            stopped: Why the training ended, for the result.
        """
        self.start()
        valid = self._write_final()
        self._note_fetched()
        self._open.close()
        result = Result(
            run=self.location,
            steps=self.train_state.step,
            best_step=self.train_state.best_step,
            stopped=stopped,
            valid=valid,
            value=self.train_state.best_value,
            seconds=time.perf_counter() - self._began,
            samples_per_s=self._log.samples_per_s,
            notes=tuple(self._log.notes),
        )
        if self.processes.is_main:
            about = {
                "name": self.config.name,
                "seed": self.config.seed,
                "dataset": self.dataset.location,
                "dataset_fingerprint": self.dataset.manifest.fingerprint,
                **self.config.extensions_meta(),
            }
            self.run.seal(about | {"result": result.model_dump(mode="json", exclude={"run"})})
        self.processes.barrier()
        return result

    def _note_fetched(self) -> None:
        """Note how many bytes each rank has fetched of a data set that is streamed."""
        if self.dataset.fetched is None:
            return
        ranks = ", ".join(f"{int(fetched):,}" for fetched in self.processes.gather_text(str(self.dataset.fetched)))
        total = sum(entry.bytes for entry in self.dataset.manifest.files.values())
        self._log.note(f"bytes of the data set that each rank fetched: {ranks}, of {total:,}.")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._joined:
            self._open.__exit__(kind, error, traceback)

    def _restore(self, path: Path) -> None:
        state = self.state.load(path)
        if state["dataset"] != self.dataset.manifest.fingerprint:
            raise UserError(f"{self.dataset.path} is not the data set that {self.run} was started with: give that one.")
        with intact(path):
            self.train_state = TrainState.from_checkpoint(state)
            self.loader.load_state_dict(state["loader"])

    def _run_epochs(self) -> Stopped:
        state, settings = self.train_state, self.config.train
        if settings.start == "linear" and state.step == 0:
            self._judge()
        while state.epoch < settings.epochs:
            self.loader.set_epoch(state.epoch)
            for batch in self._batches:
                self._step(batch)
                if state.step % self._losses.read_every == 0:
                    self._losses.read(state)
                if settings.evaluate_every and state.step % settings.evaluate_every == 0:
                    self._judge()
                if self._losses.stop_requested:
                    self._save()
                    raise InterruptedTrainingError(f"stopped at step {state.step}; resume it with --resume")
                if state.step % settings.checkpoint_every == 0:
                    self._save()
                if state.evaluations_without_improvement >= settings.patience:
                    return "patience"
            self._losses.read(state)
            state.epoch += 1
            if not settings.evaluate_every:
                self._judge()
            if state.evaluations_without_improvement >= settings.patience:
                return "patience"
        return "epochs"

    def _judge(self) -> None:
        """Evaluate, and save the weights if they are the best so far."""
        self._losses.read(self.train_state)
        tasks, state = self.evaluate(), self.train_state
        self._log.values(state, "train", self.state.expert_shares(self.processes) | self.state.task_weights())
        if not tasks or not all(lever.settled(state.step) for lever in self.state.levers):
            return
        value = self._validation.monitor.value(tasks)
        if math.isnan(value):
            self._log.note(
                f"the monitored value is NaN at step {state.step}: this evaluation neither counts for early stopping "
                "nor for the best weights."
            )
            return
        if state.best_value is None or value > state.best_value:
            state.best_value, state.best_step, state.evaluations_without_improvement = value, state.step, 0
            self._save()
        else:
            state.evaluations_without_improvement += 1
        self.on_eval(state.step, value)

    def _measure_valid(self) -> TaskMetrics:
        if not self._validation.has_rows:
            return {}
        loader = self._loader(SPLIT, batch_size=self.config.train.eval_batch_size)
        tasks = self._validation.measure(self.state.model, loader)
        for name, values in tasks.items():
            self._log.values(self.train_state, SPLIT, {f"{name}/{metric}": value for metric, value in values.items()})
        self._log.flush()
        return tasks

    def _save(self) -> None:
        """Write a checkpoint of this step."""
        self._losses.read(self.train_state)
        self._log.flush()
        state = self.train_state
        content = {
            "step": state.step,
            "train_state": state.state_dict(),
            "loader": self._batches.state_dict(),
            "dataset": self.dataset.manifest.fingerprint,
            "numbers": self.state.numbers(),
        }
        self._writer.save(step_name(state.step), self.state.tensors(), content, best=state.best_step)

    def _write_final(self) -> TaskMetrics:
        """Write the weights that are kept as the final checkpoint; their metrics."""
        state = self.train_state
        if state.best_value is None:
            state.best_step = state.step
            self._save()
        self._writer.wait()
        if state.best_step != state.step or self.config.train.ema is not None:  # else they are in memory
            self.state.load_final(self.run.checkpoint(step_name(state.best_step)))
        for lever in self.state.levers:
            lever.finish(self.state.ranker)
        valid = self._measure_valid()
        final = {"step": state.best_step, "dataset": self.dataset.manifest.fingerprint}
        self._writer.save(FINAL, self.state.model_tensors(), final)
        return valid
