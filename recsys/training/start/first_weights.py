"""Initial weights: random, from a linear model, from a truncated SVD, or from an earlier run."""

import torch

from data_pipelines.batch import Schema
from data_pipelines.dataset.dataset import Dataset
from data_pipelines.disk.object_store import fetched
from data_pipelines.locations import expand
from models.layers.outcomes.ordinal import OrdinalTasks
from recsys.config.experiment import TrainConfig
from recsys.training.model_state import ModelState
from recsys.training.start.earlier_run import start_from_run
from recsys.training.start.linear import start_wide
from recsys.training.start.svd import start_tables


def set_first_weights(state: ModelState, config: TrainConfig, dataset: Dataset, schema: Schema) -> None:
    """Set the weights that ``train.start`` asks for, the thresholds of levels, and the standardisation of numbers.

    Args:
        state: The model, with random weights.
        config: Its ``start``: ``random``, ``linear``, ``svd``, or the folder or address of a run, with ``${NAME}`` read
            from the environment; whether rows count by their ``weights``; and ``mix_shards``.
        dataset: The data set to train on.
        schema: The encoded features that it reads.

    Raises:
        UserError: ``start`` is a run that does not fit, or there is no wide part to fit a linear model to.
    """
    start = config.start
    if start not in ("random", "linear", "svd"):
        start_from_run(state, fetched(expand(start)), dataset)
        return
    if start == "svd":
        start_tables(state.model, dataset, schema.feature_names)
    if schema.dense:
        state.ranker.standardize.learn(*map(torch.from_numpy, dataset.summary.moments(schema)))
    if state.ranker.ordinal is not None:
        start_levels(state.ranker.ordinal, dataset)
        state.start_average()
    if start == "linear":
        start_wide(state, dataset, schema, weighted=config.weights, mix_shards=config.mix_shards)
        state.start_average()


def start_levels(tasks: OrdinalTasks, dataset: Dataset) -> None:
    """Set the thresholds with which a latent score of 0 gives every level its share of the training rows."""
    labels_NT = dataset.labels("train")
    for t, levels in tasks.parts.items():
        values_K = levels.levels_K.cpu().numpy()
        levels.start_at([float((labels_NT[:, t] == value).sum()) for value in values_K])
