"""`POST /v1/tokens` without a task of its own: what it waits for is the ledger, and that tells it.

A mint that finds everything at hand (its caller, the policy, a key, the stage's endpoints) is signed in the
turn of the event loop in which its request was parsed, and answered where the commit of its row ends; with an
`Idempotency-Key` it is signed when the ledger has told that nothing was answered under that before. A task
that waits in between costs several microseconds. The requests of one turn go on together, step by
step: Python runs the same few lines for each of them in a row, which takes it three quarters of the time.

Whatever has to wait for something else is awaited in a task: by the route's handler where nothing was
counted yet, or else the rest of it. The steps are those of that handler (`token_routes.mint`), in the
same order for each request.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping
from time import perf_counter
from typing import Final, Protocol

import msgspec

from tokensvc.http.answers import Answer
from tokensvc.http.facts import RequestFacts
from tokensvc.http.idempotency import request_ref
from tokensvc.http.service import Service
from tokensvc.http.wanted import read_wanted_token
from tokensvc.issuing.issued import IssuedToken
from tokensvc.ledger.idempotency import IdempotencyRef
from tokensvc.tokens.claims import TokenRequest, WantedToken

__all__ = ["Asked", "DirectMint", "minted"]

TOGETHER: Final = 16
"""Requests that go on together: about 1.3 ms. More would hold the event loop from all else."""

_SCOPE: Final = "tokens:mint"
_encode = msgspec.json.Encoder().encode


def minted(
    service: Service,
    facts: RequestFacts,
    region: str,
    issued: IssuedToken,
    started: float,
    headers: Mapping[str, str],
) -> Answer:
    """Return the answer that hands out one token of a stage in `region`, and count it.

    `started` is `perf_counter()` when its request was parsed; `headers` tell the caller its limits.
    """
    facts.key_arn = issued.key_arn
    service.metrics.minted(perf_counter() - started)
    service.metrics.token_issued(issued.issuer, region)
    return Answer(_encode(issued), 201, fields=headers.items())


class Asked(Protocol):
    """A request whose body is all there, and who waits for its answer. Nothing here raises."""

    @property
    def facts(self) -> RequestFacts:
        """What is known of it."""
        ...

    def handle(self) -> None:
        """Have it answered by the route's handler, in a task."""
        ...

    def wait_for(self, answer: Awaitable[Answer]) -> None:
        """Have its answer awaited in a task."""
        ...

    def take(self, outcome: Answer | Exception) -> None:
        """Answer it, with the problem that it is where something was raised."""
        ...


class DirectMint:
    """Begins the mints of one service; belongs to one event loop."""

    __slots__ = ("_asked", "_new", "_service")

    def __init__(self, service: Service) -> None:
        self._service = service
        self._asked: deque[Asked] = deque()
        self._new: deque[_Mint] = deque()

    def begin(self, asked: Asked) -> None:
        """Answer a request, together with others that come in this turn of the event loop."""
        if not self._asked:
            asyncio.get_running_loop().call_soon(self._begin_some)
        self._asked.append(asked)

    def go_on(self, mint: _Mint) -> None:
        """Issue the token of a request that repeats none, together with others that were looked up."""
        if not self._new:
            asyncio.get_running_loop().call_soon(self._go_on_with_some)
        self._new.append(mint)

    def _begin_some(self) -> None:
        waiting = self._asked
        mints = [_Mint(self, waiting.popleft()) for _ in range(min(len(waiting), TOGETHER))]
        if waiting:
            asyncio.get_running_loop().call_soon(self._begin_some)
        _take(_FIRST_STEPS, mints)

    def _go_on_with_some(self) -> None:
        waiting = self._new
        mints = [waiting.popleft() for _ in range(min(len(waiting), TOGETHER))]
        if waiting:
            asyncio.get_running_loop().call_soon(self._go_on_with_some)
        _take(_LAST_STEPS, mints)

    @property
    def service(self) -> Service:
        """Whose mints these are."""
        return self._service


def _take(steps: Iterable[Callable[[_Mint], bool]], mints: list[_Mint]) -> None:
    for step in steps:
        going_on = []
        for mint in mints:
            try:
                if step(mint):
                    going_on.append(mint)
            except Exception as raised:  # noqa: BLE001 - every one of them has an answer
                mint.asked.take(raised)
        mints = going_on


