"""The artifact: everything that scoring needs, in one directory that is memory-mapped.

- ``model.json``: shape of the ranker, schema, shapes of the tables, calibration
- ``tables.safetensors``: embedding rows in FBGEMM's layout
- ``dense.safetensors``: everything else of the ranker
- ``encoder.json``, ``vocabularies/``: the encoder, which turns raw rows into ids
- if packed, ``model.xz`` and ``encoder.xz`` instead of these: fewer bytes, but read as a whole (see
  ``data_pipelines.disk.byte_planes``)
- ``state/``: the past that histories and statistics need, if there are such features
- ``reference.json``: the distribution of training rows, for drift
- ``model_card.json``: metrics, sizes, and what the model was made from
"""

import dataclasses
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from data_pipelines.batch import Schema
from data_pipelines.config.base import extensions_meta
from data_pipelines.disk.byte_planes import pack
from data_pipelines.disk.damage import intact, read_json
from data_pipelines.disk.file_names import below
from data_pipelines.disk.storage import Manifest, new_directory, open_directory
from data_pipelines.errors import UserError
from data_pipelines.features.encoder import Encoder
from data_pipelines.files.find import find_files
from data_pipelines.files.formats import Find
from data_pipelines.notebook import html_table
from data_pipelines.past.state import State
from models.codecs.compact import compress
from models.codecs.quantization import Bits
from models.ranker import Ranker
from models.tables.plan import lookup_plan
from models.weights import Weights, load_dense
from serving.artifact.card import ModelCard
from serving.artifact.device import CPU
from serving.artifact.drift import Reference
from serving.artifact.outputs import Outputs
from serving.artifact.quantized_tables import QuantizedTables
from serving.artifact.stamps import Stamp, check_not_written, stamps_of
from serving.artifact.weight_files import (
    DENSE,
    FACTOR,
    GRID,
    MODEL,
    PACKED,
    TABLE,
    TABLES,
    ModelFile,
    StoredWeights,
    TableEntry,
    grid_steps,
)
from serving.formula import Formula

CARD = "model_card.json"
REFERENCE = "reference.json"
STATE = "state"


def served_encoder(weights: Weights, encoder: Encoder) -> Encoder:
    """The training encoder without the values that ``weights.keep`` drops and the features its schema no longer has.

    Raises:
        UserError: A pruned table has several OOV buckets: training maps pruned ids to the first, encoding to any.
    """
    for name in weights.keep:
        if weights.schema.table(name).oov_buckets > 1:
            raise UserError(f"table {name!r} is pruned and has several OOV buckets: set oov_buckets to 1.")
    keep = {name: keep.numpy() for name, keep in weights.keep.items()}
    return encoder.select(weights.schema.feature_names).prune(keep).as_served()


def compressed_dense(weights: Weights) -> dict[str, Tensor]:
    """Dense part, factors of tables and grids as an artifact stores them.

    :func:`serving.artifact.weight_files.split_dense` is the inverse.
    """
    factors = {f"{FACTOR}{name}": factor for name, factor in weights.factors.items()}
    grids = {f"{GRID}{name}": grid for name, grid in weights.grids.items()}
    scaled = {name: weights.dense[name] * step_D for name, step_D in grid_steps(weights.dense, weights.grids).items()}
    return compress(weights.dense | scaled | factors, weights.precision, weights.dense_step) | grids


def in_packing_order(weights: Weights, encoder: Encoder) -> tuple[Weights, Encoder]:
    """``weights`` without pruned rows, and their ``encoder``, in the order that compresses best.

    Args:
        encoder: What :func:`served_encoder` gives for ``weights``.
    """
    encoder, before = encoder.in_packing_order()
    tables = _kept_rows(weights)
    for layout in lookup_plan(weights.schema, weights.config).tables:
        if layout.vocabulary in before:
            tables[layout.name] = tables[layout.name][torch.from_numpy(before[layout.vocabulary])]
    return dataclasses.replace(weights, tables=tables, keep={}), encoder


