"""Promise: `tokensvc doctor` names each fault of an installation, and a good one passes."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.http.issuer import AUDIENCE, issuer_running
from tests.http.support import NOW, REGION, FakeIvs, Service, install, running, settings_for
from tests.policy.support import POLICY
from tokensvc.cli.diagnosis import Diagnosis, diagnose
from tokensvc.cli.root import run
from tokensvc.errors import IvsAccessDeniedError, IvsUnavailableError
from tokensvc.http.hardening import complaints
from tokensvc.http.server import bind_socket
from tokensvc.ivs.gateway import PublicKey
from tokensvc.settings import Settings

GOOD_ENVIRON: Mapping[str, str] = {}


@pytest.fixture
async def installed(tmp_path: Path) -> Service:
    """An installation that ran, so that its Region has keys, and has stopped."""
    (tmp_path / "data").mkdir()
    policy = tmp_path / "policy.yaml"
    policy.write_text(POLICY)
    policy.chmod(0o600)
    settings = settings_for(tmp_path / "data", port=0, standby_min_age=0.0)
    service = Service(settings, FakeIvs(), api_keys=await install(settings))
    async with running(service):
        pass
    service.settings = replace(settings, policy_file=policy, audit=str(tmp_path / "audit.log"))
    return service


async def seen(service: Service, **changes: Any) -> dict[str, Diagnosis]:
    found = await diagnose(
        replace(service.settings, **changes), {}, clock=lambda: NOW, gateway=service.ivs
    )
    return {one.check: one for one in found}


async def test_a_good_installation(installed: Service):
    found = await seen(installed)
    verdicts = {check: one.verdict for check, one in found.items()}
    assert verdicts == {
        "settings": "ok",
        "database": "ok",
        "master key": "ok",
        f"aws {REGION}": "ok",
        # The IVS of this test sends no Date.
        "clock": "warn",
        f"key ring {REGION}": "ok",
        "callers": "ok",
        "policy": "ok",
        "port": "ok",
        "audit": "ok",
    }
    assert "signature verifies" in found[f"key ring {REGION}"].detail
    assert "4 may call" in found["callers"].detail


async def test_nothing_is_changed(installed: Service):
    calls = dict(installed.ivs.calls)
    await seen(installed)
    changed = {name: n for name, n in installed.ivs.calls.items() if n != calls.get(name)}
    assert set(changed) == {"ListPublicKeys"}
    assert not (installed.settings.data_dir.parent / "audit.log").exists()


async def test_credentials_that_aws_refuses(installed: Service):
    installed.ivs.fault = IvsAccessDeniedError("The security token included is expired.")
    found = await seen(installed)
    assert found[f"aws {REGION}"].verdict == "fail"
    assert "ivs:ListPublicKeys" in found[f"aws {REGION}"].detail
    # The rest is looked at all the same.
    assert found[f"key ring {REGION}"].verdict == "warn"
    assert found["callers"].verdict == "ok"


async def test_aws_that_does_not_answer(installed: Service):
    installed.ivs.fault = IvsUnavailableError("IVS cannot be reached.")
    assert (await seen(installed))[f"aws {REGION}"].verdict == "fail"


async def test_a_key_that_ivs_does_not_hold(installed: Service):
    installed.ivs.keys.clear()
    found = (await seen(installed))[f"key ring {REGION}"]
    assert found.verdict == "fail"
    assert "no token joins" in found.detail


def foreign(service: Service, count: int) -> None:
    for number in range(count):
        arn = f"arn:aws:ivs:{REGION}:123456789012:public-key/other{number}"
        service.ivs.keys[arn] = PublicKey(arn, f"other{number}", "", "00", {})


@pytest.mark.parametrize(("count", "verdict"), [(1, "warn"), (2, "fail")])
async def test_slots_that_others_use(installed: Service, count: int, verdict: str):
    foreign(installed, count)
    found = (await seen(installed))[f"key ring {REGION}"]
    assert found.verdict == verdict
    assert "other0" in found.detail


async def test_another_master_key(installed: Service, tmp_path: Path):
    from tokensvc.keyring import create_master_key

    create_master_key(tmp_path / "other.key")
    found = await seen(installed, master_key_file=tmp_path / "other.key")
    assert found["master key"].verdict == "ok"
    assert found[f"key ring {REGION}"].verdict == "fail"


async def test_what_is_missing_is_named(installed: Service, tmp_path: Path):
    found = await seen(
        installed,
        database_url=f"sqlite+aiosqlite:///{tmp_path}/none.db",
        master_key_file=tmp_path / "none.key",
        policy_file=tmp_path / "none.yaml",
        regions=(),
    )
    for check in ("database", "master key", "policy", "settings"):
        assert found[check].verdict == "fail", check
    assert "tokensvc db upgrade" in found["database"].detail


async def test_an_issuer_that_answers_and_one_that_does_not(installed: Service):
    with issuer_running() as issuer:
        settings = {"oidc_issuer": issuer.url, "oidc_audience": AUDIENCE}
        good = (await seen(installed, **settings))["oidc"]
        issuer.down = True
        refusing = (await seen(installed, **settings))["oidc"]
        url = f"{issuer.url}/keys"
        other = (await seen(installed, **settings, oidc_jwks_url=url))["oidc"]
    gone = (await seen(installed, **settings))["oidc"]
    assert (good.verdict, good.detail) == (
        "ok",
        f"{issuer.url} has 1 keys that may be used.",
    )
    assert {refusing.verdict, other.verdict, gone.verdict} == {"fail"}
    assert "(status: 500) (url: http" in refusing.detail
    assert f"(url: {url})" in other.detail
    assert "does not answer as it should" in gone.detail
    assert "oidc" not in await seen(installed)


async def test_an_audit_record_that_cannot_be_written(installed: Service, tmp_path: Path):
    async def audit(target: Path, **changes: Any) -> Diagnosis:
        return (await seen(installed, audit=str(target), **changes))["audit"]

    pipe, kept = tmp_path / "pipe", tmp_path / "kept.log"
    os.mkfifo(pipe)
    kept.write_text("a record\n")
    for target in (tmp_path, pipe, tmp_path / "none" / "audit.log"):
        found = await audit(target)
        assert found.verdict == "fail", target
        assert f"The audit file {target} cannot be opened" in found.detail
    assert not (tmp_path / "none").exists()
    assert (await audit(kept)).verdict == "ok"
    assert kept.read_text() == "a record\n"
    key = tmp_path / "bad.key"
    key.write_text("no key")
    key.chmod(0o600)
    assert (await audit(kept, audit_key_file=key)).verdict == "fail"


async def test_a_policy_with_a_fault_is_told_by_line(installed: Service, tmp_path: Path):
    bad = tmp_path / "bad.yaml"
    bad.write_text("version: 2\ncallers: {}\n")
    found = (await seen(installed, policy_file=bad))["policy"]
    assert (found.verdict, "line 1" in found.detail) == ("fail", True)


async def test_a_port_that_is_taken_may_be_the_service_itself(installed: Service):
    with bind_socket("127.0.0.1", 0) as taken:
        found = await seen(installed, port=taken.getsockname()[1])
    assert found["port"].verdict == "warn"


async def test_hardening_fails_where_it_is_asked_for(installed: Service):
    lenient = await seen(installed, policy_file=None)
    strict = await seen(installed, policy_file=None, hardened=True)
    assert (lenient["hardening"].verdict, strict["hardening"].verdict) == ("warn", "fail")


def test_the_command_fails_with_a_line_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("TOKENSVC_DATA_DIR", str(tmp_path))
    assert run(["doctor", "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["healthy"] is False
    assert {"settings", "database", "master key"} <= {
        one["check"] for one in told["checks"] if one["verdict"] == "fail"
    }
    monkeypatch.setenv("TOKENSVC_PORT", "many")
    assert run(["doctor"]) == 1
    assert "TOKENSVC_PORT" in capsys.readouterr().out


# --- hardening ------------------------------------------------------------------------------------


@pytest.fixture
def fit(tmp_path: Path) -> Settings:
    """Settings without a complaint."""
    for name in ("master.key", "audit.key", "tokensvc.db", "policy.yaml"):
        (tmp_path / name).write_text("x")
        (tmp_path / name).chmod(0o600)
    return Settings(data_dir=tmp_path, policy_file=tmp_path / "policy.yaml", hardened=True)


def test_fit_settings(fit: Settings):
    assert complaints(fit, {"AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE"}) == []
    aws = "https://ivsrealtime.eu-central-1.amazonaws.com"
    assert complaints(replace(fit, aws_endpoint_url=aws), {}) == []


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"aws_endpoint_url": "http://127.0.0.1:8090"}, "TOKENSVC_AWS_ENDPOINT_URL"),
        ({"aws_endpoint_url": "https://amazonaws.com.evil.example"}, "TOKENSVC_AWS_ENDPOINT_URL"),
        ({"aws_endpoint_url": "http://x.amazonaws.com"}, "TOKENSVC_AWS_ENDPOINT_URL"),
        ({"kms_endpoint_url": "http://localhost:1"}, "TOKENSVC_KMS_ENDPOINT_URL"),
        ({"connection_events_url": "ws://127.0.0.1:8090"}, "TOKENSVC_CONNECTION_EVENTS_URL"),
        ({"policy_file": None}, "TOKENSVC_POLICY_FILE"),
        ({"host": "0.0.0.0"}, "TOKENSVC_ALLOW_PLAIN_HTTP"),
        ({"host": "::"}, "TOKENSVC_ALLOW_PLAIN_HTTP"),
        ({"host": "10.0.0.7"}, "TOKENSVC_ALLOW_PLAIN_HTTP"),
        ({"host": "tokens.example"}, "TOKENSVC_ALLOW_PLAIN_HTTP"),
    ],
)
def test_an_unfit_setting_is_refused_in_one_line(fit: Settings, changes: Any, named: str):
    (line,) = complaints(replace(fit, **changes), {})
    assert named in line
    assert "\n" not in line


def test_plain_http_where_the_operator_says_so(fit: Settings):
    for host in ("127.0.0.1", "::1", "localhost"):
        assert complaints(replace(fit, host=host), {}) == []
    assert complaints(replace(fit, host="0.0.0.0", allow_plain_http=True), {}) == []


@pytest.mark.parametrize("name", ["master.key", "audit.key", "tokensvc.db"])
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
def test_a_file_that_others_may_read_is_refused(fit: Settings, name: str, mode: int):
    (fit.data_dir / name).chmod(mode)
    (line,) = complaints(fit, {})
    assert f"{fit.data_dir / name} is open to group or others" in line


def test_a_policy_that_others_may_write_is_refused(fit: Settings):
    assert fit.policy_file is not None
    fit.policy_file.chmod(0o644)
    assert complaints(fit, {}) == []
    fit.policy_file.chmod(0o664)
    (line,) = complaints(fit, {})
    assert "chmod go-w" in line


def test_secrets_of_a_trial_are_refused(fit: Settings):
    (fit.data_dir / "dev.env").write_text("")
    environ = {
        "AWS_ACCESS_KEY_ID": "emulator",
        "AWS_ENDPOINT_URL_IVS_REALTIME": "http://127.0.0.1:8090",
    }
    lines = "\n".join(complaints(fit, environ))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_ENDPOINT_URL_IVS_REALTIME", "TOKENSVC_DATA_DIR"):
        assert name in lines


@pytest.mark.parametrize("name", ["master_key_file", "old_master_key_file", "audit_key_file"])
def test_a_key_of_a_trial_is_refused_in_another_folder_too(fit: Settings, name: str):
    trial = fit.data_dir / "trial"
    trial.mkdir()
    (trial / "dev.env").write_text("")
    (line,) = complaints(replace(fit, **{name: trial / "some.key"}), {})
    assert line.startswith(f"TOKENSVC_{name.upper()}: {trial} was made by `tokensvc dev`")


def test_a_password_of_the_database_that_others_may_read_is_refused(fit: Settings, tmp_path: Path):
    path = tmp_path / "database_url"
    path.write_text("x")
    path.chmod(0o600)
    assert complaints(fit, {"TOKENSVC_DATABASE_URL_FILE": str(path)}) == []
    path.chmod(0o644)
    (line,) = complaints(fit, {"TOKENSVC_DATABASE_URL_FILE": str(path)})
    assert line.startswith(f"TOKENSVC_DATABASE_URL_FILE: {path} is open to group or others")


def test_serve_says_every_complaint_and_does_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("TOKENSVC_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("TOKENSVC_REGIONS", REGION)
    monkeypatch.setenv("TOKENSVC_AWS_ENDPOINT_URL", "http://127.0.0.1:8090")
    assert run(["serve", "--hardened", "--host", "0.0.0.0"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert all(line.startswith("tokensvc: hardened: ") for line in lines)
    assert len(lines) == 3
    # The setting does the same; without either, the next thing that is missing is said.
    monkeypatch.setenv("TOKENSVC_HARDENED", "true")
    assert run(["serve"]) == 1
    assert "hardened" in capsys.readouterr().err
    monkeypatch.setenv("TOKENSVC_HARDENED", "false")
    assert run(["serve", "--port", "0"]) == 1
    assert "hardened" not in capsys.readouterr().err
