"""Batches of a split: shuffled, sharded by rank, resumable at the exact batch, made ahead by threads."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from data_pipelines.arrays import to_arrow
from data_pipelines.batch import Batch, Schema
from data_pipelines.dataset.blocks import Block, list_starts, make_batch
from data_pipelines.dataset.columns import Columns, Range
from data_pipelines.dataset.dataset import Dataset
from data_pipelines.dataset.epoch_order import (
    EpochOrder,
    InOrder,
    Positions,
    Share,
    ShuffledLists,
    ShuffledRows,
    cut,
    shares,
    size,
)
from data_pipelines.dataset.shards import ShardColumns
from data_pipelines.errors import UserError

_AHEAD = 3


class Loader:
    """Iterates over the batches of one epoch of a split.

    Shuffling permutes blocks of 512 neighbouring rows over the whole split, and then the rows inside windows of 2048
    such blocks: disks read runs, memory holds a window or two, and up to 1,048,576 rows the shuffle is global. The
    order of an epoch depends on the seed alone, and not on batch size or ranks.

    With ``mix_shards`` files are put in random order, and rows are shuffled inside groups of so many files. A rank then
    reads few files at a time; of a data set that was opened with :meth:`Dataset.stream`, it fetches only those.

    Ranks have equal shares of the rows (to one row), none of them twice, and equally many batches; the last batch may
    be smaller, or larger by one row.

    With ``lists`` whole lists are shuffled, shared and put into batches, without padding: a batch is then longer than
    ``batch_size`` by at most the rest of its last list. Memory holds 24 bytes per row.

    Args:
        features: Read only these, named as in the config or the schema; the batch then has the smaller schema
            ``loader.schema``.
        max_rows: Stop after the first ``max_rows`` rows of the split.
        lists: Keep lists (:meth:`Dataset.lists`) whole, and say in ``Batch.lists`` which row is in which.
        mix_shards: With ``shuffle``: files whose rows are shuffled together; all if absent. Not with ``lists``.
        threads: Threads that make batches ahead; with 0, each batch is made on demand.

    Raises:
        UserError: The split is not there, has fewer rows (or lists) than there are ranks, or no lists.

    Example:
        >>> loader = rs.Loader(rs.Dataset.open(Path("dataset")), "train", batch_size=200, shuffle=True)
        >>> [len(batch) for batch in loader]
        [200, 200, 80]
    """

    def __init__(
        self,
        dataset: Dataset,
        split: str,
        *,
        batch_size: int,
        shuffle: bool = False,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        features: Sequence[str] | None = None,
        max_rows: int | None = None,
        lists: bool = False,
        mix_shards: int | None = None,
        threads: int = 1,
    ) -> None:
        if batch_size < 1:
            raise UserError(f"batch_size must be at least 1, not {batch_size}.")
        if lists and mix_shards is not None:
            raise UserError("mix_shards needs rows that can be shuffled one by one: leave it out to keep lists whole.")
        self.columns = dataset.streamed_columns(split, features)
        self.schema: Schema = self.columns.schema
        self._rows = min(len(self.columns), max_rows if max_rows is not None else len(self.columns))
        if self._rows < world_size:
            if not self._rows:
                raise UserError(f"the split {split!r} has no rows: set data.split, and prepare the data again.")
            raise UserError(f"split {split!r} has {self._rows} rows, too few for {world_size} ranks.")
        self._batch_size, self._shuffle, self._seed, self._threads = batch_size, shuffle, seed, threads
        self._rank, self._world_size = rank, world_size
        self._epoch, self._ordered, self._mixed = 0, -1, mix_shards
        self._bounds: Positions | None = _list_bounds(dataset, split, self._rows) if lists else None
        self.columns.lists = lists
        self._restart()

    def __len__(self) -> int:
        """Batches of the epoch, the same on every rank."""
        return max(0, len(self._share[1]) - 1)

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of an epoch, unless it is already the current one; each epoch has its own order."""
        if epoch != self._epoch:
            self._epoch = epoch
            self._restart()

    def state_dict(self) -> dict[str, Any]:
        """The exact position, the same on every rank: batches that were returned, and the rows that are left."""
        return {
            "epoch": self._epoch,
            "next": self._next,
            "ranges": [list(pair) for pair in self._ranges],
            "batch_size": self._batch_size,
            "world_size": self._world_size,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after the batches that had been returned when ``state`` was taken.

        At another batch size or number of ranks, the remaining rows are divided again. Fewer remaining rows than
        there are ranks are left out, because every rank must have the same number of batches.
        """
        self._epoch, self._next, self._resumed = state["epoch"], state["next"], True
        self._ranges = [(start, stop) for start, stop in state["ranges"]]
        self._take_order()
        batch_size, world_size = state["batch_size"], state["world_size"]
        if (batch_size, world_size) != (self._batch_size, self._world_size):
            before = shares(self._ranges, batch_size, world_size, self._order.starts)
            complete = self._next >= len(before[0][1]) - 1
            left = [] if complete else [cut(share, bounds[self._next], size(share)) for share, bounds in before]
            self._ranges, self._next = [piece for share in left for piece in share], 0
        self._share = self._shared()

    def __iter__(self) -> Iterator[Batch]:
        """The batches of the current epoch: from the resumed position once, from its start otherwise."""
        if not self._resumed:
            self._restart()
        self._resumed = False
        for batch in self._made_ahead() if self._threads else (make() for make in self._jobs(_at_once)):
            self._next += 1
            yield batch

    def _restart(self) -> None:
        self._next, self._ranges, self._resumed = 0, [(0, self._rows)], False
        self._take_order()
        self._share = self._shared()

    def _take_order(self) -> None:
        """Make the order of the epoch, unless it is there: that of lists takes a pass over all of them."""
        if self._ordered != self._epoch:
            self._order, self._ordered = self._make_order(), self._epoch

    def _make_order(self) -> EpochOrder:
        if self._bounds is not None:
            if self._shuffle:
                return ShuffledLists(self._bounds, self._seed, self._epoch)
            return InOrder(self._rows, self._bounds[:-1])
        if not self._shuffle:
            return InOrder(self._rows)
        shards = [self._rows] if self._mixed is None else _first_rows(self.columns.shards, self._rows)
        return ShuffledRows(shards, self._seed, self._epoch, self._mixed)

    def _shared(self) -> Share:
        return shares(self._ranges, self._batch_size, self._world_size, self._order.starts)[self._rank]

    def _made_ahead(self) -> Iterator[Batch]:
        """The batches, made by threads while the caller is busy with earlier ones."""
        with ThreadPoolExecutor(self._threads, thread_name_prefix="loader") as pool:
            ahead: deque[Future[Batch]] = deque()
            try:
                # A window is queued before its batches, so that even one thread can wait for it.
                for make in self._jobs(lambda load: pool.submit(load).result):
                    ahead.append(pool.submit(make))
                    if len(ahead) > _AHEAD + self._threads:
                        yield ahead.popleft().result()
                while ahead:
                    yield ahead.popleft().result()
            finally:
                for future in ahead:
                    future.cancel()

    def _jobs(self, start: Callable[[Callable[[], Block]], Callable[[], Block]]) -> Iterator[Callable[[], Batch]]:
        """What makes each batch that is left; ``start`` is given what loads a window, and returns what waits for it."""
        (share, bounds), order = self._share, self._order
        windows: dict[int, Callable[[], Block]] = {}
        left = cut(share, bounds[self._next], bounds[-1]) if self._next < len(self) else []
        later = deque(dict.fromkeys(window for window, _, _ in _by_window(left, order.windows)))
        for index in range(self._next, len(self)):
            ranges = cut(share, bounds[index], bounds[index + 1])
            pieces = list(_by_window(ranges, order.windows))
            needed = dict.fromkeys(window for window, _, _ in pieces)
            windows = {
                window: windows.get(window) or start(partial(order.load, self.columns, window)) for window in needed
            }
            while later and later[0] in needed:
                later.popleft()
                if later and isinstance(self.columns, ShardColumns):
                    self.columns.prefetch(order.ranges(later[0]))
            yield partial(self._make, [(windows[window], low, high) for window, low, high in pieces])

    def _make(self, pieces: list[tuple[Callable[[], Block], int, int]]) -> Batch:
        return make_batch(self.schema, [(block(), low, high) for block, low, high in pieces])


def _by_window(ranges: Sequence[Range], windows: Positions) -> Iterator[tuple[int, int, int]]:
    """(window, start, stop inside it) of ranges of positions."""
    for start, stop in ranges:
        while start < stop:
            window = int(np.searchsorted(windows, start, side="right")) - 1
            low, end = int(windows[window]), min(stop, int(windows[window + 1]))
            yield window, start - low, end - low
            start = end


def _list_bounds(dataset: Dataset, split: str, rows: int) -> Positions:
    """(L + 1,) the first row of each list of a split, and how many rows there are."""
    lists_N = dataset.lists(split)
    if lists_N is None:
        raise UserError(
            f"{dataset.path} has no lists: say in data.group which rows are shown together, and prepare the data again."
        )
    return np.append(np.flatnonzero(list_starts(lists_N[:rows])), rows).astype(np.int64)


def _first_rows(shards: Sequence[int], rows: int) -> list[int]:
    """How many of the first ``rows`` rows of a split are in each shard."""
    edges = np.minimum(np.concatenate([[0], np.cumsum(shards)]), rows)
    return [int(own) for own in np.diff(edges)]


def _at_once(load: Callable[[], Block]) -> Callable[[], Block]:
    block = load()
    return lambda: block


def collate(schema: Schema, frame: pl.DataFrame, rows: npt.NDArray[np.int64]) -> Batch:
    """The batch of an encoded frame (what ``Encoder.encode`` gives, histories as lists), without labels.

    Args:
        schema: The encoded features.
        frame: B encoded rows.
        rows: (B,) positions to store as ``Batch.rows``.
    """
    columns = Columns(to_arrow(frame).combine_chunks().to_batches(), schema, {}, labelled=False)
    block = columns.block([(0, len(frame))])
    block.rows = rows
    return make_batch(schema, [(block, 0, len(frame))])
