"""The signing core: signatures that verify, one object for kid and key, no way out for a secret."""

import copy
import gc
import pickle
import sys
import weakref
from base64 import urlsafe_b64decode

import jwt
import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import given
from hypothesis import strategies as st

from tokensvc.errors import ConfigurationError, KeyMismatchError
from tokensvc.signing import (
    SigningKey,
    generate_private_key,
    load_public_key,
    load_signer,
    public_key_der,
    public_key_pem,
    self_check,
    signatures_per_second,
)
from tokensvc.tokens.arn import InvalidArnError
from tokensvc.tokens.jws import header_segment

KID = "arn:aws:ivs:eu-central-1:123456789012:public-key/f99cde61-c2b0-4df3-8941-ca7d38acca1a"
BACKENDS = ["aws-lc", "openssl"]
DER = generate_private_key()
PEM = public_key_pem(DER)


def verify(signature: bytes, message: bytes) -> None:
    der = encode_dss_signature(
        int.from_bytes(signature[:48], "big"), int.from_bytes(signature[48:], "big")
    )
    load_public_key(PEM).verify(der, message, ec.ECDSA(SHA384()))


@pytest.mark.parametrize("backend", BACKENDS)
@given(message=st.binary(max_size=2000))
def test_every_signature_is_96_bytes_and_verifies(backend, message):
    signature = load_signer(DER, backend).sign(message)
    assert len(signature) == 96
    verify(signature, message)
    with pytest.raises(InvalidSignature):
        verify(signature, message + b"x")


@pytest.mark.parametrize("backend", BACKENDS)
@given(beginning=st.binary(max_size=500), rests=st.lists(st.binary(max_size=500), max_size=3))
def test_inputs_that_begin_alike_are_signed_whole(backend, beginning, rests):
    sign = load_signer(DER, backend).after(beginning)
    for rest in [*rests, b"", *rests]:
        signature = sign(rest)
        assert len(signature) == 96
        verify(signature, beginning + rest)
        with pytest.raises(InvalidSignature):
            verify(signature, beginning + rest + b"x")


segments = st.text("abcXYZ019-_", max_size=300).map(str.encode)


@pytest.mark.parametrize("backend", BACKENDS)
@given(shared=st.lists(segments, min_size=1, max_size=4), rests=st.lists(segments, max_size=8))
def test_what_payloads_share_is_signed_with_the_rest_of_each(backend, shared, rests):
    keys = [SigningKey(f"k{n}", f"{KID[:-1]}{n}", load_signer(DER, backend)) for n in range(2)]
    for number, rest in enumerate(rests):
        key, beginning = keys[number % 2], shared[number % len(shared)]
        token = key.mint_payload(beginning, rest).encode()
        signed, _, signature = token.rpartition(b".")
        assert signed == header_segment(key.arn) + b"." + beginning + rest
        verify(urlsafe_b64decode(signature), signed)


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_payloads_share_is_kept_within_bounds_and_goes_with_the_key(backend):
    class Counting:
        made = 0

        def __init__(self) -> None:
            self.signer = load_signer(DER, backend)

        def after(self, beginning: bytes):
            Counting.made += 1
            return self.signer.after(beginning)

    key = SigningKey("k1", KID, Counting())  # type: ignore[arg-type]
    signer = weakref.ref(key.signer)
    for _ in range(2):
        for number in range(512):
            key.mint_payload(b"%d" % number, b"")
    assert Counting.made == 512
    key.mint_payload(b"more", b"")
    key.mint_payload(b"0", b"")
    assert Counting.made == 514
    del key
    gc.collect()
    assert signer() is None