def _kept_rows(weights: Weights) -> dict[str, Tensor]:
    vocabularies = {layout.name: layout.vocabulary for layout in lookup_plan(weights.schema, weights.config).tables}
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
    outputs: Outputs | None = None,
    reference: Reference | None = None,
    packed: bool = False,
    replace: bool = False,
) -> None:
    """Write ``weights`` and the encoder of their rows as an artifact at ``out``, completely or not at all.

    Args:
        encoder: What :func:`served_encoder` gives: without pruned values and removed features.
        outputs: What scoring answers with; uncalibrated predictions of the tasks if absent.
        state: Folder of the past that histories and statistics start from, if there are any.
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
        calibration={} if outputs is None else dict(outputs.calibration),
        conditional=outputs is not None and outputs.conditional,
        score=None if outputs is None or outputs.score is None else outputs.score.text,
    )
    meta = {"name": card.name, "tasks": list(encoder.schema.tasks), "training": card.training.fingerprints}
    meta |= extensions_meta(encoder.config, weights.config)
    rows = {name: weights.packed_rows(name) for name in weights.tables}
    dense = compressed_dense(weights)
    with new_directory(out, "artifact", meta=meta, replace=replace) as folder:
        if packed:
            named = {f"{TABLE}{name}": table for name, table in rows.items()}
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
    """An opened artifact. Its tables are memory-mapped, or in memory if it is packed.

    Attributes:
        stamps: The stamps of its files when it was opened.
        encoder: Turns raw rows into ids; without pruned values and removed features.
        state: Folder of the past of every entity as of export, ``None`` when no feature needs one.
        reference: The distribution of training rows, ``None`` if the exporter had none.
        find: Finds the files that are read when rows are scored: inputs, candidates, and side tables. In a service it
            refuses files outside the data roots.

    Example:
        >>> artifact = rs.Artifact.open(Path("artifact"))
        >>> artifact.encoder.schema.tasks
        ('clicked',)
        >>> artifact.card.name
        'clicks'
    """

    path: Path
    manifest: Manifest
    stamps: Mapping[str, Stamp | None]
    model: ModelFile
    card: ModelCard
    encoder: Encoder
    state: Path | None
    reference: Reference | None
    find: Find = find_files

    @classmethod
    def open(cls, path: Path, *, verify: Literal["full", "sizes"] = "sizes", find: Find = find_files) -> "Artifact":
        """Check the manifest and map the files.

        Args:
            verify: ``"sizes"`` reads tables only when rows of them are looked up; ``"full"`` reads every byte and
                compares checksums, as ``recsys score``, ``verify`` and ``inspect`` do, and services and workers when
                they open an artifact.
            find: Finds the files that the artifact reads while it scores.

        Raises:
            UserError: No artifact, one of another format, a file missing or changed, or files that do not fit together.
        """
        manifest = open_directory(path, "artifact", verify="sizes")
        stamps = stamps_of(path, manifest.files)
        if verify == "full":
            open_directory(path, "artifact")  # after the stamps, so that later writes are noticed
        encoder = Encoder.load(path)
        model = ModelFile.read(path, encoder.schema)
        artifact = cls(
            path=path,
            manifest=manifest,
            stamps=stamps,
            model=model,
            card=read_json(below(path, CARD), ModelCard),
            encoder=encoder,
            state=path / STATE if below(path, STATE).is_dir() else None,
            reference=Reference.read(below(path, REFERENCE), encoder.schema),
            find=find,
        )
        if not below(path, PACKED).exists():
            _ = artifact.weights  # mapped, not read: checks its structure; a packed one is checked when unpacked
        return artifact

    def is_current(self) -> bool:
        """Whether the files at its path are still those that were opened, without later writes."""
        return stamps_of(self.path, self.stamps) == dict(self.stamps)

    def check_fingerprint(self, expected: str, known: str, remedy: str) -> None:
        """Refuse this artifact if its fingerprint is not the expected one.

        Args:
            expected: The expected fingerprint.
            known: Where the expected fingerprint comes from, such as ``registered``.
            remedy: What the user can do other than restore the artifact.

        Raises:
            UserError: The fingerprints differ.
        """
        if self.fingerprint != expected:
            raise UserError(
                f"{self.path} holds another artifact (fingerprint {self.fingerprint}) than was {known} ({expected}): "
                f"restore that one, or {remedy}."
            )

    def check_mapped(self) -> None:
        """Refuse to score if a file was written in place since it was opened.

        Raises:
            UnavailableError: A file was written in place.
        """
        check_not_written(self.path, self.stamps)

    def past_in(self, state: Path) -> Manifest:
        """The manifest of another state that the artifact can read the past from.

        Raises:
            UserError: It is no state or damaged, or its features of the past are not those of this artifact.
        """
        manifest = open_directory(state, "state", verify="sizes")
        kept, wanted = State(state).plan.config.features, self.encoder.served.config.features
        for name in self.encoder.served.past:
            if kept.get(name) != wanted[name]:
                raise UserError(
                    f"{state} does not hold {name!r} as {self.path} reads it: give a state that `recsys state update` "
                    "made from the state of this artifact or of its data set."
                )
        return manifest

    @property
    def side_tables(self) -> list[str]:
        """Side tables that scoring may read: paths and addresses outside the artifact, as its configs name them."""
        of_events = [] if self.state is None else State(self.state).plan.config.joins
        return list(dict.fromkeys(join.table for join in (*self.encoder.served.row_joins, *of_events)))

    @property
    def fingerprint(self) -> str:
        """Names the content, for journals and caches."""
        return self.manifest.fingerprint

    @property
    def bytes(self) -> int:
        """Bytes of all files together."""
        return sum(entry.bytes for entry in self.manifest.files.values())

    @property
    def model_bytes(self) -> int:
        """Bytes on disk that scoring reads, without the state: weights, vocabularies, and their description."""
        return self.bytes_of(TABLES, DENSE, MODEL, PACKED, "encoder.", "vocabularies/")

    def bytes_of(self, *prefixes: str) -> int:
        """Bytes of the files whose names start with one of ``prefixes``."""
        return sum(entry.bytes for name, entry in self.manifest.files.items() if name.startswith(prefixes))

    def _repr_html_(self) -> str:
        tables = {name: f"{entry.rows:,} x {entry.dim}, {entry.bits} bits" for name, entry in self.model.tables.items()}
        rows = {"tasks": self.encoder.schema.tasks, "features": list(self.encoder.schema.feature_names)}
        metrics = {f"{split} split": metrics.first for split, metrics in self.card.metrics.items()}
        return html_table(f"Artifact {self.path}", rows | {"bytes": self.bytes, "tables": tables} | metrics)

    @cached_property
    def outputs(self) -> Outputs:
        """What scoring answers with."""
        tasks, model = self.encoder.config.tasks, self.model
        score = None if model.score is None else Formula.parse(model.score, tasks)
        return Outputs(tasks, model.calibration, model.conditional, score)

    def ranker(self, device: torch.device = CPU) -> Ranker:
        """A ranker in evaluation mode over the mapped tables, or on a GPU over a copy of them.

        On a GPU dense layers are not computed in int8.

        Raises:
            UserError: The weights are damaged, or those of another version's ranker; the GPU has no room for them.
        """
        ranker = Ranker(self.model.ranker, self.model.encoded, self.tables(device=device))
        dense = self.weights.dense
        with intact(self.path / DENSE):
            load_dense(ranker, dense.parameters, dense.grids if device.type == "cpu" else {})
        return ranker.to(device).eval().requires_grad_(False)

    def tables(self, schema: Schema | None = None, *, device: torch.device = CPU) -> QuantizedTables:
        """The tables, looked up for the features of ``schema`` (a part of the artifact's own), or for all."""
        schema, config = schema or self.model.encoded, self.model.ranker
        pooled = {name for feature in schema.sparse for name in (feature.name, feature.sequence)}
        used = {feature.table for feature in schema.sparse}
        config = config.model_copy(
            update={
                "pooling": {name: pooling for name, pooling in config.pooling.items() if name in pooled},
                "tables": {name: table for name, table in config.tables.items() if name in used},
            }
        )
        return QuantizedTables(schema, config, self.weights.on(device), self.weights.dense.factors)

    @cached_property
    def weights(self) -> StoredWeights:
        """The mapped tables and the dense part, as they are stored."""
        return StoredWeights.read(self.path, self.model)
