"""Writes checkpoints: at once, or in a thread while training continues."""

import json
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any

from recsys.runs.checkpoints import Tensors
from recsys.runs.processes import Processes
from recsys.runs.run import Run
from recsys.training.model_state import copied


class CheckpointWriter:
    """Writes a run's checkpoints, one at a time and in order; every rank has one.

    Args:
        keep: Step checkpoints to leave, besides the best.
        aside: Write in a thread, from a copy in memory. A checkpoint has the state at the time it was requested.
    """

    def __init__(self, run: Run, processes: Processes, *, keep: int, aside: bool) -> None:
        self._run, self._keep = run, keep
        self._processes = processes.apart() if aside else processes
        self._thread = ThreadPoolExecutor(1) if aside else None
        self._pending: Future[None] | None = None

    def save(self, name: str, tensors: Tensors, state: Mapping[str, Any], *, best: int | None = None) -> None:
        """Write a checkpoint; when it is complete, remove step checkpoints that are neither recent nor the best."""
        text = json.dumps(state)
        if self._thread is None:
            self._write(name, tensors, text, best)
            return
        self.wait()
        copies = {key: copied(tensor) for key, tensor in tensors.items()}
        self._pending = self._thread.submit(self._write, name, copies, text, best)

    def wait(self) -> None:
        """Return when every requested checkpoint is complete.

        Raises:
            UserError: As raised while writing.
        """
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()

    def _write(self, name: str, tensors: Tensors, state: str, best: int | None) -> None:
        self._run.save(name, tensors, state, self._processes)
        if self._processes.is_main and best is not None:
            self._run.keep({*self._run.steps()[-self._keep :], best})

    def __enter__(self) -> "CheckpointWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._thread is not None:
            self._thread.shutdown()
        if error is None:
            self.wait()
