"""What must hold of token inspection, whatever it is given: over HTTP, on a terminal, and in itself.

An input is one byte that says how to make a token of the rest, so that a fuzzer can change JSON instead
of base64url: `t`, the rest is the token; `u` and `s`, the rest is header, payload and signature, each on
a line (the payload is the last but one). `u` takes the signature as it is; `s` signs with the key of the
test vectors instead, so that what lies behind the signature's check is reached too.

Two oracles: nothing but an Inspection comes out, bounded and fit to be sent and printed; and the
emulator's verification, which shares no code with inspection, takes a token only where inspection does,
and takes whatever inspection has nothing to say against.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
from collections.abc import Coroutine
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import jwt
import msgspec
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tokensvc.cli.token import _print_inspection
from tokensvc.emulator.verification import TokenRefusedError, TokenVerifier
from tokensvc.errors import IvsNotFoundError, IvsUnavailableError
from tokensvc.http.inspection import inspection_of
from tokensvc.http.structs import InspectionAnswer
from tokensvc.keyring.record import KeyPhase
from tokensvc.tokens.inspect import inspect_token
from tokensvc.tokens.limits import MAX_TOKEN_CHARS

__all__ = ["CORPUS", "look_into", "token_of"]

CORPUS: Final = Path(__file__).with_name("corpus")
NOW: Final = 1_790_000_100
REGION: Final = "eu-central-1"
EVENTS_URL: Final = "wss://global.events.live-video.net"
WHIP_URL: Final = "https://f99084460c35.whip.example.test"
STAGE: Final = f"arn:aws:ivs:{REGION}:123456789012:stage/LSC8P4Bq1vGb"
VECTORS: Final = json.loads(
    (Path(__file__).parents[1] / "vectors/participant_tokens.json").read_text("utf-8")
)
KID: Final[str] = VECTORS["kid"]
_KEY: Final = jwt.PyJWK.from_dict(VECTORS["key"], "ES384").key
assert isinstance(_KEY, EllipticCurvePrivateKey)
PEM: Final = (
    _KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
)
_ES384: Final = jwt.algorithms.ECAlgorithm(jwt.algorithms.ECAlgorithm.SHA384)

MAX_ANSWER_BYTES: Final = 64 * MAX_TOKEN_CHARS
MAX_DETAIL_CHARS: Final = 400
MAX_WHERE_CHARS: Final = 100


class _World:
    """IVS holds one stage and one key, and has issued no token itself."""

    def now(self) -> float:
        return NOW

    def stage(self, arn: str, /) -> Any:
        return SimpleNamespace(whip_url=WHIP_URL) if arn == STAGE else None

    def public_key(self, arn: str, /) -> Any:
        return SimpleNamespace(public_key_pem=PEM) if arn == KID else None

    def issued_token(self, text: str, /) -> Any:
        return None


_REVOCATIONS: Final = SimpleNamespace(
    is_disconnected=lambda stage_arn, participant_id: False,
    is_revoked=lambda region, token_id: False,
)
EMULATOR: Final = TokenVerifier(_World(), _REVOCATIONS, events_url=EVENTS_URL)


class _Ivs:
    async def get_public_key(self, region: str, arn: str) -> Any:
        raise IvsNotFoundError("none") if arn.endswith("a") else IvsUnavailableError("down")


_RING: Final = SimpleNamespace(
    key_of=lambda arn: (
        SimpleNamespace(phase=KeyPhase.ACTIVE, public_key_pem=PEM) if arn == KID else None
    )
)
_SERVICE: Final[Any] = SimpleNamespace(
    clock=lambda: float(NOW), view=lambda: _RING, regions=(REGION,), public_keys=_Ivs()
)


def look_into(data: bytes) -> None:
    """Inspect the token that `data` makes; AssertionError where something does not hold."""
    text = token_of(data)
    found = inspect_token(text, now=NOW, public_key_for=lambda kid: PEM if kid == KID else None)
    assert len({*found.findings}) == len(found.findings), "a finding twice"
    for finding in found.findings:
        assert len(finding.detail) <= MAX_DETAIL_CHARS, finding.code
        assert len(finding.where) <= MAX_WHERE_CHARS, finding.code
    assert found.findings or found.acceptable or found.signature == "not_checked"

    answer = _now(inspection_of(text, _SERVICE))
    body = msgspec.json.encode(answer)
    assert len(body) <= MAX_ANSWER_BYTES, len(body)
    msgspec.json.decode(body, type=InspectionAnswer)
    assert answer.acceptable == found.acceptable

    with contextlib.redirect_stdout(io.StringIO()) as terminal:
        _print_inspection(found)
    driven = {char for char in terminal.getvalue() if not char.isprintable()} - {"\n"}
    assert not driven, f"a terminal would be sent {driven!r}"

    kind, refused_for = _at_ivs(text)
    if kind is not None:
        assert found.acceptable, f"the emulator takes it, and inspection says {found.findings}"
        assert found.kind == kind
    elif found.acceptable and not found.findings:
        # Which stages there are, and where, inspection does not know.
        assert refused_for in ("STAGE_DELETED", "endpoints"), refused_for


def _at_ivs(text: str) -> tuple[str | None, str]:
    """Return as what the emulator takes the token, or None and why not as a participant's."""
    refused = ""
    for kind, judge in (("connection", EMULATOR.connection), ("participant", EMULATOR.participant)):
        try:
            judge(text)
        except TokenRefusedError as error:
            refused = "endpoints" if "stage's endpoints" in error.message else error.code
        else:
            return kind, ""
    return None, refused


def token_of(data: bytes) -> str:
    """Return the token that an input makes."""
    form, rest = data[:1], data[1:]
    if form not in (b"u", b"s"):
        return rest.decode("utf-8", "surrogateescape")
    header, _, rest = rest.partition(b"\n")
    payload, _, signature = rest.rpartition(b"\n")
    signed = f"{_segment(header)}.{_segment(payload)}"
    if form == b"s":
        signature = _ES384.sign(signed.encode(), _KEY)
    return f"{signed}.{_segment(signature)}"


def _segment(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def _now(work: Coroutine[Any, Any, InspectionAnswer]) -> InspectionAnswer:
    # Nothing here waits, so there is no need of a loop.
    try:
        work.send(None)
    except StopIteration as done:
        return done.value  # type: ignore[no-any-return]
    raise AssertionError("inspection waited for something")
