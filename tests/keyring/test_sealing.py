"""A sealed private half opens only whole, in its own row, under its own master key (promise 8)."""

from __future__ import annotations

import base64
import copy
import os
import pickle
import stat
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokensvc.errors import ConfigurationError, SealError
from tokensvc.keyring.master_key import create_master_key, load_master_key
from tokensvc.keyring.sealing import LocalSealer, SealContext

CONTEXT = SealContext("ring", "eu-central-1", "k1")
MASTER_KEY = bytes(range(32))


async def test_what_was_sealed_opens_again_and_is_not_there_in_plain() -> None:
    sealer = LocalSealer(MASTER_KEY)
    sealed = await sealer.seal(b"private half", CONTEXT)
    assert b"private" not in sealed
    assert await LocalSealer(MASTER_KEY).unseal(sealed, CONTEXT) == b"private half"


async def test_the_same_half_never_seals_to_the_same_blob() -> None:
    sealer = LocalSealer(MASTER_KEY)
    assert len({await sealer.seal(b"half", CONTEXT) for _ in range(8)}) == 8


@pytest.mark.parametrize(
    "other",
    [
        SealContext("other", "eu-central-1", "k1"),
        SealContext("ring", "us-east-1", "k1"),
        SealContext("ring", "eu-central-1", "k2"),
        # The same characters, cut elsewhere.
        SealContext("ringe", "u-central-1", "k1"),
    ],
)
async def test_a_blob_that_was_moved_to_another_row_does_not_open(other: SealContext) -> None:
    sealer = LocalSealer(MASTER_KEY)
    sealed = await sealer.seal(b"half", CONTEXT)
    with pytest.raises(SealError, match="damaged or not this key's"):
        await sealer.unseal(sealed, other)


async def test_another_master_key_is_named_as_the_reason() -> None:
    sealed = await LocalSealer(MASTER_KEY).seal(b"half", CONTEXT)
    with pytest.raises(SealError, match="another master key"):
        await LocalSealer(bytes(32)).unseal(sealed, CONTEXT)


@settings(max_examples=60, deadline=None)
@given(st.data())
async def test_no_damaged_blob_opens(data: st.DataObject) -> None:
    sealer = LocalSealer(MASTER_KEY)
    sealed = await sealer.seal(b"half", CONTEXT)
    damage = data.draw(st.sampled_from(["flip", "cut", "append"]))
    if damage == "flip":
        at = data.draw(st.integers(0, len(sealed) - 1))
        bit = 1 << data.draw(st.integers(0, 7))
        damaged = sealed[:at] + bytes([sealed[at] ^ bit]) + sealed[at + 1 :]
    elif damage == "cut":
        damaged = sealed[: data.draw(st.integers(0, len(sealed) - 1))]
    else:
        damaged = sealed + data.draw(st.binary(min_size=1, max_size=4))
    with pytest.raises(SealError):
        await sealer.unseal(damaged, CONTEXT)


def test_a_master_key_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        LocalSealer(bytes(16))


def test_a_sealer_is_not_printed_pickled_or_copied() -> None:
    sealer = LocalSealer(MASTER_KEY)
    assert repr(sealer) == "<LocalSealer>"
    for escape in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="holds a private key"):
            escape(sealer)


def test_a_created_master_key_is_its_owners_only_and_loads(tmp_path: Path) -> None:
    path = tmp_path / "master.key"
    create_master_key(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(load_master_key(path)) == 32
    assert [entry.name for entry in tmp_path.iterdir()] == ["master.key"]


def test_a_master_key_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "master.key"
    create_master_key(path)
    before = path.read_bytes()
    with pytest.raises(ConfigurationError, match="File exists"):
        create_master_key(path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["master.key"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o610, 0o602])
def test_a_file_that_others_may_use_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "master.key"
    create_master_key(path)
    path.chmod(mode)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        load_master_key(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n",
        base64.b64encode(bytes(31)),
        base64.b64encode(bytes(33)),
        base64.b64encode(bytes(32)) + b"\n" + base64.b64encode(bytes(32)),
        b"!" + base64.b64encode(bytes(32)),
        bytes(32),
        base64.b64encode(bytes(300)),
    ],
)
def test_anything_but_one_line_of_32_bytes_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "master.key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(ConfigurationError, match="one line: 32 bytes"):
        load_master_key(path)


def test_a_pipe_or_a_missing_file_is_said_and_does_not_hang(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="No such file"):
        load_master_key(tmp_path / "missing")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe, 0o600)
    with pytest.raises(ConfigurationError, match="not a regular file"):
        load_master_key(pipe)


def test_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be created"):
        create_master_key(tmp_path / "missing" / "master.key")


def test_a_file_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "master.key"
    create_master_key(path)
    somebody_else = path.stat().st_uid + 1
    monkeypatch.setattr(os, "geteuid", lambda: somebody_else)
    with pytest.raises(ConfigurationError, match="belongs to another user"):
        load_master_key(path)
