"""A policy: the rules of one file, or the one that leaves everything to the callers' scopes.

It never changes; a new file makes a new one (`PolicyFile`). With a file everything is closed: a caller
that the file does not name gets nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Self

from tokensvc.errors import ConfigurationError
from tokensvc.policy.acts import (
    check_connection,
    deny,
    require_connections,
    require_everywhere,
    require_stage,
)
from tokensvc.policy.decision import Decision, Finding, check, refused
from tokensvc.policy.document import Fault, read_document
from tokensvc.policy.memory import CallerMemory
from tokensvc.policy.reading import ANYBODY, PolicyRules, read_rules
from tokensvc.policy.recent import Recent
from tokensvc.policy.rules import CallerRule, Rule, TokenLimits
from tokensvc.tokens.arn import StageArn
from tokensvc.tokens.claims import WantedToken
from tokensvc.tokens.connection import ConnectionRequest, WantedConnection, complete_connection
from tokensvc.tokens.limits import DEFAULT_DURATION_MINUTES, MAX_DURATION_MINUTES
from tokensvc.tokens.validate import complete

__all__ = ["Policy"]

_NO_FILE: Final = Rule("no policy file (TOKENSVC_POLICY_FILE)", 0)
_NO_LIMITS: Final = TokenLimits()
_MAX_TOLD: Final = 200
_MOST_KNOWN: Final = 1024
"""Callers of whom something is remembered; those without a rule of their own count, too."""


class Policy:
    """Decides what a caller gets; `max_duration` (minutes) is the service's bound."""

    __slots__ = ("_known", "_max_duration", "_rules", "is_open", "limits")

    def __init__(self, rules: PolicyRules | None, max_duration: int) -> None:
        """Use `open` or `parse`; without rules, the policy is open."""
        self._rules = rules
        self._max_duration = max_duration
        self._known: Recent[str, CallerMemory] = Recent(_MOST_KNOWN)
        self.is_open: Final = rules is None
        """Whether scopes alone decide."""
        self.limits: Final = _NO_LIMITS if rules is None else rules.limits
        """The limits of all callers together."""

    @classmethod
    def open(cls, max_duration: int = MAX_DURATION_MINUTES) -> Self:
        """Return the policy of an installation without a file: scopes alone decide."""
        return cls(None, max_duration)

    @classmethod
    def parse(
        cls, text: bytes, *, name: str = "policy", max_duration: int = MAX_DURATION_MINUTES
    ) -> Self:
        """Read a policy: YAML 1.1 in UTF-8, at most 1 MB, without anchors, aliases and tags.

        Raises ConfigurationError with every fault, one a line: `<name>: line <n>: <field>: <why>`.
        """
        faults: list[Fault] = []
        rules = read_rules(read_document(text, faults), max_duration, faults)
        if faults:
            faults.sort(key=lambda fault: fault.line)
            lines = [f"{name}: {fault}" for fault in faults[:_MAX_TOLD]]
            if len(faults) > _MAX_TOLD:
                lines.append(f"{name}: and {len(faults) - _MAX_TOLD} more faults")
            raise ConfigurationError("\n".join(lines))
        return cls(rules, max_duration)

    @property
    def callers(self) -> tuple[str, ...]:
        """The callers that the file names."""
        return () if self._rules is None else tuple(self._rules.callers)

    def limits_of(self, caller: str) -> TokenLimits:
        """Return a caller's own limits."""
        known = self.known(caller)
        return _NO_LIMITS if known is None else known.limits

    def needs_tags(self, caller: str, stage: StageArn) -> bool:
        """Tell whether `decide` needs the stage's tags: no rule allows it by its ARN alone."""
        known = self.known(caller)
        return known is not None and known.needs_tags(stage)

    def known(self, caller: str) -> CallerMemory | None:
        """Return what is known of a caller; None where no rule is for it, or the policy is open."""
        known = self._known.get(caller)
        if known is None:
            rule = self._rule_of(caller)
            if rule is None:
                return None
            known = CallerMemory(rule, self._max_duration)
            self._known.put(caller, known)
        return known

    def decide(
        self,
        caller: str,
        wanted: WantedToken,
        tags: Mapping[str, str] | None = None,
        *,
        findings: list[Finding] | None = None,
    ) -> Decision:
        """Decide what `caller` (its name) gets of what it asks for.

        `tags` are the stage's, which only some rules go by (`needs_tags`). What each rule said is
        added to `findings`.
        """
        if self._rules is None:
            return self._decide_openly(wanted)
        known = self.known(caller)
        if known is None:
            return _not_named(caller)
        if findings is None and tags is None:
            return known.decide(wanted)
        return check(known.rule, wanted, tags, self._max_duration, findings)

    def require_stage(
        self, caller: str, stage: StageArn, tags: Mapping[str, str] | None = None
    ) -> None:
        """Refuse a caller that may not act on a stage: kick from it, ban in it, revoke for it.

        `tags` are as for `decide`. Raises PolicyDeniedError.
        """
        if self._rules is not None:
            require_stage(self._require_rule(caller), stage, tags)

    def require_everywhere(self, caller: str) -> None:
        """Refuse a caller that may not act on all stages at once; raises PolicyDeniedError."""
        if self._rules is not None:
            require_everywhere(self._require_rule(caller))

    def require_connections(self, caller: str, *, of_others: bool) -> None:
        """Refuse a caller that gets no connection tokens, or has none `of_others` to act on.

        Raises PolicyDeniedError.
        """
        if self._rules is not None:
            require_connections(self._require_rule(caller), of_others=of_others)

    def admit_connection(
        self,
        caller: str,
        wanted: WantedConnection,
        tags: Mapping[str, str] | None,
        max_duration: int,
    ) -> ConnectionRequest:
        """Return the connection token that `caller` gets for what it asks for.

        `tags` are those of `wanted.stage`, as for `decide`; `max_duration` (minutes) is the service's
        bound. Raises PolicyDeniedError.
        """
        if self._rules is None:
            return complete_connection(wanted, min(DEFAULT_DURATION_MINUTES, max_duration))
        return check_connection(self._require_rule(caller), wanted, tags, max_duration)

    def _require_rule(self, caller: str) -> CallerRule:
        rule = self._rule_of(caller)
        if rule is None:
            deny(_not_named(caller).refusals[0])
        return rule

    def _rule_of(self, caller: str) -> CallerRule | None:
        if self._rules is None:
            return None
        callers = self._rules.callers
        return callers.get(caller) or callers.get(ANYBODY)

    def _decide_openly(self, wanted: WantedToken) -> Decision:
        if wanted.role is not None:
            detail = f"{wanted.role} is not known: roles are defined in a policy file"
            return refused("role", "role_not_allowed", detail, _NO_FILE)
        return Decision(_NO_FILE, complete(wanted, self._max_duration))


def _not_named(caller: str) -> Decision:
    told = ascii(caller[:64])[1:-1]
    detail = f"The policy has no rule for the caller {told}, which therefore gets nothing."
    return refused("", "caller_not_named", detail, Rule("callers", 0))
