"""How fast this machine signs, and how much of that a mint keeps; `tokensvc bench` and `make bench` ask.

Raw signatures are those of the libraries alone, with nothing of ours around them. The mint is the
service's own, from the request's fields to the signed token and its ledger row, without HTTP and
without the store. Keys are made here and thrown away; nothing else is touched.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha384
from statistics import median
from time import perf_counter, process_time, time
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import load_der_private_key

from tokensvc.issuing.issued import Identity, signed_here
from tokensvc.signing import SigningKey, generate_private_key, load_signer
from tokensvc.tokens.claims import StageEndpoints
from tokensvc.tokens.ids import new_participant_id
from tokensvc.tokens.validate import parse_token_request

__all__ = ["AWS_LC", "MINT", "OPENSSL", "Rate", "measure", "median_rate", "ratio", "subjects"]

AWS_LC: Final = "raw AWS-LC signatures"
OPENSSL: Final = "raw OpenSSL signatures"
MINT: Final = "mints in process"

_CALLS_BETWEEN_LOOKS: Final = 50
"""At the clock: 5 ms of signatures, and so few looks that they cost nothing."""

_DIGEST: Final = sha384(bytes(700)).digest()
_REGION: Final = "eu-central-1"
_ARN: Final = f"arn:aws:ivs:{_REGION}:123456789012"
_ENDPOINTS: Final = StageEndpoints(
    "wss://events.example.test", "https://f9908446.whip.example.test"
)
_BODY: Final = {
    "stageArn": f"{_ARN}:stage/LSC8P4Bq1vGb",
    "userId": "user-1",
    "attributes": {"team": "red"},
}


@dataclass(frozen=True, slots=True)
class Rate:
    """Calls a second, and seconds of processor time that one call took."""

    per_second: float
    cpu_seconds: float


def subjects() -> Mapping[str, Callable[[], object]]:
    """Return what can be measured here, by name; no AWS-LC where awscrt is not installed."""
    der = generate_private_key()
    found: dict[str, Callable[[], object]] = {}
    try:
        from awscrt.crypto import EC
    except ImportError:
        pass  # The service then signs with OpenSSL, and so does the mint below.
    else:
        aws_lc = EC.new_key_from_der_data(der)
        found[AWS_LC] = lambda: aws_lc.sign(_DIGEST)
    openssl = load_der_private_key(der, None)
    assert isinstance(openssl, ec.EllipticCurvePrivateKey)  # noqa: S101 - for the type checker
    algorithm = ec.ECDSA(Prehashed(SHA384()))
    found[OPENSSL] = lambda: openssl.sign(_DIGEST, algorithm)
    key = SigningKey("bench", f"{_ARN}:public-key/f99cde61-c2b0-4df3", load_signer(der))

    def mint() -> object:
        request = parse_token_request(_BODY, regions=(_REGION,))
        iat = int(time())
        identity = Identity(new_participant_id(), iat, iat + request.duration * 60)
        return signed_here(request, _ENDPOINTS, identity, key, "bench")

    found[MINT] = mint
    return found


def measure(
    calls: Mapping[str, Callable[[], object]], *, rounds: int, seconds: float
) -> dict[str, list[Rate]]:
    """Call each for `seconds`, `rounds` times, and return what each round gave, by name.

    The rounds are interleaved, so that a moment in which the machine does something else meets every
    figure and not one.
    """
    figures: dict[str, list[Rate]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            figures[name].append(_rate(call, seconds))
    return figures


def ratio(rates: Sequence[Rate], base: Sequence[Rate]) -> float:
    """Return how many of these calls there were for one of `base`: the median of the rounds' ratios."""
    pairs = zip(rates, base, strict=True)
    return median(rate.per_second / reference.per_second for rate, reference in pairs)


def median_rate(rates: Sequence[Rate]) -> float:
    """Return the median of the rounds, in calls a second."""
    return median(rate.per_second for rate in rates)


def _rate(call: Callable[[], object], seconds: float) -> Rate:
    calls = 0
    cpu = process_time()
    started = now = perf_counter()
    while now < started + seconds:
        for _ in range(_CALLS_BETWEEN_LOOKS):
            call()
        calls += _CALLS_BETWEEN_LOOKS
        now = perf_counter()
    return Rate(calls / (now - started), (process_time() - cpu) / calls)
