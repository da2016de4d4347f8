"""Commands in the audit record: what was asked for on the command line, by whom, and what came of it."""

from __future__ import annotations

import getpass
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import click

from tokensvc.errors import TokenServiceError

if TYPE_CHECKING:
    from tokensvc.settings import Settings
    from tokensvc.telemetry.audit import Audit

__all__ = ["audited"]

_READ_ONLY: Final = frozenset({"list", "show", "check", "inspect", "settings", "doctor"})
_USER_ID: Final = "user_id"
_SETTLE_SECONDS: Final = 5.0


@contextmanager
def audited(settings: Settings) -> Iterator[Audit | None]:
    """Record the command that runs now, once the body has ended; one that only reads is not recorded.

    None where nothing is recorded. Where nothing may be done unrecorded, a record says first that the
    command begins. Raises ConfigurationError where the audit file cannot be opened, and
    AuditUnavailableError where that record cannot be written, before anything is done.
    """
    if settings.audit is None:
        yield None
        return
    from tokensvc.http.auditing import COMMAND_LINE, open_audit

    context = click.get_current_context()
    with open_audit(settings, time.time, via=COMMAND_LINE) as audit:
        if context.info_name in _READ_ONLY:
            yield audit
            return
        if audit.required:
            _record(audit, context, "begun")
            audit.settle(_SETTLE_SECONDS)
        outcome = "failed"
        try:
            with _ended_by_sigterm():
                yield audit
            outcome = "done"
        except TokenServiceError as error:
            outcome = error.code
            raise
        except (KeyboardInterrupt, SystemExit):
            outcome = "interrupted"
            raise
        finally:
            _record(audit, context, outcome)


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end the body as Ctrl-C does, so that what it did is recorded."""

    def end(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _record(audit: Audit, context: click.Context, outcome: str) -> None:
    options = {
        name: value
        for name, value in context.params.items()
        # A 0 was asked for, though it equals False.
        if value is not None
        and value is not False
        and value != ()
        and name not in (_USER_ID, "as_json")
    }
    path = context.command_path.split(" ")[1:]
    audit.action(
        f"command.{'.'.join(path)}",
        who=f"os:{_user()}",
        outcome=outcome,
        user_id=context.params.get(_USER_ID),
        options=options,
    )


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())
