"""What `serve --hardened` refuses to start with: settings that are for trying things out, not for use.

Each complaint is one line that names the setting and what to do. `tokensvc doctor` shows the same lines
as warnings where the setting is off.
"""

from __future__ import annotations

import ipaddress
import os
import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from tokensvc.errors import ConfigurationError
from tokensvc.settings import Settings
from tokensvc.tokens.connection import CONNECTION_EVENTS_URL

__all__ = ["complaints", "require_hardened"]

_AWS_HOST: Final = re.compile(r"(?:[a-z0-9-]+\.)+(?:amazonaws\.com(?:\.cn)?|api\.aws)")
# IAM's documented form of an access key id: 16 to 128 word characters; real ones are upper case.
_ACCESS_KEY_ID: Final = re.compile(r"[A-Z0-9]{16,128}")
_FOR_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO
_WRITABLE: Final = stat.S_IWGRP | stat.S_IWOTH


def require_hardened(settings: Settings, environ: Mapping[str, str] | None = None) -> None:
    """Do nothing where `settings.hardened` is off; raises ConfigurationError with every complaint."""
    if settings.hardened:
        found = complaints(settings, os.environ if environ is None else environ)
        if found:
            raise ConfigurationError("\n".join(f"hardened: {line}" for line in found))


def complaints(settings: Settings, environ: Mapping[str, str]) -> list[str]:
    """Return why these settings are unfit for use, one line each; none where they are fit.

    `environ` is the process's environment. Files are looked at and not read.
    """
    return [
        *_of_aws(settings, environ),
        *_of_files(settings, environ),
        *_of_policy(settings),
        *_of_address(settings),
    ]


def _of_aws(settings: Settings, environ: Mapping[str, str]) -> Iterator[str]:
    for name, url in (
        ("TOKENSVC_AWS_ENDPOINT_URL", settings.aws_endpoint_url),
        ("TOKENSVC_KMS_ENDPOINT_URL", settings.kms_endpoint_url),
        # botocore takes these by itself.
        *((name, environ[name]) for name in sorted(environ) if name.startswith("AWS_ENDPOINT_URL")),
    ):
        if url and not _is_aws(url):
            yield f"{name} is no endpoint of AWS over https; unset it"
    if settings.connection_events_url != CONNECTION_EVENTS_URL:
        yield f"TOKENSVC_CONNECTION_EVENTS_URL is not IVS's {CONNECTION_EVENTS_URL}; unset it"
    access_key_id = environ.get("AWS_ACCESS_KEY_ID")
    if access_key_id and _ACCESS_KEY_ID.fullmatch(access_key_id) is None:
        yield "AWS_ACCESS_KEY_ID is not one that AWS gave out; use a role, or unset it"


def _is_aws(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme == "https" and _AWS_HOST.fullmatch(parts.hostname or "") is not None


def _of_files(settings: Settings, environ: Mapping[str, str]) -> Iterator[str]:
    secret = {
        "TOKENSVC_MASTER_KEY_FILE": settings.master_key_file,
        "TOKENSVC_OLD_MASTER_KEY_FILE": settings.old_master_key_file,
        "TOKENSVC_AUDIT_KEY_FILE": settings.audit_key_file,
        "TOKENSVC_DATABASE_URL": _database_file(settings.database_url),
        # It may hold the database's password.
        "TOKENSVC_DATABASE_URL_FILE": _named(environ.get("TOKENSVC_DATABASE_URL_FILE")),
    }
    trial = {settings.data_dir: "TOKENSVC_DATA_DIR"}
    for name, path in secret.items():
        if path is not None:
            trial.setdefault(path.parent, name)
    for folder, name in trial.items():
        if (folder / "dev.env").exists():
            yield (
                f"{name}: {folder} was made by `tokensvc dev`, whose API key was printed; use another"
                " folder"
            )
    for name, path in secret.items():
        mode = _mode_of(path)
        if mode is not None and mode & _FOR_OTHERS:
            yield f"{name}: {path} is open to group or others; run `chmod 600` on it"
    mode = _mode_of(settings.policy_file)
    if mode is not None and mode & _WRITABLE:
        yield (
            f"TOKENSVC_POLICY_FILE: {settings.policy_file} may be written by group or others; run"
            " `chmod go-w` on it"
        )


def _of_policy(settings: Settings) -> Iterator[str]:
    if settings.policy_file is None:
        yield "TOKENSVC_POLICY_FILE is not set: every caller may ask for every stage; write a policy"


def _of_address(settings: Settings) -> Iterator[str]:
    if not settings.allow_plain_http and not _is_loopback(settings.host):
        yield (
            f"TOKENSVC_HOST {settings.host} is reached over plain HTTP by others; listen on 127.0.0.1"
            " behind a proxy that speaks TLS, or say TOKENSVC_ALLOW_PLAIN_HTTP=true where one does"
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _database_file(url: str) -> Path | None:
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        # A ValueError tells the port that is no number: a part of the password. Whoever opens it says so.
        return None
    return (
        Path(parsed.database)
        if parsed.drivername.startswith("sqlite") and parsed.database
        else None
    )


def _named(path: str | None) -> Path | None:
    return Path(path).expanduser() if path else None


def _mode_of(path: Path | None) -> int | None:
    try:
        return None if path is None else path.stat().st_mode
    except OSError:
        # Missing, or not to be reached: whoever needs it says so.
        return None
