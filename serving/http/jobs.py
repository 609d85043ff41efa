"""Jobs in a database: submitted once, claimed by one worker at a time, taken over when that worker dies.

A worker holds a job by a lease that it renews while it works. A job whose lease has run out is claimed by another
worker, which resumes it from the journal. A worker that lost its lease can no longer change the job. Times are the
database's own, in seconds since 1970, so that the clocks of several machines need not agree.
"""

import hashlib
import secrets
from typing import Any, Literal, get_args
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, computed_field
from sqlalchemy import case, func, or_, select, update
from sqlalchemy.exc import IntegrityError

from data_pipelines.errors import UserError
from serving.http.database import ArtifactRow, Database, JobRow, Registered, SettingRow, TokenRow

State = Literal["queued", "running", "done", "failed", "cancelled"]
LEASE_S = 30.0
MAX_ATTEMPTS = 20


class Job(BaseModel):
    """A job as clients see it; ``seconds_left`` is estimated from the rate so far, ``null`` before there is one."""

    model_config = ConfigDict(from_attributes=True)
    id: str
    state: State
    artifact: str
    source: str
    output: str
    options: dict[str, Any]
    created_at: float
    started_at: float | None
    finished_at: float | None
    rows_done: int
    rows_total: int | None
    rows_per_s: float | None
    quarantined: int | None
    drift: dict[str, Any] | None
    error: str | None
    attempts: int
    cancel_requested: bool

    @computed_field  # type: ignore[prop-decorator]
    @property
    def seconds_left(self) -> float | None:
        if self.state != "running" or not self.rows_per_s or self.rows_total is None:
            return None
        return (self.rows_total - self.rows_done) / self.rows_per_s


class Claim(BaseModel):
    """A job that a worker holds."""

    model_config = ConfigDict(from_attributes=True)
    id: str
    artifact_path: str
    artifact_fingerprint: str | None
    state_path: str | None
    source: str
    output: str
    options: dict[str, Any]
    worker: str


class ConflictError(UserError):
    """The request contradicts what the database holds."""


