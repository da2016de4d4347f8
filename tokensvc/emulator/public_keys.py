"""Reading the material of ImportPublicKey: one P-384 public key in SubjectPublicKeyInfo PEM."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_public_key,
)

from tokensvc.emulator.errors import ValidationError

__all__ = ["Material", "read_material"]

_FINGERPRINT_BYTES: Final = 16


@dataclass(frozen=True, slots=True)
class Material:
    """A key as IVS keeps it."""

    public_key_pem: str
    fingerprint: str
    """16 colon-separated bytes in hex. How IVS makes its own is not documented; this is the head of
    the SHA-256 of the key's DER."""


def read_material(text: str) -> Material:
    """Read `publicKeyMaterial`. Raises ValidationError for anything but a P-384 public key."""
    try:
        key = load_pem_public_key(text.encode("utf-8"))
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ValidationError("publicKeyMaterial is not a public key in PEM") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise ValidationError("publicKeyMaterial must be an ECDSA key on the curve secp384r1")
    der = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    pem = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    fingerprint = hashlib.sha256(der).digest()[:_FINGERPRINT_BYTES].hex(":")
    return Material(pem.decode("ascii"), fingerprint)
