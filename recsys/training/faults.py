"""Failures of a training that the user can fix: diverged losses, exhausted memory."""

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import torch
from safetensors.torch import save_file

from data_pipelines.batch import Batch
from data_pipelines.errors import UserError

EXPLODED = 1000.0
"""A loss this many times its running mean (or 1, if that is more) has diverged."""

_ALLOCATION = re.compile(r"[Tt]ried to allocate (?:([\d.]+) ([KMGT]?i?B)|(\d+) bytes)")

_FREE = re.compile(r"of which ([\d.]+) ([KMGT]?i?B) is free")
"""What Torch says about a GPU of which too little memory is free."""


class DivergedError(UserError):
    """Training cannot continue: the loss is NaN or infinite, or has diverged."""


class InterruptedTrainingError(Exception):
    """SIGTERM or SIGINT: the run is saved and can be resumed."""


def diverged(loss: float, running_mean: float | None) -> bool:
    """Whether training cannot continue from this loss.

    Args:
        running_mean: Of the losses before it; ``None`` for the first, which may be of any size: labels may be amounts.
    """
    return not math.isfinite(loss) or (running_mean is not None and loss > EXPLODED * max(1.0, running_mean))


def diverged_error(batch: Batch, path: Path, *, loss: float, step: int) -> DivergedError:
    """Save ``batch`` to ``path``; returns the error to raise."""
    save_batch(batch, path)
    return DivergedError(
        f"the loss became {loss:.4g} at step {step}: the batch is saved in {path}; lower train.dense.learning_rate or "
        "train.tables.learning_rate, or set train.dense.clip_norm."
    )


def save_batch(batch: Batch, path: Path) -> None:
    """Write ``batch`` as safetensors: values and lengths of each sparse feature, ``dense``, ``labels``,
    ``weights``, ``rows``."""
    tensors = {"dense": batch.dense, "rows": batch.rows}
    if batch.labels is not None:
        tensors["labels"] = batch.labels
    if batch.weights is not None:
        tensors["weights"] = batch.weights
    for prefix, bags in (("sparse", batch.sparse), ("weighted", batch.weighted)):
        for key, feature in bags.to_dict().items() if bags is not None else ():
            tensors |= {f"{prefix}.{key}.values": feature.values(), f"{prefix}.{key}.lengths": feature.lengths()}
            if feature.weights_or_none() is not None:
                tensors[f"{prefix}.{key}.weights"] = feature.weights()
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}, path)


@contextmanager
def memory_guard(batch_size: int) -> Iterator[None]:
    """Turn a failed allocation into one sentence that says its size, and what to lower."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        text = str(error)
        failed = isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in text
        if not failed:
            raise
        found = _ALLOCATION.search(text)
        asked = "more"
        if found is not None:
            asked = f"{int(found[3]) / 2**30:.1f} GiB" if found[3] else f"{found[1]} {found[2]}"
        left, elsewhere = f"{psutil.virtual_memory().available / 2**30:.1f} GiB of main memory free", ""
        if isinstance(error, torch.OutOfMemoryError):
            free = _FREE.search(text)
            left = f"{free[1]} {free[2]} of the GPU's memory free" if free else "too little of the GPU's memory free"
            elsewhere = "set model.tables.<table>.memory of the largest table to cached or host, "
        raise UserError(
            f"out of memory: {asked} asked for, {left}; lower train.batch_size (now {batch_size}), model.dim or the "
            f"max_size of the largest vocabulary, {elsewhere}or use more ranks."
        ) from None
