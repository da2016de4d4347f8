"""What tests use to steer the stand-in: faults, its clock, and the calls that came.

Not part of AWS's API, not signed, and answered to the loopback only.
"""

from __future__ import annotations

from ipaddress import ip_address
from typing import Annotated, Any, Final

import msgspec
from litestar import Router, delete, get, post
from litestar.connection import ASGIConnection
from litestar.datastructures import State
from litestar.exceptions import PermissionDeniedException, ValidationException
from litestar.handlers.base import BaseRouteHandler
from litestar.params import JSONBody

from tokensvc.emulator.calls import CallLog
from tokensvc.emulator.control_plane import ControlPlane
from tokensvc.emulator.faults import FaultRule
from tokensvc.emulator.world import World

__all__ = ["CONTROL_PATH", "control_router"]

CONTROL_PATH: Final = "/_emulator"

_TEN_YEARS_SECONDS: Final = 315_360_000.0


class FaultsToAdd(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `POST /_emulator/faults`."""

    rules: list[FaultRule] = []
    key_visible_after: Annotated[float, msgspec.Meta(ge=0, le=_TEN_YEARS_SECONDS)] | None = None
    """Seconds from now on between an import of a key and its being seen."""


class ClockOffset(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `POST /_emulator/clock`."""

    offset: Annotated[float, msgspec.Meta(ge=-_TEN_YEARS_SECONDS, le=_TEN_YEARS_SECONDS)]
    """Seconds that the emulator's clock is ahead of this machine's."""


@post("/faults", status_code=204)
async def add_faults(data: JSONBody[FaultsToAdd], state: State) -> None:
    """Add rules behind those there are; see `FaultRule`."""
    plane: ControlPlane = state.control_plane
    try:
        plane.faults.add(data.rules)
    except ValueError as error:
        raise ValidationException(str(error)) from error
    if data.key_visible_after is not None:
        world: World = state.world
        world.key_visible_after = data.key_visible_after


@delete("/faults")
async def clear_faults(state: State) -> None:
    """Take all rules away, and have keys be seen at once."""
    plane: ControlPlane = state.control_plane
    plane.faults.clear()
    world: World = state.world
    world.key_visible_after = 0.0


@post("/clock", status_code=200)
async def set_clock(data: JSONBody[ClockOffset], state: State) -> dict[str, float]:
    """Move the emulator's clock. Rates of calls are measured by the clock that is not moved."""
    world: World = state.world
    world.clock_offset = data.offset
    return {"now": world.now()}


@get("/calls")
async def list_calls(state: State) -> dict[str, Any]:
    """Return the calls since the start, or since they were last cleared; see `CallLog.report`."""
    calls: CallLog = state.control_plane.calls
    return {"calls": calls.report()}


@delete("/calls")
async def clear_calls(state: State) -> None:
    """Forget the calls."""
    calls: CallLog = state.control_plane.calls
    calls.clear()


def control_router() -> Router:
    """Return the routes; the application's state has `control_plane` and `world`."""
    return Router(
        CONTROL_PATH,
        route_handlers=[add_faults, clear_faults, set_clock, list_calls, clear_calls],
        guards=[_only_from_loopback],
    )


def _only_from_loopback(
    connection: ASGIConnection[Any, Any, Any, Any], _: BaseRouteHandler
) -> None:
    client = connection.client
    if client is None or not ip_address(client.host).is_loopback:
        raise PermissionDeniedException("Only answered to the loopback.")
