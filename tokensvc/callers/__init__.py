"""Who may call: API keys, the callers that hold them, what each may do, and the check of a request.

An operator adds, rotates and revokes callers on the command line (`CallerStore`); every replica keeps
a copy in memory (`CallerDirectory`) that follows the store's changes and answers who sent a request.
A whole API key exists only in the moment it is made and shown; what is stored is a hash.
"""

from tokensvc.callers.api_key import ApiKey
from tokensvc.callers.directory import Authenticated, CallerDirectory
from tokensvc.callers.record import Caller, CallerSecret
from tokensvc.callers.scopes import SCOPES, Scope, parse_scopes
from tokensvc.callers.sql import SqlCallerStore
from tokensvc.callers.store import CallerStore

__all__ = [
    "SCOPES",
    "ApiKey",
    "Authenticated",
    "Caller",
    "CallerDirectory",
    "CallerSecret",
    "CallerStore",
    "Scope",
    "SqlCallerStore",
    "parse_scopes",
]
