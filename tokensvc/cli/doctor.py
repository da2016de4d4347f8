"""`tokensvc doctor`: is everything there that the service needs, and does it work?"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import click

from tokensvc.cli.output import json_option, print_json, print_table
from tokensvc.errors import ConfigurationError

if TYPE_CHECKING:
    from tokensvc.cli.diagnosis import Diagnosis

__all__ = ["doctor"]


@click.command()
@json_option
def doctor(as_json: bool) -> int:
    """Find out what is wrong with an installation.

    Looks at settings, database, master key, AWS, clock, key ring, callers, OIDC issuer, policy, port and
    audit record. Asks IVS for its list of public keys in each Region; changes nothing. Exit code 0:
    nothing failed, warnings apart. 1: something failed.
    """
    found = _diagnose()
    failed = any(one.verdict == "fail" for one in found)
    if as_json:
        print_json({"healthy": not failed, "checks": found})
    else:
        rows = [
            (one.verdict.upper(), one.check, line)
            for one in found
            for line in one.detail.splitlines()
        ]
        print_table(("VERDICT", "CHECK", "DETAIL"), rows)
    return int(failed)


def _diagnose() -> list[Diagnosis]:
    from tokensvc.cli.diagnosis import Diagnosis, diagnose
    from tokensvc.settings import Settings

    try:
        settings = Settings.load()
    except ConfigurationError as error:
        return [Diagnosis("settings", "fail", error.detail)]
    return asyncio.run(diagnose(settings, os.environ))
