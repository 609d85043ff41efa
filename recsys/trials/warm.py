"""A quick estimate of training without a feature: train the base for one more epoch with the feature set to null.

Tables do not change; the dense part adapts to the missing feature. This costs one pass without table gradients instead
of a whole training.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch

from data_pipelines.batch import Batch
from data_pipelines.dataset.blocks import make_batch
from data_pipelines.dataset.dataset import Dataset
from models.layers.heads import task_losses
from models.ranker import Ranker
from models.weights import Weights
from recsys.config.experiment import TrainConfig
from recsys.training.optimizers import make_optimizer
from recsys.trials.perturb import masked, random_order

_WINDOW_ROWS = 1 << 20


def warm_ranker(weights: Weights, dataset: Dataset, gone: Sequence[str], config: TrainConfig, seed: int) -> Ranker:
    """The ranker of ``weights`` after one more epoch in which the features ``gone`` are null."""
    torch.manual_seed(seed)
    ranker = weights.to_ranker().train()
    ranker.tables.requires_grad_(False)
    kinds = [task.kind for task in dataset.config.tasks.values()]
    weights_T = torch.tensor([task.weight for task in dataset.config.tasks.values()])
    learned = [parameter for parameter in ranker.parameters() if parameter.requires_grad]
    optimizer = make_optimizer(
        config.dense.optimizer,
        learned,
        learning_rate=config.dense.learning_rate,
        weight_decay=config.dense.weight_decay,
    )
    for batch in _masked_batches(dataset, ranker, gone, config.batch_size, seed):
        assert batch.labels is not None
        logits_BT = batch.of_sample(ranker(batch))
        losses_T = task_losses(logits_BT, batch.labels, kinds, batch.weights, ordinal=ranker.ordinal)
        loss = (losses_T * weights_T).sum()
        if (balance := ranker.auxiliary_loss()) is not None:
            loss = loss + balance
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return ranker.eval()


def _masked_batches(
    dataset: Dataset, ranker: Ranker, gone: Sequence[str], batch_size: int, seed: int
) -> Iterator[Batch]:
    """The training rows once, windows and the rows in them in random order."""
    columns = dataset.columns("train", ranker.schema.feature_names)
    starts = np.arange(0, len(columns), _WINDOW_ROWS)
    for window in random_order(len(starts), seed):
        start = int(starts[window])
        block = columns.block([(start, min(start + _WINDOW_ROWS, len(columns)))])
        block = replace(masked(block, columns.schema, gone), order=random_order(len(block), seed + start))
        for first in range(0, len(block), batch_size):
            yield make_batch(columns.schema, [(block, first, min(first + batch_size, len(block)))])
