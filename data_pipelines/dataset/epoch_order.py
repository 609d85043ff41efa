"""The order in which an epoch takes the rows of a split, and how that order is shared between ranks and batches.

A position is a place in the order of an epoch. Letters: N rows, L lists.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Protocol

import numpy as np
import numpy.typing as npt

from data_pipelines.dataset.blocks import Block
from data_pipelines.dataset.columns import Columns, Range
from data_pipelines.dataset.shards import ShardColumns
from data_pipelines.errors import UserError

BLOCK_ROWS = 512
WINDOW_ROWS = 1 << 20

Positions = npt.NDArray[np.int64]
Share = tuple[list[Range], Positions]
"""A rank's positions, and where in them its batches begin and the last one ends."""


class EpochOrder(Protocol):
    """An order of the rows of a split.

    Attributes:
        windows: Ascending positions, the first 0 and the last N: rows between two neighbours are loaded together.
        starts: Ascending positions at which batches may begin; ``None`` for any.
    """

    windows: Positions
    starts: Positions | None

    def ranges(self, window: int) -> list[Range]:
        """The rows of a window as ranges of the split."""

    def load(self, columns: Columns | ShardColumns, window: int) -> Block:
        """The rows of a window, with the order in which batches take them."""


class InOrder:
    """Rows as they are in the split."""

    def __init__(self, rows: int, starts: Positions | None = None) -> None:
        self.windows, self.starts = _even(rows), starts

    def ranges(self, window: int) -> list[Range]:
        return [(int(self.windows[window]), int(self.windows[window + 1]))]

    def load(self, columns: Columns | ShardColumns, window: int) -> Block:
        return columns.block(self.ranges(window))


class ShuffledRows:
    """Blocks of neighbouring rows in random order, and the rows inside windows of such blocks as well.

    With ``mixed``, shards are put in random order, and blocks and rows are shuffled inside groups of so many shards.

    Args:
        shards: Rows of each shard.
        mixed: Shards of a group; all if absent.
    """

    starts: Positions | None = None

    def __init__(self, shards: Sequence[int], seed: int, epoch: int, mixed: int | None = None) -> None:
        self._seed, self._epoch = seed, epoch
        generator = np.random.default_rng([seed, epoch])
        edges = np.concatenate([[0], np.cumsum(shards)]).astype(np.int64)
        groups = [edges[[0, -1]][None]]
        if mixed is not None:
            spans_S2 = np.stack([edges[:-1], edges[1:]], axis=1)[generator.permutation(len(shards))]
            groups = [spans_S2[at : at + mixed] for at in range(0, len(shards), mixed)]
        first, sizes, windows, before = [], [], [np.zeros(1, np.int64)], 0
        for group_S2 in groups:
            own = np.concatenate([np.arange(low, high, BLOCK_ROWS) for low, high in group_S2])
            own_sizes = np.concatenate([_block_sizes(high - low) for low, high in group_S2])
            order = generator.permutation(len(own))
            first.append(own[order])
            sizes.append(own_sizes[order])
            windows.append(before + _even(int(own_sizes.sum()))[1:])
            before += int(own_sizes.sum())
        self.windows = np.concatenate(windows)
        self._first = np.concatenate(first)
        self._blocks = np.concatenate([[0], np.cumsum(np.concatenate(sizes))])

    def ranges(self, window: int) -> list[Range]:
        return _pieces(self._first, self._blocks, int(self.windows[window]), int(self.windows[window + 1]))

    def load(self, columns: Columns | ShardColumns, window: int) -> Block:
        block = columns.block(self.ranges(window), shuffled=True)
        rows = int(self.windows[window + 1] - self.windows[window])
        block.order = np.random.default_rng([self._seed, self._epoch, window]).permutation(rows)
        return block


