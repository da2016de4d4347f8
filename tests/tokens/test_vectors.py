"""The vectors of tests/vectors hold for both signers, for PyJWT, and for Node.

Promise: a token handed out says what was asked, and verifies wherever ES384 is known.
"""

import json
import shutil
import subprocess
from base64 import urlsafe_b64decode
from pathlib import Path

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from tokensvc.signing import SigningKey, load_signer
from tokensvc.tokens.claims import StageEndpoints, participant_payload
from tokensvc.tokens.inspect import inspect_token
from tokensvc.tokens.jws import header_segment, payload_segment
from tokensvc.tokens.validate import parse_token_request

FOLDER = Path(__file__).parent.parent / "vectors"
DATA = json.loads((FOLDER / "participant_tokens.json").read_text("utf-8"))
VECTORS = DATA["vectors"]
REGIONS = ("eu-central-1",)


def number(segment: str) -> int:
    return int.from_bytes(urlsafe_b64decode(segment + "=="), "big")


@pytest.fixture(scope="module")
def private_key() -> ec.EllipticCurvePrivateKey:
    return ec.derive_private_key(number(DATA["key"]["d"]), ec.SECP384R1())


@pytest.fixture(scope="module", params=["aws-lc", "openssl"])
def signing_key(request, private_key) -> SigningKey:
    der = private_key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    return SigningKey("vectors", DATA["kid"], load_signer(der, request.param))


def payload_of(vector) -> tuple[bytes, bytes]:
    request = parse_token_request(vector["request"], regions=REGIONS)
    return participant_payload(
        request,
        StageEndpoints(**DATA["endpoints"]),
        participant_id=vector["participantId"],
        iat=vector["iat"],
        exp=vector["exp"],
    )


def test_the_key_is_the_published_one(private_key):
    public = private_key.public_key().public_numbers()
    assert (public.x, public.y) == (number(DATA["key"]["x"]), number(DATA["key"]["y"]))


def test_header_segment():
    assert header_segment(DATA["kid"]).decode() == DATA["headerSegment"]


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_payload_segment(vector):
    segment = b"".join(payload_of(vector))
    payload = urlsafe_b64decode(segment + b"==")
    assert payload.isascii()
    assert json.loads(payload) == vector["claims"]
    assert segment.decode() == vector["payloadSegment"]
    assert segment == payload_segment(vector["claims"])


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_pyjwt_verifies_and_inspection_agrees(vector, signing_key, private_key):
    token = signing_key.mint_payload(*payload_of(vector))
    header, payload, signature = token.split(".")
    assert (header, payload) == (DATA["headerSegment"], vector["payloadSegment"])
    assert len(signature) == 128
    assert "=" not in token
    decoded = jwt.decode(
        token,
        private_key.public_key(),
        algorithms=["ES384"],
        options={"verify_exp": False, "verify_iat": False},
    )
    assert decoded == vector["claims"]
    pem = (
        private_key.public_key()
        .public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        .decode()
    )
    inspection = inspect_token(token, now=vector["iat"], public_key_for=lambda _kid: pem)
    assert inspection.acceptable, inspection.findings


def test_node_verifies_and_reads_as_the_web_sdk_does(signing_key):
    node = shutil.which("node")
    assert node, "Node is missing: `make test` installs it (.ci/ensure-browser)"
    tokens = [signing_key.mint_payload(*payload_of(vector)) for vector in VECTORS]
    public = {name: DATA["key"][name] for name in ("kty", "crv", "x", "y")}
    answer = subprocess.run(
        [node, str(FOLDER / "verify.mjs")],
        input=json.dumps({"key": public, "tokens": tokens}),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    verdicts = json.loads(answer.stdout)
    assert len(verdicts) == len(VECTORS)
    for verdict, vector in zip(verdicts, VECTORS, strict=True):
        assert verdict["valid"], vector["name"]
        assert verdict["signatureBytes"] == 96
        assert verdict["header"] == {"alg": "ES384", "typ": "JWT", "kid": DATA["kid"]}
        assert verdict["claims"] == vector["claims"]


def test_node_refuses_a_changed_token(signing_key):
    token = signing_key.mint_payload(*payload_of(VECTORS[0]))
    header, payload, signature = token.split(".")
    flipped = ("B" if signature[0] == "A" else "A") + signature[1:]
    public = {name: DATA["key"][name] for name in ("kty", "crv", "x", "y")}
    answer = subprocess.run(
        [shutil.which("node") or "node", str(FOLDER / "verify.mjs")],
        input=json.dumps({"key": public, "tokens": [f"{header}.{payload}.{flipped}"]}),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert json.loads(answer.stdout)[0]["valid"] is False
