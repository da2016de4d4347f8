"""Alembic's environment and the revisions, in order; run by `store.schema.upgrade`."""
