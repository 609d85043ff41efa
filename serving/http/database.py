"""The tables of the service's database, its schema's migrations, and how to connect to it."""

from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import JSON, Engine, Float, Index, String, Text, create_engine, event, func, select, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, OperationalError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from data_pipelines.errors import UserError

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
        UserError: The URL is none, names a database without a driver here, or the database does not answer.
    """
    engine = _engine(url)
    try:
        _migrate(engine)
    except OperationalError as error:
        where = engine.url.render_as_string(hide_password=True)
        reason = str(error.orig).strip().splitlines()[0]
        raise UserError(f"the jobs database {where} does not answer: {reason}") from None
    return engine


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
        _serialise(engine)
    return engine


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
