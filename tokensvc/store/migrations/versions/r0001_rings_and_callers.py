"""Key rings with their keys, callers with their secrets, and the feeds that replicas poll."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

__all__ = ["down_revision", "revision", "upgrade"]

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create the first tables."""
    op.create_table(
        "rings",
        sa.Column("ring_id", sa.String(64), nullable=False),
        sa.Column("region", sa.String(32), nullable=False),
        sa.Column("owner", sa.String(32), nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("ring_id", "region", name="pk_rings"),
    )
    op.create_table(
        "keys",
        sa.Column("key_id", sa.String(32), nullable=False),
        sa.Column("ring_id", sa.String(64), nullable=False),
        sa.Column("region", sa.String(32), nullable=False),
        sa.Column("phase", sa.String(16), nullable=False),
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("arn", sa.String(128), nullable=True),
        sa.Column("public_key_pem", sa.Text, nullable=False),
        sa.Column("sealed_private_key", sa.LargeBinary, nullable=True),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("imported_at", sa.Double, nullable=True),
        sa.Column("checked_at", sa.Double, nullable=True),
        sa.Column("activated_at", sa.Double, nullable=True),
        sa.Column("longest_ttl", sa.Double, nullable=True),
        sa.Column("retired_at", sa.Double, nullable=True),
        sa.Column("delete_reason", sa.String(16), nullable=True),
        sa.Column("deleted_at", sa.Double, nullable=True),
        sa.PrimaryKeyConstraint("key_id", name="pk_keys"),
        sa.ForeignKeyConstraint(
            ["ring_id", "region"], ["rings.ring_id", "rings.region"], name="fk_keys_rings"
        ),
        sa.UniqueConstraint("arn", name="uq_keys_arn"),
    )
    op.create_index("ix_keys_ring_id_region", "keys", ["ring_id", "region"])
    op.create_index(
        "uq_keys_active",
        "keys",
        ["ring_id", "region"],
        unique=True,
        sqlite_where=sa.text("phase = 'ACTIVE'"),
        postgresql_where=sa.text("phase = 'ACTIVE'"),
    )
    op.create_table(
        "callers",
        sa.Column("caller_id", sa.String(32), nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("scopes", sa.Text, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("expires_at", sa.Double, nullable=True),
        sa.Column("revoked_at", sa.Double, nullable=True),
        sa.PrimaryKeyConstraint("caller_id", name="pk_callers"),
        sa.UniqueConstraint("name", name="uq_callers_name"),
    )
    op.create_table(
        "caller_secrets",
        sa.Column("caller_id", sa.String(32), nullable=False),
        sa.Column("secret_sha256", sa.LargeBinary(32), nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("expires_at", sa.Double, nullable=True),
        sa.PrimaryKeyConstraint("caller_id", "secret_sha256", name="pk_caller_secrets"),
        sa.ForeignKeyConstraint(
            ["caller_id"], ["callers.caller_id"], name="fk_caller_secrets_callers"
        ),
    )
    op.create_table(
        "feeds",
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_feeds"),
    )
    # A row from the start, so that a change is always a plain UPDATE and never a race of INSERTs.
    op.bulk_insert(
        sa.table("feeds", sa.column("name", sa.String), sa.column("version", sa.BigInteger)),
        [{"name": "callers", "version": 0}],
    )
