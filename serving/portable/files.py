"""The files of a portable artifact: every size and offset is checked before it is used, and there are no pickles.

Letters: R rows of a table, W bytes of a row, d stored width of an embedding, D its width, B rows that are looked up.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

FORMAT = 2
MODEL, TABLES, DENSE, GRAPH = "model.json", "tables.safetensors", "dense.safetensors", "model.onnx"
IDS, NUMBERS, LOGITS = "ids.", "dense", "logits"
"""Inputs and output of the graph that this package computes; the ids of a feature are ``ids.<feature>``."""
_LARGEST_HEADER = 1 << 24
_DTYPES: dict[str, np.dtype[Any]] = {"U8": np.dtype("u1"), "F32": np.dtype("<f4")}


class PortableError(ValueError):
    """The artifact is damaged, or a row cannot be read; one sentence says what and where."""


@dataclass(frozen=True)
class Place:
    """Where a safetensors file has a tensor.

    Attributes:
        dtype: As the file's header names it.
        offset: Bytes before it in the file.
        size: Its bytes.
    """

    dtype: str
    shape: tuple[int, ...]
    offset: int
    size: int


def places(path: Path) -> dict[str, Place]:
    """Where a safetensors file has its tensors, in the order of their bytes.

    Raises:
        PortableError: The file is missing, or its header does not describe exactly the bytes that follow it.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(_LARGEST_HEADER, size - 8):
                raise PortableError(f"{path} is damaged: its header would have {length} bytes.")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        parts = sorted((entry["data_offsets"], name, entry) for name, entry in header.items())
    except OSError as error:
        raise PortableError(f"{path} cannot be read ({error.strerror}): export it again.") from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        reason = str(error) if isinstance(error, PortableError) else f"{path} is damaged: its header is invalid."
        raise PortableError(reason) from None
    found, end, begin = {}, 0, 8 + length
    for offsets, name, entry in parts:
        dtype, shape = _DTYPES.get(entry.get("dtype")), entry.get("shape")
        whole = isinstance(shape, list) and all(type(n) is int and n >= 0 for n in shape)
        if (
            dtype is None
            or not whole
            or offsets != [end, end + math.prod(shape) * dtype.itemsize]
            or offsets[1] > size - begin
        ):
            raise PortableError(f"{path} is damaged: the tensor {name!r} is not stored as its header says.")
        found[name] = Place(entry["dtype"], tuple(shape), begin + end, offsets[1] - end)
        end = offsets[1]
    if end != size - begin:
        raise PortableError(f"{path} is damaged: it has {size - begin} bytes of tensors, and its header names {end}.")
    return found


def read_tensors(path: Path) -> dict[str, NDArray[Any]]:
    """The tensors of a safetensors file, mapped and not read.

    Raises:
        PortableError: As :func:`places` does.
    """
    found = places(path)
    content = np.memmap(path, np.uint8, "r")
    return {
        name: content[place.offset : place.offset + place.size].view(_DTYPES[place.dtype]).reshape(place.shape)
        for name, place in found.items()
    }


def row_bytes(dim: int, bits: int) -> int:
    """Bytes of a row of ``dim`` numbers of 32, 16, 8, 4 or 2 bits: two float16 before codes of 8 bits or fewer."""
    return dim * bits // 8 if bits >= 16 else 4 + -(-dim * bits // 8)


class Table:
    """A table of embeddings as an artifact keeps it: one row of bytes per id."""

    def __init__(self, packed_RW: NDArray[np.uint8], dim: int, bits: int, factor_dD: Floats | None) -> None:
        self.packed_RW, self.dim, self.bits, self.factor_dD = packed_RW, dim, bits, factor_dD
        self.rows = len(packed_RW)

    def __call__(self, ids_B: NDArray[np.int64]) -> Floats:
        """(B, D) float32 embeddings of ids."""
        packed = np.ascontiguousarray(self.packed_RW[ids_B])
        if self.bits >= 16:
            rows: Floats = packed.view("<f4" if self.bits == 32 else "<f2").astype(np.float32)
        else:
            scale_bias = np.ascontiguousarray(packed[:, :4]).view("<f2").astype(np.float32)
            shifts = np.arange(0, 8, self.bits, dtype=np.uint8)
            codes = (packed[:, 4:, None] >> shifts) & np.uint8(2**self.bits - 1)
            rows = (
                codes.reshape(len(packed), math.prod(codes.shape[1:]))[:, : self.dim] * scale_bias[:, :1]
                + scale_bias[:, 1:]
            )
        return rows if self.factor_dD is None else rows @ self.factor_dD