class JobStore(Database):
    """All queries and updates of the jobs' database. Safe from several threads and processes.

    Every method raises :class:`UnavailableError` where :func:`serving.http.database.usable` does.

    Raises:
        UserError: The URL is invalid, no driver is installed for it, or the database does not answer.
    """

    def __init__(self, url: str, *, lease_s: float = LEASE_S) -> None:
        super().__init__(url)
        self.lease_s = lease_s

    def submit(
        self,
        *,
        artifact: str,
        source: str,
        output: str,
        options: dict[str, Any],
        idempotency_key: str | None = None,
    ) -> tuple[Job, bool]:
        """Queue a job, unless one was submitted with the same idempotency key.

        Args:
            artifact: Name of a registered artifact.
            source: Path of the rows to score.
            output: Path of the folder to write.
            options: The fields of :class:`~serving.batch.options.JobOptions` that differ from their defaults.
            idempotency_key: Names the request; a repeated one gives the job of the first.

        Returns:
            The job, and whether it is new.

        Raises:
            ConflictError: No such artifact; the key belongs to a different job; an unfinished job writes there.
        """
        try:
            with self.session() as (session, now):
                found = session.get(ArtifactRow, artifact)
                if found is None:
                    raise ConflictError(f"there is no artifact {artifact!r}: register it first.")
                row = JobRow(
                    id=uuid4().hex,
                    state="queued",
                    idempotency_key=idempotency_key,
                    artifact=artifact,
                    artifact_path=found.path,
                    artifact_fingerprint=found.fingerprint,
                    state_path=found.state_path,
                    source=source,
                    output=output,
                    options=options,
                    created_at=now,
                )
                session.add(row)
                session.flush()
                return Job.model_validate(row), True
        except IntegrityError:
            pass
        with self.reading() as session:
            earlier = session.scalar(select(JobRow).where(JobRow.idempotency_key == (idempotency_key or "")))
        if earlier is None:
            raise ConflictError(f"an unfinished job already writes to {output}: name another output.")
        if (earlier.artifact, earlier.source, earlier.output, earlier.options) != (artifact, source, output, options):
            raise ConflictError(f"idempotency key {idempotency_key!r} belongs to another job: use a new key.")
        return Job.model_validate(earlier), False

    def get(self, job: str) -> Job | None:
        """The job with this id; ``None`` if there is none."""
        with self.reading() as session:
            row = session.get(JobRow, job)
            return None if row is None else Job.model_validate(row)

    def jobs(self, *, state: State | None = None, limit: int = 100, before: float | None = None) -> list[Job]:
        """Jobs, the newest first; with ``before`` (seconds since 1970), only those submitted earlier."""
        query = select(JobRow).order_by(JobRow.created_at.desc(), JobRow.id).limit(limit)
        if state is not None:
            query = query.where(JobRow.state == state)
        if before is not None:
            query = query.where(JobRow.created_at < before)
        with self.reading() as session:
            return [Job.model_validate(row) for row in session.scalars(query)]

    def counts(self) -> dict[str, int]:
        """Jobs by state."""
        with self.reading() as session:
            found = session.execute(select(JobRow.state, func.count()).group_by(JobRow.state))
            return dict.fromkeys(get_args(State), 0) | dict(found.all())

    def cancel(self, job: str) -> Job | None:
        """Cancel a queued job at once, a running one after its running parts; a finished one does not change."""
        with self.session() as (session, now):
            session.execute(
                update(JobRow)
                .where(JobRow.id == job, JobRow.state.in_(["queued", "running"]))
                .values(
                    cancel_requested=True,
                    state=case((JobRow.state == "queued", "cancelled"), else_=JobRow.state),
                    finished_at=case((JobRow.state == "queued", now), else_=JobRow.finished_at),
                )
            )
            row = session.get(JobRow, job)
            return None if row is None else Job.model_validate(row)

    def retry(self, job: str) -> Job | None:
        """Queue a failed or cancelled job again; it resumes from its journal.

        Raises:
            ConflictError: The job is queued, running or done, or another one writes to its output by now.
        """
        with self.session() as (session, _):
            try:
                changed = session.execute(
                    update(JobRow)
                    .where(JobRow.id == job, JobRow.state.in_(["failed", "cancelled"]))
                    .values(state="queued", error=None, finished_at=None, cancel_requested=False, attempts=0)
                )
            except IntegrityError:
                raise ConflictError(
                    f"an unfinished job writes to the output of job {job}: wait for it to end."
                ) from None
            row = session.get(JobRow, job)
            if row is None:
                return None
            if not changed.rowcount:  # type: ignore[attr-defined]
                raise ConflictError(f"job {job} is {row.state}: only a failed or cancelled job can be retried.")
            return Job.model_validate(row)

    def claim(self, worker: str) -> Claim | None:
        """Claim the oldest job that is queued or whose worker has died."""
        with self.session() as (session, now):
            row = session.scalar(
                select(JobRow)
                .where(
                    or_(
                        JobRow.state == "queued",
                        (JobRow.state == "running") & (JobRow.lease_until < now),
                    )
                )
                .order_by(JobRow.created_at, JobRow.id)
                .limit(1)
                .with_for_update(skip_locked=True)
            )
            if row is None:
                return None
            row.attempts += 1
            if row.cancel_requested or row.attempts > MAX_ATTEMPTS:
                row.state = "cancelled" if row.cancel_requested else "failed"
                row.error = None if row.cancel_requested else f"given up: {MAX_ATTEMPTS} workers died of this job"
                row.finished_at, row.worker, row.lease_until = now, None, None
                return None
            row.state, row.worker, row.lease_until = "running", worker, now + self.lease_s
            row.started_at = row.started_at or now
            return Claim.model_validate(row)

    def renew(self, claim: Claim, *, rows_done: int, rows_total: int | None, rows_per_s: float | None) -> bool:
        """Keep the lease and report progress; false when the job must stop: cancelled, or no longer this worker's."""
        with self.session() as (session, now):
            session.execute(
                update(JobRow)
                .where(*_held(claim))
                .values(
                    lease_until=now + self.lease_s, rows_done=rows_done, rows_total=rows_total, rows_per_s=rows_per_s
                )
            )
            return session.scalar(select(JobRow.cancel_requested).where(*_held(claim))) is False

    def release(self, claim: Claim, *, delay_s: float = 0.0) -> bool:
        """Give a parked job back, as cancelled if that was requested; false if it is no longer this worker's.

        With ``delay_s`` it stays with this worker for so long, and can then be claimed again.
        """
        with self.session() as (session, now):
            row = session.scalar(select(JobRow).where(*_held(claim)).with_for_update())
            if row is None:
                return False
            row.attempts -= 1
            if row.cancel_requested:
                row.state, row.finished_at, row.worker, row.lease_until = "cancelled", now, None, None
            elif delay_s:
                row.lease_until = now + delay_s
            else:
                row.state, row.worker, row.lease_until = "queued", None, None
            return True

    def finish(
        self, claim: Claim, *, rows: int, quarantined: int, rows_per_s: float | None, drift: dict[str, Any] | None
    ) -> bool:
        """Mark a job as done; false if it is no longer this worker's."""
        return self._end(
            claim,
            state="done",
            rows_done=rows,
            rows_total=rows,
            rows_per_s=rows_per_s,
            quarantined=quarantined,
            drift=drift,
            error=None,
        )

    def fail(self, claim: Claim, error: str) -> bool:
        """Mark a job as failed; false if it is no longer this worker's."""
        return self._end(claim, state="failed", error=error)

    def _end(self, claim: Claim, **values: Any) -> bool:
        with self.session() as (session, now):
            ended = session.execute(
                update(JobRow).where(*_held(claim)).values(finished_at=now, worker=None, lease_until=None, **values)
            )
            return bool(ended.rowcount)  # type: ignore[attr-defined]

    def register(self, name: str, path: str, fingerprint: str, *, state: str | None = None) -> Registered:
        """Register an artifact by a name; the first becomes live. Jobs submitted before keep path and fingerprint.

        Args:
            state: Path of the state that it reads the past from; its own if absent.
        """
        with self.session() as (session, _):
            session.merge(ArtifactRow(name=name, path=path, fingerprint=fingerprint, state_path=state))
            if session.get(SettingRow, "live") is None:
                session.add(SettingRow(key="live", value=name))
        return Registered(path, fingerprint, state)

    def artifacts(self) -> dict[str, Registered]:
        """The artifacts by name."""
        with self.reading() as session:
            rows = session.scalars(select(ArtifactRow))
            return {row.name: Registered(row.path, row.fingerprint, row.state_path) for row in rows}

    def live(self) -> str | None:
        """Name of the artifact that requests without a name are scored with."""
        with self.reading() as session:
            row = session.get(SettingRow, "live")
            return None if row is None else row.value

    def make_live(self, name: str) -> None:
        """Switch the live artifact.

        Raises:
            ConflictError: No such artifact.
        """
        with self.session() as (session, _):
            if session.get(ArtifactRow, name) is None:
                raise ConflictError(f"there is no artifact {name!r}: register it first.")
            session.merge(SettingRow(key="live", value=name))

    def new_token(self, name: str) -> str:
        """Make a token, keep its hash, and return it: it cannot be read again.

        Raises:
            ConflictError: There is a token of that name.
        """
        token = secrets.token_urlsafe(32)
        try:
            with self.session() as (session, now):
                session.add(TokenRow(name=name, digest=_digest(token), created_at=now))
        except IntegrityError:
            raise ConflictError(f"there is a token {name!r} already: choose another name.") from None
        return token

    def has_tokens(self) -> bool:
        with self.reading() as session:
            return session.scalar(select(TokenRow.name).limit(1)) is not None

    def token_name(self, token: str) -> str | None:
        """The name of a token; ``None`` for an unknown one."""
        with self.reading() as session:
            return session.scalar(select(TokenRow.name).where(TokenRow.digest == _digest(token)))


def _held(claim: Claim) -> tuple[Any, ...]:
    return JobRow.id == claim.id, JobRow.state == "running", JobRow.worker == claim.worker


def _digest(token: str) -> str:
    """SHA-256 is enough: a token has 256 random bits, so there is nothing to guess."""
    return hashlib.sha256(token.encode()).hexdigest()
