"""`tokensvc keys`: what it does, what it prints, and the exit code that a scheduler goes by."""

from __future__ import annotations

import base64
import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from moto.server import ThreadedMotoServer

from tests.cli.support import REGION, Cli

ACCOUNT = "123456789012"


def test_a_new_ring_is_made_by_what_is_due(cli: Cli):
    region = cli.region("rotate", "--if-due")
    assert region["rotated"] is True
    assert region["status"]["healthy"] is True
    assert set(cli.keys()) == {"ACTIVE", "STANDBY"}
    again = cli.region("rotate", "--if-due")
    assert again["rotated"] is False


def test_a_rotation_where_no_key_signs_makes_one_sign(cli: Cli):
    region = cli.region("rotate")
    assert (region["rotated"], region["previousKeyId"]) == (True, None)
    assert cli.keys()["ACTIVE"]["keyId"] == region["activeKeyId"]


def test_a_rotation_by_hand(cli: Cli):
    cli("rotate", "--if-due")
    before = cli.keys()
    region = cli.region("rotate", "--region", REGION)
    assert region["rotated"] is True
    assert region["activeKeyId"] == before["STANDBY"]["keyId"]
    assert cli.keys()["RETIRING"]["keyId"] == before["ACTIVE"]["keyId"]
    assert "signs now" in cli("rotate")
    # All three slots are taken now, by the two that retired.
    assert cli.region("rotate", expect=3)["status"]["usedSlots"] == 3


def test_a_standby_that_is_too_young_is_waited_for(cli: Cli, monkeypatch: pytest.MonkeyPatch):
    cli("rotate", "--if-due")
    standby = cli.keys()["STANDBY"]
    monkeypatch.setenv("TOKENSVC_STANDBY_MIN_AGE", "86400")
    region = cli.region("rotate", expect=3)
    assert region["rotated"] is False
    assert region["status"]["nextAt"] == pytest.approx(standby["importedAt"] + 86400)
    age = time.time() - standby["importedAt"]
    monkeypatch.setenv("TOKENSVC_STANDBY_MIN_AGE", str(age + 1.5))
    assert cli.region("rotate", "--wait", "60")["activeKeyId"] == standby["keyId"]


def test_which_standby_signs_can_be_said(cli: Cli):
    cli("rotate", "--if-due")
    arn, file = console_key(cli)
    adopted = cli.json("import", "--private-key-file", str(file), "--arn", arn)
    assert adopted["phase"] == "STANDBY"
    assert cli.region("rotate", "--to", adopted["keyId"])["activeKeyId"] == adopted["keyId"]
    assert cli.mint() == arn
    again = cli.region("rotate", "--to", adopted["keyId"])
    assert (again["rotated"], again["activeKeyId"]) == (False, adopted["keyId"])
    cli("rotate", "--to", cli.keys()["RETIRING"]["keyId"], expect=1)
    assert "is RETIRING and signs no more" in cli.err
    cli("rotate", "--to", "k000", expect=1)
    cli("rotate", "--to", adopted["keyId"], "--if-due", expect=2)


def test_aws_that_fails_is_exit_4_and_the_ring_is_listed_all_the_same(cli: Cli):
    cli("rotate", "--if-due")
    fail = {"operation": "ListPublicKeys", "kind": "error", "code": "AccessDeniedException"}
    cli.emulator.post_faults({**fail, "count": 100})
    region = cli.region("rotate", expect=4)
    assert [problem["code"] for problem in region["status"]["problems"]] == ["ivs_access_denied"]
    assert cli.region("rotate", "--if-due", expect=4)["status"]["healthy"] is False
    assert "ivs_access_denied" in cli.err
    assert cli.json("reconcile", expect=4)["regions"] == []
    assert "ivs_access_denied" in cli.err
    listed = cli.json("list")
    assert {key["phase"] for key in listed["keys"]} == {"ACTIVE", "STANDBY"}
    assert listed["regions"][0]["problems"][0]["code"] == "ivs_access_denied"


def test_a_call_that_fails_once_is_waited_for(cli: Cli):
    cli.emulator.post_faults(
        {"operation": "ImportPublicKey", "kind": "error", "code": "PendingVerification"}
    )
    region = cli.region("rotate", "--if-due", "--wait", "60")
    assert region["status"]["healthy"] is True
    assert set(cli.keys()) == {"ACTIVE", "STANDBY"}


def test_settings_that_cannot_be_are_exit_1(cli: Cli, monkeypatch: pytest.MonkeyPatch):
    cli("rotate", "--region", "mars-north-1", expect=1)
    monkeypatch.setenv("TOKENSVC_ROTATION_PERIOD", "3600")
    cli("rotate", expect=1)
    assert "IVS gives 3" in cli.err
    cli("rotate", "--wait", "-1", expect=2)


