"""`tokensvc token`: a token that IVS takes, and in words what is wrong with one that it does not."""

from __future__ import annotations

import base64
import io
import json
import re
import time
from collections.abc import Callable
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from tests.cli.support import REGION, Cli, run_quietly
from tokensvc.tokens.claims import CAPABILITIES

Run = Callable[..., str]


@pytest.fixture
def stage(cli: Cli) -> str:
    """A stage of the emulator, in an installation whose key signs."""
    cli("rotate")
    made = cli.emulator.run(lambda: cli.emulator.world.create_stage(REGION))
    return str(made.arn)


@pytest.fixture
def token(cli: Cli, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `tokensvc token ...`, and return what it prints; of a refused command, what it complains."""

    def command(*arguments: str, expect: int = 0) -> str:
        code = run_quietly(["token", *arguments])
        captured = capsys.readouterr()
        assert code == expect, f"{code}\n{captured.out}{captured.err}"
        assert "Traceback" not in captured.err
        return captured.out or captured.err

    return command


def admitted(cli: Cli, text: str) -> Any:
    """Return what the emulator's own verification reads in a token."""
    return cli.emulator.run(lambda: cli.emulator.app.state.door.verifier.participant(text))


def test_what_is_minted_is_taken_as_it_was_asked(cli: Cli, stage: str, token: Run):
    printed = token(
        *("mint", "--stage-arn", stage, "--user-id", "José", "--duration", "30"),
        *("--capability", "SUBSCRIBE", "--attribute", "motto=a=b", "--attribute", "empty="),
    )
    assert printed.count("\n") == 1
    claims = admitted(cli, printed.strip())
    assert (claims.stage_arn, claims.user_id) == (stage, "José")
    assert claims.capabilities == ("SUBSCRIBE",)
    assert claims.attributes == {"motto": "a=b", "empty": ""}
    assert claims.expires_at == pytest.approx(time.time() + 1800, abs=60)


def test_an_attribute_is_given_once(stage: str, token: Run):
    asked = ("mint", "--stage-arn", stage, "--attribute", "team=red")
    assert "'team' is given twice" in token(*asked, "--attribute", "team=blue", expect=2)
    assert "'blue' is not NAME=VALUE" in token(*asked, "--attribute", "blue", expect=2)


def test_the_least_is_a_stage(cli: Cli, stage: str, token: Run):
    minted = json.loads(token("mint", "--stage-arn", stage, "--json"))
    assert (minted["duration"], minted["issuer"]) == (720, "local")
    assert minted["capabilities"] == list(CAPABILITIES)
    assert admitted(cli, minted["token"]).participant_id == minted["participantId"]
    by_ivs = json.loads(token("mint", "--stage-arn", stage, "--issuer", "ivs", "--json"))
    assert (by_ivs["issuer"], by_ivs["exchangeable"]) == ("ivs", False)


@pytest.mark.parametrize(
    ("options", "code", "complaint"),
    [
        (["--duration", "20161"], 1, "duration: is 20161 minutes; IVS allows 20160"),
        (["--user-id", "u" * 129], 1, "userId: has 129 characters; IVS allows 128"),
        (["--attribute", f"a={'x' * 1024}"], 1, "IVS allows 1024"),
        (["--capability", "SING"], 1, "must be PUBLISH or SUBSCRIBE"),
        (["--issuer", "aws"], 1, "must be auto, local or ivs"),
        (["--attribute", "a"], 2, "'a' is not NAME=VALUE"),
        (["--duration", "long"], 2, "'long' is not a valid integer"),
        (["--stage-arn", "stage"], 1, "stageArn: must look like arn:aws:ivs:"),
    ],
)
def test_what_cannot_be_asked_is_told(
    stage: str, token: Run, options: list[str], code: int, complaint: str
):
    said = token("mint", "--stage-arn", stage, *options, expect=code)
    assert complaint in said
    assert code == 2 or said.count("\n") == 1


@pytest.mark.parametrize("against", ["ring", "ivs"])
def test_a_good_token_is_found_good(
    stage: str, token: Run, monkeypatch: pytest.MonkeyPatch, against: str
):
    text = token("mint", "--stage-arn", stage, "--user-id", "ana")
    said = token("inspect", "--against", against, text.strip())
    assert said.startswith("participant token: IVS would accept it; signature valid\n")
    assert f'resource: "{stage}"' in said
    # From standard input as well, and as JSON.
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(f"  {text}\n".encode())))
    found = json.loads(token("inspect", "--against", against, "--json"))
    assert (found["acceptable"], found["signature"], found["findings"]) == (True, "valid", [])
    assert found["claims"]["user_id"] == "ana"


