"""The encoded columns of a split whose files are fetched from an object store when their rows are read."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from threading import Lock

import numpy as np

from data_pipelines.batch import Schema
from data_pipelines.dataset.blocks import Block
from data_pipelines.dataset.columns import Columns, Range
from data_pipelines.disk.partial_copy import PartialCopy
from data_pipelines.errors import UserError
from data_pipelines.features.events import Events

_OPEN = 2
"""Groups of shards that stay mapped: the one in use, and the one before it."""


class ShardColumns:
    """Reads as :class:`Columns` does, with only those files fetched and mapped that have the rows asked for.

    Args:
        copy: Of the data set.
        names: Of the files of the split in it, in order.
        shards: Rows of each file.
        schema: Of the features to read.
        events: By history.
    """

    def __init__(
        self,
        copy: PartialCopy,
        names: Sequence[str],
        shards: Sequence[int],
        schema: Schema,
        events: Mapping[str, Events],
    ) -> None:
        self.schema, self.shards, self.lists = schema, shards, False
        self._copy, self._names, self._events = copy, names, events
        self._edges = np.concatenate([[0], np.cumsum(shards)]).astype(np.int64)
        self._open: dict[tuple[int, ...], Columns] = {}
        self._lock = Lock()
        self._ahead = ThreadPoolExecutor(1, thread_name_prefix="shards")

    def __len__(self) -> int:
        return int(self._edges[-1])

    def block(self, ranges: Sequence[Range], *, shuffled: bool = False) -> Block:
        """The rows of some ranges, one after the other; ``shuffled`` if batches will not take them in this order.

        Raises:
            UserError: A file cannot be fetched or is damaged.
        """
        pieces = [piece for start, stop in ranges for piece in self._pieces(start, stop)]
        needed = tuple(sorted({shard for shard, _, _ in pieces}))
        sizes = [self.shards[shard] for shard in needed]
        firsts = dict(zip(needed, np.cumsum(sizes) - sizes, strict=True))
        columns = self._columns(needed)
        columns.lists = self.lists
        local = [(int(firsts[shard]) + low, int(firsts[shard]) + high) for shard, low, high in pieces]
        block = columns.block(local, shuffled=shuffled)
        block.rows = np.concatenate([np.arange(start, stop) for start, stop in ranges])
        return block

    def prefetch(self, ranges: Sequence[Range]) -> None:
        """Start to fetch the files of some rows, without waiting for them."""
        shards = dict.fromkeys(shard for start, stop in ranges for shard, _, _ in self._pieces(start, stop))
        self._ahead.submit(self._fetch_ahead, list(shards))

    def _fetch_ahead(self, shards: Sequence[int]) -> None:
        try:
            for shard in shards:
                with self._copy.held(self._names[shard]):
                    pass
        except UserError:
            return  # reading the rows raises it again, in the thread that can report it

    def _pieces(self, start: int, stop: int) -> list[tuple[int, int, int]]:
        """(shard, start, stop inside it) of a range of rows."""
        found, shard = [], int(np.searchsorted(self._edges, start, side="right")) - 1
        while start < stop:
            low, high = int(self._edges[shard]), int(self._edges[shard + 1])
            found.append((shard, start - low, min(stop, high) - low))
            start, shard = high, shard + 1
        return found

    def _columns(self, shards: tuple[int, ...]) -> Columns:
        with self._lock:
            if shards not in self._open:
                with ExitStack() as stack:
                    paths = [stack.enter_context(self._copy.held(self._names[shard])) for shard in shards]
                    columns = Columns.of_files(paths, self.schema, self._events)
                self._check(shards, columns)
                while len(self._open) >= _OPEN:
                    del self._open[next(iter(self._open))]
                self._open[shards] = columns
            return self._open[shards]

    def _check(self, shards: Sequence[int], columns: Columns) -> None:
        for shard, rows in zip(shards, columns.shards, strict=True):
            if rows != self.shards[shard]:
                raise UserError(
                    f"{self._copy.address}/{self._names[shard]} has {rows} rows, and the data set says "
                    f"{self.shards[shard]}: prepare the data set again."
                )
