"""Heads of requests, as bytes: what is refused of them, and the answer to what never became a request.

httptools' parser (llhttp) has refused the rest.
"""

from __future__ import annotations

from collections.abc import Iterable
from http import HTTPStatus
from typing import Final

from tokensvc.errors import TokenServiceError
from tokensvc.http.problems import PROBLEM_MEDIA_TYPE, encode_problem

__all__ = ["BadHeadError", "check_head", "refusal", "without_upgrade"]

_VERSIONS: Final = ("1.1", "1.0")
_OF_UPGRADES: Final = frozenset({b"connection", b"upgrade", b"http2-settings"})
_LOOKED_AT: Final = frozenset({b"host", b"expect", b"transfer-encoding"})


class BadHeadError(Exception):
    """A head that the parser takes and we do not; its text is for the client."""


def check_head(version: str, headers: Iterable[tuple[bytes, bytes]]) -> tuple[bool, bool]:
    """Return whether the body comes in chunks, and whether the client waits for a go-ahead before it.

    Raises BadHeadError for what a proxy in front may read in another way: RFC 9112, sections 2.3
    (versions), 3.2 (exactly one Host) and 6.1 (Transfer-Encoding).
    """
    if version not in _VERSIONS:
        raise BadHeadError("The version of HTTP has to be 1.1, or 1.0.")
    is_chunked = waits_for_100 = False
    hosts = 0
    for name, value in headers:
        if name not in _LOOKED_AT:
            continue
        if name == b"host":
            hosts += 1
        elif name == b"expect":
            waits_for_100 = waits_for_100 or value.lower() == b"100-continue"
        else:
            is_chunked = True
            if version != "1.1" or value.lower().strip() != b"chunked":
                raise BadHeadError("The only Transfer-Encoding is chunked, in HTTP/1.1.")
    if hosts > 1 or (hosts == 0 and version == "1.1"):
        raise BadHeadError("A request has exactly one Host.")
    return is_chunked, waits_for_100


def without_upgrade(method: bytes, url: bytes, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return a head as that of a request that is the last one and wants no other protocol.

    A server may ignore an Upgrade (RFC 9110, section 7.8); the parser, however, reads no body behind one.
    """
    lines = [b"%b %b HTTP/1.1" % (method, url)]
    lines += [b"%b: %b" % header for header in headers if header[0] not in _OF_UPGRADES]
    return b"\r\n".join([*lines, b"connection: close", b"", b""])


def refusal(status: HTTPStatus, error: TokenServiceError) -> bytes:
    """Return the whole answer to what is no request that could be handed to the application."""
    body = encode_problem(error, "", status=status)
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\n"
        f"content-type: {PROBLEM_MEDIA_TYPE}\r\n"
        f"content-length: {len(body)}\r\n"
        "cache-control: no-store\r\n"
        "x-content-type-options: nosniff\r\n"
        "connection: close\r\n\r\n"
    )
    return head.encode("ascii") + body
