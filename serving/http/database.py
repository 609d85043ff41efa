"""The tables of the service's database, its schema's migrations, and how to connect to it."""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import JSON, Engine, Float, Index, String, Text, create_engine, event, func, select, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, OperationalError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from data_pipelines.errors import UnavailableError, UserError, writing

_MIGRATION_LOCK = 0x73706172
_UNFINISHED = text("state IN ('queued', 'running')")


class Base(DeclarativeBase):
    """Tables of the service."""


class JobRow(Base):
    __tablename__ = "jobs"
    __table_args__ = (
        Index(
            "one_unfinished_job_an_output",
            "output",
            unique=True,
            sqlite_where=_UNFINISHED,
            postgresql_where=_UNFINISHED,
        ),
    )
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    state: Mapped[str] = mapped_column(String(16), index=True)
    idempotency_key: Mapped[str | None] = mapped_column(String(200), unique=True)
    artifact: Mapped[str] = mapped_column(String(200))
    artifact_path: Mapped[str] = mapped_column(Text)
    artifact_fingerprint: Mapped[str | None] = mapped_column(String(32))
    state_path: Mapped[str | None] = mapped_column(Text)
    source: Mapped[str] = mapped_column(Text)
    output: Mapped[str] = mapped_column(Text)
    options: Mapped[dict[str, Any]] = mapped_column(JSON)
    created_at: Mapped[float] = mapped_column(Float, index=True)
    started_at: Mapped[float | None] = mapped_column(Float)
    finished_at: Mapped[float | None] = mapped_column(Float)
    rows_done: Mapped[int] = mapped_column(default=0)
    rows_total: Mapped[int | None]
    rows_per_s: Mapped[float | None]
    quarantined: Mapped[int | None]
    drift: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    error: Mapped[str | None] = mapped_column(Text)
    worker: Mapped[str | None] = mapped_column(String(64))
    lease_until: Mapped[float | None]
    attempts: Mapped[int] = mapped_column(default=0)
    cancel_requested: Mapped[bool] = mapped_column(default=False)


class ArtifactRow(Base):
    __tablename__ = "artifacts"
    name: Mapped[str] = mapped_column(String(200), primary_key=True)
    path: Mapped[str] = mapped_column(Text)
    fingerprint: Mapped[str] = mapped_column(String(32))
    state_path: Mapped[str | None] = mapped_column(Text)


@dataclass(frozen=True)
class Registered:
    """An artifact that a service knows.

    Attributes:
        path: Its path.
        fingerprint: Its fingerprint when it was registered.
        state_path: The state that it reads the past from; its own if ``None``.
    """

    path: str
    fingerprint: str
    state_path: str | None


class SettingRow(Base):
    __tablename__ = "settings"
    key: Mapped[str] = mapped_column(String(64), primary_key=True)
    value: Mapped[str] = mapped_column(Text)


class TokenRow(Base):
    __tablename__ = "tokens"
    name: Mapped[str] = mapped_column(String(200), primary_key=True)
    digest: Mapped[str] = mapped_column(String(64), unique=True)
    created_at: Mapped[float] = mapped_column(Float)


def connect(url: str) -> Engine:
    """A connection pool to the database at ``url``, its schema brought to this version.

    Raises:
        UserError: The URL is invalid, no driver is installed for it, or the database does not answer.
        UnavailableError: The disk of the database file is full or read-only.
    """
    engine = _engine(url)
    try:
        with writing(f"the jobs database {engine.url.database}"):
            _migrate(engine)
    except OperationalError as error:
        where = engine.url.render_as_string(hide_password=True)
        reason = str(error.orig).strip().splitlines()[0]
        raise UserError(f"the jobs database {where} does not answer: {reason}") from None
    return engine


class Database:
    """The jobs' database, opened; safe from several threads and processes.

    Args:
        url: Its address for SQLAlchemy, such as ``sqlite:///jobs.db``.

    Raises:
        UserError: The URL is invalid, no driver is installed for it, or the database does not answer.
    """

    def __init__(self, url: str) -> None:
        self.engine = connect(url)
        self._usable = usable(self.engine)

    @contextmanager
    def session(self) -> Iterator[tuple[Session, float]]:
        """A transaction, and the database's time at its beginning."""
        with self._usable(), Session(self.engine, expire_on_commit=False) as session, session.begin():
            yield session, float(session.scalar(seconds_now(self.engine)) or 0.0)

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A transaction that changes nothing and waits for no lock."""
        engine = self.engine.execution_options(reading=True)
        with self._usable(), Session(engine, expire_on_commit=False) as session:
            yield session


def usable(engine: Engine) -> Callable[[], AbstractContextManager[None]]:
    """Makes the blocks in which a database that was opened may be used.

    SQLite continues to write to a removed file, and these writes are lost. Such a block raises
    :class:`UnavailableError` when the file was removed or replaced since this call, or its disk is full or read-only.
    """
    name = engine.url.database
    if engine.dialect.name != "sqlite" or name in (None, "", ":memory:"):
        return nullcontext
    opened = os.stat(name)

    @contextmanager
    def block() -> Iterator[None]:
        try:
            same = os.path.samestat(opened, os.stat(name))
        except OSError:
            same = False
        if not same:
            raise UnavailableError(
                f"the jobs database {name} was removed or replaced since it was opened: put it back, or restart to "
                "begin with the file that is there now."
            )
        with writing(f"the jobs database {name}"):
            yield

    return block


def seconds_now(engine: Engine) -> Any:
    """A query for the database's own time, in seconds since 1970."""
    if engine.dialect.name == "sqlite":
        return select(text("(julianday('now') - 2440587.5) * 86400.0"))
    return select(func.extract("epoch", func.clock_timestamp()))


def _migrate(engine: Engine) -> None:
    """Bring the schema to this version; of several processes that start at once, one does it and the others wait."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(select(func.pg_advisory_xact_lock(_MIGRATION_LOCK)))
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def _engine(url: str) -> Engine:
    try:
        parsed = make_url(url)
        if parsed.drivername == "postgresql":
            parsed = parsed.set(drivername="postgresql+psycopg")
        engine = create_engine(parsed, pool_pre_ping=True)
    except (ArgumentError, NoSuchModuleError, ModuleNotFoundError) as error:
        raise UserError(
            f"the jobs database URL is not usable ({error}): give sqlite:///PATH or postgresql://..."
        ) from None
    if engine.dialect.name == "sqlite":
        _make_private(parsed.database)
        _serialise(engine)
    return engine


def _make_private(file: str | None) -> None:
    """Make a new database file readable by its owner only; SQLite gives the files beside it the same mode."""
    if file and file != ":memory:" and not file.startswith("file:"):
        with suppress(OSError):  # connecting gives a better error
            os.close(os.open(file, os.O_RDWR | os.O_CREAT, 0o600))


def _serialise(engine: Engine) -> None:
    """SQLite has no row locks: a transaction that writes takes the write lock when it begins, and waits for it.

    One that only reads (execution option ``reading``) takes no lock: it sees the last commit while others write.
    """

    @event.listens_for(engine, "connect")
    def connect(connection: Any, _: Any) -> None:
        connection.isolation_level = None
        connection.execute("PRAGMA busy_timeout=30000")
        connection.execute("PRAGMA journal_mode=WAL")

    @event.listens_for(engine, "begin")
    def begin(connection: Any) -> None:
        reading = connection.get_execution_options().get("reading", False)
        connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")
