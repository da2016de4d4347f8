"""How each Region's key ring stands, as the process that looks after it last found it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

__all__ = ["down_revision", "revision", "upgrade"]

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Create the table of reports."""
    op.create_table(
        "region_reports",
        sa.Column("ring_id", sa.String(64), nullable=False),
        sa.Column("region", sa.String(32), nullable=False),
        sa.Column("found_at", sa.Double, nullable=False),
        sa.Column("report", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("ring_id", "region", name="pk_region_reports"),
    )
