"""What botocore keeps in memory of the data files that it comes with.

`endpoints.json` describes the endpoints of every service of AWS. Each session of botocore reads it whole
and keeps it: 7 MB in every worker. Here the services that this process may ask are read out of it, and
those that boto3's chain of credentials may ask; all else in it, and every other file, stays as it is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import msgspec
from botocore.loaders import JSONFileLoader

__all__ = ["ASKED", "FewEndpoints"]

ASKED: Final = frozenset(
    {"ivsrealtime", "kms", "sts", "portal.sso", "oidc", "signin"}  # the last four: credentials
)
"""Prefixes of endpoints, which is what `endpoints.json` calls services by."""

_FILE: Final = "endpoints"
_Raw = dict[str, msgspec.Raw]


class FewEndpoints(JSONFileLoader):  # type: ignore[misc, unused-ignore]
    """A `file_loader` of botocore's `Loader`; keeps nothing."""

    def load_file(self, file_path: str) -> Any:
        """Return what is in the file, or None where there is none; `file_path` is without `.json`."""
        path = Path(f"{file_path}.json")
        if path.stem != _FILE or not path.is_file():
            return super().load_file(file_path)
        return _read(path.read_bytes())


def _read(data: bytes) -> dict[str, Any]:
    top = msgspec.json.decode(data, type=_Raw)
    partitions = msgspec.json.decode(top.pop("partitions"), type=list[_Raw])
    return _decoded(top) | {"partitions": [_partition(each) for each in partitions]}


def _partition(raw: _Raw) -> dict[str, Any]:
    services = msgspec.json.decode(raw.pop("services"), type=_Raw)
    asked = {name: value for name, value in services.items() if name in ASKED}
    return _decoded(raw) | {"services": _decoded(asked)}


def _decoded(raw: _Raw) -> dict[str, Any]:
    return {name: msgspec.json.decode(value) for name, value in raw.items()}
