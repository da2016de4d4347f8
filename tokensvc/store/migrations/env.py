"""Runs the revisions on the connection, and in the transaction, that `store.schema.upgrade` hands over."""

from __future__ import annotations

from alembic import context

from tokensvc.store.tables import metadata

__all__: list[str] = []

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    # SQLite's DDL is transactional once Python's own transaction handling is off, as it is here;
    # PostgreSQL's always is.
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
