"""What installs PostgreSQL does nothing where it is there, and fails with one line where it cannot."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / ".ci" / "ensure-postgres"
TOOLS = ("bash", "cat", "chmod", "dirname", "env", "mkdir", "mktemp", "readlink", "rm", "tail")
PROGRAMS = ("initdb", "postgres", "psql")


class Machine:
    """A PATH of its own, on which apt-get only notes its calls and does as it is told."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.bin = root / "bin"
        self.bin.mkdir()
        for tool in TOOLS:
            found = shutil.which(tool)
            assert found is not None
            (self.bin / tool).symlink_to(found)
        # Not root: the script asks sudo.
        self.command("sudo", 'shift; [[ $1 == true ]] || exec "$@"')

    def command(self, name: str, then: str = "exit 0") -> None:
        path = self.bin / name
        path.write_text(f'#!/usr/bin/env bash\necho "{name} $*" >>"{self.root}/calls"\n{then}\n')
        path.chmod(0o755)

    @property
    def calls(self) -> list[str]:
        log = self.root / "calls"
        return log.read_text().splitlines() if log.exists() else []

    def run(self) -> subprocess.CompletedProcess[str]:
        # A copy that looks for Debian's folder under the machine's root.
        script = self.root / "ensure-postgres"
        folder = f"{self.root}/usr/lib/postgresql"
        script.write_text(SCRIPT.read_text().replace("/usr/lib/postgresql", folder))
        return subprocess.run(
            ["bash", str(script)],
            env={"PATH": str(self.bin)},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def install_by(machine: Machine) -> str:
    """Return what makes apt-get put the programs where Debian does."""
    folder = machine.root / "usr/lib/postgresql/15/bin"
    made = " ".join(f"{folder}/{name}" for name in PROGRAMS)
    make = f"for f in {made}; do echo >$f; chmod +x $f; done"
    return f"[[ $* != *install* ]] || {{ mkdir -p {folder}; {make}; }}"


@pytest.mark.parametrize("where", ["bin", "usr/lib/postgresql/15/bin"])
def test_nothing_is_done_where_the_programs_are(machine, where):
    machine.command("apt-get")
    folder = machine.root / where
    folder.mkdir(parents=True, exist_ok=True)
    for name in PROGRAMS:
        (folder / name).touch(0o755)
    done = machine.run()
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert machine.calls == []


def test_it_is_installed_where_it_is_missing(machine):
    machine.command("apt-get", install_by(machine))
    done = machine.run()
    assert (done.returncode, done.stdout, done.stderr) == (0, "Installing PostgreSQL ...\n", "")
    (install,) = [call for call in machine.calls if call.startswith("apt-get")]
    assert install.endswith("install -y --no-install-recommends postgresql")


@pytest.mark.parametrize(
    ("apt_get", "reason"),
    [
        (None, "there is no apt-get here"),
        ("echo 'E: no network' >&2; exit 100", "apt-get failed (E: no network)"),
        ("exit 0", "there is no initdb even after apt-get"),
    ],
)
def test_what_cannot_be_installed_is_said_in_one_line(machine, apt_get, reason):
    if apt_get is not None:
        machine.command("apt-get", apt_get)
    done = machine.run()
    assert done.returncode == 1
    assert done.stderr.startswith(f"ensure-postgres: {reason}; install PostgreSQL's server by hand")
    assert len(done.stderr.splitlines()) == 1
