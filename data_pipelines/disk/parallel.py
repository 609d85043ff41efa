"""Work that is done part by part, in this process or by workers on other machines, and the files that workers leave."""

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar
from uuid import uuid4

import polars as pl

PART_ROWS = 1 << 18
_MOST_WAITING = 1 << 20

Item = TypeVar("Item")
Result = TypeVar("Result")


class Engine(Protocol):
    """Runs ``work`` on each item, several at the same time; yields the results in the order of the items.

    Work may be done twice where a worker dies. The built-in ``map`` is the engine of this process.
    """

    def __call__(self, work: Callable[[Item], Result], items: Sequence[Item], /) -> Iterator[Result]: ...


@dataclass(frozen=True)
class Part:
    """``rows`` rows from the one at ``start``: the ``number``-th part of a log."""

    number: int
    start: int
    rows: int

    def of(self, frame: pl.LazyFrame) -> pl.LazyFrame:
        """The rows of the part."""
        return frame.slice(self.start, self.rows)


def parts_of(rows: int, size: int | None = None) -> list[Part]:
    """Parts of ``size`` rows (by default ``PART_ROWS``); one empty part if there are no rows."""
    size = size or PART_ROWS
    return [Part(number, start, size) for number, start in enumerate(range(0, max(rows, 1), size))]


def merged(
    parts: Iterator[list[pl.DataFrame]], merge: Callable[[Sequence[pl.DataFrame]], pl.DataFrame]
) -> list[pl.DataFrame]:
    """Merge the first frames of all parts, the second ones, and so on.

    Memory holds a few times as many rows as the result.

    Args:
        merge: Makes one frame of several, or of one, and may be given frames that it made.
    """
    waiting = [[frame] for frame in next(parts)]
    for part in parts:
        for own, frame in zip(waiting, part, strict=True):
            own.append(frame)
            if sum(map(len, own)) > 2 * max(_MOST_WAITING, len(own[0])):
                own[:] = [merge(own)]
    return [merge(own) for own in waiting]


@contextmanager
def left_at(path: Path) -> Iterator[Path]:
    """Yield another name to write a file or a folder to; on success it is renamed to ``path``.

    What is at ``path`` is complete, even if a worker dies. Where two workers do the same work, either result stays.
    """
    made = path.with_name(f".{path.name}.{uuid4().hex}")
    path.parent.mkdir(parents=True, exist_ok=True)
    yield made
    try:
        os.rename(made, path)
    except OSError:  # a folder does not replace another one
        if not path.is_dir():
            raise
        shutil.rmtree(made)
