"""The artifacts a service scores requests with: loaded once, switched without a pause."""

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from data_pipelines.disk.storage import open_directory
from data_pipelines.errors import UserError
from serving.artifact.device import DeviceName
from serving.artifact.drift import DriftMonitor
from serving.batch.scorer import Scorer
from serving.batch.value_counts import ValueCounts
from serving.http.allowed_paths import Roots
from serving.http.database import Registered
from serving.http.jobs import ConflictError, JobStore

_Key = tuple[str, str, str | None]
"""Name and fingerprint of an artifact, and the fingerprint of the state that was registered with it."""

_LOOK_S = 1.0
_KEPT = 4


@dataclass(frozen=True)
class Live:
    """A loaded artifact. A holder keeps using it, even after another artifact becomes live."""

    name: str
    scorer: Scorer
    drift: DriftMonitor | None

    def score(self, rows: pl.DataFrame, *, logits: bool) -> tuple[pl.DataFrame, ValueCounts]:
        """Scores of raw rows (see :meth:`serving.batch.scorer.Scorer.score`), and how many of their values are known.

        Raises:
            UserError: A value is there but cannot be read; a column is missing, or of a type that cannot be read.
        """
        if rows.width == 0 and rows.is_empty():
            return pl.DataFrame(schema=dict.fromkeys(self.scorer.artifact.outputs.names, pl.Float32)), ValueCounts()
        read = self.scorer.read(rows.lazy()).collect()
        self.scorer.refuse_unreadable(read)
        counts = ValueCounts()
        return self.scorer.score(read, logits=logits, drift=self.drift, counts=counts), counts


class LiveArtifacts:
    """Artifacts by name, as registered in the database; at most four stay loaded. Safe from several threads.

    A request waits for the artifact that it names, and for the first live one. When another becomes live, or the state
    of the live one is updated in place, requests are answered as before until what is new is loaded.

    Args:
        roots: Where an artifact may read side tables.
        device: Where requests are computed (see :class:`serving.batch.scorer.Scorer`).
    """

    def __init__(self, store: JobStore, roots: Roots, device: DeviceName = "cpu") -> None:
        self._store, self._roots, self._device = store, roots, device
        self._lock = threading.Lock()
        self._loaders = ThreadPoolExecutor(1, thread_name_prefix="artifact")
        self._loaded: dict[_Key, Future[Live]] = {}
        self._answering: Future[Live] | None = None
        self._known: dict[str, Registered] = {}
        self._states: dict[str, str] = {}
        self._live: str | None = None
        self._looked = float("-inf")

    def get(self, name: str | None = None) -> Live:
        """The artifact of that name, or the live one.

        Raises:
            ConflictError: There is no such artifact, or no live one.
            UserError: It is damaged, reads what it may not, or the artifact at its path is not the registered one.
        """
        with self._lock:
            self._look(name)
            wanted = name or self._live
            if wanted is None:
                raise ConflictError("there is no artifact: register one first.")
            if wanted not in self._known:
                raise ConflictError(f"there is no artifact {wanted!r}: register it first.")
            registered = self._known[wanted]
            key = (wanted, registered.fingerprint, self._states.get(registered.state_path or ""))
            found = self._loaded.pop(key, None)
            if found is None or _failed(found):
                same = self._loaded_with(*key[:2])
                found = self._loaders.submit(_load, wanted, registered, self._roots, self._device, same)
            self._loaded[key] = found
            while len(self._loaded) > _KEPT:
                del self._loaded[next(iter(self._loaded))]
            if name is None:
                if self._answering is None or _failed(self._answering) or found.done():
                    self._answering = found
                found = self._answering
        return found.result()

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
        """The loaded artifacts, the most recently used last."""
        with self._lock:
            return [found.result() for found in self._loaded.values() if found.done() and not _failed(found)]

    def _loaded_with(self, name: str, fingerprint: str) -> Live | None:
        """The same artifact with another past, if it is in memory."""
        same = (found for key, found in self._loaded.items() if key[:2] == (name, fingerprint))
        return next((found.result() for found in same if found.done() and not _failed(found)), None)

    def forget(self) -> None:
        """Read the database again before the next answer."""
        self._looked = float("-inf")

    def _look(self, name: str | None) -> None:
        if time.monotonic() - self._looked > _LOOK_S or (name is not None and name not in self._known):
            self._known, self._live = self._store.artifacts(), self._store.live()
            for registered in self._known.values():
                if registered.state_path is not None:
                    with suppress(UserError):  # what loads the state says what is wrong with it
                        manifest = open_directory(Path(registered.state_path), "state", verify="sizes")
                        self._states[registered.state_path] = manifest.fingerprint
            self._looked = time.monotonic()


def _failed(loading: Future[Live]) -> bool:
    return loading.done() and loading.exception() is not None


def register(store: JobStore, roots: Roots, name: str, path: Path, state: Path | None = None) -> Registered:
    """Open an artifact, and register it with the state that it is to read the past from.

    Args:
        state: Replaces the artifact's own state, if given.

    Raises:
        UserError: The artifact or the state is damaged, outside the data roots, or they do not fit together.
    """
    artifact = roots.open(path)
    if state is not None:
        artifact.past_in(state)
    known = None if state is None else str(state.resolve())
    return store.register(name, str(path.resolve()), artifact.fingerprint, state=known)


def _load(name: str, registered: Registered, roots: Roots, device: DeviceName, same: Live | None) -> Live:
    state = None if registered.state_path is None else Path(registered.state_path)
    if same is not None:
        return Live(name, Scorer(same.scorer.artifact, state=state, device=device), same.drift)
    artifact = roots.open(Path(registered.path))
    artifact.check_fingerprint(registered.fingerprint, "registered", "register it again")
    artifact.encoder.warm()
    drift = DriftMonitor(artifact.encoder.schema, artifact.reference) if artifact.reference else None
    return Live(name, Scorer(artifact, state=state, device=device), drift)
