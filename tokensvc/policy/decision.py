"""One request against one caller's rule: what it may have, or every reason why not.

Pure and quick, since every mint goes through it. Nothing is cut down to fit: a request for more than
is allowed is refused, with the field, the limit, what was asked for, and the rule with its line.
What was left out is filled in from the role and from the rule.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from tokensvc.errors import FieldError, PolicyDeniedError
from tokensvc.policy.rules import CallerRule, DurationRule, Role, Rule, StageRule, Wildcard
from tokensvc.tokens.arn import StageArn
from tokensvc.tokens.claims import Issuer, TokenRequest, WantedToken
from tokensvc.tokens.limits import (
    DEFAULT_DURATION_MINUTES,
    MAX_ATTRIBUTES_BYTES,
)

__all__ = [
    "Decision",
    "Finding",
    "Grant",
    "Refusal",
    "check",
    "check_granted",
    "grant_again",
    "grant_each",
    "match_stage",
    "missing_user",
    "refused",
]

_MAX_SHOWN = 64
_MAX_TOLD = 8
_FEW_ATTRIBUTES = 16


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why one field of a request is refused; `limit` is what the rule allows."""

    field: str
    code: str
    detail: str
    rule: Rule
    limit: int | str | None = None

    def as_field_error(self) -> FieldError:
        """Return it as callers see it."""
        return FieldError(self.field, self.code, f"{self.detail} [{self.rule}]", self.limit)


@dataclass(frozen=True, slots=True)
class Finding:
    """What a rule said to one field, for `tokensvc policy check`."""

    field: str
    allowed: bool
    detail: str
    rule: Rule


class Decision(msgspec.Struct, frozen=True):
    """`request` is None where there are refusals; `rule` is the one that decided.

    That is the first that refused, or else the one that allows the stage.
    """

    rule: Rule
    request: TokenRequest | None = None
    refusals: tuple[Refusal, ...] = ()

    @property
    def allowed(self) -> bool:
        """Whether the caller may have the token."""
        return self.request is not None

    def require(self) -> TokenRequest:
        """Return the request to issue; raises PolicyDeniedError with all refusals."""
        if self.request is not None:
            return self.request
        first = self.refusals[0].as_field_error()
        more = len(self.refusals) - 1
        detail = f"{first.field}: {first.detail}" if first.field else first.detail
        raise PolicyDeniedError(
            f"{detail}; and {more} more" if more else detail,
            errors=tuple(refusal.as_field_error() for refusal in self.refusals),
        )


class Grant(msgspec.Struct, frozen=True):
    """What a caller gets of a request whatever its attributes are, and whoever its user is."""

    rule: Rule
    role: Role | None
    duration: int
    capabilities: tuple[str, ...]
    issuer: Issuer


def refused(field: str, code: str, detail: str, rule: Rule) -> Decision:
    """Return the decision that has one reason to refuse."""
    return Decision(rule, refusals=(Refusal(field, code, detail, rule),))


def check(
    caller: CallerRule,
    wanted: WantedToken,
    tags: Mapping[str, str] | None,
    max_duration: int,
    findings: list[Finding] | None = None,
) -> Decision:
    """Decide what a caller gets.

    `tags` are the stage's, None where they are not known; `max_duration` (minutes) is the service's
    bound. What each rule said is added to `findings`.
    """
    return _Check(caller, wanted, findings).decide(tags, max_duration)[0]


def check_granted(
    caller: CallerRule, wanted: WantedToken, tags: Mapping[str, str] | None, max_duration: int
) -> tuple[Decision, Grant | None]:
    """Decide as `check` does, and return what else holds for all requests that ask for the same.

    None where the request was refused. What it asks for is all but attributes and the user's id; but
    whether there is a user's id counts.
    """
    return _Check(caller, wanted, None).decide(tags, max_duration)


