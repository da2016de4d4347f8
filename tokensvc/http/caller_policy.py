"""The policy of the caller who asks, as handlers put it to use.

A request that repeats an answer (`Idempotency-Key`) is held against the rules, which may have changed,
and not against the limits, since it issues nothing new.
"""

from __future__ import annotations

from collections.abc import Mapping

from tokensvc.http.facts import RequestFacts
from tokensvc.http.service import Service
from tokensvc.ledger.idempotency import IdempotencyRef
from tokensvc.policy import PolicyGate
from tokensvc.tokens.arn import StageArn
from tokensvc.tokens.claims import TokenRequest, WantedToken

__all__ = ["CallerPolicy", "is_counted", "require_subject"]


class CallerPolicy:
    """What one caller may have; `headers` tell its limits once something was counted."""

    def __init__(self, gate: PolicyGate, caller: str) -> None:
        """Take the caller's name, which rules go by."""
        self.headers: Mapping[str, str] = {}
        self._gate = gate
        self._caller = caller

    async def __call__(self, wanted: WantedToken, *, counted: bool) -> TokenRequest:
        """Return what to issue; see `PolicyGate.admit`."""
        admitted = await self._gate.admit(self._caller, wanted, counted=counted)
        if counted:
            self.headers = admitted.headers
        return admitted.request


async def is_counted(service: Service, caller: str, ref: IdempotencyRef | None) -> bool:
    """Tell whether a request counts against its caller's limits; raises StoreUnavailableError."""
    if ref is None or not service.gate.counts(caller):
        return True
    return not await service.desk.has_answered(ref)


async def require_subject(
    service: Service,
    facts: RequestFacts,
    *,
    stage_arn: str | None,
    participant_id: str | None = None,
) -> None:
    """See to it that the caller may act on a stage and on a participant, wherever that one is.

    Where neither tells a stage, it must be allowed to act on all of them. Raises PolicyDeniedError, and
    where rules go by tags StageNotFoundError and other IvsError classes.
    """
    if service.gate.is_open:
        return
    stages = [] if stage_arn is None else [StageArn.parse(stage_arn)]
    if participant_id is not None:
        # Nobody acts on another's stage by naming its own beside a participant of the other.
        found = await service.ledger.latest(participant_id, repaired_at=service.clock())
        if found is not None and found.stage_arn is not None:
            stages.append(StageArn.parse(found.stage_arn))
    await service.gate.require_stages(facts.caller_name, stages)
