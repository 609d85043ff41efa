"""Changes of a batch's ids before the lookup: unknown, managed, redirected and remapped ids in one chain.

Letters: B rows of a batch, L ids of all bags of a feature.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from typing import Self

import torch
from torch import Tensor
from torchrec import KeyedJaggedTensor

from data_pipelines.batch import Batch

IdChange = Callable[[Tensor], Tensor]
"""Maps the (L,) ids of a feature to (L,) others."""


class IdChanges:
    """One batch, and the changes of its ids so far; its bags are rebuilt once, when tables read them.

    Args:
        batch: The batch, which is not changed.

    Example:
        >>> ids = IdChanges(batch)
        >>> ids.change({"item": lambda ids_L: ids_L.clamp(max=99)})
        >>> ids.batch()
    """

    def __init__(self, batch: Batch) -> None:
        self._batch = batch
        self._ids: dict[str, Tensor] = {}

    @classmethod
    def of(cls, batch: "Batch | IdChanges") -> "IdChanges":
        """``batch`` itself if its ids are already being changed."""
        return batch if isinstance(batch, IdChanges) else cls(batch)

    @property
    def dense(self) -> Tensor:
        """The dense features of the batch."""
        return self._batch.dense

    def ids(self, feature: str) -> Tensor:
        """(L,) the ids of a feature after all changes so far."""
        return self._ids[feature] if feature in self._ids else self._bags(feature)[feature].values()

    def lengths_and_weights(self, feature: str) -> tuple[Tensor, Tensor | None]:
        """(B,) ids per bag of a feature, and their (L,) weights, if it has some."""
        bag = self._bags(feature)[feature]
        return bag.lengths(), bag.weights_or_none()

    def change(self, changes: Mapping[str, IdChange]) -> Self:
        """Change the ids of some features; those that the batch lacks are left out."""
        for feature in self._features():
            if feature in changes:
                ids_L = self.ids(feature)
                self._ids[feature] = changes[feature](ids_L).to(ids_L.dtype)
        return self

    def batch(self, mean_weighted: Collection[str] = ()) -> Batch:
        """The batch with the changed ids.

        Args:
            mean_weighted: Features whose weights are divided by their sum in each bag.
        """
        batch = self._batch
        sparse, weighted = batch.sparse, batch.weighted
        if not self._ids.keys().isdisjoint(sparse.keys()):
            sparse = _rebuilt(sparse, self._ids, ())
        if weighted is not None and not {*self._ids, *mean_weighted}.isdisjoint(weighted.keys()):
            weighted = _rebuilt(weighted, self._ids, mean_weighted)
        same = sparse is batch.sparse and weighted is batch.weighted
        return batch if same else replace(batch, sparse=sparse, weighted=weighted)

    def _features(self) -> Iterator[str]:
        if self._batch.weighted is not None:
            yield from self._batch.weighted.keys()
        yield from self._batch.sparse.keys()

    def _bags(self, feature: str) -> KeyedJaggedTensor:
        weighted = self._batch.weighted
        return weighted if weighted is not None and feature in weighted.keys() else self._batch.sparse  # noqa: SIM118


def _rebuilt(bags: KeyedJaggedTensor, ids: Mapping[str, Tensor], mean_weighted: Collection[str]) -> KeyedJaggedTensor:
    bounds, values, weights = bags.offset_per_key(), bags.values(), bags.weights_or_none()
    if not ids.keys().isdisjoint(bags.keys()):
        values = values.clone()
    if not set(mean_weighted).isdisjoint(bags.keys()):
        weights = bags.weights().clone()
    for index, key in enumerate(bags.keys()):
        own = slice(bounds[index], bounds[index + 1])
        if key in ids:
            values[own] = ids[key]
        if key in mean_weighted:
            lengths_B = bags[key].lengths()
            # `unsafe` and `output_size` leave out checks of the lengths that would wait for a GPU.
            totals_B = torch.segment_reduce(weights[own], "sum", lengths=lengths_B.long(), initial=0, unsafe=True)
            totals_B = totals_B.clamp(min=torch.finfo(weights.dtype).tiny)
            weights[own] /= totals_B.repeat_interleave(lengths_B, output_size=bounds[index + 1] - bounds[index])
    return KeyedJaggedTensor(
        keys=bags.keys(),
        values=values,
        weights=weights,
        lengths=bags.lengths(),
        offsets=bags.offsets(),
        length_per_key=bags.length_per_key(),
        offset_per_key=bounds,
    )


def redirected(keep_R: Tensor, to: int) -> IdChange:
    """The change that replaces ids whose row is False in ``keep_R`` by the id ``to``."""
    return lambda ids_L: ids_L.masked_fill(~keep_R[ids_L.long()], to)
