"""Promise: no request is read in two ways. What a proxy in front might read otherwise is refused.

Raw bytes on a real socket (RFC 9112, sections 2 to 7 and 11.2). A refusal ends the connection, so that
what follows on it, a request hidden in another one's body for instance, is never looked at.
"""

from __future__ import annotations

import json

import pytest

from tests.http.support import Service
from tests.http.test_server import Connection, Listening, listening
from tokensvc.http.protocol import MAX_HEAD_BYTES

HIDDEN = b"DELETE /v1/bans/hidden HTTP/1.1\r\nHost: x\r\n\r\n"
MINT = b"POST /v1/tokens HTTP/1.1\r\nHost: x\r\n"
GET = b"GET /healthz HTTP/1.1\r\nHost: x\r\n"
CHUNKED = MINT + b"Transfer-Encoding: chunked\r\n\r\n"

REFUSED = {
    "length and chunks": MINT + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks and length": MINT + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    "two lengths": MINT + b"Content-Length: 0\r\nContent-Length: 5\r\n\r\n",
    "the same length twice": MINT + b"Content-Length: 0\r\nContent-Length: 0\r\n\r\n",
    "a list of lengths": MINT + b"Content-Length: 0, 5\r\n\r\n",
    "a signed length": MINT + b"Content-Length: +0\r\n\r\n",
    "a negative length": MINT + b"Content-Length: -1\r\n\r\n",
    "a length in hexadecimal": MINT + b"Content-Length: 0x0\r\n\r\n",
    "a length without end": MINT + b"Content-Length: 99999999999999999999999\r\n\r\n",
    "a space before the colon of a length": MINT + b"Content-Length : 5\r\n\r\n",
    "a space before the colon of an encoding": MINT
    + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "obs-fold": GET + b"X-A: b\r\n c\r\n\r\n",
    "obs-fold of an encoding": MINT + b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
    "obs-fold of the first header": b"GET /healthz HTTP/1.1\r\n Host: x\r\n\r\n",
    "another encoding": MINT + b"Transfer-Encoding: identity\r\n\r\n",
    "an unknown encoding": MINT + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "an encoding before chunked": MINT + b"Transfer-Encoding: identity, chunked\r\n\r\n0\r\n\r\n",
    "an encoding after chunked": MINT + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "chunked twice": MINT
    + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a control character in an encoding": MINT + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "chunks in HTTP/1.0": b"POST /v1/tokens HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a chunk's size that is none": CHUNKED + b"zz\r\n\r\n",
    "a negative chunk": CHUNKED + b"-1\r\n\r\n",
    "a prefixed chunk": CHUNKED + b"0x0\r\n\r\n",
    "a chunk without end": CHUNKED + b"fffffffffffffffff\r\n\r\n",
    "a chunk that ends in LF": CHUNKED + b"0\n\n",
    "a chunk that does not end": CHUNKED + b"1\r\na0\r\n\r\n",
    "a trailer": CHUNKED + b"0\r\nAuthorization: Bearer x\r\n\r\n",
    "a trailer without end": CHUNKED + b"0\r\nX: " + b"x" * (MAX_HEAD_BYTES * 2),
    "a chunk extension with LF": CHUNKED + b"0;a=\nb\r\n\r\n",
    "LF only": b"GET /healthz HTTP/1.1\nHost: x\n\n",
    "LF after a header": b"GET /healthz HTTP/1.1\r\nHost: x\nX: y\r\n\r\n",
    "CR after a header": b"GET /healthz HTTP/1.1\r\nHost: x\rX: y\r\n\r\n",
    "NUL in a header": GET + b"X: a\x00b\r\n\r\n",
    "a header without a colon": GET + b"foo\r\n\r\n",
    "a header without a name": GET + b": y\r\n\r\n",
    "no Host": b"GET /healthz HTTP/1.1\r\n\r\n",
    "two Hosts": GET + b"Host: y\r\n\r\n",
    "HTTP/0.9": b"GET /healthz\r\n\r\n",
    "HTTP/1.2": b"GET /healthz HTTP/1.2\r\nHost: x\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "a tab in the request line": b"GET\t/healthz\tHTTP/1.1\r\nHost: x\r\n\r\n",
    "CONNECT": b"CONNECT x:80 HTTP/1.1\r\nHost: x\r\n\r\n",
}


async def everything(connection: Connection) -> bytes:
    """Read until the server closes."""
    return await connection.reader.read()