def test_the_list_has_the_fields_of_the_http_answer(cli: Cli):
    cli("rotate", "--if-due")
    cli.mint()
    listed = cli.json("list")
    assert set(listed) == {"keys", "regions", "notSigning"}
    active = next(key for key in listed["keys"] if key["phase"] == "ACTIVE")
    assert active["signing"] is True
    assert active["liveTokens"] == 1
    assert active["nextPhase"] == "RETIRING"
    text = cli("list")
    assert "ACTIVE*" in text
    assert "slots used: 2 of 3" in text
    cli("invalidate", active["keyId"])
    assert active["keyId"] not in cli("list")
    assert active["keyId"] in cli("list", "--all")


def test_an_invalidation_tried_out_and_done(cli: Cli):
    cli("rotate", "--if-due")
    keys = cli.keys()
    active, standby = keys["ACTIVE"], keys["STANDBY"]
    assert cli.mint() == active["arn"]
    would = cli.json("invalidate", active["keyId"], "--dry-run", "--disconnect")
    assert (would["livingTokens"], would["deleted"]) == (1, False)
    assert would["disconnect"] is None
    assert active["arn"] in cli.at_ivs()
    done = cli.json("invalidate", active["keyId"], "--disconnect", "--reason", "sign in again")
    assert done["deleted"] is True
    assert done["activeKeyId"] == standby["keyId"]
    assert done["disconnect"]["disconnectId"].startswith("dis-")
    assert active["arn"] not in cli.at_ivs()
    assert cli.mint() == standby["arn"]
    assert "is deleted at IVS" in cli("invalidate", active["keyId"])
    cli("invalidate", "k000", expect=1)


def test_an_invalidation_that_ivs_did_not_do_yet_is_exit_4(cli: Cli):
    cli("rotate", "--if-due")
    active = cli.keys()["ACTIVE"]
    cli.emulator.post_faults(
        {
            "operation": "DeletePublicKey",
            "kind": "error",
            "code": "AccessDeniedException",
            "count": 9,
        }
    )
    report = cli.json("invalidate", active["keyId"], expect=4)
    assert report["deleted"] is False
    assert report["problem"]["code"] == "ivs_access_denied"
    assert cli.mint() != active["arn"]
    cli.emulator.clear_faults()
    assert cli.json("invalidate", active["keyId"])["deleted"] is True
    assert active["arn"] not in cli.at_ivs()


def test_a_key_deleted_in_the_console(cli: Cli):
    """Long enough after its import that IVS cannot merely not show it yet."""
    cli("rotate", "--if-due")
    keys = cli.keys()
    gone = keys["ACTIVE"]["arn"]
    cli.emulator.run(lambda: cli.emulator.world.delete_public_key(gone))
    age_keys(cli, 120)
    region = cli.region("reconcile", "--dry-run", expect=3)
    assert [(found["kind"], found["arn"]) for found in region["findings"]] == [("gone", gone)]
    assert region["done"] == []
    region = cli.region("reconcile")
    assert any(step.startswith("Forget") for step in region["done"])
    assert cli.mint() == keys["STANDBY"]["arn"]
    assert cli.region("reconcile", "--dry-run")["findings"] == []


def test_keys_of_others_are_shown_and_left_alone(cli: Cli):
    arn, _ = console_key(cli)
    cli("rotate", "--if-due")
    region = cli.region("reconcile")
    assert [(found["kind"], found["repair"]) for found in region["findings"]] == [("foreign", "")]
    assert arn in cli("reconcile", "--dry-run")
    assert arn in cli.at_ivs()


