"""The command line: `tokensvc <command>`.

Each command has a module here, light to import; what a command needs is loaded when it runs, so that
`tokensvc --help` is quick. An error is one line on standard error. Exit codes: 0 done, 1 it failed,
2 the command was called wrongly, 130 interrupted.
"""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line and exit."""
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
