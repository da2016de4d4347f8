"""A running emulator for tests: uvicorn in a thread, on a free port of the loopback.

    with RunningEmulator(enforce_quotas=False) as ivs:
        client = ivs.client("eu-central-1")          # boto3, `ivs-realtime`
        stage = client.create_stage(name="demo")["stage"]
        ivs.post_faults({"operation": "GetStage", "kind": "throttle"})

`RunningEmulator` takes the fields of `EmulatorConfig`, `clock` and `sleep`. `url` is the endpoint for boto3
and the control API, `events_url` that of the sockets, `world` and `sessions` its state: read it at
will, and change it from the server's own thread with `run`.
"""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from functools import lru_cache
from typing import Any, Self, TypeVar

import boto3
import httpx
import pytest
import uvicorn
from botocore.config import Config
from botocore.exceptions import ClientError
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tokensvc.emulator.app import create_app
from tokensvc.emulator.config import EmulatorConfig
from tokensvc.emulator.server import server_config
from tokensvc.emulator.sessions import Sessions
from tokensvc.emulator.world import World

__all__ = ["RunningEmulator", "boto_client", "public_pem", "refused"]

_START_SECONDS = 20.0
_STOP_SECONDS = 20.0

_Value = TypeVar("_Value")


class RunningEmulator:
    """An emulator that is ready; `close` stops it and waits for it."""

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        **settings: Any,
    ) -> None:
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind(("127.0.0.1", settings.pop("port", 0)))
        self.port: int = self._socket.getsockname()[1]
        self.config = EmulatorConfig(port=self.port, **settings)
        self.url = f"http://127.0.0.1:{self.port}"
        self.events_url = self.config.events_url
        self.app = create_app(self.config, clock, sleep)
        self.world: World = self.app.state.world
        self.sessions: Sessions = self.app.state.sessions
        self._server = uvicorn.Server(server_config(self.config, self.app))
        self._ready = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._error: BaseException | None = None
        self._clients: list[Any] = []
        self._thread = threading.Thread(target=self._serve, name="emulator", daemon=True)
        self._thread.start()
        if not self._ready.wait(_START_SECONDS) or self._error is not None:
            self.close()
            raise RuntimeError("the emulator did not start") from self._error
        self.http = httpx.Client(base_url=self.url, timeout=10, trust_env=False)

    def _serve(self) -> None:
        try:
            asyncio.run(self._run_server())
        except BaseException as error:
            self._error = error
        finally:
            self._ready.set()

    async def _run_server(self) -> None:
        self._loop = asyncio.get_running_loop()
        # The socket listens already, so a client that comes before `serve` has begun just waits.
        self._socket.listen(128)
        serving = asyncio.ensure_future(self._server.serve(sockets=[self._socket]))
        self._loop.call_soon(self._ready.set)
        await serving

    def run(self, function: Callable[[], _Value]) -> _Value:
        """Call `function` on the emulator's event loop and return what it returns."""

        async def call() -> _Value:
            return function()

        return self.run_async(call)

    def run_async(self, function: Callable[[], Coroutine[Any, Any, _Value]]) -> _Value:
        """Run a coroutine on the emulator's event loop and return what it returns."""
        assert self._loop is not None
        return asyncio.run_coroutine_threadsafe(function(), self._loop).result(timeout=10)

    def client(self, region: str = "eu-central-1", **config: Any) -> Any:
        """Return a boto3 client that makes one attempt; it is closed with the emulator."""
        client = boto_client(self.url, region, **config)
        self._clients.append(client)
        return client

    def post_faults(self, *rules: dict[str, Any], **others: Any) -> None:
        """Ask for faults; see `tokensvc.emulator.faults.FaultRule`."""
        answer = self.http.post("/_emulator/faults", json={"rules": list(rules), **others})
        answer.raise_for_status()

    def clear_faults(self) -> None:
        """Take all faults away."""
        self.http.delete("/_emulator/faults").raise_for_status()

    def set_clock(self, offset: float) -> None:
        """Have the emulator's clock be `offset` seconds ahead."""
        self.http.post("/_emulator/clock", json={"offset": offset}).raise_for_status()

    def calls(self) -> dict[tuple[str, str], dict[str, Any]]:
        """Return the calls that came, by operation and Region."""
        answer = self.http.get("/_emulator/calls").raise_for_status().json()
        return {(call["operation"], call["region"]): call for call in answer["calls"]}

    def close(self) -> None:
        """Stop the server and wait until it has."""
        for client in self._clients:
            client.close()
        if hasattr(self, "http"):
            self.http.close()
        self._server.should_exit = True
        self._thread.join(_STOP_SECONDS)
        assert not self._thread.is_alive(), "the emulator did not stop"
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def boto_client(url: str, region: str, **config: Any) -> Any:
    """Return a boto3 client for an emulator at `url`; `config` is botocore's Config."""
    settings: dict[str, Any] = {
        "retries": {"mode": "standard", "total_max_attempts": 1},
        "connect_timeout": 5,
        "read_timeout": 10,
        "proxies": {},
    } | config
    with _session_lock:
        return _session().client(
            "ivs-realtime", region_name=region, endpoint_url=url, config=Config(**settings)
        )


# Loading the API model takes longer than most tests.
@lru_cache
def _session() -> boto3.session.Session:
    return boto3.session.Session(
        aws_access_key_id="AKIDEMULATOR0000", aws_secret_access_key="not-a-secret"
    )


_session_lock = threading.Lock()


def public_pem(curve: type[ec.EllipticCurve] = ec.SECP384R1) -> str:
    """Return the PEM of a new public key."""
    key = ec.generate_private_key(curve()).public_key()
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def refused(call: Callable[..., Any], status: int, code: str, **request: Any) -> ClientError:
    """Make a boto3 call that must end with this status and error code; return the error."""
    with pytest.raises(ClientError) as raised:
        call(**request)
    answer = raised.value.response
    assert answer["ResponseMetadata"]["HTTPStatusCode"] == status
    assert answer["Error"]["Code"] == code
    return raised.value
