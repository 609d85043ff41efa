"""Alembic's entry point: brings the jobs' database to the newest schema over the connection it is given."""

from alembic import context

from serving.http.database import Base

context.configure(connection=context.config.attributes["connection"], target_metadata=Base.metadata)
context.run_migrations()
