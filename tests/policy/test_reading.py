"""Promise: a policy file is read as a whole, and every fault is told with its line and reason."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.policy.support import POLICY, policy, wanted
from tokensvc.errors import ConfigurationError
from tokensvc.policy import Policy
from tokensvc.policy.document import MAX_BYTES

LINE = re.compile(r"policy: (line \d+: |and \d+ more faults$)")


def faults(text: str | bytes, **options: int) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        Policy.parse(text.encode() if isinstance(text, str) else text, **options)
    return caught.value.detail.splitlines()


def test_a_sound_file_names_its_callers() -> None:
    assert policy().callers == ("lobby", "plain", "strict")
    assert not policy().is_open


def test_the_example_in_the_documentation_is_sound() -> None:
    document = Path(__file__).parents[2] / "docs" / "policy.md"
    example = re.search(r"```yaml\n(.*?)```", document.read_text(), re.DOTALL)
    assert example is not None
    sut = policy(example[1])
    asked = wanted(user_id="ana", role="viewer", attributes={"team": "red"})
    assert sut.decide("lobby", asked).require().duration == 60


def changed(old: str, new: str) -> str:
    assert POLICY.count(old) == 1, old
    return POLICY.replace(old, new)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("duration: {max: 90}", "everywhere: yes", "line 30: callers.strict.everywhere: must be true"),
        ("duration: {max: 90}", "everywhere: 'true'", "must be true or false, not"),
        ("duration: {max: 90}", "connectionTokens: 40321", "IVS allows 1 to 40320"),
        ("duration: {max: 90}", "connectionTokens: {min: 2}", "connectionTokens.max: is required"),
        ("duration: {max: 90}", "connectionTokens: {max: 0}", "connectionTokens.max: is 0 minutes"),
        ("version: 1", "version: 2", "line 1: version: is 2; this program reads version 1"),
        ("version: 1", "version: one", 'line 1: version: must be a whole number, not "one"'),
        ("version: 1", "version: 01", "line 1: version: must be a whole number, not a number (01)"),
        ("duration: 60", "duration: 0", "line 10: roles.viewer.duration: is 0 minutes; IVS allows"),
        ("duration: 60", "duration: 20161", "IVS allows 1 to 20160"),
        ("duration: 60", "duration: 1:00", "line 10: roles.viewer.duration: must be a whole"),
        ("duration: 60", "duration: {min: 1}", "line 10: roles.viewer.duration.max: is required"),
        ("min: 5, default: 240", "min: 5, default: 4", "line 6: roles.host.duration: min 5, defa"),
        ("    duration: 60\n", "", "line 8: roles.viewer.duration: is required"),
        ("{kind: host}", "{kind: yes}", "line 7: roles.host.attributes.kind: must be a string"),
        ("{kind: host}", "{kind: 1}", "not a number (1); write it in quotes"),
        ("{kind: host}", f"{{k: {'x' * 1024}}}", "line 7: roles.host.attributes: have 1025 bytes"),
        ("{kind: host}", '{k: "\\uD800"}', "line 7: "),
        ("  viewer:\n", "  a b:\n", "line 8: roles.a b: the name of a role is 1 to 64 of"),
        ("version: 1\n", "version: 1\nextra: 1\n", "line 2: extra: is not a field here; there are"),
        ("stages: [\"arn:aws:ivs:*\"]\n    cap", "cap", "line 22: callers.plain.stages: is req"),
        ("- tenant=acme", "- arn:aws:ivs:*:channel", "ok"),
        ("- tenant=acme", "- arn:aws:s3:*", "line 15: callers.lobby.stages[1]: arn:aws:s3:* fits"),
        ("- tenant=acme", "- arn:aws:ivs:eu?", "line 15: callers.lobby.stages[1]: arn:aws:ivs:eu?"),
        ("- tenant=acme", "- =acme", "line 15: callers.lobby.stages[1]: a tag is written key=val"),
        ("- tenant=acme", "- {}", "line 15: callers.lobby.stages[1]: needs an `arn`, `tags`, or"),
        ("- tenant=acme", "- {tags: {}}", "line 15: callers.lobby.stages[1].tags: is empty"),
        ("- tenant=acme", "- [a]", "line 15: callers.lobby.stages[1]: must be a string, not a list"),
        ("roles: [host, viewer]", "roles: [boss]", "line 17: callers.lobby.roles: boss is not a "),
        ("defaultRole: viewer", "defaultRole: boss", "line 18: callers.lobby.defaultRole: is boss"),
        ("issuer: [local, ivs]", "issuer: [aws]", "line 20: callers.lobby.issuer[0]: must be one"),
        ("issuer: [local, ivs]", "issuer: []", "line 20: callers.lobby.issuer: is empty"),
        ("burst: 3", "burst: 0", "line 21: callers.lobby.limits.burst: is 0; it must be 1 to"),
        ("tokensPerSecond: 2,", "tokensPerSecond: .inf,", "must be a number above 0, at most"),
        ("tokensPerSecond: 2, burst", "burst", "line 21: callers.lobby.limits.burst: needs"),
        ("burst: 200", "perUserPerMinute: 2", "line 2: limits.perUserPerMinute: is not a field"),
        (", allowed: [\"x.*\"]", "", "line 19: callers.lobby.attributes.forbidden: only what is"),
        ("required: [team]", "required: [x.secret]", "x.secret is both required and forbidden"),
        ("forbidden: [x.secret]", "forbidden: [kind]", "sets the attribute kind, forbidden by "),
        ("duration: {min: 2, default: 10, max: 30}", "roles: []", "callers.plain.duration: is req"),
        ("duration: {max: 90}", "duration: {max: 30}", "lasts 60 to 60 minutes; callers.strict.d"),
        ("[SUBSCRIBE]\n    duration: {max: 90}", "[]\n    duration: 90", "has SUBSCRIBE, which ca"),
        ("capabilities: [SUBSCRIBE]\n    duration: {min", "duration: {min", "grants no token"),
        ("  plain:\n", "  lobby:\n", "line 22: lobby: is given before, in line 12"),
        ("  plain:\n", "  on:\n", "line 23: on: YAML takes this key for a bool: write it in quotes"),
        ("- tenant=acme", "- &a tenant=acme", "line 15: anchors are not read"),
        ("- tenant=acme", "- *a", "line 15: aliases are not read"),
        ("- tenant=acme", "- !!python/name:os.system x", "line 15: tags are not read"),
        ("  plain:\n", "  ? [a]\n  :\n", "line 22: a key must be a single value"),
        ("version: 1\n", "version: 1\n---\n", "a second document begins"),
        ("- tenant=acme", "- [tenant", "is not YAML"),
        ("- tenant=acme", "- \x01", "is not YAML"),
        ("- tenant=acme", "- " + "[" * 20 + "]" * 20, "line 15: is nested more than 16 levels deep"),
    ],
)  # fmt: skip
def test_a_fault_is_told_with_line_and_reason(old: str, new: str, expected: str) -> None:
    text = changed(old, new)
    if expected == "ok":
        assert policy(text).callers
        return
    found = faults(text)
    assert any(expected in line for line in found), found
    assert all(LINE.match(line) for line in found)


def test_all_faults_are_told_at_once_in_the_order_of_lines() -> None:
    found = faults(
        "version: 2\n"
        "roles:\n"
        "  host: {capabilities: [PUB], duration: 0, colour: red}\n"
        "callers:\n"
        "  a: {stages: [7], roles: [nobody], limits: 5}\n"
        "  b: &b {stages: []}\n"
    )
    assert [re.sub(r"^policy: (line \d+: [^:]*).*", r"\1", line) for line in found] == [
        "line 1: version",
        "line 3: roles.host.capabilities[0]",
        "line 3: roles.host.duration",
        "line 3: roles.host.colour",
        "line 5: callers.a.stages[0]",
        "line 5: callers.a.roles",
        "line 5: callers.a.limits",
        "line 6: anchors are not read",
        "line 6: callers.b",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"", "line 1: is empty"),
        (b"# nothing\n", "line 1: is empty"),
        (b"[]", "line 1: must be a mapping, not a list"),
        (b"version: 1\ncallers: \xff\n", "line 2: is not UTF-8"),
        (b"#" * (MAX_BYTES + 1), "has 1048577 bytes"),
        (b"version: 1\ncallers:\n", "line 2: callers: must be a mapping, not nothing"),
    ],
)
def test_what_is_no_policy_at_all(text: bytes, expected: str) -> None:
    assert expected in faults(text)[0]


def test_a_bound_of_the_service_is_no_less_a_bound_of_the_file() -> None:
    found = faults(POLICY, max_duration=500)
    assert found == [
        (
            "policy: line 6: roles.host.duration.max: is 720 minutes;"
            " TOKENSVC_MAX_DURATION allows 1 to 500"
        ),
        (
            "policy: line 17: callers.lobby.roles: host is not a role of this file, or has a fault;"
            " roles: viewer"
        ),
    ]


def test_a_flood_of_faults_is_cut_short() -> None:
    callers = "".join(f"  c{n}: 1\n" for n in range(300))
    found = faults(f"version: 1\ncallers:\n{callers}")
    assert len(found) == 201
    assert found[-1] == "policy: and 100 more faults"


def test_nothing_in_a_fault_drives_a_terminal() -> None:
    found = faults('version: 1\ncallers: {"\\e[31m": 1, a: {"\\e]0;": 1, stages: ["\\e[2J"]}}\n')
    assert found
    assert "\x1b" not in "".join(found)


def test_a_star_matches_from_end_to_end_and_nothing_else_is_special() -> None:
    text = changed("arn:aws:ivs:eu-central-1:*:stage/lobby-*", "arn:aws:ivs:eu-*:stage/a*z")
    sut = policy(text)

    def allowed(name: str, region: str = "eu-west-1") -> bool:
        request = wanted(name, region, user_id="u", attributes={"team": "a"})
        return sut.decide("lobby", request, {}).allowed

    assert allowed("az")
    assert allowed("a-stage-z")
    assert not allowed("az2")
    assert not allowed("baz")
    assert not allowed("az", "us-east-1")


texts = st.text(st.sampled_from("abv12:-[]{}&*!#'\"\n ,?>|%@`\\\t~."), max_size=60)
words = st.lists(st.sampled_from(re.findall(r"\S+|\s+", POLICY)), max_size=60).map("".join)


@given(st.binary(max_size=80) | texts.map(str.encode) | words.map(str.encode))
@settings(max_examples=150)
def test_any_text_is_a_policy_or_a_list_of_faults(text: bytes) -> None:
    try:
        Policy.parse(text)
    except ConfigurationError as error:
        assert all(LINE.match(line) for line in error.detail.splitlines())


@given(st.data())
@settings(max_examples=60)
def test_a_sound_file_with_lines_missing_is_a_policy_or_a_list_of_faults(
    data: st.DataObject,
) -> None:
    lines = POLICY.splitlines(keepends=True)
    kept = data.draw(st.sets(st.sampled_from(range(len(lines))), max_size=4))
    text = "".join(line for number, line in enumerate(lines) if number not in kept)
    try:
        policy(text)
    except ConfigurationError as error:
        assert all(LINE.match(line) for line in error.detail.splitlines())
