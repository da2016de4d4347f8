"""The server on a real socket: bounds of a connection, a port that is taken, draining, workers."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from tests.http.support import Service, stage_arn
from tokensvc.errors import ConfigurationError
from tokensvc.http.app import create_app
from tokensvc.http.draining import has_waiting, refuse_connections
from tokensvc.http.edge import Edge
from tokensvc.http.protocol import MAX_HEAD_BYTES, BoundedHttpProtocol
from tokensvc.http.server import Server, bind_socket, serve, server_config
from tokensvc.settings import PREFIX, Settings


@dataclass
class Connection:
    """A client that says whatever it likes."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def say(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self) -> tuple[int, dict[str, str], dict[str, Any]]:
        """Read one answer: status, headers, JSON body."""
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {
            name.lower(): value
            for name, _, value in (line.partition(": ") for line in head[1:] if line)
        }
        body = await self.reader.readexactly(int(headers["content-length"]))
        return int(head[0].split(" ")[1]), headers, json.loads(body)

    async def is_closed(self) -> bool:
        """Tell whether the other end has closed; waits for it."""
        with contextlib.suppress(ConnectionError):
            return await self.reader.read() == b""
        return True


class Listening:
    """A server that listens in this process."""

    def __init__(self, server: Server, port: int, service: Service) -> None:
        self.server = server
        self.port = port
        self.service = service
        self._open: list[asyncio.StreamWriter] = []

    async def connect(self) -> Connection:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        self._open.append(writer)
        return Connection(reader, writer)

    def mint(self, body: bytes | None = None) -> bytes:
        """Return the bytes of a request that mints."""
        body = json.dumps({"stageArn": stage_arn()}).encode() if body is None else body
        return (
            b"POST /v1/tokens HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Authorization: %b\r\nContent-Length: %d\r\n\r\n%b"
            % (self.service.authorization()["authorization"].encode(), len(body), body)
        )

    def close(self) -> None:
        for writer in self._open:
            writer.close()


