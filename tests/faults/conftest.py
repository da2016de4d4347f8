"""One installation for a module's faults, each of which has a copy of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import pytest_asyncio

from tests.faults.world import Installation, install_once


@pytest.fixture(autouse=True, scope="module")
def aws_environment() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "AKIDEMULATOR0000")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "not-a-secret")
        # How often IVS may be asked is not the matter here.
        patch.setattr("tokensvc.ivs.budgets.WINDOW_SECONDS", 0.001)
        yield


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def installation(
    tmp_path_factory: pytest.TempPathFactory, aws_environment: None
) -> Installation:
    return await install_once(tmp_path_factory.mktemp("faults") / "installation")
