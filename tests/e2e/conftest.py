"""A browser for each module of tests, and one installation that runs for all that only ask it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.e2e.sdk import SdkBrowser, SdkPage, open_browser
from tests.e2e.support import RunningDev
from tests.e2e.tokens import ForeignKey


@pytest.fixture(scope="module")
def browser() -> Iterator[SdkBrowser]:
    # For a module and not for the session: Playwright's loop would be in the way of async tests.
    with open_browser() as opened:
        yield opened


@pytest.fixture
def sdk(browser: SdkBrowser) -> Iterator[SdkPage]:
    with browser.page() as page:
        yield page


@pytest.fixture(scope="session")
def dev(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDev]:
    with RunningDev(tmp_path_factory.mktemp("dev")) as running:
        yield running


@pytest.fixture
def imported_key(dev: RunningDev) -> Iterator[ForeignKey]:
    """Somebody else's key, which IVS knows and the service does not."""
    ivs = dev.ivs()
    key = ForeignKey.imported(ivs)
    yield key
    ivs.delete_public_key(arn=key.arn)


@pytest.fixture
def tell(capsys: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    """Print to the terminal, past pytest's capture: for what is measured and not asserted."""

    def past_capture(line: str) -> None:
        with capsys.disabled():
            print(f"\n{line}")  # noqa: T201

    return past_capture
