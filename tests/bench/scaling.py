"""`make scaling`: the arithmetic of `docs/scaling.md`, done again from the inputs at its top.

The page is the only place of the inputs: what was measured, with the section of `make bench` that gives it,
and what was chosen. `--json` takes the former from a run of `make bench`; what that has not measured stays.
The computed tables stand between comments that name them; `test_scaling.py` sees that they are right.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Mapping
from math import ceil
from pathlib import Path
from typing import Final

from tests.bench.figures import Report
from tests.bench.table import value_text

__all__ = ["MEASURED", "PAGE", "computed", "inputs_of", "with_tables"]

PAGE: Final = Path(__file__).parents[2] / "docs/scaling.md"
RATES: Final = (1_000, 10_000, 100_000, 1_000_000)

_INPUT: Final = re.compile(r"^\| `([a-z_0-9]+)` \| ([0-9.,]+) \|", re.MULTILINE)
_TABLE: Final = re.compile(r"(<!-- computed: ([a-z ]+) -->\n).*?(<!-- end -->)", re.DOTALL)

MEASURED: Final[Mapping[str, Callable[[Report], float | None]]] = {
    "mint_us": lambda report: _value(
        report, "g", "PostgreSQL, one mint a request: processor time a token"
    ),
    "batch_us": lambda report: _value(
        report, "g", "PostgreSQL, batches of 100: processor time a token"
    ),
    "mint_sqlite": lambda report: _value(report, "c", "one mint a request"),
    "batch_sqlite": lambda report: _value(report, "d", "batches of 100"),
    "million_rows": lambda report: _quotient(
        _value(report, "h", "1,000,000 rows: one mint a request"),
        _value(report, "h", "10,000 rows: one mint a request"),
    ),
    "worker_mb": lambda report: _value(report, "f", "two workers, PostgreSQL: memory of each"),
}


def inputs_of(page: str) -> dict[str, float]:
    """Return the inputs that stand in the page."""
    return {name: float(text.replace(",", "")) for name, text in _INPUT.findall(page)}


def computed(given: Mapping[str, float]) -> dict[str, str]:
    """Return the tables by name, each as lines of Markdown."""
    return {
        "mints": _table(given, given["mint_us"], 1),
        "batches": _table(given, given["batch_us"], 100),
        "one machine": _one_machine(given),
        "limits": _limits(given),
    }


def with_tables(page: str) -> str:
    """Return the page with its tables computed from the inputs that stand in it."""
    tables = computed(inputs_of(page))
    return _TABLE.sub(lambda found: found[1] + tables[found[2]] + found[3], page)


def _table(given: Mapping[str, float], token_us: float, least_rows: int) -> str:
    head = (
        "tokens/s", "workers", "machines", "rows a commit", "commits/s", "database cores",
        "log MB/s", "connections", "rows kept", "TB", "Decrypts", "installations",
    )  # fmt: skip
    rows = [_row(given, rate, token_us, least_rows) for rate in RATES]
    return _lines(head, rows)


def _row(
    given: Mapping[str, float], rate: int, token_us: float, least_rows: int
) -> tuple[str, ...]:
    workers = ceil(rate * token_us / 1e6 / given["load"])
    machines = ceil(workers / given["cores"]) + 1
    # On each machine so many that all but one of the machines carry the load.
    running = machines * ceil(workers / (machines - 1))
    rows = max(least_rows, rate / running * given["commit_ms"] / 1e3)
    idle = running * given["idle_us"] / 1e6
    cores = (rate * _server_us(given, rows) / 1e6 + idle) / given["load"]
    log = rate * given["log_bytes"] / 1e6
    hours = given["token_hours"] + given["retention_hours"] + 12
    kept = rate / given["peak"] * hours * 3600
    installations = max(
        1, ceil(cores / given["database_cores"]), ceil(log / given["database_log_mb"])
    )
    return (
        f"{rate:,}", f"{workers:,}", f"{machines:,}", value_text(rows),
        f"{rate / rows:,.0f}", value_text(cores), value_text(log),
        f"{running * (given['pool'] + 3):,.0f}", f"{kept / 1e6:,.0f} M",
        value_text(kept * given["row_bytes"] / 1e12), f"{2 * running:,}", str(installations),
    )  # fmt: skip


def _server_us(given: Mapping[str, float], rows: float) -> float:
    """Return the database server's processor time for a row, in commits of so many rows."""
    of_row = (512 * given["server_us_512"] - 8 * given["server_us_8"]) / (512 - 8)
    of_commit = 8 * (given["server_us_8"] - of_row)
    return of_row + of_commit / rows


def _limits(given: Mapping[str, float]) -> str:
    worker = given["load"] * 1e6 / given["mint_us"]
    by_cores = given["database_cores"] * given["load"] * 1e6
    found = (
        ("a worker, one mint a request", worker),
        ("a worker, batches of 100", given["load"] * 1e6 / given["batch_us"]),
        ("a machine, one mint a request", worker * given["cores"]),
        ("one database, by its log", given["database_log_mb"] * 1e6 / given["log_bytes"]),
        ("one database, by its cores, 20 rows a commit", by_cores / _server_us(given, 20)),
        ("one database, by its cores, 100 rows a commit", by_cores / _server_us(given, 100)),
    )
    return _lines(("what", "tokens/s"), [(what, f"{rate:,.0f}") for what, rate in found])


def _one_machine(given: Mapping[str, float]) -> str:
    rows = [
        (name, value_text(rate), value_text(rate * given["million_rows"] * given["load"]))
        for name, rate in (
            ("one mint a request", given["mint_sqlite"]),
            ("batches of 100", given["batch_sqlite"]),
        )
    ]
    return _lines(("", "tokens/s of a worker", "planned for, a million rows"), rows)


def _lines(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _value(report: Report, section: str, name: str) -> float | None:
    figure = report.find(section, name)
    return None if figure is None else figure.value


def _quotient(value: float | None, by: float | None) -> float | None:
    return None if value is None or by is None else value / by


def _with_measured(page: str, report: Report) -> str:
    for name, find in MEASURED.items():
        value = find(report)
        if value is not None:
            text = value_text(value)
            page = re.sub(rf"^(\| `{name}` \| )[0-9.,]+", rf"\g<1>{text}", page, flags=re.MULTILINE)
    return page


def main() -> int:
    """Write the page anew."""
    parser = argparse.ArgumentParser(prog="make scaling", description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="figures of `make bench`")
    options = parser.parse_args()
    page = PAGE.read_text("utf-8")
    if options.json:
        page = _with_measured(page, Report.load(options.json))
    PAGE.write_text(with_tables(page), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
