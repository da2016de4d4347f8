"""Audits the locks: offline what can be known offline, and known vulnerabilities where a database answers.

Offline, each a failure: every requirement is pinned with hashes; no lock names an index or a URL; what is
installed is what the lock says and fits together; every dependency of pyproject.toml is in the lock.

Online: pip-audit asks PyPI's advisory database. Where that cannot be reached (a closed network), the
audit says so and passes, since nothing was learned; a vulnerability that is found fails.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from packaging.markers import Marker

ROOT = Path(__file__).parent.parent
LOCKS = ("requirements.lock", "requirements-dev.lock")
PIN = re.compile(r"^([a-z0-9._-]+)(?:\[[a-z0-9,_-]+\])?==([^ ;\\]+)(?: ;([^\\]*))?", re.IGNORECASE)
AUDIT_SECONDS = 90


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def read_lock(path: Path, faults: list[str]) -> dict[str, str]:
    """Return the versions, by package, that this Python on this system is to have.

    A package may be in the lock twice, for Pythons that need different versions of it.
    """
    pins: dict[str, str] = {}
    for number, entry in enumerate(re.split(r"\n(?=[^\s#])", path.read_text("utf-8")), 1):
        if re.search(r"https?://|--(extra-)?index-url|--find-links|file:", entry):
            faults.append(f"{path.name}: entry {number} names an address")
        if entry.lstrip().startswith("#"):
            continue
        match = PIN.match(entry)
        if match is None:
            faults.append(f"{path.name}: entry {number} is not pinned: {entry.splitlines()[0]}")
        elif "--hash=sha256:" not in entry:
            faults.append(f"{path.name}: {match[1]} has no hash")
        elif match[3] is None or Marker(match[3].strip()).evaluate():
            pins[normal(match[1])] = match[2]
    return pins


def check_installed(pins: dict[str, str], faults: list[str]) -> None:
    for name, pinned in pins.items():
        try:
            installed = version(name)
        except PackageNotFoundError:
            faults.append(f"{name} {pinned} is in the lock and not installed")
            continue
        if installed != pinned:
            faults.append(f"{name}: {installed} is installed, the lock says {pinned}")


def check_declared(pins: dict[str, str], faults: list[str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    declared = [*project["dependencies"]]
    for extra in project["optional-dependencies"].values():
        declared += extra
    for requirement in declared:
        name = normal(re.split(r"[\[<>=!~; ]", requirement, maxsplit=1)[0])
        if name not in pins:
            faults.append(f"{name} is declared in pyproject.toml and not in the lock")


def ask_for_advisories() -> str | None:
    """Return a fault, or None; prints what was learned."""
    command = [
        sys.executable, "-m", "pip_audit", "--disable-pip", "--require-hashes", "--timeout", "10",
        "--progress-spinner", "off", "-r", str(ROOT / LOCKS[1]),
    ]  # fmt: skip
    try:
        answer = subprocess.run(  # noqa: S603
            command, capture_output=True, text=True, timeout=AUDIT_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        print(f"audit: no advisory database answered within {AUDIT_SECONDS} s; nothing learned")
        return None
    if answer.returncode == 0:
        print("audit: no known vulnerability in the locked versions")
        return None
    if "Found" in answer.stderr and "known vulnerabilit" in answer.stderr:
        return f"known vulnerabilities:\n{answer.stdout}"
    last = answer.stderr.strip().splitlines()[-1:] or ["no reason given"]
    reason = re.sub(r"https?://\S+", "<address>", last[0])[:200]
    print(f"audit: no advisory database could be asked ({reason}); nothing learned")
    return None


def main() -> int:
    faults: list[str] = []
    run = read_lock(ROOT / LOCKS[0], faults)
    dev = read_lock(ROOT / LOCKS[1], faults)
    for name, pinned in run.items():
        if dev.get(name) != pinned:
            faults.append(f"{name} {pinned} is pinned for running and not the same for testing")
    check_installed(dev, faults)
    check_declared(dev, faults)
    fits = subprocess.run(
        [sys.executable, "-m", "pip", "check"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    if fits.returncode != 0:
        faults.append(fits.stdout.strip())
    advisory = ask_for_advisories()
    if advisory:
        faults.append(advisory)
    for fault in faults:
        print(f"audit: {fault}", file=sys.stderr)
    if not faults:
        print(f"audit: {len(run)} packages to run, {len(dev)} to test, all pinned with hashes")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
