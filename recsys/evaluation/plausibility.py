"""Whether a result is too good to be true, and which feature to look at."""

import warnings
from collections.abc import Sequence

import numpy as np
import polars as pl

from data_pipelines.dataset.dataset import Dataset
from data_pipelines.errors import Notice
from data_pipelines.features.kinds.number import NumberConfig
from data_pipelines.logs.outcomes import Labels
from data_pipelines.profile.leaks import LEAK_AUC, alone_auc

_HIGH_AUC = 0.9
_IMPLAUSIBLE_AUC = 0.99
_FAR = 0.15
_MOST_ROWS = 100_000
_SHOWN = 3


def warn_of_implausible(dataset: Dataset, split: str, task: str, auc: float, features: Sequence[str]) -> None:
    """Warn (:class:`Notice`) of an AUC that is far above what honest features give, and name the one to look at.

    Args:
        auc: Of the model, for a binary task.
        features: The encoded features that the model reads.
    """
    reasons = {name: reason for name, reason in dataset.profile.get("outcomes", {}).items() if _is_read(name, features)}
    if not reasons and auc < _HIGH_AUC:
        return
    labels_N = dataset.labels(split)[:, dataset.schema.tasks.index(task)].astype(np.float64)
    alone = _alone(dataset, split, labels_N, features)
    ordered = sorted(alone, key=lambda name: -alone[name])
    honest = max((value for name, value in alone.items() if name.split(".")[0] not in reasons), default=0.5)
    best = ", ".join(f"{name} {alone[name]:.3f}" for name in ordered[:_SHOWN])
    sure = [name for name in ordered if alone[name] >= LEAK_AUC]
    leading = len(ordered) > 1 and alone[ordered[0]] >= _HIGH_AUC and alone[ordered[0]] - alone[ordered[1]] >= _FAR
    start = f"task {task!r}: the AUC of {auc:.3f} on {split} is implausible"
    if reasons:
        named = "; ".join(f"{name!r}, whose column {reason}" for name, reason in reasons.items())
        sentence = f"{start}, no other feature has more than {honest:.3f} alone: look at {named}"
    elif sure or leading:
        named = ", ".join(map(repr, sure or ordered[:1]))
        sentence = f"{start}, look at {named}: alone, features have {best}"
    elif auc >= _IMPLAUSIBLE_AUC:
        sentence = f"{start}, a few features together may tell the label: alone, they have {best}"
    else:
        return
    warnings.warn(f"{sentence}. Is it known before the row?", Notice, stacklevel=2)


def _is_read(feature: str, encoded: Sequence[str]) -> bool:
    return any(name.split(".")[0] == feature for name in encoded)


def _alone(dataset: Dataset, split: str, labels_N: Labels, features: Sequence[str]) -> dict[str, float]:
    """AUC of each id and each number alone, learned on one half of the rows and tested on the other.

    Of a number in pieces, their sum orders the rows as the number does.
    """
    schema, configs = dataset.schema, dataset.config.features
    ids = [spec.name for spec in schema.sparse if spec.kind == "id" and spec.name in features]
    numbers = [
        pl.col(spec.name) if spec.width == 1 else pl.col(spec.name).arr.sum()
        for spec in schema.dense
        if spec.name in features and (spec.width == 1 or isinstance(configs.get(spec.name), NumberConfig))
    ]
    columns = [*(pl.col(name).cast(pl.String) for name in ids), *numbers]
    rows = dataset.frame(split).select(columns).head(_MOST_ROWS).collect()
    found = {name: alone_auc(rows[name], labels_N[:_MOST_ROWS]) for name in rows.columns}
    return {name: auc for name, auc in found.items() if auc is not None}
