"""The artifact: everything that scoring needs, in one directory that is mapped rather than read.

- ``model.json``: shape of the ranker, schema, shapes of the tables, calibration
- ``tables.safetensors``: embedding rows in FBGEMM's layout
- ``dense.safetensors``: everything else of the ranker
- ``encoder.json``, ``vocabularies/``: what turns raw rows into ids
- or, packed, ``model.xz`` and ``encoder.xz`` instead of these: fewer bytes, read whole (see
  ``data_pipelines.disk.byte_planes``)
- ``state/``: the past that histories and statistics need, when there are such features
- ``reference.json``: what training rows looked like, for drift
- ``model_card.json``: how good, how small, made from what
"""

import dataclasses
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from safetensors.torch import load_file, save_file
from torch import Tensor

from data_pipelines.batch import Schema
from data_pipelines.disk.byte_planes import pack, unpack, unpack_about
from data_pipelines.disk.storage import Manifest, new_directory, open_directory
from data_pipelines.errors import UserError
from data_pipelines.features.encoder import Encoder
from models.codecs.compact import Precision, compress, decompress
from models.codecs.quantization import Bits
from models.int8 import HEAD
from models.ranker import Ranker, RankerConfig
from models.tables.layout import table_layouts
from models.weights import Weights, load_dense
from serving.artifact.calibration import Calibration
from serving.artifact.card import ModelCard
from serving.artifact.drift import Reference
from serving.artifact.quantized_tables import MappedTable, QuantizedTables

TABLES = "tables.safetensors"
DENSE = "dense.safetensors"
MODEL = "model.json"
PACKED = "model.xz"
CARD = "model_card.json"
REFERENCE = "reference.json"
STATE = "state"
_FACTOR, _GRID, _TABLE = "factors:", "grids:", "tables:"


