"""The command line: `tokensvc <command>`.

Each command has a module here, light to import; what a command needs is loaded when it runs, so that
`tokensvc --help` is quick. An error is one line on standard error. Exit codes: 0 done, 1 it failed,
2 the command was called wrongly, 130 interrupted.
"""

from __future__ import annotations

import os
import sys
from io import TextIOWrapper

__all__ = ["main"]


def main() -> None:
    """Run the command line and exit."""
    _prepare_streams()
    try:
        from tokensvc.telemetry.structlog_alone import load_structlog

        load_structlog()
        from tokensvc.cli.root import run

        code = run(sys.argv[1:])
    except ModuleNotFoundError as error:
        # Our own modules are always there, so this is a dependency.
        print(
            f"tokensvc: the Python package {error.name} is missing; "
            "install requirements.lock (`make run` does)",
            file=sys.stderr,
        )
        code = 1
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)


def _prepare_streams() -> None:
    # Where one is closed, the next file or socket would have its number, and what is printed.
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    if sys.stderr is None:
        # Complaints go there, not to standard output, where click would have them.
        sys.stderr = os.fdopen(2, "w")
    for stream in (sys.stdout, sys.stderr):
        # What a terminal cannot show is no reason to fail.
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
