"""Promise 1, a token handed out joins: shown with the SDK that applications use, and what it refuses."""

from __future__ import annotations

import base64
import json
import time
from typing import Any

import pytest

from tests.e2e.sdk import SdkBrowser, SdkPage
from tests.e2e.support import RunningDev
from tests.e2e.tokens import ForeignKey, claims_of

TOKEN_MALFORMED, TOKEN_EXPIRED, STAGE_DELETED, PARTICIPANT_DISCONNECTED = 1, 2, 9, 10


def segment(content: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(content).encode()).rstrip(b"=").decode()


def test_minted_token_joins_with_user_id_and_attributes_as_asked(
    dev: RunningDev, sdk: SdkPage
) -> None:
    asked = {
        "userId": 'Zoë 名前 😀 "quoted" \\ and\ttab',
        "attributes": {"größe": "élan", "emoji 🎮": "🏴‍☠️", "leer": "", 'quote"': "\\n\n"},
    }
    minted = dev.mint(**asked)
    joined = sdk.join("stage", minted["token"])
    assert joined == {
        "participant": {
            "id": minted["participantId"],
            **asked,
            "capabilities": ["publish", "subscribe"],
            "isLocal": True,
        }
    }
    assert minted["issuer"] == "local"


def test_token_with_the_least_that_can_be_asked_joins(dev: RunningDev, sdk: SdkPage) -> None:
    minted = dev.mint()
    participant = sdk.join("stage", minted["token"])["participant"]
    assert participant["id"] == minted["participantId"]
    assert participant["attributes"] == {}


@pytest.mark.parametrize(
    "capabilities", [["PUBLISH"], ["SUBSCRIBE"], []], ids=lambda names: "+".join(names) or "none"
)
def test_the_sdk_sees_the_capabilities_asked(
    dev: RunningDev, sdk: SdkPage, capabilities: list[str]
) -> None:
    minted = dev.mint(capabilities=capabilities)
    participant = sdk.join("stage", minted["token"])["participant"]
    assert participant["capabilities"] == [name.lower() for name in capabilities]


def test_every_good_token_of_a_batch_joins_beside_a_refused_item(
    dev: RunningDev, sdk: SdkPage
) -> None:
    items = [{"userId": "one"}, {"userId": "x" * 129}, {"userId": "drei", "duration": 1}]
    with dev.client() as client:
        answer = client.post(
            "/v1/tokens/batch", json={"defaults": {"stageArn": dev.stage_arn}, "tokens": items}
        ).json()
    first, refused, third = answer["tokens"]
    assert "problem" in refused
    for number, minted in enumerate([first, third]):
        participant = sdk.join(f"stage{number}", minted["token"])["participant"]
        assert participant["userId"] == minted["userId"]


def test_token_that_ivs_issued_joins_too(dev: RunningDev, sdk: SdkPage) -> None:
    minted = dev.mint(userId="fallback", issuer="ivs")
    assert minted["issuer"] == "ivs"
    assert sdk.join("stage", minted["token"])["participant"]["id"] == minted["participantId"]


def test_changed_payload_is_refused_as_malformed(dev: RunningDev, sdk: SdkPage) -> None:
    minted = dev.mint(userId="ana", capabilities=["SUBSCRIBE"])
    header, _, signature = minted["token"].split(".")
    more = claims_of(minted["token"]) | {
        "capabilities": {"allow_publish": True, "allow_subscribe": True}
    }
    answer = sdk.join("stage", f"{header}.{segment(more)}.{signature}")
    assert answer["error"]["code"] == TOKEN_MALFORMED
    assert any("TOKEN_INVALID" in frame for frame in sdk.frames), "IVS's part never saw it"


def test_changed_signature_is_refused_as_malformed(dev: RunningDev, sdk: SdkPage) -> None:
    token = dev.mint()["token"]
    head, signature = token.rsplit(".", 1)
    other = ("B" if signature[0] == "A" else "A") + signature[1:]
    assert sdk.join("stage", f"{head}.{other}")["error"]["code"] == TOKEN_MALFORMED
    assert any("TOKEN_INVALID" in frame for frame in sdk.frames)


def test_token_signed_by_a_key_that_was_never_imported_is_refused(
    dev: RunningDev, sdk: SdkPage
) -> None:
    minted = dev.mint()
    never_imported = ForeignKey.generate(minted["keyArn"].rsplit("/", 1)[0] + "/Unknown1")
    answer = sdk.join("stage", never_imported.sign(claims_of(minted["token"])))
    assert answer["error"]["code"] == TOKEN_MALFORMED
    assert any("TOKEN_INVALID" in frame for frame in sdk.frames)


