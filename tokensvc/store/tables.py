"""What is stored, as SQLAlchemy metadata.

Times are Unix seconds as double precision. Text has a length, binary is LargeBinary, and no type or
default here belongs to one database. A change here comes with a migration; a test compares the two.

A private half is stored sealed, in the row of its key, so that key, ARN and phase change in one
transaction. Of an API key only a hash of its secret is stored. Neither tokens nor plain keys are.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    Double,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)

__all__ = [
    "bans",
    "caller_secrets",
    "callers",
    "disconnect_calls",
    "disconnect_members",
    "disconnects",
    "feeds",
    "idempotency_records",
    "issued_tokens",
    "keys",
    "known_stages",
    "leases",
    "metadata",
    "region_reports",
    "rings",
    "stage_endpoints",
]

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(referred_table_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    }
)

# One key ring per Region. `version` is the fencing number of its rotators: it grows by one with
# every change, and a write that names another version is refused. `owner` is random and tells this
# ring's keys at IVS from those of a ring that another database keeps under the same id.
rings = Table(
    "rings",
    metadata,
    Column("ring_id", String(64), primary_key=True),
    Column("region", String(32), primary_key=True),
    Column("owner", String(32), nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("created_at", Double, nullable=False),
)

keys = Table(
    "keys",
    metadata,
    Column("key_id", String(32), primary_key=True),
    Column("ring_id", String(64), nullable=False),
    Column("region", String(32), nullable=False),
    Column("phase", String(16), nullable=False),
    Column("name", String(128), nullable=False),
    Column("arn", String(128), nullable=True),
    Column("public_key_pem", Text, nullable=False),
    Column("sealed_private_key", LargeBinary, nullable=True),
    Column("created_at", Double, nullable=False),
    Column("imported_at", Double, nullable=True),
    Column("checked_at", Double, nullable=True),
    Column("activated_at", Double, nullable=True),
    Column("longest_ttl", Double, nullable=True),
    Column("retired_at", Double, nullable=True),
    Column("delete_reason", String(16), nullable=True),
    Column("deleted_at", Double, nullable=True),
    ForeignKeyConstraint(["ring_id", "region"], ["rings.ring_id", "rings.region"]),
    UniqueConstraint("arn"),
)

# The database, too, refuses a second ACTIVE key. Whoever swaps two keys demotes first.
Index(
    "uq_keys_active",
    keys.c.ring_id,
    keys.c.region,
    unique=True,
    sqlite_where=text("phase = 'ACTIVE'"),
    postgresql_where=text("phase = 'ACTIVE'"),
)
Index("ix_keys_ring_id_region", keys.c.ring_id, keys.c.region)

# What the process that looks after a Region's keys last found; the others show it.
region_reports = Table(
    "region_reports",
    metadata,
    Column("ring_id", String(64), primary_key=True),
    Column("region", String(32), primary_key=True),
    Column("found_at", Double, nullable=False),
    Column("report", Text, nullable=False),
)

callers = Table(
    "callers",
    metadata,
    Column("caller_id", String(32), primary_key=True),
    Column("name", String(64), nullable=False, unique=True),
    Column("scopes", Text, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("expires_at", Double, nullable=True),
    Column("revoked_at", Double, nullable=True),
)

# A table of its own, so that a caller can hold an old and a new secret while it changes over.
caller_secrets = Table(
    "caller_secrets",
    metadata,
    Column("caller_id", String(32), ForeignKey("callers.caller_id"), primary_key=True),
    Column("secret_sha256", LargeBinary(32), primary_key=True),
    Column("created_at", Double, nullable=False),
    Column("expires_at", Double, nullable=True),
)

# `version` grows in the transaction of every change to what `name` stands for, so that a replica
# learns with one small read whether its copy is still the stored one.
feeds = Table(
    "feeds",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("version", BigInteger, nullable=False),
)

# What was issued: one row per token. An exchange, or a replay under a newer key, signs another token
# for the same `token_id` (the `jti`), so that is not unique. SQLite only numbers rows by itself when
# their key is an INTEGER. `stage_arn` and `user_id` are null where the token has none.
issued_tokens = Table(
    "issued_tokens",
    metadata,
    Column("row_id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("token_id", String(64), nullable=False),
    Column("kind", String(16), nullable=False),
    Column("stage_arn", String(128), nullable=True),
    Column("region", String(32), nullable=False),
    Column("user_id", String(128), nullable=True),
    Column("key_id", String(32), nullable=True),
    Column("key_arn", String(128), nullable=True),
    Column("caller_id", String(32), nullable=True),
    Column("issuer", String(8), nullable=False),
    Column("iat", BigInteger, nullable=False),
    Column("exp", BigInteger, nullable=False),
    Column("endpoints_id", String(32), nullable=True),
    Column("disconnected_at", Double, nullable=True),
)
# Each look-up walks one of these in the order of its pages, (exp, row_id); the last is for retention.
Index("ix_issued_tokens_token_id", issued_tokens.c.token_id)
Index(
    "ix_issued_tokens_user",
    issued_tokens.c.user_id,
    issued_tokens.c.stage_arn,
    issued_tokens.c.exp,
    issued_tokens.c.row_id,
)
Index(
    "ix_issued_tokens_stage", issued_tokens.c.stage_arn, issued_tokens.c.exp, issued_tokens.c.row_id
)
Index("ix_issued_tokens_key", issued_tokens.c.key_id, issued_tokens.c.exp, issued_tokens.c.row_id)
Index("ix_issued_tokens_exp", issued_tokens.c.exp, issued_tokens.c.row_id)

# The endpoints that tokens were signed with, kept once; `endpoints_id` is a hash of the two. A few rows
# per stage, never deleted, so that every process may remember which are there.
stage_endpoints = Table(
    "stage_endpoints",
    metadata,
    Column("endpoints_id", String(32), primary_key=True),
    Column("events_url", String(2048), nullable=False),
    Column("whip_url", String(2048), nullable=False),
)

# What was answered to a request that carried an Idempotency-Key: the facts it can be derived from.
idempotency_records = Table(
    "idempotency_records",
    metadata,
    Column("caller_id", String(32), primary_key=True),
    Column("route", String(64), primary_key=True),
    Column("key_sha256", LargeBinary(32), primary_key=True),
    Column("request_sha256", LargeBinary(32), nullable=False),
    Column("result", Text, nullable=False),
    Column("expires_at", Double, nullable=False),
)
Index("ix_idempotency_records_expires_at", idempotency_records.c.expires_at)

# Who may not be issued a token. `version` is that of the feed `bans` after the change that wrote the
# row, so a replica reads only what changed since. A lifted ban stays a while, for replicas to see it.
bans = Table(
    "bans",
    metadata,
    Column("ban_id", String(32), primary_key=True),
    Column("version", BigInteger, nullable=False),
    Column("kind", String(16), nullable=False),
    Column("stage_arn", String(128), nullable=True),
    Column("user_id", String(128), nullable=True),
    Column("participant_id", String(64), nullable=True),
    Column("until", Double, nullable=True),
    Column("reason", String(128), nullable=False),
    Column("caller_id", String(32), nullable=True),
    Column("created_at", Double, nullable=False),
    Column("lifted_at", Double, nullable=True),
)
Index("ix_bans_version", bans.c.version)

# What was asked to be disconnected or revoked. `next_sweep_at` is when the worker next looks for whom
# that means (null: it knows them all).
disconnects = Table(
    "disconnects",
    metadata,
    Column("disconnect_id", String(32), primary_key=True),
    Column("kind", String(16), nullable=False),
    Column("region", String(32), nullable=False),
    Column("stage_arn", String(128), nullable=True),
    Column("user_id", String(128), nullable=True),
    Column("target_id", String(64), nullable=True),
    Column("reason", String(128), nullable=False),
    Column("ban_id", String(32), nullable=True),
    Column("caller_id", String(32), nullable=True),
    Column("created_at", Double, nullable=False),
    Column("next_sweep_at", Double, nullable=True),
    Column("sweeps", Integer, nullable=False),
    Column("failed_sweeps", Integer, nullable=False),
    Column("last_error", String(64), nullable=True),
)
Index("ix_disconnects_due", disconnects.c.region, disconnects.c.next_sweep_at)
Index("ix_disconnects_created_at", disconnects.c.created_at)

# The calls to IVS that all requests together come to; `stage_arn` is empty for a connection token.
disconnect_calls = Table(
    "disconnect_calls",
    metadata,
    Column("call_id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("region", String(32), nullable=False),
    Column("operation", String(16), nullable=False),
    Column("stage_arn", String(128), nullable=False),
    Column("target_id", String(64), nullable=False),
    Column("user_id", String(128), nullable=True),
    Column("reason", String(128), nullable=False),
    Column("rank", Integer, nullable=False),
    Column("state", String(16), nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("next_attempt_at", Double, nullable=False),
    Column("exp", Double, nullable=False),
    Column("last_error", String(64), nullable=True),
    Column("updated_at", Double, nullable=False),
)
Index(
    "ix_disconnect_calls_due",
    disconnect_calls.c.region,
    disconnect_calls.c.state,
    disconnect_calls.c.rank,
    disconnect_calls.c.next_attempt_at,
)
# Two requests that mean the same participant share one call for as long as it is to be made.
Index(
    "uq_disconnect_calls_pending",
    disconnect_calls.c.operation,
    disconnect_calls.c.stage_arn,
    disconnect_calls.c.target_id,
    unique=True,
    sqlite_where=text("state = 'pending'"),
    postgresql_where=text("state = 'pending'"),
)

disconnect_members = Table(
    "disconnect_members",
    metadata,
    Column("disconnect_id", String(32), primary_key=True),
    Column("call_id", BigInteger, primary_key=True),
)
Index("ix_disconnect_members_call_id", disconnect_members.c.call_id)

# Work that one process at a time may do. `fence` grows by one whenever the holder changes.
leases = Table(
    "leases",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("holder", String(64), nullable=False),
    Column("fence", BigInteger, nullable=False),
    Column("expires_at", Double, nullable=False),
)

# The endpoints that IVS gave for a stage when it was last asked, for a service that starts while IVS
# is down. Rows older than 14 days, which is how long IVS allows them to be kept, are deleted.
known_stages = Table(
    "known_stages",
    metadata,
    Column("stage_arn", String(128), primary_key=True),
    Column("events_url", String(2048), nullable=False),
    Column("whip_url", String(2048), nullable=False),
    Column("fetched_at", Double, nullable=False),
    # As JSON, and of which `fetched_at` they are: with another one, they are not known.
    Column("tags", Text, nullable=True),
    Column("tags_at", Double, nullable=True),
)
Index("ix_known_stages_fetched_at", known_stages.c.fetched_at)
