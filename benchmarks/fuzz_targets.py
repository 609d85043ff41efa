"""Readers of foreign bytes, each as a function of bytes, and valid inputs for a fuzzer to start from.

A target returns, or refuses its input with the errors that its callers turn into one sentence. Any other exception, a
crash, or memory beyond the fuzzer's limit is a fault.
"""

import io
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pyarrow as pa
import torch
from fastapi import HTTPException

from data_pipelines.disk.byte_planes import pack, pack_values, unpack, unpack_values
from data_pipelines.disk.damage import intact
from data_pipelines.disk.storage import MANIFEST, Manifest
from data_pipelines.errors import UserError
from data_pipelines.features.encoder import Encoder
from recsys.config.experiment import load_config
from serving.artifact.weight_files import DENSE, MODEL, TABLES, ModelFile, StoredWeights
from serving.http.request_rows import Limits, read_arrow, read_json

_LIMITS = Limits(rows=1000)
_ENCODER = "encoder.json"


@dataclass(frozen=True)
class Target:
    """One reader.

    Attributes:
        run: Reads the bytes. Whatever it raises is a fault.
        seeds: Valid inputs.
    """

    run: Callable[[bytes], None]
    seeds: tuple[bytes, ...]


def targets(artifact: Path, scratch: Path) -> dict[str, Target]:
    """The readers, by name.

    Args:
        artifact: A valid artifact, not packed. It is copied.
        scratch: An empty folder for the files that are read.
    """
    copy = shutil.copytree(artifact, scratch / "artifact")
    files = {file: (artifact / file).read_bytes() for file in (TABLES, DENSE, MODEL, _ENCODER, MANIFEST)}
    schema = Encoder.load(artifact).schema
    model = ModelFile.read(artifact, schema)

    def in_artifact(file: str, read: Callable[[], object]) -> Target:
        return Target(lambda content: _with_file(copy / file, content, files[file], read), (files[file],))

    config = scratch / "config.yaml"
    return {
        "manifest": in_artifact(MANIFEST, lambda: Manifest.read(copy / MANIFEST)),
        "model": in_artifact(MODEL, lambda: ModelFile.read(copy, schema)),
        "encoder": in_artifact(_ENCODER, lambda: Encoder.load(copy)),
        "tables": in_artifact(TABLES, lambda: StoredWeights.read(copy, model)),
        "dense": in_artifact(DENSE, lambda: StoredWeights.read(copy, model)),
        "packed": Target(_unpack, tuple(_packed())),
        "arrow": Target(lambda content: _request(lambda: read_arrow(content, _LIMITS)), tuple(_streams())),
        "json": Target(lambda content: _request(lambda: read_json(content, _LIMITS)), (_JSON,)),
        "config": Target(
            lambda content: _with_file(config, content, b"", lambda: load_config(config)), tuple(_configs())
        ),
    }


def _with_file(path: Path, content: bytes, original: bytes, read: Callable[[], object]) -> None:
    path.write_bytes(content)
    with suppress(UserError):
        read()
    path.write_bytes(original)


def _unpack(content: bytes) -> None:
    with suppress(UserError), intact(Path("model.xz")):
        unpack_values(unpack(content)[0])


def _request(read: Callable[[], object]) -> None:
    with suppress(HTTPException):
        read()


_JSON = b'{"rows":[{"a":1,"b":[1,"x\\n",null]},{"a":1.5e3,"c":true}],"artifact":"x","logits":false}'


def _packed() -> Iterator[bytes]:
    yield pack(pack_values(pl.Series(["1", "2", "30"])), "about")
    yield pack(pack_values(pl.Series(["a", "bc", ""])), "")
    yield pack({"tables:a": torch.zeros(3, 4, dtype=torch.uint8), "bias": torch.ones(2)}, json.dumps({"rows": 3}))


def _streams() -> Iterator[bytes]:
    frame = pl.DataFrame(
        {
            "text": ["a", None],
            "whole": [1, None],
            "fraction": [0.5, None],
            "flag": [True, None],
            "list": [["x", "y"], None],
            "time": pl.Series([0, None], dtype=pl.Datetime("us")),
            "category": pl.Series(["a", "b"], dtype=pl.Categorical),
        }
    )
    table = frame.to_arrow(compat_level=pl.CompatLevel.oldest())
    for compression in (None, "zstd", "lz4"):
        sink = io.BytesIO()
        with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
            writer.write_table(table)
        yield sink.getvalue()


def _configs() -> Iterator[bytes]:
    yield b"data:\n  log: log.csv\n  tasks: {clicked: {}}\n  features:\n    user: {kind: id}\n    item: {kind: id}\n"
    yield (
        b"data:\n  log: [a.parquet, b.parquet]\n  time: t\n  split: {valid: 0.1, test: 2026-01-31}\n"
        b"  tasks: {clicked: {column: c, positive: [1, 'yes']}}\n  where: \"price > 3\"\n"
        b"  features:\n    user: &id {kind: id, min_count: 2}\n    tags: {kind: bag, separator: '|'}\n"
        b"    price: {kind: number}\n    past: {kind: history, of: user, reads: item}\nmodel: {}\ntrain: {epochs: 1}\n"
    )


def scratch() -> tempfile.TemporaryDirectory[str]:
    """A folder in memory where the machine has one: a fuzzer writes thousands of small files per second."""
    memory = Path("/dev/shm")
    return tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None)
