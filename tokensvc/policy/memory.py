"""What one policy has decided already, for the requests that ask for the same again.

Nearly all requests of a caller differ in their user and in their attributes only. What else a rule says
depends on the caller's name, the stage, and what is asked for; it is remembered, and attributes are
looked at each time. Refusals are not remembered. A policy never changes and is replaced as a whole, so
nothing here is ever out of date; what is decided with a stage's tags does not come here.
"""

from __future__ import annotations

from typing import Final, TypeAlias

from tokensvc.policy.decision import Decision, Grant, check_granted, grant_again
from tokensvc.policy.rules import CallerRule
from tokensvc.tokens.arn import StageArn
from tokensvc.tokens.claims import WantedToken

__all__ = ["PolicyMemory"]

_MOST: Final = 4096
"""Of each kind; when there are more, all are forgotten."""

_Asked: TypeAlias = tuple[object, ...]


class PolicyMemory:
    """Belongs to one policy; `max_duration` (minutes) is the service's bound."""

    __slots__ = ("_grants", "_max_duration", "_tagged")

    def __init__(self, max_duration: int) -> None:
        self._max_duration = max_duration
        self._grants: dict[_Asked, Grant] = {}
        self._tagged: dict[tuple[str, str], bool] = {}

    def needs_tags(self, caller: str, rule: CallerRule, stage: StageArn) -> bool:
        """Tell whether `rule`, which is the caller's, allows the stage by its tags alone, if at all."""
        known = self._tagged.get((caller, stage.text))
        if known is None:
            fitting = [allowed for allowed in rule.stages if allowed.arn.matches(stage.text)]
            known = bool(fitting) and all(allowed.tags for allowed in fitting)
            if len(self._tagged) >= _MOST:
                self._tagged.clear()
            self._tagged[caller, stage.text] = known
        return known

    def decide(self, caller: str, rule: CallerRule, wanted: WantedToken) -> Decision:
        """Decide by `rule`, which is the caller's, without the stage's tags."""
        asked = (
            caller,
            wanted.stage.text,
            wanted.role,
            wanted.duration,
            wanted.capabilities,
            wanted.issuer,
            wanted.user_id is None,
        )
        grant = self._grants.get(asked)
        if grant is not None:
            again = grant_again(rule, wanted, grant)
            if again is not None:
                return again
        decision, grant = check_granted(rule, wanted, None, self._max_duration)
        if grant is not None:
            if len(self._grants) >= _MOST:
                self._grants.clear()
            self._grants[asked] = grant
        return decision
