"""Commands whose standard streams are closed, full, or of an encoding that has not every character."""

from __future__ import annotations

import asyncio
import json
import subprocess
import time
from base64 import urlsafe_b64encode
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.support import PATIENCE_SECONDS, clean_environment, tokensvc_command
from tests.http.support import stage_arn
from tokensvc.callers import SqlCallerStore
from tokensvc.settings import Settings
from tokensvc.store import open_engine

Shell = Callable[..., "subprocess.CompletedProcess[bytes]"]


@pytest.fixture
def folder(tmp_path: Path, template: Path) -> Path:
    for file in template.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
        (tmp_path / file.name).chmod(0o600)
    return tmp_path


@pytest.fixture
def shell(folder: Path) -> Shell:
    """Run `tokensvc ...` with what stands behind the command in a shell's line."""

    def run(*arguments: str, behind: str = "", given: bytes = b"", **environment: str):
        settings = {"TOKENSVC_DATA_DIR": str(folder), "TOKENSVC_REGIONS": "eu-central-1"}
        return subprocess.run(
            ["sh", "-c", f'"$@" {behind}', "sh", *tokensvc_command(*arguments)],
            cwd=folder,
            env=clean_environment(folder, settings | environment),
            input=given,
            capture_output=True,
            timeout=PATIENCE_SECONDS,
            check=False,
        )

    return run


def callers(folder: Path) -> list[str]:
    async def names() -> list[str]:
        engine = open_engine(Settings(data_dir=folder).database_url)
        found = await SqlCallerStore(engine, time.time).list()
        await engine.dispose()
        return [caller.name for caller in found]

    return asyncio.run(names())


def test_no_api_key_is_made_that_could_not_be_shown(shell: Shell, folder: Path):
    done = shell("callers", "add", "game", behind=">&-")
    assert done.returncode == 1
    assert done.stderr == b"tokensvc: standard output is closed, and the API key would be lost\n"
    assert callers(folder) == []


def test_an_api_key_that_was_not_shown_is_told_and_how_to_have_another(shell: Shell, folder: Path):
    done = shell("callers", "add", "game", behind=">/dev/full")
    assert done.returncode == 1
    told, why = done.stderr.decode().splitlines()
    assert told.endswith("; `tokensvc callers rotate game --restart` makes another")
    assert why == "tokensvc: standard output cannot be written: No space left on device"
    assert callers(folder) == ["game"]
    again = shell("callers", "rotate", "game", "--restart")
    assert again.returncode == 0
    assert b"tsk_" in again.stdout


def test_what_is_read_goes_nowhere_where_nobody_listens(shell: Shell):
    assert shell("callers", "list", behind=">&-").returncode == 0
    full = shell("settings", behind=">/dev/full")
    assert full.returncode == 1
    assert full.stderr == b"tokensvc: standard output cannot be written: No space left on device\n"
    silent = shell("callers", "nothing", behind="2>&-")
    assert (silent.returncode, silent.stdout) == (2, b"")


@pytest.mark.parametrize(("behind", "given"), [("<&-", b""), ("", b"\xff\xfe.b.c")])
def test_a_token_that_is_no_text_is_a_bad_token(shell: Shell, behind: str, given: bytes):
    done = shell("token", "inspect", "--json", behind=behind, given=given)
    assert (done.returncode, done.stderr) == (1, b"")
    assert not json.loads(done.stdout)["acceptable"]


def test_an_encoding_without_a_character_fails_nothing(shell: Shell):
    header = urlsafe_b64encode(
        json.dumps({"alg": "ES384", "kid": "Zoë \N{SNOWMAN}"}).encode()
    ).rstrip(b"=")
    token = header.decode() + ".e30.x"
    asked = ("policy", "check", "--caller", "Zoë \N{SNOWMAN}", "--stage-arn", stage_arn())
    told = shell(*asked, PYTHONIOENCODING="latin-1")
    assert told.stdout.startswith(b"Zo\xeb \\u2603 may have this token")
    assert (told.returncode, told.stderr) == (0, b"")
    # JSON is in UTF-8, whatever a terminal shows.
    found = shell("token", "inspect", "--json", token, PYTHONIOENCODING="latin-1")
    assert json.loads(found.stdout)["header"]["kid"] == "Zoë \N{SNOWMAN}"