class _Mint:
    """One request on its way. Each step tells whether the next one follows; if not, it is answered."""

    __slots__ = (
        "asked",
        "facts",
        "headers",
        "mints",
        "ref",
        "request",
        "service",
        "started",
        "wanted",
    )

    headers: Mapping[str, str]
    ref: IdempotencyRef | None
    request: TokenRequest
    started: float
    wanted: WantedToken

    def __init__(self, mints: DirectMint, asked: Asked) -> None:
        self.mints = mints
        self.service = mints.service
        self.asked = asked
        self.facts = asked.facts

    def recognise(self) -> bool:
        """See to it that the caller is known and may mint, by what is known already."""
        service, facts = self.service, self.facts
        headers, body = facts.headers, facts.body
        if (
            body is not None
            and len(body) <= service.max_body_bytes
            and headers.get(b"content-type") == b"application/json"
        ):
            header = headers.get(b"authorization")
            caller = service.callers.recognise(None if header is None else header.decode("latin-1"))
            if caller is not None and _SCOPE in caller.scopes:
                facts.caller_id = caller.caller_id
                facts.caller_name = caller.name
                service.audit.check()
                return True
        self.asked.handle()
        return False

    def read(self) -> bool:
        """Read what is asked for."""
        service, facts = self.service, self.facts
        wanted = self.wanted = read_wanted_token(
            facts.body or b"", regions=service.regions, max_duration=service.max_duration
        )
        self.started = perf_counter()
        self.ref = request_ref(facts, "tokens", facts.body or b"")
        facts.stage_arn = wanted.stage.text
        return True

    def look_up(self) -> bool:
        """Have looked up whether it repeats an answer, where it names itself."""
        if self.ref is None:
            return True
        self.service.desk.find_for(_LookUp(self), self.ref)
        return False

    def admit(self) -> bool:
        """Count it, and hold it against the policy."""
        admitted = self.service.gate.admit_at_hand(self.facts.caller_name, self.wanted)
        if admitted is None:
            self.asked.handle()
            return False
        self.request = admitted.request
        self.headers = admitted.headers
        return True

    def issue(self) -> bool:
        """Sign the token and give its row to the ledger."""
        desk, request, caller_id = self.service.desk, self.request, self.facts.caller_id
        if not desk.mint_for(self, request, caller_id, self.ref):
            self._answer_in_task(desk.mint(request, caller_id, self.ref, is_new=True))
        return False

    def _answer_in_task(self, minting: Awaitable[IssuedToken]) -> None:
        async def answer() -> Answer:
            return self._answer(await minting)

        self.asked.wait_for(answer())

    def hand_out(self, issued: IssuedToken) -> None:
        """Answer with the token, which is recorded."""
        try:
            answer = self._answer(issued)
        except Exception as raised:  # noqa: BLE001 - every one of them has an answer
            self.asked.take(raised)
        else:
            self.asked.take(answer)

    def repeat(self, stored: str) -> None:
        """Answer as another request that came under the same reference at the same time."""
        desk, request, caller_id = self.service.desk, self.request, self.facts.caller_id
        self._answer_in_task(desk.repeat(request, stored, caller_id))

    def refuse(self, error: Exception) -> None:
        """Answer with the problem that kept the token from being handed out."""
        self.asked.take(error)

    def _answer(self, issued: IssuedToken) -> Answer:
        region = self.request.stage.region
        return minted(self.service, self.facts, region, issued, self.started, self.headers)


class _LookUp:
    """Waits until it is known whether a request repeats an answer."""

    __slots__ = ("_mint",)

    def __init__(self, mint: _Mint) -> None:
        self._mint = mint

    def done(self) -> bool:
        return False

    def set_result(self, stored: str | None) -> None:
        if stored is None:
            self._mint.mints.go_on(self._mint)
        else:
            # It is not counted, and may wait for much.
            self._mint.asked.handle()

    def set_exception(self, error: Exception) -> None:
        self._mint.asked.take(error)


_LAST_STEPS: Final[tuple[Callable[[_Mint], bool], ...]] = (_Mint.admit, _Mint.issue)
_FIRST_STEPS: Final = (_Mint.recognise, _Mint.read, _Mint.look_up, *_LAST_STEPS)
