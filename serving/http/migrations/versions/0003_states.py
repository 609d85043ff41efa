"""Artifacts, and the jobs submitted with them, may read the past from a state of their own."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for table in ("artifacts", "jobs"):
        op.add_column(table, sa.Column("state_path", sa.Text))


def downgrade() -> None:
    for table in ("artifacts", "jobs"):
        op.drop_column(table, "state_path")
