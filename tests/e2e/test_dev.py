"""`tokensvc dev`, that is `make run`: one command to a token, and nothing broken when it stops."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import jwt
import pytest

from tests.e2e.sdk import SdkBrowser
from tests.e2e.support import (
    API_KEY,
    PATIENCE_SECONDS,
    REGION,
    RunningDev,
    free_ports,
    run_to_end,
    tokensvc_command,
)

# What a stopped installation consists of; anything else is half-written or forgotten.
FILES_KEPT = {"tokensvc.db", "master.key", "emulator.json", "dev.env"}
SQLITE_OWN = {"tokensvc.db-wal", "tokensvc.db-shm"}


def expect_one_line(done: subprocess.CompletedProcess[str], *words: str) -> None:
    assert done.returncode == 1, f"exit code {done.returncode}: {done.stderr}"
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("tokensvc: ")
    for word in words:
        assert word in done.stderr


def expect_whole(folder: Path) -> None:
    """Every file of the installation is there, whole, and there is no other."""
    present = {path.name for path in folder.iterdir()}
    assert present - SQLITE_OWN == FILES_KEPT
    with contextlib.closing(sqlite3.connect(folder / "tokensvc.db")) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert json.loads((folder / "emulator.json").read_text("utf-8"))


def test_printed_curl_line_mints_a_token_that_joins(
    tmp_path: Path, browser: SdkBrowser, tell: Callable[[str], None]
) -> None:
    with RunningDev(tmp_path) as dev:
        minted = json.loads(dev.run_curl_line())
        with browser.page() as sdk:
            participant = sdk.join("stage", minted["token"])["participant"]
        assert participant["id"] == minted["participantId"]
        assert participant["userId"] == minted["userId"]
    tell(f"first start to ready: {dev.seconds_to_ready:.2f} s")


def test_it_is_ready_when_it_says_so(dev: RunningDev) -> None:
    with dev.client() as client:
        answer = client.get("/readyz")
    assert answer.status_code == 200, answer.text
    assert answer.json()["ready"] is True


def arns_at_ivs(dev: RunningDev) -> set[str]:
    return {key["arn"] for key in dev.ivs().list_public_keys()["publicKeys"]}


def test_second_start_uses_the_same_key_stage_and_api_key(
    tmp_path: Path, browser: SdkBrowser, tell: Callable[[str], None]
) -> None:
    with RunningDev(tmp_path) as first:
        before = json.loads(first.run_curl_line())
        api_key = first.api_key
        assert api_key is not None
        first_arns = arns_at_ivs(first)
    with RunningDev(tmp_path, ports=first.ports) as second, browser.page() as sdk:
        assert second.api_key is None
        assert API_KEY.search(second.output) is None
        assert second.stage_arn == first.stage_arn
        after = json.loads(second.run_curl_line(api_key))
        assert after["keyArn"] == before["keyArn"]
        assert after["participantId"] != before["participantId"]
        # The first start's keys; the second may have had to finish a standby, and makes no third.
        assert arns_at_ivs(second) >= first_arns
        assert len(arns_at_ivs(second)) <= 2
        assert len(second.ivs().list_stages()["stages"]) == 1
        assert "participant" in sdk.join("minted before", before["token"])
        assert "participant" in sdk.join("minted after", after["token"])
    tell(f"second start to ready: {second.seconds_to_ready:.2f} s")


def test_an_emulator_for_other_machines_is_found_on_this_one(tmp_path: Path) -> None:
    """Bound to every address, as in a container, it takes what the service signs for it."""
    with RunningDev(tmp_path, settings={"TOKENSVC_EMULATOR_HOST": "0.0.0.0"}) as dev:
        assert f"IVS emulator at {dev.emulator_url};" in dev.stdout.text
        stage = dev.ivs().get_stage(arn=dev.stage_arn)["stage"]
        with dev.client() as client:
            answer = client.post("/v1/connection-tokens", json={"region": REGION})
        assert answer.status_code == 201, answer.text
        claims = jwt.decode(answer.json()["token"], options={"verify_signature": False})
    assert claims["events_url"] == stage["endpoints"]["events"]
    assert claims["events_url"] == dev.emulator_url.replace("http://", "ws://")


def test_command_line_finds_the_installation_through_dev_env(dev: RunningDev) -> None:
    script = (
        "set -a; . keys/dev.env; set +a; "
        f'"$0" token mint --stage-arn {dev.stage_arn} --user-id ana | "$0" token inspect'
    )
    done = run_to_end(["bash", "-o", "pipefail", "-c", script, *tokensvc_command()], dev.home, {})
    assert done.returncode == 0, done.stdout + done.stderr


@contextlib.contextmanager
def request_under_way(dev: RunningDev, body: bytes) -> Iterator[socket.socket]:
    """A mint whose head the service has taken, and for whose body it waits.

    `Expect: 100-continue` makes the service say so, which a test can wait for.
    """
    head = (
        f"POST /v1/tokens HTTP/1.1\r\nHost: 127.0.0.1:{dev.port}\r\n"
        f"Authorization: Bearer {dev.api_key}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nExpect: 100-continue\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", dev.port), PATIENCE_SECONDS) as connection:
        connection.sendall(head.encode("ascii"))
        assert connection.recv(64).startswith(b"HTTP/1.1 100 ")
        yield connection


def read_to_end(connection: socket.socket) -> bytes:
    return b"".join(iter(lambda: connection.recv(65_536), b""))


@pytest.mark.parametrize("stop", [RunningDev.interrupt, RunningDev.terminate])
def test_stopping_answers_the_request_under_way_and_leaves_nothing_half_written(
    tmp_path: Path, stop: Callable[[RunningDev], None]
) -> None:
    with RunningDev(tmp_path) as dev:
        body = json.dumps({"stageArn": dev.stage_arn, "userId": "last"}).encode()
        with request_under_way(dev, body) as connection:
            stop(dev)
            assert dev.stderr.wait_for_line(lambda line: "draining" in line)
            # Minting this asks the emulator for the stage's endpoints, so that must be up still.
            connection.sendall(body)
            answer = read_to_end(connection)
        assert answer.startswith(b"HTTP/1.1 201 "), answer
        assert b'"token"' in answer
        dev.expect_clean_exit()
    expect_whole(dev.data_dir)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", dev.port), 1).close()


def test_stopping_with_a_participant_on_a_stage_is_clean(
    tmp_path: Path, browser: SdkBrowser
) -> None:
    with browser.page() as sdk:
        with RunningDev(tmp_path) as dev:
            token = json.loads(dev.run_curl_line())["token"]
            assert "participant" in sdk.join("stage", token)
            dev.interrupt()
            dev.expect_clean_exit()
        expect_whole(dev.data_dir)


def test_killed_outright_it_starts_again_and_its_tokens_join(
    tmp_path: Path, browser: SdkBrowser
) -> None:
    with RunningDev(tmp_path) as dev:
        before = json.loads(dev.run_curl_line())
        api_key = dev.api_key
        dev.kill()
    with RunningDev(tmp_path, ports=dev.ports) as again, browser.page() as sdk:
        after = json.loads(again.run_curl_line(api_key))
        assert after["keyArn"] == before["keyArn"]
        assert "participant" in sdk.join("minted before", before["token"])


def test_killed_and_interrupted_while_it_starts_it_starts_whole_the_next_time(
    tmp_path: Path,
) -> None:
    killed = RunningDev(tmp_path)
    assert killed.stderr.wait_for_line(lambda line: "public_key_imported" in line)
    killed.kill()
    interrupted = RunningDev(tmp_path, ports=killed.ports)
    assert interrupted.stderr.wait_for_line(lambda line: "emulator_started" in line)
    interrupted.interrupt()
    interrupted.expect_clean_exit()
    with RunningDev(tmp_path, ports=killed.ports) as dev:
        # The printed API key may be lost with the killed start; the greeting says how to get another.
        script = 'set -a; . keys/dev.env; "$0" callers add another'
        added = run_to_end(["bash", "-c", script, *tokensvc_command()], dev.home, {})
        found = API_KEY.search(added.stdout)
        assert found is not None, added.stderr
        with dev.client(found[0]) as client:
            minted = client.post("/v1/tokens", json={"stageArn": dev.stage_arn}).json()
        assert minted["issuer"] == "local"
        at_ivs = dev.ivs().list_public_keys()["publicKeys"]
        assert minted["keyArn"] in {key["arn"] for key in at_ivs}
        assert len(dev.ivs().list_stages()["stages"]) == 1
    # No key is at IVS that the ring does not know of: it would take one of three slots for good.
    script = 'set -a; . keys/dev.env; "$0" keys list --json'
    listed = run_to_end(["bash", "-c", script, *tokensvc_command()], dev.home, {})
    ring = {key["keyId"] for key in json.loads(listed.stdout)["keys"]}
    assert {key["tags"]["tokensvc:key"] for key in at_ivs} <= ring
    expect_whole(dev.data_dir)


@pytest.mark.parametrize("taken", ["TOKENSVC_PORT", "TOKENSVC_EMULATOR_PORT"])
def test_taken_port_gives_one_line_and_leaves_nothing_behind(tmp_path: Path, taken: str) -> None:
    service, emulator = free_ports(2)
    settings = {"TOKENSVC_PORT": str(service), "TOKENSVC_EMULATOR_PORT": str(emulator)}
    with socket.create_server(("127.0.0.1", int(settings[taken]))):
        done = run_to_end(
            tokensvc_command("dev"),
            tmp_path,
            {**settings, "TOKENSVC_DATA_DIR": str(tmp_path / "keys")},
        )
    expect_one_line(done, settings[taken])
    assert list((tmp_path / "keys").iterdir()) == []


def test_two_in_a_data_folder_are_one_too_many(tmp_path: Path) -> None:
    with RunningDev(tmp_path) as dev:
        service, emulator = free_ports(2)
        done = run_to_end(
            tokensvc_command("dev"),
            tmp_path,
            {
                "TOKENSVC_PORT": str(service),
                "TOKENSVC_EMULATOR_PORT": str(emulator),
                "TOKENSVC_DATA_DIR": str(dev.data_dir),
            },
        )
        expect_one_line(done, str(dev.data_dir), "another `tokensvc dev` runs there")
        with dev.client() as client:
            assert client.post("/v1/tokens", json={"stageArn": dev.stage_arn}).status_code == 201


def test_file_in_place_of_the_data_folder_gives_one_line(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("not a folder")
    done = run_to_end(
        tokensvc_command("dev"), tmp_path, {"TOKENSVC_DATA_DIR": str(tmp_path / "keys")}
    )
    expect_one_line(done, str(tmp_path / "keys"))


def test_read_only_data_folder_gives_one_line(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    folder.mkdir(mode=0o555)
    without_privileges: list[str] = []
    if os.geteuid() == 0:
        # Root writes anywhere until it gives up its capabilities.
        os.chown(folder, 65_534, 65_534)
        without_privileges = ["setpriv", "--inh-caps=-all", "--bounding-set=-all"]
    done = run_to_end(
        [*without_privileges, *tokensvc_command("dev")],
        tmp_path,
        {"TOKENSVC_DATA_DIR": str(folder)},
    )
    expect_one_line(done, str(folder), "cannot be written")


@pytest.mark.parametrize(
    "package", ["click", "litestar", "sqlalchemy", "greenlet", "boto3", "msgspec"]
)
def test_missing_dependency_gives_one_line(tmp_path: Path, package: str) -> None:
    hidden = tmp_path / "hidden" / package
    hidden.mkdir(parents=True)
    (hidden / "__init__.py").write_text(
        f"raise ModuleNotFoundError(\"No module named '{package}'\", name='{package}')\n"
    )
    service, emulator = free_ports(2)
    done = run_to_end(
        tokensvc_command("dev"),
        tmp_path,
        {
            "PYTHONPATH": str(hidden.parent),
            "TOKENSVC_DATA_DIR": str(tmp_path / "keys"),
            "TOKENSVC_PORT": str(service),
            "TOKENSVC_EMULATOR_PORT": str(emulator),
        },
    )
    expect_one_line(done, package, "requirements.lock")


def test_without_awscrt_it_signs_with_openssl_and_says_so(tmp_path: Path) -> None:
    hidden = tmp_path / "hidden" / "awscrt"
    hidden.mkdir(parents=True)
    (hidden / "__init__.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'awscrt'\", name='awscrt')\n"
    )
    with RunningDev(tmp_path, settings={"PYTHONPATH": str(hidden.parent)}) as dev:
        assert json.loads(dev.run_curl_line())["issuer"] == "local"
        assert "openssl" in dev.stderr.text
