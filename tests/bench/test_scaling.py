"""`docs/scaling.md` does not drift from its inputs, and its inputs are those that `make bench` gives."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bench import scaling
from tests.bench.figures import Figure, Report
from tests.bench.scaling import PAGE, computed, inputs_of, main, with_tables


@pytest.fixture
def page() -> str:
    return PAGE.read_text("utf-8")


def test_the_tables_are_what_the_inputs_give(page: str) -> None:
    assert with_tables(page) == page
    for name, table in computed(inputs_of(page)).items():
        assert f"<!-- computed: {name} -->\n{table}<!-- end -->" in page, name


def test_the_arithmetic_is_that_of_the_page() -> None:
    """Once by hand, with numbers that are easily followed."""
    given = {
        "mint_us": 120.0, "batch_us": 60.0, "mint_sqlite": 6000.0, "batch_sqlite": 12000.0,
        "million_rows": 0.5, "worker_mb": 100.0, "commit_ms": 10.0, "server_us_8": 30.0,
        "server_us_512": 10.0, "row_bytes": 500.0, "log_bytes": 1000.0, "idle_us": 1000.0,
        "load": 0.5, "cores": 8.0, "pool": 5.0, "peak": 10.0, "token_hours": 12.0,
        "retention_hours": 24.0, "database_cores": 10.0, "database_log_mb": 50.0,
    }  # fmt: skip
    row = computed(given)["mints"].splitlines()[4]
    # 24 workers on 3 machines and a spare one; 32 run, 3,125 tokens/s each; a row costs 9.68 us and a
    # commit 162.54; (100,000 x (9.68 + 162.54 / 31.25) + 32 x 1,000) / 10^6 / 0.5 = 3.04 cores.
    assert row == (
        "| 100,000 | 24 | 4 | 31.2 | 3,200 | 3.04 | 100 | 256 | 1,728 M | 0.86 | 64 | 2 |"
    )
    assert "| one mint a request | 6,000 | 1,500 |" in computed(given)["one machine"]
    assert "| one database, by its log | 50,000 |" in computed(given)["limits"]


def test_a_run_of_the_bench_replaces_what_it_measures(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "scaling.md"
    copy.write_text(page, "utf-8")
    figures = [
        Figure(
            "g", "PostgreSQL, one mint a request: processor time a token", "us", [100, 200, 150]
        ),
        Figure("c", "one mint a request", "1/s", [5000]),
        Figure("h", "10,000 rows: one mint a request", "1/s", [5000]),
        Figure("h", "1,000,000 rows: one mint a request", "1/s", [4000]),
    ]
    Report(figures).save(tmp_path / "bench.json")
    monkeypatch.setattr(scaling, "PAGE", copy)
    monkeypatch.setattr("sys.argv", ["scaling", "--json", str(tmp_path / "bench.json")])
    assert main() == 0
    before, after = inputs_of(page), inputs_of(copy.read_text("utf-8"))
    assert after == before | {"mint_us": 150.0, "mint_sqlite": 5000.0, "million_rows": 0.8}
    assert with_tables(copy.read_text("utf-8")) == copy.read_text("utf-8") != page


def test_what_a_run_of_the_bench_replaces_is_there_to_be_replaced(page: str) -> None:
    assert scaling.MEASURED.keys() <= inputs_of(page).keys()
