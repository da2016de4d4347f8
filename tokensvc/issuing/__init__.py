"""One request end to end: from a valid `TokenRequest` to an `IssuedToken`.

`issuer.py` decides who signs: a local key, or IVS itself as the marked fallback. `batch.py` issues many
without one spoiling another; `slices.py` keeps such work from holding the event loop.

Nothing here knows HTTP, and nothing here checks a request's limits: that happened in `tokens.validate`.
"""
