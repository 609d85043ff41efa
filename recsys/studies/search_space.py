"""The small search space of ``recsys fit``, around the values that the config has already."""

from typing import Any

from models.layers.towers import TowerConfig
from recsys.config.experiment import ExperimentConfig
from recsys.config.tune import Range

RATE_FACTOR = 4
"""Learning rates are searched from the config's divided by this to the config's times this."""

TOWERS: tuple[dict[str, Any], ...] = (
    {"kind": "mlp", "hidden": [128]},
    {"kind": "mlp", "hidden": [256, 128]},
    {"kind": "moe", "experts": 4, "top_k": 1, "hidden": 128},
)
"""Towers that are tried besides the config's own."""


def search_space(config: ExperimentConfig) -> dict[str, Range]:
    """What is searched around ``config``, by key; every range holds the config's own value.

    Both learning rates and the decay of the tables (which a first config most often gets wrong), the batch size,
    batch normalization, the width of the embeddings, the number of cross layers, and the tower: dense of two sizes, or
    a mixture of experts.
    """
    train, model = config.train, config.model.model_dump(mode="json")
    space = {"train.dense.learning_rate": _rates(train.dense.learning_rate)}
    if train.tables.learning_rate > 0:
        space["train.tables.learning_rate"] = _rates(train.tables.learning_rate)
    space["train.tables.weight_decay"] = _choices(train.tables.weight_decay, 0.0, 0.001, 0.01, 0.1)
    space["train.batch_size"] = _choices(train.batch_size, max(1, train.batch_size // 2), train.batch_size * 2)
    space["model.batch_norm"] = _choices(config.model.batch_norm, False, True)
    space["model.dim"] = _choices(config.model.dim, 8, 16, 32)
    if model["interaction"]["kind"] == "cross":
        space["model.interaction.layers"] = _choices(model["interaction"]["layers"], 1, 2, 3)
    if config.model.tasks == type(config.model.tasks)() and not config.model.context:
        space["model.tower"] = _choices(model["tower"], *map(_resolved, TOWERS))
    return space


def _rates(rate: float) -> Range:
    return Range(low=rate / RATE_FACTOR, high=rate * RATE_FACTOR, log=True)


def _choices(own: Any, *others: Any) -> Range:
    return Range(choices=[own, *(value for value in others if value != own)])


def _resolved(tower: dict[str, Any]) -> dict[str, Any]:
    """All keys of a tower, so that one that is written in the config in part is recognized."""
    resolved: dict[str, Any] = TowerConfig.parse(tower).model_dump(mode="json")
    return resolved
