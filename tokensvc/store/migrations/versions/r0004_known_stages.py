"""Stage endpoints that survive a restart."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

__all__ = ["down_revision", "revision", "upgrade"]

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Create the table of known stages."""
    op.create_table(
        "known_stages",
        sa.Column("stage_arn", sa.String(128), nullable=False),
        sa.Column("events_url", sa.String(2048), nullable=False),
        sa.Column("whip_url", sa.String(2048), nullable=False),
        sa.Column("fetched_at", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("stage_arn", name="pk_known_stages"),
    )
    op.create_index("ix_known_stages_fetched_at", "known_stages", ["fetched_at"])
