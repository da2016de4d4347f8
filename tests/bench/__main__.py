"""`make bench`: what issuing tokens costs, as ratios to the raw signature of the same run.

The service runs on one core, as an operator starts it, with everything on; the load comes from the
others. Every figure is the median of several rounds, each beside the raw signature that the same core
made just before. With `--json`, a run may be made in pieces: what is not measured again stays.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from tests.bench.figures import Report
from tests.bench.goals import goals_text
from tests.bench.machine import circumstances
from tests.bench.rounds import Options
from tests.bench.sections import RUNS
from tests.bench.table import text_table


def main() -> int:
    """Measure, print a table and what was reached, and write the JSON beside it."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each measurement")
    parser.add_argument("--seconds", type=float, default=3.0, help="seconds of each HTTP round")
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of the largest ledger")
    parser.add_argument(
        "--only", default=",".join(RUNS), help=f"some of: {', '.join(RUNS)} (commas between)"
    )
    parser.add_argument(
        "--json", type=Path, help="the figures; what is there and not measured stays"
    )
    options = parser.parse_args()
    wanted = options.only.split(",")
    if unknown := [name for name in wanted if name not in RUNS]:
        parser.error(f"--only: there is no {', '.join(unknown)}")
    report = Report.load(options.json) if options.json else Report()
    settings = Options(options.rounds, options.seconds, options.rows)
    for name in wanted:
        started = time.monotonic()
        said = circumstances(rounds=options.rounds, seconds=options.seconds)
        figures = list(RUNS[name](settings))
        for section in sorted({figure.section for figure in figures}):
            report.replace(section, [one for one in figures if one.section == section], said)
        if options.json:
            report.save(options.json)
        print(f"{name}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    print(text_table(report), goals_text(report), sep="\n\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
