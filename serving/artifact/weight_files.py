"""The weights of an artifact on disk: their description in ``model.json``, and the bytes, checked against it.

Every number in these files may be wrong or hostile. Opening an artifact refuses numbers with which a lookup would read
outside the mapped bytes, or a ranker would take unlimited memory.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors.torch import load_file
from torch import Tensor

from data_pipelines.batch import Schema
from data_pipelines.disk.byte_planes import unpack, unpack_about
from data_pipelines.disk.damage import intact
from data_pipelines.disk.file_names import below
from data_pipelines.disk.tensor_files import stored_tensors
from models.codecs.compact import Precision, decompress
from models.codecs.quantization import Bits, row_bytes
from models.ranker import Ranker, RankerConfig
from models.tables.plan import lookup_plan
from serving.artifact.calibration import Calibration
from serving.artifact.device import check_room
from serving.artifact.quantized_tables import MappedTable, TableStorage
from serving.formula import Formula

TABLES = "tables.safetensors"
DENSE = "dense.safetensors"
MODEL = "model.json"
PACKED = "model.xz"
TABLE = "tables:"
FACTOR = "factors:"
GRID = "grids:"


class TableEntry(BaseModel):
    """Shape of one table in ``tables.safetensors``: ``rows`` rows of ``dim`` numbers of ``bits`` bits."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    rows: int = Field(ge=1)
    dim: int = Field(ge=1)
    bits: Bits


