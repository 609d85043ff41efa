"""Contiguous encoded rows in memory, and batches cut from them by slicing and gathering: no Python per row.

Letters: W rows of a block, B rows of a batch, L all ids of a bag in a block, D dense width, T tasks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from data_pipelines.arrays import age_bucket, spans
from data_pipelines.batch import Batch, Schema
from data_pipelines.errors import UserError

Rows = npt.NDArray[np.int64]


@dataclass(slots=True)
class Bags:
    """Bags of W rows: values (L,) and offsets (W + 1,), with weights (L,) where there are any."""

    values: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float32] | None = None

    def take(self, rows: Rows | slice) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Values, lengths and weights of the bags of some rows, in their order."""
        if isinstance(rows, slice):
            offsets = self.offsets[rows.start : rows.stop + 1]
            picked: np.ndarray | slice = slice(offsets[0], offsets[-1])
            lengths = np.diff(offsets)
        else:
            starts = self.offsets[rows]
            lengths = self.offsets[rows + 1] - starts
            picked = spans(starts, lengths)
        return self.values[picked], lengths, None if self.weights is None else self.weights[picked]


@dataclass(slots=True)
class EventSlices:
    """A history of W rows: where in the events each row's begin and how many there are.

    ``events`` maps the features of the history to one encoded id an event. Where it has ages, ``age`` names their
    feature and its first id, ``times`` are the events' and ``now`` (W,) the rows', in microseconds.
    """

    starts: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]
    events: Mapping[str, npt.NDArray[np.int32]]
    age: tuple[str, int] | None = None
    times: npt.NDArray[np.int64] | None = None
    now: npt.NDArray[np.int64] | None = None

    def take(self, rows: Rows | slice) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Ids of the last events of some rows by feature, and how many events each row has."""
        lengths = self.lengths[rows]
        picked = spans(self.starts[rows], lengths)
        values: dict[str, np.ndarray] = {name: ids[picked] for name, ids in self.events.items()}
        if self.age is not None:
            assert self.times is not None
            assert self.now is not None
            name, first = self.age
            values[name] = age_bucket(np.repeat(self.now[rows], lengths) - self.times[picked]) + first
        return values, lengths


@dataclass(slots=True)
class Block:
    """W encoded rows.

    Attributes:
        ids: Row of ``id_matrix`` of each id feature.
        id_matrix: (F, W) int32, in memory row by row where there is an ``order``.
        bags: By feature.
        pasts: By history.
        dense: (W, D) float32.
        labels: (W, T) float32, or ``None``.
        rows: (W,) positions in the split.
        weights: (W, T) float32 if rows have weights.
        lists: (W,) uint64 keys of the lists, 0 for a row of no list; rows of a list are neighbours.
        log_q: (W, T) float32, or ``None``, as :class:`~data_pipelines.batch.Batch` has it.
        order: (W,) the order in which batches take the rows; ``None`` for their order in the block.
    """

    ids: Mapping[str, int]
    id_matrix: npt.NDArray[np.int32]
    bags: Mapping[str, Bags]
    pasts: Mapping[str, EventSlices]
    dense: npt.NDArray[np.float32]
    labels: npt.NDArray[np.float32] | None
    rows: Rows
    order: Rows | None = None
    weights: npt.NDArray[np.float32] | None = None
    log_q: npt.NDArray[np.float32] | None = None
    lists: npt.NDArray[np.uint64] | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def pick(self, start: int, stop: int) -> Rows | slice:
        """Positions in the block of the rows that batches take from ``start`` to ``stop``."""
        return slice(start, stop) if self.order is None else self.order[start:stop]


def make_batch(schema: Schema, pieces: Sequence[tuple[Block, int, int]]) -> Batch:
    """The batch of rows ``(block, start, stop)``, one piece after the other, features in the order of ``schema``.

    Raises:
        UserError: An id is outside its table: the kernels of a lookup do not check this.
    """
    limits = {feature.name: schema.table(feature.table).rows for feature in schema.sparse}
    picked = [(block, block.pick(start, stop)) for block, start, stop in pieces]
    plain, weighted = _Keyed(), _Keyed()
    for block, rows in picked:
        ids = block.id_matrix[:, rows] if isinstance(rows, slice) else block.id_matrix.T.take(rows, axis=0).T
        _check_ids(limits, block.ids, ids)
        ones = np.ones(ids.shape[1], dtype=np.int32)
        past = {name: history.take(rows) for name, history in block.pasts.items()}
        for feature in schema.sparse:
            if feature.name in block.ids:
                plain.add(feature.name, ids[block.ids[feature.name]], ones)
            elif feature.name in block.bags:
                values, lengths, weights = block.bags[feature.name].take(rows)
                _check_ids(limits, {feature.name: 0}, values[None])
                (plain if weights is None else weighted).add(feature.name, values, lengths, weights)
            else:
                assert feature.sequence is not None
                events, lengths = past[feature.sequence]
                _check_ids(limits, {feature.name: 0}, events[feature.name][None])
                plain.add(feature.name, events[feature.name], lengths)
    labels = [block.labels[rows] for block, rows in picked if block.labels is not None]
    row_weights = [block.weights[rows] for block, rows in picked if block.weights is not None]
    log_q = [block.log_q[rows] for block, rows in picked if block.log_q is not None]
    lists = [block.lists[rows] for block, rows in picked if block.lists is not None]
    return Batch(
        sparse=plain.jagged(),
        weighted=weighted.jagged() if weighted.values else None,
        dense=torch.from_numpy(_joined([block.dense[rows] for block, rows in picked], np.float32)),
        labels=torch.from_numpy(_joined(labels, np.float32)) if labels else None,
        rows=torch.from_numpy(_joined([block.rows[rows] for block, rows in picked], np.int64)),
        weights=torch.from_numpy(_joined(row_weights, np.float32)) if row_weights else None,
        log_q=torch.from_numpy(_joined(log_q, np.float32)) if log_q else None,
        lists=torch.from_numpy(list_starts(_joined(lists, np.uint64)).cumsum() - 1) if lists else None,
    )


def list_starts(lists_N: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.bool_]:
    """(N,) where lists begin, for sorted runs of keys; a row that is in no list (0) is a list of its own."""
    starts_N: npt.NDArray[np.bool_] = lists_N == 0
    starts_N[:1] = True
    starts_N[1:] |= lists_N[1:] != lists_N[:-1]
    return starts_N


def _check_ids(limits: Mapping[str, int], places: Mapping[str, int], ids_FL: npt.NDArray[np.int32]) -> None:
    """Compare the ids of features, each in a row of ``ids_FL``, with the rows of their tables."""
    largest_F = ids_FL.view(np.uint32).max(axis=1, initial=0)  # of which negative ids are the largest
    for name, place in places.items():
        if largest_F[place] >= limits[name]:
            raise UserError(
                f"feature {name!r} has ids outside its table of {limits[name]} rows: make the data set or the artifact "
                "again."
            )


class _Keyed:
    """Gathers the parts of a ``KeyedJaggedTensor`` key by key, each in one or more pieces."""

    def __init__(self) -> None:
        self.values: dict[str, list[np.ndarray]] = {}
        self.lengths: dict[str, list[np.ndarray]] = {}
        self.weights: dict[str, list[np.ndarray]] = {}

    def add(self, key: str, values: np.ndarray, lengths: np.ndarray, weights: np.ndarray | None = None) -> None:
        self.values.setdefault(key, []).append(values)
        self.lengths.setdefault(key, []).append(lengths)
        if weights is not None:
            self.weights.setdefault(key, []).append(weights)

    def jagged(self) -> KeyedJaggedTensor:
        # Torch would sum the lengths again to learn how long each key is.
        return KeyedJaggedTensor(
            keys=list(self.values),
            values=torch.from_numpy(_joined(_flat(self.values), np.int64)),
            weights=torch.from_numpy(_joined(_flat(self.weights), np.float32)) if self.weights else None,
            lengths=torch.from_numpy(_joined(_flat(self.lengths), np.int32)),
            stride=sum(len(piece) for piece in next(iter(self.lengths.values()), [])),
            length_per_key=[sum(len(piece) for piece in pieces) for pieces in self.values.values()],
        )


def _flat(pieces: Mapping[str, list[np.ndarray]]) -> list[np.ndarray]:
    return [piece for key in pieces.values() for piece in key]


def _joined(pieces: Sequence[np.ndarray], dtype: type[np.generic]) -> np.ndarray:
    return np.concatenate(pieces, dtype=dtype, casting="unsafe") if pieces else np.empty(0, dtype)
