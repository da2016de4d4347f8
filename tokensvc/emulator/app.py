"""The stand-in as one application: the parts are made and wired here."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from email.utils import formatdate
from typing import Any

import structlog
from litestar import Litestar, Request, Response, asgi
from litestar.enums import ScopeType
from litestar.exceptions import MethodNotAllowedException, NotFoundException
from litestar.types import Message, Receive, Scope, Send

from tokensvc.emulator.config import EmulatorConfig
from tokensvc.emulator.control_api import control_router
from tokensvc.emulator.control_plane import PATHS, TAGS_PATH, ControlPlane
from tokensvc.emulator.errors import ApiError, InternalServerError, UnknownOperationError
from tokensvc.emulator.seat import Door
from tokensvc.emulator.sessions import Sessions
from tokensvc.emulator.sockets import SOCKET_ROUTES
from tokensvc.emulator.state_file import SavedState, StateFile, StateKeeper
from tokensvc.emulator.verification import TokenVerifier
from tokensvc.emulator.world import World

__all__ = ["create_app"]

_log = structlog.get_logger(__name__)


def create_app(
    config: EmulatorConfig,
    clock: Callable[[], float] = time.time,
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
) -> Litestar:
    """Make the application; its `state` has `world`, `sessions` and `control_plane`.

    `clock` gives Unix seconds, `sleep` waits for a delay that a test asked for. Reads the state
    file, where there is one: raises StateFileError.
    """
    world = World(config, clock)
    sessions = Sessions(world.now, changed=world.changed)
    keeper = _restored_keeper(config, world, sessions)
    save = keeper.save if keeper else _saved
    plane = ControlPlane(world, sessions, clock=clock, save=save, sleep=sleep)

    async def operations(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != ScopeType.HTTP:
            raise NotFoundException
        await plane(scope, receive, send)

    # Not a path parameter: Litestar resolves those of ASGI handlers only where they are mounted.
    routes = (
        asgi(PATHS, copy_scope=True)(operations),
        asgi(TAGS_PATH, is_mount=True, copy_scope=True)(operations),
    )

    async def add_date(message: Message, _: Scope) -> None:
        if message["type"] == "http.response.start":
            date = formatdate(world.now(), usegmt=True).encode("ascii")
            message["headers"] = [*message["headers"], (b"date", date)]

    app = Litestar(
        route_handlers=[*routes, control_router(), *SOCKET_ROUTES],
        exception_handlers={
            NotFoundException: _unknown_operation,
            MethodNotAllowedException: _unknown_operation,
            500: _internal_error,
        },
        before_send=[add_date],
        lifespan=[_lifespan(config, keeper)],
        openapi_config=None,
        logging_config=None,
    )
    app.state.update(
        {
            "world": world,
            "sessions": sessions,
            "control_plane": plane,
            "door": Door(TokenVerifier(world, sessions, events_url=config.events_url), sessions),
        }
    )
    return app


def _restored_keeper(
    config: EmulatorConfig, world: World, sessions: Sessions
) -> StateKeeper | None:
    if config.state_file is None:
        return None

    def snapshot() -> SavedState:
        stages, public_keys, issued = world.snapshot()
        return SavedState(config.account, stages, public_keys, issued, sessions.snapshot())

    file = StateFile(config.state_file)
    saved = file.read(config.account)
    if saved is not None:
        world.restore(saved.stages, saved.public_keys, saved.issued_tokens)
        sessions.restore(saved.sessions)
    keeper = StateKeeper(file, snapshot)
    world.on_change(keeper.changed)
    return keeper


def _lifespan(
    config: EmulatorConfig, keeper: StateKeeper | None
) -> Callable[[Litestar], contextlib.AbstractAsyncContextManager[None]]:
    @contextlib.asynccontextmanager
    async def lifespan(_: Litestar) -> AsyncIterator[None]:
        _log.info("emulator_started", events_url=config.events_url, account=config.account)
        async with keeper.following() if keeper else contextlib.nullcontext():
            yield
        _log.info("emulator_stopped")

    return lifespan


async def _saved() -> None:
    """Return at once: without a state file there is nothing to wait for."""


def _unknown_operation(_: Request[Any, Any, Any], __: Exception) -> Response[dict[str, str]]:
    return _answer(UnknownOperationError("No operation has this path and method"))


def _internal_error(request: Request[Any, Any, Any], error: Exception) -> Response[dict[str, str]]:
    _log.error("emulator_failed", path=request.url.path, exc_info=error)
    return _answer(InternalServerError("The emulator failed; its log says why"))


def _answer(error: ApiError) -> Response[dict[str, str]]:
    return Response(
        {error.member: error.message},
        status_code=error.status,
        headers={"x-amzn-ErrorType": error.code},
    )