def match_stage(
    caller: CallerRule, stage: StageArn, tags: Mapping[str, str] | None
) -> StageRule | Refusal:
    """Return the first rule by which the caller may act on a stage, or why there is none."""
    arn = str(stage)
    by_tags = False
    for allowed in caller.stages:
        if allowed.arn.matches(arn):
            if not allowed.tags or (tags is not None and allowed.tags.items() <= tags.items()):
                return allowed
            by_tags = True
    rule = caller.rule_of("stages")
    if by_tags and tags is None:
        detail = "the stage's tags, which this rule goes by, are not known"
        return Refusal("stageArn", "tags_unknown", detail, rule)
    choice = ", ".join(_told_stage(one) for one in caller.stages[:_MAX_TOLD]) or "none"
    detail = f"is not one of this caller's stages: {choice}"
    return Refusal("stageArn", "stage_not_allowed", detail, rule, choice)


def missing_user(caller: CallerRule, user_id: str | None) -> Refusal | None:
    """Return why a token without a user is not for the caller, where it is not."""
    if caller.limits.per_user_minute is None or user_id is not None:
        return None
    detail = "is required: tokens are counted per user"
    return Refusal("userId", "required", detail, caller.rule_of("limits"))


def grant_again(caller: CallerRule, wanted: WantedToken, grant: Grant) -> TokenRequest | None:
    """Return what a request gets that asks for what `grant` was given for.

    None where its attributes are not plainly allowed; then `check` decides, and says why not.
    """
    attributes = _allowed_attributes(caller, grant.role, wanted.attributes)
    if attributes is None:
        return None
    return TokenRequest(
        wanted.stage, wanted.user_id, grant.duration, grant.capabilities, attributes, grant.issuer
    )


def grant_each(
    caller: CallerRule, wanted: Sequence[WantedToken], grant: Grant
) -> list[TokenRequest] | None:
    """Return what requests get that all ask for what `grant` was given for; None as `grant_again`.

    None as well where one has more than a few attributes: that is looked at by itself, since it takes
    longer. Whether names are allowed is not asked again of those that the one before had as well.
    """
    fixed: Mapping[str, str] = {} if grant.role is None else grant.role.attributes
    duration, capabilities, issuer = grant.duration, grant.capabilities, grant.issuer
    allowed: list[str] | None = None
    room = 0
    requests: list[TokenRequest] = []
    for one in wanted:
        asked = one.attributes
        attributes: Mapping[str, str] | None
        # A character has at most four bytes.
        if asked and list(asked) == allowed and 4 * len("".join(asked.values())) <= room:
            attributes = {**asked, **fixed}
        else:
            if asked and len(asked) > _FEW_ATTRIBUTES:
                return None
            attributes = _allowed_attributes(caller, grant.role, asked)
            if attributes is None:
                return None
            if asked:
                allowed = list(asked)
                room = MAX_ATTRIBUTES_BYTES - _size_of(dict.fromkeys(allowed, "")) - _size_of(fixed)
        requests.append(
            TokenRequest(one.stage, one.user_id, duration, capabilities, attributes, issuer)
        )
    return requests


def _allowed_attributes(
    caller: CallerRule, role: Role | None, asked: Mapping[str, str] | None
) -> Mapping[str, str] | None:
    fixed: Mapping[str, str] = {} if role is None else role.attributes
    bounds = caller.attributes
    if not asked:
        return None if bounds.required else fixed
    for name in bounds.required:
        if name not in asked and name not in fixed:
            return None
    for name in asked:
        if (
            name in fixed
            or (bounds.forbidden and _fits_one(name, bounds.forbidden))
            or (name not in bounds.required and not _fits_one(name, bounds.allowed))
        ):
            return None
    merged = {**asked, **fixed}
    return merged if _size_of(merged) <= MAX_ATTRIBUTES_BYTES else None


