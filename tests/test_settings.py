"""Settings: every fault is named at once, no secret shows, and no misspelt limit is ignored."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokensvc.errors import ConfigurationError
from tokensvc.http.hardening import complaints
from tokensvc.settings import Settings, describe
from tokensvc.store import upgrade


def test_defaults_listen_on_loopback_only_and_name_no_region() -> None:
    settings = Settings.load({})
    assert (settings.host, settings.port) == ("127.0.0.1", 8080)
    assert (settings.emulator_host, settings.emulator_port) == ("127.0.0.1", 8090)
    assert settings.regions == ()


def test_store_and_master_key_follow_the_data_folder() -> None:
    settings = Settings.load({"TOKENSVC_DATA_DIR": "/srv/tokens"})
    assert settings.database_url == "sqlite+aiosqlite:////srv/tokens/tokensvc.db"
    assert settings.master_key_file == Path("/srv/tokens/master.key")


def test_the_store_is_in_the_data_folder_whatever_that_is_called(tmp_path: Path) -> None:
    folder = tmp_path / "a?b=c#d%41 \N{SNOWMAN}"
    folder.mkdir()
    upgrade(Settings(data_dir=folder).database_url)
    assert [file.name for file in folder.iterdir()] == ["tokensvc.db"]
    assert list(tmp_path.iterdir()) == [folder]


def test_serving_without_a_region_says_which_variable_to_set() -> None:
    with pytest.raises(ConfigurationError, match="TOKENSVC_REGIONS is not set"):
        Settings.load({}).require_regions()


def test_every_fault_is_reported_at_once_with_variable_and_limit() -> None:
    with pytest.raises(ConfigurationError) as caught:
        Settings.load(
            {
                "TOKENSVC_PORT": "70000",
                "TOKENSVC_MAX_DURATION": "20161",
                "TOKENSVC_IAT_BACKDATE": "61",
                "TOKENSVC_SIGNER": "rot13",
                "TOKENSVC_REGIONS": "eu-central-1,eu-north-1",
                "TOKENSVC_CALLER_REFRESH": "soon",
                "TOKENSVC_PROT": "80",
                "HOME": "ignored",
            }
        )
    lines = str(caught.value).splitlines()
    assert len(lines) == 7
    for variable, limit in {
        "TOKENSVC_PORT": "65535",
        "TOKENSVC_MAX_DURATION": "20160",
        "TOKENSVC_IAT_BACKDATE": "60",
        "TOKENSVC_SIGNER": "aws-lc",
        "TOKENSVC_REGIONS": "eu-west-1",
        "TOKENSVC_CALLER_REFRESH": "number",
        "TOKENSVC_PROT": "TOKENSVC_PORT",
    }.items():
        assert any(line.startswith(variable) and limit in line for line in lines), variable


def test_a_value_may_come_from_a_file_without_its_line_end(tmp_path: Path) -> None:
    secret = tmp_path / "url"
    secret.write_text("postgresql://svc:hunter2@db/tokens\n")
    settings = Settings.load({"TOKENSVC_DATABASE_URL_FILE": str(secret)})
    assert settings.database_url == "postgresql://svc:hunter2@db/tokens"
    row = next(row for row in describe(settings) if row.name == "TOKENSVC_DATABASE_URL")
    assert row.source == f"file {secret}"
    assert row.value == "postgresql://svc:***@db/tokens"
    assert "hunter2" not in repr(settings)


def test_an_unreadable_file_and_a_value_given_twice_are_faults(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    with pytest.raises(ConfigurationError) as caught:
        Settings.load(
            {
                "TOKENSVC_HOST_FILE": str(missing),
                "TOKENSVC_PORT": "1",
                "TOKENSVC_PORT_FILE": str(missing),
            }
        )
    first, second = str(caught.value).splitlines()
    assert first.startswith("TOKENSVC_HOST_FILE: cannot read")
    assert "both set" in second


def test_the_master_key_is_a_path_and_never_read_as_a_value(tmp_path: Path) -> None:
    key = tmp_path / "master.key"
    key.write_text("secret")
    settings = Settings.load({"TOKENSVC_MASTER_KEY_FILE": str(key)})
    assert settings.master_key_file == key
    with pytest.raises(ConfigurationError, match="closest is TOKENSVC_MASTER_KEY_FILE"):
        Settings.load({"TOKENSVC_MASTER_KEY": "secret"})


def test_options_of_a_command_come_before_the_environment() -> None:
    settings = Settings.load({"TOKENSVC_PORT": "9000"}, port=9100, host=None)
    assert settings.port == 9100
    assert settings.sources == {"port": "override"}


def test_describe_has_a_row_for_every_setting_with_its_documentation() -> None:
    rows = describe(Settings.load({"TOKENSVC_REGIONS": "us-west-2, eu-west-1"}))
    shown = {row.name: row for row in rows}
    assert shown["TOKENSVC_REGIONS"].value == "us-west-2,eu-west-1"
    assert shown["TOKENSVC_REGIONS"].source == "environment"
    assert shown["TOKENSVC_PORT"].source == "default"
    assert shown["TOKENSVC_MAX_DURATION"].unit == "minutes"
    assert len(rows) == len(shown) > 25
    assert all(row.doc.endswith(".") for row in rows)


@given(
    st.sampled_from([row.name for row in describe(Settings())]),
    st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"])),
)
def test_any_text_is_taken_or_refused_naming_its_variable(name: str, value: str) -> None:
    fault = name
    try:
        Settings.load({name: value})
    except ConfigurationError as error:
        fault = error.detail
    assert name in fault


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://u:p@55:w0rd@db/tokens", "postgresql://u:***@db/tokens"),
        ("postgresql://u:Sup3r@w0rd@db/tokens", "postgresql://u:***@db/tokens"),
        (
            "postgresql://u@db/t?sslkey=/k.pem&sslpassword=w0rd",
            "postgresql://u@db/t?sslkey=/k.pem&sslpassword=***",
        ),
        ("postgresql://u@db/t?password=w0rd&a=b", "postgresql://u@db/t?password=***&a=b"),
    ],
)
def test_no_part_of_a_database_password_is_shown(url: str, shown: str) -> None:
    settings = dataclasses.replace(Settings(), database_url=url)
    row = next(row for row in describe(settings) if row.name == "TOKENSVC_DATABASE_URL")
    assert row.value == shown
    # Nor raised by who reads the URL for something else.
    assert "w0rd" not in str(complaints(settings, {}))
