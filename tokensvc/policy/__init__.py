"""What each caller may ask for: a policy file of roles and rules, and how many tokens a second.

The file is YAML (`reading`, every fault with its line) and becomes a `Policy`, which decides a request
(`decision`) without I/O. `PolicyFile` follows the file as it changes; `Limiter` counts; `PolicyGate`
is the three together, the one way from what a caller wants to what is issued.

Closed by default: what no rule allows is refused, and a caller without a rule gets nothing.
"""

from tokensvc.policy.decision import Decision, Finding, Refusal
from tokensvc.policy.file import PolicyFile
from tokensvc.policy.gate import Admitted, AdmittedBatch, PolicyGate, StageTags
from tokensvc.policy.limiter import Limiter, Quota, rate_limit_headers
from tokensvc.policy.policy import Policy

__all__ = [
    "Admitted",
    "AdmittedBatch",
    "Decision",
    "Finding",
    "Limiter",
    "Policy",
    "PolicyFile",
    "PolicyGate",
    "Quota",
    "Refusal",
    "StageTags",
    "rate_limit_headers",
]
