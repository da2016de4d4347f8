"""The root of the command line: what commands there are, and how an error is told."""

from __future__ import annotations

import errno
import os
import sys
from typing import Final

import click

from tokensvc.cli.bans import bans
from tokensvc.cli.bench import bench
from tokensvc.cli.callers import callers
from tokensvc.cli.database import db
from tokensvc.cli.dev import dev
from tokensvc.cli.disconnect import disconnect
from tokensvc.cli.doctor import doctor
from tokensvc.cli.emulator import emulator
from tokensvc.cli.keys import keys
from tokensvc.cli.policy import policy
from tokensvc.cli.serve import serve
from tokensvc.cli.settings import settings
from tokensvc.cli.token import token
from tokensvc.errors import TokenServiceError

__all__ = ["run"]

_OUTPUT_FAULTS: Final = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Settings are environment variables TOKENSVC_*; `tokensvc settings` lists them.",
)
@click.version_option(package_name="tokensvc")
def cli() -> None:
    """Issue Amazon IVS Real-Time participant tokens, signed locally with ES384."""
    from tokensvc.telemetry.logging import configure_logging

    # Standard output belongs to what a command prints; servers choose their own level later.
    configure_logging("warning", "console")


for _command in (
    bans,
    bench,
    callers,
    db,
    dev,
    disconnect,
    doctor,
    emulator,
    keys,
    policy,
    serve,
    settings,
    token,
):
    cli.add_command(_command)


def run(arguments: list[str]) -> int:
    """Run one command and return its exit code; never raises for an error that was foreseen."""
    try:
        answer = cli.main(arguments, prog_name="tokensvc", standalone_mode=False)
    except TokenServiceError as error:
        for line in error.detail.splitlines():
            click.echo(f"tokensvc: {line}", err=True)
        for fault in error.errors:
            if fault.field and fault.field not in error.detail:
                click.echo(f"tokensvc: {fault.field}: {fault.detail}", err=True)
        return 1
    except OSError as error:
        # Any other one has become an error of ours where it happened.
        if error.errno not in _OUTPUT_FAULTS:
            raise
        click.echo(f"tokensvc: standard output cannot be written: {error.strerror}", err=True)
        # Python would try what is left once more at its end, and complain again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except click.exceptions.Abort:
        return 130
    except click.ClickException as error:
        error.show()
        return error.exit_code
    return answer if isinstance(answer, int) else 0
