"""What the key commands share: the parts they work with, and the exit codes a scheduler goes by."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Final, TypeVar

import click

from tokensvc.cli.auditing import audited
from tokensvc.errors import (
    IvsError,
    IvsNotFoundError,
    IvsRejectedError,
    KmsError,
    RingConflictError,
    StoreUnavailableError,
    TokenServiceError,
)

if TYPE_CHECKING:
    from tokensvc.http.key_structs import RegionProblem
    from tokensvc.http.parts import Parts
    from tokensvc.telemetry.audit import Audit

__all__ = ["EXIT_CODES", "FAILED", "NOT_YET", "report_problems", "with_parts"]

NOT_YET: Final = 3
FAILED: Final = 4

EXIT_CODES: Final = (
    "Exit codes: 0 done, or nothing was due; 1 refused (settings, files, no such key); 2 called"
    " wrongly; 3 not possible yet, or something is left to do; 4 AWS or the store failed, run it"
    " again."
)

T = TypeVar("T")

_PASSING: Final = (IvsError, KmsError, RingConflictError, StoreUnavailableError)
_REFUSALS: Final = (IvsNotFoundError, IvsRejectedError)


def with_parts(work: Callable[[Parts], Awaitable[T]]) -> T:
    """Load the settings, open the parts, do `work`, and return what it returns.

    What may pass by itself ends the command with exit code 4.
    """
    from tokensvc.http.parts import open_parts
    from tokensvc.settings import Settings

    settings = Settings.load()

    async def run(audit: Audit | None) -> T:
        async with open_parts(settings, time.time, audit=audit) as parts:
            return await work(parts)

    try:
        with audited(settings) as audit:
            return asyncio.run(run(audit))
    except _PASSING as error:
        if isinstance(error, _REFUSALS):
            raise
        raise _Failed(error) from error


def report_problems(region: str, problems: Iterable[RegionProblem]) -> None:
    """Print what failed to standard error, one line each."""
    for problem in problems:
        click.echo(
            f"tokensvc: {region}: {problem.step}: {problem.detail} ({problem.code})", err=True
        )


class _Failed(click.ClickException):
    exit_code = FAILED

    def __init__(self, error: TokenServiceError) -> None:
        super().__init__(error.detail)

    def show(self, file: object = None) -> None:
        del file
        for line in self.message.splitlines():
            click.echo(f"tokensvc: {line}", err=True)
