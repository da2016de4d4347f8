"""The Signature Version 4 header: who asks, and for which Region.

Its structure is checked as AWS's front door does it. The signature itself is not: the stand-in knows
no secret keys, so any access key is taken. The date is not compared with the clock either, because
tests move this clock and not the caller's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from tokensvc.emulator.errors import (
    IncompleteSignatureError,
    InvalidSignatureError,
    MissingAuthenticationTokenError,
)
from tokensvc.tokens.limits import REGIONS

__all__ = ["signed_region"]

_ALGORITHM: Final = "AWS4-HMAC-SHA256"
_SERVICE: Final = "ivs"
_CREDENTIAL: Final = re.compile(r"(\w{1,128})/(\d{8})/([^/]+)/([^/]+)/aws4_request", re.ASCII)
_SIGNATURE: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)


def signed_region(headers: Mapping[str, str]) -> str:
    """Return the Region of the credential scope; names of `headers` are in lower case.

    Raises MissingAuthenticationTokenError, IncompleteSignatureError, InvalidSignatureError.
    """
    authorization = headers.get("authorization", "")
    if not authorization:
        raise MissingAuthenticationTokenError("Missing Authentication Token")
    algorithm, _, rest = authorization.partition(" ")
    if algorithm != _ALGORITHM:
        raise IncompleteSignatureError(f"Authorization header requires the algorithm {_ALGORITHM}")
    parts = dict(part.strip().partition("=")[::2] for part in rest.split(","))
    for name in ("Credential", "SignedHeaders", "Signature"):
        if not parts.get(name):
            raise IncompleteSignatureError(f"Authorization header requires '{name}' parameter.")
    credential = _CREDENTIAL.fullmatch(parts["Credential"])
    if credential is None:
        raise IncompleteSignatureError("Credential must be <key>/<date>/<Region>/ivs/aws4_request")
    if not _SIGNATURE.fullmatch(parts["Signature"]):
        raise IncompleteSignatureError("Signature must be 64 hexadecimal digits")
    _, date, region, service = credential.groups()
    if service != _SERVICE:
        raise InvalidSignatureError(
            f"Credential should be scoped to correct service: '{_SERVICE}'."
        )
    if region not in REGIONS:
        raise InvalidSignatureError("Credential should be scoped to a valid region.")
    signed = parts["SignedHeaders"].split(";")
    stamp = headers.get("x-amz-date", "")
    if "host" not in signed or "x-amz-date" not in signed or not stamp:
        raise IncompleteSignatureError("'host' and 'x-amz-date' must be present and signed.")
    if not stamp.startswith(date):
        raise InvalidSignatureError(
            "Date in Credential scope does not match YYYYMMDD from X-Amz-Date"
        )
    return region
