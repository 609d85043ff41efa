"""What a training step minimises: the losses of the tasks, and what the ranker and the levers add to them.

Letters: B rows of a batch, T tasks.
"""

import numpy as np
import torch
import xxhash
from torch import Tensor

from data_pipelines.batch import Batch, Schema
from data_pipelines.dataset.dataset import Dataset
from data_pipelines.names import POSITIVE
from models.layers.heads import task_losses
from models.layers.losses import loss_of_labelled
from models.tables.id_changes import IdChanges
from models.tables.unknown_ids import UnknownIds
from recsys.config.experiment import TrainConfig
from recsys.runs.processes import computes_bf16
from recsys.training.model_state import ModelState


class Objective:
    """The loss of a batch.

    Args:
        config: Precision, the kind of loss, and the share of ids that are read as unknown.
        dataset: Its tasks, with their kinds and weights, and the mean weight of the rows of its train split.
        schema: The encoded features of the batches.
        device: Where the ranker is.
    """

    def __init__(self, config: TrainConfig, dataset: Dataset, schema: Schema, device: torch.device) -> None:
        tasks = dataset.config.tasks.values()
        self._kinds = [task.kind for task in tasks]
        compares = config.loss.needs_lists and dataset.config.drawing is not None  # only `positive` differs in a list
        self._replaced = [
            task.kind in config.loss.tasks and (not compares or task.column == POSITIVE) for task in tasks
        ]
        self._weights_T = torch.tensor([task.weight for task in tasks], device=device)
        means = [_mean_weight(dataset, name) for name in dataset.config.tasks]
        self._mean_T = torch.tensor(means, dtype=torch.float32, device=device)
        self._loss = config.loss
        self._unknown = UnknownIds(config.unknown, schema)
        self._device = device
        self._half = config.precision == "bf16" or (config.precision == "auto" and computes_bf16(device))

    def loss(self, state: ModelState, batch: Batch) -> Tensor:
        """The scalar loss of ``batch``: weighted task losses, the balance of experts, and the levers' penalties."""
        batch = batch.to(self._device)
        assert batch.labels is not None
        ids = IdChanges(batch)
        self._unknown(ids)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._half):
            logits_BT = batch.of_sample(state.model(ids))
        weights_BT = None if batch.weights is None else batch.weights / self._mean_T
        losses_T = task_losses(logits_BT, batch.labels, self._kinds, weights_BT)
        if any(self._replaced):
            losses_T = self._with_replaced(losses_T, logits_BT, batch, weights_BT)
        loss = losses_T @ self._weights_T
        for extra in (state.ranker.auxiliary_loss(), *(lever.loss(state.ranker) for lever in state.levers)):
            if extra is not None:
                loss = loss + extra
        return loss

    def _with_replaced(self, losses_T: Tensor, logits_BT: Tensor, batch: Batch, weights_BT: Tensor | None) -> Tensor:
        """``losses_T``, with the configured loss for the tasks that it supports."""
        assert batch.labels is not None
        lists_B = batch.lists if self._loss.needs_lists else None
        losses = list(losses_T)
        for t, replaced in enumerate(self._replaced):
            if replaced:
                weights_B = None if weights_BT is None else weights_BT[:, t]
                losses[t] = loss_of_labelled(self._loss, logits_BT[:, t], batch.labels[:, t], lists_B, weights_B)
        return torch.stack(losses)


def _mean_weight(dataset: Dataset, task: str) -> float:
    """The mean weight of labelled rows of the train split, so that weights do not change the size of steps."""
    weights_N = dataset.weights("train", task)
    if weights_N is None:
        return 1.0
    labels_N = dataset.labels("train")[:, dataset.schema.tasks.index(task)]
    return float(weights_N[~np.isnan(labels_N)].mean())


def step_seed(seed: int, step: int, rank: int) -> int:
    """The seed of everything random in one step of one rank."""
    return xxhash.xxh3_64_intdigest(f"{seed}/{step}/{rank}".encode()) >> 1
