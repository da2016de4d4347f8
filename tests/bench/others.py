"""What one would write instead: the same POST on other servers, each in a folder of `others/`.

They check an API key and the request's fields, and sign the same claims with ES384. They have no
ledger, no policy, no bans, no limits, no metrics, no log, and no key that rotates. What they depend on is
pinned by their locks and installed into `.bench/`.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import jwt
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from tests.bench.load import CACHE, Requests
from tests.bench.machine import pinned, server_cores

__all__ = ["OTHERS", "Other"]

_SOURCES = Path(__file__).parent / "others"
_ARN = "arn:aws:ivs:eu-central-1:123456789012"
_KEY_ARN = f"{_ARN}:public-key/f99cde61-c2b0-4df3-8941-ca7d38acca1a"
_STAGE = f"{_ARN}:stage/LSC8P4Bq1vGb"
_EVENTS_URL, _WHIP_URL = "wss://events.example.test", "https://f9908446.whip.example.test"
_INSTALL_SECONDS, _START_SECONDS = 300.0, 20.0


@dataclass(frozen=True, slots=True)
class Other:
    """A server: how it is installed and started, in its folder below `.bench/`."""

    name: str
    folder: str
    needs: Sequence[str]
    """Commands without which it is not measured."""
    installing: Sequence[Sequence[str]]
    start: Sequence[str]
    environment: Sequence[tuple[str, str]] = ()

    @property
    def cache(self) -> Path:
        """Where its source is copied to, and what it depends on is installed."""
        return CACHE / self.folder

    def install(self) -> str:
        """Install it, where that was not done since its source changed; returns why it cannot be, or ''."""
        for command in self.needs:
            if shutil.which(command) is None:
                return f"there is no {command}"
        source, stamp = _SOURCES / self.folder, self.cache / ".installed"
        wanted = "".join(
            f"{path.name}\n{path.read_text('utf-8')}"
            for path in sorted(source.iterdir())
            if path.is_file()
        )
        if stamp.exists() and stamp.read_text("utf-8") == wanted:
            return ""
        shutil.rmtree(self.cache, ignore_errors=True)
        shutil.copytree(source, self.cache, ignore=shutil.ignore_patterns("__pycache__"))
        for command in self.installing:
            done = subprocess.run(
                command,
                cwd=self.cache,
                capture_output=True,
                text=True,
                timeout=_INSTALL_SECONDS,
                check=False,
            )
            if done.returncode:
                last = (
                    done.stderr.strip() or done.stdout.strip() or "no reason given"
                ).splitlines()[-1]
                return f"{command[0]} failed: {last}"
        stamp.write_text(wanted, "utf-8")
        return ""

    @contextmanager
    def running(self) -> Iterator[Requests]:
        """Run it on the core of the service, and check a token of it; yields what to ask."""
        key = ec.generate_private_key(ec.SECP384R1())
        api_key, port = secrets.token_urlsafe(24), _free_port()
        with tempfile.TemporaryDirectory() as folder:
            key_file = Path(folder) / "key.pem"
            key_file.touch(mode=0o600)
            key_file.write_bytes(
                key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            )
            process = subprocess.Popen(
                [*pinned(server_cores()), *(part.format(port=port) for part in self.start)],
                cwd=self.cache,
                env={
                    "PATH": os.environ["PATH"],
                    "HOME": folder,
                    "NODE_ENV": "production",
                    "PORT": str(port),
                    "KEY_FILE": str(key_file),
                    "KEY_ARN": _KEY_ARN,
                    "API_KEY": api_key,
                    "EVENTS_URL": _EVENTS_URL,
                    "WHIP_URL": _WHIP_URL,
                    **dict(self.environment),
                },
                stdout=subprocess.DEVNULL,
            )
            try:
                requests = Requests(process.pid, port, api_key, _STAGE)
                _wait_for(process, port)
                _check(requests, key.public_key())
                yield requests
            finally:
                process.kill()
                process.wait()


OTHERS = (
    Other(
        "Node, express + jsonwebtoken", "express", ("node", "npm"),
        (("npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"),),
        ("node", "server.js"),
    ),
    Other(
        "Node, fastify + fast-jwt", "fastify", ("node", "npm"),
        (("npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"),),
        ("node", "server.js"),
    ),
    Other(
        "FastAPI + PyJWT", "fastapi", (),
        (
            (sys.executable, "-m", "venv", "venv"),
            ("venv/bin/pip", "install", "-q", "--require-hashes", "-r", "requirements.lock"),
        ),
        (
            "venv/bin/uvicorn", "server:app", "--port", "{port}", "--no-access-log", "--log-level",
            "warning",
        ),
    ),
    Other(
        "Go, net/http", "go", ("go",),
        (("go", "build", "-o", "server", "."),),
        ("./server",),
        (("GOMAXPROCS", "1"),),
    ),
)  # fmt: skip


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{process.args} does not start") from None
            time.sleep(0.05)
        else:
            return


def _check(requests: Requests, public_key: ec.EllipticCurvePublicKey) -> None:
    """Raise where it does not do what it is compared for: refuse strangers, and sign what IVS takes."""
    url = f"http://127.0.0.1:{requests.port}/v1/tokens"
    body = {"stageArn": _STAGE, "userId": "ana", "attributes": {"team": "red"}}
    assert httpx.post(url, json=body).status_code == httpx.codes.UNAUTHORIZED
    answer = httpx.post(url, json=body, headers={"Authorization": f"Bearer {requests.api_key}"})
    token = answer.raise_for_status().json()["token"]
    assert jwt.get_unverified_header(token) == {"alg": "ES384", "typ": "JWT", "kid": _KEY_ARN}
    claims = jwt.decode(token, public_key, algorithms=["ES384"])
    assert claims.pop("exp") - claims.pop("iat") == 720 * 60
    assert claims.pop("jti")
    assert claims == {
        "resource": _STAGE,
        "topic": "LSC8P4Bq1vGb",
        "events_url": _EVENTS_URL,
        "whip_url": _WHIP_URL,
        "capabilities": {"allow_publish": True, "allow_subscribe": True},
        "attributes": {"team": "red"},
        "version": "1.0",
        "user_id": "ana",
    }
