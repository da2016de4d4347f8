"""The service over HTTP: Litestar on uvicorn.

A request passes `edge.py` (id, security headers, access log), Litestar's router, a handler
(`token_routes.py`, `key_routes.py`, `health_routes.py`), and comes back as a body that msgspec wrote or
as a problem (`problems.py`, RFC 9457). Handlers read their bodies themselves (`bodies.py`), bounded,
and hand plain JSON values to `tokensvc.tokens.validate`; `structs.py` and `openapi.py` say the same
to readers of `/schema`. `app.py` is the only place where parts are wired together.
"""

from tokensvc.telemetry.structlog_alone import load_structlog

# A worker is born here, without `tokensvc.cli`, and all that follows loads structlog.
load_structlog()
