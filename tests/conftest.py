"""What holds for every test: no test is judged by a clock on the wall; and what all of them share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.postgres import PostgresServer

settings.register_profile("tokensvc", deadline=None, print_blob=True)
settings.load_profile("tokensvc")


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL that starts with the first test that asks for it, and stays until the last."""
    server = PostgresServer()
    yield server
    server.close()
