"""An OIDC issuer on this machine."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec

AUDIENCE = "tokensvc"
KEY = ec.generate_private_key(ec.SECP256R1())


class Issuer:
    """An issuer on this machine; while it is `down`, it answers 500."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.down = False

    def token(self, now: float, **changes: object) -> dict[str, str]:
        claims = {
            "iss": self.url,
            "aud": AUDIENCE,
            "sub": "lobby",
            "exp": now + 300,
            "scope": "openid tokens:mint",
        } | changes
        token = jwt.encode(claims, KEY, "ES256", headers={"kid": "k1"})
        return {"authorization": f"Bearer {token}"}


@contextmanager
def issuer_running() -> Iterator[Issuer]:
    known = jwt.get_algorithm_by_name("ES256").to_jwk(KEY.public_key(), as_dict=True)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found: dict[str, Any] = {"issuer": issuer.url, "jwks_uri": f"{issuer.url}/keys"}
            if self.path == "/keys":
                found = {"keys": [{**known, "kid": "k1", "alg": "ES256"}]}
            body = json.dumps(found).encode()
            self.send_response(500 if issuer.down else 200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        issuer = Issuer(server.server_address[1])
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield issuer
        server.shutdown()
        thread.join()
