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
from data_pipelines.dataset.blocks import Block, make_batch
from data_pipelines.dataset.columns import Columns, Range
from data_pipelines.dataset.dataset import Dataset
from data_pipelines.errors import UserError

_BLOCK_ROWS = 512
_WINDOW_ROWS = 1 << 20
_AHEAD = 3


class Loader:
    """Iterates over the batches of one epoch of a split.

    Shuffling permutes blocks of 512 neighbouring rows over the whole split, and then the rows inside windows of 2048
    such blocks: disks read runs, memory holds a window or two, and up to 1,048,576 rows the shuffle is global. The
    order of an epoch depends on the seed alone, and not on batch size or ranks.

    Ranks have equal shares of the rows (to one row), none of them twice, and equally many batches; the last batch may
    be smaller, or larger by one row.

    Args:
        features: Read only these, named as in the config or the schema; the batch then has the smaller schema
            ``loader.schema``.
        max_rows: Stop after the first ``max_rows`` rows of the split.
        threads: Threads that make batches ahead; 0 makes each when it is asked for.

    Raises:
        UserError: The split is not there, or has fewer rows than there are ranks.
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
        threads: int = 1,
    ) -> None:
        if batch_size < 1:
            raise UserError(f"batch_size must be at least 1, not {batch_size}.")
        self.columns: Columns = dataset.columns(split, features)
        self.schema: Schema = self.columns.schema
        self._rows = min(len(self.columns), max_rows if max_rows is not None else len(self.columns))
        if self._rows < world_size:
            raise UserError(f"split {split!r} has {self._rows} rows, too few for {world_size} ranks.")
        self._batch_size, self._shuffle, self._seed, self._threads = batch_size, shuffle, seed, threads
        self._rank, self._world_size = rank, world_size
        self._epoch = 0
        self._restart()

    def __len__(self) -> int:
        """Batches of the epoch, the same on every rank."""
        return _batches(_size(self._ranges), self._batch_size, self._world_size)

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of an epoch, unless it is already the current one; each epoch has its own order."""
        if epoch != self._epoch:
            self._epoch = epoch
            self._restart()

    def state_dict(self) -> dict[str, Any]:
        """The exact position, the same on every rank: what was handed out, and what is left."""
        return {
            "epoch": self._epoch,
            "next": self._next,
            "ranges": [list(pair) for pair in self._ranges],
            "batch_size": self._batch_size,
            "world_size": self._world_size,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where ``state`` was taken. At another batch size or number of ranks: with the rows that were left.

        (Fewer rows than there are ranks are left out, since every rank must have as many batches as the others.)
        """
        self._epoch, self._next, self._resumed = state["epoch"], state["next"], True
        self._ranges = [(start, stop) for start, stop in state["ranges"]]
        batch_size, world_size = state["batch_size"], state["world_size"]
        if (batch_size, world_size) != (self._batch_size, self._world_size):
            complete = self._next == _batches(_size(self._ranges), batch_size, world_size)
            shares = [] if complete else [_share(self._ranges, rank, world_size) for rank in range(world_size)]
            self._ranges = [piece for share in shares for piece in _cut(share, self._next * batch_size, _size(share))]
            self._next = 0

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
        share = _share(self._ranges, self._rank, self._world_size)
        order = _Order(self._rows, self._seed, self._epoch) if self._shuffle else None
        windows: dict[int, Callable[[], Block]] = {}
        total = len(self)
        for index in range(self._next, total):
            stop = _size(share) if index == total - 1 else (index + 1) * self._batch_size
            pieces = list(_by_window(_cut(share, index * self._batch_size, stop)))
            needed = dict.fromkeys(window for window, _, _ in pieces)
            windows = {window: windows.get(window) or start(partial(self._load, window, order)) for window in needed}
            yield partial(self._make, [(windows[window], low, high) for window, low, high in pieces])

    def _load(self, window: int, order: "_Order | None") -> Block:
        low, high = window * _WINDOW_ROWS, min((window + 1) * _WINDOW_ROWS, self._rows)
        if order is None:
            return self.columns.block([(low, high)])
        block = self.columns.block(order.rows(low, high), shuffled=True)
        block.order = np.random.default_rng([self._seed, self._epoch, window]).permutation(high - low)
        return block

    def _make(self, pieces: list[tuple[Callable[[], Block], int, int]]) -> Batch:
        return make_batch(self.schema, [(block(), low, high) for block, low, high in pieces])


class _Order:
    """An epoch's order of the blocks of a split: the positions in the split of positions of the epoch."""

    def __init__(self, rows: int, seed: int, epoch: int) -> None:
        blocks = -(-rows // _BLOCK_ROWS)
        self._first = np.random.default_rng([seed, epoch]).permutation(blocks) * _BLOCK_ROWS
        sizes = np.minimum(_BLOCK_ROWS, rows - self._first)
        self._starts = np.concatenate([[0], np.cumsum(sizes)])

    def rows(self, start: int, stop: int) -> list[Range]:
        """The rows of the split at positions of the epoch."""
        found: list[Range] = []
        block = int(np.searchsorted(self._starts, start, side="right")) - 1
        while start < stop:
            low, high = int(self._starts[block]), min(int(self._starts[block + 1]), stop)
            first = int(self._first[block])
            found.append((first + start - low, first + high - low))
            start, block = high, block + 1
        return found


def _by_window(ranges: Sequence[Range]) -> Iterator[tuple[int, int, int]]:
    """(window, start, stop inside it) of ranges of positions."""
    for start, stop in ranges:
        while start < stop:
            window = start // _WINDOW_ROWS
            end = min(stop, (window + 1) * _WINDOW_ROWS)
            yield window, start - window * _WINDOW_ROWS, end - window * _WINDOW_ROWS
            start = end


def _batches(rows: int, batch_size: int, world_size: int) -> int:
    """Batches of each rank; a rank's last one takes what is left, be it one row more than ``batch_size``."""
    return -(-(rows // world_size) // batch_size)


def _size(ranges: Sequence[Range]) -> int:
    return sum(stop - start for start, stop in ranges)


def _cut(ranges: Sequence[Range], low: int, high: int) -> list[Range]:
    """The part from ``low`` to ``high`` of the concatenation of ``ranges``."""
    cut: list[Range] = []
    before = 0
    for start, stop in ranges:
        a, b = max(low - before, 0), min(high - before, stop - start)
        if a < b:
            cut.append((start + a, start + b))
        before += stop - start
    return cut


def _share(ranges: Sequence[Range], rank: int, world_size: int) -> list[Range]:
    """A rank's part of ``ranges``; parts differ in size by at most one row."""
    size = _size(ranges)
    return _cut(ranges, size * rank // world_size, size * (rank + 1) // world_size)


def _at_once(load: Callable[[], Block]) -> Callable[[], Block]:
    block = load()
    return lambda: block


def collate(schema: Schema, frame: pl.DataFrame, rows: npt.NDArray[np.int64]) -> Batch:
    """The batch of an encoded frame (what ``Encoder.encode`` gives, histories as lists), without labels.

    Args:
        rows: (B,) the positions the batch says its rows have.
    """
    columns = Columns(to_arrow(frame).combine_chunks().to_batches(), schema, {}, labelled=False)
    block = columns.block([(0, len(frame))])
    block.rows = rows
    return make_batch(schema, [(block, 0, len(frame))])
