"""Indexes of distinct texts: at which place among them each text of a column is.

Few texts are found by a Polars Enum. Many are found by a hash table in one sorted array, which is built in a twentieth
of the time and can be memory-mapped, so that an opened index takes no memory for texts that nobody asks for. Every text
that is found is compared with the text that was asked for: equal hashes never give a wrong place.

Letters: N texts that are asked for.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray
from safetensors.numpy import save_file

from data_pipelines.disk.damage import intact
from data_pipelines.disk.tensor_files import stored_tensors
from data_pipelines.errors import UserError
from data_pipelines.hashing import hashes

FEW = 1 << 13
"""Up to so many texts an Enum is faster: its table stays in the processor's cache."""
_EMPTY = np.uint64(2**64 - 1)
_HIGH = np.uint64(32)
_LARGEST_PRINT = np.uint64(2**32 - 2)
_LONGEST = 1 << 12
"""Slots that a search in a file passes at most; a table of a thousand million texts needs a few hundred."""
_TYPES: Mapping[str, Mapping[str, np.dtype[Any]]] = {
    "slots": {"U64": np.dtype(np.uint64)},
    "offsets": {"I32": np.dtype(np.int32), "I64": np.dtype(np.int64)},
    "letters": {"U8": np.dtype(np.uint8)},
}
"""Types of the tensors in a file, by the names that safetensors gives them."""


FromPlaces = Callable[[pl.Series, pl.Series], pl.Series]
"""Maps (N,) texts and their places to (N,) Int32."""


class TextIndex(Protocol):
    """Finds texts."""

    def places(self, text: pl.Expr, then: FromPlaces | None = None) -> pl.Expr:
        """The place of each text as Int32; null for null and for texts that the index does not have.

        Args:
            then: Gives the values of the expression instead, from the texts and their places.
        """


def index_of(texts: pl.Series) -> TextIndex:
    """The index of distinct ``texts`` without nulls.

    Raises:
        UserError: A text is there twice.
    """
    return EnumIndex(texts) if len(texts) <= FEW else HashedTexts(texts)


class EnumIndex:
    """An index that Polars builds and searches."""

    def __init__(self, texts: pl.Series) -> None:
        try:
            # Of an empty column that keeps the index: Polars builds that of a bare Enum for every expression.
            self._type = pl.dtype_of(pl.lit(pl.Series(dtype=pl.Enum(texts))))
        except (ValueError, pl.exceptions.PolarsError) as error:
            raise _damaged(str(error)) from None

    def places(self, text: pl.Expr, then: FromPlaces | None = None) -> pl.Expr:
        places = text.cast(self._type, strict=False).to_physical().cast(pl.Int32)
        if then is None:
            return places

        def values(found: pl.Series) -> pl.Series:
            return then(*found.struct.unnest())

        found = pl.struct(text, places.alias(":place"))
        return found.map_batches(values, return_dtype=pl.Int32, is_elementwise=True)