class _Check:
    __slots__ = ("_caller", "_findings", "_refusals", "_wanted")

    def __init__(
        self, caller: CallerRule, wanted: WantedToken, findings: list[Finding] | None
    ) -> None:
        self._caller = caller
        self._wanted = wanted
        self._findings = findings
        self._refusals: list[Refusal] = []

    def decide(
        self, tags: Mapping[str, str] | None, max_duration: int
    ) -> tuple[Decision, Grant | None]:
        wanted, caller = self._wanted, self._caller
        stage = self._stage(tags)
        issuer = self._issuer()
        self._user_id()
        role_name = wanted.role or caller.default_role
        role = None if role_name is None else caller.roles.get(role_name)
        if role is None and (role_name is not None or caller.capabilities is None):
            # What else the request asks for would be judged by a rule that is not known.
            self._no_role(role_name)
            return Decision(self._refusals[0].rule, refusals=tuple(self._refusals)), None
        if role is not None and self._findings is not None:
            self._grant("role", f"is {role.name}", role.rule)
        capabilities = self._capabilities(role)
        duration = self._duration(role, max_duration)
        attributes = self._attributes(role)
        if self._refusals or stage is None:
            return Decision(self._refusals[0].rule, refusals=tuple(self._refusals)), None
        request = TokenRequest(
            wanted.stage, wanted.user_id, duration, capabilities, attributes, issuer
        )
        grant = Grant(stage.rule, role, duration, capabilities, issuer)
        return Decision(stage.rule, request), grant

    def _stage(self, tags: Mapping[str, str] | None) -> StageRule | None:
        found = match_stage(self._caller, self._wanted.stage, tags)
        if isinstance(found, Refusal):
            self._add(found)
            return None
        if self._findings is not None:
            self._grant("stageArn", f"fits {_told_stage(found)}", found.rule)
        return found

    def _issuer(self) -> Issuer:
        allowed = self._caller.issuers
        asked = self._wanted.issuer
        if asked is None:
            return "auto" if "auto" in allowed else allowed[0]
        rule = self._caller.rule_of("issuer")
        if asked not in allowed:
            choice = ", ".join(allowed)
            detail = f"{asked} is not allowed; this caller may ask for {choice}"
            self._refuse("issuer", "issuer_not_allowed", detail, rule, choice)
        elif self._findings is not None:
            self._grant("issuer", f"is {asked}", rule)
        return asked

    def _user_id(self) -> None:
        missing = missing_user(self._caller, self._wanted.user_id)
        if missing is not None:
            self._add(missing)

    def _no_role(self, name: str | None) -> None:
        rule = self._caller.rule_of("roles")
        choice = ", ".join(self._caller.roles) or "none"
        if name is None:
            detail = f"is required: this caller gets tokens by role; its roles are {choice}"
            self._refuse("role", "required", detail, rule, choice)
        else:
            detail = f"{name} is not one of this caller's roles: {choice}"
            self._refuse("role", "role_not_allowed", detail, rule, choice)

    def _capabilities(self, role: Role | None) -> tuple[str, ...]:
        if role is not None:
            allowed, rule = role.capabilities, role.rule
        else:
            allowed, rule = self._caller.capabilities or (), self._caller.rule_of("capabilities")
        asked = self._wanted.capabilities
        choice = ", ".join(allowed) or "none"
        if asked is not None:
            beyond = [name for name in asked if name not in allowed]
            if beyond:
                detail = f"{', '.join(beyond)} is not allowed; allowed: {choice}"
                self._refuse("capabilities", "capability_not_allowed", detail, rule, choice)
                return allowed
        if self._findings is not None:
            given = allowed if asked is None else asked
            self._grant("capabilities", ", ".join(given) or "none", rule)
        return allowed if asked is None else asked

    def _duration(self, role: Role | None, max_duration: int) -> int:
        own = self._caller.duration
        bounds = [own] if role is None else [role.duration, own]
        asked = self._wanted.duration
        minutes = asked
        for bound in bounds:
            if bound is None:
                continue
            if minutes is None:
                minutes = bound.default
            if asked is not None and not self._fits(asked, bound):
                return asked
        if minutes is None:
            minutes = min(DEFAULT_DURATION_MINUTES, max_duration)
        if self._findings is not None:
            source = next((bound.rule for bound in bounds if bound), self._caller.rule)
            self._grant("duration", f"{minutes} minutes", source)
        return minutes

    def _fits(self, minutes: int, bound: DurationRule) -> bool:
        if bound.least <= minutes <= bound.most:
            return True
        code, limit = (
            ("too_large", bound.most) if minutes > bound.most else ("too_small", bound.least)
        )
        detail = f"is {minutes} minutes; allowed are {bound.least} to {bound.most}"
        self._refuse("duration", code, detail, bound.rule, limit)
        return False

    def _attributes(self, role: Role | None) -> Mapping[str, str]:
        fixed = role.attributes if role is not None else {}
        asked = self._wanted.attributes or {}
        if not asked and not self._caller.attributes.required:
            return fixed
        rule = self._caller.rule_of("attributes")
        bounds = self._caller.attributes
        for name, text in asked.items():
            field = f"attributes.{name[:_MAX_SHOWN]}"
            if name in fixed:
                if text != fixed[name] and role is not None:
                    detail = f"is fixed by the role {role.name}"
                    self._refuse(field, "fixed_by_role", detail, role.rule, fixed[name])
            elif _fits_one(name, bounds.forbidden):
                self._refuse(field, "forbidden", "is forbidden to this caller", rule)
            elif name not in bounds.required and not _fits_one(name, bounds.allowed):
                choice = ", ".join((*bounds.required, *(p.text for p in bounds.allowed))) or "none"
                detail = f"is not allowed; this caller may set {choice}"
                self._refuse(field, "attribute_not_allowed", detail, rule, choice)
        for name in bounds.required:
            if name not in asked and name not in fixed:
                detail = "is required of this caller"
                self._refuse(f"attributes.{name[:_MAX_SHOWN]}", "required", detail, rule)
        merged = {**asked, **fixed}
        size = _size_of(merged)
        if size > MAX_ATTRIBUTES_BYTES:
            detail = f"have {size} bytes of UTF-8 with those of the role; IVS allows"
            whose = role.rule if role is not None else rule
            self._refuse(
                "attributes",
                "too_large",
                f"{detail} {MAX_ATTRIBUTES_BYTES}",
                whose,
                MAX_ATTRIBUTES_BYTES,
            )
        elif self._findings is not None and asked:
            self._grant("attributes", f"{len(merged)} in all", rule)
        return merged

    def _refuse(
        self, field: str, code: str, detail: str, rule: Rule, limit: int | str | None = None
    ) -> None:
        self._add(Refusal(field, code, detail, rule, limit))

    def _add(self, refusal: Refusal) -> None:
        self._refusals.append(refusal)
        if self._findings is not None:
            self._findings.append(Finding(refusal.field, False, refusal.detail, refusal.rule))

    def _grant(self, field: str, detail: str, rule: Rule) -> None:
        if self._findings is not None:
            self._findings.append(Finding(field, True, detail, rule))


def _fits_one(text: str, patterns: tuple[Wildcard, ...]) -> bool:
    for pattern in patterns:  # noqa: SIM110 - for every attribute of every mint; half of the time
        if pattern.matches(text):
            return True
    return False


def _size_of(attributes: Mapping[str, str]) -> int:
    """Return the bytes of all names and values in UTF-8."""
    size = 0
    for name, text in attributes.items():
        both = name + text
        size += len(both) if both.isascii() else len(both.encode())
    return size


def _told_stage(stage: StageRule) -> str:
    tags = " ".join(f"{key}={value}" for key, value in stage.tags.items())
    if not tags:
        return stage.arn.text
    return tags if stage.arn.text == "*" else f"{stage.arn.text} with {tags}"
