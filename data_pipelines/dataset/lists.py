"""The rows of lists in a prepared split: they become neighbours, and get their ``relative`` features."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from data_pipelines.dataset.blocks import list_starts
from data_pipelines.dataset.columns import PartWriter, parts, scan_parts
from data_pipelines.features.encoder import Encoder
from data_pipelines.names import LIST

_CHUNK_ROWS = 1 << 17


def arrange(encoder: Encoder, source: Path, out: Path) -> int:
    """Write the rows of ``source`` to ``out``, those of a list one after the other, with their ``relative`` features.

    A split whose lists are scattered is held in memory once; otherwise memory holds a few parts.

    Returns:
        How many lists have more than one row.
    """
    frame = scan_parts(source)
    lists_N = frame.select(LIST).collect()[LIST].to_numpy()
    writer = PartWriter(out)
    if together(lists_N):
        chunks = _whole_lists(source, list_starts(lists_N))
    else:
        lists_N, chunks = _sorted(frame, lists_N)
    for chunk in chunks:
        writer.write(encoder.relate(chunk))
    writer.close()
    sizes = np.diff(np.flatnonzero(list_starts(lists_N)), append=len(lists_N))
    return int((sizes > 1).sum())


def together(lists_N: npt.NDArray[np.uint64]) -> bool:
    """Whether the rows of every list are neighbours."""
    first_L = lists_N[list_starts(lists_N)]
    first_L = first_L[first_L != 0]
    return len(np.unique(first_L)) == len(first_L)


def _sorted(
    frame: pl.LazyFrame, lists_N: npt.NDArray[np.uint64]
) -> tuple[npt.NDArray[np.uint64], Iterator[pl.DataFrame]]:
    """Lists in the order of their first rows, and rows of a list in theirs."""
    alone_N = lists_N == 0
    _, first_L, list_N = np.unique(lists_N, return_index=True, return_inverse=True)
    begin_N = np.where(alone_N, np.arange(len(lists_N)), first_L[list_N.reshape(-1)])
    order_N = np.argsort(begin_N, kind="stable")
    lists_N = lists_N[order_N]
    rows = frame.collect()[order_N]
    return lists_N, (rows[a:b] for a, b in list_cuts(list_starts(lists_N), _CHUNK_ROWS))


def list_cuts(starts_N: npt.NDArray[np.bool_], rows: int) -> list[tuple[int, int]]:
    """Ranges of about ``rows`` rows that end where lists end; one empty range without rows."""
    bounds_L = np.append(np.flatnonzero(starts_N), len(starts_N))
    wanted = np.arange(rows, len(starts_N), rows)
    inner = bounds_L[np.searchsorted(bounds_L, wanted)]
    edges = np.unique([0, *inner, len(starts_N)]).tolist()
    return list(pairwise(edges)) or [(0, 0)]


def _whole_lists(source: Path, starts_N: npt.NDArray[np.bool_]) -> Iterator[pl.DataFrame]:
    frames = _batches(source)
    held, begin = next(frames, pl.DataFrame()), 0
    for start, stop in list_cuts(starts_N, _CHUNK_ROWS):
        while begin + len(held) < stop:
            held = pl.concat([held, next(frames)])
        yield held[start - begin : stop - begin]
        held, begin = held[stop - begin :], stop


def _batches(source: Path) -> Iterator[pl.DataFrame]:
    """The record batches of a split, in their order; one without rows if there are none."""
    for path in parts(source):
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        if not reader.num_record_batches:
            yield pl.DataFrame(pl.from_arrow(reader.schema.empty_table()))
        for i in range(reader.num_record_batches):
            yield pl.DataFrame(pl.from_arrow(reader.get_batch(i)))
