"""What inspection has to say about a token: findings, each with a stable code and a sentence."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

__all__ = ["Finding", "Findings", "Severity"]

Severity: TypeAlias = Literal["refused", "warning"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing about a token.

    `refused`: IVS, or the client SDK before it, refuses the token for this. `warning`: it joins, or
    IVS documents no rule, but somebody should know. `where` is a header or payload field, or "".
    """

    code: str
    where: str
    detail: str
    severity: Severity = "refused"


@dataclass(slots=True)
class Findings:
    """Collects findings in the order in which they are made."""

    items: list[Finding] = field(default_factory=list)

    def refuse(self, code: str, where: str, detail: str) -> None:
        """Add a reason to refuse the token."""
        self.items.append(Finding(code, where, detail))

    def warn(self, code: str, where: str, detail: str) -> None:
        """Add something that is not a reason to refuse it."""
        self.items.append(Finding(code, where, detail, "warning"))