async def test_what_can_be_read_in_two_ways_is_refused_and_ends_the_connection(stopped: Service):
    async with listening(stopped) as server:
        for name, raw in REFUSED.items():
            connection = await server.connect()
            await connection.say(raw + HIDDEN)
            got = await everything(connection)
            assert got.count(b"HTTP/1.1 ") == 1, f"{name}: {got!r}"
            head, _, body = got.partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 400 "), f"{name}: {head!r}"
            for header in (b"connection: close", b"cache-control: no-store", b"nosniff"):
                assert header in head, f"{name}: {head!r}"
            assert json.loads(body)["code"] == "invalid_request", name
        await still_serves(server)


async def still_serves(server: Listening) -> None:
    connection = await server.connect()
    await connection.say(server.mint())
    assert (await connection.answer())[0] == 201


async def test_a_body_is_never_read_as_a_request(stopped: Service):
    async with listening(stopped) as server:
        connection = await server.connect()
        await connection.say(GET + b"Content-Length: %d\r\n\r\n" % len(HIDDEN) + HIDDEN)
        assert (await connection.answer())[0] == 200
        await connection.say(GET + b"\r\n")
        assert (await connection.answer())[2] == {"alive": True}


@pytest.mark.parametrize("protocol", [b"h2c", b"websocket", b"TLS/1.2"])
async def test_an_upgrade_is_not_taken_and_ends_the_connection(stopped: Service, protocol: bytes):
    async with listening(stopped) as server:
        connection = await server.connect()
        await connection.say(GET + b"Connection: Upgrade\r\nUpgrade: " + protocol + b"\r\n\r\n")
        await connection.say(HIDDEN)
        got = await everything(connection)
        assert got.startswith(b"HTTP/1.1 200 ")
        assert got.count(b"HTTP/1.1 ") == 1
        assert b"connection: close" in got


@pytest.mark.parametrize("pieces", [1, 2])
async def test_a_body_behind_an_upgrade_is_read(stopped: Service, pieces: int):
    """As Java's HttpClient and curl --http2 send it over plain HTTP; a server may ignore an Upgrade."""
    async with listening(stopped) as server:
        connection = await server.connect()
        head, _, body = server.mint().partition(b"\r\n\r\n")
        head += b"\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMA"
        if pieces == 1:
            await connection.say(head + b"\r\n\r\n" + body)
        else:
            await connection.say(head + b"\r\n\r\n")
            await connection.say(body)
        status, headers, minted = await connection.answer()
        assert status == 201
        assert minted["token"]
        assert headers["connection"] == "close"
        assert await connection.is_closed()


async def test_a_trailer_that_comes_after_the_answer_ends_the_connection(stopped: Service):
    """Nor is it kept: there may be millions."""
    async with listening(stopped) as server:
        connection = await server.connect()
        await connection.say(CHUNKED)
        assert (await connection.answer())[0] == 401
        await connection.say(b"0\r\nX: y\r\n\r\n")
        assert await connection.is_closed()


async def test_what_stands_before_a_head_is_not_counted_as_part_of_it(stopped: Service):
    async with listening(stopped) as server:
        connection = await server.connect()
        many = MAX_HEAD_BYTES // len(GET) + 10
        await connection.say((GET + b"\r\n") * many + GET)
        for _ in range(many):
            assert (await connection.answer())[0] == 200
        await connection.say(b"\r\n")
        assert (await connection.answer())[0] == 200


async def test_a_request_is_answered_before_what_stands_behind_it_is_refused(stopped: Service):
    async with listening(stopped) as server:
        connection = await server.connect()
        await connection.say(server.mint() + b"garbage\r\n\r\n")
        assert (await connection.answer())[0] == 201
        assert (await connection.answer())[0] == 400
        assert await connection.is_closed()


async def test_http_1_0_is_answered_and_closed(stopped: Service):
    async with listening(stopped) as server:
        connection = await server.connect()
        await connection.say(b"GET /healthz HTTP/1.0\r\n\r\n")
        got = await everything(connection)
        assert got.startswith(b"HTTP/1.1 200 ")


async def test_chunks_are_read_as_one_body(stopped: Service):
    async with listening(stopped) as server:
        connection = await server.connect()
        body = server.mint().partition(b"\r\n\r\n")[2]
        pieces = b"".join(
            b"%x\r\n%b\r\n" % (len(body[i : i + 7]), body[i : i + 7])
            for i in range(0, len(body), 7)
        )
        await connection.say(
            MINT
            + b"Authorization: "
            + server.service.authorization()["authorization"].encode()
            + b"\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
            + pieces
            + b"0\r\n\r\n"
            + GET
            + b"\r\n"
        )
        assert (await connection.answer())[0] == 201
        assert (await connection.answer())[2] == {"alive": True}
