"""A ring, stages and an IVS of this test's own; keys are generated at run time."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import jwt
import pytest
from cryptography.hazmat.primitives.serialization import load_der_public_key

from tokensvc.errors import (
    BannedError,
    IvsThrottledError,
    NoSigningKeyError,
    StageNotFoundError,
    TokenServiceError,
)
from tokensvc.issuing.issuer import TokenIssuer
from tokensvc.ivs.gateway import IvsToken
from tokensvc.ledger import Claim, IdempotencyRef, IssuedRecord, LedgerRow
from tokensvc.signing.keys import generate_private_key
from tokensvc.signing.signer import load_signer
from tokensvc.signing.signing_key import SigningKey
from tokensvc.tokens.arn import StageArn
from tokensvc.tokens.claims import StageEndpoints, TokenRequest

REGION = "eu-central-1"
NOW = 1_780_000_000.75


@dataclass(repr=False)
class World:
    """What an issuer sees; tests change it."""

    keys: dict[str, SigningKey] = field(default_factory=dict)
    unknown_stages: set[str] = field(default_factory=set)
    broken_stages: set[str] = field(default_factory=set)
    ivs_fails: bool = False
    fresh: dict[str, StageEndpoints] = field(default_factory=dict)
    lookups: Counter[str] = field(default_factory=Counter)
    ivs_calls: list[TokenRequest] = field(default_factory=list)
    during_lookup: Callable[[], None] = lambda: None
    now: float = NOW
    rows: list[LedgerRow] = field(default_factory=list)
    longest: float = math.inf
    banned_users: set[str] = field(default_factory=set)
    during_record: Callable[[], None] = lambda: None
    answers: dict[IdempotencyRef, str] = field(default_factory=dict)
    disconnected: set[str] = field(default_factory=set)
    pending: set[str] = field(default_factory=set)
    gone_keys: set[str] = field(default_factory=set)
    ledger_error: TokenServiceError | None = None

    def longest_ttl(self, region: str) -> float:
        return self.longest

    async def record(self, rows: Sequence[LedgerRow], claim: Claim | None = None) -> str | None:
        if self.ledger_error is not None:
            raise self.ledger_error
        if claim is not None:
            stored = self.answers.setdefault(claim.ref, claim.result)
            if stored != claim.result:
                return stored
        self.rows += rows
        self.during_record()
        return None

    async def find(self, ref: IdempotencyRef, now: float) -> str | None:
        return self.answers.get(ref)

    async def latest(self, token_id: str) -> IssuedRecord | None:
        for number, row in reversed(list(enumerate(self.rows))):
            if row.token_id == token_id:
                disconnected_at = 1.0 if token_id in self.disconnected else None
                until = max(one.exp for one in self.rows if one.token_id == token_id)
                return IssuedRecord(number, *row[:-1], disconnected_at, row.endpoints, until)
        return None

    async def latest_of(self, token_ids: Sequence[str], pace: object) -> dict[str, IssuedRecord]:
        found = [await self.latest(token_id) for token_id in token_ids]
        return {one.token_id: one for one in found if one is not None}

    async def pending_of(
        self, named: Sequence[tuple[str | None, str]]
    ) -> set[tuple[str | None, str]]:
        return {one for one in named if one[1] in self.pending}

    def admit(
        self, stage_arn: str | None, user_id: str | None, participant_id: str | None = None
    ) -> None:
        if user_id in self.banned_users:
            raise BannedError("banned")

    def admits_all(
        self,
        stage_arn: str | None,
        user_ids: Sequence[str | None],
        participant_ids: Sequence[str] = (),
    ) -> bool:
        return self.banned_users.isdisjoint(user_ids)

    def signing_key(self, region: str) -> SigningKey:
        if region not in self.keys:
            raise NoSigningKeyError(f"no key in {region}")
        return self.keys[region]

    def peek(self, stage: StageArn, now: float) -> StageEndpoints | None:
        return self.fresh.get(stage.id)

    async def get(self, stage: StageArn, caller: str) -> StageEndpoints:
        self.lookups[stage.id] += 1
        self.during_lookup()
        if stage.id in self.unknown_stages:
            raise StageNotFoundError("IVS knows no such stage.")
        if stage.id in self.broken_stages:
            raise ZeroDivisionError("a bug")
        return StageEndpoints(f"wss://events/{stage.id}", f"https://whip/{stage.id}")

    async def create_participant_token(self, request: TokenRequest) -> IvsToken:
        self.ivs_calls.append(request)
        if self.ivs_fails:
            raise IvsThrottledError("busy", retry_after=1.0)
        return IvsToken(
            token="opaque",
            participant_id=f"ivs{len(self.ivs_calls)}",
            user_id=request.user_id,
            attributes=request.attributes,
            duration=request.duration,
            capabilities=request.capabilities,
            expiration_time=int(self.now) + request.duration * 60,
        )

    def verify(self, token: str) -> dict[str, object]:
        """Verify with PyJWT under the key that `kid` names, and return the claims."""
        kid = jwt.get_unverified_header(token)["kid"]
        key = next(key for key in self.keys.values() if key.arn == kid)
        return jwt.decode(
            token,
            load_der_public_key(key.public_key_der),
            algorithms=["ES384"],
            options={"verify_exp": False, "verify_iat": False},
        )


def new_key(region: str = REGION, key_id: str = "key1") -> SigningKey:
    arn = f"arn:aws:ivs:{region}:123456789012:public-key/{key_id}"
    return SigningKey(key_id, arn, load_signer(generate_private_key()))


@pytest.fixture
def world() -> World:
    return World(keys={REGION: new_key()})


@pytest.fixture
def issuer(world: World) -> TokenIssuer:
    return TokenIssuer(
        view=lambda: world,
        endpoints=world,
        gateway=world,
        ledger=world,
        admit=world.admit,
        admits_all=world.admits_all,
        clock=lambda: world.now,
        iat_backdate=5,
    )


@pytest.fixture
def ask() -> Callable[..., TokenRequest]:
    def request(stage: str = "stage1", **fields: object) -> TokenRequest:
        return TokenRequest(StageArn(REGION, "123456789012", stage), **fields)  # type: ignore[arg-type]

    return request