def test_token_under_the_services_kid_but_another_key_is_refused(
    dev: RunningDev, sdk: SdkPage
) -> None:
    minted = dev.mint()
    imposter = ForeignKey.generate(minted["keyArn"])
    answer = sdk.join("stage", imposter.sign(claims_of(minted["token"])))
    assert answer["error"]["code"] == TOKEN_MALFORMED


def test_tests_own_key_signs_what_joins(
    dev: RunningDev, sdk: SdkPage, imported_key: ForeignKey
) -> None:
    """So that the refusals of this key's tokens below are for what those tests say."""
    claims = claims_of(dev.mint()["token"]) | {"jti": "signed-by-the-test"}
    assert sdk.join("stage", imported_key.sign(claims))["participant"]["id"] == "signed-by-the-test"


def test_sdk_refuses_an_expired_token_by_its_own_clock(
    dev: RunningDev, browser: SdkBrowser
) -> None:
    minted = dev.mint(duration=1)
    expires = claims_of(minted["token"])["exp"]
    with browser.page(now=expires - 1) as in_time:
        assert "participant" in in_time.join("stage", minted["token"])
    with browser.page(now=expires) as too_late:
        assert too_late.join("stage", minted["token"])["error"]["code"] == TOKEN_EXPIRED
        assert too_late.frames == []


def test_ivs_refuses_an_expired_token_to_a_client_whose_clock_is_slow(
    dev: RunningDev, browser: SdkBrowser, imported_key: ForeignKey
) -> None:
    now = int(time.time())
    claims = claims_of(dev.mint()["token"]) | {"iat": now - 7200, "exp": now - 3600}
    with browser.page(now=now - 7000) as slow:
        answer = slow.join("stage", imported_key.sign(claims))
        assert answer["error"]["code"] == TOKEN_EXPIRED
        assert any("TOKEN_EXPIRED" in frame for frame in slow.frames)


def test_participant_disconnected_through_ivs_is_told_and_kept_out(
    dev: RunningDev, sdk: SdkPage
) -> None:
    minted = dev.mint(userId="rude")
    assert "participant" in sdk.join("stage", minted["token"])
    dev.ivs().disconnect_participant(
        stageArn=dev.stage_arn, participantId=minted["participantId"], reason="rude"
    )
    assert sdk.left("stage") == "participant-disconnected"
    assert sdk.join("again", minted["token"])["error"]["code"] == PARTICIPANT_DISCONNECTED


def test_disconnecting_one_participant_leaves_others_on_the_stage(
    dev: RunningDev, sdk: SdkPage
) -> None:
    rude, kind = dev.mint(userId="rude"), dev.mint(userId="kind")
    sdk.join("rude", rude["token"])
    sdk.join("kind", kind["token"])
    dev.ivs().disconnect_participant(
        stageArn=dev.stage_arn, participantId=rude["participantId"], reason="rude"
    )
    assert sdk.left("rude") == "participant-disconnected"
    assert not any("left" in event for event in sdk.events("kind"))


def test_second_device_with_the_same_token_takes_over(dev: RunningDev, sdk: SdkPage) -> None:
    minted = dev.mint()
    assert "participant" in sdk.join("first", minted["token"])
    assert "participant" in sdk.join("second", minted["token"])
    assert sdk.left("first") == "token-reused"
    assert not any("left" in event for event in sdk.events("second"))


def test_deleted_stage_is_left_and_not_joined_again(dev: RunningDev, sdk: SdkPage) -> None:
    ivs = dev.ivs()
    stage_arn = ivs.create_stage(name="short-lived")["stage"]["arn"]
    minted = dev.mint(stageArn=stage_arn)
    assert "participant" in sdk.join("stage", minted["token"])
    ivs.delete_stage(arn=stage_arn)
    assert sdk.left("stage") == "stage-deleted"
    assert sdk.join("again", minted["token"])["error"]["code"] == STAGE_DELETED


def test_ivs_tells_who_is_on_the_stage(dev: RunningDev, sdk: SdkPage) -> None:
    ivs = dev.ivs()
    stage_arn = ivs.create_stage(name="looked-into")["stage"]["arn"]
    minted = dev.mint(stageArn=stage_arn, userId="ana")
    sdk.join("stage", minted["token"])
    session = ivs.get_stage(arn=stage_arn)["stage"]["activeSessionId"]
    listed = ivs.list_participants(stageArn=stage_arn, sessionId=session)["participants"]
    assert [(who["participantId"], who["userId"], who["state"]) for who in listed] == [
        (minted["participantId"], "ana", "CONNECTED")
    ]
