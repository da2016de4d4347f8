"""`tokensvc bench`: what this machine can sign, and what a mint adds to a signature."""

from __future__ import annotations

import os
import platform
from typing import Final

import click

from tokensvc.cli.output import json_option, print_json, print_table

__all__ = ["bench"]

_HOUR: Final = 3600


@click.command()
@click.option(
    "--rounds",
    type=click.IntRange(1, 1000),
    default=5,
    show_default=True,
    help="Rounds; what is told is their median.",
)
@click.option(
    "--seconds",
    type=click.FloatRange(0.0, 60.0, min_open=True),
    default=0.5,
    show_default=True,
    help="Seconds of each measurement in each round.",
)
@click.option(
    "--core",
    type=click.IntRange(0),
    help="Core to measure on.  [default: the one where the system puts it]",
)
@json_option
def bench(rounds: int, seconds: float, core: int | None, as_json: bool) -> None:
    """Measure signatures and mints a second on one core.

    In this process; needs no settings, no store and no AWS. A ratio is to AWS-LC's raw signature,
    of the same round; to OpenSSL's where AWS-LC is not installed. A worker of the service mints
    less than this, since it also answers HTTP and writes the ledger.
    """
    from tokensvc.cli.measuring import AWS_LC, MINT, OPENSSL, measure, median_rate, ratio, subjects

    if core is not None:
        _pin(core)
    figures = measure(subjects(), rounds=rounds, seconds=seconds)
    base = figures.get(AWS_LC, figures[OPENSSL])
    report = {
        name: {
            "perSecond": round(median_rate(rates), 1),
            "perSecondOfEachRound": [round(rate.per_second, 1) for rate in rates],
            "ratio": round(ratio(rates, base), 3),
        }
        for name, rates in figures.items()
    }
    busy = os.getloadavg()[0]
    if as_json:
        print_json(
            {
                "machine": platform.machine(),
                "cores": os.cpu_count(),
                "python": platform.python_version(),
                "loadAverage": round(busy, 2),
                "figures": report,
            }
        )
        return
    print_table(
        ("", "a second", "ratio"),
        [
            (name, f"{median_rate(rates):,.0f}", f"{ratio(rates, base):.2f}")
            for name, rates in figures.items()
        ],
    )
    mint = median_rate(figures[MINT])
    click.echo(
        f"One core mints {mint:,.0f} tokens a second without HTTP, {mint * _HOUR / 1e6:,.1f} million an"
        f" hour; there are {os.cpu_count()} cores, and the load average is {busy:.1f}."
    )


def _pin(core: int) -> None:
    if not hasattr(os, "sched_setaffinity"):
        raise click.BadParameter("cannot be chosen on this system", param_hint="--core")
    try:
        os.sched_setaffinity(0, {core})
    except OSError as error:
        raise click.BadParameter(
            f"{core} is no core of this process", param_hint="--core"
        ) from error
