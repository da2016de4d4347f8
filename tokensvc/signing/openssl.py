"""ES384 with OpenSSL, through `cryptography`: the alternative, and the one that needs no awscrt."""

from __future__ import annotations

from collections.abc import Callable

from cryptography.hazmat.primitives.asymmetric.ec import ECDSA
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA384

from tokensvc.signing.keys import load_private_key, public_key_der
from tokensvc.signing.signer import Backend, SecretHolder

__all__ = ["OpensslSigner"]

_COORDINATE_BYTES = 48


class OpensslSigner(SecretHolder):
    """A `Signer` over OpenSSL."""

    __slots__ = ("_algorithm", "_key", "_public_key_der")

    def __init__(self, private_key_der: bytes) -> None:
        """Load a PKCS #8 DER P-384 key; ValueError for anything else."""
        self._public_key_der = public_key_der(private_key_der)
        self._key = load_private_key(private_key_der)
        self._algorithm = ECDSA(SHA384())

    @property
    def backend(self) -> Backend:
        """`openssl`."""
        return "openssl"

    @property
    def public_key_der(self) -> bytes:
        """The public half as a DER SubjectPublicKeyInfo."""
        return self._public_key_der

    def sign(self, signing_input: bytes) -> bytes:
        """Return R || S, 96 bytes."""
        r, s = decode_dss_signature(self._key.sign(signing_input, self._algorithm))
        return r.to_bytes(_COORDINATE_BYTES, "big") + s.to_bytes(_COORDINATE_BYTES, "big")

    def after(self, beginning: bytes) -> Callable[[bytes], bytes]:
        """Return what signs `beginning` and the rest that it is given."""
        return lambda rest: self.sign(beginning + rest)
