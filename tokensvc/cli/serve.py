"""`tokensvc serve`: the service, for production."""

from __future__ import annotations

import signal

import click

__all__ = ["serve"]


@click.command()
@click.option("--host", help="Address to listen on.  [default: TOKENSVC_HOST]")
@click.option("--port", type=click.IntRange(0, 65_535), help="Port.  [default: TOKENSVC_PORT]")
@click.option(
    "--workers",
    type=click.IntRange(1, 64),
    help="Serving processes.  [default: TOKENSVC_WORKERS]",
)
@click.option(
    "--hardened",
    is_flag=True,
    default=None,
    help="Refuse to start with what is unfit for production.  [default: TOKENSVC_HARDENED]",
)
def serve(host: str | None, port: int | None, workers: int | None, hardened: bool | None) -> None:
    """Start the service.

    SIGTERM or Ctrl-C: what was accepted is finished, then it stops. The store must be there and
    current (`tokensvc db upgrade`), and so must the master key; neither is made here.
    """
    # It must not end a service that does not listen to it yet; it is kept until then.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    import boto3.session  # noqa: F401

    from tokensvc.http.hardening import require_hardened
    from tokensvc.http.server import serve as run
    from tokensvc.settings import Settings

    settings = Settings.load(host=host, port=port, workers=workers, hardened=hardened)
    settings.require_regions()
    require_hardened(settings)
    run(settings)
