"""What of a request is told in the audit record.

One place tells it, the edge, after a request was answered: so an action that was refused is recorded
too, with the code of its problem, and one whose caller nobody knows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from tokensvc.http.facts import RequestFacts
from tokensvc.telemetry.audit import Audit, MintGroup

__all__ = ["ACTIONS", "MINTS", "RequestAudit", "policy_recorder"]

_DONE: Final = "done"

MINTS: Final[Mapping[str, str]] = {
    "/v1/tokens": "token.mint",
    "/v1/tokens/batch": "token.mint_batch",
    "/v1/tokens/exchange": "token.exchange",
    "/v1/connection-tokens": "connection_token.mint",
}
"""What `POST` at a path issues: told in summary."""

ACTIONS: Final[Mapping[tuple[str, str], str]] = {
    ("POST", "/v1/disconnects"): "participant.disconnect",
    ("POST", "/v1/bans"): "ban.add",
    ("DELETE", "/v1/bans"): "ban.lift_all",
    ("DELETE", "/v1/bans/{ban_id}"): "ban.lift",
    ("DELETE", "/v1/connection-tokens/{token_id}"): "connection_token.revoke",
    ("POST", "/v1/keys/rotate"): "key.rotate",
    ("POST", "/v1/keys/{key_id}/invalidate"): "key.invalidate",
}
"""What changes something, by method and route: told one by one."""


class RequestAudit:
    """Tells of requests; `note` is called once for each."""

    def __init__(self, audit: Audit) -> None:
        self._audit = audit

    def note(self, method: str, route: str, facts: RequestFacts) -> None:
        """Record what a request has done, or was refused to do."""
        if self._audit.lines is None:
            return
        outcome = facts.code or _DONE
        if method == "POST" and (minting := MINTS.get(route)) is not None:
            caller = facts.caller_id
            if not facts.issued:
                group = MintGroup(minting, caller, facts.stage_arn, facts.key_arn, outcome)
                self._audit.minted(group)
                return
            for (stage_arn, key_arn, result), count in facts.issued.items():
                self._audit.minted(MintGroup(minting, caller, stage_arn, key_arn, result), count)
        elif (action := ACTIONS.get((method, route))) is not None:
            self._audit.action(action, who=facts.caller_id, outcome=outcome, **(facts.about or {}))


def policy_recorder(audit: Audit, path: Path | None) -> Callable[[str, str | None, str], None]:
    """Return what records each policy that comes into force, or is refused, from the file at `path`."""

    def record(action: str, reason: str | None, digest: str) -> None:
        audit.action(
            action,
            who="policy file",
            outcome=_DONE if reason is None else "configuration",
            path=str(path),
            inForce=digest,
            faults=None if reason is None else reason.splitlines(),
        )

    return record
