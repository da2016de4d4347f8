"""Answers that are bytes already: sent as they are, with nothing left for the framework to do."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Final

import msgspec
from litestar.response.base import ASGIResponse
from litestar.types import Receive, Scope, Send

__all__ = ["Answer", "answer_of"]

_JSON: Final = b"application/json"
_encode = msgspec.json.Encoder().encode


@lru_cache(maxsize=64)
def _name(text: str) -> str:
    """Return the name of a header as it goes out; all of them are ours."""
    return text.lower()


class Answer(ASGIResponse):
    """A body in JSON, its status, and headers besides content type and length.

    Litestar sends what is an ASGIResponse as it is, so a handler may return this one, which has
    neither cookies nor background tasks to ask for.
    """

    __slots__ = ("fields", "media")

    def __init__(
        self,
        body: bytes,
        status: int = 200,
        *,
        fields: Iterable[tuple[str, str]] = (),
        media: bytes = _JSON,
    ) -> None:
        """Take the parts; `fields` are further headers."""
        self.body = body
        self.status_code = status
        self.media = media
        self.fields = tuple(fields)

    def headers_to_send(self) -> list[tuple[bytes, bytes]]:
        """Return all headers as they go out, names in lower case."""
        return [
            (b"content-type", self.media),
            (b"content-length", b"%d" % len(self.body)),
            *self._encoded_fields(),
        ]

    def head_to_send(self) -> bytes:
        """Return the lines of `headers_to_send` as HTTP/1.1 has them."""
        line = b"content-type: %b\r\ncontent-length: %d\r\n" % (self.media, len(self.body))
        if not self.fields:
            return line
        fields = [f"{_name(name)}: {value}\r\n" for name, value in self.fields]
        return line + "".join(fields).encode("latin-1")

    def closes_connection(self) -> bool:
        """Tell whether the answer says `Connection: close`."""
        # Nearly no answer has it, and a loop finds that out in half the time.
        for name, value in self.fields:  # noqa: SIM110
            if value == "close" and name.lower() == "connection":
                return True
        return False

    def _encoded_fields(self) -> list[tuple[bytes, bytes]]:
        return [
            (_name(name).encode("latin-1"), value.encode("latin-1")) for name, value in self.fields
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """Send it."""
        await send(
            {
                "type": "http.response.start",
                "status": self.status_code,
                "headers": self.headers_to_send(),
            }
        )
        await send({"type": "http.response.body", "body": self.body, "more_body": False})


def answer_of(said: msgspec.Struct, status: int = 200, location: str | None = None) -> Answer:
    """Return the answer that says `said`; `location` is a path, for its header."""
    fields = () if location is None else (("location", location),)
    return Answer(_encode(said), status, fields=fields)
