"""Opening PostgreSQL: one pool per process, every wait in it bounded, and recovery by itself.

The URL is libpq's: `postgresql://user:password@host:port/database?sslmode=verify-full&sslrootcert=...`,
also with several hosts (`host1:5432,host2:5432`) and `target_session_attrs=read-write`, so that after a
failover the host that takes writes is found. asyncpg reads it, so PGPASSFILE and the other variables of
libpq count as well. It is in no error, no log line and no repr, as it may hold a password.

What bounds a wait, from the outside in: the pool's queue, the connect timeout, the server's
`lock_timeout` and `statement_timeout`, and the client's own limit a little above, for a server that the
network has cut off and that can time nothing out. A transaction that is left idle is ended by the server.

A connection that the server has closed is noticed before it is used again, without a round trip. One
that meets a server that is shutting down, or has become a read-only standby, is thrown away with all the
others of the pool, and the next statement connects anew.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit

from sqlalchemy import event
from sqlalchemy.engine import URL, ExceptionContext
from sqlalchemy.exc import InvalidatePoolError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from tokensvc.errors import ConfigurationError, StoreUnavailableError
from tokensvc.store.sqlstates import SERVER_IS_GONE, in_words

__all__ = [
    "DatabaseLimits",
    "connector",
    "is_postgresql",
    "open_postgresql_engine",
    "open_single_engine",
]

_SCHEMES: Final = ("postgresql", "postgres", "postgresql+asyncpg")
_SSL_MODES: Final = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
_FILES: Final = ("sslrootcert", "sslcert", "sslkey", "sslcrl", "passfile")
_PARAMETERS: Final = frozenset(
    {
        *_FILES,
        "application_name",
        "host",
        "port",
        "ssl_max_protocol_version",
        "ssl_min_protocol_version",
        "sslmode",
        "sslnegotiation",
        "sslpassword",
        "target_session_attrs",
    }
)

POOL_TIMEOUT_SECONDS: Final = 5.0
RECYCLE_SECONDS: Final = 1800.0
"""Age at which a connection is replaced, so that a host's new address is found in the end."""
IDLE_IN_TRANSACTION_SECONDS: Final = 10.0
CLIENT_MARGIN_SECONDS: Final = 2.0
"""What the client waits beyond `statement_timeout` before it takes the server to be out of reach."""
RETRY_AFTER_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class DatabaseLimits:
    """How many connections one process opens, and how long it waits, in seconds.

    SQLite knows none of them: it has one file and one writer.
    """

    pool_size: int = 5
    connect_timeout: float = 3.0
    statement_timeout: float = 10.0
    lock_timeout: float = 5.0


def is_postgresql(url: str) -> bool:
    """Tell whether a URL names a PostgreSQL database."""
    return url.partition("://")[0].lower() in _SCHEMES


def open_postgresql_engine(url: str, limits: DatabaseLimits) -> AsyncEngine:
    """Return an engine with a pool of `limits.pool_size` connections, none of them open yet.

    Raises ConfigurationError where the URL cannot work.
    """
    connect = connector(url, limits)
    engine = create_async_engine(
        _shown(url),
        async_creator=connect,
        pool_size=limits.pool_size,
        max_overflow=0,
        pool_timeout=POOL_TIMEOUT_SECONDS,
        pool_recycle=RECYCLE_SECONDS,
        hide_parameters=True,
    )
    event.listen(engine.sync_engine, "checkout", _refuse_closed)
    event.listen(engine.sync_engine, "handle_error", _note_disconnect)
    return engine


def open_single_engine(url: str, limits: DatabaseLimits) -> AsyncEngine:
    """Return an engine that opens a connection for each piece of work, for commands and migrations."""
    connect = connector(url, limits)
    return create_async_engine(
        _shown(url), async_creator=connect, poolclass=NullPool, hide_parameters=True
    )


