"""A database URL that cannot work is refused in one line that says why, and shows no password."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.store.support import url_of
from tokensvc.errors import ConfigurationError
from tokensvc.store import open_engine, upgrade

OPENERS = pytest.mark.parametrize("open_database", [open_engine, upgrade])


@OPENERS
@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("", "does not parse"),
        ("keys/tokensvc.db", "does not parse"),
        ("hunter2:hunter2@", "does not parse"),
        ("oracle://scott:hunter2@db/tokens", "kind oracle are not supported"),
        ("mysql://root:hunter2@db/tokens", "kind mysql are not supported"),
        ("sqlite://", "must name a file"),
        ("sqlite:///:memory:", "must name a file"),
        ("sqlite:///file:tokens.db?uri=true", "must name a file"),
    ],
)
def test_a_url_of_no_database_is_refused(open_database, url, reason):
    with pytest.raises(ConfigurationError, match=reason) as caught:
        open_database(url)
    assert "hunter2" not in f"{caught.value!r}{caught.value.context}"
    assert "\n" not in caught.value.detail


def test_a_missing_database_is_not_created_by_serving(tmp_path):
    path = tmp_path / "tokensvc.db"
    with pytest.raises(ConfigurationError, match="tokensvc db upgrade"):
        open_engine(url_of(path))
    assert not path.exists()


def test_a_missing_folder_is_not_created(tmp_path):
    with pytest.raises(ConfigurationError, match="cannot be created: No such file or directory"):
        upgrade(url_of(tmp_path / "gone" / "tokensvc.db"))
    assert list(tmp_path.iterdir()) == []


@OPENERS
def test_a_folder_is_not_a_database(tmp_path, open_database):
    with pytest.raises(ConfigurationError, match="is not a file"):
        open_database(url_of(tmp_path))


@OPENERS
def test_a_file_is_not_a_folder(tmp_path, open_database):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError):
        open_database(url_of(tmp_path / "file" / "tokensvc.db"))


_AS_SOMEBODY = """
import json, os, sys
from tokensvc.errors import ConfigurationError
from tokensvc.store import open_engine, upgrade

if os.getuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
details = []
for work, url in json.load(sys.stdin):
    try:
        {"open": open_engine, "upgrade": upgrade}[work](url)
    except ConfigurationError as error:
        details.append(error.detail)
    else:
        details.append("opened")
print(json.dumps(details))
"""


@pytest.fixture
def public_folder() -> Iterator[Path]:
    """A folder that every user may enter, as pytest's own are not."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def test_what_may_not_be_read_and_written_is_refused_at_once(public_folder):
    modes = {"sealed": (0o000, 0o666), "read-only": (0o777, 0o444), "journal": (0o555, 0o666)}
    for name, (folder_mode, file_mode) in modes.items():
        folder = public_folder / name
        folder.mkdir()
        upgrade(url_of(folder / "a.db"))
        (folder / "a.db").chmod(file_mode)
        folder.chmod(folder_mode)
    denied, must = "Permission denied.", "it and its folder must be writable."
    expected = {
        ("open", "sealed/a.db"): f"opened: {denied}",
        ("upgrade", "sealed/a.db"): f"opened: {denied}",
        ("open", "read-only/a.db"): f"opened: {must}",
        ("upgrade", "read-only/a.db"): f"opened: {must}",
        ("open", "journal/a.db"): f"opened: {must}",
        ("upgrade", "journal/b.db"): f"created: {denied}",
    }
    # Permissions do not bind root, so the work is done by a process that is somebody else.
    done = subprocess.run(
        [sys.executable, "-c", _AS_SOMEBODY],
        input=json.dumps([(work, url_of(public_folder / file)) for work, file in expected]),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    for name in modes:
        (public_folder / name).chmod(0o700)
    assert done.stderr == ""
    assert json.loads(done.stdout) == [
        f"The database {public_folder / file} cannot be {reason}"
        for (_, file), reason in expected.items()
    ]
