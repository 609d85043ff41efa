"""The data set on disk: encoded splits, the encoder that made them, and what was refused."""

import json
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import polars as pl
from pydantic import Field, TypeAdapter

from data_pipelines.batch import Schema
from data_pipelines.config.base import extensions_meta
from data_pipelines.dataset.columns import KEY, LABEL, LOG_Q_OF, WEIGHT, Columns, scan_parts
from data_pipelines.dataset.drift import drift
from data_pipelines.dataset.prepare import Earlier, write
from data_pipelines.dataset.raw_rows import raw_rows
from data_pipelines.dataset.shards import ShardColumns
from data_pipelines.dataset.summary import SUMMARY, Summary
from data_pipelines.disk import storage
from data_pipelines.disk.damage import intact
from data_pipelines.disk.file_names import below
from data_pipelines.disk.object_store import is_address
from data_pipelines.disk.parallel import Engine
from data_pipelines.disk.partial_copy import PartialCopy
from data_pipelines.disk.storage import Manifest
from data_pipelines.errors import UserError
from data_pipelines.features.config import DataConfig
from data_pipelines.features.encoder import Encoder
from data_pipelines.features.events import Events
from data_pipelines.features.plan import Plan
from data_pipelines.locations import expand
from data_pipelines.logs.splits import SPLITS
from data_pipelines.names import LIST, OWN
from data_pipelines.notebook import html_table
from data_pipelines.past.deliveries import Late
from data_pipelines.past.state import State

_LATER = ("splits/", "state/", "quarantine")
"""Names of files that :meth:`Dataset.stream` does not fetch at once begin with one of these."""
_LINEAGE = TypeAdapter(list[str])
_SPLITS = TypeAdapter(dict[Annotated[str, Field(pattern="^(train|valid|test)$")], Annotated[int, Field(ge=0)]])


def prepare(
    config: DataConfig,
    out: Path,
    *,
    log: str | None = None,
    extend: Path | None = None,
    late: Late = "refuse",
    progress: Callable[[int], None] | None = None,
    engine: Engine | None = None,
) -> "Dataset":
    """Make the data set of a log at ``out``: complete, or not there at all.

    Args:
        log: Read this log instead of ``config.log``.
        extend: A data set that this log continues. Its ids and normalisation are kept, new values are appended to its
            vocabularies, its past is used, and ``profile["drift"]`` measures how much the new log differs from its own.
        late: With ``extend``: what to do with rows that are not later than its latest event, and may be in it already:
            ``refuse`` the log, ``drop`` the rows, or ``count`` them.
        progress: Called from time to time with the number of rows newly done.
        engine: Who counts values and encodes rows, part by part; this process if absent.

    Raises:
        UserError: The log cannot be read or used as ``config`` says, ``out`` exists, or ``extend`` is not a data set of
            the same features.

    Example:
        >>> config = rs.load_config("experiment.yaml")
        >>> rs.prepare(config.data, Path("dataset")).splits
        {'train': 480, 'valid': 60, 'test': 60}
    """
    old = None if extend is None else Dataset.open(extend)
    location = log or config.log
    meta: dict[str, Any] = {"config": config.model_dump(mode="json"), "log": location, **extensions_meta(config)}
    with storage.new_directory(out, "dataset", meta=meta) as folder:
        earlier = None if old is None else Earlier(old.encoder, old.state)
        meta["splits"] = write(
            Plan.of(config), folder, expand(location), progress or (lambda rows: None), earlier, engine, late
        )
        if old is not None:
            meta["extends"] = old.manifest.fingerprint
            meta["lineage"] = [*old.lineage, old.manifest.fingerprint]
            _add_drift(folder, old)
    return Dataset.open(out, verify="sizes")


def _add_drift(folder: Path, old: "Dataset") -> None:
    path, encoder = folder / "profile.json", Encoder.load(folder)
    profile = json.loads(path.read_text())
    new = scan_parts(folder / "splits" / "train")
    profile["drift"] = drift(old.schema, old.frame("train"), encoder.schema, new)
    path.write_text(json.dumps(profile, indent=1))


