"""The database: its tables, how it is opened, how its schema is brought up to date, and its faults.

SQLite is the embedded default, PostgreSQL is for more than one machine. Whatever is particular to one
of them (pragmas and file modes, pools and time limits, partitions, notifications, error codes) stays in
this package; the statements over these tables live with the things they store (`keyring/sql.py`,
`callers/sql.py`), in SQLAlchemy Core that both take.
"""

from tokensvc.store.engine import open_engine
from tokensvc.store.faults import store_faults
from tokensvc.store.postgresql import DatabaseLimits
from tokensvc.store.schema import ensure_current, upgrade

__all__ = ["DatabaseLimits", "ensure_current", "open_engine", "store_faults", "upgrade"]
