"""`make bench`: how many tokens a second, as a ratio to the raw signature of the same run.

Machines are shared and noisy, so every figure is the median of several rounds, and what counts is the
ratio. The service is measured as a process of its own, one worker, with its own store and the emulator;
the load comes from wrk (Debian's package) over loopback, for a bounded time.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from dataclasses import asdict
from pathlib import Path
from statistics import median

from tests.bench import in_process, over_http


def main() -> int:
    """Measure, print a table, and write the JSON beside it."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each measurement")
    parser.add_argument("--seconds", type=float, default=3.0, help="seconds of each HTTP round")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()

    figures = in_process.measure(options.rounds)
    http = over_http.measure(options.rounds, options.seconds)
    for name, rounds in http.per_second.items():
        figures.setdefault(name, []).extend(rounds)
    base = median(figures["raw AWS-LC signatures"])
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    print(f"{'':36}{'per second':>12}{'ratio':>8}")
    for name, rounds in figures.items():
        print(f"{name:36}{median(rounds):12,.0f}{median(rounds) / base:8.2f}")
    print(*over_http.summary(http), sep="\n")
    if options.json:
        report = {
            **asdict(http),
            "per_second": figures,
            "cores": os.cpu_count(),
            "load_average": os.getloadavg(),
        }
        options.json.write_text(json.dumps(report, indent=2) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
