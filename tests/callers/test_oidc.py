"""Promise: only a living token of the configured issuer, for us, is taken; its keys are fetched rarely."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given, settings
from hypothesis import strategies as st

from tokensvc.callers.directory import Authenticated
from tokensvc.callers.jwks import (
    IDLE_SECONDS,
    MAX_AGE_SECONDS,
    MAX_BYTES,
    PAUSE_SECONDS,
    REFRESH_SECONDS,
    fetch_json,
    open_fetch,
)
from tokensvc.callers.oidc import CallerAuthenticator, OidcCallers, OidcConfig
from tokensvc.callers.scopes import Scope
from tokensvc.errors import ConfigurationError, IdentityProviderError, UnauthenticatedError

NOW = 1_780_000_000.0
ISSUER, AUDIENCE = "https://login.example.com/", "tokensvc"

KEYS: dict[str, Any] = {
    "ES256": ec.generate_private_key(ec.SECP256R1()),
    "ES384": ec.generate_private_key(ec.SECP384R1()),
    "EdDSA": ed25519.Ed25519PrivateKey.generate(),
    "RS256": rsa.generate_private_key(65537, 2048),
}
SHORT_RSA = rsa.generate_private_key(65537, 1024)


def jwk(key: Any, kid: str, algorithm: str, **more: Any) -> dict[str, Any]:
    known = jwt.get_algorithm_by_name(algorithm)
    return {**known.to_jwk(key.public_key(), as_dict=True), "kid": kid, **more}


class Issuer:
    """An issuer's keys, a clock, and how often somebody asked; `claims` are those of a right token."""

    def __init__(self) -> None:
        self.now = NOW
        self.fault: Exception | None = None
        self.fetches = 0
        self.hold = threading.Event()
        self.hold.set()
        self.keys = [jwk(key, algorithm, algorithm) for algorithm, key in KEYS.items()]

    def fetch(self) -> object:
        self.fetches += 1
        answer = {"keys": list(self.keys)}
        assert self.hold.wait(30)
        if self.fault is not None:
            raise self.fault
        return answer

    def callers(self, **options: Any) -> OidcCallers:
        config = OidcConfig(ISSUER, AUDIENCE, **options)
        return OidcCallers(config, lambda: self.now, self.fetch)

    def token(
        self,
        algorithm: str = "ES256",
        key: Any = None,
        headers: dict[str, Any] | None = None,
        **changes: Any,
    ) -> str:
        claims = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": "lobby",
            "iat": self.now,
            "exp": self.now + 300,
            "scope": "openid tokens:mint bans:read",
        }
        claims = {name: value for name, value in (claims | changes).items() if value is not None}
        headers = {"kid": algorithm} if headers is None else headers
        signing = KEYS.get(algorithm) if key is None else key
        return "Bearer " + jwt.encode(claims, signing, algorithm, headers=headers)


@pytest.fixture
def issuer() -> Issuer:
    return Issuer()


@pytest.fixture
async def oidc(issuer: Issuer) -> Any:
    sut = issuer.callers()
    yield sut
    await sut.aclose()


async def refusal(sut: OidcCallers, header: str) -> str:
    with pytest.raises(UnauthenticatedError, match="A valid API key, or a token of") as caught:
        await sut.authenticate(header)
    return str(caught.value.context["reason"])


