"""PostgreSQL: the ledger partitioned by the day of expiry, and notifications of changes.

SQLite is left as it is. No version before this one worked on PostgreSQL, so the table that is
replaced here is one that `0002` has just made, and empty.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

__all__ = ["down_revision", "revision", "upgrade"]

revision = "0005"
down_revision = "0004"

_LEDGER = (
    "DROP TABLE issued_tokens",
    """
    CREATE TABLE issued_tokens (
        row_id BIGSERIAL NOT NULL,
        token_id VARCHAR(64) NOT NULL,
        kind VARCHAR(16) NOT NULL,
        stage_arn VARCHAR(128),
        region VARCHAR(32) NOT NULL,
        user_id VARCHAR(128),
        key_id VARCHAR(32),
        key_arn VARCHAR(128),
        caller_id VARCHAR(32),
        issuer VARCHAR(8) NOT NULL,
        iat BIGINT NOT NULL,
        exp BIGINT NOT NULL,
        endpoints_id VARCHAR(32),
        disconnected_at DOUBLE PRECISION,
        CONSTRAINT pk_issued_tokens PRIMARY KEY (exp, row_id)
    ) PARTITION BY RANGE (exp)
    """,
    "CREATE INDEX ix_issued_tokens_token_id ON issued_tokens (token_id)",
    "CREATE INDEX ix_issued_tokens_user ON issued_tokens (user_id, stage_arn, exp, row_id)",
    "CREATE INDEX ix_issued_tokens_stage ON issued_tokens (stage_arn, exp, row_id)",
    "CREATE INDEX ix_issued_tokens_key ON issued_tokens (key_id, exp, row_id)",
    # Takes what no other partition does, so that no mint fails for want of one.
    "CREATE TABLE issued_tokens_default PARTITION OF issued_tokens DEFAULT",
)

# In the transaction of the change, whoever makes it; delivered when that is committed.
_NOTIFICATIONS = (
    """
    CREATE FUNCTION tokensvc_notify_feed() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        PERFORM pg_notify('tokensvc', NEW.name);
        RETURN NULL;
    END $$
    """,
    """
    CREATE FUNCTION tokensvc_notify_ring() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        PERFORM pg_notify('tokensvc', 'rings');
        RETURN NULL;
    END $$
    """,
    """
    CREATE TRIGGER tokensvc_notify AFTER INSERT OR UPDATE ON feeds
    FOR EACH ROW EXECUTE FUNCTION tokensvc_notify_feed()
    """,
    """
    CREATE TRIGGER tokensvc_notify AFTER INSERT OR UPDATE ON rings
    FOR EACH ROW EXECUTE FUNCTION tokensvc_notify_ring()
    """,
)


def upgrade() -> None:
    """Replace the ledger's table and add the triggers, on PostgreSQL."""
    if op.get_bind().dialect.name != "postgresql":
        return
    for statement in (*_LEDGER, *_NOTIFICATIONS):
        op.execute(sa.text(statement))
