"""From the tree of a policy file to its rules; every fault is found, each with its line.

A part with a fault is left out and the reading goes on, so that one attempt tells all there is to
mend. Whether parts fit together (a role that its caller could never use, a bound beyond the service's)
is looked at here too: what a request could never get is told when the file is read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, cast

from tokensvc.policy.document import Entries, Fault, Node, shown
from tokensvc.policy.parts import (
    read_attribute_rule,
    read_caller_limits,
    read_capabilities,
    read_connection_duration,
    read_duration,
    read_fixed_attributes,
    read_flag,
    read_issuers,
    read_overall_limits,
    read_stages,
)
from tokensvc.policy.rules import AttributeRule, CallerRule, Role, Rule, TokenLimits
from tokensvc.policy.values import (
    Faults,
    Reader,
    keep,
    read_fields,
    read_list,
    read_named,
    read_text,
    read_whole,
)
from tokensvc.tokens.limits import MAX_ROLE_CHARS

__all__ = ["ANYBODY", "PolicyRules", "read_rules"]

VERSION: Final = 1
ANYBODY: Final = "*"
"""The caller whose rule holds for every caller that has none of its own."""

MAX_CALLER_NAME_CHARS: Final = 256
_ROLE_NAME: Final = re.compile(rf"[A-Za-z0-9_-]{{1,{MAX_ROLE_CHARS}}}", re.ASCII)


@dataclass(frozen=True, slots=True)
class PolicyRules:
    """All that a policy file says."""

    callers: Mapping[str, CallerRule]
    roles: Mapping[str, Role] = field(default_factory=dict)
    limits: TokenLimits = field(default_factory=TokenLimits)


def read_rules(root: Node | None, max_duration: int, found: list[Fault]) -> PolicyRules:
    """Return the rules in `root`; what is wrong is added to `found`, and left out of them.

    `max_duration` (minutes) is the service's bound, which no rule may go beyond.
    """
    faults = Faults(found, max_duration)
    if root is None:
        if not found:
            faults.add(1, "", "is empty; the least policy is `version: 1` and `callers: {}`")
        return PolicyRules({})
    parts = read_fields(
        faults,
        root,
        "",
        {"version": _version, "roles": _roles, "limits": read_overall_limits, "callers": keep},
        ("version", "callers"),
    )
    roles: dict[str, Role] = parts.get("roles") or {}
    callers: dict[str, CallerRule] = {}
    if "callers" in parts:
        # Callers refer to roles, so they come second wherever they stand in the file.
        for name, (line, node) in read_named(faults, parts["callers"], "callers").items():
            rule = _caller(faults, name, line, node, roles)
            if rule is not None:
                callers[name] = rule
    return PolicyRules(callers, roles, parts.get("limits") or TokenLimits())


def _version(faults: Faults, node: Node, path: str) -> int | None:
    number = read_whole(faults, node, path)
    if number is not None and number != VERSION:
        faults.add(node.line, path, f"is {number}; this program reads version {VERSION}")
        return None
    return number


def _roles(faults: Faults, node: Node, path: str) -> dict[str, Role]:
    roles = {}
    for name, (line, value) in read_named(faults, node, path).items():
        if _ROLE_NAME.fullmatch(name) is None:
            rule = f"1 to {MAX_ROLE_CHARS} of a-z, A-Z, 0-9, _ and -"
            faults.add(line, f"{path}.{shown(name)}", f"the name of a role is {rule}")
            continue
        role = _role(faults, name, line, value, f"{path}.{name}")
        if role is not None:
            roles[name] = role
    return roles


def _role(faults: Faults, name: str, line: int, node: Node, path: str) -> Role | None:
    readers: dict[str, Reader[Any]] = {
        "capabilities": read_capabilities,
        "duration": read_duration,
        "attributes": read_fixed_attributes,
    }
    parts = read_fields(faults, node, path, readers, ("capabilities", "duration"), line)
    if "capabilities" not in parts or "duration" not in parts:
        return None
    return Role(
        name,
        parts["capabilities"],
        parts["duration"],
        parts.get("attributes") or {},
        Rule(path, line),
    )


def _caller(
    faults: Faults, name: str, line: int, node: Node, roles: Mapping[str, Role]
) -> CallerRule | None:
    path = f"callers.{shown(name)}"
    if not 0 < len(name) <= MAX_CALLER_NAME_CHARS:
        faults.add(line, path, f"the name of a caller has 1 to {MAX_CALLER_NAME_CHARS} characters")
        return None
    before = len(faults)
    readers: dict[str, Reader[Any]] = {
        "stages": read_stages,
        "capabilities": read_capabilities,
        "duration": read_duration,
        "attributes": read_attribute_rule,
        "roles": lambda f, n, p: _granted_roles(f, n, p, roles),
        "defaultRole": read_text,
        "issuer": read_issuers,
        "limits": read_caller_limits,
        "everywhere": read_flag,
        "connectionTokens": read_connection_duration,
    }
    parts = read_fields(faults, node, path, readers, ("stages",), line)
    if len(faults) > before:
        return None
    entries = cast("Entries", node).entries
    rule = CallerRule(
        name=name,
        stages=parts["stages"],
        rule=Rule(path, line),
        capabilities=parts.get("capabilities"),
        duration=parts.get("duration"),
        attributes=parts.get("attributes") or AttributeRule(),
        roles=parts.get("roles") or {},
        default_role=parts.get("defaultRole"),
        issuers=parts.get("issuer") or ("auto",),
        limits=parts.get("limits") or TokenLimits(),
        everywhere=parts.get("everywhere", False),
        connection_tokens=parts.get("connectionTokens"),
        where={key: Rule(f"{path}.{key}", entry.line) for key, entry in entries.items()},
    )
    _check_fit(faults, rule)
    return rule


def _granted_roles(
    faults: Faults, node: Node, path: str, roles: Mapping[str, Role]
) -> Mapping[str, Role]:
    granted = {}
    for name in read_list(faults, node, path, read_text):
        if name in roles:
            granted[name] = roles[name]
        else:
            known = ", ".join(roles) or "none"
            faults.add(
                node.line,
                path,
                f"{shown(name)} is not a role of this file, or has a fault; roles: {known}",
            )
    return granted


def _check_fit(faults: Faults, caller: CallerRule) -> None:
    """Find what a caller's rule grants and could never be used."""
    path, line = caller.rule.path, caller.rule.line
    if caller.capabilities is None and not caller.roles:
        faults.add(line, path, "grants no token: give `capabilities` and `duration`, or `roles`")
    if caller.capabilities is not None and caller.duration is None:
        # Without it, the longest token that IVS knows would be allowed by leaving a line out.
        faults.add(line, f"{path}.duration", "is required where `capabilities` are given")
    if caller.default_role is not None and caller.default_role not in caller.roles:
        granted = ", ".join(caller.roles) or "no role"
        faults.add(
            caller.rule_of("defaultRole").line,
            f"{path}.defaultRole",
            f"is {shown(caller.default_role)}, which is not one of its roles: {granted}",
        )
    for role in caller.roles.values():
        _check_role(faults, caller, role)


def _check_role(faults: Faults, caller: CallerRule, role: Role) -> None:
    here = caller.rule_of("roles")
    path = f"{here.path}.{role.name}"
    if caller.capabilities is not None:
        beyond = [name for name in role.capabilities if name not in caller.capabilities]
        if beyond:
            where = caller.rule_of("capabilities")
            faults.add(here.line, path, f"has {', '.join(beyond)}, which {where} does not allow")
    bound = caller.duration
    if bound is not None and not (
        bound.least <= role.duration.default and role.duration.most <= bound.most
    ):
        faults.add(
            here.line,
            path,
            f"lasts {role.duration.default} to {role.duration.most} minutes;"
            f" {bound.rule} allows {bound.least} to {bound.most}",
        )
    for name in role.attributes:
        if any(pattern.matches(name) for pattern in caller.attributes.forbidden):
            where = caller.rule_of("attributes")
            faults.add(here.line, path, f"sets the attribute {shown(name)}, forbidden by {where}")