def test_a_signature_that_nobody_checked_is_not_said_to_be_good(stage: str, token: Run):
    text = token("mint", "--stage-arn", stage).strip()
    said = token("inspect", "--against", "nothing", text, expect=1)
    assert said.startswith("participant token: nothing found, but its signature was not checked")


def test_a_deleted_key_is_known_neither_to_the_ring_nor_to_ivs(cli: Cli, stage: str, token: Run):
    text = token("mint", "--stage-arn", stage).strip()
    cli("invalidate", cli.keys()["ACTIVE"]["keyId"])
    ring = token("inspect", text, expect=1)
    assert (
        "[unknown_kid] header.kid: the key ring (--against ivs asks IVS) has no public key" in ring
    )
    ivs = token("inspect", "--against", "ivs", text, expect=1)
    assert "[unknown_kid] header.kid: IVS has no public key under this ARN" in ivs


def encoded(part: dict[str, object], *, ascii_only: bool = True) -> str:
    raw = json.dumps(part, ensure_ascii=ascii_only).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def signed(header: dict[str, Any], claims: dict[str, Any], *, ascii_only: bool = True) -> str:
    """Return a token of a key that nobody knows."""
    signing_input = f"{encoded(header)}.{encoded(claims, ascii_only=ascii_only)}"
    key = ec.generate_private_key(ec.SECP384R1())
    signature = jwt.get_algorithm_by_name("ES384").sign(signing_input.encode(), key)
    return f"{signing_input}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"


@pytest.mark.parametrize(
    ("claims", "header", "finding"),
    [
        ({"iat": -7200, "exp": -3600}, {}, r"refused \[expired\] exp: expired 36\d\d s ago"),
        ({"iat": 900, "exp": 1800}, {}, r"\[future_iat\] iat: lies \d+ s in the future"),
        ({"exp": 15 * 86_400}, {}, r"refused \[ttl_too_long\] exp: .* IVS allows 1209600 s"),
        ({"whip_url": None}, {}, r"refused \[missing_claim\] whip_url: is missing"),
        ({"user_id": "José"}, {}, r"\[raw_utf8\] payload: .* web SDK does not decode it"),
        ({}, {"kid": "swapped"}, r"refused \[kid_swapped\] header.kid: account and Region"),
        ({}, {"kid": "unknown"}, r"refused \[unknown_kid\] header.kid: the key ring"),
        ({}, {}, r"refused \[bad_signature\] signature: does not verify"),
    ],
)
def test_what_ivs_would_refuse_is_said_in_words(
    stage: str, token: Run, claims: dict[str, Any], header: dict[str, str], finding: str
):
    good = token("mint", "--stage-arn", stage).strip()
    kid = jwt.get_unverified_header(good)["kid"]
    account, region = kid.split(":")[4], kid.split(":")[3]
    kids = {"swapped": kid.replace(f"{region}:{account}", f"{account}:{region}")}
    kids["unknown"] = f"{kid[:-1]}{'0' if kid[-1] != '0' else '1'}"
    said = jwt.decode(good, options={"verify_signature": False})
    for name, value in claims.items():
        if value is None:
            del said[name]
        else:
            said[name] = value if isinstance(value, str) else int(time.time()) + value
    head = {"alg": "ES384", "typ": "JWT", "kid": kids.get(header.get("kid", ""), kid)}
    printed = token("inspect", signed(head, said, ascii_only=False), expect=1)
    assert re.search(finding, printed), printed
    assert printed.startswith("participant token: IVS would not accept it")
