"""What a writer of a test writes to, and how old things are."""

from __future__ import annotations

import pytest

from tests.ledger.support import Age, Transactions


@pytest.fixture
def transactions() -> Transactions:
    return Transactions()


@pytest.fixture
def age() -> Age:
    return Age()
