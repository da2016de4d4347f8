"""Every question of the ledger is answered from one index, whatever the number of rows.

The plans are SQLite's. They depend on the schema alone, as nothing runs ANALYZE, so an empty table
shows what ten million rows would do; `make bench` takes the times.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Select
from sqlalchemy.dialects import sqlite

from tests.ledger.support import NOW, STAGE
from tokensvc.ledger.janitor import expired_rows
from tokensvc.ledger.lookups import latest_expiry_of, living_tokens, newest_token, newest_tokens
from tokensvc.store import upgrade
from tokensvc.store.tables import issued_tokens

AFTER = (NOW + 5, 12)
PAGES: list[tuple[dict[str, Any], str]] = [
    (
        {"stage_arn": STAGE, "user_id": "alice"},
        "ix_issued_tokens_user (user_id=? AND stage_arn=? AND ",
    ),
    ({"stage_arn": STAGE}, "ix_issued_tokens_stage (stage_arn=? AND "),
    ({"key_id": "k1"}, "ix_issued_tokens_key (key_id=? AND "),
    ({}, "ix_issued_tokens_exp ("),
]


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> sqlite3.Connection:
    path: Path = tmp_path_factory.mktemp("plans") / "store.db"
    upgrade(f"sqlite+aiosqlite:///{path}")
    return sqlite3.connect(path)


def plan(database: sqlite3.Connection, statement: Any) -> list[str]:
    compiled = statement.compile(dialect=sqlite.dialect(), compile_kwargs={"literal_binds": True})
    return [step[3] for step in database.execute(f"EXPLAIN QUERY PLAN {compiled}")]


def page(*, after: tuple[int, int] | None = None, **filters: str) -> Select[Any]:
    values: dict[str, Any] = {"now": NOW, "at_most": 100}
    values |= {f"of_{name}": value for name, value in filters.items()}
    if after is not None:
        values |= dict(zip(("after_exp", "after_row_id"), after, strict=True))
    return living_tokens(*filters, after=after is not None).params(values)


@pytest.mark.parametrize(("filters", "index"), PAGES)
@pytest.mark.parametrize("after", [None, AFTER])
def test_a_page_is_read_from_its_index_in_its_order(database, filters, index, after):
    steps = plan(database, page(after=after, **filters))
    assert len(steps) == 1, "nothing is sorted and nothing else is searched"
    assert steps[0].startswith("SEARCH issued_tokens USING")
    assert index in steps[0]
    assert "exp>?" in steps[0] or "(exp,row_id)>(?,?)" in steps[0]


def test_a_user_s_tokens_on_all_stages_are_found_by_the_user(database):
    steps = plan(database, page(user_id="alice"))
    assert "ix_issued_tokens_user (user_id=?" in steps[0]


def test_the_latest_expiry_of_a_key_is_the_last_entry_of_its_index(database):
    assert plan(database, latest_expiry_of("k1")) == [
        "SEARCH issued_tokens USING COVERING INDEX ix_issued_tokens_key (key_id=?)"
    ]


def test_a_participant_is_found_by_its_id(database):
    steps = plan(database, newest_token("p1"))
    searches = [step for step in steps if "issued_tokens" in step]
    assert searches == ["SEARCH issued_tokens USING INDEX ix_issued_tokens_token_id (token_id=?)"]
    # The few rows that were found are looked through for the latest.
    assert not any("SCAN" in step and "subquery" not in step for step in steps)


def test_many_participants_are_found_by_their_ids(database):
    steps = plan(database, newest_tokens("sqlite").params(of_tokens=["p1", "p2"]))
    searches = [step for step in steps if "issued_tokens" in step]
    assert searches == ["SEARCH issued_tokens USING INDEX ix_issued_tokens_token_id (token_id=?)"]


def test_what_is_to_be_deleted_is_found_by_its_expiry(database):
    compiled = expired_rows(issued_tokens.c.exp).compile(dialect=sqlite.dialect(paramstyle="named"))
    values = compiled.construct_params({"before": NOW, "count": 500})
    rows = database.execute(f"EXPLAIN QUERY PLAN {compiled}", values)
    steps = [row[3] for row in rows]
    assert "SEARCH issued_tokens USING COVERING INDEX ix_issued_tokens_exp (exp<?)" in steps
    assert not any("SCAN" in step or "TEMP B-TREE" in step for step in steps)
