"""The location of a run: a folder that all ranks share, or an object store that every rank sends its part to."""

import json
import shutil
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

from data_pipelines.batch import Schema
from data_pipelines.disk.object_store import RemoteFolder, cache_folder, fetched, is_address
from data_pipelines.disk.storage import MANIFEST, Manifest, checksum, open_directory, seal, write_file
from data_pipelines.errors import Notice, UserError
from recsys.config.experiment import ExperimentConfig, stored_config
from recsys.config.yaml_files import to_yaml
from recsys.runs.checkpoints import (
    CHECKPOINTS,
    CONFIG_FILE,
    FINAL,
    SCHEMA_FILE,
    Tensors,
    check_checkpoint,
    remove_checkpoint,
    save_checkpoint,
    send_checkpoint,
    step_name,
    steps,
    steps_of,
)
from recsys.runs.processes import Processes

MAY_CHANGE = (
    "checkpoint_every",
    "checkpoint_aside",
    "keep_checkpoints",
    "loader_threads",
    "mlflow",
    "device",
    "cuda_graphs",
)
"""Keys of ``train`` that a resume may change, besides sharding: they change the weights by rounding only."""


class Run(Protocol):
    """A run at any location; its text is the location.

    Attributes:
        name: Of the folder or at the address.
        folder: A folder of this machine: the run itself, or the files of rank 0, without checkpoints, before upload.
    """

    name: str
    folder: Path

    def exists(self) -> bool:
        """Whether a training has begun here; then ``folder`` holds its files, without checkpoints."""
        ...

    def meta(self) -> dict[str, Any] | None:
        """The ``meta`` of a finished run's manifest, with its config in ``folder``; ``None`` if it has not finished."""
        ...

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, ascending."""
        ...

    def checkpoint(self, name: str) -> Path:
        """A folder of this machine that holds a checkpoint."""
        ...

    def save(self, name: str, tensors: Tensors, state: str, processes: Processes) -> None:
        """Write a checkpoint, complete or absent, and send the content of ``folder``; every rank calls this."""
        ...

    def keep(self, wanted: set[int]) -> None:
        """Remove all step checkpoints but these."""
        ...

    def send(self) -> None:
        """Publish the content of ``folder``."""
        ...

    def seal(self, meta: Mapping[str, Any]) -> None:
        """Write the manifest: the run has finished."""
        ...


def run_at(location: Path | str) -> Run:
    """The run in a folder or at an address."""
    return RemoteRun(str(location)) if is_address(location) else LocalRun(Path(location))


class LocalRun:
    """A run in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.name = folder, folder.name

    def __str__(self) -> str:
        return str(self.folder)

    def exists(self) -> bool:
        return self.folder.exists()

    def meta(self) -> dict[str, Any] | None:
        if not (self.folder / MANIFEST).exists():
            return None
        return open_directory(self.folder, "run", verify="sizes").meta

    def steps(self) -> list[int]:
        return steps(self.folder)

    def checkpoint(self, name: str) -> Path:
        return self.folder / CHECKPOINTS / name

    def save(self, name: str, tensors: Tensors, state: str, processes: Processes) -> None:
        save_checkpoint(self.checkpoint(name), tensors, state, processes)

    def keep(self, wanted: set[int]) -> None:
        for step in self.steps():
            if step not in wanted:
                remove_checkpoint(self.checkpoint(step_name(step)))

    def send(self) -> None:
        pass

    def seal(self, meta: Mapping[str, Any]) -> None:
        seal(self.folder, "run", meta)


