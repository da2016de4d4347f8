"""Who is about to be disconnected is looked up in the index of what is pending, however long the queue is."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from sqlalchemy.dialects import sqlite

from tests.revocation.support import STAGE
from tokensvc.revocation.call_queue import pending_calls


def test_pending_calls_of_many_are_found_by_their_names(database_url: str) -> None:
    named = {"of_operations": ["disconnect"], "of_stages": [str(STAGE)], "of_targets": ["p1", "p2"]}
    statement = (
        pending_calls("sqlite")
        .params(named)
        .compile(dialect=sqlite.dialect(), compile_kwargs={"literal_binds": True})
    )
    database = sqlite3.connect(Path(database_url.partition(":///")[2]))
    steps = [step[3] for step in database.execute(f"EXPLAIN QUERY PLAN {statement}")]
    database.close()
    index = "uq_disconnect_calls_pending (operation=? AND stage_arn=? AND target_id=?)"
    assert steps == [f"SEARCH disconnect_calls USING INDEX {index}"]
