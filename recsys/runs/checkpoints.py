"""Checkpoints of a run: every tensor as safetensors through ``torch.distributed.checkpoint``, every number as JSON.

A checkpoint is written by all ranks, each its own shards, and read at any number of ranks and under any sharding.
"""

import json
import re
import shutil
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from data_pipelines.batch import Schema
from data_pipelines.disk.damage import intact, read_json
from data_pipelines.disk.file_names import below
from data_pipelines.disk.object_store import RemoteFolder
from data_pipelines.disk.storage import MANIFEST, FileEntry, Manifest, checksum, new_directory, open_directory
from data_pipelines.errors import UserError
from models.tables.rows import keep_masks, table_names, table_weights
from models.weights import Weights
from recsys.config.experiment import stored_config
from recsys.runs.processes import Processes

CONFIG_FILE = "config.yaml"
SCHEMA_FILE = "schema.json"
STATE_FILE = "state.json"
CHECKPOINTS = "checkpoints"
FINAL = "final"
"""Name of the checkpoint that holds a finished run's weights, as evaluated and exported."""

_STEP = re.compile(r"step-(\d{9,18})")

MODEL, EMA, OPTIMIZER, LEVER = "model.", "ema.", "optimizer.", "lever."
"""Prefixes of a checkpoint's tensors: the ranker, its averaged weights, optimizers, levers."""

Tensors = dict[str, Any]
"""Tensors by name; tables and their optimizer state are ``ShardedTensor`` where they are sharded."""


def step_name(step: int) -> str:
    """Name of the checkpoint of a step."""
    return f"step-{step:09d}"


def steps_of(names: Iterable[str]) -> list[int]:
    """Steps of the step checkpoints among checkpoints of these names, ascending; other names are left out."""
    return sorted(int(found[1]) for name in names if (found := _STEP.fullmatch(name)))


def steps(run: Path) -> list[int]:
    """Steps of the checkpoints of the run in a folder, ascending."""
    return steps_of(path.parent.name for path in (run / CHECKPOINTS).glob(f"*/{MANIFEST}"))


class _ShardWriter(HuggingFaceStorageWriter):
    """A safetensors file holds one tensor of a name, and a rank may hold several shards of a table (column-wise):
    the n-th shard of each goes into the rank's n-th file."""

    def _split_by_storage_plan(
        self, storage_plan: dict[str, int] | None, items: list[WriteItem]
    ) -> dict[int, list[WriteItem]]:
        files: dict[int, list[WriteItem]] = {}
        shards: Counter[str] = Counter()
        for item in items:
            shards[item.index.fqn] += 1
            files.setdefault(shards[item.index.fqn], []).append(item)
        return files

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write this rank's files, whose bytes depend on the tensors alone."""
        written = super().write_data(plan, planner)
        for file in {result.storage_data.relative_path for result in written.wait()}:
            _sort_header(Path(self.path) / file)
        return written


def _sort_header(path: Path) -> None:
    """Sort the metadata of a safetensors file: the library writes it in a different order each time."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header.get("__metadata__", {}).items()))
        content = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        assert len(content) <= size, f"{path} has a header that cannot be written in its own place"
        file.seek(8)
        file.write(content.ljust(size))


def save_checkpoint(path: Path, tensors: Tensors, state: str, processes: Processes) -> None:
    """Write a checkpoint into a shared folder, each rank its shards. It is complete at ``path``, or absent.

    Args:
        state: Numbers and text as JSON; that of rank 0 is kept.
    """
    meta = {"world_size": processes.world_size}
    target = new_directory(path, "checkpoint", meta=meta, replace=True) if processes.is_main else nullcontext(path)
    with target as folder:
        _write_shards(Path(processes.broadcast(str(folder))), tensors, processes)
        processes.barrier()
        if processes.is_main:
            (folder / STATE_FILE).write_text(state)
    processes.barrier()


def send_checkpoint(address: str, scratch: Path, tensors: Tensors, state: str, processes: Processes) -> None:
    """Write a checkpoint at an object store: each rank sends its shards, and rank 0 the manifest when all are there.

    Args:
        scratch: A folder of this machine, for the files until they are sent.
        state: Numbers and text as JSON; that of rank 0 is kept.
    """
    remote = RemoteFolder(address)
    if processes.is_main:
        remote.remove()
    processes.barrier()
    with TemporaryDirectory(dir=scratch) as name:
        folder = Path(name)
        _write_shards(folder, tensors, processes)
        if processes.is_main:
            (folder / STATE_FILE).write_text(state)
        files = {}
        for file in sorted(folder.iterdir()):
            files[file.name] = checksum(file).model_dump()
            remote.put(file, file.name)
    everyones = [json.loads(text) for text in processes.gather_text(json.dumps(files))]
    if processes.is_main:
        entries = {name: FileEntry(**entry) for files in everyones for name, entry in files.items()}
        manifest = Manifest.of("checkpoint", {"world_size": processes.world_size}, entries)
        remote.write(MANIFEST, manifest.model_dump_json(indent=1))
    processes.barrier()


def _write_shards(folder: Path, tensors: Tensors, processes: Processes) -> None:
    """This rank's shards as safetensors files of its own names; every rank calls this at once."""
    with _quiet():
        writer = _ShardWriter(str(folder), save_distributed=True)
        save(tensors, storage_writer=writer, process_group=processes.group)


