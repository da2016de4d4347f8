"""What installs the browser does nothing where all is there, and fails with one line where it cannot.

The script runs in a copy of the tree, with a PATH on which `apt-get` and `npm` only write down how
they were called.
"""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / ".ci" / "ensure-browser"
TOOLS = (
    "bash",
    "cat",
    "cmp",
    "cp",
    "dirname",
    "env",
    "grep",
    "mkdir",
    "mktemp",
    "rm",
    "tail",
    "touch",
)


@dataclass(frozen=True)
class Machine:
    root: Path

    @property
    def bin(self) -> Path:
        return self.root / "bin"

    @property
    def calls(self) -> list[str]:
        log = self.root / "calls"
        return log.read_text().splitlines() if log.exists() else []

    def command(self, name: str, then: str = "exit 0") -> None:
        """Put a command on the PATH that notes its call."""
        path = self.bin / name
        path.write_text(f'#!/usr/bin/env bash\necho "{name} $*" >>"{self.root}/calls"\n{then}\n')
        path.chmod(0o755)

    def run(self) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.root / ".ci" / "ensure-browser")],
            env={"PATH": str(self.bin)},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A machine on which nothing is missing."""
    made = Machine(tmp_path)
    for folder in (".ci", "bin", "tests/e2e/browser/node_modules"):
        (tmp_path / folder).mkdir(parents=True)
    shutil.copy(SCRIPT, tmp_path / ".ci")
    sdk = tmp_path / "tests/e2e/browser"
    (sdk / "package-lock.json").write_text("{}")
    (sdk / "node_modules" / ".installed").write_text("{}")
    for tool in TOOLS:
        found = shutil.which(tool)
        assert found is not None
        (made.bin / tool).symlink_to(found)
    for name in ("chromium", "node", "npm", "curl", "apt-get"):
        made.command(name)
    # Not root: the script asks sudo, which does as it is told.
    made.command("sudo", 'shift; [[ $1 == true ]] || exec "$@"')
    return made


def apt_calls(machine: Machine) -> list[str]:
    return [call for call in machine.calls if call.startswith("apt-get ")]


# An apt-get that brings what it is asked for.
BRING = """
here=$(dirname "$0")
for name in chromium npm; do
  [[ $* != *$name* ]] || cp "$here/curl" "$here/$name"
done
"""


def test_nothing_is_installed_where_all_is_there(machine: Machine) -> None:
    done = machine.run()
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert machine.calls == []


def test_only_what_is_missing_is_installed(machine: Machine) -> None:
    (machine.bin / "chromium").unlink()
    (machine.bin / "npm").unlink()
    machine.command("apt-get", BRING)
    done = machine.run()
    assert done.returncode == 0, done.stderr
    (call,) = apt_calls(machine)
    assert call.endswith("install -y --no-install-recommends chromium npm")


def test_package_lists_are_renewed_where_the_first_try_fails(machine: Machine) -> None:
    (machine.bin / "chromium").unlink()
    renewed = f"{machine.root}/renewed"
    machine.command(
        "apt-get",
        f"[[ $* != *update ]] || touch {renewed}; [[ -e {renewed} ]] || exit 100; {BRING}",
    )
    done = machine.run()
    assert done.returncode == 0, done.stderr
    assert [call.split()[-1] for call in apt_calls(machine)] == ["chromium", "update", "chromium"]


def test_failing_apt_get_gives_one_line_with_its_reason(machine: Machine) -> None:
    (machine.bin / "chromium").unlink()
    machine.command("apt-get", 'echo "E: Unable to locate package" >&2; exit 100')
    done = machine.run()
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "E: Unable to locate package" in line
    assert "apt-get install chromium" in line


def test_apt_get_that_brings_nothing_gives_one_line(machine: Machine) -> None:
    (machine.bin / "chromium").unlink()
    done = machine.run()
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "there is no chromium even after apt-get" in line


def test_machine_without_apt_get_gives_one_line(machine: Machine) -> None:
    (machine.bin / "chromium").unlink()
    (machine.bin / "apt-get").unlink()
    done = machine.run()
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "there is no apt-get here" in line


def test_changed_lock_installs_the_sdk_once(machine: Machine) -> None:
    (machine.root / "tests/e2e/browser/package-lock.json").write_text('{"changed": 1}')
    assert machine.run().returncode == 0
    assert machine.run().returncode == 0
    (call,) = machine.calls
    assert call.startswith("npm ci --prefix tests/e2e/browser")


def test_failing_npm_gives_one_line_and_is_tried_again(machine: Machine) -> None:
    (machine.root / "tests/e2e/browser/package-lock.json").write_text('{"changed": 1}')
    machine.command("npm", 'echo "npm error code ENOTFOUND" >&2; exit 1')
    for _ in range(2):
        done = machine.run()
        assert done.returncode == 1
        (line,) = done.stderr.splitlines()
        assert "npm error code ENOTFOUND" in line
    assert len(machine.calls) == 2
