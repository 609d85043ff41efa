"""The output of a training while it runs: losses and metrics for the tracker, rates, and notes for the user."""

import logging
from contextlib import ExitStack
from pathlib import Path

from recsys.config.experiment import ExperimentConfig
from recsys.training.mlflow_run import MlflowRun
from recsys.training.results import TrainState
from recsys.training.tracking import Tracker

LOG_EVERY = 50
"""Steps between entries of the training loss."""

_log = logging.getLogger(__name__)


class RunLog:
    """Measurements and notes of one process; only rank 0 writes and prints.

    Args:
        is_main: Whether this process is rank 0.

    Attributes:
        notes: All notes so far.
    """

    def __init__(self, *, is_main: bool) -> None:
        self.notes: list[str] = []
        self._is_main = is_main
        self._rows, self._seconds = 0, 0.0
        self._tracker: Tracker | None = None

    def open(self, stack: ExitStack, folder: Path, config: ExperimentConfig, *, resume_step: int | None) -> None:
        """Start to write into ``folder`` until ``stack`` ends."""
        if self._is_main:
            mlflow = None
            if config.train.mlflow is not None:
                parameters = config.model_dump(mode="json", exclude={"data"})
                mlflow = MlflowRun(config.train.mlflow, folder.name, parameters, self.note)
            self._tracker = stack.enter_context(Tracker(folder, resume_step=resume_step, mlflow=mlflow))

    @property
    def samples_per_s(self) -> float:
        """Rows trained per second by all ranks; NaN before the first step."""
        return self._rows / self._seconds if self._seconds else float("nan")

    def step(self, state: TrainState, *, step: int, loss: float, rows: int, seconds: float) -> None:
        """Count a finished step; every ``LOG_EVERY`` steps the mean loss is logged.

        Args:
            state: Holds the losses that are not logged yet.
            step: Number of steps so far, this one included.
            loss: The mean loss over the ranks.
            rows: Rows of all ranks.
            seconds: Duration of the step.
        """
        self._rows, self._seconds = self._rows + rows, self._seconds + seconds
        state.losses.append(loss)
        if step % LOG_EVERY == 0:
            self.values(
                state,
                "train",
                {"loss": sum(state.losses) / len(state.losses), "samples_per_s": self.samples_per_s},
            )
            state.losses.clear()

    def values(self, state: TrainState, split: str, values: dict[str, float]) -> None:
        """Log measurements on ``split``."""
        if self._tracker is not None:
            self._tracker.log(state.step, state.epoch, split, values)

    def note(self, note: str) -> None:
        """Print a note for the user."""
        self.notes.append(note)
        if self._is_main:
            _log.warning("%s", note)

    def flush(self) -> None:
        """Write what was logged."""
        if self._tracker is not None:
            self._tracker.flush()