def load_checkpoint(path: Path, tensors: Tensors, *, verify: bool = True) -> dict[str, Any]:
    """Fill ``tensors`` in place from a checkpoint of any sharding; return its JSON state.

    Tensors that the checkpoint does not have are not changed: the optimizer state of a table whose optimizer changed
    with its sharding.

    Raises:
        UserError: The checkpoint is missing or damaged, or a tensor's shape differs: the config has changed.
    """
    open_directory(path, "checkpoint", verify="full" if verify else "sizes")
    saved, state = stored_tensors(path), read_state(path)
    with _quiet(), intact(path):
        for name, tensor in tensors.items():
            if name in saved and tuple(saved[name].size) != tuple(tensor.size()):
                raise UserError(
                    f"{path}: {name} has shape {tuple(saved[name].size)}, the config asks for {tuple(tensor.size())}: "
                    "use the config and the data set that the run was started with."
                )
        load(
            {name: tensor for name, tensor in tensors.items() if name in saved},
            storage_reader=HuggingFaceStorageReader(str(path)),
        )
    return state


def check_checkpoint(path: Path) -> None:
    """Read all of a checkpoint once, without filling any tensor.

    Raises:
        UserError: It is missing, not complete, or damaged.
    """
    open_directory(path, "checkpoint")
    stored_tensors(path)
    read_state(path)


def read_state(path: Path) -> dict[str, Any]:
    """The numbers and text of a checkpoint.

    Raises:
        UserError: They are missing or damaged.
    """
    file = below(path, STATE_FILE)
    with intact(file):
        state: dict[str, Any] = json.loads(file.read_bytes())
        if not isinstance(state, dict) or not isinstance(state.get("numbers", {}), dict) or "dataset" not in state:
            raise ValueError("it does not say what was trained, and how far")
    return state


def stored_tensors(path: Path) -> dict[str, TensorStorageMetadata]:
    """Sizes and types of a checkpoint's tensors, by name.

    Raises:
        UserError: A file is damaged, or a tensor lacks a part.
    """
    with intact(path):
        stored: dict[str, TensorStorageMetadata] = dict(
            HuggingFaceStorageReader(str(path)).read_metadata().state_dict_metadata  # type: ignore[arg-type]
        )
        for name, entry in stored.items():
            held = sum(chunk.sizes.numel() for chunk in entry.chunks)
            if held != entry.size.numel():
                raise ValueError(f"{name} lacks {entry.size.numel() - held} of its numbers")
    return stored


def read_tensors(path: Path, prefix: str) -> dict[str, Tensor]:
    """Whole tensors of a checkpoint whose names start with ``prefix``, without it; needs no process group."""
    stored = {name: entry for name, entry in stored_tensors(path).items() if name.startswith(prefix)}
    tensors = {name: torch.empty(entry.size, dtype=entry.properties.dtype) for name, entry in stored.items()}
    with _quiet(), intact(path):
        load(tensors, storage_reader=HuggingFaceStorageReader(str(path)), no_dist=True)
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}


def load_weights(run: Path) -> Weights:
    """The weights of a finished run, from any number of ranks and any sharding, without a process group.

    Raises:
        UserError: ``run`` is not a run, or has not finished.

    Example:
        >>> weights = rs.load_weights(Path("run"))
        >>> weights.tables["article"].shape[1] == weights.config.dim
        True
    """
    if not (run / CONFIG_FILE).is_file():
        raise UserError(f"{run} is not a run: give the folder that `recsys train` wrote.")
    path = run / CHECKPOINTS / FINAL
    if not path.exists():
        raise UserError(f"{run} has not finished training: resume it with `recsys train ... --resume`.")
    open_directory(path, "checkpoint")
    config, schema = stored_config(run / CONFIG_FILE), read_json(below(run, SCHEMA_FILE), Schema)
    state = read_tensors(path, MODEL)
    tables = set(table_names(state))
    return Weights(
        config=config.model,
        schema=schema,
        tables=table_weights(state, schema, config.model),
        keep=keep_masks(state),
        dense={name: tensor for name, tensor in state.items() if not name.startswith("tables.") and name not in tables},
    )


def remove_checkpoint(path: Path) -> None:
    """Remove a checkpoint; an interrupted removal leaves nothing that can be opened."""
    doomed = path.with_name(f".{path.name}.removed")
    path.rename(doomed)
    shutil.rmtree(doomed)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence Torch's warnings about its own sharded tensors, and about running without a process group."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
