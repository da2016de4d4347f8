"""What was issued: one row for every token, whoever signed it, and never the token itself.

A token leaves only after its row is committed (`writer.py`), so that every token of a user, a stage or
a key can be found and revoked, and it is known when the last token of a key expires (`lookups.py`).
`idempotency.py` keeps what was answered to a repeated request, in the same commit as the rows.
`janitor.py` deletes what has expired.
"""

from tokensvc.ledger.idempotency import (
    Claim,
    IdempotencyRef,
    IdempotencyStore,
    claim_all,
    idempotency_ref,
)
from tokensvc.ledger.janitor import LedgerJanitor
from tokensvc.ledger.lookups import (
    IssuedRecord,
    KeyUse,
    KeyUser,
    Ledger,
    Page,
    mark_disconnected,
)
from tokensvc.ledger.row import LedgerRow
from tokensvc.ledger.writer import MAX_RECORD_SECONDS, LedgerWriter

__all__ = [
    "MAX_RECORD_SECONDS",
    "Claim",
    "IdempotencyRef",
    "IdempotencyStore",
    "IssuedRecord",
    "KeyUse",
    "KeyUser",
    "Ledger",
    "LedgerJanitor",
    "LedgerRow",
    "LedgerWriter",
    "Page",
    "claim_all",
    "idempotency_ref",
    "mark_disconnected",
]
