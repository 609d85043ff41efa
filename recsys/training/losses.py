"""The losses of steps, read together: on a GPU, reading one waits for its step to end."""

import time
from pathlib import Path

import torch
from torch import Tensor

from data_pipelines.batch import Batch
from recsys.runs.processes import Processes
from recsys.training.faults import diverged, diverged_error
from recsys.training.results import TrainState
from recsys.training.run_log import RunLog

READ_EVERY = 10
"""Steps on a GPU after which their losses are read."""


class Losses:
    """The losses of finished steps that have not been read yet.

    Args:
        processes: The ranks, over which losses are averaged.
        log: Counts and logs every step.
        folder: Where the batch of a diverged step is saved.

    Attributes:
        read_every: Steps after which :meth:`read` is due; 1 on the CPU.
        mean: The last loss that was read, NaN before there is one.
        stop_requested: Whether a signal had reached any rank when losses were last read.
    """

    def __init__(self, processes: Processes, log: RunLog, folder: Path) -> None:
        self.read_every = 1 if processes.device.type == "cpu" else READ_EVERY
        self.mean, self.stop_requested = float("nan"), False
        self._processes, self._log, self._folder = processes, log, folder
        self._unread: list[tuple[Batch, Tensor]] = []
        self._began = 0.0

    def step_begins(self) -> None:
        """Start the clock of the first step that is not read yet."""
        if not self._unread:
            self._began = time.perf_counter()

    def add(self, batch: Batch, loss: Tensor) -> None:
        """Add the loss of a step, and its batch, which is saved if the loss has diverged."""
        self._unread.append((batch, loss.detach()))

    def read(self, state: TrainState) -> None:
        """Check and log the losses since the last call.

        Args:
            state: The state after the last of these steps.

        Raises:
            DivergedError: A loss is NaN or infinite, or has diverged; its batch is saved.
        """
        unread, self._unread = self._unread, []
        losses = torch.stack([loss for _, loss in unread]).cpu().tolist() if unread else []
        values = torch.tensor([*losses, float(self._processes.stop_requested)], dtype=torch.float64)
        *losses, stops = self._processes.mean(values).tolist()
        self.stop_requested = stops > 0
        seconds = (time.perf_counter() - self._began) / max(1, len(unread))
        for step, ((batch, _), loss) in enumerate(zip(unread, losses, strict=True), state.step - len(unread)):
            if diverged(loss, state.loss_mean if step else None):
                path = self._folder / f"failed-batch-rank{self._processes.rank}.safetensors"
                raise diverged_error(batch, path, loss=loss, step=step)
            state.loss_mean += (loss - state.loss_mean) / min(step + 1, 100)
            rows = len(batch) * self._processes.world_size
            self._log.step(state, step=step + 1, loss=loss, rows=rows, seconds=seconds)
            self.mean = loss
