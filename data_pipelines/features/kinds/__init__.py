"""The kinds of features, one module per kind. Importing a module registers its kind."""

from data_pipelines.features.kinds import (
    bag,
    cross,
    hash,
    history,
    id,
    number,
    recency,
    relative,
    statistic,
    time,
    vector,
)

__all__ = ["bag", "cross", "hash", "history", "id", "number", "recency", "relative", "statistic", "time", "vector"]
