"""POST /v1/tokens as one would write it with FastAPI and PyJWT.

An API key, the request's fields checked by pydantic, a token of Amazon IVS signed with ES384. No ledger,
no policy, no bans, no key rotation. https://fastapi.tiangolo.com, https://pyjwt.readthedocs.io
"""

import os
import secrets
import time
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

import jwt
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from fastapi import Depends, FastAPI, Header, HTTPException
from pydantic import BaseModel, Field

KEY = load_pem_private_key(Path(os.environ["KEY_FILE"]).read_bytes(), None)
HEADERS = {"kid": os.environ["KEY_ARN"]}
EVENTS_URL, WHIP_URL = os.environ["EVENTS_URL"], os.environ["WHIP_URL"]
EXPECTED = f"Bearer {os.environ['API_KEY']}".encode()
CLAIMS = {"PUBLISH": "allow_publish", "SUBSCRIBE": "allow_subscribe"}

Capability = Literal["PUBLISH", "SUBSCRIBE"]


class Wanted(BaseModel):
    stageArn: str = Field(pattern="^arn:aws:ivs:[a-z0-9-]+:[0-9]+:stage/[a-zA-Z0-9-]+$")
    userId: str | None = Field(None, max_length=128)
    duration: int = Field(720, ge=1, le=20160)
    capabilities: list[Capability] = ["PUBLISH", "SUBSCRIBE"]
    attributes: dict[str, str] = {}


class Issued(Wanted):
    token: str
    participantId: str
    expirationTime: datetime


async def authenticate(authorization: Annotated[str, Header()] = "") -> None:
    if not secrets.compare_digest(authorization.encode(), EXPECTED):
        raise HTTPException(401, "unauthorized")


app = FastAPI()


@app.post("/v1/tokens", dependencies=[Depends(authenticate)])
async def mint(wanted: Wanted) -> Issued:
    iat = int(time.time())
    exp = iat + wanted.duration * 60
    participant_id = str(uuid.uuid4())
    claims = {
        "exp": exp,
        "iat": iat,
        "jti": participant_id,
        "resource": wanted.stageArn,
        "topic": wanted.stageArn.partition("/")[2],
        "events_url": EVENTS_URL,
        "whip_url": WHIP_URL,
        "capabilities": {CLAIMS[name]: True for name in wanted.capabilities},
        "attributes": wanted.attributes,
        "version": "1.0",
    }
    if wanted.userId is not None:
        claims["user_id"] = wanted.userId
    return Issued(
        **wanted.model_dump(),
        token=jwt.encode(claims, KEY, algorithm="ES384", headers=HEADERS),
        participantId=participant_id,
        expirationTime=datetime.fromtimestamp(exp, UTC),
    )
