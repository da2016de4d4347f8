"""A PostgreSQL that is down, full, locked, read-only, cut off or too slow, and what is said of it."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from sqlalchemy import Connection, insert, text, update
from sqlalchemy.ext.asyncio import AsyncEngine

from tests.postgres import PASSWORD, PostgresServer
from tokensvc.errors import ConfigurationError, StoreRefusedError, StoreUnavailableError
from tokensvc.store import DatabaseLimits, open_engine, postgresql, store_faults
from tokensvc.store.tables import feeds
from tokensvc.store.transactions import open_transactions

SECRET = "a-value-that-must-not-show"
ANY_LIMITS = DatabaseLimits()


@asynccontextmanager
async def opened(url: str, limits: DatabaseLimits = ANY_LIMITS) -> AsyncIterator[AsyncEngine]:
    engine = open_engine(url, limits)
    yield engine
    await engine.dispose()


async def run(engine: AsyncEngine, statement: str) -> None:
    with store_faults("try it"):
        async with engine.begin() as connection:
            await connection.execute(text(statement))


async def fault_of(
    engine: AsyncEngine, statement: str = "UPDATE feeds SET version = version + 1"
) -> StoreUnavailableError:
    with pytest.raises(StoreUnavailableError) as caught:
        await run(engine, statement)
    error = caught.value
    told = f"{error!r}{error.context}{error.__cause__}{engine!r}"
    assert PASSWORD not in told
    assert SECRET not in told
    return error


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# -- Getting there ---------------------------------------------------------------------------------


async def test_refused_connections(postgres):
    async with opened(postgres.url("any", port=free_port())) as engine:
        error = await fault_of(engine)
    assert error.detail == "The database refuses connections; it may be down."
    assert error.retry_after is not None


async def test_a_wrong_password(postgres, url):
    async with opened(url.replace(PASSWORD, "hunter2")) as engine:
        error = await fault_of(engine)
    assert error.detail == "The database refuses the user or the password."
    assert "hunter2" not in f"{error!r}{error.context}"


async def test_no_such_database(postgres):
    async with opened(postgres.url("nowhere")) as engine:
        assert (await fault_of(engine)).detail == "There is no such database."


async def test_no_such_host():
    async with opened("postgresql://u:p@no-such-host.invalid/db") as engine:
        error = await fault_of(engine)
    assert error.detail == "The name of the database's host is not known."


async def test_a_server_that_says_nothing_is_given_up_after_the_connect_timeout():
    async def say_nothing(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        held.append(writer)

    held: list[asyncio.StreamWriter] = []
    async with await asyncio.start_server(say_nothing, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        limits = DatabaseLimits(connect_timeout=0.2)
        async with opened(f"postgresql://u:p@127.0.0.1:{port}/db", limits) as engine:
            error = await fault_of(engine)
        for writer in held:
            writer.close()
    assert error.detail == "The database does not answer in time."


async def test_too_many_connections(postgres, url):
    postgres.sql(f"CREATE ROLE one LOGIN PASSWORD '{PASSWORD}' CONNECTION LIMIT 1")
    as_one = url.replace("//tokensvc:", "//one:")
    async with opened(as_one) as first, opened(as_one) as second, first.connect() as held:
        await held.execute(text("SELECT 1"))
        assert (await fault_of(second)).detail == "The database has too many connections."
    postgres.sql("DROP ROLE one")


async def test_all_connections_of_the_pool_busy(url, monkeypatch):
    monkeypatch.setattr(postgresql, "POOL_TIMEOUT_SECONDS", 0.05)
    async with opened(url, DatabaseLimits(pool_size=1)) as engine:
        async with engine.connect() as held:
            await held.execute(text("SELECT 1"))
            with pytest.raises(StoreUnavailableError, match="connections are busy"):
                await run(engine, "SELECT 1")
        await run(engine, "SELECT 1")


async def test_the_pool_is_as_large_as_was_set_and_says_who_it_is(postgres, url):
    async with opened(url, DatabaseLimits(pool_size=3)) as engine:
        await asyncio.gather(*(run(engine, "SELECT pg_sleep(0.05)") for _ in range(12)))
        count = postgres.sql(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'tokensvc'"
            f" AND datname = '{url.rpartition('/')[2]}'"
        )
    assert count == "3"


# -- Statements ------------------------------------------------------------------------------------


async def test_a_statement_that_takes_too_long(url):
    async with opened(url, DatabaseLimits(statement_timeout=0.1)) as engine:
        error = await fault_of(engine, "SELECT pg_sleep(30)")
        assert error.detail == "The database took too long for a statement."
        await run(engine, "SELECT 1")


async def test_a_lock_that_is_not_let_go(url):
    limits = DatabaseLimits(lock_timeout=0.1)
    async with opened(url, limits) as engine, engine.connect() as other:
        await other.execute(text("UPDATE feeds SET version = 7"))
        error = await fault_of(engine)
        await other.rollback()
        await run(engine, "UPDATE feeds SET version = 8")
    assert error.detail == "The database is locked by another transaction."


@pytest.mark.parametrize(
    ("sqlstate", "words"),
    [
        ("53100", "The disk that holds the database is full."),
        ("53200", "The database is out of memory."),
        ("58030", "The disk that holds the database fails."),
        ("XX001", "The database is damaged."),
        ("57P01", "The database is shutting down."),
        ("42501", "The database user may not do that."),
        ("0A000", "The database refuses the statement."),
    ],
)
async def test_what_a_server_says_in_words(postgres, url, engine, sqlstate, words):
    error = await fault_of(
        engine,
        f"DO $$ BEGIN RAISE EXCEPTION '{SECRET}' USING ERRCODE = '{sqlstate}'; END $$",
    )
    assert (error.detail, error.context["sqlstate"]) == (words, sqlstate)
    await run(engine, "SELECT 1")


@pytest.mark.parametrize(
    "statement",
    [
        f"INSERT INTO feeds VALUES ('{SECRET}', 1), ('{SECRET}', 1)",
        f"INSERT INTO feeds VALUES ('{SECRET}{SECRET}{SECRET}', 1)",
        f"INSERT INTO feeds VALUES ('{SECRET}', '{SECRET}'::bigint)",
    ],
)
async def test_a_value_that_is_refused_is_not_repeated(engine, statement):
    with pytest.raises(StoreRefusedError) as caught:
        await run(engine, statement)
    error = caught.value
    assert error.detail == "The database refuses a value."
    assert SECRET not in f"{error!r}{error.context}{error.__cause__}"


@pytest.mark.parametrize("name", ["\ud800", "nul \x00", "x" * 65])
async def test_what_a_transaction_is_refused_is_the_value(engine, name):
    transactions = open_transactions(engine)
    with pytest.raises(StoreRefusedError):
        await transactions.run(
            "try it",
            lambda connection: connection.execute(insert(feeds), [{"name": name, "version": 1}]),
        )
    assert await transactions.run("look", lambda c: c.execute(text("SELECT 1")).scalar()) == 1


async def test_of_two_that_wait_for_each_other_both_get_done(postgres, url):
    """PostgreSQL ends one of them; that one is run again."""
    postgres.sql("ALTER SYSTEM SET deadlock_timeout = '20ms'")
    postgres.sql("SELECT pg_reload_conf()")
    runs: list[str] = []

    def work(first: str, second: str) -> Callable[[Connection], None]:
        def both(connection: Connection) -> None:
            runs.append(first)
            for name in (first, second):
                row = update(feeds).where(feeds.c.name == name)
                connection.execute(row.values(version=feeds.c.version + 1))
                # So that each has its first row before it asks for its second.
                connection.execute(text("SELECT pg_sleep(0.1)"))

        return both

    async with opened(url) as engine:
        transactions = open_transactions(engine)
        await asyncio.gather(
            transactions.run("one", work("bans", "callers")),
            transactions.run("other", work("callers", "bans")),
        )
        versions = await transactions.run(
            "look", lambda c: c.execute(text("SELECT version FROM feeds")).scalars().all()
        )
    postgres.sql("ALTER SYSTEM RESET deadlock_timeout")
    postgres.sql("SELECT pg_reload_conf()")
    assert len(runs) == 3
    assert versions == [2, 2]


async def test_a_deadlock_that_comes_back_every_time_is_not_tried_for_ever(engine):
    runs: list[int] = []

    def work(connection: Connection) -> None:
        runs.append(1)
        connection.execute(text("DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '40P01'; END $$"))

    with pytest.raises(StoreUnavailableError, match="in favour of another"):
        await open_transactions(engine).run("try it", work)
    assert len(runs) == 4


# -- Servers that go and come ----------------------------------------------------------------------


async def test_connections_that_the_server_has_ended_are_not_used_again(postgres, url):
    async with opened(url, DatabaseLimits(pool_size=4)) as engine:
        await asyncio.gather(*(run(engine, "SELECT pg_sleep(0.05)") for _ in range(4)))
        postgres.sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            f" WHERE datname = '{url.rpartition('/')[2]}'"
        )
        await asyncio.sleep(0.05)  # the loop hears of what has happened to its sockets
        await asyncio.gather(*(run(engine, "SELECT 1") for _ in range(8)))


async def test_requests_that_are_given_up_leave_the_pool_as_it_was(url):
    async with opened(url, DatabaseLimits(pool_size=2)) as engine:
        for _ in range(10):
            given_up = [asyncio.create_task(run(engine, "SELECT pg_sleep(5)")) for _ in range(4)]
            await asyncio.sleep(0.01)
            for task in given_up:
                task.cancel()
            await asyncio.gather(*given_up, return_exceptions=True)
        async with asyncio.timeout(10):
            await asyncio.gather(*(run(engine, "SELECT 1") for _ in range(8)))


async def test_a_server_that_became_read_only_is_left_for_the_one_that_takes_writes(postgres, url):
    """As with a failover behind one name: the connection stays, and its server is a standby now."""
    name = url.rpartition("/")[2]
    async with opened(url) as engine:
        await run(engine, "SELECT 1")
        postgres.sql(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
        await engine.dispose()
        assert (await fault_of(engine)).detail == "The database is read-only: a standby, or set so."
        postgres.sql(f"ALTER DATABASE {name} RESET default_transaction_read_only")
        # The connection that met the standby would still be read-only.
        await run(engine, "UPDATE feeds SET version = version + 1")


@asynccontextmanager
async def cuttable(port: int) -> AsyncIterator[tuple[int, Callable[[], None]]]:
    """A way to the server that can be cut: nothing passes any more, and nothing is closed."""
    open_ = asyncio.Event()
    open_.set()
    tasks: list[asyncio.Task[None]] = []
    writers: list[asyncio.StreamWriter] = []

    async def pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        while data := await source.read(65_536):
            await open_.wait()
            target.write(data)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", port)
        writers.extend((writer, back))
        tasks.append(asyncio.create_task(pump(reader, back)))
        tasks.append(asyncio.create_task(pump(there, writer)))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1], open_.clear
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for writer in writers:
            writer.transport.abort()
        server.close()


async def test_a_network_that_is_cut_is_an_error_within_a_bound(postgres, url, monkeypatch):
    monkeypatch.setattr(postgresql, "CLIENT_MARGIN_SECONDS", 0.1)
    limits = DatabaseLimits(statement_timeout=0.2, connect_timeout=0.5, pool_size=1)
    async with cuttable(postgres.port) as (port, cut):
        engine = open_engine(postgres.url(url.rpartition("/")[2], port=port), limits)
        await run(engine, "SELECT 1")
        cut()
        async with asyncio.timeout(20):
            error = await fault_of(engine)
            assert error.detail == "The database does not answer in time."
            assert (await fault_of(engine)).detail == "The database does not answer in time."
            await engine.dispose()


# -- TLS -------------------------------------------------------------------------------------------


@pytest.fixture
def certificate(postgres: PostgresServer, tmp_path: Path) -> Iterator[Path]:
    """The server speaks TLS, with a certificate for 127.0.0.1 that this file is the root of."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
            critical=False,
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    public = made.public_bytes(serialization.Encoding.PEM)
    postgres.put("server.key", private)
    postgres.put("server.crt", public)
    postgres.sql("ALTER SYSTEM SET ssl = on")
    postgres.sql("SELECT pg_reload_conf()")
    root = tmp_path / "root.crt"
    root.write_bytes(public)
    yield root
    postgres.sql("ALTER SYSTEM RESET ssl")
    postgres.sql("SELECT pg_reload_conf()")


