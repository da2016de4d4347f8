"""Raw signatures and mints in one process, on one core."""

from __future__ import annotations

from hashlib import sha384
from time import perf_counter, process_time, time

from awscrt.crypto import EC

from tokensvc.signing import SigningKey, generate_private_key, load_signer
from tokensvc.tokens.claims import StageEndpoints, participant_claims
from tokensvc.tokens.ids import new_participant_id
from tokensvc.tokens.validate import parse_token_request

__all__ = ["measure", "raw_signature_cpu", "raw_signatures"]

_CALLS = 3000
_STAGE = "arn:aws:ivs:eu-central-1:123456789012:stage/LSC8P4Bq1vGb"
_KID = "arn:aws:ivs:eu-central-1:123456789012:public-key/f99cde61-c2b0-4df3-8941-ca7d38acca1a"
_ENDPOINTS = StageEndpoints("wss://events.example.test", "https://f99084460c35.whip.example.test")


def _rate(call, calls: int) -> float:
    started = perf_counter()
    for _ in range(calls):
        call()
    return calls / (perf_counter() - started)


def raw_signatures() -> float:
    """Return AWS-LC's raw signatures a second on this core, now."""
    key = EC.new_key_from_der_data(generate_private_key())
    digest = sha384(bytes(700)).digest()
    return _rate(lambda: key.sign(digest), _CALLS)


def raw_signature_cpu() -> float:
    """Return the seconds of processor time that one of AWS-LC's raw signatures takes here, now."""
    key = EC.new_key_from_der_data(generate_private_key())
    digest = sha384(bytes(700)).digest()
    started = process_time()
    for _ in range(_CALLS):
        key.sign(digest)
    return (process_time() - started) / _CALLS


def measure(rounds: int) -> dict[str, list[float]]:
    """Return calls a second, by what was called."""
    der = generate_private_key()
    raw_key = EC.new_key_from_der_data(der)
    digest = sha384(bytes(700)).digest()
    openssl = load_signer(der, "openssl")
    key = SigningKey("bench", _KID, load_signer(der, "aws-lc"))
    body = {"stageArn": _STAGE, "userId": "ana", "attributes": {"team": "red"}}

    def mint() -> str:
        request = parse_token_request(body, regions=("eu-central-1",))
        now = int(time())
        return key.mint(
            participant_claims(
                request, _ENDPOINTS, participant_id=new_participant_id(), iat=now, exp=now + 60
            )
        )

    calls = {
        "raw AWS-LC signatures": (lambda: raw_key.sign(digest), _CALLS),
        "raw OpenSSL signatures": (lambda: openssl.sign(digest), _CALLS // 2),
        "mints in process": (mint, _CALLS),
    }
    figures: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        # Interleaved, so that a noisy moment hits every figure and not one.
        for name, (call, count) in calls.items():
            figures[name].append(_rate(call, count))
    return figures
