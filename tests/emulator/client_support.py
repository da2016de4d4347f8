"""What the tests of the clients' side share: keys, tokens, and the emulator in the test's own loop.

Tokens are signed with PyJWT, as somebody else's backend would; nothing of the service takes part.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Iterator, Mapping
from functools import lru_cache
from typing import Any

import jwt
import uvicorn
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from websockets.asyncio.client import ClientConnection, connect
from websockets.typing import Subprotocol

from tokensvc.emulator.app import create_app
from tokensvc.emulator.config import EmulatorConfig
from tokensvc.emulator.records import IssuedToken, PublicKeyRecord, StageRecord
from tokensvc.emulator.server import server_config
from tokensvc.emulator.sessions import Sessions
from tokensvc.emulator.verification import TokenVerifier
from tokensvc.emulator.world import World

NOW = 1_800_000_000
REGION = "eu-central-1"


@lru_cache
def private_key(name: str = "first", curve: type[ec.EllipticCurve] = ec.SECP384R1) -> Any:
    return ec.generate_private_key(curve())


def public_pem(key: Any) -> str:
    pem: bytes = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return pem.decode()


class Stand:
    """An emulator's state with one stage and one public key, and its clock."""

    def __init__(self, port: int = 8090) -> None:
        self.time = float(NOW)
        self.app = create_app(EmulatorConfig(port=port), lambda: self.time)
        self.world: World = self.app.state.world
        self.sessions: Sessions = self.app.state.sessions
        self.verifier: TokenVerifier = self.app.state.door.verifier
        self.stage: StageRecord = self.world.create_stage(REGION)
        self.key: PublicKeyRecord = self.import_key(private_key())

    def import_key(self, key: Any, region: str = REGION) -> PublicKeyRecord:
        pem = public_pem(key)
        return self.world.import_public_key(region, public_key_pem=pem, fingerprint=pem)

    def claims(self, **changes: Any) -> dict[str, Any]:
        """Claims of a participant token that is in order; a change to None takes a claim away."""
        claims = {
            "exp": NOW + 3600,
            "iat": NOW,
            "jti": "p1",
            "resource": self.stage.arn,
            "topic": self.stage.id,
            "events_url": self.world.config.events_url,
            "whip_url": self.stage.whip_url,
            "capabilities": {"allow_publish": True, "allow_subscribe": True},
            "attributes": {"name": "Zoë"},
            "user_id": "u1",
            "version": "1.0",
        }
        return _changed(claims, changes)

    def connection_claims(self, **changes: Any) -> dict[str, Any]:
        claims = {
            "exp": NOW + 3600,
            "iat": NOW,
            "jti": "c1",
            "account_id": self.world.config.account,
            "region": REGION,
            "events_url": self.world.config.events_url,
            "version": "1.0",
        }
        return _changed(claims, changes)

    def token(self, **changes: Any) -> str:
        return self.sign(self.claims(**changes))

    def connection_token(self, **changes: Any) -> str:
        return self.sign(self.connection_claims(**changes))

    def sign(
        self,
        payload: Mapping[str, Any] | bytes,
        *,
        key: Any = None,
        algorithm: str = "ES384",
        **headers: Any,
    ) -> str:
        raw = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
        fields = _changed({"typ": "JWT", "kid": self.key.arn}, headers)
        return jwt.PyJWS().encode(raw, key or private_key(), algorithm, headers=fields)

    def issue(self, **changes: Any) -> str:
        """A token as CreateParticipantToken makes it: opaque."""
        token = "opaque." + changes.get("participant_id", "api1")
        fields: dict[str, Any] = {
            "stage_arn": self.stage.arn,
            "participant_id": "api1",
            "capabilities": ("SUBSCRIBE",),
            "issued_at": NOW,
            "expires_at": NOW + 3600,
        }
        self.world.remember_token(token, IssuedToken(**(fields | changes)))
        return token


def _changed(fields: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in (fields | changes).items() if value is not None}


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.up = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.up.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Client(Stand):
    """A stand whose sockets are served on a free port, and a client's way to them."""

    async def stage_socket(self, token: str, query: str = "?error_over_ws=1") -> ClientConnection:
        return await self._connect("/" + query, [token] if token else [])

    async def shared_socket(
        self, token: str, *carried: str, query: str = "?error_over_ws=1"
    ) -> ClientConnection:
        return await self._connect("/sanic" + query, [token, *carried])

    async def joined(self, token: str) -> ClientConnection:
        """A stage socket that has been told of the stage's state."""
        client = await self.stage_socket(token)
        assert (await received(client))["type"] == "aws:ivs:STAGE_STATE"
        return client

    async def _connect(self, path: str, protocols: list[str]) -> ClientConnection:
        return await connect(
            self.world.config.events_url + path,
            subprotocols=[Subprotocol(protocol) for protocol in protocols] or None,
            proxy=None,
        )


@contextlib.asynccontextmanager
async def serving() -> AsyncIterator[Client]:
    """Run the emulator on a free port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = Client(listener.getsockname()[1])
        server = _Server(server_config(client.world.config, client.app))
        running = asyncio.create_task(server.serve(sockets=[listener]))
        await server.up.wait()
        try:
            yield client
        finally:
            server.should_exit = True
            await running


async def send(client: ClientConnection, message: Any) -> None:
    await client.send(json.dumps(message))


async def received(client: ClientConnection) -> dict[str, Any]:
    async with asyncio.timeout(5):
        message = json.loads(await client.recv())
    assert isinstance(message, dict)
    return message


async def closed(client: ClientConnection) -> tuple[int | None, str | None]:
    """Wait until the server has closed; nothing may come before."""
    async with asyncio.timeout(5):
        await client.wait_closed()
    return client.close_code, client.close_reason