async def until(condition: Callable[[], bool]) -> None:
    """Let others run until `condition` holds."""
    while not condition():  # noqa: ASYNC110 - the server offers no event for it
        await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def listening(service: Service) -> AsyncIterator[Listening]:
    app = create_app(
        service.settings,
        clock=lambda: service.now,
        gateway=service.ivs,
        sleep=service.sleeper.sleep,
        monotonic=lambda: service.now,
    )
    with bind_socket("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        server = Server(server_config(service.settings, app))
        task = asyncio.create_task(server.serve(sockets=[listener]))
        await service.at_rest()
        found = Listening(server, port, service)
        try:
            yield found
        finally:
            found.close()
            server.should_exit = True
            await task


@pytest.fixture
async def server(stopped: Service) -> AsyncIterator[Listening]:
    async with listening(stopped) as found:
        yield found


async def test_a_connection_is_kept_and_the_server_names_no_software(server: Listening):
    connection = await server.connect()
    for _ in range(2):
        await connection.say(server.mint())
        status, headers, body = await connection.answer()
        assert status == 201
        assert body["issuer"] == "local"
        assert "server" not in headers
        assert "connection" not in headers


async def test_a_head_without_end_is_refused(server: Listening):
    connection = await server.connect()
    await connection.say(b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Long: ")
    await connection.say(b"x" * (MAX_HEAD_BYTES + 1))
    status, headers, problem = await connection.answer()
    assert status == problem["status"] == 431
    assert headers["content-type"] == "application/problem+json"
    assert await connection.is_closed()


async def test_a_head_that_never_ends_is_given_up(
    stopped: Service, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("tokensvc.http.protocol.HEAD_SECONDS", 0.0)
    async with listening(stopped) as server:
        connection = await server.connect()
        assert await connection.is_closed()


async def test_the_second_head_of_a_connection_is_given_up_too(server: Listening):
    connection = await server.connect()
    await connection.say(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (await connection.answer())[0] == 200
    await connection.say(b"GET /hea")
    (protocol,) = server.server.server_state.connections
    assert isinstance(protocol, BoundedHttpProtocol)
    await until(lambda: protocol._head_timer is not None)
    # The timer itself is asyncio's; what it does is ours.
    protocol._give_up()
    assert await connection.is_closed()


REFUSED_EARLY = (
    b"POST /v1/tokens HTTP/1.1\r\nHost: x\r\n"
    b"Content-Type: application/json\r\nContent-Length: 9\r\n\r\n{"
)


async def test_what_is_left_of_a_body_is_not_waited_for_without_end(
    stopped: Service, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("tokensvc.http.protocol.REST_SECONDS", 0.0)
    async with listening(stopped) as server:
        connection = await server.connect()
        await connection.say(REFUSED_EARLY)
        assert (await connection.answer())[0] == 401
        assert await connection.is_closed()


@pytest.mark.parametrize("rest", [b'      "}', b'      "}\r\n'])
async def test_a_body_that_ends_after_its_answer_leaves_the_connection_watched_and_usable(
    server: Listening, rest: bytes
):
    connection = await server.connect()
    await connection.say(REFUSED_EARLY)
    assert (await connection.answer())[0] == 401
    protocol = only_protocol(server)
    await until(lambda: protocol._rest_timer is not None)
    await connection.say(rest)
    await until(lambda: protocol._rest_timer is None)
    # Neither is it idle for ever.
    await until(lambda: protocol._idle_since is not None)
    assert protocol._idle_timer is not None
    await connection.say(server.mint())
    assert (await connection.answer())[0] == 201


async def test_empty_lines_are_no_request_that_would_be_waited_for(server: Listening):
    connection = await server.connect()
    await connection.say(server.mint())
    assert (await connection.answer())[0] == 201
    protocol = only_protocol(server)
    await until(lambda: protocol._idle_since is not None)
    before = protocol._idle_since
    await connection.say(b"\r\n")
    await until(lambda: protocol._idle_since not in (None, before))
    assert protocol._idle_timer is not None


@pytest.mark.parametrize("path", ["/schema", "/v1/tokens/batch"])
async def test_an_answer_that_nobody_takes_ends_the_connection(
    stopped: Service, monkeypatch: pytest.MonkeyPatch, path: str
):
    monkeypatch.setattr("tokensvc.http.protocol.TAKE_SECONDS", 0.0)
    if path == "/schema":
        ask = b"GET /schema HTTP/1.1\r\nHost: x\r\n\r\n"
    else:
        item = json.dumps({"stageArn": stage_arn()})
        body = f'{{"tokens":[{",".join([item] * 1000)}]}}'.encode()
        ask = Listening.mint(Listening(None, 0, stopped), body).replace(  # type: ignore[arg-type]
            b"/v1/tokens", b"/v1/tokens/batch"
        )
    async with listening(stopped) as server:
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(client, ("127.0.0.1", server.port))
            connections = server.server.server_state.connections
            await until(lambda: bool(connections))
            for _ in range(40):
                with contextlib.suppress(ConnectionError):
                    await loop.sock_sendall(client, ask)
            await until(lambda: not connections)


async def test_a_connection_is_closed_whether_or_not_its_last_answer_is_taken(server: Listening):
    connection = await server.connect()
    await connection.say(server.mint())
    assert (await connection.answer())[0] == 201
    protocol = only_protocol(server)
    protocol._give_up()
    assert protocol._take_timer is not None
    assert await connection.is_closed()
    await until(lambda: not server.server.server_state.connections)
    assert protocol._take_timer.cancelled()


def only_protocol(server: Listening) -> BoundedHttpProtocol:
    (protocol,) = server.server.server_state.connections
    assert isinstance(protocol, BoundedHttpProtocol)
    return protocol


async def test_what_is_not_http_is_answered_by_a_problem(server: Listening):
    connection = await server.connect()
    await connection.say(b"\x16\x03\x01 this is no HTTP\r\n\r\n")
    status, headers, problem = await connection.answer()
    assert (status, problem["code"]) == (400, "invalid_request")
    assert headers["content-type"] == "application/problem+json"
    assert await connection.is_closed()


async def test_a_connection_too_many_is_answered_503(stopped: Service):
    stopped.settings = replace(stopped.settings, max_connections=2)
    async with listening(stopped) as server:
        first, second = [await server.connect() for _ in range(2)]
        for connection in (first, second):
            await connection.say(server.mint())
            assert (await connection.answer())[0] == 201
        third = await server.connect()
        await third.say(server.mint())
        status, headers, problem = await third.answer()
        assert (status, problem["code"]) == (503, "overloaded")
        assert headers["retry-after"] == "1"
        assert headers["connection"] == "close"
        assert headers["x-request-id"] == problem["requestId"]
        assert await third.is_closed()
        # Those that were there before, and one that takes the place of another, are served.
        await first.say(server.mint())
        assert (await first.answer())[0] == 201


async def test_a_body_too_large_ends_the_connection(server: Listening):
    connection = await server.connect()
    await connection.say(server.mint(b" " * 40_000))
    status, headers, problem = await connection.answer()
    assert (status, problem["code"]) == (413, "body_too_large")
    assert headers["connection"] == "close"


@pytest.mark.parametrize("what", ["body", "chunks", "head", "no HTTP"])
async def test_who_sends_too_much_gets_the_answer_before_the_end(server: Listening, what: str):
    megabytes = b" " * 8_000_000
    request, status = {
        "body": (server.mint(megabytes), 413),
        "chunks": (
            server.mint(b"").replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
            + b"7a1200\r\n%b\r\n0\r\n\r\n" % megabytes,
            413,
        ),
        "head": (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + megabytes, 431),
        "no HTTP": (b"\x16\x03\x01" + megabytes, 400),
    }[what]
    connection = await server.connect()
    # All of it, before the answer is looked at.
    await connection.say(request)
    assert (await connection.answer())[0] == status
    assert await connection.is_closed()
    connection.writer.close()
    await until(lambda: not server.server.server_state.connections)


async def test_who_never_stops_sending_is_not_read_without_end(
    stopped: Service, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("tokensvc.http.protocol.LINGER_SECONDS", 0.0)
    async with listening(stopped) as server:
        connection = await server.connect()
        await connection.say(server.mint(b" " * 40_000)[:-1])
        assert (await connection.answer())[0] == 413
        # Nothing more is sent, and the connection not closed from here.
        await until(lambda: not server.server.server_state.connections)


async def test_pipelined_requests_are_answered_in_order(server: Listening):
    connection = await server.connect()
    await connection.say(server.mint() + b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (await connection.answer())[0] == 201
    assert (await connection.answer())[2] == {"alive": True}


async def test_what_was_accepted_is_answered_after_the_stop(
    server: Listening, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("tokensvc.http.server.LINGER_SECONDS", 0.0)
    answered, begun, idle = [await server.connect() for _ in range(3)]
    request = server.mint()
    await answered.say(request[:-10])
    await begun.say(b"GET /heal")
    await until(lambda: bool(server.server.server_state.tasks))
    server.server.should_exit = True
    assert await idle.is_closed()
    await answered.say(request[-10:])
    await begun.say(b"thz HTTP/1.1\r\nHost: x\r\n\r\n")
    status, headers, body = await answered.answer()
    assert status == 201
    assert body["token"]
    for connection, connection_headers in (
        (answered, headers),
        (begun, (await begun.answer())[1]),
    ):
        assert connection_headers["connection"] == "close"
        assert await connection.is_closed()


async def test_what_comes_on_an_open_connection_while_it_drains_is_answered_as_the_last(
    server: Listening, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("tokensvc.http.server.LINGER_SECONDS", 60.0)
    health = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    requests = (server.mint()[:-1], server.mint(), health)
    connections = [await server.connect() for _ in requests]
    for connection in connections:
        await connection.say(health)
        assert "connection" not in (await connection.answer())[1]
    server.server.should_exit = True
    edge = server.server.config.app
    assert isinstance(edge, Edge)
    await until(lambda: edge.is_draining)
    for connection, request in zip(connections, requests, strict=True):
        await connection.say(request)
        # The first one is under way before the rest of it comes.
        await until(lambda: bool(server.server.server_state.tasks))
    await connections[0].say(server.mint()[-1:])
    for connection in connections:
        status, headers, _ = await connection.answer()
        assert status in (200, 201)
        assert headers["connection"] == "close"
        assert await connection.is_closed()


async def test_who_waits_to_be_accepted_at_the_stop_is_served(stopped: Service):
    with bind_socket("127.0.0.1", 0) as listener:
        app = create_app(
            stopped.settings,
            clock=lambda: stopped.now,
            gateway=stopped.ivs,
            sleep=stopped.sleeper.sleep,
        )
        server = Server(server_config(stopped.settings, app), own_socket=True)
        task = asyncio.create_task(server.serve(sockets=[listener]))
        await stopped.at_rest()
        address = listener.getsockname()
        server.should_exit = True
        # Nothing has turned the event loop since, so these are in the queue when the end begins.
        waiting = [socket.create_connection(address) for _ in range(8)]
        for one in waiting:
            one.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        for one in waiting:
            one.setblocking(False)
            reader, writer = await asyncio.open_connection(sock=one)
            assert (await Connection(reader, writer).answer())[0] == 200
            writer.close()
        await task


def test_a_socket_that_takes_no_more_keeps_those_it_has():
    with bind_socket("127.0.0.1", 0) as listener, contextlib.ExitStack() as closing:
        address = listener.getsockname()
        before = closing.enter_context(socket.create_connection(address))
        refuse_connections(listener)
        late = closing.enter_context(socket.socket())
        late.setblocking(False)
        assert late.connect_ex(address) == errno.EINPROGRESS
        assert has_waiting(listener)
        accepted = closing.enter_context(listener.accept()[0])
        before.sendall(b"x")
        assert accepted.recv(1) == b"x"
        assert not has_waiting(listener)
        # On the loopback it would be connected by now.
        assert select.select([], [late], [], 0)[1] == []


def test_a_port_that_is_taken_is_one_line():
    with bind_socket("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError) as raised:
            bind_socket("127.0.0.1", port)
    assert raised.value.detail == f"Cannot listen on 127.0.0.1:{port}: address already in use."


@pytest.mark.parametrize("host", ["203.0.113.1", "no such host", "::ffff:203.0.113.1", "256.1.1.1"])
def test_an_address_that_is_not_ours_is_one_line(host: str):
    with pytest.raises(ConfigurationError) as raised:
        bind_socket(host, 0)
    assert "\n" not in raised.value.detail
    assert host in raised.value.detail


def test_ipv6():
    with bind_socket("::1", 0) as listener:
        assert listener.family is socket.AF_INET6
        port = listener.getsockname()[1]
        with pytest.raises(ConfigurationError, match=rf"\[::1\]:{port}"):
            bind_socket("::1", port)


def test_serve_says_in_one_error_what_is_missing(tmp_path: Path):
    for workers in (1, 2):
        settings = Settings(data_dir=tmp_path, regions=("eu-central-1",), port=0, workers=workers)
        with pytest.raises(ConfigurationError, match="tokensvc db upgrade"):
            serve(settings)


class Process:
    """`serve` in a process of its own, with an IVS that cannot be reached."""

    def __init__(self, folder: Path, workers: int, **settings: str) -> None:
        with bind_socket("127.0.0.1", 0) as free, bind_socket("127.0.0.1", 0) as closed:
            self.port = free.getsockname()[1]
            nobody = closed.getsockname()[1]
        own = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
        self.log = (folder / "log").open("w+b")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tokensvc", "serve"],
            env={
                **own,
                "TOKENSVC_DATA_DIR": str(folder),
                "TOKENSVC_REGIONS": "eu-central-1",
                "TOKENSVC_PORT": str(self.port),
                "TOKENSVC_WORKERS": str(workers),
                "TOKENSVC_AWS_ENDPOINT_URL": f"http://127.0.0.1:{nobody}",
                "AWS_ACCESS_KEY_ID": "x",
                "AWS_SECRET_ACCESS_KEY": "x",
                **settings,
            },
            stderr=self.log,
        )

    def lines(self) -> list[dict[str, Any]]:
        self.log.seek(0)
        return [json.loads(line) for line in self.log.read().splitlines()]

    def told(self, event: str, count: int = 1) -> list[dict[str, Any]]:
        """Wait until the log has so many lines of an event, and return them."""
        while True:
            found = [line for line in self.lines() if line["event"] == event]
            if len(found) >= count:
                return found
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(0.05)
                raise AssertionError(self.lines())

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


@pytest.fixture
def started(stopped: Service) -> Iterator[Any]:
    processes: list[Process] = []

    def start(workers: int, **settings: str) -> Process:
        processes.append(Process(stopped.settings.data_dir, workers, **settings))
        return processes[-1]

    yield start
    for process in processes:
        process.process.kill()
        process.process.wait()
        process.log.close()


async def test_sigterm_drains_and_ends_well(stopped: Service, started: Any):
    process = started(1)
    process.told("service_started")
    reader, writer = await asyncio.open_connection("127.0.0.1", process.port)
    connection = Connection(reader, writer)
    body = b'{"stageArn": "nonsense"}'
    await connection.say(
        b"POST /v1/tokens HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Expect: 100-continue\r\nAuthorization: %b\r\nContent-Length: %d\r\n\r\n"
        % (stopped.authorization()["authorization"].encode(), len(body))
    )
    # The handler asks for the body, so the request is accepted and under way.
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    process.process.send_signal(signal.SIGTERM)
    await connection.say(body)
    assert (await connection.answer())[0] == 400
    assert await connection.is_closed()
    writer.close()
    assert process.process.wait(60) == 0
    process.told("service_stopping")
    assert "Traceback" not in str(process.lines())


async def test_workers_share_the_port_and_a_dead_one_is_replaced(started: Any):
    process = started(2)
    process.told("service_started", 2)
    first, second = process.told("worker_started", 2)
    os.kill(second["pid"], signal.SIGKILL)
    assert process.told("worker_died")[0]["exitcode"] == -signal.SIGKILL
    replacement = process.told("worker_started", 3)[2]
    assert replacement["worker"] == second["worker"]
    process.told("service_started", 3)
    connection = Connection(*await asyncio.open_connection("127.0.0.1", process.port))
    await connection.say(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert (await connection.answer())[0] == 200
    connection.writer.close()
    assert process.end() == 0
    assert len(process.told("service_stopping")) >= 2
    for pid in (first["pid"], replacement["pid"]):
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_sighup_ends_no_service_that_is_still_starting(started: Any, workers: int):
    process = started(workers)
    process.told("listening")
    for _ in range(20):
        process.process.send_signal(signal.SIGHUP)
    process.told("service_started", workers)
    assert process.end() == 0


async def test_sighup_takes_a_new_policy_into_every_worker_and_drops_no_request(
    stopped: Service, started: Any, tmp_path: Path
):
    policy = tmp_path / "policy.yaml"
    policy.write_text("{version: 1, callers: {}}")
    fresh = tmp_path / "new.yaml"
    fresh.write_text(
        'version: 1\ncallers: {all: {stages: ["*"], capabilities: [SUBSCRIBE],'
        " duration: 60, issuer: [local]}}"
    )
    process = started(2, TOKENSVC_POLICY_FILE=str(policy), TOKENSVC_POLICY_REFRESH="3600")
    process.told("service_started", 2)
    body = json.dumps({"stageArn": stage_arn(), "issuer": "local"}).encode()
    request = (
        b"POST /v1/tokens HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Authorization: %b\r\nContent-Length: %d\r\n\r\n%b"
        % (stopped.authorization()["authorization"].encode(), len(body), body)
    )
    replaced = asyncio.Event()
    denied = 0

    async def ask_until_allowed() -> None:
        nonlocal denied
        connection = Connection(*await asyncio.open_connection("127.0.0.1", process.port))
        code = "policy_denied"
        while code == "policy_denied":
            await connection.say(request)
            status, _, problem = await connection.answer()
            assert status in (403, 503), problem
            code = problem["code"]
            denied += 1
            if denied == 64:
                replaced.set()
        # What the policy allows gets as far as the ring, which has no key here.
        assert code == "no_signing_key"
        connection.writer.close()

    async def replace_policy() -> None:
        await replaced.wait()
        fresh.rename(policy)
        process.process.send_signal(signal.SIGHUP)

    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        group.create_task(replace_policy())
        for _ in range(16):
            group.create_task(ask_until_allowed())
    # The parent has checked it, each worker has read it, and then each has read the new one.
    loaded = process.told("policy_file_loaded", 5)
    assert [line.get("worker") for line in loaded if line["before"]] in ([0, 1], [1, 0])
    assert process.end() == 0
    assert "Traceback" not in str(process.lines())


def arenas(pid: int) -> int:
    """Count glibc's arenas of threads: 64 MiB, aligned to as much, of which the first part is in use."""
    size, found, before = 64 << 20, 0, (0, 0, "")
    for line in Path(f"/proc/{pid}/maps").read_text("ascii").splitlines():
        span, rights, *_ = line.split()
        start, end = (int(one, 16) for one in span.split("-"))
        used = before[0] % size == 0 and before[1:] == (start, "rw-p")
        found += used and rights == "---p" and end - before[0] == size
        before = (start, end, rights)
    return found


def test_all_threads_of_a_worker_share_one_arena(started: Any):
    process = started(1)
    process.told("service_started")
    assert len(list(Path(f"/proc/{process.process.pid}/task").iterdir())) > 3
    assert arenas(process.process.pid) == 1
