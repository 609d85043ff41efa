"""The trials of a study on any engine: running those that are missing, and estimating the time of one."""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from data_pipelines.dataset.dataset import Dataset
from recsys.training.train import train
from recsys.trials.engines import Engine
from recsys.trials.execution import execute, experiment
from recsys.trials.trials import Trial, TrialStore

_PROBED_STEPS, _WARM_STEPS = 40, 5
_PROBED_SECONDS = 10.0


@dataclass(frozen=True)
class Workers:
    """An engine that puts finished trials on one data set into a store."""

    dataset: Path
    store: TrialStore
    engine: Engine

    def run(self, trials: Sequence[Trial], done: Callable[[Trial], None] = lambda trial: None) -> None:
        """Run the ``trials`` that the store does not have, in order; ``done`` is called as each one ends.

        Raises:
            UserError: As raised by the training of a trial.
        """
        wanted = list({trial.name: trial for trial in trials if trial not in self.store}.values())
        dataset, folder = self.dataset.resolve(), self.store.folder.resolve()
        for number, _ in self.engine.run(partial(execute, trial, dataset, folder) for trial in wanted):
            done(wanted[number])

    def probe(self, trial: Trial) -> float:
        """Estimated seconds of ``trial``, from its first steps; see :func:`probe`."""
        return next(seconds for _, seconds in self.engine.run([partial(probe, trial, self.dataset.resolve())]))


class _ProbedError(Exception):
    """Enough steps have been timed."""


def probe(trial: Trial, dataset_path: Path) -> float:
    """Estimated seconds of ``trial`` without early stopping, from its first training steps.

    A row that is only scored counts as a third of a training row: a backward pass costs as much as two forward passes.
    """
    torch.set_num_threads(trial.threads)
    dataset = Dataset.open(dataset_path, verify="sizes")
    config = experiment(trial, dataset)
    trained, times = [0], [time.perf_counter()]

    def watch_steps(rows: int, _note: str) -> None:
        trained.append(trained[-1] + rows)
        times.append(time.perf_counter())
        if len(times) > _PROBED_STEPS or times[-1] - times[0] > _PROBED_SECONDS:
            raise _ProbedError

    with TemporaryDirectory() as scratch, suppress(_ProbedError):
        train(config, dataset, Path(scratch) / "run", on_step=watch_steps)
    first = min(_WARM_STEPS, len(times) - 2)
    seconds_per_row = (times[-1] - times[first]) / (trained[-1] - trained[first])
    valid, test = dataset.splits.get("valid", 0), dataset.splits.get("test", 0)
    scored = (config.train.epochs + 2) * valid + test
    return seconds_per_row * (config.train.epochs * dataset.splits["train"] + scored / 3)
