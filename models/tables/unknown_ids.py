"""Ids that training reads as unknown, so that OOV rows learn to represent unseen values."""

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from data_pipelines.batch import NULL_ID, Schema, TableSpec
from data_pipelines.errors import UserError
from models.tables.id_changes import IdChanges


class UnknownIds:
    """Reads a random share of the ids of some features as unknown, a different one in every batch.

    Without it, if every value of the training split has a row, the OOV rows are never trained, and a new user gets
    their start values. (The input dropout of DropoutNet, NeurIPS 2017.)

    Args:
        shares: The share by sparse feature.

    Raises:
        UserError: The schema has no such feature.
    """

    def __init__(self, shares: Mapping[str, float], schema: Schema) -> None:
        features = {spec.name: spec for spec in schema.sparse}
        for name in shares:
            if name not in features:
                raise UserError(f"train.unknown: there is no sparse feature {name!r}, only {', '.join(features)}.")
        self._change = {
            name: partial(_forget, share, schema.table(features[name].table)) for name, share in shares.items()
        }

    def __call__(self, ids: IdChanges) -> None:
        ids.change(self._change)


def _forget(share: float, table: TableSpec, ids_L: Tensor) -> Tensor:
    forgotten_L = (torch.rand(len(ids_L), device=ids_L.device) < share) & (ids_L >= table.reserved)
    return torch.where(forgotten_L, NULL_ID + 1 + ids_L % table.oov_buckets, ids_L)
