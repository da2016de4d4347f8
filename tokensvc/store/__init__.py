"""The database: its tables, how it is opened, how its schema is brought up to date, and its faults.

SQLite is the embedded default. Whatever is particular to it (pragmas, file modes, error codes) stays
in this package; the statements over these tables live with the things they store
(`keyring/sql.py`, `callers/sql.py`), in SQLAlchemy Core that PostgreSQL takes as well.
"""

from tokensvc.store.engine import open_engine
from tokensvc.store.faults import store_faults
from tokensvc.store.schema import ensure_current, upgrade

__all__ = ["ensure_current", "open_engine", "store_faults", "upgrade"]
