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
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)

__all__ = ["caller_secrets", "callers", "feeds", "keys", "metadata", "rings"]

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(referred_table_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    }
)

# One key ring per Region. `version` is the fencing number of its rotators: it grows by one with
# every change, and a write that names another version is refused.
rings = Table(
    "rings",
    metadata,
    Column("ring_id", String(64), primary_key=True),
    Column("region", String(32), primary_key=True),
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