def test_what_cannot_be_imported_says_why(cli: Cli):
    arn, file = console_key(cli)
    other = cli.folder / "other.pem"
    other.write_bytes(pem_of(ec.generate_private_key(ec.SECP384R1())))
    small = cli.folder / "p256.pem"
    small.write_bytes(pem_of(ec.generate_private_key(ec.SECP256R1())))
    public = cli.folder / "public.pem"
    public.write_bytes(
        ec.generate_private_key(ec.SECP384R1())
        .public_key()
        .public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    huge = cli.folder / "huge.pem"
    huge.write_bytes(b"x" * 20_000)
    unknown = f"arn:aws:ivs:{REGION}:{ACCOUNT}:public-key/unknown"
    for path, key_arn, words in (
        (small, arn, "P-384"),
        (public, arn, "private key"),
        (other, arn, "another public key"),
        (huge, arn, "larger than"),
        (file, unknown, "IVS holds no public key"),
        (file, "nonsense", "--arn"),
        (file, arn.replace(REGION, "us-east-1"), "not a Region of this service"),
    ):
        cli("import", "--private-key-file", str(path), "--arn", key_arn, expect=1)
        assert words in cli.err
        assert "BEGIN" not in cli.err
    assert cli.keys() == {}


def test_resealed_under_a_new_master_key(cli: Cli, monkeypatch: pytest.MonkeyPatch):
    cli("rotate", "--if-due")
    arn = cli.keys()["ACTIVE"]["arn"]
    new = master_key(cli.folder / "new.key")
    monkeypatch.setenv("TOKENSVC_MASTER_KEY_FILE", str(new))
    monkeypatch.setenv("TOKENSVC_OLD_MASTER_KEY_FILE", str(cli.folder / "master.key"))
    assert cli.mint() == arn
    assert len(cli.json("reseal")["resealed"]) == 2
    assert len(cli.json("reseal")["already"]) == 2
    monkeypatch.delenv("TOKENSVC_OLD_MASTER_KEY_FILE")
    assert cli.mint() == arn
    newest = master_key(cli.folder / "newest.key")
    assert len(cli.json("reseal", "--new-master-key-file", str(newest))["resealed"]) == 2
    assert cli.json("list")["notSigning"].keys() == {REGION}
    assert "sealed under another master key" in cli("list")
    cli("reseal", expect=1)
    assert "another master key" in cli.err


@pytest.fixture(scope="module")
def kms() -> Iterator[tuple[str, str]]:
    """AWS KMS as moto serves it: its URL, and the ARN of a key."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    url = "http://{}:{}".format(*server.get_host_and_port())
    yield url, kms_key(url)
    server.stop()


def kms_key(url: str) -> str:
    """Make a key, and return its ARN."""
    client = boto3.client(
        "kms",
        region_name="eu-west-1",
        endpoint_url=url,
        aws_access_key_id="test",
        aws_secret_access_key="test",
    )
    arn = str(client.create_key()["KeyMetadata"]["Arn"])
    client.close()
    return arn


def test_resealed_under_aws_kms(cli: Cli, kms: tuple[str, str], monkeypatch: pytest.MonkeyPatch):
    """The KMS key's Region is in its ARN; afterwards no master key file is needed."""
    url, key_arn = kms
    cli("rotate", "--if-due")
    arn = cli.keys()["ACTIVE"]["arn"]
    monkeypatch.setenv("TOKENSVC_KMS_KEY_ID", key_arn)
    monkeypatch.setenv("TOKENSVC_KMS_ENDPOINT_URL", url)
    monkeypatch.setenv("TOKENSVC_OLD_MASTER_KEY_FILE", str(cli.folder / "master.key"))
    assert len(cli.json("reseal")["resealed"]) == 2
    monkeypatch.delenv("TOKENSVC_OLD_MASTER_KEY_FILE")
    (cli.folder / "master.key").unlink()
    assert cli.mint() == arn
    assert cli.region("rotate")["rotated"] is True
    assert cli.mint() != arn
    # And from one KMS key to another, with no break.
    monkeypatch.setenv("TOKENSVC_KMS_KEY_ID", kms_key(url))
    monkeypatch.setenv("TOKENSVC_OLD_KMS_KEY_ID", key_arn)
    arn = cli.mint()
    assert len(cli.json("reseal")["resealed"]) == 2
    monkeypatch.delenv("TOKENSVC_OLD_KMS_KEY_ID")
    assert cli.mint() == arn
    # KMS that is not there: not one that refuses for good.
    monkeypatch.setenv("TOKENSVC_KMS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert cli.json("list")["notSigning"].keys() == {REGION}
    cli("reseal", expect=4)


def console_key(cli: Cli) -> tuple[str, Path]:
    """Make a P-384 key, import its public half as the console does; return ARN and file."""
    private = ec.generate_private_key(ec.SECP384R1())
    public = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    answer = cli.emulator.client().import_public_key(
        publicKeyMaterial=public.decode(), name="console"
    )
    file = cli.folder / "own.pem"
    file.write_bytes(pem_of(private))
    return str(answer["publicKey"]["arn"]), file


def pem_of(private: ec.EllipticCurvePrivateKey) -> bytes:
    return private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def master_key(path: Path) -> Path:
    path.write_bytes(base64.b64encode(os.urandom(32)) + b"\n")
    path.chmod(0o600)
    return path


def age_keys(cli: Cli, seconds: float) -> None:
    """Let the stored keys have been imported `seconds` earlier."""
    connection = sqlite3.connect(cli.folder / "tokensvc.db")
    with connection:
        connection.execute("UPDATE keys SET imported_at = imported_at - ?", (seconds,))
    connection.close()
