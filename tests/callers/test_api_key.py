"""What an API key looks like, what is read from a header, and that no key shows by accident."""

from __future__ import annotations

import copy
import hashlib
import pickle
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.callers.support import make_caller
from tokensvc.callers.api_key import (
    MAX_AUTHORIZATION_CHARS,
    ApiKey,
    new_caller_id,
    read_bearer,
)
from tokensvc.telemetry.redaction import redact

CALLER_ID = "0abcdefghijk"
SECRET = "-_" + "aZ09" * 10 + "x"
KEY = f"tsk_{CALLER_ID}_{SECRET}"


def test_a_key_names_its_caller_and_has_256_random_bits():
    key = ApiKey.new(CALLER_ID)
    assert re.fullmatch(r"tsk_0abcdefghijk_[A-Za-z0-9_-]{43}", key.reveal())
    assert len({ApiKey.new(CALLER_ID).reveal() for _ in range(100)}) == 100


def test_a_key_shows_only_when_revealed():
    key = ApiKey.new(CALLER_ID)
    secret = key.reveal().split("_", 2)[2]
    for text in (repr(key), str(key), f"{key}", repr([key])):
        assert secret not in text
        assert CALLER_ID in text
    assert redact(key.reveal()) == "[redacted]"


@pytest.mark.parametrize("keep", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_key_is_not_kept(keep):
    with pytest.raises(TypeError, match="never stored"):
        keep(ApiKey.new(CALLER_ID))


def test_the_hash_of_a_secret_does_not_show():
    caller, key = make_caller()
    assert repr(key.secret_sha256) not in repr(caller)
    assert key.secret_sha256.hex() not in repr(caller)


def test_caller_ids_begin_with_a_digit_and_differ():
    ids = {new_caller_id() for _ in range(200)}
    assert len(ids) == 200
    assert all(re.fullmatch(r"[0-9][0-9a-z]{11}", caller_id) for caller_id in ids)


@pytest.mark.parametrize("scheme", ["Bearer ", "bearer ", "BEARER ", "bEaReR   "])
def test_a_header_is_read(scheme):
    presented = read_bearer(scheme + KEY)
    assert presented == (CALLER_ID, hashlib.sha256(SECRET.encode()).digest())


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Bearer",
        "Bearer ",
        KEY,
        f"Basic {KEY}",
        f"Bearer{KEY}",
        f" Bearer {KEY}",
        f"Bearer {KEY} ",
        f"Bearer {KEY}\n",
        f"Bearer\t{KEY}",
        f"Bearer {KEY}, Bearer {KEY}",
        f"Bearer {KEY[:-1]}",
        f"Bearer {KEY}x",
        f"Bearer {KEY[:-1]}=",
        f"Bearer {KEY[:-1]}é",
        f"Bearer {KEY.upper()}",
        f"Bearer tsk_{SECRET}",
        f"Bearer tsk__{SECRET}",
        f"Bearer tsk_{'a' * 33}_{SECRET}",
        f"Bearer tsk_{CALLER_ID.upper()}_{SECRET}",
        f"\u212aearer {KEY}",
        f"Bearer tsk_\u0663bcdefghijk_{SECRET}",
    ],
)
def test_anything_else_is_not_a_key(header):
    assert read_bearer(header) is None


def test_the_length_of_a_header_is_bounded():
    room = MAX_AUTHORIZATION_CHARS - len("Bearer") - len(KEY)
    assert read_bearer("Bearer" + " " * room + KEY) is not None
    assert read_bearer("Bearer" + " " * (room + 1) + KEY) is None


@given(st.text(max_size=300) | st.text("Bearbtsk_ -09azAZ.=", max_size=120))
def test_no_text_upsets_the_reader(text):
    presented = read_bearer(text)
    if presented is not None:
        scheme, _, key = text.partition(" ")
        assert scheme.lower() == "bearer"
        assert key.strip(" ").startswith(f"tsk_{presented.caller_id}_")


@given(
    caller_id=st.text("0123456789abcdefghijklmnopqrstuvwxyz", min_size=1, max_size=32),
    secret=st.from_regex(r"[A-Za-z0-9_-]{43}", fullmatch=True),
    spaces=st.integers(1, 20),
)
def test_every_key_is_read_as_what_it_is(caller_id, secret, spaces):
    presented = read_bearer(f"Bearer{' ' * spaces}tsk_{caller_id}_{secret}")
    assert presented == (caller_id, hashlib.sha256(secret.encode()).digest())


@given(position=st.integers(0, len(KEY) - 1), char=st.characters(max_codepoint=0x2FF))
def test_a_changed_key_never_reads_as_the_same(position, char):
    changed = KEY[:position] + char + KEY[position + 1 :]
    same = read_bearer(f"Bearer {changed}") == read_bearer(f"Bearer {KEY}")
    assert same is (changed == KEY)
