"""Settings: what an operator may choose, each declared once with its unit, bounds and default.

Every setting is an environment variable `TOKENSVC_<NAME>`; unless it names a path itself, it may also
come from a file named by `TOKENSVC_<NAME>_FILE` (a mounted secret). `Settings.load` reports everything
that is wrong in one `ConfigurationError`, and refuses variables it does not know, since a misspelt
limit that is silently ignored is a limit that is not there.

Only `cli` and `http/app.py` read settings; all other code takes plain values. A secret never shows in
`repr(settings)` or in `describe(settings)`.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self, cast

import environs
from environs import validate

from tokensvc.errors import ConfigurationError
from tokensvc.tokens.connection import CONNECTION_EVENTS_URL
from tokensvc.tokens.limits import (
    MAX_CONNECTION_DURATION_MINUTES,
    MAX_DURATION_MINUTES,
    REGIONS,
)

__all__ = ["PREFIX", "SettingRow", "Settings", "describe"]

PREFIX: Final = "TOKENSVC_"
_FILE_SUFFIX: Final = "_FILE"
_ALGORITHMS: Final = ("RS256", "ES256", "ES384", "EdDSA")

Reader = Callable[[environs.Env, str], Any]


def _setting(doc: str, read: Reader, default: Any, *, unit: str = "", path: bool = False) -> Any:
    """Declare one setting; a `path` names a file itself and is not read from one."""
    return field(
        default=default, metadata={"doc": doc, "read": read, "unit": unit, "path": path}, repr=False
    )


def _text(env: environs.Env, name: str) -> str:
    return env.str(name, validate=validate.Length(min=1))


def _choice(*allowed: str) -> Reader:
    return lambda env, name: env.str(name, validate=validate.OneOf(allowed)).lower()


def _flag(env: environs.Env, name: str) -> bool:
    return env.bool(name)


def _whole(low: int, high: int) -> Reader:
    return lambda env, name: env.int(name, validate=validate.Range(low, high))


def _number(low: float, high: float) -> Reader:
    return lambda env, name: env.float(name, validate=validate.Range(low, high))


def _path(env: environs.Env, name: str) -> Path:
    try:
        return Path(_text(env, name)).expanduser()
    except RuntimeError as fault:
        # `~nobody`: there is no such user, or no home.
        raise environs.EnvValidationError("", [f"{fault}"]) from fault


def _regions(env: environs.Env, name: str) -> tuple[str, ...]:
    named = [part.strip() for part in cast("list[str]", env.list(name)) if part.strip()]
    for region in named:
        if region not in REGIONS:
            known = ", ".join(REGIONS)
            raise environs.EnvValidationError("", [f"{region!r} has no IVS Real-Time; use {known}"])
    return tuple(dict.fromkeys(named))


def _algorithms(env: environs.Env, name: str) -> tuple[str, ...]:
    named = [part.strip() for part in cast("list[str]", env.list(name)) if part.strip()]
    for algorithm in named:
        if algorithm not in _ALGORITHMS:
            raise environs.EnvValidationError(
                "", [f"{algorithm!r} is not taken; use {', '.join(_ALGORITHMS)}"]
            )
    return tuple(dict.fromkeys(named)) or _ALGORITHMS


def _ring_id(env: environs.Env, name: str) -> str:
    pattern = validate.Regexp(
        r"^[a-zA-Z0-9-]{1,64}\Z", error="Must be 1 to 64 of a-z, A-Z, 0-9 and -."
    )
    return env.str(name, validate=pattern)


def _http_url(env: environs.Env, name: str) -> str:
    pattern = validate.Regexp(r"^https?://[^\s/]+", error="Must start with http:// or https://.")
    return env.str(name, validate=pattern)


def _websocket_url(env: environs.Env, name: str) -> str:
    pattern = validate.Regexp(
        r"^wss?://[^\s/#]+[^\s#]*\Z", error="Must start with wss:// or ws://."
    )
    return env.str(name, validate=pattern)


@dataclass(frozen=True)
class Settings:
    """Every setting, with its value; `load` makes one from the environment."""

    host: str = _setting("Address the service listens on.", _text, "127.0.0.1")
    port: int = _setting("Port the service listens on.", _whole(0, 65_535), 8080)
    emulator_host: str = _setting("Address the IVS emulator listens on.", _text, "127.0.0.1")
    emulator_port: int = _setting("Port the IVS emulator listens on.", _whole(0, 65_535), 8090)

    data_dir: Path = _setting(  # noqa: RUF009 - a field, which dataclass takes apart
        "Folder of the embedded store and of the local master key.", _path, Path("keys"), path=True
    )
    database_url: str = _setting(
        "URL of the store: sqlite+aiosqlite:////path/to/file.db, or postgresql://user@host/name with"
        " libpq's sslmode, sslrootcert and target_session_attrs; default: tokensvc.db in the data"
        " folder.",
        _text,
        "",
    )
    database_pool_size: int = _setting(
        "Connections to PostgreSQL of one worker; it has three more, to write and to listen.",
        _whole(1, 100),
        5,
        unit="connections",
    )
    database_connect_timeout: float = _setting(
        "Longest wait for a connection to PostgreSQL.", _number(0.1, 60), 3.0, unit="seconds"
    )
    database_statement_timeout: float = _setting(
        "Longest run of one statement on PostgreSQL.", _number(0.1, 600), 10.0, unit="seconds"
    )
    database_lock_timeout: float = _setting(
        "Longest wait of a statement on PostgreSQL for a row or table that another one holds.",
        _number(0.1, 600),
        5.0,
        unit="seconds",
    )
    master_key_file: Path = _setting(  # noqa: RUF009 - as above
        "File of the master key that seals private halves; default: master.key in the data folder.",
        _path,
        Path(),
        path=True,
    )
    old_master_key_file: Path | None = _setting(  # noqa: RUF009 - as above
        "File of the master key before this one, while `tokensvc keys reseal` has not been run.",
        _path,
        None,
        path=True,
    )
    kms_key_id: str | None = _setting(
        "AWS KMS key (ARN, id or alias) that seals private halves instead of a master key file.",
        _text,
        None,
    )
    old_kms_key_id: str | None = _setting(
        "AWS KMS key that sealed before, while `tokensvc keys reseal` has not been run.",
        _text,
        None,
    )
    kms_region: str | None = _setting(
        "Region of the KMS keys; default: the one in their ARN, else the first of TOKENSVC_REGIONS.",
        _text,
        None,
    )
    kms_endpoint_url: str | None = _setting(
        "Endpoint of AWS KMS instead of AWS's own.", _http_url, None
    )
    ring_id: str = _setting(
        "Name of this key ring; keys in IVS that carry another ring's name are never touched.",
        _ring_id,
        "default",
    )
    regions: tuple[str, ...] = _setting(
        "Regions to sign for, comma-separated. `serve` has no default: a guess would import keys.",
        _regions,
        (),
    )

    aws_endpoint_url: str | None = _setting(
        "Endpoint of Amazon IVS Real-Time instead of AWS's own; for the emulator.", _http_url, None
    )
    aws_connect_timeout: float = _setting(
        "Longest wait for a connection to AWS.", _number(0.1, 30), 1.0, unit="seconds"
    )
    aws_read_timeout: float = _setting(
        "Longest wait for an answer from AWS.", _number(0.1, 60), 3.0, unit="seconds"
    )
    aws_max_attempts: int = _setting(
        "Tries of one AWS call, the first included.", _whole(1, 10), 2, unit="calls"
    )
    aws_call_share: float = _setting(
        "Share of IVS's calls-per-second quotas that this installation may use, where others share the"
        " account. Its own processes divide the calls that many of them make among themselves.",
        _number(0.001, 1),
        1.0,
        unit="of 1",
    )
    signer: str = _setting(
        "What signs: aws-lc, openssl, or auto (AWS-LC, OpenSSL where awscrt is missing).",
        _choice("auto", "aws-lc", "openssl"),
        "auto",
    )
    stage_cache_ttl: int = _setting(
        "How long a stage's endpoints stay fresh; IVS allows 14 days.",
        _whole(1, 1_209_600),
        3600,
        unit="seconds",
    )
    negative_ttl: int = _setting(
        "How long `no such stage` is remembered.", _whole(1, 60), 5, unit="seconds"
    )

    max_duration: int = _setting(
        "Longest token a caller may ask for; IVS allows 20160.",
        _whole(1, MAX_DURATION_MINUTES),
        MAX_DURATION_MINUTES,
        unit="minutes",
    )
    max_connection_duration: int = _setting(
        "Longest connection token a caller may ask for; IVS allows 40320. 0: none are issued.",
        _whole(0, MAX_CONNECTION_DURATION_MINUTES),
        MAX_CONNECTION_DURATION_MINUTES,
        unit="minutes",
    )
    connection_events_url: str = _setting(
        "`events_url` of connection tokens; IVS takes only its own, the emulator only the emulator's.",
        _websocket_url,
        CONNECTION_EVENTS_URL,
    )
    iat_backdate: int = _setting(
        "How far `iat` is set back for verifiers whose clock is slow; `exp` never moves.",
        _whole(0, 60),
        5,
        unit="seconds",
    )
    max_batch: int = _setting("Tokens in one batch.", _whole(1, 1000), 1000, unit="tokens")
    max_body_bytes: int = _setting(
        "Largest request body, batches apart.", _whole(1024, 1_048_576), 32_768, unit="bytes"
    )
    max_batch_body_bytes: int = _setting(
        "Largest body of a batch; reading a larger one would hold up other requests.",
        _whole(1024, 2_097_152),
        2_097_152,
        unit="bytes",
    )

    ledger: str = _setting(
        "durable: a token leaves when its ledger row is on disk. relaxed: at once; a crash loses the"
        " rows of the last moments.",
        _choice("durable", "relaxed"),
        "durable",
    )
    ledger_retention: int = _setting(
        "How long a token's row is kept after its expiry.",
        _whole(0, 31_536_000),
        86_400,
        unit="seconds",
    )
    idempotency_window: int = _setting(
        "How long the answer to an Idempotency-Key is remembered.",
        _whole(60, 604_800),
        86_400,
        unit="seconds",
    )

    log_level: str = _setting(
        "Least severe level logged.", _choice("debug", "info", "warning", "error"), "info"
    )
    log_format: str = _setting(
        "json, one object a line, or console.", _choice("json", "console"), "json"
    )
    hardened: bool = _setting(
        "true: refuse to start with settings that are for trying things out; `serve --hardened`.",
        _flag,
        False,
    )
    allow_plain_http: bool = _setting(
        "true: a proxy in front of the service speaks TLS, so `--hardened` lets it listen anywhere.",
        _flag,
        False,
    )
    audit: str | None = _setting(
        "Where audit records are appended: a file, stdout or stderr. Without it there are none. Of"
        " commands, stdout means stderr.",
        _text,
        None,
    )
    audit_user_ids: str = _setting(
        "User ids in audit records: hashed (HMAC-SHA-256 under the audit key), or plain.",
        _choice("hashed", "plain"),
        "hashed",
    )
    audit_key_file: Path = _setting(  # noqa: RUF009 - as above
        "File of the key that hashes user ids, made where it is missing; default: audit.key in the"
        " data folder. Replicas that share it hash alike.",
        _path,
        Path(),
        path=True,
    )
    audit_interval: float = _setting(
        "How often mints are told, in summary; a crash loses the counts since.",
        _number(1, 3600),
        60.0,
        unit="seconds",
    )
    audit_required: bool = _setting(
        "true: while audit records cannot be written, requests are refused and the process is not"
        " ready.",
        _flag,
        False,
    )
    workers: int = _setting("Serving processes.", _whole(1, 64), 1, unit="processes")
    max_connections: int = _setting(
        "Connections of one worker; more are answered 503.",
        _whole(16, 65_536),
        4096,
        unit="connections",
    )
    shutdown_grace: int = _setting(
        "How long requests under way may take to finish at shutdown.",
        _whole(1, 300),
        20,
        unit="seconds",
    )
    caller_refresh: float = _setting(
        "How often callers (API keys) are read from the store; a change is seen this much later.",
        _number(0.1, 60),
        0.5,
        unit="seconds",
    )
    oidc_issuer: str | None = _setting(
        "OIDC issuer whose tokens are taken beside API keys, as in their `iss`; none: API keys only.",
        _http_url,
        None,
    )
    oidc_audience: str = _setting(
        "What such a token's `aud` must name; needed with an issuer.", _text, ""
    )
    oidc_jwks_url: str | None = _setting(
        "Where the issuer's keys are; default: where its discovery document says.", _http_url, None
    )
    oidc_algorithms: tuple[str, ...] = _setting(
        "Signature algorithms taken, comma-separated: RS256, ES256, ES384, EdDSA.",
        _algorithms,
        _ALGORITHMS,
    )
    oidc_scope_claim: str = _setting(
        "Claim that holds the scopes: a list, or a text with spaces between them.", _text, "scope"
    )
    oidc_scope_prefix: str = _setting(
        "What stands before our scopes in that claim, such as `https://tokens.example/`.", _text, ""
    )
    oidc_name_claim: str = _setting(
        "Claim that names the caller, which policies and logs know as oidc:<name>.", _text, "sub"
    )
    oidc_leeway: float = _setting(
        "How far the issuer's clock may be off.", _number(0, 300), 30.0, unit="seconds"
    )
    policy_file: Path | None = _setting(  # noqa: RUF009 - as above
        "File of roles and of what each caller may ask for; without one, scopes alone decide.",
        _path,
        None,
        path=True,
    )
    policy_refresh: float = _setting(
        "How often the policy file is looked at; a change takes effect after one to two of these.",
        _number(0.1, 3600),
        2.0,
        unit="seconds",
    )
    ring_refresh: float = _setting(
        "How often the key ring is read from the store.", _number(0.1, 60), 1.0, unit="seconds"
    )
    ring_max_age: float = _setting(
        "How old this process's copy of the key ring may be before it stops signing.",
        _number(1, 3600),
        30.0,
        unit="seconds",
    )

    rotation_period: float = _setting(
        "How long a key signs. 30 days leave room for 28 days of connection tokens in IVS's 3 slots.",
        _number(60, 315_360_000),
        2_592_000.0,
        unit="seconds",
    )
    rotation_check: float = _setting(
        "How often the keys at IVS are looked at.", _number(1, 3600), 30.0, unit="seconds"
    )
    rotation_overdue: float = _setting(
        "How late a rotation may be before it is reported as overdue.",
        _number(1, 2_592_000),
        3600.0,
        unit="seconds",
    )
    standby_min_age: float = _setting(
        "How long IVS has held a key before it takes over from another one.",
        _number(0, 604_800),
        600.0,
        unit="seconds",
    )
    clock_skew: float = _setting(
        "How far a replica's clock may be from that of AWS; a key outlives its tokens by it.",
        _number(0, 3600),
        60.0,
        unit="seconds",
    )

    sources: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)
    """Where each value that is not a default came from, by field name."""

    def __post_init__(self) -> None:
        if not self.database_url:
            path = str(self.data_dir / "tokensvc.db")
            # As a URL has it: `?` would begin a query, and `%` an escape.
            url = f"sqlite+aiosqlite:///{path.replace('%', '%25').replace('?', '%3F')}"
            object.__setattr__(self, "database_url", url)
        if self.master_key_file == Path():
            object.__setattr__(self, "master_key_file", self.data_dir / "master.key")
        if self.audit_key_file == Path():
            object.__setattr__(self, "audit_key_file", self.data_dir / "audit.key")

    @classmethod
    def load(cls, environ: Mapping[str, str] | None = None, **overrides: object) -> Self:
        """Read the settings from `environ` (the process's environment where None).

        `overrides` are values by field name that come before the environment, as options of a
        command do; None means "not given". Raises ConfigurationError that lists, one a line, every
        variable that is unknown, unreadable, or out of its bounds.
        """
        environ = os.environ if environ is None else environ
        env = _Environment(environ)
        faults = _unknown_variables(environ)
        values: dict[str, Any] = {}
        sources: dict[str, str] = {}
        for spec in _specs():
            if overrides.get(spec.name) is not None:
                values[spec.name] = overrides[spec.name]
                sources[spec.name] = "override"
                continue
            try:
                source = env.source(spec)
                if source is not None:
                    values[spec.name] = spec.metadata["read"](env, spec.name.upper())
                    sources[spec.name] = source
            except environs.EnvValidationError as fault:
                faults.append(f"{variable(spec)}: {' '.join(map(str, fault.error_messages))}")
            except ConfigurationError as fault:
                faults.append(fault.detail)
        if faults:
            raise ConfigurationError("\n".join(faults))
        return cls(**values, sources=sources)

    def require_regions(self) -> tuple[str, ...]:
        """Return the Regions; raises ConfigurationError where none is set."""
        if not self.regions:
            raise ConfigurationError(
                f"{PREFIX}REGIONS is not set: name the Regions of your stages, such as eu-central-1"
                f" (IVS Real-Time has {', '.join(REGIONS)})"
            )
        return self.regions


def _specs() -> list[dataclasses.Field[Any]]:
    return [spec for spec in dataclasses.fields(Settings) if "doc" in spec.metadata]


def variable(spec: dataclasses.Field[Any]) -> str:
    """Return the name of a setting's environment variable."""
    return PREFIX + spec.name.upper()


class _Environment(environs.Env):
    """environs over a given mapping, with `_FILE`; its own FileAwareEnv reads only the process's."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        super().__init__(prefix=PREFIX)
        self._given = environ
        self._from_files: dict[str, str] = {}

    def source(self, spec: dataclasses.Field[Any]) -> str | None:
        """Say where a setting's value comes from (None: nowhere), reading its file if it has one."""
        name, file_name = variable(spec), variable(spec) + _FILE_SUFFIX
        path = None if spec.metadata["path"] else self._given.get(file_name)
        if path is None:
            return "environment" if name in self._given else None
        if name in self._given:
            raise ConfigurationError(f"{name} and {file_name} are both set: which one is meant?")
        try:
            self._from_files[name] = Path(path).read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError) as fault:
            reason = fault.strerror if isinstance(fault, OSError) else "not UTF-8"
            raise ConfigurationError(f"{file_name}: cannot read {path!r}: {reason}") from None
        return f"file {path}"

    def _get_value(self, env_key: str, default: Any) -> Any:
        return self._from_files.get(env_key, self._given.get(env_key, default))


