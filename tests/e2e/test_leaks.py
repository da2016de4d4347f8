"""Promise 8, no secret leaks: a run with everything in it, then a search of all it wrote."""

from __future__ import annotations

import base64
import json
import stat
from pathlib import Path

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.e2e.leaks import leaks_in
from tests.e2e.sdk import SdkBrowser
from tests.e2e.support import RunningDev, run_to_end, tokensvc_command

_KEY = ec.generate_private_key(ec.SECP384R1())


def _private(encoding: serialization.Encoding, form: serialization.PrivateFormat) -> bytes:
    return _KEY.private_bytes(encoding, form, serialization.NoEncryption())


_PKCS8 = _private(serialization.Encoding.DER, serialization.PrivateFormat.PKCS8)
_SEC1 = _private(serialization.Encoding.DER, serialization.PrivateFormat.TraditionalOpenSSL)
_PEM = _private(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8)
_SCALAR = _KEY.private_numbers().private_value.to_bytes(48)
_SECRET = b"tsk_abcdefgh_0123456789abcdefghijklmnop"


@pytest.mark.parametrize(
    "planted",
    [
        _PKCS8,
        _SEC1,
        _PEM,
        _PEM.replace(b"PRIVATE KEY", b"SOMETHING"),
        json.dumps({"key": _PEM.decode()}).encode(),
        base64.b64encode(_PKCS8),
        base64.b64encode(b"x" + _SEC1),
        base64.urlsafe_b64encode(b"xx" + _PKCS8),
        _PKCS8.hex().encode(),
        b'{"kty": "EC", "d": "%s"}' % base64.urlsafe_b64encode(_SCALAR),
        jwt.encode({"jti": "a-token"}, _KEY, algorithm="ES384").encode(),
        _SECRET,
        _SECRET.hex().encode(),
        base64.b64encode(_SECRET),
        base64.b64encode(b"x" + _SECRET + b"yz"),
        base64.b64encode(b"xx" + _SECRET + b"y"),
    ],
    # By number: what is planted is new in every run, and belongs in no report.
    ids=[f"planted{number}" for number in range(16)],
)
def test_search_finds_what_is_planted(planted: bytes) -> None:
    assert leaks_in(b'{"event": "minted", "detail": "' + planted + b'"}\n', [_SECRET])


def test_search_passes_over_public_keys_ids_and_hashes() -> None:
    public = _KEY.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    content = public + json.dumps({"pem": public.decode(), "sha256": "0f" * 32}).encode()
    assert leaks_in(content, [_SECRET]) == []


def test_nothing_that_a_run_writes_holds_a_secret(tmp_path: Path, browser: SdkBrowser) -> None:
    loud = {"TOKENSVC_LOG_LEVEL": "debug"}
    tokens: list[str] = []
    answers: list[bytes] = []
    with RunningDev(tmp_path, settings=loud) as first:
        api_key = first.api_key
        assert api_key is not None
        tokens.append(json.loads(first.run_curl_line())["token"])
        with first.client() as client:
            item = {"stageArn": first.stage_arn, "userId": "ana"}
            batch = client.post(
                "/v1/tokens/batch", json={"tokens": [item, {**item, "duration": 0}]}
            )
            tokens.append(batch.json()["tokens"][0]["token"])
            tokens.append(client.post("/v1/tokens", json={**item, "issuer": "ivs"}).json()["token"])
            changed = tokens[0][:-8] + "AAAAAAAA"
            not_json = b'{"token": "' + tokens[0].encode()
            as_json = {"Content-Type": "application/json"}
            asked = [
                client.post("/v1/tokens/inspect", json={"token": tokens[0]}),
                client.post("/v1/tokens/inspect", json={"token": changed}),
                client.post("/v1/tokens/inspect", content=not_json, headers=as_json),
                client.post("/v1/tokens", json={**item, "userId": tokens[0]}),
                client.post("/v1/tokens", json={**item, tokens[0]: 1}),
                client.post(
                    "/v1/tokens", headers={"Authorization": f"Bearer {api_key}x"}, json=item
                ),
                client.post("/v1/tokens", headers={"Authorization": f"Basic {api_key}"}, json=item),
                client.get("/v1/keys"),
                client.get("/v1/keys", params={"api_key": api_key, "token": tokens[0]}),
                client.get(f"/v1/keys/{api_key}"),
                client.get("/metrics"),
                client.get("/healthz"),
                client.get("/readyz"),
                client.get("/schema"),
            ]
            answers += [answer.content for answer in asked]
        with browser.page() as sdk:
            assert "participant" in sdk.join("stage", tokens[0])
            assert "error" in sdk.join("changed", changed)
            participant = jwt.decode(tokens[0], options={"verify_signature": False})["jti"]
            first.ivs().disconnect_participant(stageArn=first.stage_arn, participantId=participant)
            sdk.left("stage")
        commands = [
            run_to_end(
                ["bash", "-c", 'set -a; . keys/dev.env; "$@"', "-", *tokensvc_command(*words)],
                tmp_path,
                {},
            )
            for words in (
                ["keys", "list"],
                ["keys", "list", "--json"],
                ["callers", "list"],
                ["settings"],
            )
        ]
    with RunningDev(tmp_path, ports=first.ports, settings=loud) as second:
        tokens.append(json.loads(second.run_curl_line(api_key))["token"])

    master_key = second.data_dir / "master.key"
    assert stat.S_IMODE(master_key.stat().st_mode) == 0o600
    assert stat.S_IMODE(second.data_dir.stat().st_mode) == 0o700
    # The API key is printed as such and in the curl line, at the first start, and nowhere else.
    greeting = first.stdout.text
    assert greeting.count(api_key) == 2
    known = [
        api_key.encode(),
        api_key.split("_", 2)[2].encode(),
        master_key.read_bytes().strip(),
        *(token.rsplit(".", 1)[1].encode() for token in tokens),
    ]
    written: dict[str, bytes] = {
        "first start's stdout": greeting.replace(api_key, "").encode(),
        "first start's stderr": first.stderr.text.encode(),
        "second start's stdout": second.stdout.text.encode(),
        "second start's stderr": second.stderr.text.encode(),
    }
    written |= {f"answer {number}": content for number, content in enumerate(answers)}
    for done in commands:
        assert done.returncode == 0, done.stderr
        written[" ".join(done.args[-3:])] = (done.stdout + done.stderr).encode()
    for path in tmp_path.rglob("*"):
        if path.is_file() and path != master_key:
            written[str(path.relative_to(tmp_path))] = path.read_bytes()
    assert "keys/tokensvc.db" in written
    assert "first start's stderr" in written
    assert b"request" in written["first start's stderr"], "nothing was logged, nothing was searched"
    assert {
        name: found for name, content in written.items() if (found := leaks_in(content, known))
    } == {}
