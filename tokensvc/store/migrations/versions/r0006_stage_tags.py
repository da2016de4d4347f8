"""The tags of known stages, so that replicas share them and a restart knows them.

Both columns may be null: a replica of the version before this one writes rows without them, and
moves `fetched_at` of rows that have them. Tags count only where `tags_at` is that very time.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

__all__ = ["down_revision", "revision", "upgrade"]

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Add the two columns."""
    op.add_column("known_stages", sa.Column("tags", sa.Text, nullable=True))
    op.add_column("known_stages", sa.Column("tags_at", sa.Double, nullable=True))
