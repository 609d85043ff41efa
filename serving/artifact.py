"""The artifact: everything that scoring needs, in one directory that is mapped rather than read.

- ``model.json``: shape of the ranker, schema, shapes of the tables, calibration
- ``tables.safetensors``: embedding rows in FBGEMM's layout
- ``dense.safetensors``: everything else of the ranker
- ``encoder.json``, ``vocabularies/``: what turns raw rows into ids
- ``state/``: the past that histories and statistics need, when there are such features
- ``reference.json``: what training rows looked like, for drift
- ``model_card.json``: how good, how small, made from what
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from data_pipelines.batch import Schema
from data_pipelines.encoder import Encoder
from data_pipelines.errors import UserError
from data_pipelines.storage import Manifest, new_directory, open_directory
from models.ranker import Ranker, RankerConfig
from models.sparsity.compact import Precision, compress, decompress
from models.sparsity.quantization import Bits, quantize_rows
from models.table_layout import table_layouts
from models.weights import Weights, load_dense
from serving.calibration import Calibration
from serving.drift import Reference
from serving.quantized_tables import MappedTable, QuantizedTables

TABLES = "tables.safetensors"
DENSE = "dense.safetensors"
MODEL = "model.json"
CARD = "model_card.json"
REFERENCE = "reference.json"
STATE = "state"
_FACTOR = "factors:"


class TableEntry(BaseModel):
    """Shape of one table in ``tables.safetensors``: ``rows`` rows of ``dim`` numbers of ``bits`` bits."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    rows: int
    dim: int
    bits: Bits


class ModelFile(BaseModel):
    """What ``model.json`` holds."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    ranker: RankerConfig
    encoded: Schema
    tables: dict[str, TableEntry]
    precision: Precision
    calibration: dict[str, Calibration]


class ModelCard(BaseModel):
    """What a reader of the artifact wants to know: how good it is, how small, and what it was made from.

    Attributes:
        name: Name of the experiment.
        metrics: ``{split: {metric: value}}`` as evaluated before export.
        sparsity: The ledger: bytes and density of every part, before and after the levers.
        training: Fingerprints of run and data set, rows, features, and the resolved config.
        versions: Of the packages that trained it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str
    metrics: dict[str, Any]
    sparsity: dict[str, Any]
    training: dict[str, Any]
    versions: dict[str, str]


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


def write_artifact(
    weights: Weights,
    encoder: Encoder,
    state: Path | None,
    card: ModelCard,
    out: Path,
    *,
    calibration: dict[str, Calibration] | None = None,
    reference: Reference | None = None,
    replace: bool = False,
) -> None:
    """Write ``weights`` and what encodes rows for them as an artifact at ``out``, complete or not at all.

    Args:
        encoder: What :func:`served_encoder` gives: without pruned values and removed features.
        state: Folder of the past that histories and statistics start from, where there are any.

    Raises:
        UserError: ``out`` exists and ``replace`` is false, or cannot be written.
    """
    vocabularies = {layout.name: layout.vocabulary for layout in table_layouts(weights.schema, weights.config)}
    tables = {
        name: table[weights.keep[vocabularies[name]]] if vocabularies[name] in weights.keep else table
        for name, table in weights.tables.items()
    }
    bits: dict[str, Bits] = {name: weights.bits.get(name, 32) for name in tables}
    model = ModelFile(
        ranker=weights.config,
        encoded=encoder.schema,
        tables={
            name: TableEntry(rows=table.shape[0], dim=table.shape[1], bits=bits[name]) for name, table in tables.items()
        },
        precision=weights.precision,
        calibration=calibration or {},
    )
    meta = {"name": card.name, "tasks": list(encoder.schema.tasks), "training": card.training.get("fingerprints", {})}
    with new_directory(out, "artifact", meta=meta, replace=replace) as folder:
        save_file({name: quantize_rows(table, bits[name]) for name, table in tables.items()}, folder / TABLES)
        factors = {f"{_FACTOR}{name}": factor for name, factor in weights.factors.items()}
        save_file(compress(weights.dense | factors, weights.precision), folder / DENSE)
        encoder.save(folder, slim=True)
        if state is not None:
            shutil.copytree(state, folder / STATE)
        (folder / MODEL).write_text(model.model_dump_json(indent=1))
        (folder / CARD).write_text(card.model_dump_json(indent=1))
        if reference is not None:
            (folder / REFERENCE).write_text(reference.model_dump_json())


@dataclass(frozen=True)
class Artifact:
    """An opened artifact: its parts, with the tables mapped.

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
    def open(cls, path: Path, *, verify: Literal["full", "sizes"] = "full") -> "Artifact":
        """Check the manifest and map the files.

        Raises:
            UserError: No artifact, one of another format, or a file of it missing or changed.
        """
        manifest = open_directory(path, "artifact", verify=verify)
        model = ModelFile.model_validate_json((path / MODEL).read_bytes())
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
        """Bytes on disk of weights and vocabularies alone: what grows with the model."""
        kept = (TABLES, DENSE, "vocabularies/")
        return sum(entry.bytes for name, entry in self.manifest.files.items() if name.startswith(kept))

    def ranker(self) -> Ranker:
        """A ranker in evaluation mode over the mapped tables."""
        dense = decompress(load_file(self.path / DENSE))
        ranker = Ranker(self.model.ranker, self.model.encoded, self.tables())
        load_dense(ranker, {name: tensor for name, tensor in dense.items() if not name.startswith(_FACTOR)})
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
        with safe_open(self.path / DENSE, framework="pt") as stored:
            packed = {name: stored.get_tensor(name) for name in stored.keys() if name.startswith(_FACTOR)}  # noqa: SIM118
        factors = {name.removeprefix(_FACTOR): factor for name, factor in decompress(packed).items()}
        storage, offsets = _map(self.path / TABLES)
        tables = {
            name: MappedTable(entry.rows, entry.dim, entry.bits, offsets[name])
            for name, entry in self.model.tables.items()
        }
        return QuantizedTables(schema, config, storage, tables, factors)


def _map(path: Path) -> tuple[Tensor, dict[str, int]]:
    """The file's bytes, mapped, as one uint8 tensor, and where in it each tensor of the safetensors file starts."""
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(header_bytes))
    start = 8 + header_bytes
    offsets = {name: start + entry["data_offsets"][0] for name, entry in header.items() if name != "__metadata__"}
    return torch.from_file(str(path), shared=False, size=path.stat().st_size, dtype=torch.uint8), offsets