@pytest.mark.parametrize("algorithm", list(KEYS))
async def test_a_token_of_the_issuer_is_a_caller(
    issuer: Issuer, oidc: OidcCallers, algorithm: str
) -> None:
    who = await oidc.authenticate(issuer.token(algorithm))
    assert who.name == "oidc:lobby"
    assert who.scopes == {Scope.TOKENS_MINT, Scope.BANS_READ}
    assert who.caller_id.startswith("oidc:")
    assert len(who.caller_id) <= 32
    assert (await oidc.authenticate(issuer.token(sub="other"))).caller_id != who.caller_id
    assert issuer.fetches == 1


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"iss": "https://evil.example.com/"}, "token_InvalidIssuerError"),
        ({"iss": None}, "token_MissingRequiredClaimError"),
        ({"aud": "another"}, "token_InvalidAudienceError"),
        ({"aud": None}, "token_MissingRequiredClaimError"),
        ({"exp": None}, "token_MissingRequiredClaimError"),
        ({"exp": NOW - 31}, "token_expired"),
        ({"exp": "never"}, "bad_times"),
        ({"exp": True}, "bad_times"),
        ({"exp": 10**400}, "bad_times"),
        ({"nbf": NOW + 31}, "token_not_valid_yet"),
        ({"iat": NOW + 31}, "token_not_valid_yet"),
        ({"sub": None}, "no_name"),
        ({"sub": ""}, "no_name"),
        ({"sub": "x" * 129}, "no_name"),
        ({"sub": "a\nb"}, "no_name"),
        ({"key": ec.generate_private_key(ec.SECP256R1())}, "token_InvalidSignatureError"),
        ({"headers": {"kid": "ES384"}}, "token_InvalidAlgorithmError"),
        ({"headers": {"kid": "unknown"}}, "unknown_key"),
        ({"headers": {"kid": ""}}, "no_key_id"),
        ({"headers": {}}, "no_key_id"),
        ({"headers": {"kid": "ES256", "crit": ["x"], "x": 1}}, "not_a_token"),
    ],
)
async def test_any_other_token_is_refused_for_a_reason_that_only_the_log_knows(
    issuer: Issuer, oidc: OidcCallers, changes: dict[str, Any], reason: str
) -> None:
    assert await refusal(oidc, issuer.token(**changes)) == reason


async def test_a_public_key_is_never_taken_for_a_shared_secret(
    issuer: Issuer, oidc: OidcCallers
) -> None:
    public = KEYS["RS256"].public_key()
    pem = public.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    forged = issuer.token("HS256", base64.b64encode(pem), {"kid": "RS256"})
    assert await refusal(oidc, forged) == "token_InvalidAlgorithmError"
    header, claims, _ = issuer.token().removeprefix("Bearer ").split(".")
    none = base64.urlsafe_b64encode(b'{"alg":"none","kid":"ES256"}').decode().rstrip("=")
    assert (await refusal(oidc, f"Bearer {none}.{claims}.AA")).startswith("token_")
    assert await refusal(oidc, f"Bearer {header}.{claims}.AAAA") == "token_InvalidSignatureError"


async def test_only_the_algorithms_that_the_operator_allows(issuer: Issuer) -> None:
    sut = issuer.callers(algorithms=("ES384",))
    assert await refusal(sut, issuer.token("ES256")) == "unknown_key"
    assert (await sut.authenticate(issuer.token("ES384"))).name == "oidc:lobby"


async def test_times_are_judged_by_our_clock_with_a_leeway_and_at_every_request(
    issuer: Issuer, oidc: OidcCallers
) -> None:
    token = issuer.token(exp=NOW + 60, nbf=NOW + 29)
    first = await oidc.authenticate(token)
    issuer.now += 89
    assert await oidc.authenticate(token) is first, "remembered"
    issuer.now += 1
    assert await refusal(oidc, token) == "token_expired"


@pytest.mark.parametrize(
    ("claim", "expected"),
    [
        ("tokens:mint", {Scope.TOKENS_MINT}),
        (["tokens:mint", "keys:read", 7, "admin"], {Scope.TOKENS_MINT, Scope.KEYS_READ}),
        ("", set()),
        (None, set()),
        ({"tokens:mint": True}, set()),
    ],
)
async def test_scopes_that_are_not_ours_are_ignored(
    issuer: Issuer, oidc: OidcCallers, claim: object, expected: set[Scope]
) -> None:
    assert (await oidc.authenticate(issuer.token(scope=claim))).scopes == expected


async def test_claims_and_prefix_are_the_operators_choice(issuer: Issuer) -> None:
    sut = issuer.callers(scope_claim="scp", scope_prefix="api/", name_claim="client_id")
    who = await sut.authenticate(
        issuer.token(client_id="game", scp=["api/tokens:mint", "keys:rotate"])
    )
    assert (who.name, who.scopes) == ("oidc:game", {Scope.TOKENS_MINT})


