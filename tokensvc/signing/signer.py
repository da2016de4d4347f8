"""What a signer is, and how one is chosen.

A signer holds one P-384 private key and signs a JWS signing input with ES384. There are two, which
give interchangeable signatures; AWS-LC is about three times as fast (docs/adr/0001).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NoReturn, Protocol, TypeAlias

from tokensvc.errors import ConfigurationError

__all__ = ["Backend", "SecretHolder", "Signer", "load_signer"]

Backend: TypeAlias = Literal["aws-lc", "openssl"]


class Signer(Protocol):
    """One P-384 private key, ready to sign."""

    @property
    def backend(self) -> Backend:
        """Whose ECDSA this is."""
        ...

    @property
    def public_key_der(self) -> bytes:
        """The public half as a DER SubjectPublicKeyInfo (RFC 5480)."""
        ...

    def sign(self, signing_input: bytes) -> bytes:
        """Return R || S, exactly 96 bytes (RFC 7518 section 3.4)."""
        ...

    def after(self, beginning: bytes) -> Callable[[bytes], bytes]:
        """Return what signs inputs that all begin alike; it is given the rest of each."""
        ...


class SecretHolder:
    """Keeps what it holds out of reprs, pickles and copies."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError(f"{type(self).__name__} holds a private key and is not pickled or copied")


def load_signer(private_key_der: bytes, backend: Backend | None = None) -> Signer:
    """Load a private key (PKCS #8 DER, P-384).

    Without `backend`, AWS-LC signs, or OpenSSL where awscrt is not installed. Raises
    ConfigurationError where AWS-LC is asked for by name and awscrt is missing, and ValueError for
    anything but a P-384 private key.
    """
    if backend != "openssl":
        try:
            from tokensvc.signing.awslc import AwsLcSigner
        except ImportError as error:
            if backend == "aws-lc":
                raise ConfigurationError(
                    "TOKENSVC_SIGNER=aws-lc needs the package awscrt (boto3[crt]), which is missing."
                ) from error
        else:
            return AwsLcSigner(private_key_der)
    from tokensvc.signing.openssl import OpensslSigner

    return OpensslSigner(private_key_der)