def _unknown_variables(environ: Mapping[str, str]) -> list[str]:
    known = {variable(spec) for spec in _specs()}
    known |= {variable(spec) + _FILE_SUFFIX for spec in _specs() if not spec.metadata["path"]}
    faults = []
    for name in sorted(environ):
        if name.startswith(PREFIX) and name not in known:
            close = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.0)
            faults.append(f"{name} is not a setting; the closest is {close[0]}")
    return faults


@dataclass(frozen=True, slots=True)
class SettingRow:
    """One setting as `tokensvc settings` prints it; `value` is fit to be shown."""

    name: str
    value: str
    default: str
    unit: str
    source: str
    doc: str


_URL_PASSWORD = re.compile(r"(?<=://)([^:/@\s]*):\S*@")
"""To the last @, since one in a password that nobody escaped is a part of it."""
_QUERY_PASSWORD = re.compile(r"(?<=[?&])(password|sslpassword|passwd|pwd)=[^&\s]*", re.IGNORECASE)


def describe(settings: Settings) -> list[SettingRow]:
    """Return a row for every setting, in the order of declaration, passwords masked."""
    defaults = Settings()
    return [
        SettingRow(
            name=variable(spec),
            value=_shown(getattr(settings, spec.name)),
            default=_shown(getattr(defaults, spec.name)),
            unit=spec.metadata["unit"],
            source=settings.sources.get(spec.name, "default"),
            doc=spec.metadata["doc"],
        )
        for spec in _specs()
    ]


def _shown(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return _QUERY_PASSWORD.sub(r"\1=***", _URL_PASSWORD.sub(r"\1:***@", str(value)))
