"""The tiny core that holds a private key.

Everything that ever sees the plain private half of a key is in this package, and it is small on purpose.
The cryptography is AWS-LC's (through `awscrt`) or OpenSSL's (through `cryptography`); this package only
turns their signatures into the fixed-width form of RFC 7518 section 3.4.

A private key and the ARN that IVS gave its public half are one immutable object, `SigningKey`: a `kid`
cannot meet another key's signature, because nothing here takes the two apart.
"""

from tokensvc.signing.given import read_private_key
from tokensvc.signing.keys import (
    fingerprint,
    generate_private_key,
    load_public_key,
    public_key_der,
    public_key_pem,
    spki,
)
from tokensvc.signing.self_check import self_check
from tokensvc.signing.signer import Backend, Signer, load_signer
from tokensvc.signing.signing_key import SigningKey
from tokensvc.signing.speed import signatures_per_second

__all__ = [
    "Backend",
    "Signer",
    "SigningKey",
    "fingerprint",
    "generate_private_key",
    "load_public_key",
    "load_signer",
    "public_key_der",
    "public_key_pem",
    "read_private_key",
    "self_check",
    "signatures_per_second",
    "spki",
]
