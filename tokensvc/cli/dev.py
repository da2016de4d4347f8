"""`tokensvc dev`: everything on one machine, to try it out and to develop against.

The service, the IVS emulator as an HTTP server of its own, a SQLite store, a signing key, a demo stage
and a caller, all under one folder. What the first start makes, the next one uses.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from tokensvc.cli.arguments import PathOption
from tokensvc.errors import (
    ConfigurationError,
    KeyMismatchError,
    NoSigningKeyError,
    SealError,
)

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

    from tokensvc.emulator.config import EmulatorConfig
    from tokensvc.ivs.gateway import IvsGateway
    from tokensvc.settings import Settings

__all__ = ["dev"]

CALLER_NAME: Final = "dev"
DEMO_STAGE_NAME: Final = "demo"
DEMO_STAGE_TAGS: Final = {"tokensvc:demo": "1"}
DEFAULT_REGION: Final = "eu-central-1"
# The emulator checks that a request is signed, not by whom.
EMULATOR_CREDENTIALS: Final = {"AWS_ACCESS_KEY_ID": "emulator", "AWS_SECRET_ACCESS_KEY": "emulator"}


@click.command()
@click.option("--host", help="Address of the service.  [default: TOKENSVC_HOST]")
@click.option("--port", type=click.IntRange(0, 65_535), help="Port.  [default: TOKENSVC_PORT]")
@click.option(
    "--emulator-port",
    type=click.IntRange(0, 65_535),
    help="Port of the emulator.  [default: TOKENSVC_EMULATOR_PORT]",
)
@click.option(
    "--data-dir",
    type=PathOption(file_okay=False),
    help="Folder to keep everything in.  [default: TOKENSVC_DATA_DIR]",
)
def dev(
    host: str | None, port: int | None, emulator_port: int | None, data_dir: Path | None
) -> None:
    """Start the service with an embedded IVS emulator.

    Prints a curl line that mints a token. Makes, under the data folder, what is not there yet:
    store, master key, signing key, demo stage, API key (printed once). Needs no AWS account. Ctrl-C
    drains and stops.
    """
    # Missing packages are found out before anything is made; greenlet by its name, which SQLAlchemy's
    # own complaint is not.
    import boto3.session  # noqa: F401
    import greenlet  # type: ignore[import-untyped]  # noqa: F401

    from tokensvc.cli.running import run_loop
    from tokensvc.settings import Settings

    settings = Settings.load(host=host, port=port, emulator_port=emulator_port, data_dir=data_dir)
    if settings.aws_endpoint_url is not None:
        raise ConfigurationError(
            "TOKENSVC_AWS_ENDPOINT_URL is set, and `dev` brings its own emulator: unset it,"
            " or use `tokensvc serve`"
        )
    started = time.perf_counter()
    _make_folder(settings.data_dir)
    with _alone_in(settings.data_dir):
        run_loop(_run(settings, started))


async def _run(settings: Settings, started: float) -> None:
    from tokensvc.cli.running import Stop, serving
    from tokensvc.emulator.config import EmulatorConfig
    from tokensvc.emulator.server import server_config as emulator_server_config
    from tokensvc.http.app import create_app
    from tokensvc.http.server import bind_socket, server_config
    from tokensvc.telemetry.logging import configure_logging

    configure_logging(settings.log_level, settings.log_format)
    # Both are bound before anything is made, so that a taken port leaves nothing behind.
    with (
        bind_socket(settings.host, settings.port) as listener,
        bind_socket(settings.emulator_host, settings.emulator_port) as emulator_listener,
    ):
        emulator = EmulatorConfig(
            host=settings.emulator_host,
            port=_port(emulator_listener),
            state_file=settings.data_dir / "emulator.json",
        )
        settings = _for_emulator(settings, emulator)
        stop = Stop()
        stop.listen()
        async with serving(emulator_server_config(emulator), emulator_listener, stop):
            first_key, stage_arn = await _prepare(settings)
            app = create_app(settings)
            async with serving(server_config(settings, app), listener, stop):
                ready = time.perf_counter() - started
                _greet(settings, _port(listener), stage_arn, first_key, ready)
                _write_environment(settings)
                await stop.asked.wait()
                click.echo("tokensvc: draining", err=True)


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(
            f"the data folder {path} cannot be made: {error.strerror}"
        ) from error
    if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
        raise ConfigurationError(f"the data folder {path} cannot be written to")


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Keep others out of the data folder, whose emulator writes over what another one knows."""
    # The system lets the lock go with the process, however that ends; no file tells of one that is gone.
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            why = "another `tokensvc dev` runs there"
            if not isinstance(error, BlockingIOError):
                why = f"it cannot be locked: {error.strerror}"
            raise ConfigurationError(f"the data folder {folder} is not free: {why}") from error
        yield
    finally:
        os.close(descriptor)


