"""A worker: claims jobs one after the other, scores them, and keeps their lease while it does."""

import faulthandler
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from sqlalchemy.exc import SQLAlchemyError

from data_pipelines import extensions
from data_pipelines.errors import UnavailableError, UserError
from data_pipelines.redaction import conceal
from data_pipelines.runtime import tune_process
from serving.artifact.artifact import Artifact
from serving.artifact.drift import DriftMonitor
from serving.batch.batch_job import ParkedError, run_job
from serving.batch.journal import BusyError
from serving.batch.options import JobOptions
from serving.http.allowed_paths import Roots
from serving.http.jobs import Claim, JobStore

_log = logging.getLogger(__name__)
EXTENSION = "--extension="
"""Begins an argument that names a module to import."""
_POLL_S = 0.5
_BUSY_S = 5.0


class Worker:
    """Runs the jobs of the queue until it is stopped.

    Args:
        threads: Parts of a job at a time; one per processor by default.
        tick_s: How often the lease is renewed and progress reported.
    """

    def __init__(self, store: JobStore, roots: Roots, *, threads: int | None = None, tick_s: float = 1.0) -> None:
        self.name = f"{socket.gethostname()[:32]}-{uuid4().hex[:16]}"
        self._store, self._roots, self._threads, self._tick_s = store, roots, threads, tick_s
        self._opened: Artifact | None = None

    def run(self, stop: threading.Event, *, until_empty: bool = False) -> None:
        """Claim and run jobs until ``stop`` is set (or nothing is left to claim); the running job is then parked."""
        while not stop.is_set():
            try:
                claim = self._store.claim(self.name)
                if claim is not None:
                    self._work(claim, stop)
                    continue
            except UnavailableError as error:
                _log.error("%s", error)
            except SQLAlchemyError:
                _log.exception("the jobs database does not answer")
            if until_empty:
                return
            stop.wait(_POLL_S)

    def _work(self, claim: Claim, stop: threading.Event) -> None:
        _log.info("job %s begins", claim.id)
        try:
            with _Lease(self._store, claim, stop, self._tick_s) as lease:
                source = self._roots.source(claim.source)
                output = self._roots.output(claim.output)
                options = JobOptions.model_validate(claim.options)
                artifact = self._artifact(claim)
                drift = DriftMonitor(artifact.encoder.schema, artifact.reference) if artifact.reference else None
                result = run_job(
                    artifact,
                    source,
                    output,
                    options,
                    state=None if claim.state_path is None else Path(claim.state_path),
                    threads=self._threads,
                    progress=lease.progress,
                    stop=lease.stop,
                    drift=drift,
                )
            report = {**(drift.report() if drift else {}), "unknown": result.unknown, "nulls": result.nulls}
            self._store.finish(
                claim,
                rows=result.rows_in,
                quarantined=result.quarantined,
                rows_per_s=result.rows_per_s,
                drift=report,
            )
            if result.rescored:
                _log.warning("job %s: %d parts were damaged and scored again", claim.id, result.rescored)
            _log.info("job %s is done", claim.id)
        except ParkedError:
            self._store.release(claim)
            _log.info("job %s is parked", claim.id)
        except BusyError:
            self._store.release(claim, delay_s=_BUSY_S)
        except UserError as error:
            self._store.fail(claim, str(error))
            _log.info("job %s failed: %s", claim.id, error)
        except Exception as error:
            self._store.fail(claim, f"internal error ({type(error).__name__}); the service's log says more")
            _log.exception("job %s failed", claim.id)

    def _artifact(self, claim: Claim) -> Artifact:
        """The artifact of a job, checked in full when it is opened, and opened again when a file of it has changed."""
        path, opened = Path(claim.artifact_path), self._opened
        if opened is None or opened.path != path or not opened.is_current():
            opened = self._opened = self._roots.open(path)
        if claim.artifact_fingerprint is not None:
            opened.check_fingerprint(claim.artifact_fingerprint, "submitted with this job", "submit the job again")
        return opened


class _Lease:
    """Renews a job's lease in a separate thread; sets ``stop`` when the job must be parked."""

    def __init__(self, store: JobStore, claim: Claim, outer: threading.Event, tick_s: float) -> None:
        self.stop = threading.Event()
        self._store, self._claim, self._outer, self._tick_s = store, claim, outer, tick_s
        self._done, self._resumed, self._began = 0, 0, time.monotonic()
        self._total: int | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep, name=f"lease-{claim.id[:8]}", daemon=True)

    def __enter__(self) -> "_Lease":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def progress(self, rows: int, total: int) -> None:
        """Called by the job with rows newly done and the total."""
        if self._total is None:
            self._resumed, self._began = rows, time.monotonic()
        self._done, self._total = self._done + rows, total

    def _keep(self) -> None:
        renewed = time.monotonic()
        while not self._over.wait(self._tick_s):
            if self._outer.is_set():
                self.stop.set()
            elapsed = time.monotonic() - self._began
            rate = (self._done - self._resumed) / elapsed if self._done > self._resumed else None
            try:
                held = self._store.renew(self._claim, rows_done=self._done, rows_total=self._total, rows_per_s=rate)
                renewed = time.monotonic()
            except (SQLAlchemyError, UnavailableError):
                held = time.monotonic() - renewed < self._store.lease_s
            if not held:
                self.stop.set()


@contextmanager
def stopped_by_signal() -> Iterator[threading.Event]:
    """An event that SIGTERM and SIGINT set."""
    stop = threading.Event()
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Concealing(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return conceal(super().format(record))


def log_to_stderr() -> None:
    """Log from here on to standard error, without the credentials that an error or a traceback may name."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Concealing("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.getLogger("alembic").setLevel(logging.WARNING)


def _stop_with_parent(stop: threading.Event) -> None:
    while os.read(sys.stdin.fileno(), 1024):
        pass
    stop.set()


def work(jobs_db: str, folders: Iterable[Path], addresses: Sequence[str] = (), *, supervised: bool = False) -> None:
    """Run jobs until SIGTERM or SIGINT; the running job is then parked, to be resumed by another worker.

    Args:
        jobs_db: URL of the jobs' database.
        folders: The folders below which jobs read and write.
        addresses: Addresses below which artifacts may read side tables.
        supervised: Stop when standard input ends, too.

    Raises:
        UserError: A folder or the database cannot be used.
    """
    faulthandler.enable()  # a mapped file that is cut short while it is read ends the process: say where
    log_to_stderr()
    with stopped_by_signal() as stop:
        if supervised:
            threading.Thread(target=_stop_with_parent, args=(stop,), daemon=True).start()
        Worker(JobStore(jobs_db), Roots(list(folders), addresses)).run(stop)


def main(arguments: list[str]) -> None:
    """``python -m serving.http.worker [--supervised] [--extension=MODULE]... DATA_ROOT...``.

    The database's URL is in ``RECSYS_JOBS_DB``. Arguments with ``://`` are the addresses that ``--allow-address``
    names.

    (A URL may hold a password, and every user of a machine can read the arguments of its processes.) A supervised
    worker stops when its standard input ends: when the process that started it is gone.
    """
    tune_process()
    extensions.load([argument.removeprefix(EXTENSION) for argument in arguments if argument.startswith(EXTENSION)])
    places = [argument for argument in arguments if not argument.startswith("--")]
    folders = [Path(place) for place in places if "://" not in place]
    addresses = [place for place in places if "://" in place]
    work(os.environ["RECSYS_JOBS_DB"], folders, addresses, supervised="--supervised" in arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