async def test_a_rotated_key_is_fetched_when_a_token_names_it(
    issuer: Issuer, oidc: OidcCallers
) -> None:
    await oidc.authenticate(issuer.token())
    new = ec.generate_private_key(ec.SECP256R1())
    issuer.keys.append(jwk(new, "new", "ES256"))
    issuer.now += PAUSE_SECONDS
    assert (await oidc.authenticate(issuer.token(key=new, headers={"kid": "new"}))).name
    assert issuer.fetches == 2


async def test_unknown_keys_do_not_make_us_ask_again_and_again(
    issuer: Issuer, oidc: OidcCallers
) -> None:
    await oidc.authenticate(issuer.token())
    issuer.now += PAUSE_SECONDS
    for number in range(20):
        assert await refusal(oidc, issuer.token(headers={"kid": f"k{number}"})) == "unknown_key"
    assert issuer.fetches == 2


async def test_all_who_wait_for_keys_share_one_fetch(issuer: Issuer, oidc: OidcCallers) -> None:
    issuer.hold.clear()
    asking = [asyncio.create_task(oidc.authenticate(issuer.token())) for _ in range(20)]
    await asyncio.sleep(0)
    asking[0].cancel()
    await asyncio.sleep(0)
    issuer.hold.set()
    done = await asyncio.gather(*asking, return_exceptions=True)
    assert isinstance(done[0], asyncio.CancelledError)
    assert all(isinstance(who, Authenticated) for who in done[1:])
    assert issuer.fetches == 1


async def test_who_waits_for_keys_at_the_end_is_answered(issuer: Issuer) -> None:
    sut = issuer.callers()
    issuer.hold.clear()
    asking = asyncio.create_task(sut.authenticate(issuer.token()))
    await asyncio.sleep(0)
    assert sut.keys._flight is not None
    await sut.aclose()
    issuer.hold.set()
    with pytest.raises(IdentityProviderError):
        await asking


