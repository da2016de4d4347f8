"""Tokens that the service would not sign: made by the tests, with keys of their own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec


def claims_of(token: str) -> dict[str, Any]:
    """Return a token's claims, unverified."""
    return jwt.decode(token, options={"verify_signature": False})


@dataclass(frozen=True)
class ForeignKey:
    """A key pair that is not the service's, and the ARN that its tokens name as `kid`."""

    private_key: ec.EllipticCurvePrivateKey
    arn: str

    @classmethod
    def generate(cls, arn: str) -> Self:
        """Make a key that IVS does not know, whatever `arn` says."""
        return cls(ec.generate_private_key(ec.SECP384R1()), arn)

    @classmethod
    def imported(cls, ivs: Any) -> Self:
        """Make a key and import its public half with boto3."""
        private_key = ec.generate_private_key(ec.SECP384R1())
        pem = private_key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        answer = ivs.import_public_key(publicKeyMaterial=pem.decode(), name="foreign")
        return cls(private_key, answer["publicKey"]["arn"])

    def sign(self, claims: dict[str, Any]) -> str:
        return jwt.encode(claims, self.private_key, algorithm="ES384", headers={"kid": self.arn})
