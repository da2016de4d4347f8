"""ES384 with AWS-LC, through awscrt.

`EC.sign` takes a digest and returns DER; AWS-LC itself then turns the DER into the padded pair, so no
signature is parsed in Python.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha384

from awscrt.crypto import EC

from tokensvc.signing.keys import public_key_der
from tokensvc.signing.signer import Backend, SecretHolder

__all__ = ["AwsLcSigner"]

_COORDINATE_BYTES = 48


class AwsLcSigner(SecretHolder):
    """A `Signer` over AWS-LC. Holds the GIL for the 70 microseconds of a signature."""

    __slots__ = ("_key", "_public_key_der", "_sign", "_to_pair")

    def __init__(self, private_key_der: bytes) -> None:
        """Load a PKCS #8 DER P-384 key; ValueError for anything else."""
        self._public_key_der = public_key_der(private_key_der)
        self._key = EC.new_key_from_der_data(private_key_der)
        self._sign = self._key.sign
        self._to_pair = EC.decode_der_signature_to_padded_pair

    @property
    def backend(self) -> Backend:
        """`aws-lc`."""
        return "aws-lc"

    @property
    def public_key_der(self) -> bytes:
        """The public half as a DER SubjectPublicKeyInfo."""
        return self._public_key_der

    def sign(self, signing_input: bytes) -> bytes:
        """Return R || S, 96 bytes."""
        der = self._sign(sha384(signing_input).digest())
        return bytes(self._to_pair(der, _COORDINATE_BYTES))

    def after(self, beginning: bytes) -> Callable[[bytes], bytes]:
        """Return what signs `beginning` and the rest that it is given.

        The beginning is hashed once. Going on from there takes half as long as a hash from the start,
        most of which is OpenSSL finding its algorithm.
        """
        sign, to_pair = self._sign, self._to_pair
        begun = sha384(beginning)

        def finish(rest: bytes) -> bytes:
            digest = begun.copy()
            digest.update(rest)
            pair: bytes = to_pair(sign(digest.digest()), _COORDINATE_BYTES)
            return pair

        return finish