class ModelFile(BaseModel):
    """What ``model.json`` holds, or the head of ``model.xz``."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    ranker: RankerConfig
    encoded: Schema
    tables: dict[str, TableEntry]
    precision: Precision
    activations: Literal["int8"] | None = None
    calibration: dict[str, Calibration]
    conditional: bool = False
    score: str | None = None

    @classmethod
    def read(cls, folder: Path, schema: Schema) -> "ModelFile":
        """The file of the artifact in ``folder``, whose encoder makes rows of ``schema``.

        Raises:
            UserError: It is damaged, or its tables do not fit ``schema``.
        """
        packed = below(folder, PACKED)
        path = packed if packed.exists() else below(folder, MODEL)
        with intact(path):
            model = cls.model_validate_json(unpack_about(path.read_bytes()) if packed.exists() else path.read_bytes())
            model._check(schema)
        return model

    def _check(self, schema: Schema) -> None:
        if self.encoded != schema:
            raise ValueError("its schema is not that of the encoder beside it")
        if unknown := self.calibration.keys() - set(schema.tasks):
            raise ValueError(f"it calibrates {', '.join(sorted(unknown))}, which is no task")
        if self.score is not None:
            Formula.parse(self.score, schema.tasks)
        rows = {layout.name: layout.rows for layout in lookup_plan(schema, self.ranker).tables}
        if rows != {name: entry.rows for name, entry in self.tables.items()}:
            raise ValueError("its tables are not those of its schema, or have other rows")


class Dense(NamedTuple):
    """Parameters by name, factors by table and grids by layer, as a ranker and its lookup use them."""

    parameters: dict[str, Tensor]
    factors: dict[str, Tensor]
    grids: dict[str, Tensor]


def grid_steps(dense: Mapping[str, Tensor], grids: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """By parameter, the factors of stored columns: int8 layers store products of weights and grid steps.

    Heads are left out, because they read more columns than their grid has.
    """
    steps = {f"{name}.weight": grid_2D[1] for name, grid_2D in grids.items()}
    return {name: step_D for name, step_D in steps.items() if dense[name].shape[1] == len(step_D)}


def split_dense(compressed: Mapping[str, Tensor]) -> Dense:
    """Inverse of :func:`serving.artifact.artifact.compressed_dense`, up to rounding."""
    every = decompress(compressed)
    factors, grids = (
        {name.removeprefix(prefix): every.pop(name) for name in list(every) if name.startswith(prefix)}
        for prefix in (FACTOR, GRID)
    )
    unscaled = {name: every[name] / step_D for name, step_D in grid_steps(every, grids).items()}
    return Dense(every | unscaled, factors, grids)


@dataclass(frozen=True)
class StoredWeights:
    """The weights of an artifact, in the form that its ranker and its lookup need.

    Attributes:
        rows: The rows of all tables: in a mapped file, or in memory if the artifact is packed.
        dense: All other weights.
    """

    rows: TableStorage
    dense: Dense
    _copies: dict[torch.device, TableStorage] = field(default_factory=dict, compare=False)

    def on(self, device: torch.device) -> TableStorage:
        """The rows of all tables on a device. A GPU reads a copy in its own memory, which is made once.

        Raises:
            UserError: The GPU has no room for the copy.
        """
        if device.type == "cpu":
            return self.rows
        if device not in self._copies:
            check_room(self.rows.aligned_bytes, device)
            self._copies[device] = self.rows.aligned(device)
        return self._copies[device]

    @classmethod
    def read(cls, folder: Path, model: ModelFile) -> "StoredWeights":
        """Map or unpack the weights of the artifact in ``folder``.

        Raises:
            UserError: A file is damaged, or its tensors do not fit ``model``.
        """
        packed = below(folder, PACKED)
        if packed.exists():
            with intact(packed):
                stored = cls._unpacked(packed, model)
                stored._check(model)
            return stored
        with intact(below(folder, TABLES)):
            rows = _mapped(folder / TABLES, model)
        with intact(below(folder, DENSE)):
            stored = cls(rows, split_dense(load_file(folder / DENSE)))
            stored._check(model)
        return stored

    @classmethod
    def _unpacked(cls, path: Path, model: ModelFile) -> "StoredWeights":
        tensors = unpack(path.read_bytes())[0]
        rows = {name.removeprefix(TABLE): table for name, table in tensors.items() if name.startswith(TABLE)}
        _check_tables(model, {name: (table.dtype, list(table.shape)) for name, table in rows.items()})
        ends = np.cumsum([0, *(table.numel() for table in rows.values())]).tolist()
        storage = torch.cat([table.flatten() for table in rows.values()] or [torch.empty(0, dtype=torch.uint8)])
        dense = {name: tensor for name, tensor in tensors.items() if not name.startswith(TABLE)}
        return cls(_placed(storage, dict(zip(rows, ends, strict=False)), model), split_dense(dense))

    def _check(self, model: ModelFile) -> None:
        """Compare the dense part with the ranker of ``model``, built on the meta device."""
        for layout in lookup_plan(model.encoded, model.ranker).tables:
            stored, factor = model.tables[layout.name].dim, self.dense.factors.get(layout.name)
            if (stored, layout.dim) != ((layout.dim, layout.dim) if factor is None else tuple(factor.shape)):
                raise ValueError(f"table {layout.name!r} has {stored} columns, and the ranker reads {layout.dim}")
        with torch.device("meta"):
            wanted = Ranker(model.ranker, model.encoded, torch.nn.Identity()).dense_state()
        for name, tensor in self.dense.parameters.items():
            if name in wanted and tensor.shape != wanted[name].shape:
                raise ValueError(f"{name} has shape {list(tensor.shape)}, not {list(wanted[name].shape)}")


def _mapped(path: Path, model: ModelFile) -> TableStorage:
    """The rows in ``tables.safetensors``."""
    found = stored_tensors(path)
    _check_tables(
        model, {name: (torch.uint8 if dtype == "U8" else None, shape) for name, (dtype, shape) in found.items()}
    )
    size = path.stat().st_size
    ends = np.cumsum([rows * width for _, (rows, width) in found.values()], dtype=np.int64).tolist()
    start = size - (ends[-1] if ends else 0)
    storage = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)
    return _placed(storage, dict(zip(found, [start, *(start + end for end in ends)], strict=False)), model)


def _placed(content: Tensor, offsets: Mapping[str, int], model: ModelFile) -> TableStorage:
    entries = model.tables.items()
    return TableStorage(content, {name: MappedTable(e.rows, e.dim, e.bits, offsets[name]) for name, e in entries})


def _check_tables(model: ModelFile, found: Mapping[str, tuple[torch.dtype | None, list[int]]]) -> None:
    wanted = {name: (torch.uint8, [e.rows, row_bytes(e.dim, e.bits)]) for name, e in model.tables.items()}
    for name in {**wanted, **found}:
        if wanted.get(name) != found.get(name):
            raise ValueError(f"table {name!r} is not stored as the model says it is")
