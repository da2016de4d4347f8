"""The ledger of issued tokens, the endpoints they were signed with, and idempotency records."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

__all__ = ["down_revision", "revision", "upgrade"]

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Create the ledger's tables."""
    op.create_table(
        "issued_tokens",
        sa.Column("row_id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), nullable=False),
        sa.Column("token_id", sa.String(64), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("stage_arn", sa.String(128), nullable=True),
        sa.Column("region", sa.String(32), nullable=False),
        sa.Column("user_id", sa.String(128), nullable=True),
        sa.Column("key_id", sa.String(32), nullable=True),
        sa.Column("key_arn", sa.String(128), nullable=True),
        sa.Column("caller_id", sa.String(32), nullable=True),
        sa.Column("issuer", sa.String(8), nullable=False),
        sa.Column("iat", sa.BigInteger, nullable=False),
        sa.Column("exp", sa.BigInteger, nullable=False),
        sa.Column("endpoints_id", sa.String(32), nullable=True),
        sa.Column("disconnected_at", sa.Double, nullable=True),
        sa.PrimaryKeyConstraint("row_id", name="pk_issued_tokens"),
    )
    op.create_index("ix_issued_tokens_token_id", "issued_tokens", ["token_id"])
    op.create_index(
        "ix_issued_tokens_user", "issued_tokens", ["user_id", "stage_arn", "exp", "row_id"]
    )
    op.create_index("ix_issued_tokens_stage", "issued_tokens", ["stage_arn", "exp", "row_id"])
    op.create_index("ix_issued_tokens_key", "issued_tokens", ["key_id", "exp", "row_id"])
    op.create_index("ix_issued_tokens_exp", "issued_tokens", ["exp", "row_id"])
    op.create_table(
        "stage_endpoints",
        sa.Column("endpoints_id", sa.String(32), nullable=False),
        sa.Column("events_url", sa.String(2048), nullable=False),
        sa.Column("whip_url", sa.String(2048), nullable=False),
        sa.PrimaryKeyConstraint("endpoints_id", name="pk_stage_endpoints"),
    )
    op.create_table(
        "idempotency_records",
        sa.Column("caller_id", sa.String(32), nullable=False),
        sa.Column("route", sa.String(64), nullable=False),
        sa.Column("key_sha256", sa.LargeBinary(32), nullable=False),
        sa.Column("request_sha256", sa.LargeBinary(32), nullable=False),
        sa.Column("result", sa.Text, nullable=False),
        sa.Column("expires_at", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("caller_id", "route", "key_sha256", name="pk_idempotency_records"),
    )
    op.create_index("ix_idempotency_records_expires_at", "idempotency_records", ["expires_at"])
