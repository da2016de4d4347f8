"""`tokensvc emulator`: the IVS stand-in alone, for the tests of whoever calls IVS."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from tokensvc.cli.arguments import PathOption

if TYPE_CHECKING:
    from tokensvc.settings import Settings

__all__ = ["emulator"]


@click.command()
@click.option("--host", help="Address to listen on.  [default: TOKENSVC_EMULATOR_HOST]")
@click.option(
    "--port", type=click.IntRange(0, 65_535), help="Port.  [default: TOKENSVC_EMULATOR_PORT]"
)
@click.option(
    "--state-file",
    type=PathOption(dir_okay=False),
    help="Keep stages and public keys in this file; without it they go when the emulator stops.",
)
@click.option("--account", default="123456789012", show_default=True, help="AWS account to act as.")
def emulator(host: str | None, port: int | None, state_file: Path | None, account: str) -> None:
    """Stand in for Amazon IVS Real-Time on this machine.

    Its API and its clients' events socket, over HTTP. Anybody who can reach it may do anything with
    it, so it belongs on loopback.
    """
    from tokensvc.cli.running import run_loop
    from tokensvc.settings import Settings

    run_loop(_run(Settings.load(emulator_host=host, emulator_port=port), state_file, account))


async def _run(settings: Settings, state_file: Path | None, account: str) -> None:
    from tokensvc.cli.running import Stop, serving
    from tokensvc.emulator.config import EmulatorConfig
    from tokensvc.emulator.server import server_config
    from tokensvc.http.server import bind_socket
    from tokensvc.telemetry.logging import configure_logging

    configure_logging(settings.log_level, settings.log_format)
    stop = Stop()
    stop.listen()
    with bind_socket(settings.emulator_host, settings.emulator_port) as listener:
        port = int(listener.getsockname()[1])
        config = EmulatorConfig(
            host=settings.emulator_host, port=port, account=account, state_file=state_file
        )
        async with serving(server_config(config), listener, stop):
            click.echo(f"IVS emulator at {config.url}, account {account}")
            await stop.asked.wait()
