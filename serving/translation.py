"""Batches that one encoder made, as another encoder of the same features would have made them.

A data set keeps ids, not values. This is how its rows reach an artifact whose vocabulary was pruned after training.
"""

import numpy as np
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from data_pipelines.batch import NULL_ID, Batch
from data_pipelines.encoder import Encoder
from data_pipelines.vocabulary import Slots


class Translation:
    """Maps ids of ``source``'s tables to ids of ``target``'s by the value they stand for; unknown values become OOV."""

    def __init__(self, source: Encoder, target: Encoder) -> None:
        self._ids: dict[str, torch.Tensor] = {}
        for table in target.schema.tables:
            if isinstance(target.tables[table.name], Slots):
                continue  # nothing was pruned, and there are no values to compare, but perhaps billions of ids
            old = source.vocabulary(table.name).select("value", "id")
            new = target.vocabulary(table.name).select("value", "id")
            pairs = old.join(new, on="value", suffix="_new")
            ids = np.full(source.schema.table(table.name).rows, NULL_ID + 1, np.int64)
            ids[: table.reserved] = np.arange(table.reserved)
            ids[pairs["id"].to_numpy()] = pairs["id_new"].to_numpy()
            self._ids[table.name] = torch.from_numpy(ids)
        self._tables = {feature.name: feature.table for feature in target.schema.sparse}

    def __call__(self, batch: Batch) -> Batch:
        """The batch with ids of the target; bags, weights and the rest stay."""
        weighted = None if batch.weighted is None else self._translate(batch.weighted)
        return Batch(self._translate(batch.sparse), weighted, batch.dense, batch.labels, batch.rows)

    def _translate(self, bags: KeyedJaggedTensor) -> KeyedJaggedTensor:
        bounds, values = bags.offset_per_key(), bags.values()
        parts = []
        for index, key in enumerate(bags.keys()):
            own, ids = values[bounds[index] : bounds[index + 1]], self._ids.get(self._tables[key])
            parts.append(own.long() if ids is None else ids[own.long()])
        return KeyedJaggedTensor(
            keys=bags.keys(),
            values=torch.cat(parts) if parts else values,
            weights=bags.weights_or_none(),
            lengths=bags.lengths(),
            offsets=bags.offsets(),
        )
