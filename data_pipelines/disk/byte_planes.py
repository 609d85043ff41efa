"""The smallest files: tensors as byte planes compressed with LZMA, and sorted values as differences.

A packed file is read as a whole and cannot be mapped: it is for files that are shipped or stored more than opened.
"""

import lzma
import math
from collections.abc import Mapping
from typing import Annotated

import numpy as np
import polars as pl
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from data_pipelines.errors import UserError
from data_pipelines.names import SEPARATOR

# Planes hold numbers, which rarely repeat as phrases and whose bits are independent of their neighbours. The LZMA
# settings for text (contexts, deep searches for matches) would cost time here and gain nothing.
_FILTERS = [
    {
        "id": lzma.FILTER_LZMA2,
        "preset": 6,
        "mf": lzma.MF_HC4,
        "depth": 8,
        "nice_len": 32,
        "lc": 0,
        "lp": 0,
        "pb": 0,
    }
]
_DECODER_BYTES = 256 << 20
_HEADER_BYTES = 64 << 20
_FLOOR_BYTES, _EXPANSION = 64 << 20, 256
"""A stream may unpack to so many bytes, and to so many times its size: enough for tables of mostly equal rows."""
_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.bool,
        torch.uint8,
        torch.int8,
        torch.int16,
        torch.int32,
        torch.int64,
        torch.float16,
        torch.bfloat16,
        torch.float32,
        torch.float64,
    )
}
_INTEGER = r"^(?:0|-?[1-9][0-9]{0,17})$"


