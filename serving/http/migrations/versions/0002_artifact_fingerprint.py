"""Jobs keep the fingerprint of their artifact."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("artifact_fingerprint", sa.String(32)))


def downgrade() -> None:
    op.drop_column("jobs", "artifact_fingerprint")