def _for_emulator(settings: Settings, emulator: EmulatorConfig) -> Settings:
    """Point the service at the emulator, and boto3 away from the user's own credentials."""
    for name, value in EMULATOR_CREDENTIALS.items():
        os.environ[name] = value
    os.environ.pop("AWS_PROFILE", None)
    os.environ.pop("AWS_SESSION_TOKEN", None)
    return dataclasses.replace(
        settings,
        aws_endpoint_url=emulator.url,
        connection_events_url=emulator.events_url,
        regions=settings.regions or (DEFAULT_REGION,),
    )


async def _prepare(settings: Settings) -> tuple[str | None, str]:
    """Make what is missing; return the API key if it is new, and the demo stage's ARN."""
    from tokensvc.http.parts import open_parts
    from tokensvc.keyring import create_master_key
    from tokensvc.store import upgrade

    if settings.kms_key_id is None and not settings.master_key_file.exists():
        create_master_key(settings.master_key_file)
    # Blocking, as it may be: nothing is served yet but the emulator, which nobody else knows.
    upgrade(settings.database_url)
    async with open_parts(settings, time.time) as parts:
        for region in settings.regions:
            try:
                await parts.manager.prepare(region)
            except (SealError, KeyMismatchError, NoSigningKeyError) as error:
                # Served all the same, as `serve` does, so that the runbook can be followed here.
                click.echo(
                    f"tokensvc: {region} does not sign, and IVS makes its tokens: {error.detail}"
                    " See docs/runbook.md.",
                    err=True,
                )
        stage_arn = await _demo_stage(parts.gateway, settings.regions[0])
        api_key = await _first_caller(parts.engine, greeted=_environment_file(settings).exists())
    return api_key, stage_arn


async def _demo_stage(gateway: IvsGateway, region: str) -> str:
    for stage in await gateway.list_stages(region):
        if DEMO_STAGE_TAGS.items() <= dict(stage.tags).items():
            return stage.arn
    made = await gateway.create_stage(region, name=DEMO_STAGE_NAME, tags=DEMO_STAGE_TAGS)
    return made.arn


async def _first_caller(engine: AsyncEngine, *, greeted: bool) -> str | None:
    """Make the caller and return its API key, or None where an earlier start has shown one."""
    from tokensvc.callers import Scope, SqlCallerStore

    store = SqlCallerStore(engine, time.time)
    if not any(caller.name == CALLER_NAME for caller in await store.list()):
        _, api_key = await store.add(CALLER_NAME, Scope)
        return api_key.reveal()
    if greeted:
        return None
    # The start that made the caller ended before it could show the key: nobody has it.
    _, api_key = await store.rotate(CALLER_NAME, old_valid_until=time.time(), restart=True)
    return api_key.reveal()


def _write_environment(settings: Settings) -> None:
    """Write what other commands need to work on this installation; no secret is in it."""
    folder = settings.data_dir.resolve()
    values = {
        "TOKENSVC_DATA_DIR": str(folder),
        "TOKENSVC_REGIONS": ",".join(settings.regions),
        "TOKENSVC_AWS_ENDPOINT_URL": settings.aws_endpoint_url or "",
        "TOKENSVC_CONNECTION_EVENTS_URL": settings.connection_events_url,
        **EMULATOR_CREDENTIALS,
    }
    lines = [f"{name}='{value}'" for name, value in values.items()]
    path = _environment_file(settings)
    unfinished = path.with_suffix(".env.new")
    unfinished.write_text("\n".join(lines) + "\n", "utf-8")
    unfinished.replace(path)


def _environment_file(settings: Settings) -> Path:
    """Written after the greeting, so it also says that the API key was shown."""
    return settings.data_dir / "dev.env"


def _greet(
    settings: Settings, port: int, stage_arn: str, api_key: str | None, ready: float
) -> None:
    from tokensvc.http.server import shown_address

    service = f"http://{shown_address(settings.host, port)}"
    body = json.dumps({"stageArn": stage_arn, "userId": "ana", "duration": 60})
    click.echo(f"tokensvc is ready at {service} ({ready:.1f} s); docs at {service}/schema")
    click.echo(
        f"IVS emulator at {settings.aws_endpoint_url}; everything is kept in {settings.data_dir}/"
    )
    if api_key is None:
        click.echo(
            f"API key: the one printed at the first start (another: `{sys.argv[0]} callers add`)"
        )
        click.echo("Mint a token (put your API key in API_KEY):")
        shown = "$API_KEY"
    else:
        click.echo(f"API key, printed this once: {api_key}")
        click.echo("Mint a token:")
        shown = api_key
    click.echo(
        f'  curl -sS {service}/v1/tokens -H "Authorization: Bearer {shown}"'
        f" -H 'Content-Type: application/json' -d '{body}'"
    )
    sys.stdout.flush()


def _port(listener: socket.socket) -> int:
    return int(listener.getsockname()[1])
