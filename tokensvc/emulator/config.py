"""Where the stand-in listens, and which account it plays."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tokensvc.errors import ConfigurationError

__all__ = ["EmulatorConfig"]

_ACCOUNT: Final = re.compile(r"[0-9]{12}", re.ASCII)
_ANY_ADDRESS: Final = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - not bound


@dataclass(frozen=True, slots=True)
class EmulatorConfig:
    """Settings of one emulator; raises ConfigurationError for an account that cannot be."""

    host: str = "127.0.0.1"

    port: int = 8090

    account: str = "123456789012"
    """The AWS account that owns everything, whatever access key a request is signed with."""

    state_file: Path | None = None
    """JSON that survives a restart; it holds public halves of keys and hashes of tokens, no secret.
    Without it all is forgotten."""

    public_url: str | None = None
    """What stages name as their events endpoint; `ws://<host>:<port>` where None, on the loopback
    where the host is every address."""

    enforce_quotas: bool = True
    """Whether IVS's quotas hold: calls a second (429) and stages and public keys a Region (402)."""

    unknown_participants_disconnect: bool = False
    """Whether DisconnectParticipant for one who never joined succeeds, and does nothing, instead of
    answering 404. What IVS does is not documented."""

    max_issued_tokens: int = 50_000
    """Tokens of CreateParticipantToken that are remembered; the oldest is forgotten first."""

    def __post_init__(self) -> None:
        if _ACCOUNT.fullmatch(self.account) is None:
            raise ConfigurationError("An AWS account has 12 digits, such as 123456789012.")

    @property
    def url(self) -> str:
        """What boto3 takes as `endpoint_url`; on the loopback where the host is every address."""
        return f"http://{self._authority}"

    @property
    def events_url(self) -> str:
        """`stage.endpoints.events` of every stage."""
        return f"ws://{self._authority}" if self.public_url is None else self.public_url

    @property
    def _authority(self) -> str:
        host = _ANY_ADDRESS.get(self.host, self.host)
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"