async def test_nobody_waits_without_end_for_a_fetch_that_does_not_end(
    issuer: Issuer, oidc: OidcCallers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tokensvc.callers.jwks.WAIT_SECONDS", 0.0)
    issuer.hold.clear()
    for _ in range(2):
        with pytest.raises(IdentityProviderError):
            await oidc.authenticate(issuer.token())
    # It goes on meanwhile, and nobody begins another.
    flight = oidc.keys._flight
    assert flight is not None
    issuer.hold.set()
    await flight
    assert issuer.fetches == 1
    assert (await oidc.authenticate(issuer.token())).name == "oidc:lobby"


async def test_old_keys_are_fetched_anew_behind_the_answer(
    issuer: Issuer, oidc: OidcCallers
) -> None:
    token = issuer.token(exp=NOW + 10_000)
    await oidc.authenticate(token)
    issuer.keys = [key for key in issuer.keys if key["kid"] != "ES256"]
    issuer.now += REFRESH_SECONDS
    issuer.hold.clear()
    for _ in range(5):
        await oidc.authenticate(token)
    issuer.hold.set()
    flight = oidc.keys._flight
    assert flight is not None
    await flight
    assert issuer.fetches == 2
    assert oidc.keys.age() == 0
    issuer.now += 1
    assert await refusal(oidc, token) == "unknown_key", "withdrawn, though verified before"


@pytest.mark.parametrize("before", [True, False], ids=["verified before", "new"])
async def test_after_a_long_rest_no_token_of_a_withdrawn_key_is_taken(
    issuer: Issuer, oidc: OidcCallers, before: bool
) -> None:
    token = issuer.token(exp=NOW + 10_000)
    await oidc.authenticate(token if before else issuer.token("RS256"))
    issuer.keys = [key for key in issuer.keys if key["kid"] != "ES256"]
    issuer.now += IDLE_SECONDS
    issuer.hold.clear()
    asking = [asyncio.create_task(refusal(oidc, token)) for _ in range(5)]
    await asyncio.sleep(0)
    issuer.hold.set()
    assert await asyncio.gather(*asking) == ["unknown_key"] * 5
    assert issuer.fetches == 2


async def test_after_a_long_rest_nobody_waits_longer_for_an_issuer_that_hangs(
    issuer: Issuer, oidc: OidcCallers, monkeypatch: pytest.MonkeyPatch
) -> None:
    await oidc.authenticate(issuer.token())
    issuer.now += IDLE_SECONDS
    issuer.hold.clear()
    monkeypatch.setattr("tokensvc.callers.jwks.WAIT_SECONDS", 0.0)
    for _ in range(3):
        assert (await oidc.authenticate(issuer.token())).name == "oidc:lobby"
    assert issuer.fetches == 2
    issuer.hold.set()


async def test_while_the_issuer_is_down_its_keys_stay_for_a_day(
    issuer: Issuer, oidc: OidcCallers
) -> None:
    await oidc.authenticate(issuer.token())
    issuer.fault = IdentityProviderError("down")
    issuer.now += MAX_AGE_SECONDS - 1
    await oidc.authenticate(issuer.token())
    issuer.now += 1 + PAUSE_SECONDS
    with pytest.raises(IdentityProviderError) as caught:
        await oidc.authenticate(issuer.token())
    assert caught.value.retry_after == PAUSE_SECONDS
    issuer.fault = None
    issuer.now += PAUSE_SECONDS
    assert (await oidc.authenticate(issuer.token())).name == "oidc:lobby"


@pytest.mark.parametrize("fault", [IdentityProviderError("down"), RuntimeError("a bug")])
async def test_without_keys_nobody_is_taken_and_the_issuer_is_asked_at_intervals(
    issuer: Issuer, oidc: OidcCallers, fault: Exception
) -> None:
    issuer.fault = fault
    for _ in range(5):
        with pytest.raises(IdentityProviderError):
            await oidc.authenticate(issuer.token())
    assert issuer.fetches == 1
    assert oidc.keys.age() == float("inf")
    issuer.fault = None
    issuer.now += PAUSE_SECONDS
    await oidc.authenticate(issuer.token())


async def test_keys_that_must_not_be_used_are_left_out(issuer: Issuer, oidc: OidcCallers) -> None:
    secret = base64.urlsafe_b64encode(b"s" * 32).decode().rstrip("=")
    issuer.keys = [
        jwk(KEYS["ES256"], "good", "ES256"),
        {"kty": "oct", "kid": "oct", "k": secret},
        jwk(SHORT_RSA, "short", "RS256"),
        jwk(KEYS["ES384"], "enc", "ES384", use="enc"),
        {"kty": "EC", "kid": "broken", "crv": "P-256", "x": "AA", "y": "AA"},
        {"kty": "RSA"},
        "not a key",  # type: ignore[list-item]
    ]
    await oidc.authenticate(issuer.token(headers={"kid": "good"}))
    assert set(oidc.keys.current() or {}) == {"good"}


@pytest.mark.parametrize("answer", [None, [], {}, {"keys": {}}, {"keys": []}, {"keys": [{}]}])
async def test_an_answer_without_keys_is_no_answer(issuer: Issuer, answer: object) -> None:
    sut = OidcCallers(OidcConfig(ISSUER, AUDIENCE), lambda: NOW, lambda: answer)
    with pytest.raises(IdentityProviderError):
        await sut.authenticate(issuer.token())


texts = st.text(st.characters(codec="ascii"), max_size=40)
objects = st.dictionaries(
    st.sampled_from(["alg", "kid", "typ", "crit", "b64", "jwk"]),
    st.sampled_from(["ES256", "none", "HS256", "", None, 1, True, [], {}, "b64"]),
)


@given(
    texts
    | st.tuples(objects | st.just([1]), objects, st.binary(max_size=70)).map(
        lambda parts: "Bearer " + ".".join(map(_segment, parts))
    )
)
@settings(max_examples=150)
def test_whatever_is_sent_is_refused_as_unauthenticated(header: str) -> None:
    issuer = Issuer()

    async def attempt() -> None:
        sut = issuer.callers()
        with pytest.raises(UnauthenticatedError):
            await sut.authenticate(header)
        await sut.aclose()

    asyncio.run(attempt())


def _segment(part: object) -> str:
    raw = part if isinstance(part, bytes) else json.dumps(part).encode()
    return base64.urlsafe_b64encode(raw).decode().rstrip("=") or "A"


class Directory:
    def authenticate(self, authorization: str | None) -> Authenticated:
        return Authenticated("1", f"key {authorization}", frozenset())


async def test_api_keys_and_tokens_are_told_apart(issuer: Issuer, oidc: OidcCallers) -> None:
    directory: Any = Directory()
    both = CallerAuthenticator(directory, oidc)
    assert (await both.authenticate(issuer.token())).name == "oidc:lobby"
    for header in (None, "Bearer tsk_1_x", "Basic a.b"):
        assert (await both.authenticate(header)).name == f"key {header}"
    only_keys = CallerAuthenticator(directory)
    assert (await only_keys.authenticate("Bearer a.b.c")).name == "key Bearer a.b.c"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"issuer": "http://login.example.com"}, "TOKENSVC_OIDC_ISSUER must begin with https"),
        ({"jwks_url": "file:///etc/passwd"}, "TOKENSVC_OIDC_JWKS_URL must begin with https"),
        ({"audience": ""}, "TOKENSVC_OIDC_AUDIENCE is not set"),
        ({"algorithms": ("HS256",)}, "not HS256"),
        ({"algorithms": ()}, "not nothing"),
    ],
)
def test_a_configuration_that_is_not_safe_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        OidcConfig(**{"issuer": ISSUER, "audience": AUDIENCE} | options)


