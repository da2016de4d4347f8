"""Bans, disconnects with the calls they come to, and leases of work."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

__all__ = ["down_revision", "revision", "upgrade"]

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Create the tables of revocation, and the feed of the bans."""
    op.create_table(
        "bans",
        sa.Column("ban_id", sa.String(32), nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("stage_arn", sa.String(128), nullable=True),
        sa.Column("user_id", sa.String(128), nullable=True),
        sa.Column("participant_id", sa.String(64), nullable=True),
        sa.Column("until", sa.Double, nullable=True),
        sa.Column("reason", sa.String(128), nullable=False),
        sa.Column("caller_id", sa.String(32), nullable=True),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("lifted_at", sa.Double, nullable=True),
        sa.PrimaryKeyConstraint("ban_id", name="pk_bans"),
    )
    op.create_index("ix_bans_version", "bans", ["version"])
    op.create_table(
        "disconnects",
        sa.Column("disconnect_id", sa.String(32), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("region", sa.String(32), nullable=False),
        sa.Column("stage_arn", sa.String(128), nullable=True),
        sa.Column("user_id", sa.String(128), nullable=True),
        sa.Column("target_id", sa.String(64), nullable=True),
        sa.Column("reason", sa.String(128), nullable=False),
        sa.Column("ban_id", sa.String(32), nullable=True),
        sa.Column("caller_id", sa.String(32), nullable=True),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("next_sweep_at", sa.Double, nullable=True),
        sa.Column("sweeps", sa.Integer, nullable=False),
        sa.Column("failed_sweeps", sa.Integer, nullable=False),
        sa.Column("last_error", sa.String(64), nullable=True),
        sa.PrimaryKeyConstraint("disconnect_id", name="pk_disconnects"),
    )
    op.create_index("ix_disconnects_due", "disconnects", ["region", "next_sweep_at"])
    op.create_index("ix_disconnects_created_at", "disconnects", ["created_at"])
    op.create_table(
        "disconnect_calls",
        sa.Column("call_id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), nullable=False),
        sa.Column("region", sa.String(32), nullable=False),
        sa.Column("operation", sa.String(16), nullable=False),
        sa.Column("stage_arn", sa.String(128), nullable=False),
        sa.Column("target_id", sa.String(64), nullable=False),
        sa.Column("user_id", sa.String(128), nullable=True),
        sa.Column("reason", sa.String(128), nullable=False),
        sa.Column("rank", sa.Integer, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("next_attempt_at", sa.Double, nullable=False),
        sa.Column("exp", sa.Double, nullable=False),
        sa.Column("last_error", sa.String(64), nullable=True),
        sa.Column("updated_at", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("call_id", name="pk_disconnect_calls"),
    )
    op.create_index(
        "ix_disconnect_calls_due",
        "disconnect_calls",
        ["region", "state", "rank", "next_attempt_at"],
    )
    op.create_index(
        "uq_disconnect_calls_pending",
        "disconnect_calls",
        ["operation", "stage_arn", "target_id"],
        unique=True,
        sqlite_where=sa.text("state = 'pending'"),
        postgresql_where=sa.text("state = 'pending'"),
    )
    op.create_table(
        "disconnect_members",
        sa.Column("disconnect_id", sa.String(32), nullable=False),
        sa.Column("call_id", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("disconnect_id", "call_id", name="pk_disconnect_members"),
    )
    op.create_index("ix_disconnect_members_call_id", "disconnect_members", ["call_id"])
    op.create_table(
        "leases",
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("holder", sa.String(64), nullable=False),
        sa.Column("fence", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_leases"),
    )
    op.bulk_insert(
        sa.table("feeds", sa.column("name", sa.String), sa.column("version", sa.BigInteger)),
        [{"name": "bans", "version": 0}],
    )
