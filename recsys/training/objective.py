"""What a training step minimises: the losses of the tasks, and what the ranker and the levers add to them.

Letters: B rows of a batch, T tasks.
"""

from collections.abc import Callable

import torch
import xxhash
from torch import Tensor

from data_pipelines.batch import Batch, Schema
from data_pipelines.dataset.dataset import Dataset
from data_pipelines.names import POSITIVE
from models.layers.heads import task_losses
from models.layers.losses import loss_of_labelled
from models.layers.outcomes.task_weights import likelihood_factors
from models.products import computes_bf16
from models.ranker import Ranker
from models.tables.id_changes import IdChanges
from models.tables.unknown_ids import UnknownIds
from recsys.config.experiment import TrainConfig
from recsys.training.device.captured import CapturedLoss, may_capture
from recsys.training.model_state import ModelState


class Objective:
    """The loss of a batch.

    Args:
        config: Precision, the kind of loss, and the share of ids that are read as unknown.
        dataset: Its tasks, with their kinds and weights, and the mean weight of the rows of its train split.
        schema: The encoded features of the batches.
        state: The ranker and its levers.
        device: Where the ranker is.
        before_capture: Waits until no other thread uses the GPU.
    """

    def __init__(
        self,
        config: TrainConfig,
        dataset: Dataset,
        schema: Schema,
        state: ModelState,
        device: torch.device,
        *,
        before_capture: Callable[[], None],
    ) -> None:
        tasks = dataset.config.tasks.values()
        self._kinds = [task.kind for task in tasks]
        compares = config.loss.needs_lists and dataset.config.drawing is not None  # only `positive` differs in a list
        self._replaced = [
            task.kind in config.loss.tasks and (not compares or task.column == POSITIVE) for task in tasks
        ]
        self._weighted = config.weights
        self._weights_T = torch.tensor([task.weight for task in tasks], device=device)
        self._factors_T = likelihood_factors(self._kinds).to(device)
        # Losses are divided by the mean weight, so that weights do not change the size of steps.
        means = [dataset.summary.tasks[name].mean_weight for name in dataset.config.tasks]
        self._mean_T = torch.tensor(means, dtype=torch.float32, device=device)
        self._loss = config.loss
        self._unknown = UnknownIds(config.unknown, schema)
        self._state, self._device = state, device
        self._half = config.precision == "bf16" or (config.precision == "auto" and computes_bf16(device))
        self._captured: CapturedLoss | None = None
        # Losses that compare rows choose rows by their labels, so their sizes change from batch to batch.
        may = config.cuda_graphs and device.type == "cuda" and not any(self._replaced)
        if may and may_capture(state.ranker, state.levers, half=self._half):
            self._captured = CapturedLoss(
                state.ranker, self._tail, rows=config.batch_size, half=self._half, before=before_capture
            )

    def loss(self, batch: Batch) -> Tensor:
        """The scalar loss of ``batch``: weighted task losses, the balance of experts, and the levers' penalties."""
        batch = batch.to(self._device)
        assert batch.labels is not None
        ids, state = IdChanges(batch), self._state
        self._unknown(ids)
        if self._captured is not None and self._captured.takes(batch):
            with self._autocast():
                looked_up = state.ranker.look_up(ids)
            loss = self._captured.loss(looked_up, batch)
            if loss is not None:
                return loss
            with self._autocast():
                logits_BT = state.ranker.rank(*looked_up)
        else:
            with self._autocast():
                logits_BT = state.model(ids)
        loss = self._tail(state.ranker, logits_BT, batch.labels, batch.weights, batch.log_q, lists_B=batch.lists)
        for lever in state.levers:
            extra = lever.loss(state.ranker)
            if extra is not None:
                loss = loss + extra
        return loss

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self._device.type, torch.bfloat16, enabled=self._half)

    def _tail(
        self,
        ranker: Ranker,
        logits_BT: Tensor,
        labels_BT: Tensor,
        weights_BT: Tensor | None,
        log_q_BT: Tensor | None,
        *,
        lists_B: Tensor | None = None,
    ) -> Tensor:
        """The weighted sum of the task losses, and the balance of experts."""
        if log_q_BT is not None:
            logits_BT = logits_BT - log_q_BT
        weights_BT = None if weights_BT is None or not self._weighted else weights_BT / self._mean_T
        losses_T = task_losses(logits_BT, labels_BT, self._kinds, weights_BT, ordinal=ranker.ordinal)
        if any(self._replaced):
            losses_T = self._with_replaced(losses_T, logits_BT, labels_BT, weights_BT, lists_B)
        if ranker.task_weights is not None:
            losses_T = ranker.task_weights(losses_T, self._factors_T)
        loss, extra = losses_T @ self._weights_T, ranker.auxiliary_loss()
        return loss if extra is None else loss + extra

    def _with_replaced(
        self,
        losses_T: Tensor,
        logits_BT: Tensor,
        labels_BT: Tensor,
        weights_BT: Tensor | None,
        lists_B: Tensor | None,
    ) -> Tensor:
        """``losses_T``, with the configured loss for the tasks that it supports."""
        lists_B = lists_B if self._loss.needs_lists else None
        losses = list(losses_T)
        for t, replaced in enumerate(self._replaced):
            if replaced:
                weights_B = None if weights_BT is None else weights_BT[:, t]
                losses[t] = loss_of_labelled(self._loss, logits_BT[:, t], labels_BT[:, t], lists_B, weights_B)
        return torch.stack(losses)


def seed_step(seed: int, step: int, rank: int, device: torch.device) -> None:
    """Seed everything random in one step of one rank.

    ``torch.manual_seed`` would also seed devices that Torch was not built for, which takes a twentieth of a small step.
    """
    value = xxhash.xxh3_64_intdigest(f"{seed}/{step}/{rank}".encode()) >> 1
    torch.default_generator.manual_seed(value)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(value)
