"""Writes checkpoints: at once, or in a thread while training continues."""

import json
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.distributed._shard.sharded_tensor.api import ShardedTensor

from recsys.runs.checkpoints import Tensors
from recsys.runs.processes import Processes
from recsys.runs.run import Run
from recsys.training.model_state import copied

_SPARE = 0.05
"""Share of a GPU's memory that a copy of the state leaves free."""


class CheckpointWriter:
    """Writes a run's checkpoints, one at a time and in order; every rank has one.

    Args:
        keep: Step checkpoints to leave, besides the best.
        aside: Write in a thread, from a copy in memory. A checkpoint has the state at the time it was requested. On a
            GPU whose memory has no room for the copy, it is written at once.
    """

    def __init__(self, run: Run, processes: Processes, *, keep: int, aside: bool) -> None:
        self._run, self._keep = run, keep
        self._processes = processes.apart() if aside else processes
        self._thread = ThreadPoolExecutor(1) if aside else None
        self._pending: Future[None] | None = None

    def save(self, name: str, tensors: Tensors, state: Mapping[str, Any], *, best: int | None = None) -> None:
        """Write a checkpoint; when it is complete, remove step checkpoints that are neither recent nor the best."""
        text = json.dumps(state)
        self.wait()
        if self._thread is None or not self._has_room(tensors):
            self._write(name, tensors, text, best)
            return
        copies = {key: copied(tensor) for key, tensor in tensors.items()}
        done = torch.cuda.current_stream().record_event() if self._on_gpu else None
        self._pending = self._thread.submit(self._write_aside, name, copies, text, best, done)

    @property
    def _on_gpu(self) -> bool:
        return self._processes.device.type == "cuda"

    def _has_room(self, tensors: Tensors) -> bool:
        if not self._on_gpu:
            return True
        free, total = torch.cuda.mem_get_info(self._processes.device)
        return sum(map(_bytes_on_gpu, tensors.values())) <= free - _SPARE * total

    def _write_aside(
        self, name: str, copies: Tensors, state: str, best: int | None, done: torch.cuda.Event | None
    ) -> None:
        """Write from a thread; on a GPU it reads the copies on a stream of its own, so that no step waits for it."""
        if done is None:
            self._write(name, copies, state, best)
            return
        torch.cuda.set_device(self._processes.device)
        with torch.cuda.stream(torch.cuda.Stream()):  # type: ignore[no-untyped-call]
            torch.cuda.current_stream().wait_event(done)
            self._write(name, copies, state, best)
            torch.cuda.current_stream().synchronize()

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


def _bytes_on_gpu(tensor: Tensor | ShardedTensor) -> int:
    shards = [shard.tensor for shard in tensor.local_shards()] if isinstance(tensor, ShardedTensor) else [tensor]
    return sum(shard.numel() * shard.element_size() for shard in shards if shard.is_cuda)
