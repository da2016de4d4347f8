"""boto3 clients for IVS, one per Region, made when first needed and never on the event loop.

boto3 and its model are slow to load, so the import happens with the first client. Every limit that
boto3 would otherwise take from the environment is set here: timeouts, attempts, pool size.
Credentials come from boto3's usual chain unless they are given.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from tokensvc.errors import ConfigurationError
from tokensvc.ivs.clock_drift import ClockDrift

if TYPE_CHECKING:
    from boto3.session import Session
    from botocore.config import Config
    from mypy_boto3_ivs_realtime import IvsrealtimeClient

__all__ = [
    "ClientSettings",
    "RegionalClients",
    "StaticCredentials",
    "make_config",
    "make_session",
]


@dataclass(frozen=True, slots=True)
class StaticCredentials:
    """Credentials for AWS's Signature Version 4 that do not come from boto3's chain."""

    access_key_id: str
    secret_access_key: str = field(repr=False)
    session_token: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """How to reach IVS, and how long to try."""

    endpoint_url: str | None = None
    """An http or https URL in place of AWS's endpoints, such as a local stand-in."""

    connect_timeout_seconds: float = 1.0

    read_timeout_seconds: float = 3.0
    """The longest silence of IVS within an answer, not the longest answer."""

    total_max_attempts: int = 2
    """Attempts of botocore for one call, the first one included; an import of a key and the making
    of a stage are attempted once, whatever this says."""

    call_deadline_seconds: float | None = None
    """What a call may take in all, attempts and pauses included; without it, see `deadline`."""

    max_threads: int = 16
    """Calls under way at once in a Region: so many of CreateParticipantToken, so many kicks, and so
    many of all others. Each has a thread, which is started when it is first needed."""

    max_waiting: int = 64
    """Calls that may wait for a thread, of each kind in each Region; one more is refused."""

    user_agent_suffix: str = "tokensvc"

    def __post_init__(self) -> None:
        """Raise ConfigurationError for a value that cannot work."""
        times = (self.connect_timeout_seconds, self.read_timeout_seconds, self.deadline())
        if min(times) <= 0:
            raise ConfigurationError("The timeouts of calls to IVS must be above 0 s.")
        if self.total_max_attempts < 1 or self.max_threads < 1 or self.max_waiting < 0:
            raise ConfigurationError("Calls to IVS need at least one attempt and one thread.")
        if self.endpoint_url is not None and not _is_http_url(self.endpoint_url):
            raise ConfigurationError("The endpoint of IVS must be an http or https URL.")

    def deadline(self) -> float:
        """Return the seconds that a call may take: as set, or what all attempts need.

        The latter counts a second's pause for each attempt, which is botocore's longest first one.
        """
        if self.call_deadline_seconds is not None:
            return self.call_deadline_seconds
        attempt = self.connect_timeout_seconds + self.read_timeout_seconds + 1.0
        return self.total_max_attempts * attempt


class RegionalClients:
    """Keeps the clients; safe to use from several threads, and blocking."""

    def __init__(
        self,
        settings: ClientSettings,
        credentials: StaticCredentials | None,
        drift: ClockDrift | None = None,
    ) -> None:
        """Make none yet; `drift`, where given, learns from every answer."""
        self._settings = settings
        self._credentials = credentials
        self._drift = drift
        self._lock = threading.Lock()
        self._session: Session | None = None
        self._clients: dict[tuple[str, bool], IvsrealtimeClient] = {}

    def has(self, region: str, *, repeatable: bool) -> bool:
        """Whether the Region's client is made; does not block."""
        return (region, repeatable) in self._clients

    def client(self, region: str, *, repeatable: bool) -> IvsrealtimeClient:
        """Return the Region's client; with `repeatable` false, one that makes a single attempt.

        Raises botocore's errors, such as ProfileNotFound.
        """
        # A boto3 session must not be used by two threads at once; the clients it makes may be.
        with self._lock:
            client = self._clients.get((region, repeatable))
            if client is None:
                if self._session is None:
                    self._session = make_session(self._credentials)
                client = self._session.client(
                    "ivs-realtime",
                    region_name=region,
                    endpoint_url=self._settings.endpoint_url,
                    config=make_config(self._settings, repeatable=repeatable),
                )
                if self._drift is not None:
                    _watch_dates(client, region, self._drift)
                self._clients[region, repeatable] = client
            return client

    def close(self) -> None:
        """Close the connections of all clients."""
        with self._lock:
            for client in self._clients.values():
                client.close()
            self._clients.clear()


def make_session(credentials: StaticCredentials | None) -> Session:
    """Return a boto3 session that logs no wire contents; without credentials, of the usual chain."""
    from boto3.session import Session
    from botocore.session import get_session

    from tokensvc.ivs.aws_data import FewEndpoints

    _keep_wire_contents_out_of_logs()
    core = get_session()
    core.get_component("data_loader").file_loader = FewEndpoints()
    if credentials is None:
        return Session(botocore_session=core)
    return Session(
        aws_access_key_id=credentials.access_key_id,
        aws_secret_access_key=credentials.secret_access_key,
        aws_session_token=credentials.session_token,
        botocore_session=core,
    )


def make_config(settings: ClientSettings, *, repeatable: bool) -> Config:
    """Return botocore's limits as the settings say; without `repeatable`, for a single attempt."""
    from botocore.config import Config

    config = Config(
        connect_timeout=settings.connect_timeout_seconds,
        read_timeout=settings.read_timeout_seconds,
        retries={
            "mode": "standard",
            "total_max_attempts": settings.total_max_attempts if repeatable else 1,
        },
        max_pool_connections=2 * settings.max_threads,
        user_agent_extra=settings.user_agent_suffix,
    )
    if settings.endpoint_url is not None and _is_loopback(settings.endpoint_url):
        # A proxy named by the environment is another machine and cannot reach our loopback.
        config = config.merge(Config(proxies={}))
    return config


def _watch_dates(client: IvsrealtimeClient, region: str, drift: ClockDrift) -> None:
    # Both events happen in the thread that makes the call, for each attempt once. What a handler
    # returns from `before-send` would be taken for the answer, and what it raises would end the call.
    attempt = threading.local()

    def sending(**_: object) -> None:
        attempt.sent_at = drift.clock()

    def received(response_dict: Mapping[str, Any], **_: object) -> None:
        drift.answered(region, sent_at=attempt.sent_at, date=response_dict["headers"].get("date"))

    client.meta.events.register("before-send.ivs-realtime", sending)
    client.meta.events.register("before-parse.ivs-realtime", received)


def _keep_wire_contents_out_of_logs() -> None:
    # At DEBUG botocore logs whole requests and answers: participant tokens and signed headers.
    for name in ("boto3", "botocore", "urllib3"):
        logger = logging.getLogger(name)
        logger.setLevel(max(logger.level, logging.INFO))


def _is_http_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
