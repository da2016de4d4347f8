"""A ring of this test's own: a store in memory, a model of IVS, a ledger and a clock."""

from __future__ import annotations

import pytest

from tests.keyring.support import World


@pytest.fixture
def world() -> World:
    return World()
