"""A private key and the ARN of its public half, as one thing that cannot be taken apart."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import Final

from tokensvc.signing.keys import fingerprint
from tokensvc.signing.signer import Backend, SecretHolder, Signer
from tokensvc.tokens.arn import PublicKeyArn
from tokensvc.tokens.jws import compact, header_segment, payload_segment

__all__ = ["SigningKey"]

_SHARED_PARTS: Final = 512
"""Beginnings of payloads that a key keeps hashed, 1 KB each: one for each stage and set of capabilities."""


class SigningKey(SecretHolder):
    """Mints tokens under one `kid`.

    Immutable: the ARN and the signer are given once, together, and the JOSE header is encoded here
    and never again.
    """

    __slots__ = ("_arn", "_header", "_key_id", "_remembered", "_signer")

    _arn: PublicKeyArn
    _header: bytes
    _key_id: str
    _remembered: Callable[[bytes], Callable[[bytes], str]]
    _signer: Signer

    def __init__(self, key_id: str, arn: str, signer: Signer) -> None:
        """Join `signer` with the ARN that IVS gave its public half.

        Raises InvalidArnError for what is not a public key's ARN.
        """
        set_once = object.__setattr__
        set_once(self, "_arn", PublicKeyArn.parse(arn))
        set_once(self, "_key_id", key_id)
        set_once(self, "_signer", signer)
        header = header_segment(arn) + b"."
        set_once(self, "_header", header)
        # It goes with the key, whose private half nothing else must keep.
        set_once(self, "_remembered", lru_cache(_SHARED_PARTS)(partial(_mints, signer, header)))

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a SigningKey does not change; {name} is what it is")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"a SigningKey does not change; {name} stays")

    def __repr__(self) -> str:
        return f"<SigningKey {self._key_id} {self._arn}>"

    @property
    def key_id(self) -> str:
        """Our id of the key."""
        return self._key_id

    @property
    def arn(self) -> str:
        """The `kid`."""
        return self._arn.text

    @property
    def region(self) -> str:
        """The Region whose IVS knows the key."""
        return self._arn.region

    @property
    def backend(self) -> Backend:
        """Whose ECDSA signs."""
        return self._signer.backend

    @property
    def public_key_der(self) -> bytes:
        """The public half as a DER SubjectPublicKeyInfo."""
        return self._signer.public_key_der

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the SubjectPublicKeyInfo, hex."""
        return fingerprint(self._signer.public_key_der)

    @property
    def signer(self) -> Signer:
        """What signs; for measuring."""
        return self._signer

    def mint(self, claims: Mapping[str, object]) -> str:
        """Return the token with these claims (JWS compact serialisation, RFC 7515 section 7.1)."""
        return self.mint_payload(b"", payload_segment(claims))

    def mint_payload(self, shared: bytes, rest: bytes) -> str:
        """Return the token whose payload is `shared` and then `rest`, both encoded already.

        What many tokens share is put together, and hashed, once.
        """
        return self._remembered(shared)(rest)

    def mints_after(self, payloads: bytes) -> Callable[[bytes], str]:
        """Return what mints tokens whose payloads all begin with `payloads`; it is given the rest."""
        return _mints(self._signer, self._header, payloads)


def _mints(signer: Signer, header: bytes, payloads: bytes) -> Callable[[bytes], str]:
    beginning = header + payloads
    finish = signer.after(beginning)

    def mint(rest: bytes) -> str:
        return compact(beginning, rest, finish(rest))

    return mint