@pytest.mark.parametrize("backend", BACKENDS)
def test_short_numbers_are_padded(backend):
    # One in 256 signatures has an R with a leading zero byte; 2,000 hold some with near certainty.
    signer = load_signer(DER, backend)
    signatures = [signer.sign(number.to_bytes(4, "big")) for number in range(2000)]
    assert {len(signature) for signature in signatures} == {96}
    short = next(
        i for i, signature in enumerate(signatures) if signature[0] == 0 or signature[48] == 0
    )
    verify(signatures[short], short.to_bytes(4, "big"))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_minted_token_verifies_with_pyjwt(backend):
    key = SigningKey("k1", KID, load_signer(DER, backend))
    token = key.mint({"user_id": "Zoë"})
    assert jwt.decode(token, load_public_key(PEM), algorithms=["ES384"]) == {"user_id": "Zoë"}
    assert jwt.get_unverified_header(token) == {"alg": "ES384", "typ": "JWT", "kid": KID}
    assert (key.backend, key.region, key.arn, key.key_id) == (backend, "eu-central-1", KID, "k1")
    assert key.public_key_der == public_key_der(DER)


def test_aws_lc_is_the_default():
    assert load_signer(DER).backend == "aws-lc"


def test_openssl_signs_where_awscrt_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "awscrt", None)
    monkeypatch.setitem(sys.modules, "awscrt.crypto", None)
    monkeypatch.delitem(sys.modules, "tokensvc.signing.awslc", raising=False)
    assert load_signer(DER).backend == "openssl"
    with pytest.raises(ConfigurationError, match="awscrt"):
        load_signer(DER, "aws-lc")


def other_keys():
    p256 = ec.generate_private_key(ec.SECP256R1())
    ed = ed25519.Ed25519PrivateKey.generate()
    for key in (p256, ed):
        yield key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    yield b"not a key"
    yield b""


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("der", list(other_keys()), ids=["P-256", "Ed25519", "noise", "empty"])
def test_other_keys_are_refused(backend, der):
    with pytest.raises(ValueError, match=r"P-384|PKCS"):
        load_signer(der, backend)


def test_a_key_and_its_kid_cannot_be_taken_apart():
    key = SigningKey("k1", KID, load_signer(DER))
    for change in (
        lambda: setattr(key, "_arn", None),
        lambda: setattr(key, "_signer", None),
        lambda: setattr(key, "arn", KID),
        lambda: delattr(key, "_signer"),
    ):
        with pytest.raises(AttributeError):
            change()
    with pytest.raises(InvalidArnError):
        SigningKey("k1", "arn:aws:ivs:eu-central-1:123456789012:stage/abc", load_signer(DER))


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_repr_pickle_or_copy_of_a_private_key(backend):
    signer = load_signer(DER, backend)
    for holder in (signer, SigningKey("k1", KID, signer)):
        assert DER.hex() not in repr(holder)
        assert str(DER) not in repr(holder)
        assert repr(holder).startswith("<")
        assert len(repr(holder)) < 140
        for way in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(TypeError, match="private key"):
                way(holder)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_self_check_passes_for_the_imported_key(backend):
    self_check(SigningKey("k1", KID, load_signer(DER, backend)), PEM)
    self_check(SigningKey("k1", KID, load_signer(DER, backend)), PEM.replace("\n", "\r\n"))


def test_the_self_check_refuses_another_imported_key():
    key = SigningKey("k1", KID, load_signer(DER))
    with pytest.raises(KeyMismatchError, match="another public key"):
        self_check(key, public_key_pem(generate_private_key()))
    with pytest.raises(KeyMismatchError, match="something else"):
        self_check(key, "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n")


class LyingSigner:
    """Claims one public key and signs with another, as a mixed-up key store would."""

    backend = "openssl"

    def __init__(self) -> None:
        self.public_key_der = public_key_der(DER)
        self.after = load_signer(generate_private_key()).after


class BrokenSigner(LyingSigner):
    """Returns noise."""

    def __init__(self) -> None:
        super().__init__()
        self.after = lambda _beginning: lambda _rest: bytes(96)


@pytest.mark.parametrize("signer", [LyingSigner(), BrokenSigner()])
def test_the_self_check_refuses_a_signature_that_does_not_verify(signer):
    with pytest.raises(KeyMismatchError, match="does not verify"):
        self_check(SigningKey("k1", KID, signer), PEM)


def test_the_measured_speed_is_a_rate():
    assert signatures_per_second(load_signer(DER)) > 0
