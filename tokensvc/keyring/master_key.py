"""The file that holds the local master key: one line, 32 random bytes in base64.

Whoever reads it, and the database, has every private key; so a file that others may read is refused
rather than used. Losing it makes the sealed private halves worthless, which is why creating one is a
separate act that only `tokensvc dev` does by itself.
"""

from __future__ import annotations

import base64
import binascii
import os
import secrets
import stat
from pathlib import Path
from typing import Final

from tokensvc.errors import ConfigurationError
from tokensvc.keyring.sealing import MASTER_KEY_BYTES

__all__ = ["create_master_key", "load_master_key"]

_MAX_FILE_BYTES: Final = 256


def load_master_key(path: Path, what: str = "master key") -> bytes:
    """Return the 32 bytes of the master key, to be given to `LocalSealer` and kept nowhere else.

    Blocking. Raises ConfigurationError, which calls it `what`, where the file is missing, is not a
    regular file, is not ours, may be used by group or others, or holds anything but one line of
    base64 of 32 bytes.
    """
    try:
        # Opened before it is looked at, so that what is checked is what is read; a pipe must not
        # hang the start.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise ConfigurationError(
            f"The {what} file {path} cannot be opened: {error.strerror}."
        ) from error
    with os.fdopen(descriptor, "rb") as file:
        _check_file(path, os.fstat(descriptor), what)
        content = file.read(_MAX_FILE_BYTES + 1)
    lines = content.splitlines()
    try:
        key = base64.b64decode(lines[0], validate=True) if len(lines) == 1 else b""
    except binascii.Error:
        key = b""
    if len(key) != MASTER_KEY_BYTES:
        raise ConfigurationError(
            f"The {what} file {path} must hold one line: {MASTER_KEY_BYTES} bytes in base64."
        )
    return key


def create_master_key(path: Path, what: str = "master key") -> None:
    """Write a new master key to `path`, whole or not at all, readable by its owner only.

    Blocking. Raises ConfigurationError where the file exists or the folder cannot be written.
    """
    line = base64.b64encode(os.urandom(MASTER_KEY_BYTES)) + b"\n"
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        try:
            _write(unfinished, line)
            # A link, unlike a rename, fails where the name is taken: no master key is overwritten.
            os.link(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)
        _sync_folder(path.parent)
    except OSError as error:
        raise ConfigurationError(
            f"The {what} file {path} cannot be created: {error.strerror}."
        ) from error


def _check_file(path: Path, status: os.stat_result, what: str) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise ConfigurationError(f"The {what} file {path} is not a regular file.")
    if status.st_uid != os.geteuid():
        raise ConfigurationError(f"The {what} file {path} belongs to another user.")
    if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ConfigurationError(
            f"The {what} file {path} is open to group or others: run `chmod 600` on it."
        )


def _write(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(descriptor)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
