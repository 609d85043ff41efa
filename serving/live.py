"""The artifacts a service scores requests with: loaded once, switched without a pause."""

import threading
import time
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from serving.artifact import Artifact
from serving.drift import DriftMonitor
from serving.jobs import ConflictError, JobStore
from serving.scorer import Scorer

_LOOK_S = 1.0
_KEPT = 4


@dataclass(frozen=True)
class Live:
    """A loaded artifact. Whoever holds one goes on with it even when another becomes live."""

    name: str
    scorer: Scorer
    drift: DriftMonitor | None

    def score(self, rows: pl.DataFrame, *, logits: bool) -> pl.DataFrame:
        """Scores of raw rows (see :meth:`serving.scorer.Scorer.score`)."""
        return self.scorer.score(self.scorer.read(rows.lazy()).collect(), logits=logits, drift=self.drift)


class LiveArtifacts:
    """Artifacts by name, as the database knows them; at most four stay loaded. Safe from several threads."""

    def __init__(self, store: JobStore) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._loaded: dict[tuple[str, str], Live] = {}
        self._known: dict[str, tuple[str, str]] = {}
        self._live: str | None = None
        self._looked = float("-inf")

    def get(self, name: str | None = None) -> Live:
        """The artifact of that name, or the live one.

        Raises:
            ConflictError: There is no such artifact, or no live one.
            UserError: It is damaged.
        """
        with self._lock:
            self._look(name)
            name = name or self._live
            if name is None:
                raise ConflictError("there is no artifact: register one first.")
            if name not in self._known:
                raise ConflictError(f"there is no artifact {name!r}: register it first.")
            path, fingerprint = self._known[name]
            live = self._loaded.pop((name, fingerprint), None) or _load(name, Path(path))
            self._loaded[name, fingerprint] = live
            while len(self._loaded) > _KEPT:
                del self._loaded[next(iter(self._loaded))]
            return live

    def name(self) -> str:
        """Name of the live artifact.

        Raises:
            ConflictError: There is none.
        """
        with self._lock:
            self._look(None)
            if self._live is None:
                raise ConflictError("there is no artifact: register one first.")
            return self._live

    def loaded(self) -> list[Live]:
        """Those in memory, the last used last."""
        with self._lock:
            return list(self._loaded.values())

    def forget(self) -> None:
        """Ask the database again before the next answer."""
        self._looked = float("-inf")

    def _look(self, name: str | None) -> None:
        if time.monotonic() - self._looked > _LOOK_S or (name is not None and name not in self._known):
            self._known, self._live = self._store.artifacts(), self._store.live()
            self._looked = time.monotonic()


def _load(name: str, path: Path) -> Live:
    artifact = Artifact.open(path)
    drift = DriftMonitor(artifact.encoder.schema, artifact.reference) if artifact.reference else None
    return Live(name, Scorer(artifact), drift)
