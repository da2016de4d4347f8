"""Where clients are told that the emulator is, and whose account it plays."""

from __future__ import annotations

import pytest

from tokensvc.emulator.config import EmulatorConfig
from tokensvc.errors import ConfigurationError


@pytest.mark.parametrize(
    ("host", "authority"),
    [
        ("127.0.0.1", "127.0.0.1:8090"),
        ("ivs.test", "ivs.test:8090"),
        ("0.0.0.0", "127.0.0.1:8090"),
        ("::1", "[::1]:8090"),
        ("::", "[::1]:8090"),
    ],
)
def test_clients_are_told_an_address_that_they_can_reach(host: str, authority: str) -> None:
    config = EmulatorConfig(host=host)
    assert (config.url, config.events_url) == (f"http://{authority}", f"ws://{authority}")


def test_the_events_endpoint_can_be_named() -> None:
    config = EmulatorConfig(public_url="wss://events.test")
    assert (config.url, config.events_url) == ("http://127.0.0.1:8090", "wss://events.test")


@pytest.mark.parametrize("account", ["", "abc", "12345678901", "1234567890123", "12345678901\n2"])
def test_an_account_has_12_digits(account: str) -> None:
    with pytest.raises(ConfigurationError, match="12 digits"):
        EmulatorConfig(account=account)