class TableEntry(BaseModel):
    """Shape of one table in ``tables.safetensors``: ``rows`` rows of ``dim`` numbers of ``bits`` bits."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    rows: int
    dim: int
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


def served_encoder(weights: Weights, encoder: Encoder) -> Encoder:
    """The training encoder without the values that ``weights.keep`` drops and the features its schema no longer has.

    Raises:
        UserError: A pruned table has several OOV buckets: training sends pruned ids to the first, encoding to any.
    """
    for name in weights.keep:
        if weights.schema.table(name).oov_buckets > 1:
            raise UserError(f"table {name!r} is pruned and has several OOV buckets: set oov_buckets to 1.")
    return encoder.select(weights.schema.feature_names).prune(
        {name: keep.numpy() for name, keep in weights.keep.items()}
    )


def compressed_dense(weights: Weights) -> dict[str, Tensor]:
    """Dense part, factors of tables and grids as an artifact keeps them; :func:`split_dense` is the way back."""
    factors = {f"{_FACTOR}{name}": factor for name, factor in weights.factors.items()}
    grids = {f"{_GRID}{name}": grid for name, grid in weights.grids.items()}
    scaled = {name: weights.dense[name] * step_D for name, step_D in _steps(weights.grids).items()}
    return compress(weights.dense | scaled | factors, weights.precision, weights.dense_step) | grids


def _steps(grids: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """By parameter, what columns are multiplied by where they are kept: int8 layers round the products alone.

    Not those of heads, which read more than a grid has columns.
    """
    return {f"{name}.weight": grid_2D[1] for name, grid_2D in grids.items() if name != HEAD}


class Dense(NamedTuple):
    """Parameters by name, factors by table and grids by layer, as a ranker and its lookup see them."""

    parameters: dict[str, Tensor]
    factors: dict[str, Tensor]
    grids: dict[str, Tensor]


def split_dense(compressed: Mapping[str, Tensor]) -> Dense:
    """Inverse of :func:`compressed_dense`, but for what was rounded."""
    every = decompress(compressed)
    factors, grids = (
        {name.removeprefix(prefix): every.pop(name) for name in list(every) if name.startswith(prefix)}
        for prefix in (_FACTOR, _GRID)
    )
    unscaled = {name: every[name] / step_D for name, step_D in _steps(grids).items()}
    return Dense(every | unscaled, factors, grids)


def in_packing_order(weights: Weights, encoder: Encoder) -> tuple[Weights, Encoder]:
    """``weights`` without the rows that they do not keep, and their ``encoder``, in the order that packs best.

    Args:
        encoder: What :func:`served_encoder` gives for ``weights``.
    """
    encoder, before = encoder.in_packing_order()
    tables = _kept_rows(weights)
    for layout in table_layouts(weights.schema, weights.config):
        if layout.vocabulary in before:
            tables[layout.name] = tables[layout.name][torch.from_numpy(before[layout.vocabulary])]
    return dataclasses.replace(weights, tables=tables, keep={}), encoder


def _kept_rows(weights: Weights) -> dict[str, Tensor]:
    vocabularies = {layout.name: layout.vocabulary for layout in table_layouts(weights.schema, weights.config)}
    return {
        name: table[weights.keep[vocabularies[name]]] if vocabularies[name] in weights.keep else table
        for name, table in weights.tables.items()
    }


def write_artifact(
    weights: Weights,
    encoder: Encoder,
    state: Path | None,
    card: ModelCard,
    out: Path,
    *,
    calibration: dict[str, Calibration] | None = None,
    reference: Reference | None = None,
    packed: bool = False,
    replace: bool = False,
) -> None:
    """Write ``weights`` and what encodes rows for them as an artifact at ``out``, complete or not at all.

    Args:
        encoder: What :func:`served_encoder` gives: without pruned values and removed features.
        state: Folder of the past that histories and statistics start from, where there are any.
        packed: Entropy-code weights and encoder; best after :func:`in_packing_order`.

    Raises:
        UserError: ``out`` exists and ``replace`` is false, or cannot be written.
    """
    weights = dataclasses.replace(weights, tables=_kept_rows(weights))
    bits: dict[str, Bits] = {name: weights.bits.get(name, 32) for name in weights.tables}
    model = ModelFile(
        ranker=weights.config,
        encoded=encoder.schema,
        tables={
            name: TableEntry(rows=table.shape[0], dim=table.shape[1], bits=bits[name])
            for name, table in weights.tables.items()
        },
        precision=weights.precision,
        activations="int8" if weights.grids else None,
        calibration=calibration or {},
    )
    meta = {"name": card.name, "tasks": list(encoder.schema.tasks), "training": card.training.fingerprints}
    rows = {name: weights.packed_rows(name) for name in weights.tables}
    dense = compressed_dense(weights)
    with new_directory(out, "artifact", meta=meta, replace=replace) as folder:
        if packed:
            named = {f"{_TABLE}{name}": table for name, table in rows.items()}
            (folder / PACKED).write_bytes(pack(named | dense, model.model_dump_json()))
        else:
            save_file(rows, folder / TABLES)
            save_file(dense, folder / DENSE)
            (folder / MODEL).write_text(model.model_dump_json(indent=1))
        encoder.save(folder, slim=True, packed=packed)
        if state is not None:
            shutil.copytree(state, folder / STATE)
        (folder / CARD).write_text(card.model_dump_json(indent=1))
        if reference is not None:
            (folder / REFERENCE).write_text(reference.model_dump_json())


@dataclass(frozen=True)
class Artifact:
    """An opened artifact: its parts, with the tables mapped, or read where it is packed.

    Attributes:
        encoder: Raw rows in, ids out; already without pruned values and removed features.
        state: Folder of the past of every entity as of export, ``None`` when no feature needs one.
        reference: What training rows looked like, ``None`` when the exporter had none.
    """

    path: Path
    manifest: Manifest
    model: ModelFile
    card: ModelCard
    encoder: Encoder
    state: Path | None
    reference: Reference | None

    @classmethod
    def open(cls, path: Path, *, verify: Literal["full", "sizes"] = "sizes") -> "Artifact":
        """Check the manifest and map the files.

        Args:
            verify: ``"sizes"`` leaves the tables on the disk until a row of theirs is asked for; ``"full"`` reads every
                byte and compares checksums, as is done where an artifact comes in: by ``recsys score``, ``verify`` and
                ``inspect``, and when a service is told of it.

        Raises:
            UserError: No artifact, one of another format, or a file of it missing or changed.
        """
        manifest = open_directory(path, "artifact", verify=verify)
        packed = path / PACKED
        text = unpack_about(packed.read_bytes()) if packed.exists() else (path / MODEL).read_text()
        model = ModelFile.model_validate_json(text)
        return cls(
            path=path,
            manifest=manifest,
            model=model,
            card=ModelCard.model_validate_json((path / CARD).read_bytes()),
            encoder=Encoder.load(path),
            state=path / STATE if (path / STATE).is_dir() else None,
            reference=(
                Reference.model_validate_json((path / REFERENCE).read_bytes()) if (path / REFERENCE).is_file() else None
            ),
        )

    @property
    def fingerprint(self) -> str:
        """Name of the content, for ledgers and caches."""
        return self.manifest.fingerprint

    @property
    def bytes(self) -> int:
        """Bytes of all files together."""
        return sum(entry.bytes for entry in self.manifest.files.values())

    @property
    def model_bytes(self) -> int:
        """Bytes on disk of what scoring reads beside the past: weights, vocabularies, and how to use them."""
        return self.bytes_of(TABLES, DENSE, MODEL, PACKED, "encoder.", "vocabularies/")

    def bytes_of(self, *prefixes: str) -> int:
        """Bytes of the files whose names start with one of ``prefixes``."""
        return sum(entry.bytes for name, entry in self.manifest.files.items() if name.startswith(prefixes))

    def ranker(self) -> Ranker:
        """A ranker in evaluation mode over the mapped tables."""
        ranker = Ranker(self.model.ranker, self.model.encoded, self.tables())
        dense = split_dense(self._weights.dense)
        load_dense(ranker, dense.parameters, dense.grids)
        return ranker.eval().requires_grad_(False)

    def tables(self, schema: Schema | None = None) -> QuantizedTables:
        """The mapped tables, looked up for the features of ``schema`` (a part of the artifact's own), or for all."""
        schema, config = schema or self.model.encoded, self.model.ranker
        names = {name for feature in schema.sparse for name in (feature.name, feature.sequence, feature.table)}
        config = config.model_copy(
            update={
                "pooling": {name: pooling for name, pooling in config.pooling.items() if name in names},
                "tables": {name: table for name, table in config.tables.items() if name in names},
            }
        )
        stored = self._weights
        factors = split_dense({name: part for name, part in stored.dense.items() if name.startswith(_FACTOR)}).factors
        tables = {
            name: MappedTable(entry.rows, entry.dim, entry.bits, stored.offsets[name])
            for name, entry in self.model.tables.items()
        }
        return QuantizedTables(schema, config, stored.storage, tables, factors)

    @cached_property
    def _weights(self) -> "_Stored":
        packed = self.path / PACKED
        return _unpacked(unpack(packed.read_bytes())[0]) if packed.exists() else _mapped(self.path)


@dataclass(frozen=True)
class _Stored:
    """The weights of an artifact: (bytes,) uint8 with the rows of tables at ``offsets``; the dense part, compressed."""

    storage: Tensor
    offsets: Mapping[str, int]
    dense: Mapping[str, Tensor]


def _unpacked(tensors: Mapping[str, Tensor]) -> _Stored:
    rows = {name.removeprefix(_TABLE): table for name, table in tensors.items() if name.startswith(_TABLE)}
    ends = np.cumsum([0, *(table.numel() for table in rows.values())]).tolist()
    storage = torch.cat([table.flatten() for table in rows.values()])
    dense = {name: tensor for name, tensor in tensors.items() if not name.startswith(_TABLE)}
    return _Stored(storage, dict(zip(rows, ends, strict=False)), dense)


def _mapped(folder: Path) -> _Stored:
    path = folder / TABLES
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(header_bytes))
    start = 8 + header_bytes
    offsets = {name: start + entry["data_offsets"][0] for name, entry in header.items() if name != "__metadata__"}
    storage = torch.from_file(str(path), shared=False, size=path.stat().st_size, dtype=torch.uint8)
    return _Stored(storage, offsets, load_file(folder / DENSE))
