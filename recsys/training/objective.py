"""What a training step minimises: the losses of the tasks, and what the ranker and the levers add to them.

Letters: B rows of a batch, T tasks.
"""

import torch
import xxhash
from torch import Tensor

from data_pipelines.batch import Batch, Schema
from data_pipelines.dataset.dataset import Dataset
from models.layers.heads import task_losses
from models.tables.id_changes import IdChanges
from models.tables.unknown_ids import UnknownIds
from recsys.config.experiment import TrainConfig
from recsys.runs.processes import computes_bf16
from recsys.training.model_state import ModelState


class Objective:
    """The loss of a batch.

    Args:
        config: Precision, and the share of ids that are read as unknown.
        dataset: Its tasks, with their kinds and weights.
        schema: The encoded features of the batches.
        device: Where the ranker is.
    """

    def __init__(self, config: TrainConfig, dataset: Dataset, schema: Schema, device: torch.device) -> None:
        tasks = dataset.config.tasks.values()
        self._kinds = [task.kind for task in tasks]
        self._weights_T = torch.tensor([task.weight for task in tasks], device=device)
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
            logits_BT = state.model(ids)
        loss = task_losses(logits_BT, batch.labels, self._kinds) @ self._weights_T
        for extra in (state.ranker.auxiliary_loss(), *(lever.loss(state.ranker) for lever in state.levers)):
            if extra is not None:
                loss = loss + extra
        return loss


def step_seed(seed: int, step: int, rank: int) -> int:
    """The seed of everything random in one step of one rank."""
    return xxhash.xxh3_64_intdigest(f"{seed}/{step}/{rank}".encode()) >> 1
