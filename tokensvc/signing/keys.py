"""P-384 key pairs in their encodings: PKCS #8 DER inside, SubjectPublicKeyInfo towards IVS.

Every public function checks the curve: a key of another curve is a ValueError here, before IVS sees it.
"""

from __future__ import annotations

from hashlib import sha256

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP384R1,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
)
from cryptography.hazmat.primitives.asymmetric.ec import (
    generate_private_key as generate_ec_private_key,
)
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_der_private_key,
    load_pem_public_key,
)

__all__ = [
    "fingerprint",
    "generate_private_key",
    "load_private_key",
    "load_public_key",
    "public_key_der",
    "public_key_pem",
    "spki",
]


def generate_private_key() -> bytes:
    """Return a new P-384 private key as PKCS #8 DER; the randomness is OpenSSL's and the system's."""
    return generate_ec_private_key(SECP384R1()).private_bytes(
        Encoding.DER, PrivateFormat.PKCS8, NoEncryption()
    )


def load_private_key(private_key_der: bytes) -> EllipticCurvePrivateKey:
    """Load PKCS #8 DER; ValueError for anything but a P-384 private key."""
    try:
        key = load_der_private_key(private_key_der, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ValueError("not a private key in PKCS #8 DER") from error
    if not isinstance(key, EllipticCurvePrivateKey) or not isinstance(key.curve, SECP384R1):
        raise ValueError("not a key on curve P-384 (secp384r1), the only one IVS takes")
    return key


def load_public_key(public_key_pem: str) -> EllipticCurvePublicKey:
    """Load an SPKI PEM; ValueError for anything but a P-384 public key."""
    try:
        key = load_pem_public_key(public_key_pem.encode("ascii"))
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ValueError("not a public key in PEM") from error
    if not isinstance(key, EllipticCurvePublicKey) or not isinstance(key.curve, SECP384R1):
        raise ValueError("not a key on curve P-384 (secp384r1), the only one IVS takes")
    return key


def public_key_der(private_key_der: bytes) -> bytes:
    """Return the public half as a DER SubjectPublicKeyInfo (RFC 5480)."""
    return spki(load_private_key(private_key_der).public_key())


def public_key_pem(private_key_der: bytes) -> str:
    """Return the public half as the PEM that ImportPublicKey takes."""
    return (
        load_private_key(private_key_der)
        .public_key()
        .public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        .decode("ascii")
    )


def spki(key: EllipticCurvePublicKey) -> bytes:
    """Return a public key as a DER SubjectPublicKeyInfo."""
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def fingerprint(public_key_der: bytes) -> str:
    """Return the SHA-256 of the SubjectPublicKeyInfo as hex.

    Ours, not IVS's: how IVS computes its fingerprint is not documented, and is not needed.
    """
    return sha256(public_key_der).hexdigest()