class HashIndex(ABC):
    """A hash table with linear probing, whose entries are sorted and never wrap around.

    An entry is the upper half of a text's hash, its *print*, and below it the place of the text. The search for a print
    begins at the slot that is proportional to it, and ends at the first entry that is not smaller, or at an empty slot,
    which is larger than all.

    Args:
        slots: The table; the last slot is empty.
        size: How many texts there are.
        longest: Slots that a search may pass.
        name: What errors call it.
    """

    def __init__(self, slots: NDArray[np.uint64], size: int, longest: int, name: str) -> None:
        self._slots, self._size, self._longest, self._name = slots, size, longest, name

    @abstractmethod
    def _at(self, places_N: NDArray[np.int64]) -> pl.Series:
        """(N,) the texts at some places below the size, as Binary."""

    def places(self, text: pl.Expr, then: FromPlaces | None = None) -> pl.Expr:
        def values(texts: pl.Series) -> pl.Series:
            return self.find(texts) if then is None else then(texts, self.find(texts))

        return text.map_batches(values, return_dtype=pl.Int32, is_elementwise=True)

    def find(self, texts: pl.Series) -> pl.Series:
        """(N,) the place of each text as Int32; null for null and for texts that the index does not have."""
        prints_N, asked = _prints(hashes(texts)), texts.cast(pl.Binary)
        # A method of a series that is an expression costs a query; indexing costs none.
        rows = np.flatnonzero(texts.is_not_null().to_numpy()) if texts.null_count() else np.arange(len(texts))
        places_N = np.full(len(texts), -1, np.int32)
        prints, slots = prints_N[rows], _home(prints_N[rows], self._size)
        while len(rows):
            slots, found = self._search(slots, prints)
            there = found >= 0
            rows, prints, slots, found = rows[there], prints[there], slots[there] + 1, found[there]
            if len(found) and found.max() >= self._size:
                raise self._damaged("places beyond its texts")
            same = (self._at(found) == (asked if len(rows) == len(asked) else asked[rows])).to_numpy()
            places_N[rows[same]] = found[same]
            rows, prints, slots = rows[~same], prints[~same], slots[~same]  # equal prints of different texts are rare
        places = pl.Series(places_N)
        return places.set(places < 0, None)

    def _search(
        self, slots_N: NDArray[np.int64], prints_N: NDArray[np.uint64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(N,) from each slot on, the first slot whose print is not smaller, and its place; -1 if it is larger."""
        wanted_N = prints_N << _HIGH
        entries_N = self._slots.take(slots_N)
        behind = np.flatnonzero(entries_N < wanted_N)
        passed = 0
        while len(behind):
            if passed == self._longest:
                raise self._damaged("entries that are not sorted")
            passed += 1
            slots_N[behind] += 1
            entries_N[behind] = self._slots.take(slots_N[behind])
            behind = behind[entries_N[behind] < wanted_N[behind]]
        same_N = entries_N >> _HIGH == prints_N
        return slots_N, np.where(same_N, (entries_N - wanted_N).astype(np.int64), -1)

    def _damaged(self, what: str) -> UserError:
        return UserError(f"{self._name} is damaged ({what}): make its directory again or restore it.")


class HashedTexts(HashIndex):
    """A hash index of texts that are in memory."""

    def __init__(self, texts: pl.Series) -> None:
        slots = _build(texts)
        super().__init__(slots, len(texts), len(slots), "an index of values")
        self._texts = texts.cast(pl.Binary)

    def _at(self, places_N: NDArray[np.int64]) -> pl.Series:
        return self._texts[places_N]


class MappedTexts(HashIndex):
    """Distinct texts in a memory-mapped safetensors file, with their hash index.

    The file has three tensors: ``slots``, the hash table; ``letters``, all texts one after the other in UTF-8; and
    ``offsets``, where in them each text begins, and the last one ends. It may be damaged or hostile: sizes are checked
    when it is opened, and every number from it before it is used.

    Raises:
        UserError: The file is missing or damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with intact(path):
            arrays = _mapped(path)
            slots, self._offsets, self._letters = (arrays[name] for name in ("slots", "offsets", "letters"))
            size = len(self._offsets) - 1
            if size < 0 or len(slots) <= _homes(size) or slots[-1] != _EMPTY:
                raise ValueError("tensors that do not belong together")
            super().__init__(slots, size, _LONGEST, str(path))

    def __len__(self) -> int:
        return self._size

    @staticmethod
    def write(texts: pl.Series, path: Path) -> None:
        """Write distinct ``texts`` without nulls, and their index, to ``path``."""
        flat = texts.cast(pl.Binary).to_arrow(compat_level=pl.CompatLevel.oldest())
        offsets = np.frombuffer(flat.buffers()[1], np.int64)[flat.offset : flat.offset + len(flat) + 1]
        letters = np.frombuffer(flat.buffers()[2] or b"", np.uint8)[offsets[0] : offsets[-1]]
        offsets = offsets - offsets[0]
        narrow = offsets.astype(np.int32) if len(letters) < 2**31 else offsets
        save_file({"slots": _build(texts), "offsets": narrow, "letters": letters}, path)

    @cached_property
    def texts(self) -> pl.Series:
        """All texts, read into memory.

        Raises:
            UserError: The file is damaged.
        """
        with intact(self.path):
            texts = self._binary.view(pa.large_string() if self._offsets.dtype == np.int64 else pa.string())
            texts.validate(full=True)
            return pl.Series("value", texts)

    def _at(self, places_N: NDArray[np.int64]) -> pl.Series:
        starts_N, ends_N = self._offsets.take(places_N), self._offsets.take(places_N + 1)
        if (starts_N > ends_N).any() or starts_N.min(initial=0) < 0 or ends_N.max(initial=0) > len(self._letters):
            raise self._damaged("texts beyond its end")
        return pl.Series(self._binary.take(pa.array(places_N)), dtype=pl.Binary)

    @cached_property
    def _binary(self) -> pa.Array:
        """All texts, which are not read yet."""
        kind = pa.large_binary() if self._offsets.dtype == np.int64 else pa.binary()
        buffers = [None, pa.py_buffer(self._offsets), pa.py_buffer(self._letters)]
        return pa.Array.from_buffers(kind, self._size, buffers)


def _prints(hashes_N: NDArray[np.uint64]) -> NDArray[np.uint64]:
    prints_N: NDArray[np.uint64] = np.minimum(hashes_N >> _HIGH, _LARGEST_PRINT)
    return prints_N


def _homes(size: int) -> int:
    """Slots at which a search can begin: a table that is two thirds full."""
    return size + size // 2 + 1


def _home(prints_N: NDArray[np.uint64], size: int) -> NDArray[np.int64]:
    """(N,) the slots at which searches for these prints begin."""
    return (prints_N * np.uint64(_homes(size)) >> _HIGH).astype(np.int64)


def _build(texts: pl.Series) -> NDArray[np.uint64]:
    """The hash table of distinct texts.

    Raises:
        UserError: A text is there twice.
    """
    size = len(texts)
    prints = _prints(hashes(texts))
    entries = np.sort(prints << _HIGH | np.arange(size, dtype=np.uint64))
    prints = entries >> _HIGH
    again = np.flatnonzero(prints[1:] == prints[:-1])
    shared = texts.gather(np.union1d(entries[again], entries[again + 1]) & np.uint64(2**32 - 1))
    if shared.n_unique() < len(shared):
        raise _damaged(f"{shared.filter(shared.is_duplicated())[0]!r} is there twice")
    # An entry is at its home or, where that is taken, behind the entry before.
    rank = np.arange(size)
    places = np.maximum.accumulate(_home(prints, size) - rank) + rank
    slots = np.full(max(_homes(size), int(places.max(initial=-1)) + 1) + 1, _EMPTY)
    slots[places] = entries
    return slots


def _mapped(path: Path) -> dict[str, NDArray[Any]]:
    """The tensors of the file of an index."""
    found = stored_tensors(path)
    if found.keys() != _TYPES.keys() or any(dtype not in _TYPES[name] for name, (dtype, _) in found.items()):
        raise ValueError("tensors of other names or types than those of an index")
    content = np.asarray(np.memmap(path, np.uint8, mode="r"))  # views of a memmap are slow to make
    arrays, end = {}, len(content)
    for name, (kind, shape) in reversed(found.items()):
        dtype = _TYPES[name][kind]
        start = end - math.prod(shape) * dtype.itemsize
        if len(shape) != 1 or start % dtype.itemsize:
            raise ValueError(f"a tensor {name!r} of another shape or place than that of an index")
        arrays[name], end = content[start:end].view(dtype), start
    return arrays


def _damaged(what: str) -> UserError:
    return UserError(f"a vocabulary is damaged ({what}): make the data set or artifact again.")