class ShuffledLists:
    """Lists in random order, their rows in the order of the split.

    Blocks of neighbouring lists, of at least 512 rows each, are put in random order, and then the lists inside windows
    of such blocks.

    Args:
        bounds: (L + 1,) the first row of each list in the split, and N.
    """

    starts: Positions | None

    def __init__(self, bounds: Positions, seed: int, epoch: int) -> None:
        rows = int(bounds[-1])
        edges = bounds[np.searchsorted(bounds, np.arange(0, rows, BLOCK_ROWS))]
        edges = np.unique(np.append(edges, rows))
        order = np.random.default_rng([seed, epoch]).permutation(len(edges) - 1)
        self._first = edges[:-1][order]
        self._blocks = np.concatenate([[0], np.cumsum(np.diff(edges)[order])])
        ends = self._blocks[np.searchsorted(self._blocks, np.arange(0, rows, WINDOW_ROWS))]
        self.windows = np.unique(np.append(ends, rows))
        self._lists = [self._shuffled(bounds, window, [seed, epoch, window]) for window in range(len(self.windows) - 1)]
        self.starts = np.concatenate([first + low for (first, _), low in zip(self._lists, self.windows, strict=False)])

    def _shuffled(self, bounds: Positions, window: int, seed: list[int]) -> tuple[Positions, Positions]:
        """Where in a window lists begin, in the order in which batches take them; and that order of its rows."""
        pieces = self.ranges(window)
        sizes = np.concatenate([np.diff(_within(bounds, low, high)) for low, high in pieces])
        begins = np.cumsum(sizes) - sizes
        order = np.random.default_rng(seed).permutation(len(sizes))
        taken = np.cumsum(sizes[order]) - sizes[order]
        rows = np.arange(sizes.sum()) + np.repeat(begins[order] - taken, sizes[order])
        return taken, rows

    def ranges(self, window: int) -> list[Range]:
        return _pieces(self._first, self._blocks, int(self.windows[window]), int(self.windows[window + 1]))

    def load(self, columns: Columns | ShardColumns, window: int) -> Block:
        block = columns.block(self.ranges(window), shuffled=True)
        block.order = self._lists[window][1]
        return block


def shares(ranges: Sequence[Range], batch_size: int, world_size: int, starts: Positions | None) -> list[Share]:
    """The positions in ``ranges`` shared between ranks, equally many batches each.

    Without ``starts`` shares differ by at most one row, and a rank's last batch is smaller, or larger by one row. With
    them, ranks and batches begin at starts only: they are longer by at most the rest of a list.

    Raises:
        UserError: There are fewer lists than ranks.
    """
    total = size(ranges)
    edges = np.array([total * rank // world_size for rank in range(world_size + 1)])
    if starts is None:
        whole = [cut(ranges, low, high) for low, high in pairwise(edges)]
        batches = -(-(total // world_size) // batch_size)
        firsts = np.arange(batches) * batch_size
        return [(share, np.append(firsts, size(share)) if batches else firsts) for share in whole]
    begins = _relative(ranges, starts)
    edges = begins[np.searchsorted(begins, edges)]
    whole = [cut(ranges, low, high) for low, high in pairwise(edges)]
    if total and not all(whole):
        raise UserError(f"{len(begins) - 1} lists are too few for {world_size} ranks: use fewer ranks.")
    bounds = [_batches(begins[(begins >= low) & (begins <= high)] - low, batch_size) for low, high in pairwise(edges)]
    fewest = min(len(own) for own in bounds)
    return [(share, np.append(own[: fewest - 1], own[-1:])) for share, own in zip(whole, bounds, strict=True)]


def _batches(begins: Positions, batch_size: int) -> Positions:
    """Where batches of at least ``batch_size`` rows begin, and the end."""
    wanted = np.arange(0, begins[-1], batch_size)
    return np.unique(np.append(begins[np.searchsorted(begins, wanted)], begins[-1]))


def _relative(ranges: Sequence[Range], starts: Positions) -> Positions:
    """``starts`` as places in the concatenation of ``ranges``, and its end."""
    before, found = 0, []
    for low, high in ranges:
        found.append(starts[(starts >= low) & (starts < high)] - low + before)
        before += high - low
    return np.append(np.concatenate(found) if found else np.empty(0, np.int64), before).astype(np.int64)


def _within(bounds: Positions, low: int, high: int) -> Positions:
    return bounds[np.searchsorted(bounds, low) : np.searchsorted(bounds, high) + 1]


def _block_sizes(rows: int) -> Positions:
    return np.minimum(BLOCK_ROWS, rows - np.arange(0, rows, BLOCK_ROWS))


def _even(rows: int) -> Positions:
    return np.append(np.arange(0, rows, WINDOW_ROWS), rows).astype(np.int64)


def _pieces(first: Positions, blocks: Positions, start: int, stop: int) -> list[Range]:
    """The rows of the split at some positions.

    Args:
        first: The first row of each block, in the order of the epoch.
        blocks: The position of each block, and N.
    """
    found: list[Range] = []
    block = int(np.searchsorted(blocks, start, side="right")) - 1
    while start < stop:
        low, high = int(blocks[block]), min(int(blocks[block + 1]), stop)
        begin = int(first[block])
        found.append((begin + start - low, begin + high - low))
        start, block = high, block + 1
    return found


def size(ranges: Sequence[Range]) -> int:
    """How many positions there are."""
    return sum(stop - start for start, stop in ranges)


def cut(ranges: Sequence[Range], low: int, high: int) -> list[Range]:
    """The part from ``low`` to ``high`` of the concatenation of ``ranges``."""
    found: list[Range] = []
    before = 0
    for start, stop in ranges:
        a, b = max(int(low) - before, 0), min(int(high) - before, stop - start)
        if a < b:
            found.append((start + a, start + b))
        before += stop - start
    return found