class _Header(BaseModel):
    """The head of a packed stream: the text, and dtype and shape of each tensor, in order."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    about: str
    tensors: dict[str, tuple[str, list[Annotated[int, Field(ge=0)]]]]


def pack(tensors: Mapping[str, Tensor], about: str) -> bytes:
    """``tensors`` and a text as one LZMA stream; :func:`unpack` is the inverse.

    The bytes of a tensor are grouped by their position in an element of its first dimension, so that bytes which are
    the same in all rows of a table, such as a common scale, take no space.

    Raises:
        UserError: They shrink so much that :func:`unpack` would refuse the stream.
    """
    kinds = {name: (str(t.dtype).removeprefix("torch."), list(t.shape)) for name, t in tensors.items()}
    header = _Header(about=about, tensors=kinds).model_dump_json().encode()
    planes = (_planes(tensor) for tensor in tensors.values())
    content = b"".join([len(header).to_bytes(8, "little"), header, *planes])
    packed = lzma.compress(content, check=lzma.CHECK_NONE, filters=_FILTERS)
    if len(header) > _HEADER_BYTES or len(content) > _largest(len(packed)):
        raise UserError(
            f"{len(content)} bytes pack into {len(packed)}, which readers would refuse to unpack: set export.packed to "
            "false."
        )
    return packed


def unpack(packed: bytes) -> tuple[dict[str, Tensor], str]:
    """The arguments of the call of :func:`pack` that made ``packed``.

    Sizes are compared with the limits before memory is taken, so that a small stream does not unpack to gigabytes.

    Raises:
        ValueError: ``packed`` is not such a stream, or unpacks to more than it says or than is allowed.
    """
    stream = _Stream(packed)
    header = _header(stream)
    wanted = 8 + sum(_bytes(kind, shape) for kind, shape in header.tensors.values())
    if wanted > _largest(len(packed)):
        raise ValueError(f"{len(packed)} bytes that unpack to {wanted}")
    tensors = {}
    for name, (kind, shape) in header.tensors.items():
        first = shape[0] if shape else 1
        planes = np.frombuffer(stream.read(_bytes(kind, shape)), np.uint8).reshape(-1, max(first, 1))
        tensors[name] = torch.from_numpy(planes.T.copy()).view(-1).view(_DTYPES[kind]).view(shape)
    if not stream.ended:
        raise ValueError("more bytes than its tensors have")
    return tensors, header.about


def unpack_about(packed: bytes) -> str:
    """The text of a stream, without unpacking its tensors.

    Raises:
        ValueError: ``packed`` is not a stream that :func:`pack` made.
    """
    return _header(_Stream(packed)).about


class _Stream:
    """Decompresses as many bytes as are asked for, and no more."""

    def __init__(self, packed: bytes) -> None:
        self._decoder = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_DECODER_BYTES)
        self._packed = packed

    def read(self, size: int) -> bytes:
        """Exactly ``size`` bytes."""
        parts = []
        while size:
            part = self._take(size)
            if not part:
                raise ValueError("cut short")
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    @property
    def ended(self) -> bool:
        return not self._take(1) and self._decoder.eof and not self._decoder.unused_data

    def _take(self, size: int) -> bytes:
        packed, self._packed = self._packed, b""
        return b"" if self._decoder.eof else self._decoder.decompress(packed, size)


def _header(stream: _Stream) -> _Header:
    size = int.from_bytes(stream.read(8), "little")
    if size > _HEADER_BYTES:
        raise ValueError(f"a header of {size} bytes")
    return _Header.model_validate_json(stream.read(size))


def _bytes(kind: str, shape: list[int]) -> int:
    if kind not in _DTYPES:
        raise ValueError(f"numbers of the unknown type {kind[:20]!r}")
    return math.prod(shape) * _DTYPES[kind].itemsize


def _largest(packed: int) -> int:
    """Bytes that ``packed`` bytes may unpack to."""
    return _FLOOR_BYTES + _EXPANSION * packed


def _planes(tensor: Tensor) -> bytes:
    first = tensor.shape[0] if tensor.dim() else 1
    flat = tensor.contiguous().view(-1).view(torch.uint8)
    return flat.view(max(first, 1), -1).T.contiguous().numpy().tobytes()


def packing_order(values: pl.Series) -> np.ndarray:
    """The order of ``values`` in which :func:`pack_values` makes fewest bytes: sorted part by part."""
    return np.asarray(_parts(values).with_row_index("place").sort(pl.exclude("place"))["place"].to_numpy())


def pack_values(values: pl.Series) -> dict[str, Tensor]:
    """Distinct texts as small numbers, which :func:`pack` compresses well.

    The parts of crossed values are stored separately. Whole numbers become the difference to the previous value, as
    long as all earlier parts equal those of the previous value; other parts become lengths and letters.
    """
    packed: dict[str, Tensor] = {}
    restarts = np.arange(len(values)) == 0
    for place, part in enumerate(_parts(values)):
        if part.dtype == pl.Int64:
            numbers = part.to_numpy()
            packed[f"{place}:number"] = _narrow(numbers - np.where(restarts, 0, np.roll(numbers, 1)))
        else:
            letters = np.frombuffer("".join(part.to_list()).encode(), np.uint8)
            packed[f"{place}:length"] = _narrow(part.str.len_bytes().to_numpy().astype(np.int64))
            packed[f"{place}:letters"] = torch.from_numpy(letters.copy())
        restarts = restarts | _changes(part)
    return packed


def unpack_values(packed: Mapping[str, Tensor]) -> pl.Series:
    """The texts that :func:`pack_values` got, in their order.

    Raises:
        ValueError: The tensors do not belong together.
        KeyError: One of them is missing.
    """
    parts: list[pl.Series] = []
    for place in sorted({int(name.split(":")[0]) for name in packed}):
        if f"{place}:number" in packed:
            numbers = _running(packed[f"{place}:number"].numpy().astype(np.int64), parts)
            parts.append(pl.Series(numbers).cast(pl.String))
        else:
            lengths = packed[f"{place}:length"].numpy().astype(np.int64)
            ends = lengths.cumsum()
            letters = packed[f"{place}:letters"].numpy().tobytes()
            if len(lengths) and (lengths.min() < 0 or ends[-1] != len(letters)):
                raise ValueError("texts that do not add up to their letters")
            spans = zip(ends - lengths, ends, strict=True)
            parts.append(pl.Series([letters[start:end].decode() for start, end in spans], dtype=pl.String))
    if len(parts) == 1:
        return parts[0].alias("value")
    frame = pl.DataFrame({str(place): part for place, part in enumerate(parts)})
    return frame.select(pl.concat_str(pl.all(), separator=SEPARATOR).alias("value"))["value"]


def _parts(values: pl.Series) -> pl.DataFrame:
    """The parts of crossed values, each Int64 where all of its texts are canonical whole numbers."""
    lists = values.str.split(SEPARATOR)
    counts = lists.list.len().unique().to_list()
    width = counts[0] if len(counts) == 1 else 1
    columns = [values] if width == 1 else [lists.list.get(place) for place in range(width)]
    numbers = (part.cast(pl.Int64) if part.str.contains(_INTEGER).all() else part for part in columns)
    return pl.DataFrame([part.alias(str(place)) for place, part in enumerate(numbers)])


def _narrow(numbers: np.ndarray) -> Tensor:
    """Integers in the narrowest type that can hold all of them."""
    for kind in (np.uint8, np.int16, np.int32):
        if len(numbers) == 0 or (numbers.min() >= np.iinfo(kind).min and numbers.max() <= np.iinfo(kind).max):
            return torch.from_numpy(numbers.astype(kind))
    return torch.from_numpy(numbers)


def _running(differences: np.ndarray, earlier: list[pl.Series]) -> np.ndarray:
    """Running sums of ``differences``, which restart where one of the ``earlier`` parts changes."""
    restarts = np.arange(len(differences)) == 0
    for part in earlier:
        restarts = restarts | _changes(part)
    sums = differences.cumsum()
    return np.asarray(sums - (sums - differences)[restarts][restarts.cumsum() - 1])


def _changes(part: pl.Series) -> np.ndarray:
    """Where a value differs from the previous one."""
    return np.asarray(part.ne_missing(part.shift(1)).to_numpy())