class RemoteRun:
    """A run at an object store: each rank sends its part of a checkpoint, so machines need share no file system.

    Of a finished run, only the final checkpoint is kept, because a reader fetches the whole run.
    """

    def __init__(self, address: str) -> None:
        self.address, self.name = address.rstrip("/"), address.rstrip("/").rpartition("/")[2]
        self.folder = cache_folder(self.address) / "run"
        self.folder.mkdir(exist_ok=True)
        self._remote = RemoteFolder(self.address)

    def __str__(self) -> str:
        return self.address

    def exists(self) -> bool:
        shutil.rmtree(self.folder, ignore_errors=True)
        names = self._remote.names()
        for name in names:
            if not name.startswith(f"{CHECKPOINTS}/"):
                self._remote.fetch(name, self.folder)
        return bool(names)

    def meta(self) -> dict[str, Any] | None:
        manifest = self._remote.manifest()
        if manifest is None:
            return None
        self._remote.fetch(CONFIG_FILE, self.folder)
        return manifest.meta

    def steps(self) -> list[int]:
        parts = [name.split("/") for name in self._remote.names()]
        return steps_of(part[1] for part in parts if part[0] == CHECKPOINTS and part[2:] == [MANIFEST])

    def checkpoint(self, name: str) -> Path:
        return fetched(self._checkpoint(name).address)

    def save(self, name: str, tensors: Tensors, state: str, processes: Processes) -> None:
        send_checkpoint(self._checkpoint(name).address, self.folder.parent, tensors, state, processes)
        if processes.is_main:
            self.send()

    def keep(self, wanted: set[int]) -> None:
        for step in self.steps():
            if step not in wanted:
                self._checkpoint(step_name(step)).remove()

    def send(self) -> None:
        for name in self._beside():
            self._remote.put(self.folder / name, name)

    def seal(self, meta: Mapping[str, Any]) -> None:
        self.send()
        files = {name: checksum(self.folder / name) for name in self._beside()}
        final = self._checkpoint(FINAL)
        with TemporaryDirectory() as scratch:
            manifest = final.fetch(MANIFEST, Path(scratch))
            of_final = {MANIFEST: checksum(manifest)} | Manifest.read(manifest).files
        files |= {f"{CHECKPOINTS}/{FINAL}/{name}": entry for name, entry in of_final.items()}
        self._remote.write(MANIFEST, Manifest.of("run", meta, files).model_dump_json(indent=1))
        self.keep(set())

    def _checkpoint(self, name: str) -> RemoteFolder:
        return RemoteFolder(f"{self.address}/{CHECKPOINTS}/{name}")

    def _beside(self) -> list[str]:
        return sorted(path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*") if path.is_file())


def claim_run(run: Run, config: ExperimentConfig, schema: Schema, processes: Processes, *, resume: bool) -> int | None:
    """The step of the newest intact checkpoint of ``run``; ``None`` if there is none, and then its folder is made.

    Warns of each newer checkpoint that is damaged. Every rank calls this: rank 0 decides and tells the others, which
    may start when the folder already exists.

    Raises:
        UserError: ``run`` exists and is not to be resumed, is of another config, has only damaged checkpoints, or
            cannot be written.
    """
    found: dict[str, Any] = {}
    if processes.is_main:
        try:
            found = {"step": _claim(run, config, schema, resume=resume)}
        except UserError as error:
            found = {"refused": str(error)}
    found = json.loads(processes.broadcast(json.dumps(found)))
    if "refused" in found:
        raise UserError(found["refused"])
    step: int | None = found["step"]
    return step


def _claim(run: Run, config: ExperimentConfig, schema: Schema, *, resume: bool) -> int | None:
    if run.exists() and not resume:
        raise UserError(f"{run} already exists: name another folder, or add --resume to resume it.")
    if (run.folder / CONFIG_FILE).exists():
        _compare_config(run, config)
        if found := run.steps():
            return _newest_intact(run, found)
    try:
        run.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{run} cannot be written ({error.strerror}): name another folder.") from None
    write_file(run.folder / SCHEMA_FILE, schema.model_dump_json(indent=1))
    write_file(run.folder / CONFIG_FILE, to_yaml(config))
    run.send()
    return None


def _newest_intact(run: Run, found: Sequence[int]) -> int:
    """The last of the steps ``found`` whose checkpoint is not damaged."""
    faults = []
    for step in reversed(found):
        try:
            check_checkpoint(run.checkpoint(step_name(step)))
        except UserError as error:
            faults.append(str(error))
            continue
        for fault in faults:
            warnings.warn(f"{fault} Training resumes from the checkpoint of step {step} instead.", Notice, stacklevel=2)
        return step
    raise UserError(f"no checkpoint of {run} is intact ({faults[0].rstrip('.')}): remove the run to train it again.")


def finished_meta(run: Run, config: ExperimentConfig) -> dict[str, Any] | None:
    """The ``meta`` of the manifest of ``run``, if it has finished: a restart may come when nothing is left to do.

    Raises:
        UserError: ``run`` is of another config.
    """
    meta = run.meta()
    if meta is not None:
        _compare_config(run, config)
    return meta


def _compare_config(run: Run, config: ExperimentConfig) -> None:
    if _weighty(stored_config(run.folder / CONFIG_FILE)) != _weighty(config):
        raise UserError(
            f"{run}/{CONFIG_FILE} differs from the config given: resume with the config that the run was started "
            f"with (only train.{', train.'.join(MAY_CHANGE)}, sharding and expert_parallel may change)."
        )


def _weighty(config: ExperimentConfig) -> dict[str, Any]:
    """The part of a config that decides the weights, besides the data set (whose fingerprint is compared)."""
    content = config.model_dump(include={"seed", "model", "train", "sparsity"})
    for key in MAY_CHANGE:
        del content["train"][key]
    for table in content["model"]["tables"].values():
        del table["sharding"], table["memory"]
    content["model"]["tables"] = {
        name: table for name, table in content["model"]["tables"].items() if any(table.values())
    }
    content["model"]["tower"].pop("expert_parallel", None)
    return content
