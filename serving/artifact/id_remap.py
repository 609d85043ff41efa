"""Translates batches of one encoder to the ids of another encoder of the same features.

A data set stores ids, not values. This is how its rows are scored by an artifact whose vocabulary was pruned.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from data_pipelines.batch import NULL_ID, Batch
from data_pipelines.features.encoder import Encoder
from data_pipelines.features.vocabulary import Slots
from models.tables.id_changes import IdChanges


class Translation:
    """Maps ids of ``source``'s tables to ids of ``target``'s by the value they stand for; unknown values become OOV."""

    def __init__(self, source: Encoder, target: Encoder) -> None:
        translated: dict[str, Callable[[Tensor], Tensor]] = {}
        for table in target.schema.tables:
            if isinstance(target.tables[table.name], Slots):
                continue  # nothing was pruned, and hashed ids have no values to compare
            old = source.vocabulary(table.name).select("value", "id")
            new = target.vocabulary(table.name).select("value", "id")
            pairs = old.join(new, on="value", suffix="_new")
            ids = np.full(source.schema.table(table.name).rows, NULL_ID + 1, np.int64)
            ids[: table.reserved] = np.arange(table.reserved)
            ids[pairs["id"].to_numpy()] = pairs["id_new"].to_numpy()
            translated[table.name] = partial(_look_up, torch.from_numpy(ids))
        features = (feature for feature in target.schema.sparse if feature.table in translated)
        self._change = {feature.name: translated[feature.table] for feature in features}

    def __call__(self, batch: Batch) -> Batch:
        """The batch with ids of the target; bags, weights and the rest stay."""
        return IdChanges(batch).change(self._change).batch()


def _look_up(new_R: Tensor, ids_L: Tensor) -> Tensor:
    return new_R[ids_L.long()]
