"""A host's clock that is off is found by comparing it with AWS's `Date`, by readiness and by the doctor."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.faults.world import Installation, World
from tokensvc.cli.diagnosis import diagnose


async def said_of_the_clock(world: World) -> tuple[dict[str, Any], Any]:
    """Return readiness's check, and the doctor's."""
    (check,) = (
        one
        for one in (await world.service.get("/readyz")).json()["checks"]
        if one["name"] == "clock"
    )
    found = await diagnose(world.service.settings, {}, clock=lambda: world.service.now)
    return check, next(one for one in found if one.check == "clock")


@pytest.mark.parametrize(("ahead", "words"), [(90.0, "ahead of"), (-90.0, "behind")])
async def test_readiness_and_doctor_say_how_far_the_clock_is_off(
    ahead: float, words: str, installation: Installation, tmp_path: Path
):
    async with installation.copied(tmp_path / "installation", lambda _: None) as world:
        ready, doctor = await said_of_the_clock(world)
        assert (ready["ok"], doctor.verdict) == (True, "ok")
        await asyncio.to_thread(world.emulator.set_clock, -ahead)
        await world.let_pass(1)
        ready, doctor = await said_of_the_clock(world)
        assert (ready["ok"], ready["required"], doctor.verdict) == (False, True, "fail")
        for detail in (ready["detail"], doctor.detail):
            assert words in detail
            assert "TOKENSVC_CLOCK_SKEW" in detail
