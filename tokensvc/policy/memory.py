"""What one policy has decided already for one caller, for the requests that ask for the same again.

Nearly all requests of a caller differ in their user and in their attributes only. What else a rule says
depends on the stage and on what is asked for; it is remembered, and attributes are looked at each time.
Refusals are not remembered. A policy never changes and is replaced as a whole, so nothing here is ever
out of date; what is decided with a stage's tags does not come here.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Final, TypeAlias

from tokensvc.policy.decision import Decision, Grant, check_granted, grant_again, grant_each
from tokensvc.policy.rules import CallerRule, TokenLimits
from tokensvc.tokens.arn import StageArn
from tokensvc.tokens.claims import TokenRequest, WantedToken

__all__ = ["CallerMemory"]

_MOST: Final = 4096
"""Of each kind; when there are more, all are forgotten."""

_Asked: TypeAlias = tuple[object, ...]


class CallerMemory:
    """Belongs to one policy and one caller; `max_duration` (minutes) is the service's bound."""

    __slots__ = ("_grants", "_max_duration", "_tagged", "limits", "rule")

    def __init__(self, rule: CallerRule, max_duration: int) -> None:
        """Take the caller's rule."""
        self.rule: Final = rule
        self.limits: Final[TokenLimits] = rule.limits
        self._max_duration = max_duration
        self._grants: dict[_Asked, Grant] = {}
        self._tagged: dict[str, bool] = {}

    def needs_tags(self, stage: StageArn) -> bool:
        """Tell whether the rule allows the stage by its tags alone, if at all."""
        known = self._tagged.get(stage.text)
        if known is None:
            fitting = [one for one in self.rule.stages if one.arn.matches(stage.text)]
            known = bool(fitting) and all(allowed.tags for allowed in fitting)
            if len(self._tagged) >= _MOST:
                self._tagged.clear()
            self._tagged[stage.text] = known
        return known

    def allow(self, wanted: WantedToken) -> TokenRequest:
        """Decide without the stage's tags; raises PolicyDeniedError with all refusals."""
        asked = _asked(wanted)
        grant = self._grants.get(asked)
        request = None if grant is None else grant_again(self.rule, wanted, grant)
        return self._decide_anew(asked, wanted).require() if request is None else request

    def allow_again(self, wanted: Sequence[WantedToken]) -> list[TokenRequest] | None:
        """Decide some requests as `allow` does, where all are allowed by what is remembered.

        None where one is not, or takes longer to look at than most; then they are to be asked for one
        by one. Where rules go by a stage's tags nothing is remembered.
        """
        requests: list[TokenRequest] = []
        for asked, alike in groupby(wanted, _asked):
            grant = self._grants.get(asked)
            granted = None if grant is None else grant_each(self.rule, tuple(alike), grant)
            if granted is None:
                return None
            requests += granted
        return requests

    def decide(self, wanted: WantedToken) -> Decision:
        """Decide without the stage's tags."""
        asked = _asked(wanted)
        grant = self._grants.get(asked)
        request = None if grant is None else grant_again(self.rule, wanted, grant)
        if grant is None or request is None:
            return self._decide_anew(asked, wanted)
        return Decision(grant.rule, request)

    def _decide_anew(self, asked: _Asked, wanted: WantedToken) -> Decision:
        decision, grant = check_granted(self.rule, wanted, None, self._max_duration)
        if grant is not None:
            if len(self._grants) >= _MOST:
                self._grants.clear()
            self._grants[asked] = grant
        return decision


def _asked(wanted: WantedToken) -> _Asked:
    return (
        wanted.stage.text,
        wanted.role,
        wanted.duration,
        wanted.capabilities,
        wanted.issuer,
        wanted.user_id is None,
    )