class Web:
    """A local server that answers each path with a status and a body."""

    def __init__(self) -> None:
        self.pages: dict[str, tuple[int, bytes]] = {}
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, body = owner.pages.get(self.path, (404, b""))
                self.send_response(status)
                if status == 302:
                    self.send_header("Location", body.decode())
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: object) -> None:
                return

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def web() -> Iterator[Web]:
    server = Web()
    yield server
    server.close()


async def test_keys_come_from_where_the_issuers_discovery_points(web: Web, issuer: Issuer) -> None:
    document = {"issuer": web.url, "jwks_uri": f"{web.url}/keys"}
    web.pages["/.well-known/openid-configuration"] = (200, json.dumps(document).encode())
    web.pages["/keys"] = (200, json.dumps({"keys": issuer.keys}).encode())
    sut = OidcCallers(OidcConfig(web.url, AUDIENCE), lambda: issuer.now)
    assert (await sut.authenticate(issuer.token(iss=web.url))).name == "oidc:lobby"
    await sut.aclose()


@pytest.mark.parametrize(
    "document",
    [
        {"issuer": "https://evil.example.com", "jwks_uri": "{url}/keys"},
        {"issuer": "{url}", "jwks_uri": "http://evil.example.com/keys"},
        {"issuer": "{url}"},
        {"issuer": "{url}", "jwks_uri": "file:///etc/passwd"},
        [],
    ],
)
def test_discovery_that_points_elsewhere_is_refused(web: Web, document: object) -> None:
    text = json.dumps(document).replace("{url}", web.url)
    web.pages["/.well-known/openid-configuration"] = (200, text.encode())
    with pytest.raises(IdentityProviderError):
        open_fetch(web.url, None)()


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (404, b""),
        (500, b"{}"),
        (302, b"http://127.0.0.1:1/"),
        (200, b"not json"),
        (200, b"\xff"),
        (200, b"[" * 100_000),
        (200, b" " * (MAX_BYTES + 1)),
    ],
)
def test_a_page_that_is_no_document_is_refused(web: Web, status: int, body: bytes) -> None:
    web.pages["/x"] = (status, body)
    with pytest.raises(IdentityProviderError):
        fetch_json(f"{web.url}/x")


def test_a_server_that_is_not_there_is_refused(web: Web) -> None:
    url = web.url
    web.close()
    web.close = lambda: None  # type: ignore[method-assign]
    with pytest.raises(IdentityProviderError):
        fetch_json(f"{url}/x")
