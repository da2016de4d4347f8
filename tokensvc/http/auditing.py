"""The audit record, opened as the settings say."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Final

from tokensvc.errors import ConfigurationError
from tokensvc.keyring.master_key import create_master_key, load_master_key
from tokensvc.settings import Settings
from tokensvc.telemetry.audit import Audit, UserIds, hashed_user_ids, plain_user_ids
from tokensvc.telemetry.audit_sink import STANDARD_ERROR, STANDARD_OUTPUT, AuditSink, check_target

__all__ = ["COMMAND_LINE", "auditing", "check_audit", "open_audit"]

COMMAND_LINE: Final = "command line"
_KEY: Final = "audit key"


@contextlib.contextmanager
def open_audit(
    settings: Settings, clock: Callable[[], float], *, via: str = "service"
) -> Iterator[Audit]:
    """Return where actions are recorded, flushed at the end; blocking at both ends.

    `via` says who writes: the service, or COMMAND_LINE, which writes to standard error what the service
    writes to standard output. Raises ConfigurationError where the file
    or the key of the user ids cannot be opened.
    """
    if settings.audit is None:
        yield Audit(None, clock=clock)
        return
    target = settings.audit
    if via == COMMAND_LINE and target == STANDARD_OUTPUT:
        # There, standard output is what the command answers: a token, a key, JSON.
        target = STANDARD_ERROR
    lines = AuditSink(target, lost=lambda count: audit.lost(count))
    audit = Audit(
        lines,
        clock=clock,
        user_ids=_user_ids(settings),
        via=via,
        required=settings.audit_required,
    )
    lines.start()
    try:
        yield audit
    finally:
        audit.tell_mints()
        lines.close()


def check_audit(settings: Settings) -> None:
    """Raise ConfigurationError where `open_audit` would, as far as can be told without making anything."""
    if settings.audit is None:
        return
    check_target(settings.audit)
    if settings.audit_user_ids != "plain" and settings.audit_key_file.exists():
        load_master_key(settings.audit_key_file, _KEY)


@contextlib.asynccontextmanager
async def auditing(settings: Settings, clock: Callable[[], float]) -> AsyncIterator[Audit]:
    """Do as `open_audit` does, for the service, without holding up the event loop."""
    opened = open_audit(settings, clock)
    audit = await asyncio.to_thread(opened.__enter__)
    try:
        yield audit
    finally:
        await asyncio.to_thread(opened.__exit__, None, None, None)


def _user_ids(settings: Settings) -> UserIds:
    if settings.audit_user_ids == "plain":
        return plain_user_ids
    path = settings.audit_key_file
    if not path.exists():
        # Another process may make it at the same moment; whose key is there then is the key.
        with contextlib.suppress(ConfigurationError):
            create_master_key(path, _KEY)
    return hashed_user_ids(load_master_key(path, _KEY))