async def is_encrypted(engine: AsyncEngine) -> bool:
    with store_faults("look"):
        async with engine.connect() as connection:
            query = text("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
            return bool((await connection.execute(query)).scalar_one())


async def test_tls_as_the_url_asks_for_it(url, certificate):
    for query, encrypted in (
        (f"?sslmode=verify-full&sslrootcert={certificate}", True),
        ("?sslmode=require", True),
        ("", True),
        ("?sslmode=disable", False),
    ):
        async with opened(url + query) as engine:
            assert await is_encrypted(engine) is encrypted, query


async def test_a_server_that_cannot_be_verified_is_not_talked_to(url, certificate, tmp_path):
    other_name = url.replace("@127.0.0.1:", "@localhost:")
    async with opened(f"{other_name}?sslmode=verify-full&sslrootcert={certificate}") as engine:
        assert "TLS with the database failed" in (await fault_of(engine)).detail


async def test_no_tls_where_it_is_required(postgres, url):
    async with opened(f"{url}?sslmode=require") as engine:
        assert (await fault_of(engine)).detail == "The database cannot be reached, or not by TLS."


# -- URLs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("postgresql://svc:hunter2@db", "must name one database"),
        ("postgresql://svc:hunter2@db/", "must name one database"),
        ("postgresql://svc:hunter2@db/a/b", "must name one database"),
        ("postgresql://svc:hunter2@db/a#b", "must name one database"),
        ("postgresql://svc:hunter2@db/a?sslmod=require", "not known, 'sslmod'"),
        ("postgresql://svc:hunter2@db/a?statement_timeout=0", "not known"),
        ("postgresql://svc:hunter2@db/a?sslmode=on", "sslmode in the database URL must be of"),
        ("postgresql://svc:hunter2@db/a?sslrootcert=/nowhere/root.crt", "sslrootcert .* No such"),
        ("postgresql://svc:hunter2@db/a?sslmode", "does not parse"),
        ("postgresql://svc:hunter2@[db/a", "does not parse"),
    ],
)
def test_a_url_that_cannot_work_is_refused_before_anything_connects(url, reason):
    with pytest.raises(ConfigurationError, match=reason) as caught:
        open_engine(url)
    assert "hunter2" not in f"{caught.value!r}{caught.value.context}{caught.value.__cause__}"
    assert "\n" not in caught.value.detail


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+asyncpg"])
async def test_every_usual_way_to_write_the_scheme_works(url, scheme):
    async with opened(url.replace("postgresql", scheme, 1)) as engine:
        await run(engine, "SELECT 1")


async def test_of_several_hosts_the_one_that_takes_writes_is_found(postgres, url):
    rest = url.partition("127.0.0.1")[2]
    hosts = f"127.0.0.1:{free_port()},127.0.0.1{rest}?target_session_attrs=read-write"
    async with opened(f"postgresql://tokensvc:{PASSWORD}@{hosts}") as engine:
        await run(engine, "UPDATE feeds SET version = version + 1")
