"""Batches of a loader on the training device, each copied while the previous one is trained on."""

from collections.abc import Iterator
from typing import Any

import torch

from data_pipelines.batch import Batch
from data_pipelines.dataset.loader import Loader


class DeviceBatches:
    """The batches of a loader, on a device.

    On a GPU the next batch is copied from page-locked memory on a separate stream. The position in the loader counts
    only batches that were returned, so that a checkpoint loses none of those that are copied ahead.

    Args:
        loader: Gives batches on the CPU.
        device: The device to copy them to.
    """

    def __init__(self, loader: Loader, device: torch.device) -> None:
        self._loader, self._device = loader, device
        self._position: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        """The loader's position after the last batch that was returned."""
        return self._loader.state_dict() if self._position is None else self._position

    def __iter__(self) -> Iterator[Batch]:
        """The rest of the current epoch."""
        if self._device.type != "cuda":
            yield from self._loader
            return
        copies = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        current = torch.cuda.current_stream(self._device)
        ahead: tuple[Batch, torch.cuda.Event, dict[str, Any]] | None = None
        self._position = self._loader.state_dict()
        for batch in self._loader:
            position = self._loader.state_dict()
            with torch.cuda.stream(copies):
                copied = batch.pinned().to(self._device)
            handed, ahead = ahead, (copied, copies.record_event(), position)
            if handed is not None:
                yield self._handed_out(*handed, current)
        if ahead is not None:
            yield self._handed_out(*ahead, current)
        self._position = None

    def _handed_out(
        self, batch: Batch, copied: torch.cuda.Event, position: dict[str, Any], current: torch.cuda.Stream
    ) -> Batch:
        current.wait_event(copied)
        batch.record_stream(current)
        self._position = position
        return batch