class Dataset:
    """A prepared data set, memory-mapped: opening it reads next to nothing.

    Attributes:
        path: Its folder.
        location: Where it can be found again: the address of a data set that was opened with :meth:`stream`, or the
            folder.
        manifest: What made it, and its checksums.
        splits: Rows of each split.
        schema: Of its encoded features.

    Example:
        >>> dataset = rs.Dataset.open(Path("dataset"))
        >>> dataset.splits
        {'train': 480, 'valid': 60, 'test': 60}
        >>> dataset.labels("test").shape
        (60, 1)
    """

    def __init__(self, path: Path, manifest: Manifest, copy: PartialCopy | None = None) -> None:
        self.path, self.manifest, self._copy = path, manifest, copy
        self.location = str(path.resolve()) if copy is None else copy.address
        with intact(path / storage.MANIFEST):
            self.splits: dict[str, int] = _SPLITS.validate_python(manifest.meta["splits"])

    @staticmethod
    def open(path: Path, verify: Literal["full", "sizes"] = "full") -> "Dataset":
        """Open the data set at ``path`` after comparing its checksums (or only its sizes, which is faster).

        Raises:
            UserError: There is no data set, or it is damaged.
        """
        path = Path(path)
        return Dataset(path, storage.open_directory(path, "dataset", verify=verify))

    @staticmethod
    def stream(address: str, *, cache_bytes: int | None = None) -> "Dataset":
        """Open the data set at an object store without fetching its rows.

        A :class:`Loader` then fetches the files whose rows it reads, and the next ones meanwhile; everything else
        fetches what it reads when it is first asked for. Files are in the user's cache folder, where all processes of
        this machine share them, and are compared with their checksums when they arrive.

        Args:
            address: Such as ``s3://bucket/dataset``; what ``prepare`` wrote.
            cache_bytes: The most bytes of files read by loaders that this process keeps; all of them if absent.

        Raises:
            UserError: There is no data set, or its files arrive damaged; or an earlier version prepared it, which did
                not write what is needed to open it this way.
        """
        if not is_address(address):
            raise UserError(f"{address} is not an address of an object store: open it as a folder.")
        copy = PartialCopy(address, limit=cache_bytes)
        storage.check_manifest(copy.manifest, "dataset", address)
        if SUMMARY not in copy.manifest.files:
            raise UserError(f"{address} was prepared by an earlier version: prepare it again, or leave mix_shards out.")
        copy.fetch(name for name in copy.manifest.files if not name.startswith(_LATER))
        return Dataset(copy.folder, copy.manifest, copy)

    @property
    def fetched(self) -> int | None:
        """Bytes that this process has fetched of a data set that was opened with :meth:`stream`; ``None`` of others."""
        return None if self._copy is None else self._copy.fetched

    @cached_property
    def summary(self) -> Summary:
        """What is known of all rows of its splits, without reading them."""
        path = below(self.path, SUMMARY)
        if path.is_file():
            return Summary.read(path, self.schema)
        return Summary.of(self.path, self.schema, list(self.splits))  # an earlier version wrote none

    @cached_property
    def encoder(self) -> Encoder:
        """The encoder that made it."""
        return Encoder.load(self.path)

    @cached_property
    def state(self) -> State | None:
        """What new rows need of the past; ``None`` where no feature depends on it."""
        self._fetch("state/")
        folder = self.path / "state"
        return State.open(folder) if folder.is_dir() else None

    @property
    def config(self) -> DataConfig:
        """What its columns mean."""
        return self.encoder.config

    @property
    def lineage(self) -> list[str]:
        """Fingerprints of the data sets that it extends, the first one first; their ids mean the same here."""
        with intact(self.path / storage.MANIFEST):
            extends = self.manifest.meta.get("extends")
            return _LINEAGE.validate_python(self.manifest.meta.get("lineage", [] if extends is None else [extends]))

    @property
    def schema(self) -> Schema:
        return self.encoder.schema

    @cached_property
    def profile(self) -> dict[str, Any]:
        """The content of ``profile.json``: rows read and refused with the reasons, sizes of tables and splits."""
        path = below(self.path, "profile.json")
        with intact(path):
            profile: dict[str, Any] = json.loads(path.read_text())
        return profile

    def _repr_html_(self) -> str:
        tables = {table.name: table.rows for table in self.schema.tables}
        features = list(self.schema.feature_names)
        rows = {"rows": self.splits, "tasks": self.schema.tasks, "features": features, "rows of tables": tables}
        return html_table(f"Dataset {self.path}", rows)

    def columns(self, split: str, features: Sequence[str] | None = None) -> Columns:
        """The encoded columns of a split, of all features or only some.

        Raises:
            UserError: There is no such split or feature.
        """
        schema, events = self._read(features)
        columns = Columns.open(self._split(split), schema, events)
        self._check_drawn(columns)
        if len(columns) != self.splits[split]:
            raise UserError(
                f"{self._split(split)} has {len(columns)} rows, and {storage.MANIFEST} says {self.splits[split]}: "
                "prepare the data set again."
            )
        return columns

    def streamed_columns(self, split: str, features: Sequence[str] | None = None) -> Columns | ShardColumns:
        """As :meth:`columns`; of a data set that was opened with :meth:`stream`, files are fetched as rows are read."""
        if self._copy is None or split not in self.splits:
            return self.columns(split, features)
        schema, events = self._read(features)
        names = self._names(f"splits/{split}/")
        shards = self.summary.parts.get(split, [])
        if len(shards) != len(names) or sum(shards) != self.splits[split]:
            raise UserError(f"{self.location}: {SUMMARY} and {storage.MANIFEST} disagree: prepare the data set again.")
        return ShardColumns(self._copy, names, shards, schema, events)

    def _read(self, features: Sequence[str] | None) -> tuple[Schema, dict[str, Events]]:
        """The schema of some features, and the events of the histories among them."""
        schema = self.schema if features is None else self.encoder.select(features).schema
        histories = {f.sequence for f in schema.sparse if f.sequence is not None}
        return schema, {name: Events.open(below(self.path, f"events/{name}")) for name in histories}

    def _check_drawn(self, columns: Columns) -> None:
        """Refuse a data set of an earlier version, whose drawn rows lack what says how they were drawn."""
        plan = self.encoder.plan
        wanted = {LOG_Q_OF + task for task in plan.corrected_tasks} | ({LIST} if plan.has_lists else set())
        lacking = wanted.difference(*(batch.schema.names for batch in columns.batches[:1]))
        if columns.batches and lacking:
            raise UserError(f"{self.path} has no column {min(lacking)!r}: prepare the data set again.")

    def labels(self, split: str) -> np.ndarray:
        """(N, T) float32 labels of a split, NaN where a row has none."""
        columns = [pl.col(LABEL + task) for task in self.schema.tasks]
        return self.frame(split).select(columns).collect().to_numpy().reshape(-1, len(columns))

    def weights(self, split: str, task: str) -> np.ndarray | None:
        """(N,) float64: how much each row of a split counts for a task; ``None`` if all count the same."""
        if task not in self.encoder.plan.weighted_tasks:
            return None
        weights: np.ndarray = self.feature(split, WEIGHT + task).to_numpy().astype(np.float64)
        return weights

    def lists(self, split: str) -> np.ndarray | None:
        """(N,) uint64: the key of the list that each row is in, 0 for none; ``None`` without lists.

        A list is what ``group`` says, or else a positive and the negatives drawn for it.
        """
        return self.feature(split, LIST).to_numpy() if self.encoder.plan.has_lists else None

    def keys(self, split: str) -> pl.DataFrame:
        """The raw key, user and time columns of a split."""
        frame = self.frame(split)
        names = [name for name in frame.collect_schema().names() if name.startswith(KEY)]
        return frame.select(pl.col(name).alias(name.removeprefix(KEY)) for name in names).collect()

    def feature(self, split: str, name: str) -> pl.Series:
        """One encoded column of a split."""
        return self.frame(split).select(name).collect().to_series()

    def frame(self, split: str) -> pl.LazyFrame:
        """The encoded columns of a split as on disk; histories as ``<name>:start`` and ``<name>:length``."""
        return scan_parts(self._split(split))

    def raw(self, split: str, rows: Sequence[int] | np.ndarray | None = None) -> pl.DataFrame:
        """Rows of a split as they are in the log, with the past of each as ``State.attach`` would give it, and what is
        relative to the list of each.

        Reads the log again. Encoding these rows gives the rows of the split.

        Args:
            rows: Positions in the split; all if ``None``.

        Raises:
            UserError: The log is no longer there, or does not hold all (sampled negatives, the past of a data set that
                was extended).
        """
        if self.config.drawing is not None or "extends" in self.manifest.meta:
            raise UserError(f"{self.path} has rows or events that its log does not hold: they cannot be read again.")
        frame, plan = self.frame(split), self.encoder.plan
        stored = {name for feature in plan.past.values() for name in feature.stored}
        related = [spec.name for feature in plan.relative.values() for spec in feature.specs().dense]
        names = [name for name in frame.collect_schema().names() if name in {*stored, *related, *OWN}]
        encoded = frame.select(names).collect()
        encoded = encoded if rows is None else encoded[np.asarray(rows)]
        found = raw_rows(plan, expand(self.manifest.meta["log"]), encoded, self.path / "events")
        return found.with_columns(encoded.select(related))

    def _split(self, split: str) -> Path:
        if split not in self.splits:
            raise UserError(f"{self.path} has no split {split!r}; it has {', '.join(SPLITS)}.")
        self._fetch(f"splits/{split}/")
        return below(self.path, f"splits/{split}")

    def _names(self, prefix: str) -> list[str]:
        return sorted(name for name in self.manifest.files if name.startswith(prefix))

    def _fetch(self, prefix: str) -> None:
        """Make sure that the files below a folder are there."""
        if self._copy is not None:
            self._copy.fetch(self._names(prefix))
