"""Loading structlog without rich.

Where rich is installed (Litestar's command line wants it), structlog loads it to colour tracebacks. Ours are
plain text (`logging.py`), and rich is 4 MB in every worker and a tenth of the time to load the service.
"""

from __future__ import annotations

import sys

__all__ = ["load_structlog"]


def load_structlog() -> None:
    """Load structlog, if nothing has yet; rich may be loaded afterwards by whoever wants it.

    Raises ModuleNotFoundError where structlog is not installed.
    """
    if "structlog" in sys.modules or "rich" in sys.modules:
        return
    # A None here is how Python is told that there is no such module, which structlog is prepared for.
    sys.modules["rich"] = None  # type: ignore[assignment]
    try:
        import structlog  # noqa: F401
    finally:
        del sys.modules["rich"]
