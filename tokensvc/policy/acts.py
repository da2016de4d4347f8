"""What a rule says beside participant tokens: acting on a stage or on all, and connection tokens.

Each function raises PolicyDeniedError with the rule that decided, or returns.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NoReturn

from tokensvc.policy.decision import Decision, Refusal, match_stage, missing_user
from tokensvc.policy.rules import CallerRule, DurationRule
from tokensvc.tokens.arn import StageArn
from tokensvc.tokens.connection import ConnectionRequest, WantedConnection, complete_connection

__all__ = ["check_connection", "deny", "require_connections", "require_everywhere", "require_stage"]


def deny(refusal: Refusal) -> NoReturn:
    """Raise PolicyDeniedError."""
    Decision(refusal.rule, refusals=(refusal,)).require()
    raise AssertionError("a refusal was allowed")


def require_stage(caller: CallerRule, stage: StageArn, tags: Mapping[str, str] | None) -> None:
    """Refuse to act on a stage that is not the caller's; `tags` are the stage's, where known."""
    found = match_stage(caller, stage, tags)
    if isinstance(found, Refusal):
        deny(found)


def require_everywhere(caller: CallerRule) -> None:
    """Refuse to act on all stages at once, unless the rule has `everywhere`."""
    if not caller.everywhere:
        detail = "is required: this caller may not act on all stages at once (`everywhere`)"
        deny(Refusal("stageArn", "required", detail, caller.rule_of("everywhere")))


def require_connections(caller: CallerRule, *, of_others: bool = False) -> DurationRule:
    """Refuse a caller that gets no connection tokens; return for how long they may be.

    A connection token is of no stage, so those `of_others` are for who may act on all stages.
    """
    if caller.connection_tokens is None:
        detail = "This caller has nothing to do with connection tokens (`connectionTokens`)."
        deny(Refusal("", "no_connection_tokens", detail, caller.rule))
    if of_others and not caller.everywhere:
        detail = "This connection token was issued to another caller (`everywhere`)."
        deny(Refusal("", "not_own_connection_token", detail, caller.rule_of("everywhere")))
    return caller.connection_tokens


def check_connection(
    caller: CallerRule,
    wanted: WantedConnection,
    tags: Mapping[str, str] | None,
    max_duration: int,
) -> ConnectionRequest:
    """Return the connection token that a caller may have; `max_duration` (minutes) is the service's."""
    bounds = require_connections(caller)
    asked = wanted.duration
    if asked is not None and not bounds.least <= asked <= bounds.most:
        code, limit = (
            ("too_large", bounds.most) if asked > bounds.most else ("too_small", bounds.least)
        )
        detail = f"is {asked} minutes; allowed are {bounds.least} to {bounds.most}"
        deny(Refusal("duration", code, detail, bounds.rule, limit))
    missing = missing_user(caller, wanted.user_id)
    if missing is not None:
        deny(missing)
    if wanted.stage is None:
        require_everywhere(caller)
    else:
        require_stage(caller, wanted.stage, tags)
    return complete_connection(wanted, min(bounds.default, max_duration))
