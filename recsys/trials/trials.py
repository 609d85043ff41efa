"""Trials: single trainings (or evaluations of a changed model), named by everything that decides their results.

A trial's name is the fingerprint of its config, features, seed, data set, number of threads and code. A trial that is
in the store is not run again, so a killed study resumes, and studies share the trials that they have in common. A trial
is complete or absent, and a lock keeps two processes from running the same one.
"""

import fcntl
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
from pydantic import BaseModel, ConfigDict

from data_pipelines.disk.damage import read_json
from data_pipelines.disk.storage import MANIFEST, fingerprint, new_directory, open_directory
from data_pipelines.errors import UserError

_log = logging.getLogger(__name__)
Change = Literal["permute", "permute_within", "mask", "mask_oov", "leave_out_expert", "warm_start"]
"""Changes of a trained model or of the rows that it reads."""
LOGITS = "logits.parquet"
FIGURES = "figures.json"
RUN = "run"


class Trial(BaseModel):
    """Everything that decides the results of a trial.

    Attributes:
        config: The blocks ``model``, ``train``, ``sparsity`` and ``export`` of the experiment, resolved.
        features: The features that the ranker reads, by the config's names.
        dataset: Fingerprint of the data set.
        threads: Threads of the process; sums over rows may differ in the last digit between counts.
        keep_run: Whether the trained run is kept, for trials that use it.
        parent: Name of the trial whose trained model this one evaluates or starts from.
        change: How the parent's model or rows are changed (``export``: exported with the levers of this trial's config
            instead of its own); ``None`` for a separate training.
        changed: The features that ``change`` applies to; of ``leave_out_expert``, the expert
            (:func:`recsys.trials.leave_out.leave_out_expert`).
        code: Fingerprint of the code.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    config: dict[str, Any]
    features: tuple[str, ...]
    seed: int
    dataset: str
    threads: int
    keep_run: bool = False
    parent: str | None = None
    change: Change | Literal["export"] | None = None
    changed: tuple[str, ...] = ()
    code: str

    @property
    def name(self) -> str:
        return _name(self.model_dump(mode="json"))


def _name(trial: dict[str, Any]) -> str:
    return fingerprint(trial)[:16]


def _meta(trial: Trial) -> dict[str, Any]:
    return {"trial": trial.model_dump(mode="json")}


class Figures(BaseModel):
    """The measurements of a trial, without its logits.

    Attributes:
        failed: Why the trial has no logits; empty if it has.
        artifact_bytes: Bytes of the exported artifact; ``None`` for evaluations of a changed model.
        model_bytes: Bytes of its weights and vocabularies; ``checkpoint_bytes`` of the same in training, float32.
        score_rows_per_s: Raw rows scored per second; ``None`` if the log cannot be read.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)  # a store may hold trials of another version
    failed: str = ""
    seconds: float = 0.0
    steps: int = 0
    train_seconds: float | None = None
    artifact_bytes: int | None = None
    model_bytes: int | None = None
    checkpoint_bytes: int | None = None
    score_rows_per_s: float | None = None
    note: str = ""


class TrialStore:
    """Finished trials by name, in one folder that several studies may share."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, name: str) -> Path:
        return self.folder / name

    def __contains__(self, trial: Trial) -> bool:
        """Whether a trial is finished and undamaged. A damaged trial counts as absent, so it is run again."""
        path = self.path(trial.name)
        if not path.exists():
            return False
        try:
            found = open_directory(path, "trial").meta
        except UserError as error:
            _log.warning("%s The trial is run again.", error)
            return False
        return found == _meta(trial)

    def figures(self, trial: Trial) -> Figures:
        return read_json(self.path(trial.name) / FIGURES, Figures)

    def failure(self, name: str) -> str:
        """Why the finished trial of this name failed; empty if it did not."""
        return Figures.model_validate_json((self.path(name) / FIGURES).read_bytes()).failed

    def figures_of(self, dataset: str) -> list[Figures]:
        """Figures of all finished trials on the data set of this fingerprint."""
        found = []
        for path in self.folder.glob(f"*/{MANIFEST}"):
            with suppress(UserError):  # damaged trials are skipped
                about = open_directory(path.parent, "trial").meta.get("trial", {})
                if _name(about) == path.parent.name and about["dataset"] == dataset:
                    found.append(read_json(path.parent / FIGURES, Figures))
        return found

    def logits(self, trial: Trial, split: str, task: str) -> np.ndarray:
        """(N,) logits of a split's rows, in their order."""
        folder = self.path(trial.name)
        open_directory(folder, "trial", verify="sizes")
        frame = pl.scan_parquet(folder / LOGITS, glob=False).filter(pl.col("split") == split).select(task).collect()
        return frame[task].to_numpy()

    @contextmanager
    def writing(self, trial: Trial) -> Iterator[Path | None]:
        """A folder to write the trial into, or ``None`` if another process has finished it."""
        lock = self.folder / f".{trial.name}.lock"
        with lock.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if trial in self:
                yield None
                return
            for leftover in self.folder.glob(f".{trial.name}.*/"):
                shutil.rmtree(leftover)
            with new_directory(self.path(trial.name), "trial", meta=_meta(trial), replace=True) as folder:
                yield folder
            lock.unlink()
