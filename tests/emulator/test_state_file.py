"""What survives a restart, and how it gets to disk."""

from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.emulator.support import RunningEmulator, public_pem, refused
from tokensvc.emulator.app import create_app
from tokensvc.emulator.config import EmulatorConfig
from tokensvc.emulator.state_file import SavedState, StateFile, StateFileError, StateKeeper

ACCOUNT = "123456789012"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "emulator.json"


def test_everything_that_counts_survives_a_restart(path: Path) -> None:
    with RunningEmulator(state_file=path) as ivs:
        client = ivs.client()
        stage = client.create_stage(name="demo", tags={"a": "b"})["stage"]
        key = client.import_public_key(publicKeyMaterial=public_pem(), name="ring")["publicKey"]
        client.tag_resource(resourceArn=key["arn"], tags={"c": "d"})
        issued = client.create_participant_token(stageArn=stage["arn"], userId="Zoë")
        token = issued["participantToken"]["token"]
        record = ivs.world.issued_token(token)
        client.revoke_connection_token(tokenId="revoked-1")
        deleted = client.create_stage()["stage"]["arn"]
        client.delete_stage(arn=deleted)
        port = ivs.port

    with RunningEmulator(state_file=path, port=port) as ivs:
        client = ivs.client()
        assert client.get_stage(arn=stage["arn"])["stage"] == stage
        found = client.get_public_key(arn=key["arn"])["publicKey"]
        assert found == key | {"tags": {"c": "d"}}
        assert ivs.world.issued_token(token) == record
        assert ivs.sessions.is_revoked("eu-central-1", "revoked-1")
        refused(client.get_stage, 404, "ResourceNotFoundException", arn=deleted)


def test_file_is_complete_when_the_answer_comes(path: Path) -> None:
    with RunningEmulator(state_file=path) as ivs:
        client = ivs.client()
        arn = client.create_stage(name="demo")["stage"]["arn"]
        assert list(json.loads(path.read_bytes())["stages"]) == [arn]
        client.update_stage(arn=arn, name="renamed")
        assert json.loads(path.read_bytes())["stages"][arn]["name"] == "renamed"
        client.delete_stage(arn=arn)
        assert json.loads(path.read_bytes())["stages"] == {}
        assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_file_holds_no_token(path: Path) -> None:
    with RunningEmulator(state_file=path) as ivs:
        client = ivs.client()
        stage = client.create_stage(participantTokenConfigurations=[{}])
        arn = stage["stage"]["arn"]
        tokens = [
            stage["participantTokens"][0]["token"],
            client.create_participant_token(stageArn=arn)["participantToken"]["token"],
        ]
    text = path.read_text()
    assert len(json.loads(text)["issued_tokens"]) == 2
    for token in tokens:
        assert not any(segment in text for segment in token.split("."))


def test_change_that_cannot_be_kept_is_a_500(tmp_path: Path) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    with RunningEmulator(state_file=folder / "emulator.json") as ivs:
        folder.rmdir()
        client = ivs.client()
        refused(client.create_stage, 500, "InternalServerException")
        folder.mkdir()
        client.create_stage()
        assert len(json.loads((folder / "emulator.json").read_bytes())["stages"]) == 2


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"account": 5}', b"\xff"])
def test_file_of_something_else_is_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(StateFileError, match="not a state file"):
        create_app(EmulatorConfig(state_file=path))
    assert path.read_bytes() == content


@pytest.mark.parametrize("change", [{"account": "000000000000"}, {"format": 2}])
def test_file_of_another_account_or_format_is_refused(path: Path, change: dict[str, Any]) -> None:
    StateFile(path).write(0, state(0))
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(StateFileError, match="another format or AWS account"):
        create_app(EmulatorConfig(state_file=path))


def test_unreadable_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StateFileError, match="cannot be read"):
        create_app(EmulatorConfig(state_file=tmp_path))


def test_file_that_could_never_be_made_is_refused_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(StateFileError, match=r"missing/emulator\.json cannot be made"):
        create_app(EmulatorConfig(state_file=tmp_path / "missing" / "emulator.json"))


def test_older_state_never_replaces_a_newer_one(path: Path) -> None:
    file = StateFile(path)
    file.write(2, state(2))
    file.write(1, state(1))
    saved = file.read(ACCOUNT)
    assert saved is not None
    assert saved.sessions == {"change": 2}


class GatedFile(StateFile):
    """A file whose writes wait to be let through; keeps what was written."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.gate = threading.Semaphore(0)
        self.started = threading.Semaphore(0)
        self.written: list[Any] = []

    def write(self, number: int, state: SavedState) -> None:
        self.started.release()
        assert self.gate.acquire(timeout=10)
        super().write(number, state)
        self.written.append(state.sessions["change"])


async def test_changes_during_a_write_share_the_next(path: Path) -> None:
    file = GatedFile(path)
    changes = 0
    keeper = StateKeeper(file, lambda: state(changes))

    async def change() -> None:
        nonlocal changes
        changes += 1
        keeper.changed()
        await keeper.save()

    first = asyncio.create_task(change())
    await asyncio.to_thread(file.started.acquire)
    others = [asyncio.create_task(change()) for _ in range(10)]
    await asyncio.to_thread(file.gate.release)
    await first
    assert not any(task.done() for task in others)
    file.gate.release()
    await asyncio.gather(*others)
    assert file.written == [1, 11]
    saved = file.read(ACCOUNT)
    assert saved is not None
    assert saved.sessions == {"change": 11}


async def test_nothing_is_written_where_nothing_changed(path: Path) -> None:
    file = GatedFile(path)
    keeper = StateKeeper(file, lambda: state(0))
    await keeper.save()
    async with keeper.following():
        pass
    assert file.written == []


async def test_changes_that_nobody_waits_for_are_saved(path: Path) -> None:
    file = GatedFile(path)
    keeper = StateKeeper(file, lambda: state(7))
    async with keeper.following():
        keeper.changed()
        await asyncio.to_thread(file.started.acquire)
        file.gate.release()
    assert file.written == [7]


async def test_last_changes_are_saved_when_the_emulator_stops(path: Path) -> None:
    file = GatedFile(path)
    keeper = StateKeeper(file, lambda: state(8))
    file.gate.release()
    async with keeper.following():
        keeper.changed()
    assert file.written == [8]


def state(change: int) -> SavedState:
    return SavedState(ACCOUNT, {}, {}, {}, {"change": change})