def connector(url: str, limits: DatabaseLimits) -> Callable[[], Awaitable[Any]]:
    """Return a function that opens an asyncpg connection under `limits`.

    It raises StoreUnavailableError where the server is out of reach or refuses, and ConfigurationError
    where the URL or a file that it names cannot work; so does `connector` itself, as far as it can tell.
    """
    # Loaded where there is a PostgreSQL: three megabytes, in every worker.
    import asyncpg

    dsn = _checked(url)
    named = dict(parse_qsl(urlsplit(dsn).query))
    settings = {
        "application_name": named.get("application_name", "tokensvc"),
        "statement_timeout": _milliseconds(limits.statement_timeout),
        "lock_timeout": _milliseconds(limits.lock_timeout),
        "idle_in_transaction_session_timeout": _milliseconds(IDLE_IN_TRANSACTION_SECONDS),
        # Compiling a plan takes longer than any statement here runs.
        "jit": "off",
    }

    async def connect() -> Any:
        try:
            # The driver's own limit does not cover every step (a proxy that accepts and says nothing).
            async with asyncio.timeout(limits.connect_timeout):
                return await asyncpg.connect(
                    dsn,
                    timeout=limits.connect_timeout,
                    command_timeout=limits.statement_timeout + CLIENT_MARGIN_SECONDS,
                    server_settings=settings,
                )
        except (
            asyncpg.PostgresError,
            asyncpg.InterfaceError,
            asyncpg.InternalClientError,
            OSError,
            ValueError,
        ) as error:
            # The driver's errors may repeat what the URL holds, so none of them is passed on.
            raise _refusal(error) from None

    return connect


def _refusal(error: Exception) -> StoreUnavailableError | ConfigurationError:
    import asyncpg

    if isinstance(error, asyncpg.TargetServerAttributeNotMatched):
        words = "No host of the database URL is what target_session_attrs asks for."
    elif isinstance(error, asyncpg.PostgresError):
        return StoreUnavailableError(
            in_words(error.sqlstate), retry_after=RETRY_AFTER_SECONDS, sqlstate=error.sqlstate
        )
    elif isinstance(error, ssl.SSLError):
        words = f"TLS with the database failed: {error.reason or type(error).__name__}."
    elif isinstance(error, TimeoutError):
        words = "The database does not answer in time."
    elif isinstance(error, socket.gaierror):
        words = "The name of the database's host is not known."
    elif isinstance(error, ConnectionRefusedError):
        words = "The database refuses connections; it may be down."
    elif isinstance(error, OSError):
        words = "The database cannot be reached, or not by TLS."
    elif isinstance(error, ValueError):
        # asyncpg.ClientConfigurationError among them.
        return ConfigurationError("The database URL does not say how to connect.")
    else:
        words = "The database does not speak PostgreSQL's protocol, or not now."
    return StoreUnavailableError(words, retry_after=RETRY_AFTER_SECONDS, error=type(error).__name__)


def _checked(url: str) -> str:
    """Return the URL as asyncpg takes it; raises ConfigurationError, and repeats no part of a value."""
    _, _, rest = url.partition("://")
    dsn = f"postgresql://{rest}"
    try:
        parts = urlsplit(dsn)
        query = parse_qsl(parts.query, strict_parsing=bool(parts.query), keep_blank_values=True)
    except ValueError:
        raise ConfigurationError(
            "The database URL does not parse; it looks like postgresql://user@host:5432/name."
        ) from None
    if len(parts.path) < 2 or "/" in parts.path[1:] or parts.fragment:
        raise ConfigurationError(
            "The database URL must name one database: postgresql://user@host:5432/name."
        )
    for name, value in query:
        _check_parameter(name, value)
    return dsn


def _check_parameter(name: str, value: str) -> None:
    if name not in _PARAMETERS:
        # Passed on, it would be a setting of the server's, and a misspelt `sslmode` no TLS.
        raise ConfigurationError(
            f"The database URL has a parameter that is not known, {name[:40]!r};"
            f" it may have {', '.join(sorted(_PARAMETERS))}."
        )
    if name == "sslmode" and value not in _SSL_MODES:
        raise ConfigurationError(f"sslmode in the database URL must be of {', '.join(_SSL_MODES)}.")
    if name in _FILES:
        try:
            with Path(value).open("rb"):
                pass
        except OSError as error:
            raise ConfigurationError(
                f"{name} in the database URL cannot be read: {error.strerror}."
            ) from None


def _shown(url: str) -> URL:
    """Return what the engine's repr shows: host and name, without user and password."""
    parts = urlsplit(url)
    return URL.create(
        "postgresql+asyncpg",
        host=parts.netloc.rpartition("@")[2] or None,
        database=parts.path[1:] or None,
    )


def _milliseconds(seconds: float) -> str:
    return str(round(seconds * 1000))


def _refuse_closed(connection: Any, _record: Any, _proxy: Any) -> None:
    if connection.driver_connection.is_closed():
        raise InvalidatePoolError


def _note_disconnect(context: ExceptionContext) -> None:
    error = context.original_exception
    if getattr(error, "sqlstate", None) in SERVER_IS_GONE:
        context.is_disconnect = True
    elif isinstance(error, OSError):
        # Above all TimeoutError: nothing was heard, so nothing is known of the connection's state.
        context.is_disconnect = True
        context.invalidate_pool_on_disconnect = False
