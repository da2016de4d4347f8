"""Private keys that somebody else made: read in the encodings they come in, refused in words.

The AWS console and `openssl` write PEM, as PKCS #8 (RFC 5958) or SEC 1 (RFC 5915); this service keeps
PKCS #8 DER. What is wrong with a file is said without repeating anything of it.
"""

from __future__ import annotations

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_der_private_key,
    load_pem_private_key,
)

__all__ = ["read_private_key"]


def read_private_key(content: bytes) -> bytes:
    """Return the P-384 private key in `content` (PEM or DER) as PKCS #8 DER.

    Raises ValueError, in words fit for the operator, for a public key alone, a key under a password,
    a key of another kind or curve, and anything that is no key.
    """
    pem = b"-----BEGIN " in content
    if pem and b"PRIVATE KEY-----" not in content:
        if b"PUBLIC KEY-----" in content:
            raise ValueError("it holds a public key alone; the private key is needed to sign")
        raise ValueError("it holds no private key")
    load = load_pem_private_key if pem else load_der_private_key
    try:
        key = load(content, password=None)
    except TypeError:
        raise ValueError("the private key is under a password: remove it first") from None
    except (ValueError, UnsupportedAlgorithm):
        raise ValueError("it holds no private key in PEM or DER") from None
    if not isinstance(key, EllipticCurvePrivateKey):
        raise ValueError("the private key is not an elliptic-curve key; IVS takes P-384 (ES384)")
    if not isinstance(key.curve, SECP384R1):
        raise ValueError(
            f"the private key is on curve {key.curve.name}; IVS takes P-384 (secp384r1)"
        )
    return key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
