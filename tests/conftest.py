"""What holds for every test: no test is judged by a clock on the wall; and what all of them share."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import structlog
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


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    """Logging is set up for a process: a command run in one test must not log for the next."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)
