"""The fewest bytes on disk: tensors as byte planes under LZMA, and sorted values as the differences between them.

What is packed is read whole, not mapped: for what is shipped or kept more often than it is opened.
"""

import json
import lzma
import math
from collections.abc import Mapping

import numpy as np
import polars as pl
import torch
from torch import Tensor

from data_pipelines.names import SEPARATOR

# Planes hold numbers, which hardly ever repeat as phrases and whose bits say nothing of their neighbours': what LZMA
# does for text (contexts, deep searches for matches) costs time here and gains nothing.
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
_INTEGER = r"^(?:0|-?[1-9][0-9]{0,17})$"


def pack(tensors: Mapping[str, Tensor], about: str) -> bytes:
    """``tensors``, and a text that goes with them, as one LZMA stream; :func:`unpack` is the way back.

    The bytes of a tensor are laid out by their place within an element of its first dimension: what is alike in all
    rows of a table, such as a common scale, then takes no space.
    """
    kinds = {name: (str(t.dtype).removeprefix("torch."), list(t.shape)) for name, t in tensors.items()}
    header = json.dumps({"about": about, "tensors": kinds}, ensure_ascii=False, separators=(",", ":")).encode()
    planes = (_planes(tensor) for tensor in tensors.values())
    content = b"".join([len(header).to_bytes(8, "little"), header, *planes])
    return lzma.compress(content, check=lzma.CHECK_NONE, filters=_FILTERS)


def unpack(packed: bytes) -> tuple[dict[str, Tensor], str]:
    """What :func:`pack` was given."""
    content = lzma.decompress(packed)
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    tensors = {}
    for name, (kind, shape) in header["tensors"].items():
        dtype: torch.dtype = getattr(torch, kind)
        size = math.prod(shape) * dtype.itemsize
        first = shape[0] if shape else 1
        planes = np.frombuffer(content, np.uint8, size, start).reshape(-1, max(first, 1))
        tensors[name] = torch.from_numpy(planes.T.copy()).view(-1).view(dtype).view(shape)
        start += size
    return tensors, header["about"]


def unpack_about(packed: bytes) -> str:
    """The text that went with the tensors, without unpacking them."""
    stream = lzma.LZMADecompressor()
    size = int.from_bytes(stream.decompress(packed, 8), "little")
    header = stream.decompress(b"", size)
    while len(header) < size:
        header += stream.decompress(b"", size - len(header))
    return str(json.loads(header)["about"])


def _planes(tensor: Tensor) -> bytes:
    first = tensor.shape[0] if tensor.dim() else 1
    flat = tensor.contiguous().view(-1).view(torch.uint8)
    return flat.view(max(first, 1), -1).T.contiguous().numpy().tobytes()


def packing_order(values: pl.Series) -> np.ndarray:
    """Places of ``values`` in the order in which :func:`pack_values` takes least: sorted part by part."""
    return np.asarray(_parts(values).with_row_index("place").sort(pl.exclude("place"))["place"].to_numpy())


def pack_values(values: pl.Series) -> dict[str, Tensor]:
    """Distinct texts as small numbers, which :func:`pack` makes few bytes of.

    The parts of crossed values are kept apart. Whole numbers become the difference to the value before, as long as
    all earlier parts are those of the value before; other parts become lengths and letters.
    """
    packed: dict[str, Tensor] = {}
    anew = np.arange(len(values)) == 0
    for place, part in enumerate(_parts(values)):
        if part.dtype == pl.Int64:
            numbers = part.to_numpy()
            packed[f"{place}:number"] = _narrow(numbers - np.where(anew, 0, np.roll(numbers, 1)))
        else:
            letters = np.frombuffer("".join(part.to_list()).encode(), np.uint8)
            packed[f"{place}:length"] = _narrow(part.str.len_bytes().to_numpy().astype(np.int64))
            packed[f"{place}:letters"] = torch.from_numpy(letters.copy())
        anew = anew | _changes(part)
    return packed


def unpack_values(packed: Mapping[str, Tensor]) -> pl.Series:
    """The texts that :func:`pack_values` was given, in their order."""
    parts: list[pl.Series] = []
    for place in sorted({int(name.split(":")[0]) for name in packed}):
        if f"{place}:number" in packed:
            numbers = _running(packed[f"{place}:number"].numpy().astype(np.int64), parts)
            parts.append(pl.Series(numbers).cast(pl.String))
        else:
            lengths = packed[f"{place}:length"].numpy().astype(np.int64)
            ends = lengths.cumsum()
            letters = packed[f"{place}:letters"].numpy().tobytes()
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
    """Whole numbers in the narrowest type that holds them all."""
    for kind in (np.uint8, np.int16, np.int32):
        if len(numbers) == 0 or (numbers.min() >= np.iinfo(kind).min and numbers.max() <= np.iinfo(kind).max):
            return torch.from_numpy(numbers.astype(kind))
    return torch.from_numpy(numbers)


def _running(differences: np.ndarray, earlier: list[pl.Series]) -> np.ndarray:
    """Sums of ``differences``, begun anew wherever one of the ``earlier`` parts changes."""
    anew = np.arange(len(differences)) == 0
    for part in earlier:
        anew = anew | _changes(part)
    sums = differences.cumsum()
    return np.asarray(sums - (sums - differences)[anew][anew.cumsum() - 1])


def _changes(part: pl.Series) -> np.ndarray:
    """Where a value is another than the one before."""
    return np.asarray(part.ne_missing(part.shift(1)).to_numpy())
