"""A real PostgreSQL for tests: the machine's own server programs, in a temporary folder, as nobody in
particular.

One server for a test session, with a database of its own for every test that asks. `.ci/ensure-postgres`
installs the programs where they are missing; nothing is skipped for want of them.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from itertools import count
from pathlib import Path

from tokensvc.store import upgrade
from tokensvc.store.tables import metadata

__all__ = ["PASSWORD", "USER", "PostgresServer", "programs"]

USER = "tokensvc"
PASSWORD = secrets.token_hex(12)
START_SECONDS = 60.0

_RELATIONS = (
    "SELECT oid, relname FROM pg_class WHERE relnamespace = 'public'::regnamespace ORDER BY 1"
)
_EMPTY = (
    "; ".join(f"DELETE FROM {table.name}" for table in reversed(metadata.sorted_tables)
              if table.name != "feeds")
    + "; DELETE FROM feeds WHERE name NOT IN ('callers', 'bans'); UPDATE feeds SET version = 0"
)  # fmt: skip


def programs() -> Path:
    """Return the folder of initdb and postgres: on the PATH, or where Debian puts them."""
    found = shutil.which("initdb")
    folders = [Path(found).resolve().parent] if found else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=_version, reverse=True)
    for folder in folders:
        if all((folder / name).exists() for name in ("initdb", "postgres", "psql")):
            return folder
    raise RuntimeError("PostgreSQL's server programs are missing: run .ci/ensure-postgres")


def _version(folder: Path) -> int:
    name = folder.parent.name
    return int(name) if name.isdigit() else 0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class PostgresServer:
    """A server on 127.0.0.1 that ends with the tests, and that a test may kill and start again.

    `durable` is for tests of what a crash leaves; without it nothing waits for the disk. `options`
    are settings of the server's. With a `primary` it is a standby of that one, to be promoted.
    """

    def __init__(
        self, *, durable: bool = False, primary: PostgresServer | None = None, **options: str
    ) -> None:
        self.bin = programs()
        self.folder = Path(tempfile.mkdtemp(prefix="tokensvc-postgres-"))
        self.data = self.folder / "data"
        self.port = _free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._numbers = count()
        self._template: str | None = None
        self._free: list[str] = []
        self._relations = ""
        self._as: list[str] = []
        if os.geteuid() == 0:
            # PostgreSQL refuses to run as root.
            account = next(
                pwd.getpwnam(name) for name in ("postgres", "nobody") if _is_account(name)
            )
            os.chown(self.folder, account.pw_uid, account.pw_gid)
            self._as = [
                "setpriv",
                f"--reuid={account.pw_uid}",
                f"--regid={account.pw_gid}",
                "--clear-groups",
            ]
        settings = {"fsync": "on" if durable else "off", "max_connections": "100"} | options
        if not durable:
            settings |= {"synchronous_commit": "off", "full_page_writes": "off"}
        self._settings = settings
        try:
            self._make(primary)
            self.start()
        except BaseException:
            self.close()
            raise

    def url(self, database: str = "postgres", *, port: int | None = None) -> str:
        return f"postgresql://{USER}:{PASSWORD}@127.0.0.1:{port or self.port}/{database}"

    def database(self) -> str:
        """Return the URL of a database with the schema in it and nothing else; see `release`."""
        if self._free:
            return self.url(self._free.pop())
        if self._template is None:
            self.sql("CREATE DATABASE template_tokensvc")
            upgrade(self.url("template_tokensvc"))
            self._relations = self.sql(_RELATIONS, database="template_tokensvc")
            self._template = "template_tokensvc"
        return self.url(self._create(f"TEMPLATE {self._template}"))

    def release(self, url: str) -> None:
        """Take a database back: emptied, for the next test, or dropped where its schema was changed.

        A new one takes a hundred times as long as an emptied one.
        """
        name = url.rpartition("/")[2]
        if self._template and self.sql(_RELATIONS, database=name) == self._relations:
            self.sql(_EMPTY, database=name)
            self._free.append(name)
        else:
            self.sql(f"DROP DATABASE {name} WITH (FORCE)")

    def empty_database(self) -> str:
        """Return the URL of a new database without a schema."""
        return self.url(self._create())

    def put(self, name: str, content: bytes) -> None:
        """Write a file that only the server may read into its folder of data."""
        path = self.data / name
        path.write_bytes(content)
        path.chmod(0o600)
        owner = self.data.stat()
        os.chown(path, owner.st_uid, owner.st_gid)

    def sql(self, statement: str, *, database: str = "postgres") -> str:
        """Run a statement by psql, as a superuser; return what it prints, unaligned."""
        done = subprocess.run(
            [
                str(self.bin / "psql"), "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1",
                "-h", str(self.folder), "-p", str(self.port), "-U", USER, "-d", database,
                "-c", statement,
            ],
            env={"PATH": os.environ["PATH"], "PGPASSWORD": PASSWORD, "LC_ALL": "C.UTF-8"},
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def start(self) -> None:
        """Start the server, and wait until it takes connections."""
        command = [str(self.bin / "postgres"), "-D", str(self.data)]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self._as + command, stdout=log, stderr=log, cwd=self.folder
            )
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            assert self._process.poll() is None, f"the server ended: {self._log()}"
            assert time.monotonic() < deadline, f"the server does not start: {self._log()}"
            time.sleep(0.05)

    def stop(self) -> None:
        """Stop it as an operator does (fast shutdown): transactions are rolled back."""
        self._end(signal.SIGINT)

    def kill(self) -> None:
        """Kill -9 the server and all of its processes, as a machine that loses its power does."""
        assert self._process is not None
        pid = self._process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        self._end(signal.SIGKILL)
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(child), signal.SIGKILL)
        # What still runs holds the shared memory, and the next start would be refused.
        deadline = time.monotonic() + START_SECONDS
        while any(_runs(child) for child in children):
            assert time.monotonic() < deadline, "the server's processes do not end"
            time.sleep(0.01)

    @property
    def running(self) -> bool:
        return self._process is not None

    def close(self) -> None:
        if self._process is not None:
            self._end(signal.SIGQUIT)
        shutil.rmtree(self.folder, ignore_errors=True)

    def promote(self) -> None:
        """Make a standby the primary."""
        self._run("pg_ctl", "promote", "-D", str(self.data), "-w", "-t", "60")

    def _make(self, primary: PostgresServer | None) -> None:
        if primary is None:
            password_file = self.folder / "password"
            password_file.write_text(PASSWORD)
            password_file.chmod(0o644)
            self._run(
                "initdb", "-D", str(self.data), "-U", USER, "--auth=scram-sha-256",
                f"--pwfile={password_file}", "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync",
            )  # fmt: skip
        else:
            self._run(
                "pg_basebackup", "-D", str(self.data), "-d", primary.url(), "-X", "stream", "-R",
                "--checkpoint=fast", "--no-sync",
            )  # fmt: skip
        lines = [
            "listen_addresses = '127.0.0.1'",
            f"port = {self.port}",
            f"unix_socket_directories = '{self.folder}'",
            "shared_buffers = 32MB",
            *(f"{name} = '{value}'" for name, value in self._settings.items()),
        ]
        with (self.data / "postgresql.conf").open("a") as file:
            file.write("\n".join(lines) + "\n")

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [*self._as, str(self.bin / program), *arguments],
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, f"{program} failed: {done.stderr or done.stdout}"

    def _answers(self) -> bool:
        done = subprocess.run(
            [str(self.bin / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port)],
            timeout=30,
            check=False,
        )
        return done.returncode == 0

    def _end(self, number: signal.Signals) -> None:
        process = self._process
        assert process is not None, "the server does not run"
        process.send_signal(number)
        process.wait(timeout=60)
        self._process = None

    def _create(self, options: str = "") -> str:
        name = f"test_{next(self._numbers)}"
        self.sql(f"CREATE DATABASE {name} {options}")
        return name

    def _log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")[-2000:]


def _runs(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip() == "postgres"
    except OSError:
        return False


def _is_account(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True
