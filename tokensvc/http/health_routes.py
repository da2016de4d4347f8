"""Whether the process lives, whether it is ready, what it counted, and its API: without an API key.

None of these routes does work that a stranger could make too much of: they tell what is known.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
from litestar import Request, get
from litestar.response.base import ASGIResponse

from tokensvc.http.openapi import RouteDoc, documented
from tokensvc.http.service import service_of
from tokensvc.http.structs import CheckAnswer, LivenessAnswer, ReadinessAnswer
from tokensvc.telemetry.metrics import Metrics

__all__ = ["HEALTH_ROUTES"]

_JSON: Final = "application/json"
_UNAVAILABLE: Final = 503
_encode = msgspec.json.Encoder().encode


@get(
    "/healthz",
    summary="Tell whether the process answers",
    opt=documented(
        RouteDoc(
            operation_id="healthz",
            answer=LivenessAnswer,
            statuses={_UNAVAILABLE: "A part that never ends has ended; only a restart cures that."},
        )
    ),
)
async def healthz(request: Request[Any, Any, Any]) -> ASGIResponse:
    """Tell whether all that never ends still runs; a fault elsewhere never restarts the process."""
    alive = service_of(request).is_alive()
    return ASGIResponse(
        body=_encode(LivenessAnswer(alive=alive)),
        status_code=200 if alive else _UNAVAILABLE,
        media_type=_JSON,
    )


@get(
    "/readyz",
    summary="Tell whether the process may be sent requests",
    opt=documented(
        RouteDoc(
            operation_id="readyz",
            answer=ReadinessAnswer,
            statuses={_UNAVAILABLE: "Not ready; `checks` says why."},
        )
    ),
)
async def readyz(request: Request[Any, Any, Any]) -> ASGIResponse:
    """Report the store, the copies of ring and callers, and the canary signature of each Region."""
    checks = service_of(request).readiness.checks()
    ready = all(check.ok for check in checks if check.required)
    answer = ReadinessAnswer(
        ready=ready,
        checks=[
            CheckAnswer(check.name, check.ok, check.required, check.detail) for check in checks
        ],
    )
    return ASGIResponse(
        body=_encode(answer), status_code=200 if ready else _UNAVAILABLE, media_type=_JSON
    )


@get(
    "/metrics",
    summary="Report the metrics of this process",
    opt=documented(RouteDoc(operation_id="metrics", answer=None, media_type="text/plain")),
)
async def metrics(request: Request[Any, Any, Any]) -> ASGIResponse:
    """Report counters, gauges and histograms in Prometheus' text format."""
    return ASGIResponse(
        body=service_of(request).metrics.render(),
        headers={"content-type": Metrics.content_type},
    )


HEALTH_ROUTES: Final = (healthz, readyz, metrics)
