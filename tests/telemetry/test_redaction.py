"""No secret gets into a log line, wherever in the event it stands."""

from __future__ import annotations

import base64
import io
import json
import logging
import secrets

import jwt
import pytest
import structlog
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from tokensvc.telemetry.logging import configure_logging
from tokensvc.telemetry.redaction import REDACTED, redact


def _secrets() -> dict[str, str]:
    private_key = ec.generate_private_key(ec.SECP384R1())
    token = jwt.encode({"jti": "p", "user_id": "u"}, private_key, algorithm="ES384")
    pem = private_key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ).decode()
    return {
        "token": token,
        "unsigned": token.rpartition(".")[0],
        "api key": f"tsk_demo_{secrets.token_urlsafe(32)}",
        "private key": pem,
        "cut private key": pem[: len(pem) // 2],
        "bearer": f"Bearer {base64.b64encode(secrets.token_bytes(30)).decode()}",
    }


SECRETS = _secrets()


def _marks(secret: str) -> list[str]:
    """Pieces of a secret none of which may be found in the output."""
    return [part for part in secret.replace("\n", ".").split(".") if len(part) > 24] or [secret]


WRAPPERS = {
    "plain": lambda secret: secret,
    "in a sentence": lambda secret: f"refused: {secret!r}, sorry",
    "nested": lambda secret: {"a": [{"b": (secret,)}]},
    "a key": lambda secret: {secret: 1},
    "bytes": lambda secret: secret.encode(),
    "an exception": ValueError,
    "a repr": lambda secret: {"x": {secret}},
}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=list(WRAPPERS))
@pytest.mark.parametrize("secret", SECRETS.values(), ids=list(SECRETS))
def test_secrets_are_redacted_wherever_they_stand(secret: str, wrap: object) -> None:
    shown = json.dumps(redact(wrap(secret)))  # type: ignore[operator]
    assert REDACTED in shown
    for mark in _marks(secret.removeprefix("Bearer ")):
        assert mark not in shown


@pytest.mark.parametrize("name", ["authorization", "Authorization", "Cookie", "password", "token"])
def test_values_under_secret_names_are_redacted_at_any_depth(name: str) -> None:
    assert redact({"headers": [{name: "opaque"}]}) == {"headers": [{name: REDACTED}]}


def test_what_is_nested_too_deep_to_be_looked_at_is_not_shown() -> None:
    deep: object = {"authorization": "opaque"}
    for _ in range(20):
        deep = [deep]
    assert "opaque" not in json.dumps(redact(deep))


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(alphabet="abc ,:{}_-."),
        lambda children: st.lists(children) | st.dictionaries(st.text("abc"), children),
        max_leaves=10,
    )
)
def test_what_holds_no_secret_stays_as_it_is(value: object) -> None:
    assert redact({"facts": value}) == {"facts": value}


def _fail(secret: str) -> None:
    raise RuntimeError(f"cannot use {secret}")


@pytest.mark.parametrize("log_format", ["json", "console"])
@pytest.mark.parametrize("secret", SECRETS.values(), ids=list(SECRETS))
def test_no_log_line_of_ours_or_of_a_library_holds_a_secret(secret: str, log_format: str) -> None:
    output = io.StringIO()
    configure_logging("debug", log_format, output)
    ours, library = structlog.get_logger("tokensvc.x"), logging.getLogger("uvicorn.error")
    try:
        _fail(secret)
    except RuntimeError:
        ours.exception("failed", detail=secret, headers={"authorization": secret})
        library.exception("failed with %s", secret)
    with structlog.contextvars.bound_contextvars(note=secret):
        ours.info(secret)
    library.warning("headers: %r", [("authorization", secret)])
    text = output.getvalue()
    assert text.count(REDACTED) >= 6
    for mark in _marks(secret.removeprefix("Bearer ")):
        assert mark not in text
